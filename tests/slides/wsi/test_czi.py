"""CZI files are read by pylibCZIrw where OpenSlide does not read them."""

# SPDX-License-Identifier: BSD-3-Clause

import sys

import numpy as np
import pytest

from sklearn_pk.slides import SlideTiler
from sklearn_pk.slides._wsi import _czi
from sklearn_pk.slides._wsi._reader import check_slide, open_slide, read_overview, slide_info

czi = pytest.importorskip("pylibCZIrw.czi")


def write(path, pixels, *, planes=({"C": 0},), scenes=(0,), compression="zstd1:", mpp=0.5):
    with czi.create_czi(str(path)) as file:
        for scene in scenes:
            corner = (-40 + 400 * scene, 25)
            for plane in planes:
                file.write(
                    pixels, corner, plane=plane, scene=scene, compression_options=compression
                )
        file.write_metadata("a", scale_x=mpp * 1e-6, scale_y=mpp * 1e-6)
    return str(path)


@pytest.fixture
def rgb(tissue_rgb):
    return tissue_rgb[:300, :333]


@pytest.mark.parametrize("compression", ["uncompressed:", "zstd0:", "zstd1:"])
def test_pixels_and_resolution(tmp_path, rgb, compression):
    path = write(tmp_path / "a.czi", rgb[..., ::-1].copy(), compression=compression)
    with open_slide(path) as slide:
        assert slide.library == "pylibCZIrw"
        assert slide.size == (333, 300)
        np.testing.assert_array_equal(slide.read(0, 0, 0, 333, 300), rgb)
        corner = slide.read(-3, -4, 0, 10, 10)
        np.testing.assert_array_equal(corner[4:, 3:], rgb[:6, :7])
        assert corner[:4].min() == 255
    assert check_slide(path).mpp == pytest.approx(0.5)
    [tiled] = SlideTiler(tile_size=64).fit_transform([path])
    x, y = tiled.coords[0]
    np.testing.assert_array_equal(next(tiled.iter_tiles()), rgb[y : y + 64, x : x + 64])


def test_levels(tmp_path, rgb, monkeypatch):
    monkeypatch.setattr(_czi, "_SMALLEST", 100)
    path = write(tmp_path / "a.czi", rgb[..., ::-1].copy())
    with open_slide(path) as slide:
        # The library would take every second pixel.
        assert slide.level_sizes == ((333, 300),)
        overview, scale = read_overview(slide, slide_info(slide, path), 2.0)
    assert (overview.shape, scale) == ((75, 84, 3), 4)
    means = rgb[:300, :332].reshape(75, 4, 83, 4, 3).mean(axis=(1, 3))
    assert np.abs(overview[:, :83] - means).max() <= 1
    monkeypatch.setattr(_czi.CziReader, "_lacks_pyramid", lambda self: False)
    with open_slide(path) as slide:
        assert slide.level_sizes == ((333, 300), (166, 150), (83, 75))
        np.testing.assert_array_equal(slide.read(64, 32, 1, 50, 40), rgb[32:112:2, 64:164:2])


def test_gaps_between_scenes_are_white(tmp_path, rgb):
    path = write(tmp_path / "a.czi", rgb[..., ::-1].copy(), scenes=(0, 1))
    with open_slide(path) as slide:
        assert slide.size == (733, 300)
        found = slide.read(0, 0, 0, 733, 300)
    np.testing.assert_array_equal(found[:, 400:], rgb)
    assert found[:, 333:400].min() == 255


@pytest.mark.parametrize(
    ("channels", "dtype", "planes", "text"),
    [
        (1, np.uint8, [{"C": 0}], "Gray8 pixels.*bfconvert"),
        (1, np.uint16, [{"C": 0}], "Gray16 pixels"),
        (3, np.uint16, [{"C": 0}], "Bgr48 pixels"),
        (1, np.uint8, [{"C": 0}, {"C": 1}], r"several planes \{'C': 2\}"),
        (3, np.uint8, [{"C": 0, "Z": 0}, {"C": 0, "Z": 1}], r"several planes \{'Z': 2\}"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, rgb, channels, dtype, planes, text):
    pixels = rgb[..., :channels].astype(dtype)
    path = write(tmp_path / "a.czi", pixels, planes=planes)
    with pytest.raises(ValueError, match=rf"a\.czi' is a CZI file of {text}"):
        open_slide(path)


def test_without_the_library(tmp_path, rgb, monkeypatch):
    path = write(tmp_path / "a.czi", rgb)
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    with pytest.raises(ValueError, match=r"CZI file .*sklearn_pk\[czi\].*bfconvert") as info:
        open_slide(path)
    assert "damaged" not in str(info.value)


def test_damaged_czi(tmp_path, rgb):
    path = tmp_path / "a.czi"
    write(path, rgb)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.czi"):
        check_slide(str(path), mpp=0.5)
