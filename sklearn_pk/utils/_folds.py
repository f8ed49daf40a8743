"""Cross-validation folds that keep patients together and test each sample at most once."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from numbers import Integral

import numpy as np
from sklearn.model_selection import GroupKFold, check_cv

from ._patients import infer_groups, is_varied
from ._reporting import warn_user, without_warnings_of_data
from ._validation import name_some

_DEFAULT_FOLDS = 5


def _check_enough(n_splits, n_samples, groups):
    if not isinstance(n_splits, Integral):
        return
    n_units = n_samples if groups is None else len(np.unique(groups))
    what = "samples" if groups is None else "patients"
    if n_units < n_splits:
        fewer = f"Use at most {n_units} folds (cv={n_units}) or add" if n_units > 1 else "Add"
        raise ValueError(
            f"{n_splits} folds need at least {n_splits} {what}, got {n_units} {what} "
            f"(n_samples={n_samples}). {fewer} {what}."
        )


def _check_not_empty(folds):
    if not folds:
        raise ValueError("cv has no folds.")
    for number, parts in enumerate(folds):
        for name, part in zip(("training", "test"), parts, strict=True):
            if not len(part):
                raise ValueError(f"Fold {number} of cv has no {name} samples.")


def _check_leaks(folds, n_samples, groups):
    times_tested = np.zeros(n_samples, dtype=int)
    for number, (train, test) in enumerate(folds):
        times_tested[test] += 1
        units = np.arange(n_samples) if groups is None else groups
        shared = np.intersect1d(units[train], units[test])
        if shared.size:
            what = "sample" if groups is None else "patient"
            raise ValueError(
                f"Fold {number} of cv has {shared.size} {what}(s) in both its training and its "
                f"test part: {name_some(shared)}. Use a splitter that keeps groups together, "
                "such as GroupKFold."
            )
    return times_tested


def _check_tested_once(times_tested):
    repeated = np.flatnonzero(times_tested > 1)
    if repeated.size:
        raise ValueError(
            f"cv holds {repeated.size} samples out more than once (rows {name_some(repeated)}), "
            "so the folds cannot be pooled. Use a splitter whose test parts do not overlap, "
            "such as KFold or GroupKFold."
        )


def warn_of_repeats(folds, values, groups):
    """Warn if folds separate samples of identical expression, slides of the same patient."""
    units = infer_groups(values)
    counted = np.ones(len(values), dtype=bool) if groups is None else is_varied(values)
    n_split = sum((np.isin(units[b], units[a]) & counted[b]).sum() for a, b in folds)
    if n_split:
        advice = (
            "Pass groups=, the patient of each sample, to cross_val_significance."
            if groups is None
            else "By groups, they are different patients: correct groups, or y."
        )
        warn_user(
            f"{n_split} held-out samples have the same expression as a training sample, as slides "
            f"of the same patient do, so the result is too good. {advice}"
        )


def make_folds(cv, X, y, groups, *, pooled=True):
    """Return a list of train and test indices, checked for leaks."""
    n_samples = len(y)
    if cv is None or isinstance(cv, Integral):
        n_splits = _DEFAULT_FOLDS if cv is None else int(cv)
        _check_enough(n_splits, n_samples, groups)
        cv = check_cv(n_splits) if groups is None else GroupKFold(n_splits)
    else:
        _check_enough(getattr(cv, "n_splits", None), n_samples, groups)
        cv = check_cv(cv)
    with warnings.catch_warnings():
        # KFold warns that it ignores groups; leaks are checked below.
        warnings.filterwarnings("ignore", message="The groups parameter is ignored")
        with without_warnings_of_data():
            folds = [(np.asarray(a), np.asarray(b)) for a, b in cv.split(X, y, groups)]
    folds = [
        tuple(np.flatnonzero(part) if part.dtype == bool else part for part in fold)
        for fold in folds
    ]
    _check_not_empty(folds)
    n_times_tested = _check_leaks(folds, n_samples, groups)
    if pooled:
        _check_tested_once(n_times_tested)
    return folds
