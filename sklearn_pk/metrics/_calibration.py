"""Correlation combined over folds, and its p-value from permuted patients."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy import special

from ..utils._linalg import CONSTANT

NULLS = ("published", "permutation", "empirical", "analytic")
# Standardising the null of each gene by itself needs its standard deviation.
FEWEST_PERMUTATIONS = 20
# Fisher's z of n samples has the variance 1 / (n - 3).
_FEWEST_IN_FOLD = 4
_LARGEST_R = 1 - 1e-15


def fisher_z(r):
    """Return Fisher's z, finite for r = 1 also."""
    return np.arctanh(np.clip(r, -_LARGEST_R, _LARGEST_R))


class Folds:
    """Test samples of each fold, for correlations within folds; too small folds are pooled."""

    def __init__(self, folds):
        names, codes = np.unique(folds, return_inverse=True)
        self.rows = [np.flatnonzero(codes == code) for code in range(len(names))]
        self.rows = [rows for rows in self.rows if len(rows) >= _FEWEST_IN_FOLD]
        if not self.rows:
            self.rows = [np.arange(len(codes))]
        sizes = np.array([len(rows) for rows in self.rows])
        self._sizes, self._order = sizes, np.concatenate(self.rows)
        self._starts = np.cumsum(sizes) - sizes
        self._weights = (sizes - 3) / np.sum(sizes - 3)
        # Standard deviation of the mean z, if folds were independent.
        self.std = 1 / np.sqrt(np.sum(sizes - 3))

    def _sum(self, values):
        return np.add.reduceat(values, self._starts, axis=1)

    def _centre(self, table):
        """Return genes in rows, centred in each fold, and their norms, 0 for constants."""
        values = np.take(table, self._order, axis=1)
        means = self._sum(values) / self._sizes
        values -= np.repeat(means, self._sizes, axis=1)
        norms = np.sqrt(self._sum(values * values))
        norms[norms <= CONSTANT * np.abs(means) * np.sqrt(self._sizes)] = 0.0
        return values, norms

    def correlate(self, true, pred):
        """Return the correlation in each fold, for genes in rows."""
        (a, a_norms), (b, b_norms) = self._centre(true), self._centre(pred)
        r, varies = self._sum(a * b), (a_norms > 0) & (b_norms > 0)
        r[~varies] = 0.0
        # Two divisions, so that the product of norms cannot overflow or underflow.
        r[varies] = r[varies] / a_norms[varies] / b_norms[varies]
        return r

    def combine(self, true, pred):
        """Return the mean of Fisher's z of each fold, for genes in rows."""
        return fisher_z(self.correlate(true, pred)) @ self._weights


def permute_patients(groups, rng):
    """
    Return for each sample the row whose expression it gets when patients are permuted.

    The slides of a patient get those of another one in their order, repeated if it has fewer.
    """
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    first = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=int)
    rank[order] = np.arange(len(codes)) - first[codes[order]]
    partner = rng.permutation(len(counts))[codes]
    return order[first[partner] + rank % counts[partner]]


def _moments(null_z):
    """Return mean and standard deviation of the null of each gene, NaN where it is constant."""
    mean = null_z.mean(axis=0, dtype=np.float64)
    std = null_z.std(axis=0, dtype=np.float64, ddof=1)
    return mean, np.where(std > 0, std, np.nan)


class NullDistribution:
    """
    Distribution of the combined z of genes that are not predicted.

    `null_z` has one row per permutation. "permutation" standardises each gene by its own mean and
    standard deviation and pools the genes; "empirical" has one standard deviation for all genes,
    and "analytic" the given one. `std` is that of independent folds for "empirical", which a null
    can be below by chance only.
    """

    def __init__(self, null, null_z=None, std=None):
        self.null, self._std = null, std
        if null == "permutation":
            n, (self._mean, self._std) = len(null_z), _moments(null_z)
            # Each row is standardised by the others, as the observation is by all.
            gap = (null_z - self._mean) * (n / (n - 1))
            square = (n - 1) * self._std**2 - gap**2 * ((n - 1) / n)
            with np.errstate(divide="ignore", invalid="ignore"):
                others = gap / np.sqrt(square / (n - 2))
            self._pooled = np.sort(others[np.isfinite(others)].astype(np.float32))
        elif null == "empirical":
            # Correlations within folds have mean 0.
            spread = np.sqrt(np.mean(np.square(null_z, dtype=np.float64)))
            self._mean, self._std = 0.0, max(spread, std)
        else:
            self._mean = 0.0

    @property
    def std(self):
        """Standard deviation of z of genes that are not predicted: of all, or of each."""
        return self._std

    def pvalue(self, z):
        """Return the one-sided p-values of z, (n_genes, ...)."""
        shape = (-1, *[1] * (z.ndim - 1))
        mean, std = (np.reshape(np.asarray(a), shape) for a in (self._mean, self._std))
        score = (z - mean) / std
        if self.null != "permutation":
            return special.ndtr(-score)
        score = np.where(np.isnan(score), -np.inf, score)
        n = len(self._pooled)
        return (1 + n - np.searchsorted(self._pooled, score, side="left")) / (1 + n)
