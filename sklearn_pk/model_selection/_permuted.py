"""Predictions of a cross-validation with permuted patients, for models that need no refit."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, gen_batches, get_tags

from ..utils._patients import PatientAverager, infer_groups
from ..utils._pipelines import last_estimator

_BLOCK = 4096  # genes
# Where the transformers are that ignore y; others are fitted for each permutation.
_WITHOUT_Y = (
    "sklearn_pk.",
    "sklearn.preprocessing",
    "sklearn.decomposition",
    "sklearn.impute",
    "sklearn.random_projection",
    "sklearn.kernel_approximation",
)


def with_chosen_settings(fitted):
    """
    Return an unfitted clone with the settings that a search or a ridge chose.

    Chosen anew without any signal, they would be those of a model that predicts the mean.
    """
    if hasattr(fitted, "best_estimator_"):
        return with_chosen_settings(fitted.best_estimator_)
    model = clone(fitted)
    if isinstance(fitted, Pipeline):
        name, last = fitted.steps[-1]
        return model.set_params(**{name: with_chosen_settings(last)})
    chosen = getattr(fitted, "_chosen_settings", None)
    return model if chosen is None else model.set_params(**chosen())


def _best(fitted):
    while hasattr(fitted, "best_estimator_"):
        fitted = fitted.best_estimator_
    return fitted


def _may_learn_from_y(fitted):
    """Return whether a step before the regressor may learn from the expression."""
    fitted = _best(fitted)
    if not isinstance(fitted, Pipeline):
        return False
    steps = [step for _, step in fitted.steps[:-1] if hasattr(step, "fit")]
    return any(
        not type(step).__module__.startswith(_WITHOUT_Y) or get_tags(step).target_tags.required
        for step in steps
    ) or _may_learn_from_y(fitted[-1])


def _last_input(fitted, X):
    """Transform X by all steps before the regressor."""
    fitted = _best(fitted)
    if not isinstance(fitted, Pipeline):
        return X
    X = fitted[:-1].transform(X) if len(fitted.steps) > 1 else X
    return _last_input(fitted[-1], X)


def make_smoothers(results, folds, X, values, groups, pass_groups):
    """Return the smoother of the model of each fold, or None if one has none."""
    models = [last_estimator(result["estimator"]) for result in results]
    if not all(hasattr(model, "_held_out_smoother") for model in models):
        return None
    if any(_may_learn_from_y(result["estimator"]) for result in results):
        return None
    smoothers = []
    for model, result, (train, test) in zip(models, results, folds, strict=True):
        X_test = _last_input(result["estimator"], _safe_indexing(X, test))
        patients = groups[train] if pass_groups else infer_groups(values[train])
        smoother = model._held_out_smoother(X_test, patients)
        if smoother is None:
            return None
        smoothers.append(smoother)
    return smoothers


def _standardize(values):
    """Return standardised genes in float32; constant ones are 0."""
    Z = np.empty(values.shape, dtype=np.float32)
    for genes in gen_batches(values.shape[1], _BLOCK):
        block = values[:, genes].astype(np.float64)
        varies = np.ptp(block, axis=0) > 0
        block -= block.mean(axis=0)
        block *= np.divide(1, block.std(axis=0), out=np.zeros(len(varies)), where=varies)
        Z[:, genes] = block
    return Z


def _gram(Z):
    gram = np.zeros((len(Z), len(Z)))
    for genes in gen_batches(Z.shape[1], _BLOCK):
        gram += Z[:, genes] @ Z[:, genes].T
    return gram


def smoothed_runs(smoothers, folds, values, orders):
    """
    Yield truth, predictions and training means of each permuted run, genes standardised.

    The next run overwrites the tables.
    """
    Z = _standardize(values)
    gram = _gram(Z)
    permuted, predicted, means = (np.zeros_like(Z) for _ in range(3))
    tested = np.sort(np.concatenate([test for _, test in folds]))
    # A slice does not copy.
    tested = slice(None) if len(tested) == len(Z) else tested
    for order in orders:
        np.take(Z, order, axis=0, out=permuted)
        inner = gram[np.ix_(order, order)]
        for smoother, (train, test) in zip(smoothers, folds, strict=True):
            training = permuted[train]
            predicted[test] = smoother.predict(training, inner[np.ix_(train, train)])
            means[test] = training.mean(axis=0)
        yield permuted[tested], predicted[tested], means[tested]


def analytic_std(smoothers, folds, groups, within):
    """
    Return the standard deviation of the mean of Fisher's z of each fold for permuted patients.

    The correlation in a fold is a bilinear form of its own patients and those of the other folds,
    in which a pair of patients from two folds occurs in both.
    """
    patients, codes = np.unique(groups, return_inverse=True)
    forms, tested, sizes = [], [], []
    for smoother, (train, test) in zip(smoothers, folds, strict=True):
        averager = PatientAverager(codes[test])
        # Slides of a patient have the expression of the patient.
        weights = np.zeros((len(averager.patients), len(patients)))
        np.add.at(weights.T, codes[train], (averager @ smoother.ridge).T)
        form = weights - weights.mean(axis=0)
        forms.append(form / (np.linalg.norm(form) or 1.0))
        tested.append(averager.patients)
        sizes.append(max(len(averager.patients) - 3, 0))
    if len(within.rows) != np.count_nonzero(sizes):
        raise ValueError(
            "null='analytic' needs folds with at least 4 test patients each. Use "
            "null='permutation'."
        )
    variance = float(sum(sizes))
    for f, (form, own) in enumerate(zip(forms, tested, strict=True)):
        for g, (other_form, other) in enumerate(zip(forms, tested, strict=True)):
            if f != g:
                shared = np.sum(form[:, other] * other_form[:, own].T)
                variance += np.sqrt(sizes[f] * sizes[g]) * shared
    return np.sqrt(max(variance, 0.0)) / max(sum(sizes), 1)
