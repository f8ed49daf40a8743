"""Progress bars, lines above them, and warnings."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import sys
import time
import warnings
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import tqdm.asyncio
import tqdm.auto
import tqdm.std

# Packages whose frames a warning skips.
_INSIDE = ("sklearn_pk", "sklearn")
_KNOWN_SCALE = ContextVar("known_scale", default=False)


class LogLines(tqdm.std.tqdm):
    """Progress as lines of a log: at most one in ten seconds, and one at the end."""

    _INTERVAL = 10.0  # seconds

    def __init__(self, *args, **kwargs):
        self._written = time.monotonic()
        words = (
            "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} elapsed, {remaining} left{postfix}"
        )
        super().__init__(*args, bar_format=words, **kwargs)

    def display(self, msg=None, pos=None):
        """Write a line, if it is time for one."""
        seconds = time.monotonic() - self._written
        # An empty message is what closing writes over the bar.
        if seconds < (1.0 if msg == "" else self._INTERVAL):
            return
        self._written = time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def progress(iterable=None, *, total=None, desc=None, verbose=0, unit="it"):
    """Return a tqdm bar, or lines of a log where standard error is not a terminal."""
    # Bars of several workers would overwrite each other.
    is_worker = multiprocessing.parent_process() is not None
    is_notebook = tqdm.auto.tqdm.__module__ != tqdm.asyncio.tqdm_asyncio.__module__
    make = tqdm.auto.tqdm if is_notebook or sys.stderr.isatty() else LogLines
    disable = not verbose or is_worker
    return make(iterable, total=total, desc=desc, unit=unit, disable=disable, leave=False)


def tell(text):
    """Write a line to standard error, above the progress bar."""
    tqdm.std.tqdm.write(text, file=sys.stderr)


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
