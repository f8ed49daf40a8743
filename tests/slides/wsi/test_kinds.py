"""Each kind of TIFF is read as the RGB that is meant, or refused by name."""

# SPDX-License-Identifier: BSD-3-Clause

import itertools
import re

import numpy as np
import pytest
import tifffile

from sklearn_pk.slides._wsi._openslide import OpenSlideReader
from sklearn_pk.slides._wsi._reader import check_slide, open_slide
from sklearn_pk.slides._wsi._tiff import TiffReader

READERS = ["auto", "openslide", "tifffile"]
HALF_UM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "metadata": None}
TILED = {"tile": (64, 64), **HALF_UM}


@pytest.fixture
def rgb(tissue_rgb):
    return tissue_rgb[:200, :230]


def write(path, pixels, photometric="rgb", **options):
    tifffile.imwrite(path, pixels, photometric=photometric, **(TILED | options))
    return str(path)


def read_whole(path, reader="auto"):
    with open_slide(path, reader) as slide:
        return slide.read(0, 0, 0, *slide.size)


def over_white(rgb, alpha):
    weight = alpha[..., np.newaxis] / 255
    return rgb * weight + 255 * (1 - weight)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_is_composed_over_white(tmp_path, rgb, reader, compression, kind):
    alpha = np.random.default_rng(0).choice([0, 1, 77, 128, 254, 255], rgb.shape[:2])
    alpha[:64, :64], alpha[64:128, :64] = 0, 255
    stored = rgb if kind == "unassalpha" else np.rint(rgb * (alpha[..., np.newaxis] / 255))
    pixels = np.dstack([stored, alpha]).astype(np.uint8)
    path = write(tmp_path / "a.tif", pixels, extrasamples=[kind], compression=compression)
    found = read_whole(path, reader).astype(float)
    # OpenSlide has premultiplied pixels, which lose precision where alpha is small.
    tolerance = 1 if reader == "tifffile" else 4
    assert np.abs(found - over_white(rgb, alpha)).max() <= tolerance
    np.testing.assert_array_equal(found[:64, :64], 255)
    np.testing.assert_array_equal(found[64:128, :64], rgb[64:128, :64])


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "jpeg2000"])
def test_planar_rgb_is_exact(tmp_path, rgb, tile, compression):
    planes, options = np.moveaxis(rgb, 2, 0), {"tile": tile, "compression": compression}
    path = write(tmp_path / "a.tif", planes, planarconfig="separate", **options)
    expected = np.moveaxis(tifffile.imread(path), 0, 2)
    np.testing.assert_array_equal(read_whole(path), expected)
    if compression != "jpeg2000":
        np.testing.assert_array_equal(expected, rgb)


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_planar_alpha_and_palette(tmp_path, rgb, tile):
    alpha = np.where(np.arange(230) < 90, 0, 255).astype(np.uint8) + np.zeros_like(rgb[..., 0])
    planes = np.moveaxis(np.dstack([rgb, alpha]), 2, 0)
    options = {"planarconfig": "separate", "extrasamples": ["unassalpha"], "tile": tile}
    path = write(tmp_path / "alpha.tif", planes, **options)
    np.testing.assert_array_equal(read_whole(path), over_white(rgb, alpha))
    table = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint16)
    for factor in (257, 1):
        options = {"colormap": table * factor, "tile": tile}
        path = write(tmp_path / "a.tif", rgb[..., 0], "palette", **options)
        for reader in ("auto", "tifffile"):
            np.testing.assert_array_equal(read_whole(path, reader), table.T[rgb[..., 0]])


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp"])
def test_compressed_colour(tmp_path, rgb, compression):
    path = write(tmp_path / "a.tif", rgb, compression=compression)
    np.testing.assert_array_equal(read_whole(path), tifffile.imread(path))
    assert np.abs(read_whole(path).astype(int) - rgb).mean() < 12


def test_ycbcr_is_never_taken_for_rgb(tmp_path, rgb):
    # Without JPEG, tifffile returns the stored YCbCr; OpenSlide converts it.
    light = rgb @ [0.299, 0.587, 0.114]
    blue, red = (128 + factor * (rgb[..., at] - light) for at, factor in [(2, 0.564), (0, 0.713)])
    stored = np.clip(np.rint(np.dstack([light, blue, red])), 0, 255).astype(np.uint8)
    subsampling = [(530, "H", 2, (1, 1), True)]
    path = write(tmp_path / "a.tif", stored, compression="lzw", extratags=subsampling)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    with pytest.raises(ValueError, match=r"a\.tif.*YCbCr"):
        read_whole(path, "tifffile")
    assert np.abs(read_whole(path).astype(int) - rgb).max() < 5


GREY = np.arange(200 * 230, dtype=np.uint8).reshape(200, 230)
CONTIGUOUS = {"planarconfig": "contig"}
REFUSED = {
    "grey": (GREY, "minisblack", {}, "a grey TIFF of 8 bits"),
    "grey JPEG": (GREY, "minisblack", {"compression": "jpeg"}, "a grey TIFF of 8 bits"),
    "white is zero": (GREY, "miniswhite", {}, "a grey TIFF of 8 bits"),
    "grey 16": (GREY.astype(np.uint16), "minisblack", {}, "a grey TIFF of 16 bits"),
    "one bit": (GREY > 9, "minisblack", {}, "a grey TIFF of 1 bits"),
    "grey float": (GREY.astype(np.float32), "minisblack", {}, r"floating point \(float32\)"),
    "two bands": (np.dstack([GREY] * 2), "minisblack", CONTIGUOUS, "a TIFF of 2 bands"),
    "six bands": (np.dstack([GREY] * 6), "minisblack", CONTIGUOUS, "6 bands.*extract_band"),
    "fourth": (np.dstack([GREY] * 4), "rgb", {"extrasamples": [0]}, "a TIFF of 4 bands"),
    "fifth": (np.dstack([GREY] * 5), "rgb", {"extrasamples": [2, 0]}, "a TIFF of 5 bands"),
    "uint16": (np.dstack([GREY] * 3).astype(np.uint16), "rgb", {}, "16 bits.*uint16.*vips msb"),
    "int8": (np.dstack([GREY] * 3).astype(np.int8), "rgb", {}, "int8"),
    "uint32": (np.dstack([GREY] * 3).astype(np.uint32), "rgb", {}, "32 bits"),
    "float32": (np.dstack([GREY] * 3).astype(np.float32), "rgb", {}, "float32.*vips linear"),
    "float64": (np.dstack([GREY] * 3).astype(np.float64), "rgb", {}, "float64"),
    "float16": (np.dstack([GREY] * 3).astype(np.float16), "rgb", {}, "float16"),
    "CMYK": (np.dstack([GREY] * 4), "separated", {}, r"\(CMYK\).*vips icc_transform"),
    "CIELAB": (np.dstack([GREY] * 3), "cielab", {}, "CIELAB"),
    "float Lab": (np.dstack([GREY] * 3).astype(np.float32), "cielab", {}, "CIELAB.*colourspace"),
    "ICCLAB": (np.dstack([GREY] * 3), "icclab", {}, "ICCLAB"),
}


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", REFUSED)
def test_other_pixels_are_refused_by_name(tmp_path, name, reader, tile):
    pixels, photometric, options, text = REFUSED[name]
    path = write(tmp_path / "a b.tif", pixels, photometric, **options, tile=tile)
    if reader == "openslide" and tile is None:
        text = "Not a slide|" + text
    with pytest.raises(ValueError, match=rf"a b\.tif.*({text})") as info:
        open_slide(path, reader)
    assert not re.search("damaged|truncated|again|UnsupportedKind", str(info.value))


def test_the_command_names_the_file(tmp_path, rgb):
    path = write(tmp_path / "a b.tif", rgb.astype(np.uint16))
    with pytest.raises(ValueError, match="Convert it: vips msb ") as info:
        open_slide(path)
    assert f"vips msb '{path}' 'OUT.tif[" in str(info.value)


@pytest.mark.parametrize(
    ("axes", "shape", "text"),
    [
        ("CYX", (3, 90, 99), r"3 separate channels \(axes CYX\).*vips bandjoin"),
        ("CYX", (5, 90, 99), "5 separate channels"),
        ("ZYXS", (4, 90, 99, 3), r"several planes \(axes ZYXS, 4 x 90"),
        ("TYXS", (2, 90, 99, 3), "several planes"),
        ("ZCYX", (2, 3, 90, 99), "several planes"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_channels_and_planes_of_ome_tiff(tmp_path, axes, shape, text, reader, tile):
    path = tmp_path / "a.ome.tif"
    color = "rgb" if axes.endswith("S") else "minisblack"
    pixels = np.zeros(shape, dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric=color, tile=tile, metadata={"axes": axes})
    if reader == "openslide":
        text += "|Not a slide|grey TIFF"
    with pytest.raises(ValueError, match=text):
        open_slide(path, reader)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tile", [(64, 64), None])
def test_ome_tiff_of_one_level(tmp_path, rgb, tile, planar):
    path = tmp_path / "a.ome.tif"
    pixels, axes = (np.moveaxis(rgb, 2, 0), "SYX") if planar else (rgb, "YXS")
    metadata = {"axes": axes, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    options = {"planarconfig": "separate"} if planar else {}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=tile, metadata=metadata, **options)
    np.testing.assert_array_equal(read_whole(path), rgb)
    assert check_slide(path).mpp == 0.25


def write_pages(path, rgb, pages):
    """Write levels of RGB, and masks: M is declared by its colour, m by its type only."""
    with tifffile.TiffWriter(path) as file:
        for kind, factor in pages:
            small = rgb[::factor, ::factor]
            reduced = 1 if factor > 1 else 0
            if kind == "r":
                file.write(small, photometric="rgb", subfiletype=reduced, **TILED)
            else:
                mask = small[..., 1] < 200
                file.write(mask, photometric=4, subfiletype=4 + reduced, **TILED)
    if any(kind in "mg" for kind, _ in pages):
        return make_grey(path, pages)
    return str(path)


def make_grey(path, pages):
    """Turn masks into grey pages, which are declared as masks or are mere reduced pages."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for page, (kind, factor) in zip(file.pages, pages, strict=True):
            if kind in "mg":
                page.tags["PhotometricInterpretation"].overwrite(1)
                reduced = 1 if factor > 1 else 0
                page.tags["NewSubfileType"].overwrite(reduced + (4 if kind == "m" else 0))
    return str(path)


@pytest.mark.parametrize("kind", "Mm")
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
def test_mask_pages_are_no_levels(tmp_path, rgb, kind, order):
    pages = [("r", 1), ("r", 2), (kind, 1), (kind, 2)]
    pages = [pages[at] for at in order]
    first = [factor for name, factor in pages if name == "r"]
    path = write_pages(tmp_path / "a.tif", rgb, pages)
    if first != [1, 2]:
        with pytest.raises(ValueError, match="2 large images"):
            open_slide(path)
        return
    for reader in ("auto", "tifffile"):
        with open_slide(path, reader) as slide:
            assert slide.level_sizes == ((230, 200), (115, 100))
            np.testing.assert_array_equal(slide.read(0, 0, 0, 230, 200), rgb)
            np.testing.assert_array_equal(slide.read(0, 0, 1, 115, 100), rgb[::2, ::2])
    with pytest.raises(ValueError, match="such as masks.*reader='auto'"):
        open_slide(path, "openslide")


@pytest.mark.parametrize("ending", ["tif", "ome.tif"])
def test_masks_among_the_levels_of_an_image(tmp_path, rgb, ending):
    path, options = str(tmp_path / f"a.{ending}"), {"tile": (64, 64)}
    with tifffile.TiffWriter(path) as file:
        file.write(rgb, photometric="rgb", subifds=2, metadata={"axes": "YXS"}, **options)
        file.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, **options)
        file.write(rgb[..., 0] > 99, photometric=4, subfiletype=4, **options)
    with open_slide(path) as slide:
        assert slide.level_sizes == ((230, 200), (115, 100))


def test_grey_pages_among_levels(tmp_path, rgb):
    path = write_pages(tmp_path / "a.tif", rgb, [("r", 1), ("g", 2), ("r", 4)])
    with open_slide(path) as slide:
        assert slide.level_sizes == ((230, 200), (58, 50))
    path = write_pages(tmp_path / "first.tif", rgb, [("g", 1), ("r", 1), ("r", 2)])
    for reader in READERS:
        with pytest.raises(ValueError, match="large images|grey TIFF|such as masks"):
            open_slide(path, reader)
    path = write_pages(tmp_path / "masks.tif", rgb, [("M", 1), ("M", 2)])
    with pytest.raises(ValueError, match="masks only"):
        open_slide(path)


def test_several_images_of_one_size(tmp_path, rgb):
    path = write_pages(tmp_path / "a.tif", rgb, [("r", 1), ("r", 1)])
    for reader in READERS:
        with pytest.raises(ValueError, match="several planes"):
            open_slide(path, reader)


def test_both_readers_see_the_same(tmp_path, rgb):
    path = write_pages(tmp_path / "a.tif", rgb, [("r", 1), ("r", 2)])
    with OpenSlideReader(path) as slow, TiffReader(path) as fast:
        assert slow.level_sizes == fast.level_sizes


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".isyntax", "iSyntax file of Philips.*isyntax-to-tiff"),
        (".vsi", "VSI file of Olympus.*bfconvert"),
        (".lif", "LIF file.*bfconvert"),
        (".jp2", "JPEG 2000 image.*vips copy"),
        (".sdpc", "SDPC file of SQRAY.*Export it"),
    ],
)
def test_formats_that_are_not_read(tmp_path, rgb, ending, text):
    path = tmp_path / f"a{ending}"
    # A VSI file is a TIFF with an overview: its pixels are elsewhere.
    write(path, rgb)
    with pytest.raises(ValueError, match=text):
        open_slide(path)
