"""Differences in significant genes between settings, with intervals from a paired bootstrap."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Mapping
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from ..utils import check_groups
from ..utils._linalg import blas_threads, centre_rows
from ..utils._patients import PatientAverager
from ..utils._reporting import progress
from ._calibration import NULLS, NullDistribution, fisher_z
from ._correlation import GENES, check_same_tables, row_names
from ._significance import (
    CRITERIA,
    FEWEST_SAMPLES,
    folds_of_rows,
    gene_rows,
    judge,
    resolve_fdr,
)

MEASURES = ("n_significant", "median_r")
_DEFAULTS = {"alpha": 0.05, "fdr": None, "compat": None, "null": "published"}
# Replicates per chunk of statistics, about ten numbers per gene, ...
_CHUNK = 128
# ... and per block of tests, so that the arrays fit into the cache.
_BLOCK = 8
# Rounding error of the variance of a resampled constant, relative to its second moment.
_CONSTANT = 1e-12


class _Run(NamedTuple):
    """Checked tables of one run with the names, patients and criteria of its result."""

    y_true: np.ndarray
    y_pred: np.ndarray
    y_baseline: np.ndarray | None
    rows: np.ndarray | None
    genes: np.ndarray | None
    groups: object
    criteria: dict
    folds: np.ndarray | None = None
    null: NullDistribution | None = None

    def average(self, averager):
        """Return the run with the mean of the samples of each patient."""
        tables = (None if table is None else averager @ table for table in self[:3])
        y_true, y_pred, y_baseline = tables
        return self._replace(y_true=y_true, y_pred=y_pred, y_baseline=y_baseline)


def _is_result(run):
    return all(hasattr(run, name) for name in ("y_true", "predictions", "untrained_predictions"))


def _check_run(run, label, baseline):
    """Return the tables of a result or of a tuple."""
    if isinstance(run, tuple) and len(run) == 3:
        true, pred, base = run
    elif _is_result(run):
        true, pred, base = run.y_true, run.predictions, run.untrained_predictions
    else:
        raise TypeError(
            f"{label} must be a result of cross_val_significance, a tuple of tables (y_true, "
            f"y_pred, y_baseline), or a list of these, got {type(run).__name__}."
        )
    base = None if baseline == "mean" else base
    tables, genes = check_same_tables(y_true=true, y_pred=pred, y_baseline=base)
    groups, criteria = getattr(run, "groups", None), getattr(run, "criteria", {})
    folds, null = getattr(run, "fold_of_sample", None), getattr(run, "null", None)
    return _Run(*tables, row_names(true), genes, groups, criteria, folds, null)


def _check_runs(reports, baseline):
    """Return the runs of each setting, checked to have the same samples and genes."""
    if not isinstance(reports, Mapping) or len(reports) < 2:
        raise ValueError(
            "reports must be a dict that maps the names of two or more settings to results, got "
            f"{type(reports).__name__}{list(reports) if isinstance(reports, Mapping) else ''}."
        )
    settings = {}
    for name, runs in reports.items():
        several = isinstance(runs, tuple) and runs and (_is_result(runs[0]) or len(runs) != 3)
        runs = list(runs) if several or isinstance(runs, list) else [runs]
        if not runs:
            raise ValueError(f"reports[{name!r}] has no runs.")
        settings[name] = [_check_run(run, f"reports[{name!r}]", baseline) for run in runs]
    (first_name, (first, *_)), *_ = settings.items()
    for name, runs in settings.items():
        for run in runs:
            _check_pair(run, first, f"reports[{name!r}]", f"reports[{first_name!r}]")
    return settings


def _differ(a, b):
    return a is not None and b is not None and not np.array_equal(a, b)


def _check_pair(run, first, label, first_label):
    """Check that two runs have the same samples, genes and kind of baseline."""
    both = f"{label} and {first_label}"
    for what, axis in (("samples", 0), ("genes", 1)):
        names = [(each.rows, each.genes)[axis] for each in (run, first)]
        if run.y_true.shape[axis] != first.y_true.shape[axis] or _differ(*names):
            raise ValueError(
                f"{both} must have the same {what} in the same order for a paired comparison."
            )
    # With named samples, the scales of y_true may differ.
    named = run.rows is not None and first.rows is not None
    if not named and _differ(run.y_true, first.y_true):
        raise ValueError(
            f"{both} have different y_true and no sample names, so they seem to have different "
            "samples. If only the scale differs, pass tables with sample names as the index."
        )
    if (run.y_baseline is None) != (first.y_baseline is None):
        raise ValueError(
            f"{both} have different baselines: one has predictions of an untrained model, the "
            'other has none. Pass baseline="mean" to compare both with the mean.'
        )


def _check_criteria(runs, given):
    """Return the given criteria, else those of the results, else the published ones."""
    criteria = {}
    for name, value in given.items():
        known = {run.criteria.get(name, _DEFAULTS[name]) for run in runs}
        if value is None and len(known) > 1:
            raise ValueError(
                f"The reports were made with different {name}: {sorted(known, key=str)}. Pass "
                f"{name}= to use the same for all."
            )
        criteria[name] = known.pop() if value is None else value
    if criteria["null"] != "published" and any(
        run.null is None or run.null.null != criteria["null"] for run in runs
    ):
        raise ValueError(
            f"null={criteria['null']!r} needs results of cross_val_significance with this null, "
            'whose permuted runs it uses. Pass null="published" for others.'
        )
    return criteria | {"fdr": resolve_fdr(criteria["fdr"], criteria["compat"])}


def _patient_numbers(groups, runs):
    """Return the patient of each sample as an integer code."""
    given = [groups] if groups is not None else [r.groups for r in runs if r.groups is not None]
    if not given:
        return np.arange(len(runs[0].y_true))
    table = pd.DataFrame(index=runs[0].rows if runs[0].rows is not None else runs[0].y_true[:, 0])
    numbers = [np.unique(check_groups(each, table), return_inverse=True)[1] for each in given]
    if any(_differ(each, numbers[0]) for each in numbers):
        raise ValueError(
            "The reports have different patients for the same samples. Pass groups=, the patient "
            "of each sample."
        )
    return numbers[0]


def _combine_folds(true, pred, weights, folds):
    """Return the mean of Fisher's z of each fold, for each gene and replicate."""
    z, total = 0.0, 0.0
    for rows in folds.rows:
        part = weights[rows]
        r = _weighted_statistics(true[:, rows], pred[:, rows], None, part)["r"]
        own = np.maximum(part.sum(axis=0) - 3, 0.0)
        z, total = z + own * fisher_z(r), total + own
    return z / np.maximum(total, 1)


def weighted_statistics(true, pred, base, weights, folds=None):
    """Compute the statistics of each gene and replicate from weighted moments."""
    if folds is None:
        return _weighted_statistics(true, pred, base, weights)
    within = {"z": _combine_folds(true, pred, weights, folds)}
    if base is not None:
        within["z_baseline"] = _combine_folds(true, base, weights, folds)
    return _weighted_statistics(true, pred, base, weights) | within


def _weighted_statistics(true, pred, base, weights):
    n = np.maximum(weights.sum(axis=0), 1)  # a draw may leave out all patients of a fold
    tables = [true, pred] if base is None else [true, pred, base]
    units, sums, variances, constants = [], [], [], []
    for rows in tables:
        unit, norms, _ = centre_rows(rows)
        unit = np.divide(unit, norms[:, np.newaxis], out=unit, where=norms[:, np.newaxis] > 0)
        unit[norms == 0] = 0.0
        total, square = unit @ weights, (unit * unit) @ weights
        variance = square - total * total / n
        units.append(unit)
        sums.append(total)
        variances.append(variance)
        constants.append(variance <= _CONSTANT * square)

    def correlate(i, j):
        covariance = (units[i] * units[j]) @ weights - sums[i] * sums[j] / n
        r, varies = np.zeros_like(covariance), ~(constants[i] | constants[j])
        r[varies] = covariance[varies] / np.sqrt(variances[i][varies] * variances[j][varies])
        return np.clip(r, -1.0, 1.0)

    found = {
        "r": correlate(0, 1),
        "rmse": np.sqrt(((true - pred) ** 2 @ weights) / n),
        "constant_true": constants[0],
        "constant_pred": constants[1],
    }
    if base is None:
        spread = np.linalg.norm(true - true.mean(axis=1, keepdims=True), axis=1)
        scatter = np.sqrt(np.maximum(variances[0], 0) / n)
        return found | {"rmse_baseline": spread[:, np.newaxis] * scatter}
    return found | {
        "r_baseline": correlate(0, 2),
        "r_pred_baseline": correlate(1, 2),
        "rmse_baseline": np.sqrt(((true - base) ** 2 @ weights) / n),
        "constant_base": constants[2],
    }


def _measure(found, n, criteria, null):
    """Return the number of significant genes and the median r of each replicate."""
    columns, conditions = judge(found, n, null=null, **criteria)
    significant = np.logical_and.reduce([holds for _, holds in conditions])
    return significant.sum(axis=0), np.median(columns.get("r_fold", columns["r"]), axis=0)


def resample_measures(run, weights, criteria, bar=None, *, folds=None, null=None):
    """Compute the measures of a run on resampled samples."""
    n_genes = run[0].shape[1]
    measures = np.empty((len(MEASURES), weights.shape[1]))
    for chunk in gen_batches(weights.shape[1], _CHUNK):
        part = np.ascontiguousarray(weights[:, chunk])
        n = part.sum(axis=0)

        def compute(genes, part=part):
            tables = (None if table is None else gene_rows(table, genes) for table in run[:3])
            return weighted_statistics(*tables, part, folds)

        with blas_threads() as threads:
            blocks = list(threads(compute, gen_batches(n_genes, GENES)))
            found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
            del blocks

            def count(few, found=found, n=n):
                block = {name: s[:, few] for name, s in found.items()}
                return _measure(block, n[few], criteria, null)

            parts = list(threads(count, gen_batches(part.shape[1], _BLOCK)))
        measures[:, chunk] = np.concatenate(parts, axis=1)
        if bar is not None:
            bar.update(part.shape[1])
    return measures


def _draw_weights(patients, n_boot, random_state):
    """Draw patients with replacement; all samples of a patient get the same weight."""
    n_patients = patients.max() + 1
    if n_patients < FEWEST_SAMPLES:
        raise ValueError(
            f"The bootstrap needs at least {FEWEST_SAMPLES} patients, got {n_patients}."
        )
    rng = check_random_state(random_state)
    drawn = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_boot)
    return drawn.T[patients].astype(np.float64)


def _margin(own, other, level):
    """Return half the width of the interval of a mean difference."""
    by_patients = (own.mean(axis=0) - other.mean(axis=0))[1:].var(ddof=1)
    by_runs, freedom = _variance_over_runs(own[:, 0], other[:, 0])
    if not by_runs:
        return stats.norm.ppf((1 + level) / 2) * np.sqrt(by_patients)
    # The variance over few runs is uncertain (Satterthwaite).
    variance = by_patients + by_runs
    freedom = freedom * (variance / by_runs) ** 2
    return stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)


def _variance_over_runs(own, other):
    """Return the variance of the difference of two means, and its degrees of freedom."""
    n, m = len(own), len(other)
    if n == m == 1:
        return 0.0, np.inf
    if n == m:  # paired, since runs may have common seeds
        return (own - other).var(ddof=1) / n, n - 1
    if min(n, m) == 1:  # assume the same variance for both settings
        return max(own, other, key=len).var(ddof=1) * (1 / n + 1 / m), max(n, m) - 1
    parts = np.array([own.var(ddof=1) / n, other.var(ddof=1) / m])
    spread = (parts**2 / [n - 1, m - 1]).sum()
    return parts.sum(), parts.sum() ** 2 / spread if spread else np.inf


def _tabulate(name, measures, reference, level):
    """Return one row for each measure."""
    (reference_name, of_reference), rows = reference, []
    for number, measure in enumerate(MEASURES):
        own, other = measures[:, number], of_reference[:, number]
        margin = _margin(own, other, level)
        value, reference_value = own[:, 0].mean(), other[:, 0].mean()
        difference = value - reference_value
        rows.append(
            {
                "setting": name,
                "reference": reference_name,
                "measure": measure,
                "value": value,
                "reference_value": reference_value,
                "difference": difference,
                "ci_low": difference - margin,
                "ci_high": difference + margin,
            }
        )
    return rows


@validate_params(
    {
        "reports": "no_validation",
        "reference": "no_validation",
        "groups": ["array-like", None],
        "n_boot": [Interval(Integral, 2, None, closed="left")],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        "baseline": [StrOptions({"untrained", "mean"})],
        "alpha": [*CRITERIA["alpha"], None],
        "fdr": CRITERIA["fdr"],
        "compat": CRITERIA["compat"],
        "null": [StrOptions(set(NULLS)), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def compare_significance(
    reports,
    *,
    reference=None,
    groups=None,
    n_boot=1000,
    confidence_level=0.95,
    baseline="untrained",
    alpha=None,
    fdr=None,
    compat=None,
    null=None,
    random_state=None,
    verbose=0,
):
    """
    Compare settings by their significant genes and median r, with confidence intervals.

    Patients are drawn with replacement, the same for all settings, and all genes are tested
    again on each draw. A gain without an interval is not a result.

    Parameters
    ----------
    reports : dict of str to result, or to list of results
        The settings to compare: for each, the result of
        :func:`~sklearn_pk.model_selection.cross_val_significance`, or a tuple of tables
        ``(y_true, y_pred, y_baseline)`` of shape (n_samples, n_genes), as
        :func:`significance_report` takes them. A list holds several runs of one setting, such
        as seeds: their measures are averaged, and the intervals include the variation between
        runs. All must have the same samples and genes, and the same `y_true` unless the samples
        have names.
    reference : str, default=None
        The setting with which the others are compared. None takes the first.
    groups : array-like of shape (n_samples,), default=None
        Patient of each sample. None takes those of the results; if they have none, each
        sample is a patient.
    n_boot : int, default=1000
        Number of draws.
    confidence_level : float, default=0.95
        Level of the intervals.
    baseline : {"untrained", "mean"}, default="untrained"
        "untrained" takes the baseline of each report; since the untrained model depends on the
        setting, settings then differ in model and baseline. "mean" takes the mean of `y_true`,
        which is the same for all.
    alpha, fdr : float, default=None
        Levels of :func:`significance_report`. None takes those of the results, or 0.05 for
        tables.
    compat : {"sequoia"} or None, default=None
        As in :func:`significance_report`. None takes that of the results. With "sequoia", n is
        the number of slides.
    null : {"published", "permutation", "empirical", "analytic"} or None, default=None
        The tests with which genes are counted. None takes that of the results; others than
        "published" need results that were computed with it, whose null distribution serves for
        all draws.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws. The result does not depend on the number of threads.
    verbose : int, default=0
        Whether to show a progress bar, or lines in a log.

    Returns
    -------
    comparison : DataFrame
        Two rows for each setting except the reference, for the ``measure`` "n_significant" and
        "median_r": ``setting``, ``reference``, ``measure``, ``value``, ``reference_value``,
        ``difference`` (value - reference_value), ``ci_low`` and ``ci_high``. If the null is not
        "published", "median_r" is that of ``r_fold``, which offsets of the folds do not change.

    Raises
    ------
    TypeError
        If a report is not one of the forms above.
    ValueError
        If samples, genes, patients, criteria or the kind of baseline of the reports differ,
        there are fewer than two settings or four patients, or the reference is not a setting.

    See Also
    --------
    sklearn_pk.model_selection.prior_gain : Runs a model with its prior, without and with
        controls.
    significance_report : Tests each gene.

    Notes
    -----
    Where a patient has several samples, these are averaged first, as in the report. With
    ``compat="sequoia"`` they are not, and a draw contains all samples of a patient or none.

    The interval is the observed difference plus and minus a quantile times its standard error.
    For one run each, the standard error is the standard deviation of the difference over the
    draws, and the quantile is that of the normal distribution. Such an interval covers other
    test patients for these fitted models, but not other training patients or seeds. With several
    runs, the variance of the difference over the runs, divided by their number, is added, and
    the quantile is that of Student's t with Satterthwaite's degrees of freedom. Settings with
    equally many runs are paired by position, so that the effect of common seeds cancels; for a
    single run compared with several, the variance of these is used for both. Two or three runs
    give a poor estimate of the variance, so use five or more.

    A draw repeats patients, so its correlations have the noise of a second sampling, and more
    genes are significant than in the sample. Intervals that correct this as a bias (basic, BCa)
    miss the true difference far too often; see the user guide.

    References
    ----------
    .. [1] B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman and Hall,
       1993, chapter 13.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.metrics import compare_significance
    >>> rng = np.random.default_rng(0)
    >>> y_true, noise, untrained = rng.normal(size=(3, 80, 50))
    >>> comparison = compare_significance(
    ...     {
    ...         "weak": (y_true, 0.1 * y_true + 0.5 * noise, untrained),
    ...         "strong": (y_true, 0.3 * y_true + 0.5 * noise, untrained),
    ...     },
    ...     n_boot=200,
    ...     random_state=0,
    ... )
    >>> comparison[["setting", "measure", "value", "reference_value"]].round(2)
      setting        measure  value  reference_value
    0  strong  n_significant  49.00            10.00
    1  strong       median_r   0.51             0.21
    >>> bool(comparison["ci_low"].min() > 0)
    True
    """
    settings = _check_runs(reports, baseline)
    names = list(settings)
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise ValueError(f"reference must be one of the settings {names}, got {reference!r}.")
    all_runs = [run for runs in settings.values() for run in runs]
    given = {"alpha": alpha, "fdr": fdr, "compat": compat, "null": null}
    criteria = _check_criteria(all_runs, given)
    null = criteria.pop("null")
    patients, averager = _patient_numbers(groups, all_runs), None
    if criteria["compat"] is None and patients.max() + 1 < len(patients):
        averager, by_sample, patients = PatientAverager(patients), patients, None
        patients = np.arange(len(averager.patients))
    drawn = _draw_weights(patients, n_boot, random_state)
    # The observed value is the draw that contains each patient once.
    weights = np.concatenate([np.ones((len(patients), 1)), drawn], axis=1)
    total = len(all_runs) * weights.shape[1]

    def measure(run, bar):
        folds = None
        if null != "published":
            folds = folds_of_rows(
                run.folds, None if averager is None else by_sample, averager, len(run.y_true)
            )
        run = run if averager is None else run.average(averager)
        calibrated = {"folds": folds, "null": None if folds is None else run.null}
        return resample_measures(run, weights, criteria, bar, **calibrated)

    with progress(total=total, desc="Draws", verbose=verbose) as bar:
        measures = {
            name: np.array([measure(run, bar) for run in runs]) for name, runs in settings.items()
        }
    others = [name for name in names if name != reference]
    against = reference, measures[reference]
    return pd.DataFrame(
        [
            row
            for name in others
            for row in _tabulate(name, measures[name], against, confidence_level)
        ]
    )
