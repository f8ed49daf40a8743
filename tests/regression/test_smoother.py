"""Predictions from permuted expression equal those of a ridge that is fitted to it."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_pk.regression import PriorKnowledgeRidge

EMBEDDINGS = np.random.default_rng(3).normal(size=(90, 4))


@pytest.mark.parametrize("n_slides", [1, 2])
@pytest.mark.parametrize(
    "parameters",
    [
        {"prior": None},
        {"lambda_": 0.8},
        {"lambda_": 0.8, "n_components": 5, "kernel": "linear"},
        {"prior": EMBEDDINGS, "lambda_": 0.5},
    ],
)
def test_smoother_equals_a_fit(parameters, n_slides):
    rng = np.random.default_rng(0)
    programs = rng.normal(size=(50, 3))
    X = programs @ rng.normal(size=(3, 12)) + rng.normal(size=(50, 12))
    y = programs @ rng.normal(size=(3, 90)) + 2 * rng.normal(size=(50, 90))
    patients = np.arange(40) // n_slides
    y = y[:40][patients]
    model = PriorKnowledgeRidge(**parameters).fit(X[:40], y, groups=patients)
    smoother = model._held_out_smoother(X[40:], patients)
    assert smoother.is_fixed == (parameters.get("prior", "") is None)
    for values in (y, y[rng.permutation(40 // n_slides)[patients] * n_slides]):
        settings = {"lambda_": model.lambda_best_, "alpha": model.alpha_}
        fitted = PriorKnowledgeRidge(**(parameters | settings)).fit(X[:40], values, groups=patients)
        Z = (values - fitted.y_mean_) / fitted.y_scale_
        predicted = smoother.predict(Z, Z @ Z.T) * fitted.y_scale_ + fitted.y_mean_
        assert_allclose(predicted, fitted.predict(X[40:]), rtol=1e-8, atol=1e-8)


def test_chosen_settings_give_the_same_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 90))
    model = PriorKnowledgeRidge(prior=[EMBEDDINGS, None]).fit(X, y)
    again = PriorKnowledgeRidge(**model._chosen_settings()).fit(X, y)
    assert_allclose(again.dual_coef_, model.dual_coef_)
    assert model._held_out_smoother(X, np.arange(30)) is None  # a list of priors is refitted
