"""FoundationFeaturizer: from tiles to features."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_pk.slides import (
    Encoder,
    FoundationFeaturizer,
    SlideTiler,
    SuperTileClusterer,
    TiledSlide,
    _encoding,
    read_features,
)

SCALE = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def mean_colours():
    """An encoder whose features are known: the normalised mean of each channel."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def row_means(X):
    """Reduce (n, tiles, d) to (n, d) where tiles may be missing."""
    return np.nanmean(X, axis=1)


@pytest.fixture
def tiled(small_slides):
    return SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)


@pytest.fixture
def encoded(monkeypatch):
    """Names of the slides that are encoded and written to a store."""
    names = []
    write = _encoding.write_features

    def noted(path, slide, *args):
        names.append(getattr(slide, "name", "tiles"))
        return write(path, slide, *args)

    monkeypatch.setattr(_encoding, "write_features", noted)
    return names


def test_features_are_those_of_the_tiles(tiled):
    featurizer = FoundationFeaturizer(mean_colours(), batch_size=7)
    bags = featurizer.fit_transform(tiled)
    assert featurizer.n_features_out_ == 3
    for bag, slide in zip(bags, tiled, strict=True):
        pixels = np.stack(list(slide.iter_tiles())) / 255
        expected = (pixels.mean(axis=(1, 2)) - SCALE[0]) / SCALE[1]
        np.testing.assert_allclose(bag.features, expected, atol=1e-5)
        np.testing.assert_array_equal(bag.coords, slide.coords)
        assert (bag.slide, bag.size_level0) == (slide.path, slide.size_level0)


def test_default_encoder_on_a_real_slide(cmu_slide):
    slides = SlideTiler(max_tiles=3, random_state=0).fit_transform([cmu_slide])
    [bag] = FoundationFeaturizer().fit_transform(slides)
    assert bag.shape == (3, 1280)
    assert np.isfinite(bag.features).all()
    assert bag.features.std(axis=0).max() > 0.1


def test_own_tiles(tiled, tmp_path, encoded):
    tiles = [np.stack(list(slide.iter_tiles())) for slide in tiled]
    featurizer = FoundationFeaturizer(mean_colours(), store=tmp_path)
    bags = featurizer.fit_transform(tiles)
    expected = FoundationFeaturizer(mean_colours()).fit_transform(tiled)
    for bag, other in zip(bags, expected, strict=True):
        np.testing.assert_allclose(bag.features, other.features, atol=1e-6)
    assert (bags[1].slide, bags[1].coords) == ("slide 1", None)
    featurizer.transform(tiles[::-1])
    assert encoded == ["tiles"] * 3


def test_second_run_computes_nothing(tiled, tmp_path, encoded, monkeypatch):
    store = tmp_path / "new" / "store"
    first = FoundationFeaturizer(mean_colours(), store=store).fit_transform(tiled)
    assert len(encoded) == len(list(store.iterdir())) == 3
    monkeypatch.setattr(_encoding, "load_encoder", None)  # The model must not even be built.
    again = FoundationFeaturizer(mean_colours(), store=str(store)).fit_transform(tiled[::-1])
    assert len(encoded) == 3
    for one, other in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(one.features, other.features)


def test_only_what_is_bad_is_computed_again(tiled, tmp_path, encoded):
    featurizer = FoundationFeaturizer(mean_colours(), store=tmp_path)
    first = featurizer.fit_transform(tiled)
    [path] = tmp_path.glob("b-*.h5")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"b-.*\.h5' is not a readable HDF5 file.*encoded again"):
        again = featurizer.transform(tiled)
    assert len(encoded) == 4
    np.testing.assert_array_equal(again[1].features, first[1].features)
    np.testing.assert_array_equal(read_features(path).features, first[1].features)


def test_replaced_slide_is_computed_again(small_slides, tmp_path, encoded):
    path = shutil.copy(small_slides[0], tmp_path / "s.tiff")
    model = make_pipeline(
        SlideTiler(tile_size=64, tissue=None, random_state=0),
        FoundationFeaturizer(mean_colours(), store=tmp_path / "store"),
    )
    [before] = model.fit_transform([path])
    shutil.copy(small_slides[2], path)
    [after] = model.transform([path])
    assert len(encoded) == 2
    assert before.shape != after.shape
    assert len(list((tmp_path / "store").glob("s-*.h5"))) == 2


def test_other_weights_are_other_features(tiled, tmp_path, encoded):
    torch.manual_seed(0)
    for _ in range(2):
        module = torch.nn.Sequential(*mean_colours(), torch.nn.Linear(3, 4))
        FoundationFeaturizer(module, store=tmp_path).fit_transform(tiled[:1])
    assert len(encoded) == len(list(tmp_path.iterdir())) == 2


def test_slides_without_tiles(tiled):
    X = [tiled[0], TiledSlide("white.svs", reason="No tissue."), tiled[1]]
    with pytest.raises(ValueError, match=r"1 of 3 slides have no tiles:\n- 'white.svs': No tissue"):
        FoundationFeaturizer(mean_colours()).fit(X)
    featurizer = FoundationFeaturizer(mean_colours(), errors="empty").fit(X)
    with pytest.warns(UserWarning, match=r"1 slides have no features.*white\.svs"):
        bags = featurizer.transform(X)
    assert [bag.shape for bag in bags] == [(len(X[0]), 3), (0, 3), (len(X[2]), 3)]
    assert bags[1].reason == "No tissue."
    assert featurizer.failures_.to_numpy().tolist() == [["white.svs", "No tissue."]]


def test_slide_that_cannot_be_read_any_more(small_slides, tmp_path):
    path = shutil.copy(small_slides[0], tmp_path / "gone.tiff")
    X = SlideTiler(tile_size=64).fit_transform([path, small_slides[1]])
    (tmp_path / "gone.tiff").write_text("overwritten")
    with pytest.raises(ValueError, match=r"gone\.tiff"):
        FoundationFeaturizer(mean_colours()).fit_transform(X)
    featurizer = FoundationFeaturizer(mean_colours(), errors="empty").fit(X)
    with pytest.warns(UserWarning, match=r"gone\.tiff"):
        bags = featurizer.transform(X)
    assert [len(bag) for bag in bags] == [0, len(X[1])]


def damage(path):
    """Overwrite the pixels of a slide, which can still be opened."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\xff" * (
        len(content) // 2 - len(content) // 3
    )
    path.write_bytes(content)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("spoil", [Path.unlink, damage])
def test_bad_slide_does_not_lose_others(small_slides, tmp_path, spoil, num_workers):
    paths = [shutil.copy(path, tmp_path) for path in small_slides]
    X = SlideTiler(tile_size=64, random_state=0).fit_transform(paths)
    spoil(tmp_path / "b.tiff")
    store = tmp_path / "store"
    featurizer = FoundationFeaturizer(
        mean_colours(), store=store, batch_size=4, num_workers=num_workers
    ).fit(X)
    with pytest.raises((OSError, ValueError), match=r"b\.tiff"):
        featurizer.transform(X)
    assert [path.name[:2] for path in store.iterdir()] == ["a-"]
    with pytest.warns(UserWarning, match=r"1 slides have no features.*b\.tiff"):
        bags = featurizer.set_params(errors="empty").transform(X)
    assert [len(bag) for bag in bags] == [len(X[0]), 0, len(X[2])]
    figures = featurizer.throughput_
    assert (figures["n_stored"], figures["n_encoded"]) == (1, 1)
    expected = FoundationFeaturizer(mean_colours(), batch_size=4).fit_transform(X[::2])
    for bag, other in zip(bags[::2], expected, strict=True):
        np.testing.assert_array_equal(bag.features, other.features)


def test_slide_that_changes_while_it_is_read(tiled, tmp_path):
    path = Path(shutil.copy(tiled[0].path, tmp_path / "s.tiff"))

    class Meddler(torch.nn.Module):
        def forward(self, pixels):
            with open(path, "ab") as file:
                file.write(b"more")
            return pixels.mean(dim=(2, 3))

    [slide] = SlideTiler(tile_size=64, random_state=0).fit_transform([path])
    encoder = Encoder("meddler", Meddler(), width=3)
    featurizer = FoundationFeaturizer(encoder, store=tmp_path / "store").fit([slide])
    with pytest.raises(ValueError, match=r"s\.tiff' changed while it was read"):
        featurizer.transform([slide])
    assert not (tmp_path / "store").exists()


def test_bags_of_a_store_are_backed_by_its_files(tiled, tmp_path):
    featurizer = FoundationFeaturizer(mean_colours(), store=tmp_path).fit(tiled)
    for _ in range(2):
        bags = featurizer.transform(tiled)
        assert {Path(bag.path).parent for bag in bags} == {tmp_path}
        assert [bag.slide for bag in bags] == [slide.path for slide in tiled]
        for bag, slide in zip(bags, tiled, strict=True):
            np.testing.assert_array_equal(bag.coords, slide.coords)


def test_bad_weights_are_not_a_bad_slide(tiled, tmp_path):
    torch.save({"surprise": torch.zeros(1)}, tmp_path / "w.pt")
    for store in (None, tmp_path / "store"):
        featurizer = FoundationFeaturizer(
            "resnet10t", weights=tmp_path / "w.pt", store=store, errors="empty"
        )
        with pytest.raises(ValueError, match=r"w\.pt does not fit the encoder 'resnet10t'"):
            featurizer.fit_transform(tiled)


def test_full_store_is_not_a_bad_slide(tiled, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    featurizer = FoundationFeaturizer(mean_colours(), store=tmp_path, errors="empty").fit(tiled)
    with pytest.raises(OSError, match="No space left"):
        featurizer.transform(tiled)


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        ({"encoder": "unni"}, ValueError, "Unknown encoder 'unni'"),
        ({"encoder": "uni"}, ValueError, "HF_HUB_OFFLINE forbids downloads"),
        ({"encoder": "uni", "weights": "none.bin"}, FileNotFoundError, "none.bin does not exist"),
        ({"encoder": 3}, ValueError, "'encoder' parameter"),
        ({"encoder": mean_colours(), "weights": "w.bin"}, ValueError, "Load them into the module"),
        ({"device": "abacus"}, ValueError, "device='abacus' is not available here"),
        ({"batch_size": 0}, ValueError, "'batch_size' parameter"),
        ({"store": __file__}, ValueError, "store must be a folder"),
    ],
)
def test_wrong_parameters(tiled, params, error, text):
    with pytest.raises(error, match=text):
        FoundationFeaturizer(**params).fit(tiled)


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        (["a.svs"], TypeError, "got the path 'a.svs' at position 0. Put a SlideTiler in front"),
        ("a.svs", TypeError, "Put a single slide into a list"),
        ([], ValueError, "n_samples=0"),
        ([np.zeros((2, 8, 8))], TypeError, r"shape \(2, 8, 8\) and dtype float64 at position 0"),
    ],
)
def test_wrong_X(X, error, text):
    with pytest.raises(error, match=text):
        FoundationFeaturizer(mean_colours()).fit(X)


def test_module_of_the_user_is_left_alone(tiled):
    module = mean_colours().train()
    FoundationFeaturizer(module).fit_transform(tiled[:1])
    assert module.training


def test_fitted_estimator_is_small(tiled):
    featurizer = FoundationFeaturizer().fit(tiled)
    assert len(pickle.dumps(featurizer)) < 5000


@pytest.fixture
def pipeline(tmp_path):
    return make_pipeline(
        SlideTiler(tile_size=64, random_state=0),
        FoundationFeaturizer(mean_colours(), store=tmp_path / "store"),
        SuperTileClusterer(n_clusters=4, random_state=0),
        FunctionTransformer(row_means),
        Ridge(),
    )


def test_pipeline(small_slides, pipeline):
    y = np.arange(3.0)
    expected = pipeline.fit(small_slides, y).predict(small_slides)
    for other in (clone(pipeline).fit(small_slides, y), pickle.loads(pickle.dumps(pipeline))):
        np.testing.assert_allclose(other.predict(small_slides), expected, rtol=1e-6)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_search(small_slides, pipeline, n_jobs, tmp_path):
    grid = {"ridge__alpha": [0.1, 1.0], "supertileclusterer__n_clusters": [2, 4]}
    search = GridSearchCV(
        pipeline, grid, cv=KFold(3), scoring="neg_mean_squared_error", n_jobs=n_jobs
    )
    search.fit(small_slides, np.arange(3.0))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(list((tmp_path / "store").iterdir())) == 3


def test_search_encodes_each_slide_once(small_slides, pipeline, encoded):
    GridSearchCV(
        pipeline, {"ridge__alpha": [0.1, 1.0]}, cv=KFold(3), scoring="neg_mean_squared_error"
    ).fit(small_slides, np.arange(3.0))
    assert len(encoded) == 3


def test_metadata_routing(small_slides, pipeline):
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline.set_params(ridge=Ridge().set_fit_request(sample_weight=True))
        pipeline.fit(small_slides, np.arange(3.0), sample_weight=np.ones(3))
        assert pipeline.predict(small_slides).shape == (3,)
