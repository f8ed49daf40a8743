"""Validation of bags, the tile features of each slide."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import PurePath

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.utils.validation import validate_data

from ._validation import name_of_item


def as_array(X):
    """Return tensors of torch as arrays, also those in a list; leave anything else as it is."""
    if isinstance(X, list | tuple):
        return type(X)(map(as_array, X)) if X and hasattr(X[0], "detach") else X
    if not hasattr(X, "detach") or not hasattr(X, "cpu"):
        return X
    X = X.detach().cpu()
    # numpy has no bfloat16.
    return np.asarray(X.float() if X.is_floating_point() and X.itemsize < 4 else X)


def is_bag_input(X):
    """Return whether X is bags of tiles, not a table with one row per slide."""
    if getattr(X, "ndim", None) == 3:
        return True
    if isinstance(X, pd.Series):
        X = list(X)
    if isinstance(X, np.ndarray):
        return X.dtype == object and X.ndim > 0 and len(X) > 0 and _n_dims(X[0]) == 2
    if not isinstance(X, list | tuple) or not X or sparse.issparse(X[0]):
        return False
    return _n_dims(X[0]) == 2


def _n_dims(bag):
    # np.ndim would read the file of a lazy bag.
    return len(bag.shape) if hasattr(bag, "shape") else np.ndim(bag)


def stays_in_file(bag):
    """Return whether a bag reads its features from a file each time they are used."""
    is_array_like = hasattr(bag, "__array__") and hasattr(bag, "shape")
    return is_array_like and getattr(bag, "path", None) is not None


def label_of_bag(bag, position):
    """Return the number of a bag and its slide, if known, for error messages."""
    name = name_of_item(bag)
    return f"bag {position}" if name is None else f"bag {position} ({name!r})"


def check_bag(bag, *, position=0, n_features=None, allow_empty=False):
    """Return the features of one slide as floats, missing tiles included."""
    features = np.asarray(as_array(bag))
    label = label_of_bag(bag, position)
    if features.dtype.kind not in "fiub":
        raise TypeError(f"{label}: expected numbers, got an array of dtype {features.dtype}.")
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float32 if features.dtype == np.float16 else np.float64)
    _check_shape(features.shape, label, n_features, allow_empty)
    if np.isfinite(features).all():
        return features
    missing = np.isnan(features)
    absent = missing.all(axis=1)
    if (missing.any(axis=1) != absent).any():
        raise ValueError(
            f"{label} contains NaN in a tile that is otherwise present. A missing tile must be NaN "
            "in all features."
        )
    if np.isinf(features).any():
        raise ValueError(f"{label} contains infinity (inf).")
    if not allow_empty and absent.all():
        raise _no_tile(label)
    return features


def _check_shape(shape, label, n_features, allow_empty):
    if len(shape) != 2:
        raise ValueError(f"{label}: expected features of shape (tiles, n_features), got {shape}.")
    if n_features is not None and shape[1] != n_features:
        raise ValueError(
            f"{label} has {shape[1]} features per tile, but the others have {n_features}. "
            "All slides need features of the same encoder."
        )
    if not allow_empty and 0 in shape:
        raise _no_tile(label)


def _no_tile(label):
    return ValueError(
        f"{label} has no tile (it is empty or all NaN). Drop this slide and its expression, or "
        "check why no tissue was found on it."
    )


def _drop_missing(features):
    # A missing tile is NaN in all columns, so one is enough.
    missing = np.isnan(features[:, :1]).any(axis=1)
    return features[~missing] if missing.any() else features


def read_bag(bag, *, position=0, n_features=None, allow_empty=False):
    """Read and check the features of one slide; drop missing tiles."""
    checked = check_bag(bag, position=position, n_features=n_features, allow_empty=allow_empty)
    return _drop_missing(checked)


def check_bags(X, *, allow_empty=False, lazy=False):
    """
    Check the features of several slides.

    Parameters
    ----------
    X : ndarray of shape (n, tiles, n_features), or list of (tiles_i, n_features)
        Bags; missing tiles are rows of NaN. Tensors of torch are taken like arrays.
    allow_empty : bool, default=False
        Whether a bag without tiles is accepted.
    lazy : bool, default=False
        Whether to leave features in files unread: only the shape of such a bag is checked, and
        the bag itself is returned.

    Returns
    -------
    bags : list of ndarray of shape (tiles_i, n_features)
        The features of each slide, missing tiles included.

    Raises
    ------
    TypeError
        If a bag does not hold numbers.
    ValueError
        If the widths differ, if a tile is partly NaN or holds infinity, or if a bag has no tile;
        the bag is named.

    Examples
    --------
    >>> from sklearn_pk.utils import check_bags
    >>> [bag.shape for bag in check_bags([[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]])]
    [(1, 2), (2, 2)]
    """
    bags, width = [], None
    for position, bag in enumerate(X):
        if lazy and stays_in_file(bag):
            _check_shape(bag.shape, label_of_bag(bag, position), width, allow_empty)
        else:
            bag = check_bag(bag, position=position, n_features=width, allow_empty=allow_empty)
        bags.append(bag)
        width = bags[0].shape[1]
    if not bags:
        raise ValueError("Found 0 bags (n_samples=0) while a minimum of 1 is required.")
    return bags


def _refuse_slides(estimator, X):
    """Name the missing step if X holds slides, not features."""
    if hasattr(X, "coords") and hasattr(X, "features"):
        raise TypeError(f"X: expected a list of slides, got one, {X!r}. Pass [X].")
    if isinstance(X, str | PurePath):
        X = [X]
    if not isinstance(X, list | tuple | pd.Series | np.ndarray) or not len(X):
        return
    first = X.iloc[0] if isinstance(X, pd.Series) else X[0]
    if isinstance(first, str | PurePath):
        remedy = "SlideTiler() and FoundationFeaturizer(), or read_features for files of features"
    elif hasattr(first, "iter_tiles"):
        remedy = "FoundationFeaturizer()"
    else:
        return
    raise TypeError(
        f"{type(estimator).__name__} takes tile features, got slides (the first is {first!r}). "
        f"Use {remedy} before it."
    )


def validate_bags(estimator, X, *, reset, allow_empty=False, lazy=False):
    """
    Check a table or bags, and their width against the fitted one.

    Parameters
    ----------
    estimator : estimator
        Its `n_features_in_` and, for a table with names, `feature_names_in_` are set.
    X : array-like of shape (n, n_features), or bags as in :func:`check_bags`
        Tile features. A table is one tile per slide.
    reset : bool
        Whether to set these attributes, as in ``fit``, or to compare with them.
    allow_empty : bool, default=False
        Whether a bag without tiles is accepted.
    lazy : bool, default=False
        Whether to leave features in files unread, so that more bags can be passed than fit into
        memory. Their shapes are checked, their content is not.

    Returns
    -------
    bags : list of ndarray of shape (tiles_i, n_features)
        The features of each slide without missing tiles. With `lazy`, bags in files are returned
        unchanged.

    Raises
    ------
    TypeError
        If a bag does not hold numbers.
    ValueError
        If the width differs from that in ``fit``, or as :func:`check_bags`.

    Examples
    --------
    >>> from sklearn_pk.slides import SuperTileClusterer
    >>> from sklearn_pk.utils import validate_bags
    >>> clusterer = SuperTileClusterer()
    >>> nan = float("nan")
    >>> bags = validate_bags(clusterer, [[[1.0, 2.0], [nan, nan]]], reset=True)
    >>> bags[0].shape, clusterer.n_features_in_
    ((1, 2), 2)
    """
    _refuse_slides(estimator, X)
    if not is_bag_input(X):
        X = validate_data(estimator, as_array(X), dtype=[np.float64, np.float32], reset=reset)
        return list(X[:, np.newaxis])
    bags = check_bags(X, allow_empty=allow_empty, lazy=lazy)
    n_features = bags[0].shape[1]
    if reset:
        estimator.n_features_in_ = n_features
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif n_features != estimator.n_features_in_:
        raise ValueError(
            f"X has {n_features} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input."
        )
    return [_drop_missing(bag) if isinstance(bag, np.ndarray) else bag for bag in bags]
