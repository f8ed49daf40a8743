"""Opening slides, their um/px and their regions."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sklearn_pk.slides._wsi import _reader
from sklearn_pk.slides._wsi._openslide import OpenSlideReader
from sklearn_pk.slides._wsi._reader import (
    best_level,
    check_slide,
    fingerprint,
    open_slide,
    read_overview,
    read_tile,
    resolve_mpp,
    slide_info,
)
from sklearn_pk.slides._wsi._tiff import TiffReader


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("missing", FileNotFoundError, "Slide not found"),
        ("text", ValueError, "Not a slide that OpenSlide can read"),
        ("zero", ValueError, "0 bytes"),
        ("truncated", ValueError, "Not a slide|truncated"),
        ("no_mpp", ValueError, "found None.*'slide' and 'mpp'"),
        ("wrong_mpp", ValueError, "expected 0.1 to 2.0 um/px, found '25"),
        ("folder", ValueError, "got a folder"),
    ],
)
def test_bad_slide_is_named(bad_slides, name, error, text):
    with pytest.raises(error, match=text) as info:
        check_slide(bad_slides[name])
    assert repr(bad_slides[name]) in str(info.value)


def test_truncated_after_a_whole_header(tmp_path, small_slides):
    # Headers first, pixels last, as a broken download leaves a file.
    content = Path(small_slides[1]).read_bytes()
    path = tmp_path / "cut.tiff"
    path.write_bytes(content[: int(len(content) * 0.8)])
    with pytest.raises(ValueError, match=r"cut\.tiff"):
        check_slide(str(path))


def test_permission(small_slides, monkeypatch):
    # Simulated, because root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"a\.tiff.*permissions"):
        check_slide(small_slides[0])


def test_header(cmu_slide):
    info = check_slide(cmu_slide)
    assert info.size == (2220, 2967)
    assert (info.mpp, info.objective_power) == (0.499, 20.0)


@pytest.mark.parametrize("override", [None, np.nan])
def test_mpp_of_the_file(override):
    properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}
    assert resolve_mpp("s", properties, override) == pytest.approx(0.255)


@pytest.mark.parametrize("override", [0.1, 2, np.float32(0.5)])
def test_mpp_override(override):
    assert resolve_mpp("s", {}, override) == pytest.approx(float(override))


@pytest.mark.parametrize("override", [0, -1, 5.0, "x", np.inf])
def test_bad_mpp_override(override):
    with pytest.raises(ValueError, match="'s': the column 'mpp' must hold um/px"):
        resolve_mpp("s", {}, override)


@pytest.mark.parametrize(("x", "y"), [("0.25", None), ("a", "a"), ("nan", "nan"), ("0.25", "0.5")])
def test_bad_mpp_of_the_file(x, y):
    properties = {"openslide.mpp-x": x, "openslide.mpp-y": y}
    with pytest.raises(ValueError, match="Slide 's' states no plausible resolution"):
        resolve_mpp("s", properties)


def info_of(downsamples, mpp=0.25):
    sizes = tuple((int(4000 / d), int(3000 / d)) for d in downsamples)
    return _reader.SlideInfo("s", sizes[0], sizes, tuple(downsamples), mpp, 40.0)


@pytest.mark.parametrize(
    ("downsamples", "mpp", "level"),
    [
        ((1.0, 4.0, 16.0), 0.5, 0),
        ((1.0, 2.0, 4.0), 0.5, 1),
        ((1.0, 2.0005, 4.002), 0.5, 1),
        ((1.0, 4.0, 16.0), 8.0, 2),
        ((1.0,), 0.1, 0),
    ],
)
def test_best_level(downsamples, mpp, level):
    assert best_level(info_of(downsamples), mpp) == level


def overview_of(path, mpp):
    with open_slide(path) as slide:
        return read_overview(slide, slide_info(slide, path), mpp)


def test_overview_does_not_depend_on_the_blocks(small_slides, monkeypatch):
    whole, scale = overview_of(small_slides[1], 2.0)
    monkeypatch.setattr(_reader, "_BLOCK", 32)
    blocks, same_scale = overview_of(small_slides[1], 2.0)
    assert scale == same_scale
    np.testing.assert_array_equal(whole, blocks)


@pytest.mark.parametrize("kind", [TiffReader, OpenSlideReader])
def test_overview_reads_no_large_region(cmu_slide, monkeypatch, kind):
    sizes = []
    read = kind.read

    def recorded(self, x, y, level, width, height):
        sizes.append((width, height))
        return read(self, x, y, level, width, height)

    with kind(cmu_slide) as slide:
        monkeypatch.setattr(kind, "read", recorded)
        monkeypatch.setattr(_reader, "_BLOCK", 512)
        overview, _ = read_overview(slide, slide_info(slide, cmu_slide), 8.0)
    assert np.max(sizes) <= 512
    assert np.sum(np.prod(sizes, axis=1)) == 2220 * 2967
    assert overview.shape == (186, 139, 3)


def test_overview_of_a_pyramid_is_that_of_its_base(tmp_path, tissue_rgb, write_slide):
    flat = write_slide(tmp_path / "flat.tiff", tissue_rgb[:400, :400], n_levels=1)
    deep = write_slide(tmp_path / "deep.tiff", tissue_rgb[:400, :400], n_levels=3)
    one, other = (overview_of(path, 4.0)[0].astype(int) for path in (flat, deep))
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 3


def test_outside_is_white(small_slides):
    with open_slide(small_slides[0]) as slide:
        tile = read_tile(slide, -20, -20, 0, 16, 16)
    assert tile.shape == (16, 16, 3)
    assert tile.min() == 255


def test_read_tile_resamples(small_slides):
    with open_slide(small_slides[0]) as slide:
        exact = read_tile(slide, 64, 64, 0, 64, 64)
        small = read_tile(slide, 64, 64, 0, 64, 32)
    assert small.shape == (32, 32, 3)
    halved = exact.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - halved).mean() < 6


def test_fingerprint_is_of_the_content(tmp_path, small_slides):
    copied = shutil.copy(small_slides[0], tmp_path / "other name.tiff")
    assert fingerprint(copied) == fingerprint(small_slides[0])
    with open(copied, "r+b") as file:
        file.seek(500)
        file.write(b"changed")
    os.utime(copied, (1, 1))
    assert fingerprint(copied) != fingerprint(small_slides[0])


def test_fingerprint_of_a_large_file(tmp_path):
    path = tmp_path / "large.svs"
    path.write_bytes(bytes(9 << 20))
    before = fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    os.utime(path, (1, 1))
    assert fingerprint(path) != before
