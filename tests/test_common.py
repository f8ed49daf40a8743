"""Checks of scikit-learn on every estimator whose X is a table."""

# SPDX-License-Identifier: BSD-3-Clause

from collections import Counter

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.utils import all_estimators

# The least training that reaches the score that the checks of scikit-learn require.
TRAINING = {"max_epochs": 8, "lr": 2e-2, "embed_dim": 32, "random_state": 0}
ARGUMENTS = {
    "BagPooler": {},
    "CoexpressionGraph": {},
    "EigengeneEmbedder": {"n_components": 2, "random_state": 0},
    "NMFGeneEmbedder": {"n_components": 2, "random_state": 0},
    "PriorKnowledgeRegressor": TRAINING,
    "PriorKnowledgeRegressorCV": {
        "estimator": PriorKnowledgeRegressor(**TRAINING),
        "lambdas": [0.5],
        "cv": 2,
    },
    "PriorKnowledgeRidge": {"lambda_": [0, 0.5], "alpha": [1.0, 10.0]},
    "SuperTileClusterer": {"n_clusters": 4, "random_state": 0},
}

# Their X is a list of slides, so scikit-learn skips its checks; test_slide_estimators.py has ours.
SLIDE_ESTIMATORS = {"FoundationFeaturizer", "SlideTiler"}

# Estimator -> check -> reason, and the check that replaces it.
EXPECTED_FAILURES = {}

# Lower bounds of collected checks; scikit-learn 1.9 has 47, 46, 47, 49, 53, 53, 54 and 47.
N_CHECKS = {
    "BagPooler": 43,
    "CoexpressionGraph": 42,
    "EigengeneEmbedder": 42,
    "NMFGeneEmbedder": 44,
    "PriorKnowledgeRegressor": 48,
    "PriorKnowledgeRegressorCV": 48,
    "PriorKnowledgeRidge": 48,
    "SuperTileClusterer": 43,
}

TABLE_ESTIMATORS = [
    estimator(**ARGUMENTS[name])
    for name, estimator in all_estimators()
    if name not in SLIDE_ESTIMATORS
]


def expected_failures(estimator):
    """Return the checks that an estimator may fail, with reasons."""
    return EXPECTED_FAILURES.get(type(estimator).__name__, {})


@parametrize_with_checks(TABLE_ESTIMATORS, expected_failed_checks=expected_failures)
def test_scikit_learn_check(estimator, check):
    check(estimator)


def test_every_estimator_is_checked():
    names = {name for name, _ in all_estimators()}
    assert names == set(ARGUMENTS) | SLIDE_ESTIMATORS


@pytest.mark.parametrize("estimator", TABLE_ESTIMATORS, ids=lambda each: type(each).__name__)
def test_number_of_checks(estimator):
    checks = Counter(
        getattr(check, "func", check).__name__
        for _, check in estimator_checks_generator(estimator, legacy=True)
    )
    assert checks.total() >= N_CHECKS[type(estimator).__name__]
    assert set(expected_failures(estimator)) <= set(checks)
