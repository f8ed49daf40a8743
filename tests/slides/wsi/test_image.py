"""PNG, JPEG and TIFF without tiles are slides of one level."""

# SPDX-License-Identifier: BSD-3-Clause

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from sklearn_pk.slides import SlideTiler
from sklearn_pk.slides._wsi import _image
from sklearn_pk.slides._wsi._reader import check_slide, open_slide


@pytest.fixture
def rgb(tissue_rgb):
    return tissue_rgb[:200, :230]


def read_whole(path):
    with open_slide(path) as slide:
        return slide.read(0, 0, 0, *slide.size)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "tif"])
def test_plain_image(tmp_path, rgb, ending):
    path = str(tmp_path / f"a.{ending}")
    Image.fromarray(rgb).save(path, quality=95)
    found = read_whole(path)
    np.testing.assert_array_equal(found, np.asarray(Image.open(path).convert("RGB")))
    with open_slide(path) as slide:
        assert slide.library == ("tifffile" if ending == "tif" else "pillow")
        assert (slide.size, slide.level_sizes) == ((230, 200), ((230, 200),))
    with pytest.raises(ValueError, match="no plausible resolution.*column"):
        check_slide(path)
    assert check_slide(path, mpp=0.5).mpp == 0.5


@pytest.mark.parametrize(
    "box", [(-5, -7, 20, 30), (220, 190, 20, 30), (400, 0, 9, 9), (3, 4, 5, 6)]
)
def test_rectangles_are_filled_with_white(tmp_path, rgb, box):
    path = str(tmp_path / "a.png")
    Image.fromarray(rgb).save(path)
    x, y, width, height = box
    padded = np.pad(rgb, ((50, 300), (50, 300), (0, 0)), constant_values=255)
    expected = padded[y + 50 : y + 50 + height, x + 50 : x + 50 + width]
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(x, y, 0, width, height), expected)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "jpeg", "jpeg2000"])
@pytest.mark.parametrize("rows", [16, 200])
def test_tiff_in_strips(tmp_path, rgb, compression, rows):
    path = tmp_path / "a.tif"
    unit = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    options = {"compression": compression, "rowsperstrip": rows} | unit
    tifffile.imwrite(path, rgb, photometric="rgb", **options)
    np.testing.assert_array_equal(read_whole(path), tifffile.imread(path))
    assert check_slide(path).mpp == pytest.approx(0.5)


def test_tiles_of_an_image_are_those_of_its_slide(tmp_path, tissue_rgb, write_slide):
    Image.fromarray(tissue_rgb).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", tissue_rgb, photometric="rgb", tile=(64, 64))
    X = pd.DataFrame({"slide": [tmp_path / "a.png", tmp_path / "b.tif"], "mpp": 0.5})
    one, other = SlideTiler(tile_size=64).fit_transform(X)
    assert (one.reader, other.reader) == ("pillow", "tifffile")
    np.testing.assert_array_equal(one.coords, other.coords)
    np.testing.assert_array_equal(list(one.iter_tiles()), list(other.iter_tiles()))


@pytest.mark.parametrize(("ending", "dpi"), [("png", 50_800), ("jpg", 50_800), ("tif", 50_800)])
def test_resolution_in_the_file(tmp_path, rgb, ending, dpi):
    path = str(tmp_path / f"a.{ending}")
    Image.fromarray(rgb).save(path, dpi=(dpi, dpi))
    assert check_slide(path).mpp == pytest.approx(0.5, rel=1e-3)
    Image.fromarray(rgb).save(path, dpi=(72, 72))
    with pytest.raises(ValueError, match="no plausible resolution"):
        check_slide(path)


@pytest.mark.parametrize("mode", ["RGBA", "PA", "P", "palette and transparency", "tRNS"])
def test_alpha_and_palettes_of_png(tmp_path, rgb, mode):
    path = str(tmp_path / "a.png")
    if mode == "RGBA":
        alpha = np.random.default_rng(0).integers(0, 256, rgb.shape[:2], dtype=np.uint8)
        Image.fromarray(np.dstack([rgb, alpha])).save(path)
        weight = alpha[..., np.newaxis] / 255
        expected = rgb * weight + 255 * (1 - weight)
    elif mode == "tRNS":
        Image.fromarray(rgb).save(path, transparency=tuple(rgb[5, 5].tolist()))
        expected = np.where((rgb == rgb[5, 5]).all(axis=2, keepdims=True), 255, rgb)
    else:
        image = Image.fromarray(rgb).quantize(50)
        options = {} if mode in "PA" else {"transparency": 3}
        image.save(path, **options)
        expected = np.array(image.convert("RGB"))
        expected[(np.asarray(image) == options.get("transparency", 999))] = 255
    assert np.abs(read_whole(path) - expected.astype(float)).max() <= 0.51


@pytest.mark.parametrize(
    ("ending", "mode", "text"),
    [
        ("png", "L", "PNG image without colour"),
        ("png", "LA", "PNG image without colour"),
        ("png", "1", "PNG image without colour"),
        ("png", "I;16", "PNG image without colour"),
        ("jpg", "L", "JPEG image without colour"),
        ("jpg", "CMYK", r"printing inks \(CMYK\).*vips icc_transform"),
    ],
)
def test_other_pixels_are_refused_by_name(tmp_path, rgb, ending, mode, text):
    path = str(tmp_path / f"a.{ending}")
    if mode == "I;16":
        Image.fromarray(rgb[..., 0].astype(np.uint16)).save(path)
    else:
        Image.fromarray(rgb).convert(mode).save(path)
    with pytest.raises(ValueError, match=text) as info:
        open_slide(path)
    assert not re.search("damaged|again", str(info.value))


def test_png_of_16_bits(tmp_path, rgb):
    # Pillow reads it as 8 bits without a word.
    import imagecodecs

    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(rgb.astype(np.uint16) << 8))
    with pytest.raises(ValueError, match="a PNG of 16 bits per sample.*vips msb"):
        open_slide(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_images_that_are_too_large(tmp_path, rgb, ending, monkeypatch):
    path = str(tmp_path / f"a.{ending}")
    Image.fromarray(rgb).save(path)
    monkeypatch.setattr(_image, "MAX_PIXELS", 230 * 200)
    open_slide(path)
    monkeypatch.setattr(_image, "MAX_PIXELS", 230 * 200 - 1)
    with pytest.raises(ValueError, match="230 x 200 pixels, and images of more.*vips copy"):
        open_slide(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_damaged_images(tmp_path, rgb, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(rgb).save(path, compression="tiff_lzw" if ending == "tif" else None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"damaged or truncated.*a\.{ending}|Not a"):
        check_slide(str(path), mpp=0.5)


def test_cut_and_missing_strips(tmp_path, rgb):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", rowsperstrip=16, compression="jpeg")
    content = path.read_bytes()
    # Most of the last strip is there, and could be decoded.
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"damaged or truncated.*a\.tif"):
        check_slide(str(path), mpp=0.5)
    path.write_bytes(content)
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = list(file.pages[0].databytecounts)
        file.pages[0].tags["StripByteCounts"].overwrite([0, *counts[1:]])
    with pytest.raises(ValueError, match="some of which are left out"):
        open_slide(path)


def test_readers_of_other_files(tmp_path, rgb):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    for reader, text in [("openslide", "Not a slide"), ("tifffile", "Not a TIFF")]:
        with pytest.raises(ValueError, match=text):
            open_slide(path, reader)
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    with pytest.raises(ValueError, match=r"Not an image that pillow can read.*a\.png"):
        open_slide(path)
