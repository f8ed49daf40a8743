"""Checks on lists of slides, shared by the estimators."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import warnings
from collections.abc import Mapping, Set
from pathlib import PurePath

import numpy as np
import pandas as pd

_EXPECTED = (
    "Expected a list of slide paths, a Series of paths, or a DataFrame with the column 'slide' "
    "and optionally 'mpp' (um/px)"
)


def check_slide_list(X):
    """
    Split X into the paths of slides and their um/px.

    Parameters
    ----------
    X : sequence of path-like, Series or DataFrame
        Slides.

    Returns
    -------
    slides : list of (str, float or None)
        Path of each slide and the um/px that replaces the one in its file.

    Raises
    ------
    TypeError
        If X is no list of paths.
    ValueError
        If X is empty, has more than one dimension, or is a DataFrame without the column
        ``slide``.
    """
    if isinstance(X, pd.DataFrame):
        if "slide" not in X.columns:
            raise ValueError(f"{_EXPECTED}, got a DataFrame with the columns {list(X.columns)!r}.")
        mpps = list(X["mpp"]) if "mpp" in X.columns else [None] * len(X)
        paths = list(X["slide"])
    elif isinstance(X, str | PurePath):
        raise TypeError(f"{_EXPECTED}, got {X!r}. Put a single slide into a list.")
    elif isinstance(X, bytes | Mapping | Set) or not hasattr(X, "__len__"):
        raise TypeError(f"{_EXPECTED}, got {X!r} of type {type(X).__name__}.")
    elif getattr(X, "ndim", 1) != 1:
        raise ValueError(f"{_EXPECTED}, got an array of shape {X.shape}.")
    else:
        paths, mpps = list(X), [None] * len(X)
    if not paths:
        raise ValueError(f"{_EXPECTED}, got no slide (n_samples=0, at least 1 is required).")
    for position, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"{_EXPECTED}, got {path!r} of type {type(path).__name__} at position {position}."
            )
    return [(os.fspath(path), mpp) for path, mpp in zip(paths, mpps, strict=True)]


def failures_frame(failures):
    """
    Make the table of slides that gave nothing.

    Parameters
    ----------
    failures : list of (str, str)
        Path and reason.

    Returns
    -------
    frame : DataFrame of str with the columns ``slide`` and ``reason``
        One row a slide.
    """
    return pd.DataFrame(
        np.array(failures, dtype=object).reshape(-1, 2), columns=["slide", "reason"]
    )


def raise_failures(errors):
    """
    Raise one error for all bad slides.

    Parameters
    ----------
    errors : list of Exception
        One a bad slide; nothing happens when it is empty.

    Raises
    ------
    Exception
        The error itself if there is one; else one of their common type, or a ValueError,
        that repeats all texts.
    """
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else ValueError
    lines = "\n".join(f"- {error}" for error in errors)
    raise kind(
        f"{len(errors)} slides cannot be used:\n{lines}\n"
        'Remove them, or pass errors="empty" to go on without them.'
    )


def warn_failures(failures, what):
    """
    Warn once about the slides that gave nothing.

    Parameters
    ----------
    failures : list of (str, str)
        Path and reason; nothing happens when it is empty.
    what : str
        What the slides are without, for the text.
    """
    if failures:
        path, reason = failures[0]
        warnings.warn(
            f"{len(failures)} slides have no {what}; the first is {path!r}: {reason} "
            "See failures_ for all.",
            UserWarning,
            stacklevel=3,
        )


def check_coords(coords, owner):
    """
    Check the corners of tiles.

    Parameters
    ----------
    coords : array-like of shape (n, 2)
        x and y in level-0 pixels.
    owner : str
        Whose they are, for the text of errors.

    Returns
    -------
    coords : ndarray of shape (n, 2), int64
        A read-only copy.

    Raises
    ------
    ValueError
        If the shape is another one.
    """
    coords = np.array(coords, dtype=np.int64)
    if coords.size == 0:
        coords = coords.reshape(0, 2)
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise ValueError(
            f"{owner}: expected coords of shape (n, 2) in level-0 pixels, got {coords.shape}."
        )
    coords.flags.writeable = False
    return coords
