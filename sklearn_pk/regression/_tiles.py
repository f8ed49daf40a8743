"""Expression of the parts of a slide: tile by tile, or of windows that move over it."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd

from ..utils._bags import check_bag, label_of_bag
from ..utils._validation import name_of_item
from ._data import pad_bags

# Bags in one pass of the network.
_BATCH = 64


def tile_expression(bag, position, predict, columns, window, stride):
    """
    Predict the expression of every tile of a slide.

    Parameters
    ----------
    bag : array-like of shape (tiles, n_features)
        Features of the tiles, with `coords` and `size_level0` if it is a feature bag.
    position : int
        Position of the slide, for the text of errors.
    predict : callable
        Maps padded features and a mask to expression, (batch, n_genes).
    columns : ndarray of shape (n_genes,)
        Names of the genes.
    window : int or None
        Edge of the window, in tiles; None takes each tile by itself.
    stride : int
        Step of the window, in tiles.

    Returns
    -------
    DataFrame of shape (tiles, n_genes), float32
        Expression, see :meth:`PriorKnowledgeRegressor.predict_tiles`.
    """
    features = check_bag(bag, position=position)
    present = ~np.isnan(features[:, 0])
    coords = getattr(bag, "coords", None)
    features, size = features[present], getattr(bag, "size_level0", None)
    if coords is None:
        index = pd.Index(np.flatnonzero(present), name="tile")
    else:
        coords = np.asarray(coords)[present]
        index = pd.MultiIndex.from_arrays(coords.T, names=["x", "y"])
    if window is None:
        members = [np.array([tile]) for tile in range(len(features))]
    else:
        members = windows_of_tiles(_grid(coords, size, label_of_bag(bag, position)), window, stride)
    values = _mean_over_windows(features, members, predict, len(columns))
    frame = pd.DataFrame(values, index=index, columns=columns)
    frame.attrs.update(slide=name_of_item(bag) or "", size_level0=size)
    return frame


def _grid(coords, size, label):
    if coords is None:
        raise ValueError(
            f"{label}: window= needs to know where the tiles lie, but this slide has no "
            "coordinates. Pass FeatureBag(features, coords=...), or window=None."
        )
    if size is None:
        steps = [np.diff(np.unique(axis)) for axis in coords.T]
        steps = np.concatenate(steps)
        size = steps.min() if steps.size else 1
    return np.rint((coords - coords.min(axis=0)) / size).astype(int)


def windows_of_tiles(cells, window, stride):
    """
    Find the tiles inside each window that moves over a slide.

    Parameters
    ----------
    cells : ndarray of shape (tiles, 2), int
        Column and row of each tile, from 0.
    window : int
        Edge of the window, in tiles.
    stride : int
        Step of the window.

    Returns
    -------
    list of ndarray of int
        The tiles in each window that holds any. Together they hold every tile.
    """
    occupied = {}
    for tile, (column, row) in enumerate(cells):
        for left in _starts(column, window, stride, cells[:, 0].max()):
            for top in _starts(row, window, stride, cells[:, 1].max()):
                occupied.setdefault((left, top), []).append(tile)
    return [np.array(tiles) for _, tiles in sorted(occupied.items())]


def _starts(cell, window, stride, last):
    """Return where the windows that cover a cell begin; all lie inside the slide if they can."""
    highest = max(0, last - window + 1)
    starts = {min(start, highest) for start in range(0, highest + stride, stride)}
    return [start for start in sorted(starts) if start <= cell < start + window]


def _mean_over_windows(features, members, predict, n_genes):
    sums = np.zeros((len(features), n_genes), dtype=np.float32)
    counts = np.zeros(len(features), dtype=np.float32)
    for first in range(0, len(members), _BATCH):
        batch = members[first : first + _BATCH]
        predicted = predict(*pad_bags([features[tiles] for tiles in batch]))
        for tiles, values in zip(batch, predicted, strict=True):
            sums[tiles] += values
            counts[tiles] += 1
    return sums / counts[:, np.newaxis]
