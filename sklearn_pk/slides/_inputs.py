"""Lists of slides, and reports of failures, shared by the estimators."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import shutil
from collections.abc import Mapping, Set
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..utils._reporting import warn_user

_EXPECTED = (
    "Expected a list of slide paths, a Series of paths, or a DataFrame with the column 'slide' "
    "and optionally 'mpp' (um/px) and 'tissue' (mask)"
)


CANNOT_WRITE = "Check for a full disk, a quota, a read-only file system, or missing permissions"


def describe_space(folder):
    """Describe the free space of a folder, or of its nearest parent that exists."""
    folder = Path(folder).absolute()
    try:
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        return f", {shutil.disk_usage(existing).free / 1e6:,.1f} MB are free there"
    except OSError:
        return ""


class SlideRow(NamedTuple):
    """One slide of X."""

    path: str
    mpp: float = None
    tissue: object = None


def check_slide_list(X):
    """Split X into the paths of slides, their um/px and their masks."""
    if isinstance(X, pd.DataFrame):
        if "slide" not in X.columns:
            raise ValueError(f"{_EXPECTED}, got a DataFrame with the columns {list(X.columns)!r}.")
        paths = list(X["slide"])
        mpps, tissues = (
            list(X[name]) if name in X.columns else [None] * len(X) for name in ("mpp", "tissue")
        )
    elif isinstance(X, str | PurePath):
        raise TypeError(f"{_EXPECTED}, got {X!r}. Put a single slide into a list.")
    elif isinstance(X, bytes | Mapping | Set) or not hasattr(X, "__len__"):
        raise TypeError(f"{_EXPECTED}, got {X!r} of type {type(X).__name__}.")
    elif getattr(X, "ndim", 1) != 1:
        raise ValueError(f"{_EXPECTED}, got an array of shape {X.shape}.")
    else:
        paths = list(X)
        mpps = tissues = [None] * len(paths)
    if not paths:
        raise ValueError(f"{_EXPECTED}, got no slide (n_samples=0, at least 1 is required).")
    for position, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"{_EXPECTED}, got {path!r} of type {type(path).__name__} at position {position}."
            )
    return [
        SlideRow(
            os.fspath(path),
            None if _is_missing(mpp) else mpp,
            None if _is_missing(tissue) else _check_own_tissue(tissue, path),
        )
        for path, mpp, tissue in zip(paths, mpps, tissues, strict=True)
    ]


def _is_missing(value):
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _check_own_tissue(tissue, path):
    if isinstance(tissue, str | os.PathLike | np.ndarray) or callable(tissue):
        return tissue
    raise TypeError(
        f"Slide {os.fspath(path)!r}: the column 'tissue' must hold the path of a GeoJSON file or a "
        "mask image, a mask array, a method, or None for the tiler's own; got "
        f"{tissue!r} of type {type(tissue).__name__}."
    )


def failures_frame(failures):
    """Return the table of slides that failed."""
    return pd.DataFrame(
        np.array(failures, dtype=object).reshape(-1, 2), columns=["slide", "reason"]
    )


def raise_failures(errors):
    """Raise one error that names all bad slides."""
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else ValueError
    lines = "\n".join(f"- {error}" for error in errors)
    raise kind(
        f"{len(errors)} slides cannot be used:\n{lines}\n"
        'Remove them, or pass errors="empty" to continue without them.'
    )


def warn_failures(failures, what):
    """Warn once about the slides that failed."""
    if failures:
        path, reason = failures[0]
        warn_user(
            f"{len(failures)} slides have no {what}; the first is {path!r}: {reason} "
            "See failures_ for all."
        )


def check_coords(coords, owner):
    """Return the upper left corners of tiles as a read-only array (n, 2), int64."""
    coords = np.array(coords, dtype=np.int64)
    if coords.size == 0:
        coords = coords.reshape(0, 2)
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise ValueError(
            f"{owner}: expected coords of shape (n, 2) in level-0 pixels, got {coords.shape}."
        )
    coords.flags.writeable = False
    return coords
