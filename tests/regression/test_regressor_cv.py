"""PriorKnowledgeRegressorCV, against the loop over single fits."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    PredefinedSplit,
)
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback
from torch import nn

from sklearn_pk.metrics import significance_scorer
from sklearn_pk.plotting import LambdaPathDisplay
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    _training,
)
from sklearn_pk.slides import FeatureBag

LAMBDAS = [0.0, 0.3, 0.9]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 50
    X = rng.normal(size=(n, 5, 8)) + rng.normal(size=(n, 1, 8))
    y = 8 + X.mean(axis=1) @ rng.normal(size=(8, 3)) @ rng.normal(size=(3, 20))
    y += 0.5 * rng.normal(size=y.shape)
    X[::3, 3:] = np.nan
    # Patients of one to three slides, so that folds differ in size and in number of batches.
    patients = np.repeat(np.arange(24), [1, 2, 3] * 8)
    patients = np.concatenate([patients, [24, 25]])[:n]
    y = pd.DataFrame(y, columns=[f"gene{number}" for number in range(20)])
    return X.astype(np.float32), y.groupby(patients).transform("mean"), patients


def settings(**parameters):
    return {
        "prior": TruncatedSVD(4),
        "max_epochs": 12,
        "patience": 3,
        "lr": 1e-2,
        "depth": 2,
        "n_heads": 2,
        "head_dim": 4,
        "batch_size": 8,
        "random_state": 0,
    } | parameters


def make_search(lambdas, *, cv=None, scoring=None, refit=True, **parameters):
    regressor = PriorKnowledgeRegressor(**settings(**parameters))
    return PriorKnowledgeRegressorCV(regressor, lambdas, cv=cv, scoring=scoring, refit=refit)


class Dropped(nn.Module):
    """An aggregator that draws numbers, so that each network needs a stream of its own."""

    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, x):
        return self.net(x).mean(dim=1)


def record_sets(monkeypatch):
    """Return a list that fills with the sets of networks that are trained at once."""
    used = []
    plan = _training.plan_sets

    def recorded(runs, device):
        planned = plan(runs, device)
        used.extend(("stack" if stacked else "side", len(each)) for stacked, each in planned)
        return planned

    monkeypatch.setattr(_training, "plan_sets", recorded)
    return used


WAYS = {
    "all folds in one stack": ({}, [("stack", 9)]),
    "a stack for each fold": ({"_STACK_BUDGET": None}, [("stack", 3)] * 3),
    "side by side": (
        {"_STACK_BUDGET": 0, "_shares_batches": lambda *_: True},
        [("side", 3)] * 3,
    ),
    "one by one": ({"_STACK_BUDGET": 0}, [("side", 1)] * 9),
    "one by one for want of memory": (
        {"_STACK_BUDGET": 0, "_SIDE_BUDGET": 1, "_shares_batches": lambda *_: True},
        [("side", 1)] * 9,
    ),
}
DESIGNS = {
    "mlp": {"aggregator": "mlp"},
    "transformer": {"aggregator": "transformer", "depth": 1},
    "summary mixing": {"aggregator": "summary_mixing", "depth": 1, "compat": "sequoia"},
    "projected": {"layer": "projected"},
    "loss": {"embed_dim": 6, "early_stopping": "loss"},
    "schedule": {"lr_schedule": "cosine", "weight_decay": 0.1, "patience": 2},
    "all epochs": {"validation_fraction": 0, "early_stopping": None, "max_epochs": 5},
}


@pytest.fixture(scope="module")
def search(data):
    """Return the search over single fits for a design, each made once."""

    @lru_cache
    def fit(design):
        X, y, patients = data
        search = GridSearchCV(
            PriorKnowledgeRegressor(**settings(**DESIGNS[design])),
            {"lambda_": LAMBDAS},
            cv=GroupKFold(3),
        )
        with sklearn.config_context(enable_metadata_routing=True):
            return search.fit(X, y, groups=patients)

    return fit


@pytest.mark.parametrize(
    ("design", "way"),
    [
        *(
            (design, way)
            for design in DESIGNS
            for way in ("all folds in one stack", "side by side")
        ),
        ("mlp", "a stack for each fold"),
        ("mlp", "one by one"),
        ("mlp", "one by one for want of memory"),
    ],
)
def test_same_as_the_loop_over_single_fits(data, search, monkeypatch, design, way):
    X, y, patients = data
    limits, expected_ways = WAYS[way]
    for name, value in limits.items():
        if value is None:
            probe = search(design).best_estimator_
            arguments = probe._module_params, probe.embeddings_, probe.batch_size
            value = 3 * _training._bytes_of_run(probe, _training.network_size(*arguments)) + 1
        monkeypatch.setattr(_training, name, value)
    used = record_sets(monkeypatch)
    model = make_search(LAMBDAS, cv=3, **DESIGNS[design]).fit(X, y, groups=patients)
    assert used[:-1] == expected_ways
    assert used[-1] == ("side", 1), "the last fit"
    expected = search(design)
    assert model.lambda_best_ == expected.best_params_["lambda_"]
    assert model.best_index_ == expected.best_index_
    assert model.best_params_ == expected.best_params_
    for key in ("mean_test_score", "std_test_score", "split2_test_score"):
        assert_allclose(model.cv_results_[key], expected.cv_results_[key], rtol=1e-3, atol=1e-4)
    assert_array_equal(model.predict(X), expected.predict(X))


@pytest.mark.parametrize("aggregator", ["topk", Dropped])
def test_modules_that_draw_numbers_have_streams_of_their_own(data, monkeypatch, aggregator):
    X, y, patients = data
    parameters = settings(aggregator=aggregator, max_epochs=6)
    used = record_sets(monkeypatch)
    monkeypatch.setattr(_training, "_shares_batches", lambda *_: True)
    model = make_search(LAMBDAS, cv=3, refit=False, **parameters).fit(X, y, groups=patients)
    assert used == [("side", 3)] * 3
    for fold, (train, test) in enumerate(GroupKFold(3).split(X, y, patients)):
        for row, lambda_ in enumerate(LAMBDAS):
            single = PriorKnowledgeRegressor(lambda_=lambda_, **parameters)
            single.fit(X[train], y.iloc[train], groups=patients[train])
            score = single.score(X[test], y.iloc[test])
            assert_allclose(model.cv_results_[f"split{fold}_test_score"][row], score, rtol=1e-4)


class Varied(TransformerMixin, BaseEstimator):
    """A prior whose width depends on the patients it sees."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.asarray(X)[:, : 3 + X.shape[1] % 4]


@pytest.mark.parametrize("extra", [{"compat": "sequoia"}, {"prior": Varied()}])
def test_folds_of_other_shapes_are_not_stacked(data, monkeypatch, extra):
    X, y, patients = data
    # The longest bag belongs to one patient, so one fold trains with fewer positions.
    bags = [bag[~np.isnan(bag[:, 0])] for bag in X]
    bags[0] = np.concatenate([bags[0], bags[0]])
    used = record_sets(monkeypatch)
    model = make_search([0.2, 0.8], cv=3, refit=False, **({"max_epochs": 3} | extra))
    if "compat" in extra:
        # Its test bag is longer than all that the fold has seen.
        with pytest.raises(ValueError, match="positions"):
            model.fit(bags, y, groups=patients)
    else:
        model.fit(bags, y, groups=patients)
    assert used == [("stack", 2)] * 3


def test_single_models_are_the_same_epoch_by_epoch(data):
    X, y, patients = data
    parameters = settings(aggregator="summary_mixing")
    seen = []

    def scorer(estimator, X, y):
        seen.append(estimator)
        return estimator.score(X, y)

    make_search([0.2, 0.8], cv=2, scoring=scorer, refit=False, **parameters).fit(
        X, y, groups=patients
    )
    train, _ = next(GroupKFold(2).split(X, y, patients))
    single = PriorKnowledgeRegressor(lambda_=0.8, **parameters)
    single.fit(X[train], y.iloc[train], groups=patients[train])
    stacked = seen[1]
    assert stacked.lambda_ == 0.8
    assert stacked.best_epoch_ == single.best_epoch_
    assert_array_equal(stacked.validation_indices_, single.validation_indices_)
    assert_array_equal(stacked.embeddings_, single.embeddings_)
    columns = ["epoch", "train_loss", "valid_loss", "valid_r"]
    pd.testing.assert_frame_equal(
        stacked.history_[columns], single.history_[columns], rtol=1e-3, check_exact=False
    )
    lengths = {len(model.history_) for model in seen}
    assert len(lengths) > 1, "each stops by itself"


def test_results_are_those_of_a_search(data):
    X, y, patients = data
    model = make_search([0.1, 0.9], scoring=significance_scorer, max_epochs=3)
    model.fit(X, y, groups=patients)
    search = GridSearchCV(
        PriorKnowledgeRegressor(**settings(max_epochs=3)),
        {"lambda_": [0.1, 0.9]},
        scoring=significance_scorer,
        cv=GroupKFold(5),
    )
    with sklearn.config_context(enable_metadata_routing=True):
        search.fit(X, y, groups=patients)
    assert set(model.cv_results_) == set(search.cv_results_)
    for key, value in search.cv_results_.items():
        assert type(model.cv_results_[key]) is type(value), key
        if "time" not in key:
            assert_array_equal(model.cv_results_[key], value, err_msg=key)
    assert model.n_splits_ == 5
    assert model.best_score_ == search.best_score_
    display = LambdaPathDisplay.from_cv_results(model.cv_results_)
    assert_array_equal(display.paths["lambda_"], [0.1, 0.9])


def test_methods_and_attributes_of_the_best_estimator(data):
    X, y, patients = data
    model = make_search([0.2, 0.7], cv=2, max_epochs=4).fit(X, y, groups=patients)
    single = PriorKnowledgeRegressor(lambda_=model.lambda_best_, **settings(max_epochs=4))
    single.fit(X, y, groups=patients)
    assert_array_equal(model.predict(X), single.predict(X))
    assert_array_equal(model.predict_untrained(X), single.predict_untrained(X))
    assert_array_equal(model.embed(X), single.embed(X))
    assert model.lambda_ == model.lambda_best_
    assert list(model.predict_frame(X).columns) == list(y.columns)
    columns = ["train_loss", "valid_loss", "valid_r"]
    pd.testing.assert_frame_equal(model.history_[columns], single.history_[columns])
    copied = pickle.loads(pickle.dumps(model))
    assert_array_equal(copied.predict(X), model.predict(X))
    assert not hasattr(clone(model), "lambda_best_")
    assert model.score(X, y) == single.score(X, y)
    assert model.refit_time_ > 0
    assert model.scorer_(model, X, y) == model.score(X, y)


def test_without_refit(data):
    X, y, patients = data
    model = make_search([0.2, 0.7], cv=2, refit=False, max_epochs=2)
    model.fit(X, y, groups=patients)
    assert model.lambda_best_ in (0.2, 0.7)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_seeds_that_are_not_numbers(data):
    X, y, patients = data
    for state in (None, np.random.RandomState(3)):
        model = make_search([0.5, 0.5], cv=2, refit=False, max_epochs=2, random_state=state)
        scores = model.fit(X, y, groups=patients).cv_results_["mean_test_score"]
        assert_allclose(scores[0], scores[1], rtol=1e-6, err_msg="one seed for all lambdas")


def test_folds(data):
    X, y, patients = data
    once = [(np.flatnonzero(patients < 20), np.flatnonzero(patients >= 20))]
    twice = GroupShuffleSplit(3, random_state=0)
    for cv, n_splits in [(PredefinedSplit(patients % 4), 4), (once, 1), (twice, 3)]:
        model = make_search([0.5], cv=cv, refit=False, max_epochs=1)
        assert model.fit(X, y, groups=patients).n_splits_ == n_splits


def test_without_a_prior_its_weight_changes_nothing(data, monkeypatch):
    X, y, patients = data
    used = record_sets(monkeypatch)
    model = make_search(LAMBDAS, cv=3, refit=False, prior=None, max_epochs=3)
    model.fit(X, y, groups=patients)
    assert used == [("stack", 3)], "one network per fold"
    assert len(set(model.cv_results_["mean_test_score"])) == 1
    assert model.lambda_best_ == LAMBDAS[0]
    assert list(model.cv_results_["param_lambda_"]) == LAMBDAS


def test_patients_stay_together_without_groups_and_through_a_pipeline(data):
    X, y, patients = data
    model = make_search([0.2, 0.7], cv=3, refit=False, max_epochs=2)
    expected = clone(model).fit(X, y, groups=patients).cv_results_["mean_test_score"]
    with pytest.warns(UserWarning, match="repeat the expression of an earlier one"):
        inferred = clone(model).fit(X, y)
    assert inferred.n_splits_ == 3
    pipeline = make_pipeline("passthrough", model)
    pipeline.fit(X, y, priorknowledgeregressorcv__groups=patients)
    assert_array_equal(pipeline[-1].cv_results_["mean_test_score"], expected)


def test_a_gene_constant_in_a_fold_is_not_warned_about(data):
    X, y, patients = data
    y = y.copy()
    y["gene0"] = (patients == patients[0]).astype(float)
    model = make_search([0.5], cv=3, max_epochs=1)
    model.fit(X, y, groups=patients)
    y["gene1"] = 3.0
    with pytest.warns(UserWarning, match="1 of 20 genes have the same value") as said:
        model.fit(X, y, groups=patients)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lambdas": []}, ValueError, r"at least one number in \[0, 1\], got \[\]"),
        ({"lambdas": [0.5, 1.5]}, ValueError, r"lambdas must lie in \[0, 1\], got 1.5"),
        ({"lambdas": [0.5, np.nan]}, ValueError, r"lambdas must lie in \[0, 1\], got nan"),
        ({"lambdas": ["a"]}, ValueError, "at least one number"),
        ({"cv": 27}, ValueError, "27 folds need at least 27 patients, got 26 patients"),
        ({"cv": KFold(2, shuffle=True)}, ValueError, r"patient\(s\) in both its training and its"),
        ({"scoring": "nice"}, ValueError, "'scoring' parameter"),
        ({"device": "cuda:99"}, ValueError, "device='cuda:99' is not available here"),
        ({"prior": np.ones((19, 4))}, ValueError, "each of the 20 genes"),
        ({"lr": 1e30}, ValueError, "finite valid_loss"),
        ({"aggregator": dict}, TypeError, "a torch.nn.Module or a subclass of it"),
    ],
)
def test_bad_parameters(data, change, error, message):
    X, y, patients = data
    model = make_search(**({"lambdas": [0.5], "max_epochs": 2} | change))
    with pytest.raises(error, match=message):
        model.fit(X, y, groups=patients)


@pytest.mark.parametrize("estimator", [Ridge(), make_pipeline(PriorKnowledgeRegressor())])
def test_other_estimators(data, estimator):
    X, y, _ = data
    message = f"must be a PriorKnowledgeRegressor, got {type(estimator).__name__}"
    with pytest.raises(TypeError, match=message):
        PriorKnowledgeRegressorCV(estimator).fit(X, y)


def test_parameters_of_the_estimator(data):
    X, y, patients = data
    assert PriorKnowledgeRegressorCV().get_params() == {
        "estimator": None,
        "lambdas": (0.1, 0.2, 0.5, 0.8, 0.9),
        "cv": None,
        "scoring": None,
        "refit": True,
    }
    model = make_search([0.5], cv=2).set_params(estimator__max_epochs=1, estimator__lr="fast")
    with pytest.raises(ValueError, match="The 'lr' parameter of PriorKnowledgeRegressor"):
        model.fit(X, y, groups=patients)
    model.set_params(estimator__lr=0.1).fit(X, y, groups=patients)
    assert len(model.history_) == 1
    assert model.estimator.lambda_ == 0.5, "the estimator itself is left alone"
    assert not hasattr(model.estimator, "net_")


def test_bags_in_files_are_read_once_for_all_lambdas(data, monkeypatch, tmp_path):
    X, y, patients = data
    bags = []
    for number, tiles in enumerate(X):
        tiles = torch.from_numpy(tiles[~np.isnan(tiles[:, 0])].copy())
        torch.save(tiles, tmp_path / f"S{number:02d}.pt")
        bags.append(FeatureBag.from_file(tmp_path / f"S{number:02d}.pt"))
    monkeypatch.setattr(_training, "_STACK_BUDGET", 0)
    used = record_sets(monkeypatch)
    n_read = []
    read = _training.read_bag
    monkeypatch.setattr(_training, "read_bag", lambda *a, **k: n_read.append(1) or read(*a, **k))
    parameters = {"max_epochs": 3, "standardize": False, "early_stopping": None}
    model = make_search([0.2, 0.8], cv=2, refit=False, **parameters)
    scored = model.fit(bags, y, groups=patients).cv_results_["mean_test_score"]
    assert used == [("side", 2)] * 2
    # Three epochs over the training part of each fold, and the test part for each lambda.
    assert len(n_read) == 3 * 50 + 2 * 50
    in_memory = make_search([0.2, 0.8], cv=2, refit=False, **parameters)
    in_memory.fit(X, y, groups=patients)
    assert_allclose(scored, in_memory.cv_results_["mean_test_score"], rtol=1e-4)


class Counter(Callback):
    """Callback with a state that is not a parameter."""

    def __init__(self):
        self.n_epochs = 0

    def on_epoch_end(self, net, **kwargs):
        self.n_epochs += 1


def test_callbacks_with_a_state_are_called_in_the_last_fit(data):
    X, y, patients = data
    counter = Counter()
    estimator = PriorKnowledgeRegressor(max_epochs=3, random_state=0, callbacks=[counter])
    PriorKnowledgeRegressorCV(estimator, [0.1, 0.5], cv=2).fit(X, y, groups=patients)
    assert counter.n_epochs == 3
