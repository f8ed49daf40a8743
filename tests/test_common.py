"""scikit-learn's own checks on every estimator whose X is a table."""

# SPDX-License-Identifier: BSD-3-Clause

from collections import Counter

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.utils import all_estimators

# Small enough that some 50 fits of each take seconds.
ARGUMENTS = {
    "CoexpressionGraph": {},
    "EigengeneEmbedder": {"n_components": 2, "random_state": 0},
    "NMFGeneEmbedder": {"n_components": 2, "random_state": 0},
    "PriorKnowledgeRegressor": {"max_epochs": 20, "lr": 1e-2, "random_state": 0},
    "PriorKnowledgeRegressorCV": {
        "estimator": PriorKnowledgeRegressor(max_epochs=20, lr=1e-2, random_state=0),
        "lambdas": [0.5],
        "cv": 2,
    },
    "SuperTileClusterer": {"n_clusters": 4, "random_state": 0},
}

# X of these is a list of slides, which most checks of scikit-learn cannot make; ours, which replace
# them, are in test_slide_estimators.py.
SLIDE_ESTIMATORS = {"FoundationFeaturizer", "SlideTiler"}

# Estimator -> check -> the reason, and the check that replaces it.
EXPECTED_FAILURES = {}

# The fewest checks that may be collected; scikit-learn 1.9 has 46, 47, 49, 53, 53 and 47.
N_CHECKS = {
    "CoexpressionGraph": 42,
    "EigengeneEmbedder": 42,
    "NMFGeneEmbedder": 44,
    "PriorKnowledgeRegressor": 48,
    "PriorKnowledgeRegressorCV": 48,
    "SuperTileClusterer": 43,
}

TABLE_ESTIMATORS = [
    estimator(**ARGUMENTS[name])
    for name, estimator in all_estimators()
    if name not in SLIDE_ESTIMATORS
]


def expected_failures(estimator):
    """Return the failing checks of an estimator with their reasons."""
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
