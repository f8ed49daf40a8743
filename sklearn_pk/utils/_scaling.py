"""The scale of gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np


def unit_scale(embeddings, *, columns=False):
    """
    Compute the factors that bring embeddings to the scale of freshly drawn weights.

    Parameters
    ----------
    embeddings : ndarray of shape (n_genes, d)
        Gene embeddings; rows of zeros do not count.
    columns : bool, default=False
        Whether each component is brought to that scale, instead of all together.

    Returns
    -------
    factors : ndarray of shape (d,), float64
        What to multiply the columns by, so that the root mean square of the other rows becomes
        ``1 / sqrt(3 d)``, as of U(-1/sqrt(d), 1/sqrt(d)); 1 for a column of zeros.
    """
    factors = np.ones(embeddings.shape[1])
    known = embeddings[embeddings.any(axis=1)]
    if not len(known):
        return factors
    mean_square = np.mean(np.square(known, dtype=np.float64), axis=0)
    used = mean_square > 0
    if not columns:
        mean_square[:] = mean_square.mean()
    factors[used] = 1 / np.sqrt(3 * len(factors) * mean_square[used])
    return factors
