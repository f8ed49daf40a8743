"""tifffile reads the same pixels as OpenSlide."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_pk.slides._wsi._openslide import OpenSlideReader
from sklearn_pk.slides._wsi._reader import check_slide, open_slide, slide_info
from sklearn_pk.slides._wsi._tiff import TiffReader


def write_ome(path, rgb, unit="µm", size=0.5, n_levels=3):
    """Write an OME-TIFF whose lower levels are sub-images, as QuPath does."""
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    kwargs = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(rgb, subifds=n_levels - 1, metadata=metadata, **kwargs)
        for level in range(1, n_levels):
            tiff.write(rgb[:: 2**level, :: 2**level], subfiletype=1, **kwargs)
    return str(path)


def same_tiles(path, regions):
    with OpenSlideReader(path) as slow, TiffReader(path) as fast:
        assert slow.size == fast.size
        for region in regions:
            np.testing.assert_array_equal(fast.read(*region), slow.read(*region), str(region))


def test_real_slide_read_whole(cmu_slide):
    same_tiles(cmu_slide, [(0, 0, 0, 2220, 2967)])


@settings(max_examples=30, deadline=None)
@given(st.integers(-50, 2300), st.integers(-50, 3050), st.integers(1, 600), st.integers(1, 600))
def test_any_rectangle_of_a_real_slide(cmu_slide, x, y, width, height):
    same_tiles(cmu_slide, [(x, y, 0, width, height)])


def test_levels_on_the_grid(small_slides):
    # Odd sizes: levels are not exact halves, and OpenSlide interpolates except at the origin.
    for path in small_slides:
        with TiffReader(path) as slide:
            regions = [(0, 0, level, 100, 90) for level in range(len(slide.level_sizes))]
        same_tiles(path, [*regions, (37, 41, 0, 128, 128)])


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg", "jpeg2000"])
def test_compressions(tmp_path, tissue_rgb, compression):
    path = str(tmp_path / "a.tiff")
    tifffile.imwrite(
        path, tissue_rgb[:300, :333], photometric="rgb", tile=(128, 128), compression=compression
    )
    with TiffReader(path) as slide:
        pixels = slide.read(0, 0, 0, 333, 300)
    np.testing.assert_array_equal(pixels, tifffile.imread(path))
    if compression != "jpeg2000":  # OpenSlide refuses the one that is not Aperio's
        same_tiles(path, [(0, 0, 0, 333, 300)])


def test_lower_level_is_read_where_it_is(tmp_path, tissue_rgb, write_slide):
    # Not at the origin: the corner goes to the nearest pixel of the level.
    path = write_slide(tmp_path / "a.tiff", tissue_rgb[:333, :401], n_levels=3)
    whole = tifffile.imread(path, series=0, level=1)
    with TiffReader(path) as slide:
        downsample = slide.level_downsamples[1]
        assert downsample != 2
        for column, row in [(3, 5), (64, 64), (100, 31)]:
            x, y = round(column * downsample), round(row * downsample)
            tile = slide.read(x, y, 1, 50, 40)
            np.testing.assert_array_equal(tile, whole[row : row + 40, column : column + 50])


def test_auto_takes_tifffile_where_it_reads_the_same(cmu_slide, small_slides):
    for path in (cmu_slide, *small_slides):
        with open_slide(path) as slide:
            assert slide.library == "tifffile"
        with open_slide(path, "openslide") as slide:
            assert slide.library == "openslide"


def test_both_readers_read_the_same_header(cmu_slide, small_slides):
    for path in (cmu_slide, *small_slides):
        infos = []
        for name in ("openslide", "tifffile"):
            with open_slide(path, name) as slide:
                infos.append((slide_info(slide, path), slide.vendor))
        assert infos[0] == infos[1]


def test_auto_leaves_other_pixels_to_openslide(tmp_path, small_slides, monkeypatch):
    path = tmp_path / "copy.tiff"
    path.write_bytes(Path(small_slides[0]).read_bytes())
    read = TiffReader.read
    monkeypatch.setattr(TiffReader, "read", lambda self, *args: 255 - read(self, *args))
    with open_slide(path) as slide:
        assert slide.library == "openslide"


def test_auto_leaves_tiles_that_are_left_out_to_openslide(tmp_path, tissue_rgb, write_slide):
    path = Path(write_slide(tmp_path / "a.tiff", tissue_rgb[:256, :256]))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
    with open_slide(path) as slide:
        assert slide.library == "openslide"
    with open_slide(path, "tifffile") as slide:
        assert slide.read(0, 0, 0, 64, 64).min() == 255
        assert slide.read(64, 0, 0, 64, 64).min() < 255


@pytest.mark.parametrize(("unit", "size"), [("µm", 0.5), ("nm", 500.0), ("mm", 5e-4)])
def test_pyramid_and_resolution_of_ome_tiff(tmp_path, tissue_rgb, unit, size):
    path = write_ome(tmp_path / "a.ome.tif", tissue_rgb[:301, :401], unit, size)
    info = check_slide(path)
    assert info.mpp == pytest.approx(0.5)
    assert info.level_sizes == ((401, 301), (201, 151), (101, 76))


def test_ome_tiff_in_pixels_has_no_resolution(tmp_path, tissue_rgb):
    path = write_ome(tmp_path / "a.ome.tif", tissue_rgb[:100, :100], "pixel", 1.0)
    with pytest.raises(ValueError, match="found None"):
        check_slide(path)
    assert check_slide(path, mpp=0.5).mpp == 0.5


def test_cut_file_is_named(tmp_path, cmu_slide):
    path = tmp_path / "cut.svs"
    path.write_bytes(Path(cmu_slide).read_bytes()[:-400_000])
    for reader in ("tifffile", "auto"):
        with pytest.raises(ValueError, match=r"cut\.svs"):
            check_slide(str(path), reader=reader)


def test_damaged_tile_is_named_when_it_is_read(tmp_path, cmu_slide):
    path = tmp_path / "hole.svs"
    content = bytearray(Path(cmu_slide).read_bytes())
    with tifffile.TiffFile(cmu_slide) as tiff:
        start = tiff.pages[0].dataoffsets[5]
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with open_slide(path, "tifffile") as slide:
        slide.read(0, 0, 0, 240, 240)
        with pytest.raises(ValueError, match=r"damaged or truncated.*hole\.svs"):
            slide.read(5 * 240, 0, 0, 240, 240)


def test_decoded_tiles_are_bounded(cmu_slide, monkeypatch):
    monkeypatch.setattr("sklearn_pk.slides._wsi._tiff._CACHE_BYTES", 10 * 240 * 240 * 3)
    with TiffReader(cmu_slide) as slide:
        slide.read(0, 0, 0, 2220, 2967)
        assert len(slide._decoded) == 10


def change_tag(source, path, name, value, page=0):
    """Write another number into a tag of one page."""
    with tifffile.TiffFile(source) as file:
        tag = file.pages[page].tags[name]
    width = {"SHORT": 2, "LONG": 4, "LONG8": 8}[tag.dtype.name]
    content = bytearray(Path(source).read_bytes())
    content[tag.valueoffset : tag.valueoffset + width] = value.to_bytes(width, "little")
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("reader", ["tifffile", "openslide", "auto"])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"TileWidth": 1 << 15, "TileLength": 1 << 15}, "tiles of 32768 x 32768 pixels are too"),
        ({"ImageWidth": 50_000}, "tiles are listed, expected"),
        ({"ImageWidth": 0}, "0 x 401 pixels|modulo by zero"),
        ({"ImageWidth": 11_000, "ImageLength": 1 << 30}, "tiles are listed, expected"),
    ],
)
def test_headers_that_declare_too_much(small_slides, tmp_path, changes, text, reader):
    # OpenSlide would end the process: it gets no memory for such a tile.
    path = tmp_path / "huge.tiff"
    source = small_slides[0]
    for name, value in changes.items():
        source = change_tag(source, path, name, value)
    with pytest.raises(ValueError, match=rf"huge\.tiff.*({text})"):
        check_slide(source, 0.5, reader)


@pytest.mark.parametrize("reader", ["tifffile", "openslide", "auto"])
def test_damaged_headers_print_nothing(cmu_slide, tmp_path, reader, capfd):
    path = tmp_path / "cut.svs"
    path.write_bytes(Path(cmu_slide).read_bytes()[:1_000_000])
    with pytest.raises(ValueError, match=r"cut\.svs"):
        check_slide(str(path), reader=reader)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("start", [b"II*\0", b"MM\0*", b"II+\0", b"II*\0\x08\0\0\0\xff\xff"])
def test_short_headers(tmp_path, start):
    path = tmp_path / "short.tiff"
    path.write_bytes(start)
    with pytest.raises(ValueError, match=r"Not a slide .*short\.tiff"):
        check_slide(str(path))
