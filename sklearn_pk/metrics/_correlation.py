"""Pearson correlation of each gene, and Steiger's test of two dependent correlations."""

# SPDX-License-Identifier: BSD-3-Clause

from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import special
from sklearn.utils import gen_batches

from ..utils import check_expression
from ..utils._linalg import centre_rows

# Two correlations with (nearly) collinear variables differ by rounding errors only.
_COLLINEAR = 1e-14
# Genes per block, so that float64 copies fit into the cache.
GENES = 96


def correlate_rows(a, a_norms, b, b_norms):
    """Return the correlations of centred rows, 0 where a norm is 0."""
    products = np.vecdot(a, b)
    r = np.zeros_like(products)
    varies = (a_norms > 0) & (b_norms > 0)
    # Two divisions, so that the product of norms cannot overflow or underflow.
    r[varies] = products[varies] / a_norms[varies] / b_norms[varies]
    return np.clip(r, -1.0, 1.0)


def pearson_pvalue(r, n):
    """Return the two-sided p-value of correlations over n samples, n at least 3."""
    with np.errstate(divide="ignore"):
        t = np.abs(r) * np.sqrt((n - 2) / ((1 - r) * (1 + r)))
    return 2 * special.stdtr(n - 2, -t)


class _Table(NamedTuple):
    """A checked table and its name."""

    values: np.ndarray
    genes: np.ndarray | None
    rows: np.ndarray | None
    is_1d: bool
    name: str


def _read(table, name):
    values, genes, is_1d = check_expression(table, estimator_name="The metric", input_name=name)
    return _Table(values, genes, row_names(table), is_1d, name)


def _check_agreement(a, b):
    """Check that two tables agree in shape, gene names and row names."""
    if a.values.shape != b.values.shape:
        raise ValueError(
            f"{a.name} and {b.name} must have the same shape (n_samples, n_genes), got "
            f"{a.values.shape} and {b.values.shape}."
        )
    # A single gene has no order, and the name of a Series often describes its content.
    if not (a.is_1d or b.is_1d):
        remedy = f"{b.name}[{a.name}.columns]"
        _check_same_names(a.genes, b.genes, a.name, b.name, "genes", remedy)
    remedy = f"{b.name}.loc[{a.name}.index]"
    _check_same_names(a.rows, b.rows, a.name, b.name, "rows", remedy)


def check_same_tables(**tables):
    """Check that tables agree in shape, gene names and row names."""
    read = [None if table is None else _read(table, name) for name, table in tables.items()]
    given = [table for table in read if table is not None]
    # All pairs, since the first table may have no names.
    for a, b in combinations(given, 2):
        _check_agreement(a, b)
    genes = next((table.genes for table in given if table.genes is not None), None)
    return [None if table is None else table.values for table in read], genes


def row_names(table):
    """Return the index of a DataFrame or Series; integers are row numbers, not names."""
    index = getattr(table, "index", None)
    dtype = getattr(index, "dtype", None)
    return None if dtype is None or dtype.kind in "iuf" else np.asarray(index, dtype=object)


def _check_same_names(a_names, b_names, a_name, b_name, what, remedy):
    if a_names is None or b_names is None:
        return
    wrong = np.flatnonzero(a_names != b_names)
    if wrong.size:
        where = wrong[0]
        raise ValueError(
            f"{a_name} and {b_name} must name the same {what} in the same order, but "
            f"{wrong.size} of {len(a_names)} differ, the first at position {where}: "
            f"{a_names[where]!r} and {b_names[where]!r}. Reorder with {remedy}."
        )


def pearson_by_gene(y_true, y_pred):
    """
    Compute the Pearson correlation of truth and prediction for each gene.

    Parameters
    ----------
    y_true : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
        True expression.
    y_pred : array-like or DataFrame of the same shape
        Predicted expression.

    Returns
    -------
    r : ndarray of shape (n_genes,), float64
        The correlations; 0 for a gene that is constant in truth or prediction.

    Raises
    ------
    ValueError
        If shapes, gene names or row names differ, or a value is NaN or infinite.

    See Also
    --------
    significance_report : Correlations, p-values and significance of each gene.

    Notes
    -----
    Correlations are computed in float64 on centred values in blocks of genes, for any dtype of
    the input. A column is constant if its values differ by rounding errors only.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.metrics import pearson_by_gene
    >>> y_true = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> y_pred = np.array([[1.0, 4.0], [3.0, 5.0], [5.0, 6.0]])
    >>> pearson_by_gene(y_true, y_pred).round(6).tolist()
    [1.0, 0.0]
    """
    (true, pred), _ = check_same_tables(y_true=y_true, y_pred=y_pred)
    r = np.empty(true.shape[1])
    for genes in gen_batches(true.shape[1], GENES):
        a, a_norms, _ = centre_rows(np.array(true[:, genes].T, dtype=np.float64, order="C"))
        b, b_norms, _ = centre_rows(np.array(pred[:, genes].T, dtype=np.float64, order="C"))
        r[genes] = correlate_rows(a, a_norms, b, b_norms)
    return r


def _check_correlations(**correlations):
    checked = []
    for name, value in correlations.items():
        value = np.asarray(value, dtype=np.float64)
        if not np.all(np.abs(value) <= 1 + 1e-12):
            raise ValueError(
                f"{name} must be correlations in [-1, 1], got "
                f"{value[~(np.abs(value) <= 1 + 1e-12)].ravel()[0]!r}."
            )
        checked.append(np.clip(value, -1.0, 1.0))
    return checked


def _steiger_statistic(r_xy, r_xz, r_yz, n):
    """Return Williams' t for r_xy against r_xz, with its limits where y and z are collinear."""
    difference = r_xy - r_xz
    # The determinant of the correlation matrix in a form that is accurate near r = 1.
    determinant = (1 - r_xy) * (1 + r_xy) * (1 - r_xz) * (1 + r_xz) - (r_yz - r_xy * r_xz) ** 2
    mean = (r_xy + r_xz) / 2
    spread = 2 * (n - 1) / (n - 3) * np.maximum(determinant, 0) + mean**2 * (1 - r_yz) ** 3
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = difference * np.sqrt((n - 1) * (1 + r_yz) / spread)
        opposite = r_xy * np.sqrt((n - 3) / ((1 - r_xy) * (1 + r_xy)))
    statistic = np.where(1 + r_yz <= _COLLINEAR, opposite, statistic)
    same = (1 - r_yz <= _COLLINEAR) | (difference == 0)
    return np.where(same, 0.0, statistic)


def steiger_test(r_xy, r_xz, r_yz, n, *, alternative="greater"):
    """
    Test whether x correlates more with y than with z, both measured on the same samples.

    Parameters
    ----------
    r_xy, r_xz : array-like of float
        The two correlations to compare, in [-1, 1]: truth with prediction, truth with
        baseline.
    r_yz : array-like of float
        Correlation between y and z: prediction with baseline.
    n : int or array-like of int
        Number of samples, at least 4.
    alternative : {"greater", "less", "two-sided", "abs"}, default="greater"
        "greater" gives P(T > t), for the alternative r_xy > r_xz; "less" gives
        P(T < t); "two-sided" gives 2 P(T > abs(t)); "abs" gives P(T > abs(t)), half of
        it and equal for both directions, as SEQUOIA's code reports.

    Returns
    -------
    statistic : float or ndarray
        The t statistic with n - 3 degrees of freedom, positive if r_xy > r_xz.
    pvalue : float or ndarray
        Its p-value, from the survival function.

    Raises
    ------
    ValueError
        If `n` is below 4, a correlation is NaN or outside [-1, 1], or `alternative` is
        unknown.

    See Also
    --------
    significance_report : Uses this test for each gene.

    Notes
    -----
    The statistic is that of Williams (1959), recommended by Steiger (1980, equation 7). If y and
    z are equal up to scale (r_yz = 1), there is no difference to test and the statistic is 0. If
    they are opposite (r_yz = -1), the formula is 0 / 0; its limit for r_xz = -r_xy is used.

    References
    ----------
    .. [1] J. H. Steiger, "Tests for comparing elements of a correlation matrix",
       Psychological Bulletin 87(2), 245-251, 1980.
    .. [2] E. J. Williams, "The comparison of regression variables", Journal of the Royal
       Statistical Society B 21(2), 396-399, 1959.

    Examples
    --------
    >>> from sklearn_pk.metrics import steiger_test
    >>> statistic, pvalue = steiger_test(0.80, 0.72, 0.89, 26, alternative="two-sided")
    >>> round(float(statistic), 3), round(float(pvalue), 3)
    (1.361, 0.187)
    """
    alternatives = ("greater", "less", "two-sided", "abs")
    if alternative not in alternatives:
        raise ValueError(f"alternative must be one of {alternatives}, got {alternative!r}.")
    n = np.asarray(n)
    if not np.all(n > 3):
        raise ValueError(f"Steiger's test needs n >= 4 samples, got n = {n.min()!r}.")
    r_xy, r_xz, r_yz = _check_correlations(r_xy=r_xy, r_xz=r_xz, r_yz=r_yz)
    statistic = _steiger_statistic(r_xy, r_xz, r_yz, n)
    if alternative == "less":
        pvalue = special.stdtr(n - 3, statistic)
    else:
        upper = statistic if alternative == "greater" else np.abs(statistic)
        pvalue = special.stdtr(n - 3, -upper)
        if alternative == "two-sided":
            pvalue = 2 * pvalue
    return statistic[()], pvalue[()]
