"""Rows of a table, centred, and which of them are constant."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

# Relative to the mean: what rounding leaves of a constant row, in float64.
_CONSTANT = 1e-13


def centre_rows(rows, *, out=None):
    """
    Return centred rows, their Euclidean norms and means; constant rows get norm 0.

    Centring comes before any product: on expression with a mean of 20,000 and a standard
    deviation of 0.01, products of raw values would leave no correct digit of a correlation.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_columns), float64
        Values.
    out : ndarray of the same shape, default=None
        Where to put the centred rows, which may be `rows` itself. None takes new memory.

    Returns
    -------
    centred : ndarray of shape (n_rows, n_columns), float64
        Rows minus their mean.
    norms : ndarray of shape (n_rows,), float64
        Their Euclidean norms.
    means : ndarray of shape (n_rows,), float64
        The means.
    """
    means = rows.mean(axis=1)
    centred = np.subtract(rows, means[:, np.newaxis], out=out)
    norms = np.sqrt(np.vecdot(centred, centred))
    constant = norms <= _CONSTANT * np.abs(means) * np.sqrt(rows.shape[1])
    norms[constant] = 0.0
    return centred, norms, means
