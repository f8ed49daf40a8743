"""A prior compared with none and with controls, on the same folds and seeds."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from numpy.testing import assert_array_equal
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, RandomizedSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_pk.metrics import compare_significance
from sklearn_pk.model_selection import PriorGainTable, cross_val_significance, prior_gain
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV

N, N_GENES = 48, 12
GENES = [f"G{gene:02d}" for gene in range(N_GENES)]
MODEL = {"max_epochs": 4, "lr": 1e-2, "lambda_": 0.5}


@pytest.fixture
def data():
    """Return X, y in two modules of genes, and 16 patients of 3 samples."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 6))
    modules = X[:, :2] @ np.repeat(np.eye(2), N_GENES // 2, axis=1)
    names = [f"S{row}" for row in range(N)]
    y = pd.DataFrame(8 + modules + 1.2 * rng.normal(size=(N, N_GENES)), names, GENES)
    return X, y, np.array([f"P{row // 3:02d}" for row in range(N)])


class RecordingRegressor(PriorKnowledgeRegressor):
    """Record seed, embeddings and samples of each fit in a class attribute."""

    fits = []  # noqa: RUF012

    def fit(self, X, y, groups=None):
        """Fit and record."""
        super().fit(X, y, groups=groups)
        self.fits.append(
            (self.random_state, None if self.embeddings_ is None else self.embeddings_, y.index)
        )
        return self


@pytest.fixture
def recorded():
    """Return an empty list of recorded fits."""
    RecordingRegressor.fits = []
    return RecordingRegressor.fits


def graph_prior():
    return make_pipeline(CoexpressionGraph(threshold=0.3), NMFGeneEmbedder(3, random_state=0))


def test_settings_have_the_same_folds_and_seeds(data, recorded):
    X, y, patients = data
    model = RecordingRegressor(prior=graph_prior(), **MODEL)
    table = prior_gain(model, X, y, groups=patients, cv=2, n_seeds=2, random_state=0)
    settings = ["none", "prior", "zero", "shuffled", "rewired"]
    assert table["setting"].tolist() == list(np.repeat(settings, 2))
    seeds = table["seed"][:2].tolist()
    assert len(set(seeds)) == 2
    assert table["seed"].tolist() == seeds * 5
    assert (table["fit_time"] > 0).all()
    assert len(recorded) == 20
    # The order of runs: by seed, by setting with the prior first, by fold.
    found = iter(recorded)
    for seed in seeds:
        order = ["prior", "none", *settings[2:]]
        runs = {setting: [next(found) for _ in range(2)] for setting in order}
        for setting in settings:
            for fold in range(2):
                random_state, _, rows = runs[setting][fold]
                assert random_state == seed
                assert rows.equals(runs["none"][fold][2])
        for fold in range(2):
            embeddings = {setting: runs[setting][fold][1] for setting in settings}
            own = embeddings["prior"]
            assert embeddings["none"] is None
            assert own.any()
            assert embeddings["zero"].shape == own.shape
            assert not embeddings["zero"].any()
            assert not np.array_equal(embeddings["shuffled"], own)
            assert_array_equal(sorted(map(tuple, embeddings["shuffled"])), sorted(map(tuple, own)))
            assert embeddings["rewired"].shape == own.shape
            assert not np.array_equal(embeddings["rewired"], own)


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({"none": 50, "zero": 30, "shuffled": 20}, "The gain is knowledge: no control reaches it."),
        ({"none": 50, "zero": 0, "shuffled": 20}, "gain is knowledge: zeros may reach it."),
        ({"none": -9, "zero": 30, "shuffled": 20}, "No evidence of a gain over no prior."),
    ],
)
def test_summary_says_whether_the_gain_is_knowledge(gains, words):
    noise = {"prior": 0, "none": [0, 2, -1], "zero": [1, 0, -1], "shuffled": [0, 1, 2]}
    table = PriorGainTable(
        {
            "setting": np.repeat(list(noise), 3),
            "seed": [7, 8, 9] * 4,
            "n_significant_mean": np.concatenate(
                [200 - gains.get(name, 0) + np.zeros(3) + added for name, added in noise.items()]
            ),
        }
    )
    lines = table.summary().splitlines()
    assert words in lines[-2]
    difference = gains["shuffled"] - np.array([0, 1, 2])
    low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    assert lines[2] == (
        f"prior over shuffled genes: {difference.mean():+.0f} genes [{low:.0f}, {high:.0f}]"
    )
    with pytest.raises(ValueError, match="One seed has no interval"):
        PriorGainTable(table[table["seed"] == 7]).summary()
    with pytest.raises(ValueError, match="Without controls"):
        PriorGainTable(table[table["setting"].isin(["prior", "none"])]).summary()


def test_prior_and_none_equal_cross_val_significance(data):
    X, y, patients = data
    model = make_pipeline(StandardScaler(), PriorKnowledgeRegressor(prior=graph_prior(), **MODEL))
    folds = KFold(3, shuffle=True, random_state=0)
    options = {"target_transformer": StandardScaler(), "alpha": 0.01, "fdr": 0.1}
    table, results = prior_gain(
        model, X, y, cv=folds, n_seeds=1, random_state=3, return_results=True, **options
    )
    seed = int(table["seed"][0])
    for setting, params in (("prior", {}), ("none", {"priorknowledgeregressor__prior": None})):
        own = model.set_params(priorknowledgeregressor__random_state=seed, **params)
        expected = cross_val_significance(own, X, y, cv=folds, **options)
        row = table[table["setting"] == setting].iloc[0]
        assert row["n_significant"] == expected.n_significant
        assert row["n_significant_mean"] == expected.mean_report["significant"].sum()
        assert row["median_r"] == expected.median_r
        [result] = results[setting]
        pd.testing.assert_frame_equal(result.predictions, expected.predictions)
        assert result.estimators == []
    assert list(results) == table["setting"].tolist()
    comparison = compare_significance(results, reference="zero", n_boot=10, random_state=0)
    assert comparison["setting"].unique().tolist() == ["none", "prior", "shuffled", "rewired"]
    assert comparison["value"][2] == table["n_significant"][1]
    with pytest.raises(ValueError, match="no fitted models"):
        results["prior"][0].predict(X)


def test_same_seed_same_table_for_any_number_of_jobs(data):
    X, y, patients = data
    model = PriorKnowledgeRegressor(prior=graph_prior(), **MODEL)
    options = {"groups": patients, "cv": 2, "n_seeds": 1, "controls": ["shuffled", "rewired"]}
    # Threads, which start faster; cross_val_significance is tested in processes.
    with parallel_config("threading"):
        sequential, parallel, other = (
            prior_gain(model, X, y, random_state=seed, n_jobs=n_jobs, **options)
            for seed, n_jobs in ((0, None), (0, 2), (1, None))
        )
    columns = ["setting", "seed", "n_significant", "n_significant_mean", "median_r"]
    pd.testing.assert_frame_equal(sequential[columns], parallel[columns])
    assert (other["median_r"] != sequential["median_r"]).all()


def test_arrays_and_frames_as_priors(data, recorded):
    X, y, _ = data
    embeddings = np.random.default_rng(0).normal(size=(N_GENES, 2))
    frame = pd.DataFrame(embeddings[:5], index=GENES[:4] + ["other"])
    for prior, n_known in ((embeddings, N_GENES), (frame, 4)):
        recorded.clear()
        model = RecordingRegressor(prior=prior, **MODEL)
        table = prior_gain(model, X, y, cv=2, n_seeds=1, random_state=0)
        assert table["setting"].tolist() == ["none", "prior", "zero", "shuffled"]
        own, none, zero, shuffled = (embedded for _, embedded, _ in recorded[::2])
        assert none is None
        assert (own != 0).any(axis=1).sum() == n_known
        assert not zero.any()
        assert_array_equal(sorted(map(tuple, shuffled)), sorted(map(tuple, own)))
        assert not np.array_equal(shuffled, own)


def test_lambda_is_searched_in_each_setting(data):
    X, y, patients = data
    search = GridSearchCV(
        PriorKnowledgeRegressor(prior=EigengeneEmbedder(2), **MODEL), {"lambda_": [0.1, 0.9]}, cv=2
    )
    table = prior_gain(
        search, X, y, groups=patients, cv=2, n_seeds=1, random_state=0, controls="zero"
    )
    assert table["setting"].tolist() == ["none", "prior", "zero"]


class NeverFit(RegressorMixin, BaseEstimator):
    """A model with a prior that must not be fitted."""

    def __init__(self, prior=PCA(2), random_state=None):  # noqa: B008
        self.prior = prior
        self.random_state = random_state

    def fit(self, X, y):
        """Raise."""
        raise AssertionError("fit was called before the input was checked")

    def predict(self, X):
        """Raise."""
        raise AssertionError("never fitted")


class SeedlessModel(NeverFit):
    """A model without a random_state."""

    def __init__(self, prior=PCA(2)):  # noqa: B008
        self.prior = prior


class NestedPrior(TransformerMixin, BaseEstimator):
    """A prior that has a prior."""

    def __init__(self, prior=None, rewire=0.0):
        self.prior = prior
        self.rewire = rewire


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (Ridge(), {}, r"one parameter 'prior'.*got \[\]"),
        (NeverFit(None), {}, "no prior to compare: prior is None"),
        (SeedlessModel(), {}, "must have the parameter 'random_state'"),
        (make_pipeline(StandardScaler(), NeverFit(None)), {}, "neverfit__prior is None"),
        (GridSearchCV(NeverFit(), {"prior": [1, 2]}), {}, "search sets 'prior' itself"),
        (
            GridSearchCV(NeverFit(NestedPrior()), [{"random_state": [0]}, {"prior__rewire": [1]}]),
            {},
            "search sets 'prior__rewire' itself",
        ),
        (
            GridSearchCV(make_pipeline(NeverFit()), {"neverfit": [NeverFit()]}),
            {},
            "search sets 'neverfit' itself",
        ),
        (GridSearchCV(NeverFit(), {"random_state": [1, 2]}), {}, "search sets 'random_state'"),
        (
            make_pipeline(RandomizedSearchCV(NeverFit(), {"prior": [1, 2]})),
            {},
            "search sets 'prior' itself",
        ),
        (NeverFit, {}, r"must be an instance, got the class NeverFit. Pass NeverFit\(\)"),
        (NeverFit("text"), {}, "prior must be an estimator with fit_transform.*got 'text'"),
        (NeverFit(PCA), {}, "prior must be an estimator with fit_transform"),
        (NeverFit([1.0, 2.0]), {}, r"embeddings of shape \(n_genes, d\)"),
        (
            PriorKnowledgeRegressorCV(PriorKnowledgeRegressor(prior=PCA(2)), refit=False),
            {},
            "estimator has refit=False, so it cannot predict",
        ),
        (NeverFit(np.ones((12, 2))), {"controls": ["rewired"]}, "'rewired' needs .* is ndarray"),
        (NeverFit(), {"controls": ["none"]}, r"controls must be some of .*got \['none'\]"),
        (NeverFit(), {"controls": ["zero", "zero"]}, "controls must be some of"),
        (NeverFit(), {"n_seeds": 0}, "'n_seeds' parameter"),
        (NeverFit(), {"cv": 49}, "49 folds need at least 49 samples"),
        (NeverFit(), {"groups": ["P"]}, "each of the 48 samples"),
        (NeverFit(), {"fdr": 3}, "'fdr' parameter"),
        (NeverFit(), {"colour": 3}, "unexpected keyword argument 'colour'"),
    ],
)
def test_invalid_input_raises_before_any_fit(data, model, change, message):
    X, y, _ = data
    with pytest.raises((ValueError, TypeError), match=message):
        prior_gain(model, X, y, **change)


def test_prior_is_fitted_first(data, recorded):
    X, y, _ = data
    frame = pd.DataFrame(np.eye(N_GENES), index=GENES)
    with pytest.raises(ValueError, match="matched by gene name, but y has none"):
        prior_gain(RecordingRegressor(prior=frame, **MODEL), X, y.to_numpy(), cv=2)
    assert recorded == []


def test_prior_is_that_of_the_regressor(data):
    X, y, _ = data
    model = NeverFit(NestedPrior(prior=EigengeneEmbedder()))
    with pytest.raises(AssertionError, match="fit was called"):
        prior_gain(model, X, y)


def test_steps_may_be_named_prior_and_rewire(data):
    X, y, patients = data
    prior = Pipeline([("rewire", CoexpressionGraph(threshold=0.3)), ("prior", PCA(2))])
    model = Pipeline([("prior", PriorKnowledgeRegressor(prior=prior, **MODEL))])
    table = prior_gain(model, X, y, groups=patients, cv=2, n_seeds=1, random_state=0)
    assert table["setting"].tolist() == ["none", "prior", "zero", "shuffled", "rewired"]
    assert table["median_r"].nunique() == 5


def test_cv_regressor_selects_lambda_in_each_setting(data):
    X, y, patients = data
    regressor = PriorKnowledgeRegressor(prior=EigengeneEmbedder(2), max_epochs=4, lr=1e-2)
    model = PriorKnowledgeRegressorCV(regressor, lambdas=[0.1, 0.9], cv=2)
    table = prior_gain(model, X, y, groups=patients, cv=2, n_seeds=1, random_state=0)
    assert table["median_r"].nunique() == 4


def test_results_have_one_copy_of_the_truth(data):
    X, y, _ = data
    model = PriorKnowledgeRegressor(prior=EigengeneEmbedder(2), **MODEL)
    _, results = prior_gain(model, X, y, cv=2, n_seeds=2, random_state=0, return_results=True)
    truths = {id(result.y_true) for runs in results.values() for result in runs}
    assert len(truths) == 1
    pd.testing.assert_frame_equal(results["none"][1].y_true, y)


def test_model_without_untrained_baseline_is_compared_with_the_mean(data):
    X, y, _ = data
    model = TransformedTargetRegressor(
        PriorKnowledgeRegressor(prior=EigengeneEmbedder(2), **MODEL), transformer=StandardScaler()
    )
    table = prior_gain(model, X, y, cv=2, n_seeds=1, random_state=0)
    assert table["n_significant"].isna().all()
    assert table["n_significant_mean"].notna().all()
