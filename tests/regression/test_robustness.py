"""Fits at the same time, fits that fail, and parameters that change after a fit."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold
from skorch.callbacks import Callback

from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV, _training
from sklearn_pk.regression._network import ExpressionModule
from sklearn_pk.slides import FeatureBag


def settings(**parameters):
    defaults = {"max_epochs": 3, "depth": 1, "n_heads": 2, "head_dim": 4, "random_state": 0}
    return defaults | {"lr": 1e-2, "batch_size": 8} | parameters


def small(**parameters):
    return PriorKnowledgeRegressor(**settings(**parameters))


def make_search(lambdas, *, cv=2, scoring=None, **parameters):
    return PriorKnowledgeRegressorCV(small(**parameters), lambdas, cv=cv, scoring=scoring)


@pytest.mark.parametrize("aggregator", ["mlp", "topk"])
def test_fits_in_threads_do_not_disturb_each_other(data, aggregator):
    X, y = data
    expected = small(aggregator=aggregator).fit(X, y)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        fits = [pool.submit(small(aggregator=aggregator).fit, X, y) for _ in range(12)]
        untrained = [pool.submit(expected.predict_untrained, X) for _ in range(12)]
    for fit in fits:
        assert_array_equal(fit.result().predict(X), expected.predict(X))
    for each in untrained:
        assert_array_equal(each.result(), expected.predict_untrained(X))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("way", ["_STACK_BUDGET", None])
def test_a_search_leaves_the_generator_alone(data, monkeypatch, way):
    X, y = data
    if way:
        monkeypatch.setattr(_training, way, 0)
    state = torch.get_rng_state()
    model = make_search([0.2, 0.3], aggregator="topk", prior=y.T[:, :3])
    model.fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)


CHANGES = [
    {"lambda_": 0.9},
    {"aggregator": "transformer"},
    {"embed_dim": 4},
    {"compat": "sequoia"},
    {"init_scale": 1.0},
]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_set_after_a_fit_wait_for_the_next(data, change):
    X, y = data
    model = small(prior=TruncatedSVD(3), lambda_=0.2).fit(X, y)
    predicted, untrained = model.predict(X), model.predict_untrained(X)
    model.set_params(**change)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_array_equal(same.predict(X), predicted)
        assert_array_equal(same.predict_untrained(X), untrained)
    assert not np.array_equal(model.fit(X, y).predict(X), predicted)


def test_refit_that_is_switched_off(data):
    X, y = data
    model = make_search([0.2, 0.7], prior=TruncatedSVD(3))
    model.fit(X, y).set_params(refit=False, lambdas=[0.5]).fit(X, y)
    assert model.lambda_best_ == 0.5
    assert not hasattr(model, "lambda_")
    with pytest.raises(NotFittedError, match="fitted with refit=False, which chooses lambda_ and"):
        model.predict(X)


def test_a_fit_that_fails_leaves_nothing_half_done(data):
    X, y = data
    frame = pd.DataFrame(y, columns=[f"g{number}" for number in range(12)])
    for name, model in {"lr": small(), "estimator__lr": make_search([0.5])}.items():
        model.fit(X, frame)
        with pytest.raises(ValueError, match="finite valid_loss"):
            model.set_params(**{name: 1e30}).fit(X, y)
        with pytest.raises(NotFittedError):
            model.predict(X)
        left = {name for name in vars(model) if name.endswith("_")}
        assert not left & {"net_", "history_", "best_epoch_", "gene_names_out_", "lambda_best_"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("epoch", [1, 3])
def test_interrupts_in_any_epoch(data, epoch, training):
    X, y = data

    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            if len(net.history) == epoch and kwargs["training"] is training:
                raise KeyboardInterrupt

    model = small(callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_an_interrupt_of_a_search_leaves_no_network(data, monkeypatch):
    X, y = data
    model = make_search([0.2, 0.7]).fit(X, y)

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(_training.StoppingRule, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_search_keeps_few_networks(data, monkeypatch, budget):
    X, y = data
    monkeypatch.setattr(_training, "_STACK_BUDGET", budget)
    monkeypatch.setattr(_training, "_shares_batches", lambda *_: True)
    made, alive = weakref.WeakSet(), []
    init = ExpressionModule.__init__

    def noted(self, **parameters):
        made.add(self)
        init(self, **parameters)

    def scoring(estimator, X, y):
        gc.collect()
        alive.append(sum(not p.is_meta for m in made for p in [m.layer.weight]))
        return 0.0

    monkeypatch.setattr(ExpressionModule, "__init__", noted)
    model = make_search([0.1, 0.5, 0.9], cv=4, scoring=scoring, prior=TruncatedSVD(3), max_epochs=1)
    model.fit(X, y)
    assert len(alive) == 12
    assert max(alive) <= 3, "those of one fold at most"


def test_a_fitted_network_holds_weights_only(data):
    X, y = data
    model = small().fit(X, y)
    searched = make_search([0.5]).fit(X, y)
    for net in (model.net_, searched.net_):
        assert all(weight.grad is None for weight in net.module_.parameters())
        assert not net.optimizer_.state
        assert net.train_split is None


def test_scores_that_are_no_numbers(data):
    X, y = data
    broken = {0.1: np.nan, 0.9: 1.0}
    model = make_search(
        [0.1, 0.9],
        scoring=lambda estimator, X, y: broken[estimator.lambda_],
        prior=TruncatedSVD(3),
        max_epochs=1,
    )
    with pytest.warns(UserWarning, match="2 of 4 scores are not finite"):
        model.fit(X, y)
    assert model.lambda_best_ == 0.9
    assert list(model.cv_results_["rank_test_score"]) == [2, 1]
    model.set_params(scoring=lambda estimator, X, y: {"a": 1.0})
    with pytest.raises(TypeError, match="scoring must return a number, got {'a': 1.0}"):
        model.fit(X, y)


def test_times_and_names_of_a_search(data):
    X, y = data
    table = pd.DataFrame(X[:, 0], columns=list("abcdef"))
    seen = []

    def scoring(estimator, X, y):
        seen.append(list(estimator.feature_names_in_))
        return estimator.score(X, y)

    model = make_search([0.1, 0.9], scoring=scoring)
    model.fit(table, y)
    assert seen[0] == list("abcdef") == list(model.feature_names_in_)
    for name in ("mean_fit_time", "mean_score_time"):
        assert (model.cv_results_[name] > 0).all()


@pytest.mark.parametrize(
    ("cv", "message"),
    [
        ([], "cv has no folds"),
        ([(np.arange(0), np.arange(5))], "Fold 0 of cv has no training samples"),
        ([(np.arange(9), np.arange(9, 20)), (np.arange(5), [])], "Fold 1 of cv has no test"),
    ],
)
def test_folds_that_are_none(data, cv, message):
    with pytest.raises(ValueError, match=message):
        make_search([0.5], cv=cv).fit(*data)


def test_folds_without_patients_are_those_of_a_search(data):
    X, y = data
    model = make_search([0.2, 0.7], cv=3, prior=TruncatedSVD(3))
    search = GridSearchCV(small(prior=TruncatedSVD(3)), {"lambda_": [0.2, 0.7]}, cv=KFold(3))
    expected = search.fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_allclose(model.fit(X, y).cv_results_["mean_test_score"], expected, rtol=1e-3)


def test_a_bad_bag_of_a_fold_is_named_by_its_place_in_X(data, tmp_path):
    X, y = data
    bags = []
    for number, tiles in enumerate(X):
        torch.save(torch.from_numpy(tiles.copy()), tmp_path / f"S{number:02d}.pt")
        bags.append(FeatureBag.from_file(tmp_path / f"S{number:02d}.pt"))
    torch.save(torch.full((5, 6), torch.nan), tmp_path / "S35.pt")
    bags[35] = FeatureBag.from_file(tmp_path / "S35.pt")
    cv = [(np.arange(10, 40), np.arange(10))]
    for standardize in (True, False):
        model = make_search([0.5], cv=cv, standardize=standardize)
        with pytest.raises(ValueError, match=r"bag 35 \(.*S35.*\) has no tile"):
            model.fit(bags, y)


def test_the_default_type_of_torch_does_not_matter(data):
    X, y = data
    expected = small().fit(X, y).predict(X)
    torch.set_default_dtype(torch.float64)
    try:
        model = small().fit(X, y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.net_.module_.layer.weight.dtype == torch.float32
    assert model.predict(X).shape == expected.shape
