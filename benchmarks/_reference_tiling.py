"""Published tiling: masks in floating point, tiles read one by one with OpenSlide."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import openslide
from _slide import TILE
from matplotlib.colors import rgb_to_hsv
from scipy import ndimage


def float_otsu(values):
    """Compute Otsu's threshold of floats from a histogram of 256 bins."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    return centres[(below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2).argmax()]


def float_mask(rgb):
    """Find the tissue of an image: saturated, not bright in all colours, not black."""
    saturation = rgb_to_hsv(rgb / 255.0)[..., 1]
    bright = np.stack([rgb[..., c] > float_otsu(rgb[..., c]) for c in range(3)]).all(axis=0)
    return ~bright & (saturation > float_otsu(saturation)) & (rgb > 50).all(axis=2)


def float_overview_mask(rgb):
    """Find the tissue of an overview and close small gaps; padding keeps the border."""
    return ndimage.binary_closing(np.pad(float_mask(rgb), 3), iterations=3)[3:-3, 3:-3]


def reference_candidates(path):
    """Mask the lowest level; return the corners of tiles with more than 20 % tissue."""
    with openslide.OpenSlide(path) as slide:
        level, size = slide.level_count - 1, slide.dimensions
        image = slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")
        scale = slide.level_downsamples[level]
    mask = float_overview_mask(np.asarray(image))
    x, y = (np.arange(0, length - TILE + 1, TILE) for length in size)
    corners = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    edge = int(TILE / scale)
    starts = (corners / scale).astype(int)
    shares = [mask[row : row + edge, column : column + edge].mean() for column, row in starts]
    return corners, np.array(shares) > 0.2


def read_tile(slide, x, y):
    """Read one tile with OpenSlide."""
    return np.asarray(slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB"))


def reference_keeps(slide, x, y):
    """Read one tile and test it for tissue and contrast."""
    tile = read_tile(slide, x, y)
    if ndimage.binary_dilation(float_mask(tile), iterations=3).mean() <= 0.2:
        return False
    low, high = np.percentile(tile @ np.array([0.2125, 0.7154, 0.0721]), (1, 99))
    return (high - low) / 255 >= 0.05


def for_each_tile(function, path, corners):
    """Open a slide with OpenSlide and call a function on it for each tile."""
    with openslide.OpenSlide(path) as slide:
        return [function(slide, x, y) for x, y in corners.tolist()]
