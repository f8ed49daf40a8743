"""Which genes are predicted significantly."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Iterable
from numbers import Integral, Real

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from ..utils import check_groups
from ..utils._linalg import blas_threads, centre_rows
from ..utils._patients import PatientAverager
from ._calibration import FEWEST_PERMUTATIONS, Folds, NullDistribution
from ._correlation import (
    GENES,
    check_same_tables,
    correlate_rows,
    pearson_pvalue,
    steiger_test,
)

# Steiger's test has n - 3 degrees of freedom.
FEWEST_SAMPLES = 4
COLUMNS = (
    "r",
    "p",
    "p_fdr",
    "rmse",
    "rmse_baseline",
    "rmse_iqr",
    "rmse_mean",
    "r_baseline",
    "steiger_t",
    "steiger_p",
    "steiger_fdr",
    "significant",
    "reason",
)
# Columns of a report with folds, and with a calibrated null.
CALIBRATED = ("r_fold", "null_p", "null_fdr")
# The published levels, with which numbers of genes in papers were counted.
PUBLISHED = {"alpha": 0.05, "fdr": 0.2, "compat": "sequoia"}
N_PERMUTATIONS = {"permutation": 200, "empirical": 3}
_ROUNDING = 1e-12
# Values of a table that is processed faster without threads.
_SMALL = 2**19
# Constraints of the parameters that decide on significance.
CRITERIA = {
    "alpha": [Interval(Real, 0, 1, closed="right")],
    "fdr": [Interval(Real, 0, 1, closed="right"), None],
    "compat": [StrOptions({"sequoia"}), None],
}


def resolve_fdr(fdr, compat):
    """Return the level for corrected p-values; None is 0.05, or the published 0.2."""
    if fdr is not None:
        return fdr
    return 0.05 if compat is None else PUBLISHED["fdr"]


def gene_rows(table, genes, averager=None):
    """Return some genes as contiguous float64 rows, averaged over patients if requested."""
    if averager is None:
        return np.array(table[:, genes].T, dtype=np.float64, order="C")
    return np.ascontiguousarray((averager @ table[:, genes].astype(np.float64)).T)


def interquartile_range(rows):
    """Compute the interquartile range of each row, as ``scipy.stats.iqr`` does."""
    last = rows.shape[1] - 1
    ranks = np.array([0.25, 0.75]) * last
    below = ranks.astype(int)
    ordered = np.sort(rows, axis=1)
    low, high = ordered[:, below], ordered[:, np.minimum(below + 1, last)]
    first, third = (low + (ranks - below) * (high - low)).T
    return third - first


def _block_statistics(true, pred, base, folds=None, *, brief=False):
    """Return the statistics of genes in rows, if brief only the tests'; overwrites its input."""
    n = true.shape[1]
    out = {}
    if folds is not None:
        out["z"] = folds.combine(true, pred)
        if base is not None and not brief:
            out["z_baseline"] = folds.combine(true, base)
    lowest = None if brief else true.min(axis=1)
    difference = true - pred
    out["rmse"] = np.sqrt(np.vecdot(difference, difference) / n)
    if base is not None:
        np.subtract(true, base, out=difference)
        out["rmse_baseline"] = np.sqrt(np.vecdot(difference, difference) / n)
    t, t_norms, t_means = centre_rows(true, out=true)
    p, p_norms, _ = centre_rows(pred, out=pred)
    out |= {
        "constant_true": t_norms == 0,
        "constant_pred": p_norms == 0,
        "r": correlate_rows(t, t_norms, p, p_norms),
    }
    if base is None:
        out["rmse_baseline"] = np.sqrt(np.vecdot(t, t) / n)
    else:
        q, q_norms, _ = centre_rows(base, out=base)
        out["constant_base"] = q_norms == 0
        out["r_baseline"] = correlate_rows(t, t_norms, q, q_norms)
        out["r_pred_baseline"] = correlate_rows(p, p_norms, q, q_norms)
    if not brief:
        out["iqr"] = interquartile_range(t)
        # Expression below 0 is centred or transformed: its mean, or a rounding error, is no scale.
        has_scale = (lowest >= 0) & (t_means > _ROUNDING * t_norms)
        out["mean"] = np.where(has_scale, t_means, 0.0)
    return out


def _map_genes(function, table):
    """Call a function for each block of genes, in threads if the table is large."""
    batches = gen_batches(table.shape[1], GENES)
    if table.size <= _SMALL:
        return list(map(function, batches))
    with blas_threads() as run:
        return list(run(function, batches))


def _gather_statistics(true, pred, base, averager, folds=None, *, brief=False):
    """Return the statistics of all genes, those within folds if folds are given."""

    def statistics_of(genes):
        rows = (None if a is None else gene_rows(a, genes, averager) for a in (true, pred, base))
        return _block_statistics(*rows, folds, brief=brief)

    blocks = _map_genes(statistics_of, true)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _divide(a, b):
    """Divide, with NaN if the divisor is 0."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0)


def _first_failure(conditions, n_genes):
    """Return the label of the first failed condition for each gene, "" if all hold."""
    reason = np.full(n_genes, "", dtype=object)
    for label, holds in reversed(conditions):
        reason[~holds] = label
    return reason


def judge(stats, n, *, alpha, fdr, compat, null=None):
    """Return the columns of the tests, and the conditions of significance by label."""
    columns, conditions, usable = _judge_as_published(stats, n, alpha=alpha, fdr=fdr, compat=compat)
    if null is None:
        within = {} if "z" not in stats else {"r_fold": np.where(usable, np.tanh(stats["z"]), 0.0)}
        return columns | within, conditions
    z = np.where(usable, stats["z"], 0.0)
    p = np.where(usable, null.pvalue(z), 1.0)
    p_fdr = false_discovery_control(p, axis=0)
    columns |= {"r_fold": np.tanh(z), "null_p": p, "null_fdr": p_fdr}
    name = null.null.capitalize()
    conditions = [
        *(each for each in conditions if each[0].startswith("constant")),
        ("r <= 0", z > 0),
        ("RMSE >= baseline RMSE", stats["rmse"] < stats["rmse_baseline"]),
        ("r <= baseline r", z > stats.get("z_baseline", 0.0)),
        (f"{name} p >= {alpha:g}", p < alpha),
        (f"{name} FDR >= {fdr:g}", p_fdr < fdr),
    ]
    return columns, conditions


def _judge_as_published(stats, n, *, alpha, fdr, compat):
    """Return columns and conditions of the published tests, and which genes vary."""
    mean_baseline = "r_baseline" not in stats
    constants = [
        (f"constant {label}", ~stats[key])
        for label, key in (
            ("truth", "constant_true"),
            ("prediction", "constant_pred"),
            ("baseline", "constant_base"),
        )
        if key in stats
    ]
    usable = np.logical_and.reduce([varies for _, varies in constants])
    r = np.where(usable, stats["r"], 0.0)
    p = np.where(usable, pearson_pvalue(r, n), 1.0)
    p_fdr = false_discovery_control(p)
    conditions = [
        *constants,
        ("r <= 0", r > 0),
        (f"Pearson p >= {alpha:g}", p < alpha),
        ("RMSE >= baseline RMSE", stats["rmse"] < stats["rmse_baseline"]),
    ]
    if mean_baseline:
        r_baseline = np.zeros_like(r)
        steiger_t = steiger_p = steiger_fdr = np.full_like(r, np.nan)
        conditions.append((f"Pearson FDR >= {fdr:g}", p_fdr < fdr))
    else:
        r_baseline = np.where(usable, stats["r_baseline"], 0.0)
        alternative = "abs" if compat == "sequoia" else "greater"
        steiger_t, steiger_p = steiger_test(
            r, r_baseline, stats["r_pred_baseline"], n, alternative=alternative
        )
        steiger_t = np.where(usable, steiger_t, 0.0)
        steiger_p = np.where(usable, steiger_p, 1.0)
        steiger_fdr = false_discovery_control(steiger_p)
        conditions += [
            ("r <= baseline r", r > r_baseline),
            (f"Steiger p >= {alpha:g}", steiger_p < alpha),
            (f"Steiger FDR >= {fdr:g}", steiger_fdr < fdr),
        ]
    columns = {
        "r": r,
        "p": p,
        "p_fdr": p_fdr,
        "r_baseline": r_baseline,
        "steiger_t": steiger_t,
        "steiger_p": steiger_p,
        "steiger_fdr": steiger_fdr,
    }
    return columns, conditions, usable


def _tabulate(stats, n, **criteria):
    """Return the columns of the report, in order."""
    columns, conditions = judge(stats, n, **criteria)
    reason = _first_failure(conditions, len(stats["r"]))
    columns |= {
        "rmse": stats["rmse"],
        "rmse_baseline": stats["rmse_baseline"],
        "rmse_iqr": _divide(stats["rmse"], stats["iqr"]),
        "rmse_mean": _divide(stats["rmse"], stats["mean"]),
        "significant": reason == "",
        "reason": reason,
    }
    names = (*COLUMNS[:-2], *(name for name in CALIBRATED if name in columns), *COLUMNS[-2:])
    return {name: columns[name] for name in names}


def report_on(truth, prediction, baseline, *, averager, folds, null, **criteria):
    """Return the report on pooled tables, with a null distribution if given."""
    tables, found = check_same_tables(y_true=truth, y_pred=prediction, y_baseline=baseline)
    n = len(truth) if averager is None else len(averager.patients)
    stats = _gather_statistics(*tables, averager, folds)
    genes = _index_of_genes(None, found, truth.shape[1])
    return pd.DataFrame(_tabulate(stats, n, null=null, **criteria), index=genes)


def reduce_run(true, pred, base, averager, folds):
    """Return the combined z of a permuted run, and its number of genes as published."""
    wrong = np.flatnonzero(~np.isfinite(pred).all(axis=0))
    if wrong.size:
        raise ValueError(
            "The predictions of a run with permuted patients contain NaN or infinity in "
            f"{wrong.size} of {pred.shape[1]} genes, the first at position {wrong[0]}."
        )
    if averager is None:
        stats = _gather_statistics(true, pred, base, None, folds, brief=True)
        z, count = stats["z"], _count(stats, len(true))
    else:
        z = z_of_rows(true, pred, averager, folds)
        count = count_as_published(true, pred, base)
    return z, count


def count_as_published(true, pred, base):
    """Return the number of genes that are significant as published, one row per slide."""
    return _count(_gather_statistics(true, pred, base, None, brief=True), len(true))


def _count(stats, n):
    _, conditions = judge(stats, n, **PUBLISHED)
    return int(np.logical_and.reduce([holds for _, holds in conditions]).sum())


def _index_of_genes(gene_names, found, n_genes):
    if gene_names is None:
        return pd.Index(np.arange(n_genes) if found is None else found, name="gene")
    gene_names = np.asarray(gene_names, dtype=object)
    if gene_names.shape != (n_genes,):
        raise ValueError(
            f"gene_names must have one name for each of the {n_genes} genes, got shape "
            f"{gene_names.shape}."
        )
    if found is not None and (gene_names != found).any():
        first = np.flatnonzero(gene_names != found)[0]
        raise ValueError(
            "gene_names must agree with the columns of the tables, got "
            f"{gene_names[first]!r} for {found[first]!r}. Omit gene_names."
        )
    return pd.Index(gene_names, name="gene")


def z_of_rows(true, pred, averager, folds):
    """Return the combined z of all genes."""

    def combine(genes):
        rows = (gene_rows(table, genes, averager) for table in (true, pred))
        return folds.combine(*rows)

    return np.concatenate(_map_genes(combine, true))


def _z_of_permuted_rows(true, pred, averager, folds, orders):
    """Return the combined z (n_permutations, n_genes) with rows of the truth permuted."""

    def combine(genes):
        t, p = (gene_rows(table, genes, averager) for table in (true, pred))
        return np.array([folds.combine(t[:, order], p) for order in orders])

    return np.concatenate(_map_genes(combine, true), axis=1)


def _read_permuted(permuted, shape, averager, folds):
    """Return the combined z of each permuted run."""
    rows = []
    for number, run in enumerate(permuted):
        if not (isinstance(run, tuple) and len(run) == 2):
            raise TypeError(
                "permuted must have a tuple of tables (y_true, y_pred) for each permuted run, got "
                f"{type(run).__name__} at position {number}."
            )
        (true, pred), _ = check_same_tables(y_true=run[0], y_pred=run[1])
        if true.shape != shape:
            raise ValueError(
                f"permuted must have tables of shape {shape}, as y_true, got {true.shape} at "
                f"position {number}."
            )
        rows.append(z_of_rows(true, pred, averager, folds))
    return np.array(rows)


def check_permutations(null, n_permutations):
    """Return the number of permutations, by default that of the kind of null."""
    if n_permutations is None:
        return N_PERMUTATIONS.get(null, 0)
    if null == "permutation" and n_permutations < FEWEST_PERMUTATIONS:
        raise ValueError(
            f"null='permutation' needs n_permutations >= {FEWEST_PERMUTATIONS}, since each gene is "
            f"standardised by its own permutations, got {n_permutations}. Use null='empirical' "
            "for a few."
        )
    return n_permutations


def folds_of_rows(folds, groups, averager, n_samples):
    """Return the correlations within folds, for one row per patient if requested."""
    folds = np.zeros(n_samples, dtype=int) if folds is None else np.asarray(folds)
    if folds.shape != (n_samples,):
        raise ValueError(
            f"folds must name the fold of each of the {n_samples} samples, got shape {folds.shape}."
        )
    if averager is None:
        return Folds(folds)
    by_patient = pd.Series(folds).groupby(groups)
    split = by_patient.nunique()
    if (split > 1).any():
        raise ValueError(
            f"folds: the samples of a patient must be in one fold, but those of "
            f"{split.index[split.argmax()]!r} are in {split.max()}."
        )
    return Folds(by_patient.first().loc[averager.patients].to_numpy())


@validate_params(
    {
        "y_true": ["array-like"],
        "y_pred": ["array-like"],
        "y_baseline": ["array-like", None],
        "gene_names": ["array-like", None],
        "groups": ["array-like", None],
        **CRITERIA,
        "null": [StrOptions({"published", "permutation", "empirical"})],
        "permuted": [Iterable, None],
        "folds": ["array-like", None],
        "n_permutations": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def significance_report(
    y_true,
    y_pred,
    y_baseline,
    *,
    gene_names=None,
    alpha=0.05,
    fdr=None,
    groups=None,
    compat=None,
    null="published",
    permuted=None,
    folds=None,
    n_permutations=None,
    random_state=None,
):
    """
    Test for each gene whether its expression is predicted significantly.

    As published, a gene is significant if all of these conditions hold: r > 0; the two-sided
    Pearson p-value of r is below `alpha`; the RMSE is below that of the baseline; r is above that
    of the baseline; Steiger's test of both correlations gives p < `alpha`; and its
    Benjamini-Hochberg corrected p-value over all genes is below `fdr`. Both tests take the
    predictions as given, which those of several folds are not; `null` calibrates them.

    Parameters
    ----------
    y_true : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
        True expression of samples the model has not seen, usually in log2 units.
    y_pred : array-like or DataFrame of the same shape
        Predictions, in the units of `y_true`.
    y_baseline : array-like or DataFrame of the same shape, or None
        Predictions of the baseline, usually the same architecture before training. None
        takes the mean of `y_true`; see Notes.
    gene_names : array-like of shape (n_genes,), default=None
        Names of the genes, if the tables are arrays.
    alpha : float, default=0.05
        Level for the p-values of Pearson's r and of Steiger's test.
    fdr : float, default=None
        Level for the corrected p-values. None is 0.05, or the published 0.2 with
        ``compat="sequoia"``.
    groups : array-like of shape (n_samples,), default=None
        Patient of each sample. If given, all tables are averaged to one row per patient first,
        so that n is the number of patients. With None, n is the number of slides, as published.
    compat : {"sequoia"} or None, default=None
        None takes P(T > t) for Steiger's test. "sequoia" takes P(T > abs(t)), as SEQUOIA's
        code does; this changes the correction, because genes worse than their baseline get
        small p-values, too.
    null : {"published", "permutation", "empirical"}, default="published"
        The distribution of r of a gene that is not predicted. "published" is that of Pearson's
        and Steiger's tests. "permutation" takes it from permuted patients, each gene
        standardised by itself; "empirical" estimates one standard deviation for all genes from a
        few. Both replace the two tests by a one-sided test of the correlation within folds.
    permuted : iterable of tuple of tables, default=None
        ``(y_true, y_pred)`` of each run of the same cross-validation with permuted patients. None
        permutes the patients of `y_true` against the predictions, which is valid only if all
        are predicted by one model that has seen none of them.
    folds : array-like of shape (n_samples,), default=None
        Fold of each sample, for null other than "published": correlations are computed within
        folds, and Fisher's z is averaged. None is one fold.
    n_permutations : int, default=None
        Number of permutations if `permuted` is None. None is 200, and 3 for "empirical".
    random_state : int, RandomState instance or None, default=None
        Seed of the permutations.

    Returns
    -------
    report : DataFrame of n_genes rows, indexed by gene
        ``r``, ``p``, ``p_fdr`` (Pearson correlation, its two-sided p-value, the same
        corrected), ``rmse``, ``rmse_baseline``, ``rmse_iqr`` and ``rmse_mean`` (RMSE over
        interquartile range and over mean of the truth; NaN if that is 0, or for the mean if the
        truth has negative values, as transformed expression), ``r_baseline``,
        ``steiger_t``, ``steiger_p``, ``steiger_fdr``, ``significant`` (bool) and ``reason``
        (the first condition that failed, "" for a significant gene). With a null other than
        "published" also ``r_fold`` (the correlation within folds, averaged), ``null_p`` (its
        one-sided p-value) and ``null_fdr``, on which ``significant`` then depends.

    Raises
    ------
    ValueError
        If there are fewer than 4 samples (or patients), shapes, gene names or row names
        differ, or a value is NaN or infinite; the genes are named. Also if there are several
        folds without `permuted`, or fewer than 20 permutations for "permutation".

    See Also
    --------
    make_significance_scorer : The number of significant genes as a scorer.
    sklearn_pk.model_selection.cross_val_significance : The report over all folds.

    Notes
    -----
    A gene that is constant in truth, prediction or baseline has r = 0 and p = 1 and is not
    significant.

    A constant baseline has no correlation to compare with, so with ``y_baseline=None`` Steiger's
    test is omitted: its columns are NaN, `fdr` applies to ``p_fdr``, and the RMSE must be below
    that of the mean of the scored samples, which is the best constant prediction.

    With a null other than "published", a gene is significant if r within folds is above 0 and
    above that of the baseline, the RMSE is below that of the baseline, and its p-value is below
    `alpha` and corrected below `fdr`. :func:`~sklearn_pk.model_selection.cross_val_significance`
    makes the permuted runs itself; the user guide says why they are needed.

    Statistics are computed in float64 for any dtype of the input, on centred values in blocks of
    genes.

    References
    ----------
    .. [1] M. Pizurica et al., "Digital profiling of gene expression from histology images
       with linearized attention", Nature Communications 15, 9886, 2024.
    .. [2] J. H. Steiger, "Tests for comparing elements of a correlation matrix",
       Psychological Bulletin 87(2), 245-251, 1980.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.metrics import significance_report
    >>> rng = np.random.default_rng(0)
    >>> y_true = rng.normal(size=(50, 2))
    >>> y_pred = np.column_stack([0.8 * y_true[:, 0], rng.normal(size=50)])
    >>> y_baseline = rng.normal(size=(50, 2))
    >>> report = significance_report(y_true, y_pred, y_baseline, gene_names=["ESR1", "MKI67"])
    >>> report["reason"].to_dict()
    {'ESR1': '', 'MKI67': 'Pearson p >= 0.05'}
    """
    (true, pred, base), found = check_same_tables(
        y_true=y_true, y_pred=y_pred, y_baseline=y_baseline
    )
    genes = _index_of_genes(gene_names, found, true.shape[1])
    averager = None
    if groups is not None:
        averager = PatientAverager(check_groups(groups, y_true))
    n = true.shape[0] if averager is None else len(averager.patients)
    if n < FEWEST_SAMPLES:
        what = "samples" if groups is None else "patients"
        raise ValueError(
            f"Significance needs at least {FEWEST_SAMPLES} {what}, got n = {n}: Steiger's test "
            "has n - 3 degrees of freedom. Score larger test folds, or pool the folds with "
            "cross_val_significance."
        )
    criteria = {"alpha": alpha, "fdr": resolve_fdr(fdr, compat), "compat": compat}
    within = distribution = None
    if null != "published":
        within = folds_of_rows(folds, groups, averager, len(true))
        n_permutations = check_permutations(null, n_permutations)
        if permuted is None and len(within.rows) > 1:
            raise ValueError(
                f"The predictions of {len(within.rows)} folds are not independent of y_true, so "
                f"null={null!r} needs the models trained with permuted patients. Pass their tables "
                "as permuted=, or call cross_val_significance."
            )
        if permuted is None:
            rng = check_random_state(random_state)
            orders = [rng.permutation(n) for _ in range(n_permutations)]
            null_z = _z_of_permuted_rows(true, pred, averager, within, orders)
        else:
            null_z = _read_permuted(permuted, true.shape, averager, within)
            check_permutations(null, len(null_z))
        distribution = NullDistribution(null, null_z, within.std)
    stats = _gather_statistics(true, pred, base, averager, within)
    return pd.DataFrame(_tabulate(stats, n, null=distribution, **criteria), index=genes)
