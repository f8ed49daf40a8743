"""Find the tissue on an overview of a slide."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy import ndimage

# Background differs from tissue by more than this fraction of the range of saturation.
_MIN_SATURATION_GAP = 0.05
# How much more saturated than the background tissue is, of 255: above the noise of JPEG.
_ABOVE_BACKGROUND = 8
_MAX_BACKGROUND_SATURATION = 40
_WINDOW = 5
# The mean entropies of tissue and background differ by more than this fraction of the largest
# possible entropy. The noise of a scanner alone gives at most 0.08; tissue an eighth as dark as
# usual gives 0.2.
_MIN_ENTROPY_GAP = 0.12


def otsu_threshold(values):
    """Compute Otsu's threshold of 8-bit values."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(256))
    valid = (below > 0) & (above > 0)
    if not valid.any():
        return int(values.flat[0])
    mean_below = sums[valid] / below[valid]
    mean_above = (sums[-1] - sums[valid]) / above[valid]
    between = below[valid] * above[valid] * np.square(mean_below - mean_above)
    return int(np.flatnonzero(valid)[between.argmax()])


def saturation(rgb):
    """Compute the saturation of HSV as 8-bit values."""
    # Channel by channel: reducing an axis of length 3 takes ten times as long.
    red, green, blue = np.moveaxis(rgb, 2, 0)
    largest = np.maximum(np.maximum(red, green), blue).astype(np.uint16)
    spread = largest - np.minimum(np.minimum(red, green), blue)
    return (255 * spread // np.maximum(largest, 1)).astype(np.uint8)


def luminance(rgb):
    """Compute the luminance of RGB pixels."""
    red, green, blue = np.moveaxis(rgb, 2, 0)
    weights = np.array([0.2125, 0.7154, 0.0721], dtype=np.float32)
    return weights[0] * red + weights[1] * green + weights[2] * blue


def otsu_mask(rgb):
    """Find tissue by Otsu's thresholds of colour and saturation."""
    saturated = saturation(rgb)
    cut = otsu_threshold(saturated)
    upper = saturated > cut
    if not upper.any():
        return upper
    # Otsu splits noise as readily as tissue. The gap between the two classes, unlike a
    # percentile, does not depend on how little of the slide a biopsy covers.
    if saturated[upper].mean() - saturated[~upper].mean() < _MIN_SATURATION_GAP * 255:
        return np.zeros(rgb.shape[:2], dtype=bool)
    channels = np.moveaxis(rgb, 2, 0)
    bright = np.logical_and.reduce([each > otsu_threshold(each) for each in channels])
    not_black = np.logical_and.reduce([each > 50 for each in channels])
    return _close(~bright & upper & not_black)


def _close(mask):
    """Close small gaps by three iterations."""
    # Pad, or closing would erode what touches the border.
    return ndimage.binary_closing(np.pad(mask, 3), iterations=3)[3:-3, 3:-3]


def saturation_mask(rgb):
    """Find tissue as what is more saturated than the background."""
    saturated, light = saturation(rgb), luminance(rgb).astype(np.uint8)
    bright = saturated[light > otsu_threshold(light)]
    counts = np.bincount(bright[bright <= _MAX_BACKGROUND_SATURATION], minlength=1)
    upper = saturated > counts.argmax() + _ABOVE_BACKGROUND
    # The majority of a window is the median filter of a mask.
    return _close(window_counts(upper, _WINDOW) > _WINDOW**2 // 2)


def window_counts(mask, size):
    """Count in a window around each pixel."""
    counts = np.pad(mask.view(np.uint8), size // 2, mode="reflect")
    for axis in (0, 1):
        # Sums of whole arrays take a third of the time of the filters of ndimage.
        windows = np.lib.stride_tricks.sliding_window_view(counts, size, axis=axis)
        counts = sum(windows[..., shift] for shift in range(size))
    return counts


def local_entropy(rgb):
    """Compute the entropy of luminance in a window around each pixel."""
    light = luminance(rgb).astype(np.uint8)
    # The most common value, the background, is put into the middle of a level: at the border of
    # two levels, the slightest noise would look like texture.
    shift = 256 + 4 - int(np.bincount(light.ravel()).argmax())
    levels = (light.astype(np.uint16) + shift) >> 3
    # With c pixels of a level among n, the entropy is log n - sum(c log c) / n.
    n_pixels = _WINDOW**2
    counts = np.arange(n_pixels + 1)
    terms = (counts * np.log2(np.maximum(counts, 1))).astype(np.float32)
    sums = np.zeros(levels.shape, dtype=np.float32)
    for level in np.unique(levels):
        sums += terms[window_counts(levels == level, _WINDOW)]
    return np.float32(np.log2(n_pixels)) - sums / n_pixels


def entropy_mask(rgb):
    """Find tissue by its texture."""
    entropy = (local_entropy(rgb) * (255 / np.log2(_WINDOW**2))).astype(np.uint8)
    upper = entropy > otsu_threshold(entropy)
    if not upper.any() or (entropy[upper].mean() - entropy[~upper].mean() < _MIN_ENTROPY_GAP * 255):
        return np.zeros(rgb.shape[:2], dtype=bool)
    # A window that contains an edge has texture, so the mask extends half a window too far.
    reach = _WINDOW // 2
    return ndimage.binary_erosion(_close(upper), iterations=reach, border_value=1)


METHODS = {"otsu": otsu_mask, "saturation": saturation_mask, "entropy": entropy_mask}


def paint_over(rgb, ink):
    """Replace ink by pixels of the background, so that it shifts no threshold."""
    others = rgb[~ink]
    if not ink.any() or not len(others):
        return rgb
    light = luminance(others[np.newaxis])[0].astype(np.uint8)
    background = others[light >= min(otsu_threshold(light) + 1, light.max())]
    painted = rgb.copy()
    painted[ink] = np.resize(background, (np.count_nonzero(ink), 3))
    return painted


def compute_mask(rgb, tissue, slide, ink):
    """Mask the tissue of an overview by a method, which leaves out ink, or by a function."""
    if not callable(tissue):
        # Ink would shift the thresholds, and closing would fill strokes across tissue.
        return METHODS[tissue](paint_over(rgb, ink)) & ~ink
    mask = np.asarray(tissue(rgb))
    if mask.shape != rgb.shape[:2]:
        raise ValueError(
            f"tissue must return a mask of shape {rgb.shape[:2]}, got {mask.shape} for slide "
            f"{slide!r}."
        )
    return mask.astype(bool)


def tissue_fractions(mask, corners, edge):
    """Compute the fraction of tissue in square windows."""
    sums = np.pad(np.cumsum(np.cumsum(mask, axis=0), axis=1), ((1, 0), (1, 0)))
    limits = np.array(mask.shape[::-1])
    start = np.minimum(np.round(corners).astype(int), limits - 1)
    stop = np.clip(np.round(corners + edge).astype(int), start + 1, limits)
    inside = (
        sums[stop[:, 1], stop[:, 0]]
        - sums[start[:, 1], stop[:, 0]]
        - sums[stop[:, 1], start[:, 0]]
        + sums[start[:, 1], start[:, 0]]
    )
    return inside / np.prod(stop - start, axis=1)


def low_contrast(rgb, corners, edge, *, threshold=0.05):
    """Find windows of nearly uniform luminance."""
    gray = luminance(rgb)
    offsets = np.arange(max(1, int(edge)))
    flat = np.empty(len(corners), dtype=bool)
    for first in range(0, len(corners), 4096):
        start = np.round(corners[first : first + 4096]).astype(int)
        rows = np.minimum(start[:, 1:] + offsets, gray.shape[0] - 1)
        columns = np.minimum(start[:, :1] + offsets, gray.shape[1] - 1)
        windows = gray[rows[:, :, np.newaxis], columns[:, np.newaxis, :]]
        low, high = np.percentile(windows.reshape(len(start), -1), (1, 99), axis=1)
        flat[first : first + 4096] = (high - low) / 255 < threshold
    return flat
