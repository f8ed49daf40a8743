"""Progress bars, lines above them, and warnings."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import sys
import time
import warnings
from contextlib import contextmanager
from contextvars import ContextVar

import tqdm.asyncio
import tqdm.auto
import tqdm.std

# Packages whose frames a warning skips.
_INSIDE = ("sklearn_pk", "sklearn")
_CALLERS_WARN = ContextVar("callers_warn", default=False)


class LogLines(tqdm.std.tqdm):
    """Progress as lines of a log: at most one in ten seconds, and one at the end."""

    _INTERVAL = 10.0  # seconds

    def __init__(self, *args, **kwargs):
        self._written = time.monotonic()
        words = (
            "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} elapsed, {remaining} left{postfix}"
        )
        super().__init__(*args, bar_format=words, **kwargs)

    def clear(self, nolock=False):
        """Keep what was written: lines need not be cleared for others."""

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


def callers_warn():
    """Return whether the caller of an estimator has examined y and groups."""
    return _CALLERS_WARN.get()


@contextmanager
def without_warnings_of_data():
    """Let estimators not warn of y and groups, which their caller has examined or scaled."""
    token = _CALLERS_WARN.set(True)
    try:
        yield
    finally:
        _CALLERS_WARN.reset(token)
