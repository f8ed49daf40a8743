"""Progress bars, lines above them, and warnings."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import sys
import warnings
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from tqdm.auto import tqdm

# Packages whose frames a warning skips.
_INSIDE = ("sklearn_pk", "sklearn")
_KNOWN_SCALE = ContextVar("known_scale", default=False)


def progress(iterable=None, *, total=None, desc=None, verbose=0, unit="it"):
    """Return a tqdm bar, which shows only if verbose, on a terminal and not in a worker."""
    # Bars of several workers would overwrite each other.
    is_worker = multiprocessing.parent_process() is not None
    disable = not verbose or is_worker or not sys.stderr.isatty()
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=disable, leave=False)


def tell(text):
    """Write a line to standard error, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def warn_user(text, category=UserWarning):
    """Warn at the line outside of this package that called it."""
    level, frame = 1, sys._getframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


@contextmanager
def scale_is_known():
    """Let estimators not warn of expression that is not logged: their caller did, or scaled it."""
    token = _KNOWN_SCALE.set(True)
    try:
        yield
    finally:
        _KNOWN_SCALE.reset(token)


def is_unlogged(values):
    """Return whether expression looks as if it was not logged: large, skewed, not centred."""
    some = values[:: max(1, len(values) // 200)]
    highest = some.max()
    if highest < 100 or some.min() < -0.05 * highest:
        return False
    return bool(highest > (3 if highest >= 1000 else 20) * np.median(some[some > 0]))


def warn_of_unlogged(values):
    """Warn of expression that is not logged, unless the caller of the estimator knows."""
    # Without numbers, Python shows equal warnings of all folds once.
    if not _KNOWN_SCALE.get() and is_unlogged(values):
        warn_user(
            "y looks like counts, TPM or FPKM that are not logged: its largest values are "
            "hundreds or thousands, far above the median. A few samples and genes then decide the "
            "fit and the correlations. Pass np.log2(y + 1), or read the table with "
            "read_expression(path, transform='log2p1')."
        )
