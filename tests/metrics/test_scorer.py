"""The scorer in searches, pipelines and parallel workers, with metadata routing on and off."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn import config_context
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin, clone
from sklearn.datasets import make_regression
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_pk.metrics import (
    _scorer,
    make_significance_scorer,
    significance_report,
    significance_scorer,
)


class BaselineRidge(RegressorMixin, BaseEstimator):
    """Ridge with an untrained baseline: a random projection of the features."""

    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def fit(self, X, y):
        """Fit the ridge and draw the projection."""
        self.ridge_ = Ridge(alpha=self.alpha).fit(X, y)
        shape = np.shape(self.ridge_.coef_.T)
        self.projection_ = np.random.default_rng(0).normal(size=shape)
        return self

    def predict(self, X):
        """Predict."""
        return self.ridge_.predict(X)

    def predict_untrained(self, X):
        """Predict with the untrained baseline."""
        return X @ self.projection_


class CountingScaler(TransformerMixin, BaseEstimator):
    """Count transformations of X, since featurising slides twice would take hours."""

    def fit(self, X, y=None):
        """Count from 0."""
        self.calls_ = 0
        return self

    def transform(self, X):
        """Count and double."""
        self.calls_ += 1
        return 2 * X


def half_of_truth(estimator, X, y):
    """Return a baseline that depends on the truth."""
    return np.asarray(y) * 0.5


@pytest.fixture
def data():
    """Return 90 samples of 6 features and 8 genes, a few of them noise."""
    X, y = make_regression(90, 6, n_targets=8, noise=5.0, random_state=0)
    rng = np.random.default_rng(0)
    y[:, 5:] = rng.normal(size=(90, 3))
    return X, y


def test_scorer_counts_the_genes_of_the_report(data):
    X, y = data
    model = BaselineRidge().fit(X[:60], y[:60])
    report = significance_report(
        y[60:], model.predict(X[60:]), model.predict_untrained(X[60:]), alpha=0.01, fdr=0.1
    )
    scorer = make_significance_scorer(alpha=0.01, fdr=0.1)
    score = scorer(model, X[60:], y[60:])
    assert type(score) is float
    assert score == report["significant"].sum()
    assert 0 < score <= 8
    fraction = make_significance_scorer(alpha=0.01, fdr=0.1, normalize=True)
    assert_allclose(fraction(model, X[60:], y[60:]), score / 8)
    frame = pd.DataFrame(y[60:], columns=list("abcdefgh"))
    assert scorer(model, X[60:], frame) == score


def test_alpha_and_fdr_change_the_count():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6))
    y = X @ rng.normal(size=(6, 200)) + rng.uniform(2, 40, size=200) * rng.normal(size=(60, 200))
    model = BaselineRidge().fit(X[:30], y[:30])
    tables = (y[30:], model.predict(X[30:]), model.predict_untrained(X[30:]))
    counts = []
    for criteria in ({}, {"alpha": 1e-3}, {"fdr": 1e-3}):
        expected = significance_report(*tables, **criteria)["significant"].sum()
        assert make_significance_scorer(**criteria)(model, X[30:], y[30:]) == expected
        counts.append(expected)
    assert counts[0] > max(counts[1:]) > 0


def test_scorer_transforms_once_through_pipelines_and_searches(data):
    X, y = data
    pipeline = make_pipeline(CountingScaler(), make_pipeline(StandardScaler(), BaselineRidge()))
    pipeline.fit(X, y)
    calls = pipeline[0].calls_
    score = significance_scorer(pipeline, X, y)
    assert pipeline[0].calls_ == calls + 1
    search = GridSearchCV(pipeline, {"pipeline__baselineridge__alpha": [1.0]}, cv=3)
    search.fit(X, y)
    assert significance_scorer(search, X, y) == score
    assert significance_scorer(Pipeline([("only", BaselineRidge())]).fit(X, y), X, y) > 0


def test_regressor_without_untrained_baseline_warns_once(data, monkeypatch):
    monkeypatch.setattr(_scorer, "_warned", set())
    X, y = data
    ridge = Ridge().fit(X[:60], y[:60])
    with pytest.warns(UserWarning, match="Ridge has no predict_untrained"):
        score = significance_scorer(ridge, X[60:], y[60:])
    expected = significance_report(y[60:], ridge.predict(X[60:]), None)["significant"].sum()
    assert score == expected > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert significance_scorer(ridge, X[60:], y[60:]) == score
        assert make_significance_scorer(baseline="mean")(ridge, X[60:], y[60:]) == score


def test_callable_baseline(data):
    X, y = data
    model = Ridge().fit(X, y)
    scorer = make_significance_scorer(baseline=half_of_truth)
    expected = significance_report(y, model.predict(X), y * 0.5)["significant"].sum()
    assert scorer(model, X, y) == expected


def test_one_gene_and_few_samples(data):
    X, y = data
    model = BaselineRidge().fit(X, y[:, 0])
    assert significance_scorer(model, X, y[:, 0]) == 1.0
    few = significance_report(y[:4, 0], model.predict(X[:4]), model.predict_untrained(X[:4]))
    assert significance_scorer(model, X[:4], y[:4, 0]) == few["significant"].sum()
    with pytest.raises(ValueError, match="at least 4 samples, got n = 3"):
        significance_scorer(model, X[:3], y[:3, 0])


def test_scorer_is_picklable_cloneable_and_readable(data):
    X, y = data
    scorer = make_significance_scorer(alpha=0.01, baseline="mean", normalize=True)
    text = "make_significance_scorer(alpha=0.01, fdr=0.05, baseline='mean', normalize=True)"
    assert repr(scorer) == text
    copied = pickle.loads(pickle.dumps(scorer))
    assert repr(copied) == text
    search = clone(GridSearchCV(Ridge(), {"alpha": [1.0]}, scoring=scorer, cv=3))
    assert repr(search.scoring) == text
    assert 0 < search.fit(X, y).best_score_ <= 1


@pytest.mark.parametrize("routing", [False, True])
def test_scorer_in_searches_and_cross_validate(data, routing):
    X, y = data
    groups = np.arange(90) // 2
    pipeline = make_pipeline(StandardScaler(), BaselineRidge())
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            pipeline,
            {"baselineridge__alpha": [1e-3, 1e6]},
            scoring=significance_scorer,
            cv=GroupKFold(3),
            error_score="raise",
        ).fit(X, y, groups=groups)
        params = {"params": {"groups": groups}} if routing else {"groups": groups}
        scores = cross_validate(
            pipeline,
            X,
            y,
            cv=GroupKFold(3),
            scoring={
                "n": significance_scorer,
                "fraction": make_significance_scorer(normalize=True),
                "r2": "r2",
            },
            error_score="raise",
            **params,
        )
        single = cross_val_score(
            pipeline, X, y, cv=GroupKFold(3), scoring=significance_scorer, **params
        )
    assert search.best_params_ == {"baselineridge__alpha": 1e-3}
    assert_allclose(scores["test_fraction"] * 8, scores["test_n"])
    assert_allclose(single, scores["test_n"])
    assert (scores["test_n"] > 0).all()


def test_scorer_in_worker_processes(data):
    X, y = data
    scorer = make_significance_scorer(baseline="mean")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": [1.0, 1e6]},
        scoring=scorer,
        cv=3,
        error_score="raise",
    )
    sequential = clone(search).fit(X, y).cv_results_["mean_test_score"]
    parallel = clone(search).set_params(n_jobs=2).fit(X, y).cv_results_["mean_test_score"]
    assert_allclose(sequential, parallel)


class NamedRidge(BaselineRidge):
    """A regressor with gene names."""

    def fit(self, X, y):
        """Fit and store the names."""
        self.gene_names_out_ = np.asarray(y.columns, dtype=object)
        return super().fit(X, y.to_numpy())


def test_names_of_genes_and_samples_are_compared(data):
    X, y = data
    names = [f"S{row}" for row in range(90)]
    X, y = pd.DataFrame(X, index=names), pd.DataFrame(y, names, list("abcdefgh"))
    model = make_pipeline(StandardScaler(), NamedRidge())
    search = GridSearchCV(model, {"namedridge__alpha": [1.0]}, cv=3, scoring=significance_scorer)
    search.fit(X, y)
    assert significance_scorer(search, X, y) > 0
    with pytest.raises(ValueError, match="other genes than in fit, or another order: 'h', 'g'"):
        significance_scorer(search, X, y[y.columns[::-1]])
    with pytest.raises(ValueError, match="y has 7 genes, but fit had 8"):
        significance_scorer(search, X, y.iloc[:, :-1])
    with pytest.raises(ValueError, match="do not belong to the samples of X.*'S0'.*'S89'"):
        significance_scorer(search, X, y[::-1])
    assert significance_scorer(search, X.to_numpy(), y.to_numpy()) > 0
    one = NamedRidge().fit(X.to_numpy(), y[["a"]])
    assert significance_scorer(one, X.to_numpy(), y["a"].rename("log2 TPM")) == 1


def test_invalid_parameters():
    with pytest.raises(ValueError, match="'baseline' parameter"):
        make_significance_scorer(baseline="zero")
    with pytest.raises(ValueError, match="'fdr' parameter"):
        make_significance_scorer(fdr=2)
