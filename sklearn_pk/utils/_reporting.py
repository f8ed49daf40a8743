"""Progress bars, lines above them, and warnings."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import sys
import warnings

from tqdm.auto import tqdm

# Packages whose frames a warning skips.
_INSIDE = ("sklearn_pk", "sklearn")


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
