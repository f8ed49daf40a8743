"""The grid of tiles on a slide, and the pyramid level that it is read from."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

from ._wsi._reader import MAX_UPSAMPLING, SAME_RESOLUTION, best_level

_MASK_MPP = 8.0
_MASK_PIXELS = 16


def tile_geometry(info, tile_size, mpp):
    """Choose the pyramid level and the number of pixels to read for one tile."""
    if info.mpp > mpp * MAX_UPSAMPLING:
        raise ValueError(
            f"Slide {info.path!r} has {info.mpp:.4g} um/px, too coarse for mpp={mpp!r}: enlarging "
            f"its pixels adds no detail. Ask for mpp={info.mpp:.3g} or coarser, or leave the "
            "slide out."
        )
    level = best_level(info, mpp)
    downsample = info.level_downsamples[level]
    scale = mpp / (info.mpp * downsample)
    same = abs(scale - 1) <= SAME_RESOLUTION
    read_size = tile_size if same else max(1, round(tile_size * scale))
    return level, read_size, max(1, round(read_size * downsample))


def grid_axis(length, level_length, downsample, size_level0, read_size, step, *, pad=False):
    """Place tiles along one axis: all within the slide or, with `pad`, covering it."""
    if pad:
        # As few as cover the axis: with an overlap, a tile that starts within the slide may lie
        # wholly within the tile before it.
        count = 1 + max(0, -(-(length - size_level0) // step))
        return step * np.arange(count, dtype=np.int64)
    starts = np.arange(0, max(0, length - size_level0 + 1), step, dtype=np.int64)
    # Halving an odd length drops a pixel, so a tile may fit at level 0 and not at its own level.
    return starts[starts / downsample + read_size <= level_length + 1e-6]


def tile_grid(info, level, read_size, size_level0, step, *, pad=False):
    """Place tiles on the whole slide, row by row."""
    downsample = info.level_downsamples[level]
    x, y = (
        grid_axis(length, level_length, downsample, size_level0, read_size, step, pad=pad)
        for length, level_length in zip(info.size, info.level_sizes[level], strict=True)
    )
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def fraction_inside(coords, size_level0, size):
    """Compute which fraction of each tile lies on the slide."""
    return (np.minimum(size - coords, size_level0) / size_level0).prod(axis=1)


def mask_resolution(tile_edge_um):
    """Return the um/px of the overview: 8, or finer, so that a tile spans at least 16 pixels."""
    return min(_MASK_MPP, tile_edge_um / _MASK_PIXELS)
