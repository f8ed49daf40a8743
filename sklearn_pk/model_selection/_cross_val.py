"""Significantly predicted genes over all folds of a cross-validation."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from contextlib import closing
from numbers import Integral

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.base import clone
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import HasMethods, InvalidParameterError, validate_params
from sklearn.utils.metadata_routing import get_routing_for_object

from ..metrics import significance_report
from ..metrics._scorer import predict_with_untrained
from ..metrics._significance import CRITERIA, FEWEST_SAMPLES
from ..utils import check_expression, check_groups
from ..utils._folds import make_folds, warn_of_repeats
from ..utils._parallel import count_jobs, map_in_order, no_alarm_about_memory, restore, share
from ..utils._patients import PatientAverager
from ..utils._reporting import progress
from ..utils._validation import check_sample_names
from ._result import CrossValSignificance, as_table


def takes_groups(estimator):
    """Return whether ``fit`` of an estimator, pipeline or search uses `groups`."""
    try:
        return bool(get_routing_for_object(estimator).consumes("fit", ["groups"]))
    except NotImplementedError:  # a meta-estimator without metadata routing
        return False


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


def _take(values, rows, y, is_1d):
    """Return some rows of the expression in the type of y."""
    values = values[rows]
    if isinstance(y, pd.DataFrame):
        return pd.DataFrame(values, index=y.index[rows], columns=y.columns)
    if isinstance(y, pd.Series):
        return pd.Series(values[:, 0], index=y.index[rows], name=y.name)
    return values[:, 0] if is_1d else values


def _scale(transformer, values, groups, train):
    """Transform the expression with a transformer fitted on the training patients."""
    if transformer is None:
        return values, None
    training = values[train]
    if groups is not None:
        training = PatientAverager(groups[train]) @ training
    transformer = clone(transformer).fit(training)
    return np.asarray(transformer.transform(values)), transformer


def _fit_and_predict(X, y, values, is_1d, groups, pass_groups, estimator, transformer, fold):
    train, test = fold
    scaled, transformer = _scale(transformer, values, groups, train)
    fit_params = {"groups": groups[train]} if pass_groups else {}
    start = time.perf_counter()
    estimator.fit(_safe_indexing(X, train), _take(scaled, train, y, is_1d), **fit_params)
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


def _shared_input(X, n_jobs):
    """Return the function that runs a fold, and its arguments for X."""
    if isinstance(X, list | tuple) and count_jobs(n_jobs) > 1:
        return _restore_and_fit, share(X)
    return _fit_and_predict, (X,)


def _describe_fold(number, fold, result, groups, **criteria):
    train, test = fold
    n_significant = median_r = np.nan
    if len(test) >= FEWEST_SAMPLES:
        report = significance_report(
            result["y_true"], result["prediction"], result["untrained"], **criteria
        )
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


def _gather(results, folds, y, gene_names, groups, criteria):
    truth, prediction, untrained = (
        _pool(results, key, folds, y, gene_names) for key in ("y_true", "prediction", "untrained")
    )
    patients = None
    if groups is not None:
        tested = np.sort(np.concatenate([test for _, test in folds]))
        patients = pd.Series(groups[tested], index=truth.index, name="patient")
    return CrossValSignificance(
        report=significance_report(truth, prediction, untrained, **criteria),
        mean_report=significance_report(truth, prediction, None, **criteria),
        predictions=prediction,
        untrained_predictions=untrained,
        y_true=truth,
        folds=pd.DataFrame(
            _describe_fold(number, fold, result, groups, **criteria)
            for number, (fold, result) in enumerate(zip(folds, results, strict=True))
        ),
        estimators=[result["estimator"] for result in results],
        target_transformers=[result["transformer"] for result in results],
        test_indices=[test for _, test in folds],
        groups=patients,
        criteria=criteria,
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
    fdr=0.2,
    compat=None,
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
    fdr : float, default=0.2
        Level for the corrected p-values.
    compat : {"sequoia"} or None, default=None
        Which p-value of Steiger's test is corrected.
    n_jobs : int, default=None
        Number of folds to run in parallel, as in joblib; 1 uses this process, even on a cluster.
        The result does not depend on it.
    verbose : int, default=0
        Whether to show a progress bar on terminals.

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
    RuntimeError
        If the worker of a fold is killed in each attempt.

    See Also
    --------
    sklearn_pk.metrics.make_significance_scorer : The count in one fold, for searches.
    patient_ids : Patients from TCGA barcodes.

    Notes
    -----
    As published, n of the tests is the number of samples. ``report_by_patient`` of the result
    tests one row per patient.

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
    groups = None if groups is None else check_groups(groups, y)
    folds = make_folds(cv, X, y, groups)
    if groups is None:
        warn_of_repeats(folds, values)
    n_tested = sum(len(test) for _, test in folds)
    if n_tested < FEWEST_SAMPLES:
        raise ValueError(
            f"Significance needs at least {FEWEST_SAMPLES} held-out samples, got {n_tested}."
        )
    with config_context(enable_metadata_routing=True):
        pass_groups = groups is not None and takes_groups(estimator)
        function, shared = _shared_input(X, n_jobs)
        shared = (*shared, y, values, is_1d, groups, pass_groups)
        tasks = [(*shared, clone(estimator), target_transformer, fold) for fold in folds]
        done = map_in_order(function, tasks, n_jobs=n_jobs, name="fold {}".format)
        with no_alarm_about_memory(), closing(done):
            results = list(progress(done, total=len(folds), desc="Folds", verbose=verbose))
    criteria = {"alpha": alpha, "fdr": fdr, "compat": compat}
    if gene_names is None and isinstance(y, pd.DataFrame):
        gene_names = y.columns
    return _gather(results, folds, y, gene_names, groups, criteria)
