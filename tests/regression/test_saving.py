"""Saving fitted regressors, and loading them without trust and without the device."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from numpy.testing import assert_array_equal
from pandas.testing import assert_frame_equal
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    load_sequoia,
)

GOLDEN = Path(__file__).parents[1] / "data" / "summary_mixing.npz"
GENES = [f"gene{number}" for number in range(12)]
KINDS = ["graph", "path", "table", "sequoia"]
ARRAYS = ("embeddings_", "validation_indices_", "gene_names_out_", "feature_names_in_")
VALUES = ("seed_", "versions_", "best_epoch_", "lambda_best_", "best_score_", "n_features_in_")


class MaskedMean(torch.nn.Module):
    """Aggregator of a user."""

    def __init__(self, dim):
        super().__init__()
        self.linear = torch.nn.Linear(dim, dim)
        self.norm = torch.nn.BatchNorm1d(dim)

    def forward(self, x, mask=None):
        return self.norm(self.linear(x).mean(dim=1))


def graph_prior():
    edges = pd.DataFrame({"gene_a": ["gene0", "gene1"], "gene_b": ["gene2", "gene3"]})
    graph = CoexpressionGraph(source="combined", external=edges, threshold=0.5)
    return make_pipeline(graph, NMFGeneEmbedder(4))


def table_prior():
    values = np.random.default_rng(1).normal(size=(13, 3))
    return pd.DataFrame(values, index=[f"gene{number}" for number in range(13)])


def make(kind):
    settings = {"max_epochs": 3, "random_state": 0}
    if kind == "path":
        regressor = PriorKnowledgeRegressor(prior=graph_prior(), **settings)
        return PriorKnowledgeRegressorCV(regressor, [0.1, 0.9], cv=2)
    prior = graph_prior() if kind == "graph" else table_prior()
    return PriorKnowledgeRegressor(prior=prior, validation_fraction=0.2, **settings)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 4, 8)).astype(np.float32)
    y = rng.normal(size=(20, 12)) + rng.normal(size=(20, 1))
    return X, pd.DataFrame(y, columns=GENES)


@pytest.fixture(scope="module")
def fitted(data):
    models = {kind: (make(kind).fit(*data), data[0]) for kind in KINDS if kind != "sequoia"}
    golden = np.load(GOLDEN)
    state = {key[6:]: golden[key] for key in golden.files if key.startswith("param/")}
    names = [f"gene{number}" for number in range(50)]
    return models | {"sequoia": (load_sequoia(state, names), golden["x"])}


def regressor_of(model):
    return getattr(model, "best_estimator_", model)


def through_skops(model):
    saved = skops.io.dumps(model)
    return skops.io.loads(saved, trusted=skops.io.get_untrusted_types(data=saved))


def check_same(loaded, model, X):
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert_array_equal(loaded.predict_untrained(X), model.predict_untrained(X))
    assert_array_equal(loaded.embed(X), model.embed(X))
    assert_frame_equal(loaded.predict_frame(X), model.predict_frame(X))
    assert set(vars(loaded)) == set(vars(model))
    for name in ARRAYS:
        if getattr(model, name, None) is not None:
            assert_array_equal(getattr(loaded, name), getattr(model, name))
            assert getattr(loaded, name).dtype == getattr(model, name).dtype
        else:
            assert getattr(loaded, name, None) is None
    for name in VALUES:
        assert getattr(loaded, name, None) == getattr(model, name, None), name
    if hasattr(model, "history_"):
        assert_frame_equal(loaded.history_, model.history_)


def foreign_objects(value, path="state"):
    """Return where anything of torch or skorch is inside a saved state."""
    if {each.__module__.partition(".")[0] for each in type(value).__mro__} & {"torch", "skorch"}:
        return [path]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        items = enumerate(value.ravel())
    elif isinstance(value, BaseEstimator):
        items = value.__getstate__().items()
    else:
        return []
    return [found for key, each in items for found in foreign_objects(each, f"{path}/{key}")]


@pytest.mark.parametrize("kind", KINDS)
def test_skops(fitted, kind):
    model, X = fitted[kind]
    check_same(through_skops(model), model, X)


@pytest.mark.parametrize("kind", KINDS)
def test_what_skops_has_to_trust(fitted, kind):
    model, _ = fitted[kind]
    types = set(skops.io.get_untrusted_types(data=skops.io.dumps(model)))
    own = {name for name in types if name.startswith("sklearn_pk.")}
    assert all(name.startswith("scipy.sparse.") for name in types - own)
    expected = [type(model)]
    if kind in ("graph", "path"):
        expected += [CoexpressionGraph, NMFGeneEmbedder]
    if kind == "path":
        expected += [PriorKnowledgeRegressor]
    assert own == {f"{each.__module__}.{each.__name__}" for each in expected}


def test_skops_asks_for_trust(fitted):
    saved = skops.io.dumps(fitted["table"][0])
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException, match="PriorKnowledge"):
        skops.io.loads(saved)


def test_skops_file_of_a_pipeline(data, tmp_path):
    X, y = data[0][:, 0], data[1]
    model = make_pipeline(StandardScaler(), make("graph")).fit(X, y)
    path = tmp_path / "model.skops"
    skops.io.dump(model, path)
    loaded = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert_array_equal(loaded[-1].predict_untrained(X), model[-1].predict_untrained(X))


def test_the_prior_is_saved(fitted):
    model, _ = fitted["graph"]
    loaded = through_skops(model)
    frame = loaded.prior[0].external
    assert_frame_equal(frame, model.prior[0].external)
    patients = model.prior_[0].feature_names_in_
    values = np.random.default_rng(0).normal(size=(12, len(patients)))
    expression = pd.DataFrame(values, index=GENES, columns=patients)
    assert_array_equal(loaded.prior_.transform(expression), model.prior_.transform(expression))
    table, _ = fitted["table"]
    assert_frame_equal(through_skops(table).prior, table.prior)


def test_results_of_the_search_are_saved(fitted):
    model, _ = fitted["path"]
    loaded = through_skops(model)
    assert list(loaded.cv_results_) == list(model.cv_results_)
    for name, expected in model.cv_results_.items():
        assert_array_equal(loaded.cv_results_[name], expected)
    assert loaded.lambda_ == model.lambda_best_


@pytest.mark.parametrize("kind", ["graph", "path", "table"])
def test_a_loaded_model_can_be_fitted_again(fitted, data, kind):
    model, X = fitted[kind]
    loaded = through_skops(model)
    assert not hasattr(clone(loaded), "net_")
    assert_array_equal(clone(loaded).fit(*data).predict(X), model.predict(X))


@pytest.mark.parametrize("kind", ["graph", "path", "table"])
def test_unfitted(kind):
    model = make(kind)
    for loaded in (through_skops(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert not hasattr(loaded, "net_")
        assert set(vars(loaded)) == set(vars(model))
        assert repr(loaded) == repr(model)
        if kind == "table":
            assert_frame_equal(loaded.prior, model.prior)
        else:
            priors = [getattr(each, "estimator", each).prior for each in (loaded, model)]
            assert_frame_equal(priors[0][0].external, priors[1][0].external)


@pytest.mark.parametrize("kind", KINDS)
def test_joblib_and_deepcopy(fitted, kind, tmp_path):
    model, X = fitted[kind]
    joblib.dump(model, tmp_path / "model.joblib")
    check_same(joblib.load(tmp_path / "model.joblib"), model, X)
    check_same(copy.deepcopy(model), model, X)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_holds_nothing_of_torch(fitted, kind):
    model = regressor_of(fitted[kind][0])
    assert foreign_objects(fitted[kind][0].__getstate__()) == []
    found = foreign_objects(vars(model))
    assert {name.split("/")[1] for name in found} == {"net_", "nets_"}, "the search finds them"
    state = model.__getstate__()
    assert foreign_objects(state) == []
    [weights] = state["net_"]["weights"]
    assert {type(value) for value in weights.values()} == {np.ndarray}
    assert not {"layer.embeddings", "target_mean", "feature_mean"} & set(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_changes_nothing(fitted, kind):
    model, X = regressor_of(fitted[kind][0]), fitted[kind][1]
    before, net = model.predict(X), model.net_
    state = model.__getstate__()
    for value in state["net_"]["weights"][0].values():
        assert np.isfinite(value).all()
    assert model.net_ is net
    assert not isinstance(model.prior, dict)
    assert_array_equal(model.predict(X), before)


@pytest.mark.parametrize("device", ["cuda:7", "mps:3", "xpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_on_a_device_that_is_not_here(fitted, kind, device):
    model, X = regressor_of(fitted[kind][0]), fitted[kind][1]
    state = model.__getstate__()
    state["net_"] = state["net_"] | {"device": device}
    loaded = type(model).__new__(type(model))
    loaded.__setstate__(state)
    assert str(loaded.net_.device) == "cpu"
    assert {str(each.device) for each in loaded.net_.module_.parameters()} == {"cpu"}
    check_same(loaded, model, X)


def test_weights_of_another_network_are_refused(fitted):
    model, _ = fitted["table"]
    state = model.__getstate__()
    [weights] = state["net_"]["weights"]
    state["net_"] = {"device": "cpu", "weights": [weights | {"layer.bias": np.ones(5)}]}
    loaded = PriorKnowledgeRegressor.__new__(PriorKnowledgeRegressor)
    with pytest.raises(RuntimeError, match=r"layer\.bias"):
        loaded.__setstate__(state)


@pytest.mark.parametrize("instance", [False, True])
def test_aggregator_of_a_user(data, instance):
    X, y = data
    torch.manual_seed(0)
    aggregator = MaskedMean(8) if instance else MaskedMean
    model = PriorKnowledgeRegressor(aggregator=aggregator, max_epochs=3, random_state=0).fit(X, y)
    running = model.net_.module_.aggregator.norm.running_mean
    assert running.abs().max() > 0, "there is a buffer that training changed"
    for loaded in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        check_same(loaded, model, X)
        assert torch.equal(loaded.net_.module_.aggregator.norm.running_mean, running)


def test_class_of_a_user_through_skops(data):
    X, y = data
    model = PriorKnowledgeRegressor(aggregator=MaskedMean, max_epochs=1, random_state=0).fit(X, y)
    types = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    assert {name.rpartition(".")[2] for name in types} == {"PriorKnowledgeRegressor", "MaskedMean"}
    check_same(through_skops(model), model, X)


def test_single_gene_without_names(data):
    X, y = data
    model = PriorKnowledgeRegressor(max_epochs=1, random_state=0).fit(X, y["gene0"].to_numpy())
    loaded = through_skops(model)
    assert loaded.predict(X).shape == (20,)
    assert not hasattr(loaded, "gene_names_out_")
    check_same(loaded, model, X)


@pytest.mark.parametrize(
    "settings",
    [
        {"compat": "sequoia"},
        {"embed_dim": 2, "prior": table_prior()},
        {"layer": "projected", "prior": table_prior()},
        {"aggregator": "topk"},
    ],
)
def test_all_parts_of_the_network_are_saved(data, settings):
    model = PriorKnowledgeRegressor(max_epochs=2, random_state=0, **settings).fit(*data)
    check_same(through_skops(model), model, data[0])


def test_random_state_instance(data):
    state = np.random.RandomState(3)
    model = PriorKnowledgeRegressor(prior=graph_prior(), max_epochs=1, random_state=state)
    model.fit(*data)
    check_same(through_skops(model), model, data[0])
