"""The scale of gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np


def unit_scale(embeddings, *, columns=False):
    """Compute the factors that bring embeddings to the scale of freshly drawn weights."""
    factors = np.ones(embeddings.shape[1])
    n_known = np.count_nonzero(embeddings.any(axis=1))
    if not n_known:
        return factors
    mean_square = np.zeros(len(factors))
    for start in range(0, len(embeddings), 1024):  # float64, but not all of it at once
        block = embeddings[start : start + 1024].astype(np.float64)
        mean_square += np.einsum("ij,ij->j", block, block)
    mean_square /= n_known
    used = mean_square > 0
    if not columns:
        mean_square[:] = mean_square.mean()
    factors[used] = 1 / np.sqrt(3 * len(factors) * mean_square[used])
    return factors
