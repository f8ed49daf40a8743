"""Tissue masks."""

# SPDX-License-Identifier: BSD-3-Clause

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklearn_pk.slides._tissue._methods import (
    METHODS,
    compute_mask,
    entropy_mask,
    local_entropy,
    low_contrast,
    luminance,
    otsu_mask,
    otsu_threshold,
    saturation,
    saturation_mask,
    tissue_fractions,
    window_counts,
)

PINK, PAPER = (200, 90, 150), (240, 240, 240)


def make_image(shape=(80, 100), tissue=np.s_[20:60, 30:70], color=PINK):
    rgb = np.full((*shape, 3), PAPER, dtype=np.uint8)
    rgb[tissue] = color
    noise = np.random.default_rng(0).integers(-3, 4, size=rgb.shape)
    return (rgb + noise).astype(np.uint8)


def textured(alpha=1.0, saturation=1.0, ink=None, paper=240):
    """Tissue with nuclei, 40 x 40 of 80 x 100 pixels, on noisy background, with a stroke of ink."""
    rng = np.random.default_rng(0)
    rgb = np.full((80, 100, 3), paper, dtype=float)
    nuclei = rng.random((40, 40, 1)) < 0.4
    tissue = np.where(nuclei, (110, 60, 130), PINK) + rng.normal(0, 15, (40, 40, 1))
    grey = tissue.mean(axis=2, keepdims=True)
    tissue = grey + saturation * (tissue - grey)
    rgb[20:60, 30:70] += alpha * (tissue - paper)
    if ink is not None:
        rgb[:16] = ink
    return np.clip(rgb + rng.normal(0, 1, rgb.shape[:2])[..., np.newaxis], 0, 255).astype(np.uint8)


def overlap(mask):
    """Return the fractions of tissue that is found, and of the found pixels that are tissue."""
    tissue = np.zeros(mask.shape, dtype=bool)
    tissue[20:60, 30:70] = True
    return (mask & tissue).sum() / tissue.sum(), (mask & tissue).sum() / max(1, mask.sum())


def test_otsu_separates_two_modes():
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


def test_luminance():
    rgb = np.random.default_rng(0).integers(0, 256, size=(6, 7, 3), dtype=np.uint8)
    np.testing.assert_allclose(luminance(rgb), rgb @ [0.2125, 0.7154, 0.0721], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(arrays(bool, st.tuples(st.integers(3, 9), st.integers(3, 9))))
def test_window_counts(mask):
    padded = np.pad(mask, 2, mode="reflect")
    expected = [
        [padded[row : row + 5, column : column + 5].sum() for column in range(mask.shape[1])]
        for row in range(mask.shape[0])
    ]
    np.testing.assert_array_equal(window_counts(mask, 5), expected)


def test_local_entropy():
    rgb = np.repeat(np.random.default_rng(0).integers(0, 256, (9, 11, 1), np.uint8), 3, axis=2)
    light = luminance(rgb).astype(int)
    levels = (light - np.bincount(light.ravel()).argmax() + 4) // 8
    levels = np.pad(levels, 2, mode="reflect")
    for row, column in [(0, 0), (4, 5), (8, 10)]:
        _, counts = np.unique(levels[row : row + 5, column : column + 5], return_counts=True)
        expected = -(counts / 25 * np.log2(counts / 25)).sum()
        assert local_entropy(rgb)[row, column] == pytest.approx(expected, abs=1e-5)
    assert abs(local_entropy(np.full((5, 5, 3), 99, np.uint8))).max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("paper", range(236, 245))
def test_mask_finds_tissue(method, paper):
    assert min(overlap(METHODS[method](textured(paper=paper)))) > 0.9


@pytest.mark.parametrize("kind", [{"alpha": 0.2, "saturation": 0.5}, {"saturation": 0.02}])
def test_entropy_finds_pale_and_grey_tissue(kind):
    rgb = textured(**kind)
    assert overlap(otsu_mask(rgb))[0] < 0.5
    assert min(overlap(entropy_mask(rgb))) > 0.9


def test_saturation_finds_dark_tissue():
    rgb = textured()
    rgb[20:60, 30:70] //= 5
    assert overlap(otsu_mask(rgb))[0] < 0.1
    assert min(overlap(saturation_mask(rgb))) > 0.95


def test_background_may_be_yellow():
    rgb = (textured() * np.array([1, 0.97, 0.86])).astype(np.uint8)
    assert min(overlap(saturation_mask(rgb))) > 0.95


def test_mask_finds_a_tiny_biopsy():
    # 0.2 % of the slide: any percentile of the overview sees background only.
    mask = otsu_mask(make_image((400, 400), np.s_[100:120, 100:116]))
    assert mask[102:118, 102:114].all()
    assert mask.sum() < 500


def test_mask_reaches_the_border():
    mask = otsu_mask(make_image(tissue=np.s_[40:, :50]))
    assert mask[42:, :48].all()


def test_mask_leaves_out_black_ink():
    rgb = make_image()
    rgb[:10, :10] = (5, 5, 40)
    assert not otsu_mask(rgb)[:8, :8].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_colour_has_no_tissue(value, method):
    assert not METHODS[method](np.full((20, 30, 3), value, dtype=np.uint8)).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigma", [1, 4, 8])
def test_noise_has_no_tissue(sigma, method):
    noise = np.random.default_rng(0).normal(242, sigma, size=(60, 60, 3))
    assert not METHODS[method](np.clip(noise, 0, 255).astype(np.uint8)).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_tiny_overview(shape, method):
    rgb = np.random.default_rng(0).integers(0, 256, size=(*shape, 3), dtype=np.uint8)
    assert METHODS[method](rgb).shape == shape


def test_compute_mask():
    rgb = make_image()
    ink = np.zeros(rgb.shape[:2], dtype=bool)
    for method, function in METHODS.items():
        np.testing.assert_array_equal(compute_mask(rgb, method, "s", ink), function(rgb))
    ink[20:30] = True
    # A function decides about ink itself.
    assert compute_mask(rgb, lambda image: image[..., 1] < 150, "s", ink).sum() == 1600
    with pytest.raises(ValueError, match=r"\(80, 100\), got \(3,\) for slide 's'"):
        compute_mask(rgb, lambda image: np.ones(3), "s", ink)


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
