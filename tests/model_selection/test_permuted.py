"""Cross-validation with permuted patients: refitted, smoothed, and in closed form."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_pk.metrics import compare_significance, significance_report
from sklearn_pk.model_selection import _cross_val, cross_val_significance
from sklearn_pk.model_selection._permuted import with_chosen_settings
from sklearn_pk.regression import PriorKnowledgeRidge

N, N_GENES, N_PREDICTED = 60, 200, 40
SMALLEST = []
RIDGE = PriorKnowledgeRidge(prior=None, alpha=50.0)


@pytest.fixture(scope="module")
def data():
    """Return X and y, of which the first genes follow X."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(N, 15)), rng.normal(size=(N, N_GENES))
    y[:, :N_PREDICTED] += 0.7 * X @ rng.normal(size=(15, N_PREDICTED))
    return X, y


def test_published_test_is_not_calibrated_and_the_others_are(data):
    X = np.random.default_rng(5).normal(size=(N, 15))  # independent of y
    found = {}
    for null in ("published", "permutation", "empirical", "analytic"):
        result = cross_val_significance(RIDGE, X, data[1], null=null, random_state=0)
        found[null] = result.n_significant
    assert found["permutation"] == found["empirical"] == found["analytic"] == 0
    assert result.n_published >= 5
    assert np.std(result.report["r_fold"]) * np.sqrt(N) > 1.2  # theory has 1


def test_verdict_says_both_numbers(data):
    result = cross_val_significance(RIDGE, *data, null="permutation", random_state=0)
    significant = result.report["significant"]
    assert significant[:N_PREDICTED].sum() >= 30
    assert significant[N_PREDICTED:].sum() <= 4
    published = significance_report(
        result.y_true, result.predictions, result.untrained_predictions, compat="sequoia"
    )
    assert result.n_published == published["significant"].sum()
    assert result.null_r.shape == (200, N_GENES)
    assert len(result.null_counts) == 200
    assert result.verdict == (
        f"{result.n_published} by the published test (with permuted patients "
        f"{result.null_counts.mean():.0f}, 95th percentile "
        f"{np.percentile(result.null_counts, 95):.0f}); {significant.sum()} with false discoveries "
        "controlled at 5 % by permutation"
    )
    assert result.verdict in repr(result)
    comparison = compare_significance({"a": result, "b": result}, n_boot=5, random_state=0)
    assert comparison["value"][0] == result.n_significant
    assert comparison["value"][1] == pytest.approx(result.report["r_fold"].median(), abs=1e-12)
    tested = result.mean_report["null_fdr"] < 0.05
    better = result.mean_report["rmse"] < result.mean_report["rmse_baseline"]
    assert_array_equal(result.mean_report["significant"], tested & better)


@pytest.mark.parametrize("prior", [None, "eigengenes"])
def test_smoothed_runs_equal_refitted_ones(data, monkeypatch, prior):
    model = make_pipeline(StandardScaler(), PriorKnowledgeRidge(prior=prior, lambda_=0.6))
    patients = np.repeat(np.arange(24), [2] * 6 + [1] * 18)
    X = data[0][patients] + 0.1 * np.random.default_rng(0).normal(size=(30, 15))
    y = pd.DataFrame(data[1][patients])
    options = {"groups": patients, "cv": 3, "null": "empirical", "random_state": 0}
    smoothed = cross_val_significance(model, X, y, **options)
    monkeypatch.setattr(_cross_val, "make_smoothers", lambda *_: None)
    refitted = cross_val_significance(model, X, y, **options)
    # Genes are standardised over the cohort, and over the training samples of each fold.
    assert_allclose(smoothed.null_r, refitted.null_r, atol=0.02 if prior is None else 0.1)
    assert abs(smoothed.null_counts - refitted.null_counts).max() <= 5
    with parallel_config("threading"):
        again = cross_val_significance(model, X, y, n_jobs=2, **options)
    assert_array_equal(again.null_r, refitted.null_r)


def test_analytic_agrees_with_permutation(data):
    permuted = cross_val_significance(
        RIDGE, *data, null="permutation", n_permutations=50, random_state=0
    )
    analytic = cross_val_significance(RIDGE, *data, null="analytic")
    observed = np.arctanh(permuted.null_r).std()
    assert 1 <= analytic.null._std / observed < 1.06
    assert abs(analytic.n_significant - permuted.n_significant) <= 4
    with pytest.raises(ValueError, match="null='analytic' needs a model whose predictions"):
        cross_val_significance(PriorKnowledgeRidge(lambda_=0.5), *data, null="analytic")
    with pytest.raises(ValueError, match="null='analytic' needs a model whose predictions"):
        cross_val_significance(Ridge(), *data, null="analytic")
    with pytest.raises(ValueError, match="one row per patient, which compat='sequoia'"):
        cross_val_significance(
            RIDGE, *data, groups=np.arange(N) // 2, compat="sequoia", null="analytic"
        )
    with pytest.raises(ValueError, match="folds with at least 4 test patients"):
        cross_val_significance(RIDGE, *data, cv=KFold(20), null="analytic")
    with pytest.raises(ValueError, match=r"n_permutations >= 20, .* got 5"):
        cross_val_significance(RIDGE, *data, null="permutation", n_permutations=5)


def test_steps_that_learn_from_expression_are_fitted_anew(data, monkeypatch):
    def refuse(*_):
        raise AssertionError("smoothed")

    monkeypatch.setattr(_cross_val, "smoothed_runs", refuse)
    first = FunctionTransformer(lambda y: np.asarray(y)[:, 0])

    def score(X, y):
        return f_regression(X, first.transform(y))

    model = make_pipeline(SelectKBest(score, k=5), RIDGE)
    X, y = data
    result = cross_val_significance(model, X, y, null="empirical", random_state=0)
    assert result.null_r.shape == (3, N_GENES)
    # The rows that are not tested have no expression on the scale of a fold.
    cv = [(np.arange(30, 60), np.arange(15)), (np.arange(30, 60), np.arange(15, 30))]
    options = {"cv": cv, "target_transformer": StandardScaler(), "null": "empirical"}
    assert cross_val_significance(RIDGE, X, y, **options).null_r.shape == (3, N_GENES)


def test_permuted_runs_keep_the_settings_that_a_search_chose(data):
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 1e5]}).fit(*data)
    assert with_chosen_settings(search).alpha == search.best_params_["alpha"]
    nested = make_pipeline(StandardScaler(), search)
    nested.fit(*data)
    kept = with_chosen_settings(nested)
    assert kept[-1].alpha == search.best_params_["alpha"]
    model = PriorKnowledgeRidge(prior=None).fit(*data)
    assert with_chosen_settings(model).alpha == model.alpha_


class Broken(RegressorMixin, BaseEstimator):
    """Predict NaN for one gene if the first patient has got the expression of another one."""

    def fit(self, X, y):
        """Store whether y is permuted."""
        self.ridge_, self.first_ = Ridge().fit(X, y), y[X[:, 0].argmin()]
        return self

    def predict(self, X):
        """Predict."""
        predicted = self.ridge_.predict(X)
        if self.first_[0] != SMALLEST[0]:
            predicted[:, 3] = np.nan
        return predicted


def test_nan_in_a_permuted_run_is_an_error(data):
    X, y = data
    X = np.column_stack([np.arange(N), X])
    SMALLEST[:] = [y[0, 0]]
    folds = [(np.r_[:20, 40:60], np.arange(20, 40)), (np.arange(40), np.arange(40, 60))]
    assert cross_val_significance(Broken(), X, y, cv=folds).null is None
    with pytest.raises(ValueError, match="permuted patients contain NaN .* in 1 of 200 genes"):
        cross_val_significance(Broken(), X, y, cv=folds, null="empirical", random_state=0)
