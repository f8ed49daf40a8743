"""Ink of pens and stained tissue, which differ in colour."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest

from sklearn_pk.slides import SlideTiler, check_slides
from sklearn_pk.slides._tissue._ink import ink_mask
from sklearn_pk.slides._tissue._methods import compute_mask

# Absorbance of red, green and blue by haematoxylin and eosin.
STAINS = {
    "Ruifrok": [(0.65, 0.70, 0.29), (0.07, 0.99, 0.11)],
    "Macenko": [(0.56, 0.72, 0.41), (0.22, 0.80, 0.56)],
    "blue": [(0.70, 0.66, 0.28), (0.10, 0.95, 0.30)],
    "orange": [(0.60, 0.72, 0.35), (0.06, 0.76, 0.64)],
}
PENS = {
    "black": (20, 20, 25),
    "green": (30, 90, 60),
    "blue": (30, 40, 150),
    "light blue": (60, 120, 200),
    "red": (200, 30, 40),
    "yellow": (230, 200, 40),
    "brown": (110, 70, 30),
}
TISSUE, STROKE = np.zeros((2, 160, 200), dtype=bool)
TISSUE[30:130, 40:160] = True
STROKE[60:80, 10:190] = True


def stained(stains="Macenko", strength=1.0):
    """Draw tissue of 4 um/px, with areas of dense nuclei and of eosin only."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.2, 0.9, (160, 200, 2)) * strength
    amounts[30:60, 40:100, 0] += 0.5 * strength
    amounts[100:130, 100:160] = (0.02 * strength, 0.8 * strength)
    absorbed = (amounts * TISSUE[..., np.newaxis]) @ np.array(STAINS[stains])
    rgb = 243 * np.exp(-absorbed) + rng.normal(0, 1.5, absorbed.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def marked(color, **options):
    rgb = stained(**options)
    rgb[STROKE] = rgb[STROKE] * (np.array(color) / 255) * 0.2 + 0.8 * np.array(color)
    return rgb


@pytest.mark.parametrize("stains", STAINS)
@pytest.mark.parametrize("strength", [0.3, 1, 1.7])
def test_stains_are_no_ink(stains, strength):
    for mpp in (1.0, 4.0, 8.0):
        assert not ink_mask(stained(stains, strength), mpp).any()


@pytest.mark.parametrize("method", ["otsu", "saturation"])
@pytest.mark.parametrize("pen", PENS)
def test_ink_is_no_tissue(pen, method):
    rgb = marked(PENS[pen])
    ink = ink_mask(rgb, 4.0)
    assert ink[STROKE].mean() > 0.95
    assert ink[~STROKE].mean() < 0.04
    mask = compute_mask(rgb, method, "s", ink)
    clean = compute_mask(stained(), method, "s", np.zeros_like(ink))
    assert mask[STROKE].mean() < 0.02
    # The thresholds are those of the slide without ink.
    assert mask[clean & ~ink].mean() > 0.98
    assert mask[~TISSUE].mean() < 0.03


def test_ink_does_not_hide_pale_tissue():
    rgb = marked(PENS["blue"], strength=0.25)
    ink, none = ink_mask(rgb, 4.0), np.zeros_like(STROKE)
    outside = TISSUE & ~STROKE
    assert compute_mask(rgb, "otsu", "s", none)[outside].mean() < 0.1
    assert compute_mask(rgb, "otsu", "s", ink)[outside].mean() > 0.9


def test_small_areas_are_no_ink():
    rgb = stained()
    rgb[5:10, 5:10] = PENS["black"]
    assert ink_mask(rgb, 10.0)[5:10, 5:10].all()
    assert not ink_mask(rgb, 4.0).any()


def test_slide_with_ink(tmp_path, tissue_rgb, write_slide):
    """No tile is mostly ink, tissue is kept, and the report states the area of ink."""
    rgb, ink = tissue_rgb.copy(), np.zeros(tissue_rgb.shape[:2], dtype=bool)
    ink[100:160, 20:-20] = ink[300:420, 20:-20] = True
    tilers = [SlideTiler(tile_size=32, tissue=tissue) for tissue in ("otsu", "saturation")]
    paths = [write_slide(tmp_path / "clean.tif", rgb)]
    rgb[100:160, 20:-20], rgb[300:420, 20:-20] = PENS["black"], PENS["green"]
    paths.append(write_slide(tmp_path / "pen.tif", rgb))
    for tiler in tilers:
        clean, marked_slide = tiler.fit_transform(paths)
        fractions = [ink[y : y + 32, x : x + 32].mean() for x, y in marked_slide.coords]
        assert max(fractions) <= 0.5
        free = {(x, y) for x, y in clean.coords.tolist() if not ink[y : y + 32, x : x + 32].any()}
        kept = free & set(map(tuple, marked_slide.coords.tolist()))
        assert len(kept) > 0.95 * len(free)
    report = check_slides(paths)
    assert report.ink_mm2[0] == 0
    # The overview has 8 um/px, and borders count.
    assert report.ink_mm2[1] == pytest.approx(ink.sum() * 0.25e-6, rel=0.3)
    # A given mask is not changed, and no overview is read.
    table = report[["slide", "mpp"]].assign(tissue=[np.ones((4, 4), dtype=bool)] * 2)
    assert check_slides(table).ink_mm2.isna().all()


def test_only_ink(tmp_path, tissue_rgb, write_slide):
    rgb = np.full_like(tissue_rgb, 242)
    rgb[200:300, 50:-50] = PENS["blue"]
    path = write_slide(tmp_path / "a.tif", rgb)
    [tiled] = SlideTiler(tile_size=32).fit_transform([path])
    assert tiled.reason == "No tissue was found on the overview."
    report = check_slides([path])
    assert (report.ok[0], report.n_tiles[0]) == (False, 0)
    assert report.ink_mm2[0] == pytest.approx(100 * 600 * 0.25e-6, rel=0.3)
