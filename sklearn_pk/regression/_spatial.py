"""Expression of parts of a slide: of single tiles, or of windows that move over it."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral

import numpy as np
import pandas as pd

from ..utils._bags import check_bag, label_of_bag
from ._training import pad_bags

# Bags in one pass of the network.
BATCH = 64


def check_window(window, stride):
    """Check that windows leave no tile out."""
    for name, value in (("window", window), ("stride", stride)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise TypeError(f"{name} must be an int, in tiles, got {value!r}.")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, in tiles, got {window!r}.")
    if window is not None and not 1 <= stride <= window:
        raise ValueError(
            f"stride must lie between 1 and window={window!r}, got {stride!r}: otherwise "
            "windows would leave tiles out."
        )


def tile_expression(bag, position, predict, columns, window, stride, *, slide, batches):
    """Predict the expression of every tile of a slide."""
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

    def explain(memory):
        return (
            f"predict_tiles: {label_of_bag(bag, position)} has windows whose "
            f"{max(map(len, members))} tiles do not fit into the memory of {memory}. Use a "
            "smaller window, or predict on the CPU: "
            "model.net_.set_params(device='cpu').module_.to('cpu')."
        )

    values = _mean_over_windows(features, members, predict, len(columns), batches, explain)
    frame = pd.DataFrame(values, index=index, columns=columns)
    edge_um = getattr(bag, "tile_edge_um", None)
    frame.attrs.update(
        slide=slide, size_level0=size, mpp=edge_um / size if edge_um and size else None
    )
    return frame


def _grid(coords, size, label):
    if coords is None:
        raise ValueError(
            f"{label}: window= needs the coordinates of the tiles, but this slide has no "
            "coordinates. Pass FeatureBag(features, coords=...), or window=None."
        )
    return np.column_stack([_cells(axis, size, label) for axis in coords.T])


def _cells(corners, size, label):
    """Count columns (or rows) of a grid whose step is a tile, or less where tiles overlap."""
    values = np.unique(corners)
    extent = values[-1] - values[0]
    if not extent:
        return np.zeros(len(corners), dtype=int)
    closest = np.diff(values).min()
    step = closest if size is None or closest < 0.95 * size else size
    step = extent / np.rint(extent / step)  # corners are whole pixels, the step may not be
    cells = np.rint((corners - values[0]) / step)
    if np.abs(corners - values[0] - cells * step).max() > max(2, 0.05 * step):
        raise ValueError(
            f"{label}: window= needs tiles on a grid, but their corners, such as "
            f"{values[:4].tolist()}, are not multiples of {step:.4g} px apart. Use window=None."
        )
    return cells.astype(int)


def windows_of_tiles(cells, window, stride):
    """Find the tiles inside each window that moves over a slide."""
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


def _mean_over_windows(features, members, predict, n_genes, batches, explain):
    sums = np.zeros((len(features), n_genes), dtype=np.float32)
    counts = np.zeros(len(features), dtype=np.float32)

    def add(first, last):
        batch = members[first:last]
        predicted = predict(*pad_bags([features[tiles] for tiles in batch]))
        for tiles, values in zip(batch, predicted, strict=True):
            sums[tiles] += values
            counts[tiles] += 1

    batches(add, len(members), explain)
    return sums / counts[:, np.newaxis]
