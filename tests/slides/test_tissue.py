"""Tissue masks."""

# SPDX-License-Identifier: BSD-3-Clause

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklearn_pk.slides._tissue import (
    compute_mask,
    low_contrast,
    otsu_mask,
    otsu_threshold,
    saturation,
    tissue_fractions,
)

PINK, PAPER = (200, 90, 150), (240, 240, 240)


def picture(shape=(80, 100), tissue=np.s_[20:60, 30:70], color=PINK):
    rgb = np.full((*shape, 3), PAPER, dtype=np.uint8)
    rgb[tissue] = color
    noise = np.random.default_rng(0).integers(-3, 4, size=rgb.shape)
    return (rgb + noise).astype(np.uint8)


def test_otsu_parts_two_heaps():
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(60, 5, 3000), rng.normal(180, 8, 1000)
    threshold = otsu_threshold(np.rint(np.r_[dark, bright]).astype(np.uint8))
    assert dark.max() - 1 <= threshold < bright.min() + 1


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, st.integers(2, 40)))
def test_otsu_is_the_best_split(values):
    threshold = otsu_threshold(values)
    if values.min() == values.max():
        assert not (values > threshold).any()
        return

    def between(cut):
        low, high = values[values <= cut].astype(float), values[values > cut].astype(float)
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(cut) for cut in range(values.min(), values.max()))
    assert between(threshold) == pytest.approx(best)


def test_saturation_is_that_of_hsv():
    rgb = np.random.default_rng(0).integers(0, 256, size=(6, 7, 3), dtype=np.uint8)
    expected = [[255 * colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in row] for row in rgb]
    assert np.abs(saturation(rgb) - np.array(expected)).max() <= 1
    assert saturation(np.zeros((1, 1, 3), dtype=np.uint8)) == 0


def test_mask_finds_tissue():
    mask = otsu_mask(picture())
    expected = np.zeros_like(mask)
    expected[20:60, 30:70] = True
    assert (mask == expected).mean() > 0.99


def test_mask_finds_a_tiny_biopsy():
    # 0.2 % of the slide: any percentile of the overview sees background only.
    mask = otsu_mask(picture((400, 400), np.s_[100:120, 100:116]))
    assert mask[102:118, 102:114].all()
    assert mask.sum() < 500


def test_mask_reaches_the_border():
    mask = otsu_mask(picture(tissue=np.s_[40:, :50]))
    assert mask[42:, :48].all()


def test_mask_leaves_out_black_ink():
    rgb = picture()
    rgb[:10, :10] = (5, 5, 40)
    assert not otsu_mask(rgb)[:8, :8].any()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_colour_has_no_tissue(value):
    assert not otsu_mask(np.full((20, 30, 3), value, dtype=np.uint8)).any()


def test_noise_has_no_tissue():
    rgb = np.random.default_rng(0).integers(236, 246, size=(60, 60, 3), dtype=np.uint8)
    assert not otsu_mask(rgb).any()


def test_compute_mask():
    rgb = picture()
    np.testing.assert_array_equal(compute_mask(rgb, "otsu", "s"), otsu_mask(rgb))
    assert compute_mask(rgb, None, "s").all()
    assert compute_mask(rgb, lambda image: image[..., 1] < 150, "s").sum() == 1600
    with pytest.raises(ValueError, match=r"\(80, 100\), got \(3,\) for slide 's'"):
        compute_mask(rgb, lambda image: np.ones(3), "s")


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (13, 17)), st.integers(0, 16), st.integers(0, 12), st.integers(1, 8))
def test_fractions_are_means_of_windows(mask, x, y, edge):
    found = tissue_fractions(mask, np.array([[x, y]], dtype=float), float(edge))
    assert found[0] == pytest.approx(mask[y : y + edge, x : x + edge].mean())


def test_low_contrast():
    rgb = np.full((32, 32, 3), 200, dtype=np.uint8)
    rgb[:16:2, :16] = 100
    corners = np.array([[0.0, 0.0], [16.0, 0.0], [16.0, 16.0]])
    assert low_contrast(rgb, corners, 16.0).tolist() == [False, True, True]
    assert low_contrast(rgb, corners[:0], 16.0).shape == (0,)
