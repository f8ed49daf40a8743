"""Linear algebra on rows, and threads around it."""

# SPDX-License-Identifier: BSD-3-Clause

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from scipy import linalg
from sklearn.utils import gen_batches
from threadpoolctl import threadpool_info, threadpool_limits

# Rounding error of a constant row in float64, relative to its mean.
CONSTANT = 1e-13

# The limit holds for the whole process, so fits that overlap in threads share one.
_LOCK = threading.Lock()
_SHARED = {"users": 0, "limit": None, "n_threads": 1}


def centre_rows(rows, *, out=None):
    """Return centred rows, their Euclidean norms and means; constant rows get norm 0."""
    means = rows.mean(axis=1)
    centred = np.subtract(rows, means[:, np.newaxis], out=out)
    norms = np.sqrt(np.vecdot(centred, centred))
    constant = norms <= CONSTANT * np.abs(means) * np.sqrt(rows.shape[1])
    norms[constant] = 0.0
    return centred, norms, means


def principal_axes(Z):
    """
    Return the right singular vectors (k, n_columns) and singular values of Z, by its Gram matrix.

    Those of less than 1e-5 of the largest are rounding errors, and left out.
    """
    by_column = Z.shape[1] <= Z.shape[0]
    gram = np.zeros((min(Z.shape),) * 2)
    for block in gen_batches(max(Z.shape), 4096):
        part = Z[block] if by_column else Z[:, block].T
        part = part.astype(np.float64, copy=False)
        gram += part.T @ part
    eigenvalues, vectors = linalg.eigh(gram, overwrite_a=True, check_finite=False)
    kept = eigenvalues > 1e-10 * max(eigenvalues[-1], 1e-300)
    eigenvalues, vectors = eigenvalues[kept][::-1], vectors[:, kept][:, ::-1]
    singular = np.sqrt(eigenvalues)
    axes = vectors.T if by_column else (vectors / singular).T @ Z
    return np.where(Z.any(axis=0), axes, 0.0), singular


def unit_scale(embeddings, *, columns=False):
    """Return the factors that scale embeddings to the variance of initial weights."""  # (d,)
    factors = np.ones(embeddings.shape[1])
    n_known = np.count_nonzero(embeddings.any(axis=1))
    if not n_known:
        return factors
    mean_square = np.zeros(len(factors))
    for start in range(0, len(embeddings), 1024):  # in blocks, which become float64
        block = embeddings[start : start + 1024].astype(np.float64)
        mean_square += np.einsum("ij,ij->j", block, block)
    mean_square /= n_known
    used = mean_square > 0
    if not columns:
        mean_square[:] = mean_square.mean()
    factors[used] = 1 / np.sqrt(3 * len(factors) * mean_square[used])
    return factors


def _enter():
    with _LOCK:
        if not _SHARED["users"]:
            pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            _SHARED["n_threads"] = max((pool["num_threads"] for pool in pools), default=1)
            _SHARED["limit"] = threadpool_limits(1, user_api="blas")
        _SHARED["users"] += 1
        return _SHARED["n_threads"]


def _leave():
    with _LOCK:
        _SHARED["users"] -= 1
        if not _SHARED["users"]:
            _SHARED["limit"].restore_original_limits()


@contextmanager
def blas_threads():
    """Yield a map over as many threads as BLAS has, each with single-threaded BLAS."""
    n_threads = _enter()
    try:
        with ThreadPoolExecutor(n_threads) as executor:
            yield executor.map
    finally:
        _leave()
