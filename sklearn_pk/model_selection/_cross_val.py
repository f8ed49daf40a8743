"""Significantly predicted genes over all folds of a cross-validation."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from contextlib import closing
from numbers import Integral

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.base import clone
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_params,
)

from ..metrics import significance_report
from ..metrics._calibration import NULLS, NullDistribution, permute_patients
from ..metrics._scorer import predict_with_untrained
from ..metrics._significance import (
    CRITERIA,
    FEWEST_SAMPLES,
    PUBLISHED,
    check_permutations,
    count_as_published,
    folds_of_rows,
    reduce_run,
    report_on,
    resolve_fdr,
)
from ..utils import check_expression, check_groups
from ..utils._annotation import warn_of_doubts
from ..utils._folds import make_folds, warn_of_repeats
from ..utils._parallel import count_jobs, map_in_order, no_alarm_about_memory, restore, share
from ..utils._patients import PatientAverager
from ..utils._reporting import progress, warn_user, without_warnings_of_data
from ..utils._validation import check_sample_names, sample_names_of
from ._final_model import scale, take_rows, takes_groups
from ._permuted import analytic_std, make_smoothers, smoothed_runs, with_chosen_settings
from ._result import CrossValSignificance, as_table

# The median r of a baseline that knows nothing is below this where pooling does no harm.
_FAR_FROM_0, _ENOUGH_GENES = 0.15, 10


def check_parameters(estimator):
    """Validate the parameters of all steps before the first one is fitted."""
    if isinstance(estimator, type):
        name = estimator.__name__
        raise TypeError(f"estimator must be an instance, got the class {name}. Pass {name}().")
    if getattr(estimator, "refit", True) is False:
        raise ValueError("estimator has refit=False, so it cannot predict. Pass refit=True.")
    for part in (estimator, *estimator.get_params(deep=True).values()):
        declared = not isinstance(part, type) and hasattr(part, "_parameter_constraints")
        if not declared or not hasattr(part, "_validate_params"):
            continue
        try:
            part._validate_params()
        except InvalidParameterError as error:
            # Otherwise validate_params would replace the name of the step by that of its function.
            raise ValueError(str(error)) from error


def _fit_and_predict(X, y, values, is_1d, groups, pass_groups, estimator, transformer, fold):
    train, test = fold
    scaled, transformer = scale(transformer, values, groups, train)
    fit_params = {"groups": groups[train]} if pass_groups else {}
    start = time.perf_counter()
    with without_warnings_of_data():
        estimator.fit(_safe_indexing(X, train), take_rows(scaled, train, y, is_1d), **fit_params)
    fitted = time.perf_counter()
    prediction, untrained = predict_with_untrained(estimator, _safe_indexing(X, test))
    return {
        "estimator": estimator,
        "transformer": transformer,
        "y_true": scaled[test],
        "prediction": as_table(prediction),
        "untrained": None if untrained is None else as_table(untrained),
        "fit_time": fitted - start,
        "score_time": time.perf_counter() - fitted,
    }


def _restore_and_fit(head, sizes, content, *rest):
    return _fit_and_predict(restore(head, sizes, content), *rest)


def _fit_permuted(order, function, *task):
    """Run a fold with permuted expression, and return its tables only."""
    *shared, y, values, is_1d, groups, pass_groups, estimator, transformer, fold = task
    values = values[order]
    done = function(*shared, y, values, is_1d, groups, pass_groups, estimator, transformer, fold)
    return tuple(done[name] for name in ("y_true", "prediction", "untrained"))


def _shared_input(X, n_jobs):
    """Return the function that runs a fold, and its arguments for X."""
    if isinstance(X, list | tuple) and count_jobs(n_jobs) > 1:
        return _restore_and_fit, share(X)
    return _fit_and_predict, (X,)


def _refitted_runs(function, shared, results, folds, transformer, orders, n_jobs):
    """Yield the tables of each permuted run, with the models fitted anew."""
    models = [with_chosen_settings(result["estimator"]) for result in results]
    tasks = [
        (order, function, *shared, clone(model), transformer, fold)
        for order in orders
        for model, fold in zip(models, folds, strict=True)
    ]
    rows = np.argsort(np.concatenate([test for _, test in folds]), kind="stable")
    with closing(map_in_order(_fit_permuted, tasks, n_jobs=n_jobs, name="refit {}".format)) as done:
        for _ in orders:
            tables = zip(*(next(done) for _ in folds), strict=True)
            yield tuple(
                None if any(part is None for part in parts) else np.concatenate(parts)[rows]
                for parts in tables
            )


def _describe_fold(number, fold, result, tables, groups, by_patient, criteria):
    train, test = fold
    n_significant = median_r = np.nan
    patients = groups[np.sort(test)] if by_patient else None
    if len(test if patients is None else np.unique(patients)) >= FEWEST_SAMPLES:
        truth, prediction, base = tables
        # The mean of the training patients is constant in a fold: r cannot be above that of it.
        if base is not None and (base.to_numpy() == base.to_numpy()[:1]).all():
            base = None
        report = significance_report(truth, prediction, base, groups=patients, **criteria)
        n_significant, median_r = int(report["significant"].sum()), report["r"].median()
    return {
        "fold": number,
        "n_train": len(train),
        "n_test": len(test),
        "n_train_patients": len(train if groups is None else np.unique(groups[train])),
        "n_test_patients": len(test if groups is None else np.unique(groups[test])),
        "n_significant": n_significant,
        "median_r": median_r,
        "fit_time": result["fit_time"],
        "score_time": result["score_time"],
    }


def _pool(results, key, folds, y, gene_names):
    """Return the held-out tables of all folds as one DataFrame in the order of y."""
    if any(result[key] is None for result in results):
        return None
    rows = np.concatenate([test for _, test in folds])
    order = np.argsort(rows, kind="stable")
    values = np.concatenate([result[key] for result in results])[order]
    index = y.index[rows[order]] if hasattr(y, "iloc") else rows[order]
    return pd.DataFrame(values, index=index, columns=gene_names)


class _Null:
    """The null distribution of a cross-validation, from permuted runs."""

    def __init__(self, kind, folds, groups, by_patient):
        self.kind = kind
        rows = np.concatenate([test for _, test in folds])
        order = np.argsort(rows, kind="stable")
        self.fold = np.repeat(np.arange(len(folds)), [len(test) for _, test in folds])[order]
        self.groups = groups[rows[order]] if by_patient else None
        self.averager = PatientAverager(self.groups) if by_patient else None
        self.folds = folds_of_rows(self.fold, self.groups, self.averager, len(rows))

    def from_runs(self, runs):
        """Return the distribution, the correlations, and the published count of each run."""
        rows, counts = [], []
        for tables in runs:
            z, count = reduce_run(*tables, self.averager, self.folds)
            rows.append(z.astype(np.float32))
            counts.append(count)
        z = np.array(rows)
        return NullDistribution(self.kind, z, self.folds.std), np.tanh(z), np.array(counts)


def _draw_orders(groups, n_samples, n_permutations, random_state):
    """Return the row whose expression each sample gets, for each permutation of the patients."""
    rng = check_random_state(random_state)
    groups = np.arange(n_samples) if groups is None else groups
    return [permute_patients(groups, rng) for _ in range(n_permutations)]


def _check_analytic(smoothers):
    if smoothers is None or not all(smoother.is_fixed for smoother in smoothers):
        raise ValueError(
            "null='analytic' needs a model whose predictions of a gene are a fixed linear function "
            "of its expression, as PriorKnowledgeRidge(prior=None) has. Use null='permutation', "
            "or null='empirical' for networks."
        )


def _pool_all(results, folds, y, gene_names):
    """Return truth, predictions and baseline of all folds; removes them from the results."""
    tables = []
    for key in ("y_true", "prediction", "untrained"):
        tables.append(_pool(results, key, folds, y, gene_names))
        for result in results:
            del result[key]
    return tuple(tables)


def _gather(results, folds, tables, groups, by_patient, null, null_data, criteria, names):
    truth, prediction, untrained = tables
    patients, levels = None, {name: criteria[name] for name in PUBLISHED}
    tested = np.sort(np.concatenate([test for _, test in folds]))
    if groups is not None:
        patients = pd.Series(groups[tested], index=truth.index, name="patient")
    distribution, null_r, null_counts = null_data
    calibrated = {"averager": null.averager, "folds": null.folds, "null": distribution}
    return CrossValSignificance(
        report=report_on(truth, prediction, untrained, **calibrated, **levels),
        mean_report=report_on(truth, prediction, None, **calibrated, **levels),
        predictions=prediction,
        untrained_predictions=untrained,
        y_true=truth,
        folds=pd.DataFrame(
            _describe_fold(
                number,
                fold,
                result,
                [None if table is None else table[null.fold == number] for table in tables],
                groups,
                by_patient,
                levels,
            )
            for number, (fold, result) in enumerate(zip(folds, results, strict=True))
        ),
        estimators=[result["estimator"] for result in results],
        target_transformers=[result["transformer"] for result in results],
        test_indices=[test for _, test in folds],
        groups=patients,
        criteria=criteria,
        n_published=count_as_published(
            *(None if table is None else table.to_numpy() for table in tables)
        ),
        null=distribution,
        null_r=null_r,
        null_counts=null_counts,
        sample_names=None if names is None else [names[row] for row in tested],
    )


def _warn_of_pooling(report):
    """Warn if correlations of the untrained baseline are not around 0."""
    r = report["r_baseline"]
    # Of a few genes, the median is far from 0 by chance.
    if len(r) >= _ENOUGH_GENES and abs(r.median()) > _FAR_FROM_0:
        warn_user(
            f"The untrained baseline has a median r of {r.median():.2f}, and r < 0 for "
            f"{100 * (r < 0).mean():.0f} % of the genes: pooled over folds, correlations of few "
            "patients are pushed below 0, because a fold whose test patients are high is trained "
            "on low ones. Read r_fold and median_r_fold instead of r and median_r; for "
            "significance, pass null='permutation', or null='empirical' for networks."
        )


@validate_params(
    {
        "estimator": [HasMethods(["fit", "predict"])],
        "X": "no_validation",
        "y": "no_validation",
        "groups": ["array-like", None],
        "cv": ["cv_object"],
        "target_transformer": [HasMethods(["fit", "transform"]), None],
        **CRITERIA,
        "null": [StrOptions(set(NULLS))],
        "n_permutations": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=False,
)
def cross_val_significance(
    estimator,
    X,
    y,
    *,
    groups=None,
    cv=None,
    target_transformer=None,
    alpha=0.05,
    fdr=None,
    compat=None,
    null="published",
    n_permutations=None,
    random_state=None,
    n_jobs=None,
    verbose=0,
):
    """
    Count the significantly predicted genes of an estimator, pooled over all folds.

    Each fold fits a clone of the estimator and predicts its held-out samples. The predictions
    of all folds are pooled and each gene is tested once, as reported in papers.

    Parameters
    ----------
    estimator : estimator
        A regressor, a Pipeline that ends in one, or a search over either. The baseline of the test
        is its ``predict_untrained`` if it has one, and otherwise the mean.
    X : sequence, array or DataFrame of n_samples
        Input of `estimator`: slide paths, bags or features.
    y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
        Expression, usually in log2 units. Gene and sample names of a DataFrame are kept.
        If X has sample names, too, each must agree with the index of `y`: equal to it, of the
        same TCGA patient, or one of the two within the other as a whole word.
    groups : array-like of shape (n_samples,), default=None
        Patient of each sample. Passed to the splitter, and to ``fit`` of the estimator if its
        metadata request includes groups: for its own validation split, or for the folds of a
        search. Metadata routing is enabled for this during the call.
    cv : int, splitter, iterable or None, default=None
        The folds. None stands for 5; an integer means GroupKFold with `groups` and KFold
        without. Test sets must not overlap, and no patient may be in training and test set.
    target_transformer : transformer, default=None
        Applied to `y`, for example ``QuantileTransformer(output_distribution="normal")``. A
        clone is fitted in each fold on the training set, with one row (the mean) per patient.
        All results are then on the transformed scale.
    alpha : float, default=0.05
        Level for the p-values; see :func:`sklearn_pk.metrics.significance_report`.
    fdr : float, default=None
        Level for the corrected p-values. None is 0.05, or the published 0.2 with
        ``compat="sequoia"``.
    compat : {"sequoia"} or None, default=None
        None has one row per patient, and corrects P(T > t) of Steiger's test. "sequoia" has one
        row per slide, and corrects P(T > abs(t)), as published.
    null : {"published", "permutation", "empirical", "analytic"}, default="published"
        The distribution of r of genes that are not predicted. "published" is that of Pearson's
        and Steiger's tests, which take the folds as independent; they are not, so that too many
        genes are significant. "permutation" runs the cross-validation with permuted patients, and
        "empirical" with a few, from which it takes one standard deviation for all genes.
        "analytic" needs no permutations, but
        :class:`~sklearn_pk.regression.PriorKnowledgeRidge` without a prior.
    n_permutations : int, default=None
        Number of permutations. None is 200, and 3 for "empirical".
    random_state : int, RandomState instance or None, default=None
        Seed of the permutations.
    n_jobs : int, default=None
        Number of folds to run in parallel, as in joblib; 1 uses this process, even on a cluster.
        The result does not depend on it.
    verbose : int, default=0
        Whether to show a progress bar, or lines in a log.

    Returns
    -------
    result : CrossValSignificance
        The pooled report, predictions, a table of the folds and the fitted models.

    Raises
    ------
    ValueError
        Before any fit: if a parameter of a step is invalid, the lengths or names of `X`,
        `y` and `groups` do not agree, `y` contains NaN or a gene twice, there are fewer
        patients than folds, fewer than 4 samples are held out, or `cv` leaks patients or
        holds samples out twice.
        Also if there are fewer than 20 permutations for "permutation", or "analytic" does not
        apply to the estimator.
    RuntimeError
        If the worker of a fold is killed in each attempt.

    Warns
    -----
    UserWarning
        If `y` is not logged, samples of a patient are in several folds, or the median correlation
        of the untrained baseline is far from 0.

    See Also
    --------
    sklearn_pk.metrics.make_significance_scorer : The count in one fold, for searches.
    patient_ids : Patients from TCGA barcodes.

    Notes
    -----
    Samples are averaged to one row per patient before the tests, unless ``compat="sequoia"``.
    ``report_by_slide`` of the result tests one row per slide.

    A permutation assigns the expression of each patient, with all genes and slides, to another
    one. The folds and the settings that a search or leave-one-out chose remain; chosen anew, they
    would be those of data in which nothing can be predicted. For ``PriorKnowledgeRidge`` the
    eigendecompositions of the kernel are reused, and a permutation takes a fraction of the time
    of a fit: genes are then standardised over the cohort and `target_transformer` is not fitted
    anew, unless the prior is an estimator or `cv` leaves samples untested. Other estimators are
    fitted anew for each permutation, so use ``null="empirical"`` for networks.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_pk.model_selection import cross_val_significance
    >>> X, y = make_regression(n_samples=60, n_features=5, n_targets=3, random_state=0)
    >>> patients = [f"P{i // 2}" for i in range(60)]
    >>> result = cross_val_significance(Ridge(), X, y, groups=patients, cv=3)
    >>> result.n_significant
    3
    >>> result.folds["n_test_patients"].tolist()
    [10, 10, 10]
    """
    check_parameters(estimator)
    check_sample_names(X, y)
    values, gene_names, is_1d = check_expression(y, estimator_name="cross_val_significance")
    samples = y.index if hasattr(y, "iloc") else None
    warn_of_doubts(values, gene_names, samples, look_at_scale=target_transformer is None)
    groups = None if groups is None else check_groups(groups, y, X)
    folds = make_folds(cv, X, y, groups)
    warn_of_repeats(folds, values, groups)
    n_permutations = check_permutations(null, n_permutations)
    repeated = groups is not None and len(np.unique(groups)) < len(y)
    by_patient = repeated and compat is None
    if null == "analytic" and repeated and not by_patient:
        raise ValueError(
            "null='analytic' needs one row per patient, which compat='sequoia' does not have. Omit "
            "compat; n_published of the result is the published count."
        )
    orders = _draw_orders(groups, len(y), n_permutations, random_state)
    tested = np.concatenate([test for _, test in folds])
    n_tested = len(np.unique(groups[tested]) if by_patient else tested)
    if n_tested < FEWEST_SAMPLES:
        what = "patients" if by_patient else "samples"
        raise ValueError(
            f"Significance needs at least {FEWEST_SAMPLES} held-out {what}, got {n_tested}."
        )
    if gene_names is None and isinstance(y, pd.DataFrame):
        gene_names = y.columns
    with config_context(enable_metadata_routing=True):
        pass_groups = groups is not None and takes_groups(estimator)
        function, shared = _shared_input(X, n_jobs)
        shared = (*shared, y, values, is_1d, groups, pass_groups)
        tasks = [(*shared, clone(estimator), target_transformer, fold) for fold in folds]
        done = map_in_order(function, tasks, n_jobs=n_jobs, name="fold {}".format)
        with no_alarm_about_memory(), closing(done):
            results = list(progress(done, total=len(folds), desc="Folds", verbose=verbose))
        tables = _pool_all(results, folds, y, gene_names)
        model = _Null(null, folds, groups, by_patient)
        smoothers, null_data = None, (None, None, None)
        if null != "published":
            smoothers = make_smoothers(results, folds, X, values, groups, pass_groups)
        if null == "analytic":
            _check_analytic(smoothers)
            patients = np.arange(len(y)) if groups is None else groups
            std = analytic_std(smoothers, folds, patients, model.folds)
            null_data = NullDistribution(null, std=std), None, None
        elif null != "published":
            # Rows that are not tested have no expression on the scale of a fold.
            known = target_transformer is None or len(tested) == len(y)
            if smoothers is not None and known:
                scaled = values if target_transformer is None else tables[0].to_numpy()
                runs = smoothed_runs(smoothers, folds, scaled, orders)
            else:
                options = target_transformer, orders, n_jobs
                runs = _refitted_runs(function, shared, results, folds, *options)
            bar = progress(runs, total=len(orders), desc="Permutations", verbose=verbose)
            with no_alarm_about_memory(), closing(runs):
                null_data = model.from_runs(bar)
    criteria = {"alpha": alpha, "fdr": resolve_fdr(fdr, compat), "compat": compat, "null": null}
    rest = model, null_data, criteria, sample_names_of(X)
    with without_warnings_of_data():
        result = _gather(results, folds, tables, groups, by_patient, *rest)
    result._remember(estimator, target_transformer, X, y, groups)
    _warn_of_pooling(result.report)
    return result
