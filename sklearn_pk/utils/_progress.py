"""Progress bars that stay silent where nobody watches."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import sys

from tqdm.auto import tqdm


def progress(iterable=None, *, total=None, desc=None, verbose=0, unit="it"):
    """
    Wrap an iterable in a tqdm bar that shows on terminals only.

    Parameters
    ----------
    iterable : iterable, default=None
        What to iterate over; None for a bar that is updated by hand.
    total : int, default=None
        Number of steps, where `iterable` has no length.
    desc : str, default=None
        Text in front of the bar.
    verbose : int, default=0
        0 shows nothing.
    unit : str, default="it"
        Name of one step.

    Returns
    -------
    tqdm.tqdm
        The bar, itself an iterable.

    Examples
    --------
    >>> from sklearn_pk.utils import progress
    >>> sum(progress(range(4)))
    6
    """
    # Bars of several workers would overwrite each other.
    is_worker = multiprocessing.parent_process() is not None
    disable = not verbose or is_worker or not sys.stderr.isatty()
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=disable, leave=False)


def tell(text):
    """Write a line to standard error, above a progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
