"""save_model writes what predicts and nothing of the patients; load_model checks what it reads."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import zipfile
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_pk.io import ModelVersionWarning, SavedModel, load_model, save_model
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    PriorKnowledgeRidge,
)
from sklearn_pk.slides import (
    BagPooler,
    FeatureBag,
    FoundationFeaturizer,
    SlideTiler,
    SuperTileClusterer,
)

N, WIDTH = 40, 6
PATIENTS = [f"PATIENT-{number:03d}" for number in range(N)]
GENES = [f"GENE{number}" for number in range(30)]
ORIGIN = {"encoder": "uni", "weights_hash": "abc", "mpp": 0.5, "tile_edge_um": 128.0}


@pytest.fixture(scope="module")
def expression():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, 3)) @ rng.normal(size=(3, 30)) + rng.normal(size=(N, 30))
    return pd.DataFrame(values, index=PATIENTS, columns=GENES)


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(np.random.default_rng(1).normal(size=(N, WIDTH)), index=PATIENTS)


def make_bags():
    rng = np.random.default_rng(2)
    return [
        FeatureBag(rng.normal(size=(5, WIDTH)), slide=f"{name}.svs", **ORIGIN) for name in PATIENTS
    ]


@pytest.fixture(scope="module")
def bags():
    return make_bags()


def graph_prior():
    return make_pipeline(CoexpressionGraph(threshold=0.5), NMFGeneEmbedder(4))


def network(**changes):
    settings = {"prior": graph_prior(), "max_epochs": 2, "early_stopping": None, "device": "cpu"}
    return PriorKnowledgeRegressor(**(settings | {"random_state": 0} | changes))


def fitted_prior(expression):
    """Return a prior that holds these patients, and others without slides."""
    others = expression.rename(index=lambda name: name.replace("-", "-WITHOUT-"))
    others = others + np.random.default_rng(3).normal(size=others.shape)
    return EigengeneEmbedder(3, expression=others, random_state=0).fit(expression.T)


# The model, and whether it is fitted on bags.
MODELS = {
    "network": lambda y: (network(), True),
    "fitted prior": lambda y: (network(prior=fitted_prior(y)), True),
    "prior with names": lambda y: (
        network(prior=pd.DataFrame(np.eye(30)[:, :3], GENES, PATIENTS[:3])),
        True,
    ),
    "start from another": lambda y: (network(init=network().fit(make_bags(), y)), True),
    "search": lambda y: (PriorKnowledgeRegressorCV(network(), [0.2, 0.8], cv=2), True),
    "ridge": lambda y: (PriorKnowledgeRidge(kernel="linear"), False),
    "pooled ridge": lambda y: (
        make_pipeline(BagPooler(), StandardScaler(), PriorKnowledgeRidge(kernel="linear")),
        True,
    ),
    "pipeline": lambda y: (make_pipeline(StandardScaler(), PCA(4), network()), False),
}


@pytest.fixture(scope="module")
def models(expression, table, bags):
    fitted = {}
    for name, make in MODELS.items():
        model, takes_bags = make(expression)
        X = bags if takes_bags else table
        fitted[name] = model.fit(X, expression), X
    return fitted


def arrays_of(path):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    yield np.lib.format.read_array(file, allow_pickle=False)


def resemblance(path, expression):
    """Return the largest correlation over genes of a patient with an axis of a saved array."""
    patients = expression.to_numpy() - expression.to_numpy().mean(axis=0)
    largest = 0.0
    for array in arrays_of(path):
        for axes in (array, array.T):
            if axes.ndim == 2 and axes.shape[1] == patients.shape[1]:
                for values in (axes, axes - axes.mean(axis=0)):
                    r = np.corrcoef(patients, values)[:N, N:]
                    largest = max(largest, np.nanmax(np.abs(r), initial=0.0))
    return largest


@pytest.mark.parametrize("name", MODELS)
def test_predictions_survive_and_patients_do_not(name, models, expression, tmp_path):
    model, X = models[name]
    path = tmp_path / "model.skops"
    save_model(model, path)
    loaded = load_model(path)
    assert_allclose(loaded.predict(X), model.predict(X), rtol=1e-9, atol=1e-9)
    frame = loaded.predict_frame(X)
    assert list(frame.columns) == GENES
    assert [str(each).removesuffix(".svs") for each in frame.index] == PATIENTS
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(each) for each in archive.namelist())
    assert b"PATIENT" not in content
    values = expression.to_numpy()
    for kind in (values, values.T, values.astype(np.float32), values.T.astype(np.float32)):
        for row in np.ascontiguousarray(kind):
            assert row[:2].tobytes() not in content
    assert resemblance(path, expression) < 0.98
    assert not isinstance(getattr(model, "prior_", None), str), "the model itself is unchanged"


def test_patients_are_found_if_they_are_asked_for(models, expression, tmp_path):
    # The same search as above does find them.
    path = tmp_path / "model.skops"
    model, X = models["network"]
    save_model(model, path, include_expression=True)
    assert resemblance(path, expression) > 0.99
    with zipfile.ZipFile(path) as archive:
        assert any(b"gene" in archive.read(name) for name in archive.namelist())
    loaded = load_model(path)
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert hasattr(loaded.model.prior_[0], "graph_")
    assert "can hold the expression" in loaded.card


@pytest.mark.parametrize("kernel", ["rbf", "precomputed"])
def test_kernels_that_need_the_patients(kernel, table, expression, tmp_path):
    X = table.to_numpy() @ table.to_numpy().T if kernel == "precomputed" else table.to_numpy()
    model = PriorKnowledgeRidge(kernel=kernel).fit(X, expression)
    path = tmp_path / "model.skops"
    with pytest.raises(ValueError, match=r"include_expression=True.*kernel='linear'"):
        save_model(model, path)
    assert not path.exists()
    save_model(model, path, include_expression=True)
    loaded = load_model(path)
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert "their expression can be computed" in loaded.card


def reconstruct(model):
    """Compute the standardised expression of the training samples of a ridge without prior."""
    kernel = model._centre(model._kernel(model.X_fit_))
    return (kernel + model.alpha_ * np.eye(len(kernel))) @ model.dual_coef_


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_why_samples_are_refused_or_mixed(kernel, table, expression, tmp_path):
    model = PriorKnowledgeRidge(prior=None, kernel=kernel).fit(table.to_numpy(), expression)
    standardised = (expression - expression.mean()) / expression.std(ddof=0)
    assert_allclose(reconstruct(model), standardised, atol=1e-8)
    if kernel == "linear":
        save_model(model, tmp_path / "model.skops")
        mixed = reconstruct(load_model(tmp_path / "model.skops").model)
        r = np.corrcoef(standardised, mixed)[:N, N:]
        # The rotation is drawn anew each time; with few patients some mixtures resemble one.
        assert np.abs(r).max() < 0.98
        assert_allclose(mixed.T @ mixed, standardised.T @ standardised, atol=1e-6)


def test_mixed_samples_predict_the_same_uncertainty(models, tmp_path):
    model, X = models["ridge"]
    save_model(model, tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops").model
    for got, expected in zip(
        loaded.predict(X.to_numpy(), return_std=True),
        model.predict(X.to_numpy(), return_std=True),
        strict=True,
    ):
        assert_allclose(got, expected, rtol=1e-9)
    assert np.abs(loaded.X_fit_ - model.X_fit_).max() > 0.1


def test_size(tmp_path):
    rng = np.random.default_rng(0)
    y = pd.DataFrame(rng.normal(size=(12, 3000)), columns=[f"G{n}" for n in range(3000)])
    model = network(prior=EigengeneEmbedder(8)).fit(rng.normal(size=(12, 64)), y)
    save_model(model, tmp_path / "model.skops")
    weights = sum(value.nbytes for value in model.net_.module_.learned_state().values())
    weights += model.embeddings_.nbytes
    assert os.path.getsize(tmp_path / "model.skops") < 2 * weights


def test_card(models, bags, table, expression, tmp_path):
    result = cross_val_significance(
        Ridge(), table.to_numpy(), expression, groups=np.repeat(range(20), 2)
    )
    save_model(
        models["network"][0],
        tmp_path / "model.skops",
        features=bags,
        report=result,
        units="log2(TPM + 1) <b>|",
    )
    loaded = load_model(tmp_path / "model.skops")
    card = loaded.card
    for text in (
        "Not a medical device",
        "log2(TPM + 1) &lt;b>\\|",
        "uni (hash of the weights: abc)",
        "CC-BY-NC-ND-4.0",
        "128 um wide, 0.5 um/px",
        "40 slides of 20 patients",
        "no expression and no names of patients",
        f"torch {version('torch')}",
    ):
        assert text in card
    r = result.report["r"]
    assert card.count("\n| GENE") == 30
    assert f"| GENE3 | {r['GENE3']:.3f} |" in card
    assert_allclose(loaded.report["r"], r)
    assert loaded.report["significant"].dtype == bool
    assert repr(loaded) == "SavedModel(PriorKnowledgeRegressor, 30 genes, encoder: uni)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "uni2-h"}, r"'x.svs' has features of the encoder 'uni2-h'.*'uni'"),
        ({"weights_hash": "def"}, r"weights with the hash 'def'.*'abc'"),
        ({"mpp": 0.25}, r"um/px = 0.25.*0.5"),
        ({"tile_edge_um": 64.0}, r"edge in um is 64.0.*128.0"),
    ],
)
def test_features_of_another_kind(change, message, models, bags, tmp_path):
    save_model(models["network"][0], tmp_path / "model.skops", features=bags[:3])
    loaded = load_model(tmp_path / "model.skops")
    other = FeatureBag(bags[0].features, slide="x.svs", **(ORIGIN | change))
    for predict in (loaded.predict, loaded.predict_frame, loaded.predict_tiles):
        with pytest.raises(ValueError, match=message):
            predict([bags[0], other])
    with pytest.raises(ValueError, match="the bags differ: 'x.svs'"):
        save_model(models["network"][0], tmp_path / "other.skops", features=[bags[0], other])
    # Rounding of pixels, and bags that state nothing.
    near = FeatureBag(bags[0].features, **(ORIGIN | {"mpp": 0.502, "tile_edge_um": 128.5}))
    assert len(loaded.predict([near, FeatureBag(bags[0].features)])) == 2


def test_maps_of_pipelines(bags, expression):
    tiles = [
        FeatureBag(bag.features, np.arange(10).reshape(5, 2) * 64, bag.slide, 64)
        for bag in bags[:2]
    ]
    mean, regressor = BagPooler(statistics=["mean"]), PriorKnowledgeRidge()
    fitted = make_pipeline(mean, regressor).fit(bags, expression)
    clustered = make_pipeline(SuperTileClusterer(n_clusters=2), network()).fit(bags, expression)
    for model in (fitted, make_pipeline(FunctionTransformer(), *fitted), clustered):
        found = SavedModel(model, {"origin": {}}).predict_tiles(tiles, genes=["GENE3"])
        expected = model[-1].predict_tiles(tiles, genes=["GENE3"])
        for got, wanted in zip(found, expected, strict=True):
            pd.testing.assert_frame_equal(got, wanted)
    for step, message in ((StandardScaler(), "the step 'standardscaler' takes"), (None, "'std'")):
        steps = [BagPooler()] if step is None else [mean, step]
        model = make_pipeline(*steps, PriorKnowledgeRidge()).fit(bags, expression)
        with pytest.raises(ValueError, match=message):
            SavedModel(model, {"origin": {}}).predict_tiles(tiles)


def test_pipeline_from_slides(small_slides, expression, tmp_path):
    model = make_pipeline(
        SlideTiler(tile_size=64, max_tiles=4, random_state=0),
        FoundationFeaturizer(device="cpu", store=tmp_path / "store"),
        BagPooler(statistics=["mean"]),
        PriorKnowledgeRidge(kernel="linear"),
    ).fit(small_slides, expression.iloc[:3].reset_index(drop=True))
    save_model(model, tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops")
    assert_allclose(loaded.predict(small_slides), model.predict(small_slides), atol=1e-8)
    assert loaded.info["origin"]["encoder"] == "efficientnet-lite0"
    assert loaded.info["origin"]["tile_edge_um"] == 32
    assert "Apache-2.0" in loaded.card
    # Bags from elsewhere are compared with the encoder of the pipeline.
    [bag] = model[:2].transform(small_slides[:1])
    assert (bag.encoder, bag.mpp) == ("efficientnet-lite0", 0.5)
    assert bag.weights_hash == loaded.info["origin"]["weights_hash"]
    tiled = model[0].transform(small_slides[:1])
    [in_memory] = clone(model[1]).set_params(store=None).fit_transform(tiled)
    for name in ("encoder", "weights_hash", "mpp", "tile_edge_um"):
        assert getattr(in_memory, name) == getattr(bag, name)


class Mean(torch.nn.Module):
    """Aggregator of a user."""

    def __init__(self, dim):
        super().__init__()
        self.linear = torch.nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        return self.linear(x).mean(dim=1)


def test_types_of_a_user(bags, expression, tmp_path):
    model = network(aggregator=Mean).fit(bags, expression)
    path = tmp_path / "model.skops"
    save_model(model, path)
    with pytest.raises(ValueError, match=r"types that can run code: \['.*test_models.Mean'\]"):
        load_model(path)
    loaded = load_model(path, trusted=[f"{Mean.__module__}.Mean"])
    assert_array_equal(loaded.predict(bags), model.predict(bags))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda X, y: GridSearchCV(PriorKnowledgeRidge(), {"alpha": [1.0]}).fit(X, y), "best_est"),
        (lambda X, y: cross_val_significance(Ridge(), X, y), "its final_model"),
        (lambda X, y: Ridge().fit(X, y), "an instance of Ridge"),
        (lambda X, y: make_pipeline(PCA(2), Ridge()).fit(X, y), "an instance of Ridge"),
    ],
)
def test_other_things_are_not_saved(make, message, table, expression, tmp_path):
    thing = make(table.to_numpy(), expression)
    with pytest.raises(TypeError, match=message):
        save_model(thing, tmp_path / "model.skops")


def rewrite(path, **changes):
    """Change what a file states about itself."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    info = json.loads(members["sklearn_pk.json"]) | changes
    members["sklearn_pk.json"] = json.dumps(info).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def saved(models, tmp_path):
    path = tmp_path / "model.skops"
    save_model(models["ridge"][0], path)
    return path


def test_versions(saved):
    with zipfile.ZipFile(saved) as archive:
        versions = json.loads(archive.read("sklearn_pk.json"))["versions"]
    rewrite(saved, versions=versions | {"scikit-learn": "1.0", "torch": "1.0"})
    with pytest.warns(ModelVersionWarning, match=r"saved with scikit-learn 1.0 \(now") as caught:
        load_model(saved)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    rewrite(saved, format=0, versions={"sklearn_pk": "0.0.3"})
    with pytest.raises(ValueError, match=r"of format 0, saved with sklearn_pk 0.0.3, but"):
        load_model(saved)


def test_a_type_that_this_version_lacks(saved):
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["schema.json"] = members["schema.json"].replace(b"_ridge", b"_older_ridge")
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"does not know .*_older_ridge.*It was saved with"):
        load_model(saved)


def test_other_files(saved, models, cmu_slide, tmp_path):
    with pytest.raises(FileNotFoundError, match="Model not found: 'none.skops'"):
        load_model("none.skops")
    with pytest.raises(ValueError, match=r"cmu_small_region.svs' is not a model"):
        load_model(cmu_slide)
    skops.io.dump(models["ridge"][0], tmp_path / "plain.skops")
    with pytest.raises(ValueError, match=r"plain.skops' is not a model of save_model.*skops.io.l"):
        load_model(tmp_path / "plain.skops")
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a model"):
        load_model(saved)
    damaged = bytearray(content)
    damaged[len(content) // 3] ^= 255
    saved.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        load_model(saved)


def test_what_cannot_be_written(models, expression, tmp_path):
    model = models["ridge"][0]
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "model.skops", tmp_path / "file" / "model.skops"):
        with pytest.raises(OSError, match=r"model.skops' cannot be written.*folder"):
            save_model(model, path)
    with pytest.raises(IsADirectoryError, match="got a folder"):
        save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    report = pd.DataFrame({"r": [0.5], "significant": [True]}, index=["GENE0"])
    with pytest.raises(ValueError, match="report lacks 29 of the 30 genes.*'GENE1'"):
        save_model(model, tmp_path / "model.skops", report=report)
    with pytest.raises(TypeError, match="feature bags"):
        save_model(model, tmp_path / "model.skops", features=[np.ones((3, WIDTH))])
    assert isinstance(SavedModel(model, {"origin": {}}).gene_names_out_, np.ndarray)
