"""Several networks, networks of scores, and networks that start from another one."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    load_sequoia,
)
from sklearn_pk.regression._regressor import network_seeds

GOLDEN = Path(__file__).parents[1] / "data" / "transformer.npz"


def small(**parameters):
    defaults = {"max_epochs": 5, "depth": 1, "n_heads": 2, "head_dim": 4, "lr": 1e-2}
    return PriorKnowledgeRegressor(**(defaults | {"random_state": 0} | parameters))


@pytest.mark.parametrize("aggregator", ["mlp", "transformer", "topk"])
@pytest.mark.parametrize("layer", ["published", "projected", "scores"])
def test_several_networks_are_the_mean_of_single_ones(data, aggregator, layer):
    X, y = data
    settings = {"aggregator": aggregator, "layer": layer, "prior": np.eye(12)[:, :3] + 0.1}
    model = small(n_networks=3, **settings).fit(X, y)
    single = small(**settings).fit(X, y)
    seeds = network_seeds(model.seed_, 3)
    assert seeds[0] == single.seed_
    assert len(set(seeds)) == 3
    predicted = [small_net.module_ for small_net in model.nets_]
    assert not np.allclose(*[net.layer.weight.detach().numpy() for net in predicted[:2]])
    # The first network is the single one; rounding differs in a stack.
    assert_allclose(
        predicted[0].layer.weight.detach().numpy(),
        single.net_.module_.layer.weight.detach().numpy(),
        atol=2e-3,
    )
    parts = []
    for net in model.nets_:
        single.nets_ = [net]
        parts.append(single.predict(X))
    assert_allclose(model.predict(X), np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)
    assert model.best_epoch_.shape == (3,)
    assert model.history_.groupby("network").size().index.tolist() == [0, 1, 2]
    assert model.embed(X).shape[1] == 3 * single.embed(X).shape[1]
    tiles = model.predict_tiles(list(X[:2]))
    assert tiles[0].shape == (5, 12)
    whole = model.predict([X[0][[2]]])
    assert_allclose(tiles[0].iloc[2], whole[0], rtol=1e-4, atol=1e-5)
    copy = pickle.loads(pickle.dumps(model))
    assert_array_equal(copy.predict(X), model.predict(X))
    assert_array_equal(copy.predict_untrained(X), model.predict_untrained(X))


def test_callbacks_follow_each_network(data):
    X, y = data
    seen = []

    class Seen(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(net)

    model = small(n_networks=2, callbacks=[Seen()]).fit(X, y)
    assert [seen.count(net) for net in model.nets_] == [5, 5]


def test_search_over_several_networks(data):
    X, y = data
    estimator = small(n_networks=2, prior=EigengeneEmbedder(3))
    lambdas = [0.1, 0.9]
    search = PriorKnowledgeRegressorCV(estimator, lambdas=lambdas, cv=2).fit(X, y)
    grid = GridSearchCV(estimator, {"lambda_": lambdas}, cv=2).fit(X, y)
    assert_allclose(
        search.cv_results_["mean_test_score"], grid.cv_results_["mean_test_score"], atol=1e-3
    )
    assert len(search.nets_) == 2
    # The weight of the prior has no effect on scores.
    scores = search.set_params(estimator__layer="scores").fit(X, y).cv_results_["mean_test_score"]
    assert scores[0] == scores[1]


def test_scores_stay_in_the_span_of_the_embeddings(data):
    X, y = data
    y = y * np.linspace(1, 5, y.shape[1])
    G = np.random.default_rng(0).normal(size=(12, 3))
    G[4] = 0
    model = small(layer="scores", prior=G, max_epochs=40).fit(X, y)
    centred = model.predict(X) - y.mean(axis=0)
    basis = np.linalg.qr(G * y.std(axis=0)[:, np.newaxis])[0]
    assert_allclose(centred @ basis @ basis.T, centred, atol=1e-4)
    assert_allclose(centred[:, 4], 0, atol=1e-5)
    assert model.net_.module_.layer.weight.shape[0] == 3
    full = small(max_epochs=40).fit(X, y)
    assert 0.2 < model.score(X, y) <= full.score(X, y)
    with pytest.raises(ValueError, match="layer='scores' predicts scores of a prior"):
        small(layer="scores").fit(X, y)


def test_loss_tolerance_is_a_fraction_of_the_variance(data):
    X, y = data
    options = {"early_stopping": "loss+corr", "max_epochs": 60, "patience": 3}
    epochs = [small(**options).fit(X, y * unit).best_epoch_ for unit in (0.01, 1, 100)]
    assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize("aggregator", ["mlp", "summary_mixing", "topk"])
def test_training_starts_from_another_network(data, aggregator):
    X, y = data
    first = small(aggregator=aggregator, max_epochs=20).fit(X, y)
    # Another cohort, with other genes and other scales of features.
    other = clone(small(aggregator=aggregator, init=first, max_epochs=1, lr=1e-12))
    other.fit(X[:30] * 2 + 1, y[:30, :7])
    assert other.init is first
    assert_allclose(other.embed(X), first.embed(X), atol=1e-5)
    assert other.predict(X).shape == (40, 7)
    untrained = other.predict_untrained(X)
    assert_allclose(untrained, other.predict(X), atol=1e-4)
    copy = pickle.loads(pickle.dumps(other))
    assert_array_equal(copy.predict_untrained(X), untrained)
    folds = GridSearchCV(small(init=first, aggregator=aggregator), {"lr": [1e-2]}, cv=2).fit(X, y)
    assert np.isfinite(folds.best_score_)


def test_a_start_that_does_not_fit_is_refused(data):
    X, y = data
    first = small().fit(X, y)
    with pytest.raises(ValueError, match="init must be a fitted PriorKnowledgeRegressor"):
        small(init=small()).fit(X, y)
    with pytest.raises(ValueError, match="init was trained on 6 features, but X has 4"):
        small(init=first).fit(X[:, :, :4], y)
    with pytest.raises(ValueError, match=r"init does not fit: in its network, .* has shape"):
        small(init=first, embed_dim=4).fit(X, y)
    with pytest.raises(ValueError, match="init does not fit"):
        small(init=first, aggregator="transformer").fit(X, y)
    with pytest.raises(ValueError, match="compat=None, which is not compat='sequoia'"):
        small(init=first, compat="sequoia").fit(X, y)


def test_training_starts_from_a_published_checkpoint():
    with np.load(GOLDEN) as golden:
        state = {
            name.removeprefix("param/"): golden[name]
            for name in golden.files
            if name.startswith("param/")
        }
    published = load_sequoia(state, n_heads=4)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 10, 32)), rng.normal(size=(20, 3))
    settings = {
        name: getattr(published, name)
        for name in ("aggregator", "depth", "n_heads", "head_dim", "compat")
    }
    model = small(init=published, max_epochs=1, lr=1e-12, **settings).fit(X[:, :8], y)
    assert model.predict(X).shape == (20, 3)
    assert_allclose(model.embed(X), published.embed(X), atol=1e-5)
    with pytest.raises(ValueError, match="10 positions, but a bag of X has 20 tiles"):
        small(init=published, **settings).fit(np.concatenate([X, X], axis=1), y)
