"""PriorKnowledgeRegressor."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline

from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import FeatureBag, TiledSlide

AGGREGATORS = ["mlp", "transformer", "summary_mixing"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    bags = rng.normal(size=(60, 6, 8)).astype(np.float32) + rng.normal(size=(60, 1, 8))
    latent = bags.mean(axis=1) @ rng.normal(size=(8, 3))
    y = 8 + latent @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(60, 30))
    genes = [f"gene{number}" for number in range(30)]
    names = [f"slide{number}" for number in range(60)]
    return bags, pd.DataFrame(y, index=names, columns=genes)


def small(**parameters):
    defaults = {"max_epochs": 8, "depth": 1, "n_heads": 2, "head_dim": 4, "random_state": 0}
    return PriorKnowledgeRegressor(**(defaults | parameters))


class Recorder(TransformerMixin, BaseEstimator):
    """Prior that remembers the expression it was fitted on."""

    def fit(self, X, y=None):
        self.seen_ = X.copy()
        return self

    def transform(self, X):
        return np.ones((len(X), 2))


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_learns(data, aggregator):
    X, y = data
    model = small(
        aggregator=aggregator, max_epochs=150, lr=5e-3, prior=TruncatedSVD(3), lambda_=0.2
    )
    model.fit(X[:45], y[:45])
    assert model.score(X[45:], y[45:]) > 0.3
    untrained = model.predict_untrained(X[45:])
    assert untrained.shape == (15, 30)
    assert np.mean((untrained - y[45:]) ** 2) > 2 * np.mean((model.predict(X[45:]) - y[45:]) ** 2)


def test_forms_of_X_agree(data):
    X, y = data
    ragged = X.copy()
    ragged[::2, 4:] = np.nan
    as_list = [bag[~np.isnan(bag[:, 0])] for bag in ragged]
    model = small(aggregator="summary_mixing").fit(ragged, y)
    same = small(aggregator="summary_mixing").fit(as_list, y)
    assert_array_equal(model.predict(ragged), same.predict(as_list))
    table = small().fit(X[:, 0], y)
    one_tile = small().fit(X[:, :1], y)
    assert_array_equal(table.predict(X[:, 0]), one_tile.predict(X[:, :1]))


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_prediction_does_not_depend_on_the_batch(data, aggregator):
    X, y = data
    bags = [bag[: 2 + number % 5] for number, bag in enumerate(X)]
    model = small(aggregator=aggregator).fit(bags, y)
    full = model.predict(bags)
    assert full.dtype == np.float64
    assert_array_equal(full[7:8], model.predict(bags[7:8]))
    assert_array_equal(full[::-1], model.predict(bags[::-1]))


def test_seed(data):
    X, y = data
    a, b, c = (small(random_state=seed).fit(X, y).predict(X) for seed in (1, 1, 2))
    assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    state = torch.get_rng_state()
    small().fit(X, y).predict_untrained(X)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"


def test_seed_reaches_a_prior_that_has_none(data, tmp_path):
    X, y = data
    prior = make_pipeline(CoexpressionGraph(threshold=0.5), NMFGeneEmbedder(4))
    model = small(prior=prior)
    fitted = [clone(model).set_params(memory=memory).fit(X, y) for memory in (None, tmp_path)]
    assert_array_equal(fitted[0].embeddings_, fitted[1].embeddings_)
    assert_array_equal(fitted[0].predict(X), fitted[1].predict(X))
    assert prior[-1].random_state is None
    given = small(prior=clone(prior).set_params(nmfgeneembedder__random_state=5)).fit(X, y)
    assert given.prior_[-1].random_state == 5
    assert not np.array_equal(given.embeddings_, fitted[0].embeddings_)


def test_every_setting_of_training_is_used(data):
    X, y = data
    default = small().fit(X, y).predict(X)
    for setting in (
        {"weight_decay": 10.0},
        {"batch_size": 4},
        {"standardize": False},
        {"lr": 1e-4},
    ):
        assert not np.allclose(small(**setting).fit(X, y).predict(X), default, rtol=1e-4), setting


def test_unit_of_features_and_expression_does_not_matter(data):
    X, y = data
    expected = small().fit(X, y).predict(X)
    moved = 3 + X * np.logspace(-2, 2, 8)
    assert_allclose(small().fit(moved, y).predict(moved), expected, rtol=1e-3)
    scaled = small().fit(X, 100 * y).predict(X)
    assert_allclose(scaled / 100, expected, rtol=1e-3)


def test_same_numbers_for_any_n_jobs(data):
    X, y = data
    scores = [
        cross_validate(small(aggregator="transformer"), X, y, cv=3, n_jobs=n)["test_score"]
        for n in (1, 2)
    ]
    assert_allclose(scores[0], scores[1], rtol=1e-6)


def test_untrained_baseline_is_the_start_of_training(data):
    X, y = data
    model = small(prior=TruncatedSVD(3, random_state=0)).fit(X, y)
    barely = small(prior=TruncatedSVD(3, random_state=0), max_epochs=1, lr=1e-12).fit(X, y)
    assert_allclose(model.predict_untrained(X), barely.predict(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [{"lambda_": 0.9}, {"prior": np.ones((30, 8)), "lambda_": 0.0}])
def test_lambda_zero_and_no_prior_are_the_plain_layer(data, other):
    X, y = data
    plain = small(lambda_=0.3).fit(X, y)
    assert_array_equal(plain.predict(X), small(**other).fit(X, y).predict(X))
    assert not np.array_equal(
        plain.predict(X), small(prior=np.ones((30, 8)), lambda_=0.3).fit(X, y).predict(X)
    )


def test_wider_embeddings_get_a_projection(data):
    X, y = data
    module = small(prior=np.ones((30, 20)), embed_dim=12).fit(X, y).net_.module_
    assert module.tile_projection.weight.shape == (12, 8)
    assert module.slide_projection.weight.shape == (20, 12)
    assert module.layer.weight.shape == (30, 20)


@pytest.mark.parametrize("width", [5, 20])
def test_projected_takes_embeddings_as_wide_as_they_are(data, width):
    X, y = data
    G = np.random.default_rng(0).normal(size=(30, width))
    G[3] = 0
    model = small(prior=G, layer="projected", embed_dim=12).fit(X, y)
    assert model.net_.module_.layer.weight.shape == (30, 12)
    Q = model.embeddings_
    assert Q.shape == (30, width)
    assert not Q[3].any()
    assert_allclose(Q.T @ Q, np.eye(width), atol=1e-5)
    assert_allclose(Q @ (Q.T @ G), G, atol=1e-4)
    # Columns that say the same are one; of a prior that knows nothing, nothing is left.
    again = small(prior=np.c_[G, G[:, 0]], layer="projected").fit(X, y)
    assert again.embeddings_.shape == (30, width)
    zeros = small(prior=np.zeros((30, 4)), layer="projected", lambda_=1.0).fit(X, y)
    assert_array_equal(zeros.predict(X), small().fit(X, y).predict(X))


@pytest.mark.parametrize("aggregator", ["mlp", "topk"])
@pytest.mark.parametrize(("factor", "offset"), [(1e-6, 0), (1e5, 0), (1e-2, 1e7), (1, -1e9)])
def test_unit_of_y_has_no_influence(data, factor, offset, aggregator):
    X, y = data
    fitted = [
        small(aggregator=aggregator, max_epochs=4).fit(X, values)
        for values in (y, y * factor + offset)
    ]
    expected, found = (model.predict(X) for model in fitted)
    rounding = np.spacing(abs(offset)) / factor
    assert_allclose((found - offset) / factor, expected, rtol=1e-4, atol=1e-3 + rounding)
    if not offset:  # maps are float32
        [expected], [found] = (model.predict_tiles(X[:1], genes=["gene5"]) for model in fitted)
        assert_allclose(found / factor, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_projected_is_the_network_without_a_prior_projected(data, lambda_):
    X, y = data
    G = np.random.default_rng(0).normal(size=(30, 2))
    G[3] = 0
    plain = small(max_epochs=30, patience=3).fit(X, y)
    model = clone(plain).set_params(prior=G, layer="projected", lambda_=lambda_).fit(X, y)
    assert_array_equal(model.history_.drop(columns="dur"), plain.history_.drop(columns="dur"))
    Q = model.embeddings_.astype(float)
    for predict, module in {
        "predict": plain.net_.module_,
        "predict_untrained": plain._build_networks()[0],
    }.items():
        mean = module.target_mean.numpy()
        deviation = getattr(plain, predict)(X) - mean
        expected = (1 - lambda_) * deviation + lambda_ * deviation @ Q @ Q.T
        expected[:, 3] = deviation[:, 3]  # a gene without an embedding
        assert_allclose(getattr(model, predict)(X) - mean, expected, atol=1e-5)
    [tiles] = model.predict_tiles(X[:1], genes=["gene5"])
    assert_allclose(tiles["gene5"].iloc[0], model.predict(X[:1, :1])[0, 5], rtol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_projection_helps_where_expression_is_of_low_rank_and_harms_where_it_is_wrong(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(200, 1, 20))
    signal = X[:, 0] @ rng.normal(size=(20, 2)) @ rng.normal(size=(2, 60))
    y = signal + 12 * rng.normal(size=signal.shape)
    priors = {
        "none": None,
        "eigen": TruncatedSVD(2, random_state=0),
        "random": rng.normal(size=(60, 2)),
    }
    errors = {}
    for name, prior in priors.items():
        model = small(prior=prior, layer="projected", lambda_=1.0, max_epochs=40, lr=1e-3)
        predicted = model.fit(X[:150], y[:150]).predict(X[150:])
        errors[name] = np.mean((predicted - signal[150:]) ** 2) / signal[150:].var()
    # The truth has two factors, so a good part of the error lies outside of their span.
    assert errors["eigen"] < 0.9 * errors["none"]
    assert errors["random"] > 1.5 * errors["none"]


def test_narrower_embeddings_are_padded(data):
    X, y = data
    module = small(prior=np.ones((30, 5))).fit(X, y).net_.module_
    assert module.layer.weight.shape == (30, 8)
    assert module.layer.embeddings[:, :5].all()
    assert not module.layer.embeddings[:, 5:].any()


def test_dataframe_of_embeddings_is_matched_by_name(data):
    X, y = data
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(30, 4)), index=y.columns)
    model = small(prior=frame.iloc[::-1].drop("gene3"), init_scale=0.5).fit(X, y)
    expected = frame.copy()
    expected.loc["gene3"] = 0
    scaled = 0.5 * expected * np.sqrt(1 / (3 * 4) / np.mean(expected.drop("gene3").to_numpy() ** 2))
    assert_allclose(model.embeddings_, scaled, rtol=1e-5)
    unscaled = small(prior=frame, scale_embeddings=False).fit(X, y)
    assert_allclose(unscaled.embeddings_, frame, rtol=1e-6)
    assert model.prior_ is None
    assert list(model.gene_names_out_) == list(y.columns)


def test_the_scale_of_a_prior_does_not_matter(data):
    X, y = data
    G = np.random.default_rng(0).normal(size=(30, 4))
    predicted = [small(prior=scale * G).fit(X, y).predict(X) for scale in (1, 1000)]
    assert_allclose(predicted[0], predicted[1], rtol=1e-3)
    zeros = small(prior=np.zeros((30, 4))).fit(X, y)
    assert not zeros.embeddings_.any()


def test_prior_sees_training_patients_once(data):
    X, y = data
    patients = np.repeat([f"p{number:02d}" for number in range(30)], 2)
    paired = y.iloc[np.repeat(np.arange(0, 60, 2), 2)].set_axis(y.index)
    model = small(prior=Recorder()).fit(X, paired, groups=patients)
    seen = model.prior_.seen_
    assert list(seen.columns) == sorted(set(patients))
    assert list(seen.index) == list(y.columns)
    assert_allclose(seen.to_numpy(), paired.iloc[::2].T, rtol=1e-12)
    with pytest.warns(UserWarning, match="30 samples repeat the expression of an earlier one"):
        inferred = small(prior=Recorder()).fit(X, paired)
    assert_allclose(inferred.prior_.seen_, seen)
    assert_array_equal(inferred.prior_.seen_.shape, (30, 30))


def test_leak_each_fold_fits_its_prior_on_its_training_patients_alone(data):
    X, y = data
    patients = np.arange(60) // 3
    cv = GroupKFold(4)
    with sklearn.config_context(enable_metadata_routing=True):
        fitted = cross_validate(
            make_pipeline(small(prior=make_pipeline(Recorder()), max_epochs=1)),
            X,
            y,
            cv=cv,
            params={"groups": patients},
            return_estimator=True,
        )["estimator"]
    for model, (train, _) in zip(fitted, cv.split(X, y, patients), strict=True):
        expected = y.iloc[train].groupby(patients[train]).mean().T
        assert_allclose(model[-1].prior_[0].seen_, expected, rtol=1e-12)


@pytest.mark.parametrize("routing", [True, False])
def test_groups_reach_the_regressor_through_a_search(data, routing):
    X, y = data
    patients = np.arange(60) // 2
    search = GridSearchCV(
        make_pipeline("passthrough", small(prior=Recorder(), max_epochs=1)),
        {"priorknowledgeregressor__lambda_": [0.2, 0.8]},
        cv=GroupKFold(3),
    )
    parameters = {} if routing else {"priorknowledgeregressor__groups": patients}
    with sklearn.config_context(enable_metadata_routing=routing):
        search.fit(X, y, groups=patients, **parameters)
    assert search.best_estimator_[-1].prior_.seen_.shape == (30, 30)


def test_validation_is_by_patient(data):
    X, y = data
    patients = np.repeat(np.arange(20), 3)
    model = small(validation_fraction=0.2).fit(X, y, groups=patients)
    held_out = patients[model.validation_indices_]
    assert len(model.validation_indices_) == 12
    assert_array_equal(np.unique(held_out, return_counts=True)[1], [3] * 4)
    assert "valid_loss" in model.history_


def test_best_epoch_is_restored(data):
    X, y = data
    model = small(max_epochs=120, lr=0.05, patience=5, early_stopping="loss").fit(X, y)
    losses = model.history_["valid_loss"]
    assert model.best_epoch_ == losses.idxmin() + 1
    assert len(losses) == model.best_epoch_ + 5 < 120, "stopped after the patience was used up"
    held_out = model.validation_indices_
    loss = np.mean((model.predict(X[held_out]) - y.iloc[held_out]).to_numpy() ** 2)
    assert_allclose(loss, losses.min(), rtol=1e-5)
    assert losses.iloc[-1] > losses.min()


def test_without_validation_the_training_loss_is_watched(data):
    X, y = data
    model = small(validation_fraction=0).fit(X, y)
    assert list(model.history_.columns) == ["epoch", "train_loss", "dur"]
    assert model.best_epoch_ == model.history_["train_loss"].idxmin() + 1
    assert len(model.validation_indices_) == 0


def test_without_early_stopping_all_epochs_are_trained(data):
    X, y = data
    settings = {"max_epochs": 30, "lr": 0.05, "patience": 1}
    assert len(small(**settings).fit(X, y).history_) < 30
    assert len(small(early_stopping=None, **settings).fit(X, y).history_) == 30


def test_a_validation_set_of_one_slide_works(data):
    X, y = data
    model = small(validation_fraction=0.01).fit(X, y)
    assert len(model.validation_indices_) == 1
    assert model.history_["valid_loss"].notna().all()


def test_pickle_clone_and_deepcopy(data):
    X, y = data
    model = small(prior=TruncatedSVD(3)).fit(X, y)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_array_equal(copied.predict(X), model.predict(X))
        assert_array_equal(copied.predict_untrained(X), model.predict_untrained(X))
    assert not hasattr(clone(model), "net_")


def test_graph_parameters_are_searchable(data):
    X, y = data
    prior = make_pipeline(
        CoexpressionGraph(
            external=pd.DataFrame([("gene0", "gene1")], columns=["gene_a", "gene_b"])
        ),
        NMFGeneEmbedder(4, random_state=0),
    )
    search = GridSearchCV(
        small(prior=prior, max_epochs=2),
        {"prior__coexpressiongraph__source": ["external", "internal", "combined"]},
        cv=2,
    ).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(set(search.cv_results_["mean_test_score"])) > 1


def test_memory_fits_a_prior_once(data, tmp_path):
    X, y = data
    runs = [
        small(prior=TruncatedSVD(3, random_state=0), memory=str(tmp_path), lambda_=lambda_).fit(
            X, y
        )
        for lambda_ in (0.1, 0.9)
    ]
    assert_array_equal(runs[0].embeddings_, runs[1].embeddings_)
    assert len(list(tmp_path.rglob("output.pkl"))) == 1


def test_constant_gene_is_predicted_by_its_mean(data):
    X, y = data
    constant = y.assign(gene0=5.0)
    with pytest.warns(UserWarning, match="1 of 30 genes have the same value .*: 'gene0'") as said:
        predicted = small(max_epochs=60).fit(X, constant).predict(X)
    assert len(said) == 1
    assert_allclose(predicted[:, 0], 5.0, rtol=1e-6)


def test_beats_nothing_on_noise(data):
    X, y = data
    shuffled = y.iloc[np.random.default_rng(0).permutation(60)]
    model = small(max_epochs=60).fit(X[:45], shuffled[:45])
    assert model.score(X[45:], shuffled[45:]) < 0.1
    assert Ridge().fit(X[:45, 0], y[:45]).score(X[45:, 0], y[45:]) > 0.1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lambda_": 1.5}, ValueError, r"'lambda_' parameter .* range \[0.0, 1.0\]. Got 1.5"),
        ({"aggregator": "mean"}, ValueError, "'aggregator' parameter .* Got 'mean'"),
        (
            {"prior": np.ones((29, 4))},
            ValueError,
            r"each of the 30 genes of y, got shape \(29, 4\)",
        ),
        (
            {"prior": pd.DataFrame(np.ones((2, 4)), index=["a", "b"])},
            ValueError,
            "none of its genes",
        ),
        ({"prior": CoexpressionGraph()}, TypeError, "that is a graph and not gene embeddings"),
        ({"prior": np.full((30, 4), np.nan)}, ValueError, "embeddings contain NaN"),
        ({"device": "tpuu"}, ValueError, "device='tpuu' is not available here"),
        ({"validation_fraction": 1.0}, ValueError, "'validation_fraction' parameter"),
    ],
)
def test_bad_parameters(data, change, error, message):
    X, y = data
    with pytest.raises(error, match=message):
        small(**change).fit(X, y)


def test_absent_device(data):
    with pytest.raises(ValueError, match="device='cuda:99' is not available here"):
        small(device="cuda:99").fit(*data)


def test_bad_data(data):
    X, y = data
    empty = X.copy()
    empty[3] = np.nan
    with pytest.raises(ValueError, match="bag 3 has no tile"):
        small().fit(empty, y)
    partly = X.copy()
    partly[3, 0, 1] = np.nan
    with pytest.raises(ValueError, match="bag 3 contains NaN in a tile that is otherwise present"):
        small().fit(partly, y)
    with pytest.raises(ValueError, match="bag 1 has 5 features per tile, but the others have 8"):
        small().fit([X[0], X[1, :, :5]], y[:2])
    missing = y.copy()
    missing.iloc[2, 4] = np.nan
    with pytest.raises(ValueError, match=r"(?s)NaN.*'gene4'.*'slide2'"):
        small().fit(X, missing)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        small().fit(X, y[:-1])
    with pytest.raises(ValueError, match="60 of 60 carry different names"):
        small().fit(pd.DataFrame(X[:, 0], index=[f"s{row}" for row in range(60)]), y)
    with pytest.raises(ValueError, match="duplicate gene names.*'gene1'"):
        small().fit(X, y.rename(columns={"gene0": "gene1"}))
    groups = np.arange(60.0)
    groups[[5, 9]] = np.nan
    with pytest.raises(ValueError, match="2 samples have no patient, the first at position 5"):
        small().fit(X, y, groups=groups)
    with pytest.raises(
        ValueError, match="X has 5 features, but PriorKnowledgeRegressor is expecting 8"
    ):
        small().fit(X, y).predict(X[:, :, :5])


def test_patients_may_be_numbers_and_text_at_once(data):
    X, y = data
    groups = np.array([12, "12b"] * 2 + list(range(56)), dtype=object)
    model = small().fit(X, y, groups=groups)
    assert np.array_equal(model.predict(X), small().fit(X, y, groups=groups.astype(str)).predict(X))


def test_slides_instead_of_features(data):
    _, y = data
    paths = [f"{name}.svs" for name in y.index]
    for X in (paths, pd.Series(paths), [Path(path) for path in paths]):
        with pytest.raises(TypeError, match=r"takes tile features, got slides .*slide0.svs.*Tiler"):
            small().fit(X, y)
    tiled = [TiledSlide(path) for path in paths]
    with pytest.raises(TypeError, match=r"Use FoundationFeaturizer\(\) before it"):
        small().fit(tiled, y)


def test_bags_come_in_many_containers(data):
    X, y = data
    expected = small().fit(X, y).predict(X)
    for same in (torch.from_numpy(X), pd.Series(list(X), index=y.index), tuple(X)):
        assert_allclose(small().fit(same, y).predict(same), expected, rtol=1e-6)


def test_loss_that_is_never_finite(data):
    X, y = data
    with pytest.raises(ValueError, match=r"finite valid_loss.*lr=1e\+30"):
        small(lr=1e30).fit(X, y)


def test_prior_that_knows_few_genes(data):
    X, y = data
    few = pd.DataFrame(np.ones((12, 2)), index=["gene3", "gene7", *[f"ENSG{i}" for i in range(10)]])
    with pytest.warns(UserWarning, match="only 2 of the 30 genes of y .*'gene0'.*'gene3'"):
        small(prior=few).fit(X, y)


def test_all_warnings_are_errors_in_a_plain_fit(data):
    X, y = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(prior=TruncatedSVD(3)).fit(X, y).predict(X)


def test_verbose_is_silent_without_a_terminal(data, capsys):
    X, y = data
    small(verbose=1).fit(X, y)
    captured = capsys.readouterr()
    assert not re.search(r"epoch|loss", captured.out + captured.err)


def test_score_is_the_share_of_the_variance_of_all_genes(data):
    X, y = data
    model = small(max_epochs=30, lr=1e-2).fit(X, y)
    errors = ((model.predict(X) - y) ** 2).to_numpy().sum()
    assert_allclose(model.score(X, y), 1 - errors / ((y - y.mean()) ** 2).to_numpy().sum())
    # A gene that varies by rounding would have an R squared of -1e30 of its own.
    nearly = y.assign(gene0=y["gene0"].iloc[0] + 1e-15 * np.arange(60))
    assert 0 < model.score(X, nearly) < 1
    weights = np.arange(60.0)
    assert model.score(X, y, sample_weight=weights) != model.score(X, y)


def test_score_compares_names(data):
    X, y = data
    model = small(max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match=r"other genes than in fit, or another order: 'gene29'"):
        model.score(X, y.iloc[:, ::-1])
    bags = [FeatureBag(bag, slide=name) for bag, name in zip(X, y.index, strict=True)]
    with pytest.raises(ValueError, match="carry different names"):
        model.score(bags, y.iloc[::-1])
    assert model.score(bags, y) == model.score(X, y.to_numpy())
