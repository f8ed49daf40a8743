"""Rows of a table, centred, and which of them are constant."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

# Relative to the mean: what rounding leaves of a constant row, in float64.
_CONSTANT = 1e-13


def centre_rows(rows, *, out=None):
    """Return centred rows, their Euclidean norms and means; constant rows get norm 0."""
    means = rows.mean(axis=1)
    centred = np.subtract(rows, means[:, np.newaxis], out=out)
    norms = np.sqrt(np.vecdot(centred, centred))
    constant = norms <= _CONSTANT * np.abs(means) * np.sqrt(rows.shape[1])
    norms[constant] = 0.0
    return centred, norms, means
