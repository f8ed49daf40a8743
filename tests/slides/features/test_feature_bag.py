"""FeatureBag and TiledSlide, which are passed between the steps."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import os
import pickle
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from sklearn_pk.slides import FeatureBag, SlideTiler, TiledSlide


@pytest.fixture
def large_file(tmp_path):
    """A file of as many tiles as a slide has at most, and its features."""
    features = np.random.default_rng(0).normal(size=(4000, 1024)).astype(np.float32)
    path = tmp_path / "TCGA-A1-A0SB-01Z-00-DX1.8FE62F64-A0AE-4F94.h5"
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["coords"] = np.arange(8000).reshape(4000, 2)
    return path, features


def test_a_bag_of_a_file_reads_when_asked(large_file):
    path, features = large_file
    tracemalloc.start()
    bag = FeatureBag.from_file(path)
    assert (bag.shape, len(bag), bag.ndim, bag.dtype) == ((4000, 1024), 4000, 2, np.float32)
    assert (bag.path, bag.reason) == (str(path), "")
    assert repr(bag) == f"FeatureBag(slide={path.stem!r}, shape=(4000, 1024), path={str(path)!r})"
    assert tracemalloc.get_traced_memory()[1] < features.nbytes / 4
    for array in (bag.features, np.asarray(bag), np.asarray(bag, dtype=np.float64)):
        np.testing.assert_array_equal(array, features)
    del array
    assert tracemalloc.get_traced_memory()[0] < features.nbytes / 4, "the features were kept"
    tracemalloc.stop()
    assert bag.coords[-1].tolist() == [7998, 7999]
    assert not bag.coords.flags.writeable


def test_a_bag_of_a_file_is_sent_as_its_path(large_file, monkeypatch):
    path, features = large_file
    monkeypatch.chdir(path.parent)
    bag = FeatureBag.from_file(Path(path.name))
    sent = pickle.dumps(bag)
    assert len(sent) < 2000
    monkeypatch.chdir(os.sep)
    for copied in (pickle.loads(sent), copy.deepcopy(bag)):
        np.testing.assert_array_equal(copied.coords, bag.coords)
        for name in ("slide", "size_level0", "tile_edge_um", "reason", "path"):
            assert getattr(copied, name) == getattr(bag, name)
        assert isinstance(copied, FeatureBag)
        np.testing.assert_array_equal(copied, features)


def test_a_bag_of_a_file_cannot_be_changed(large_file):
    bag = FeatureBag.from_file(large_file[0])
    for name in ("features", "slide", "path"):
        with pytest.raises(AttributeError):
            setattr(bag, name, None)


def test_a_bag_of_a_file_passes_options_on(tmp_path):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = np.ones((2, 3))
        file["more"] = np.ones((2, 4))
        file["coords"] = np.ones((2, 2))
        file.attrs["unit"] = "um"
    assert FeatureBag.from_file(path).coords is None
    assert FeatureBag.from_file(path, mpp=0.25).coords.tolist() == [[4, 4]] * 2
    assert FeatureBag.from_file(path, features="more").shape == (2, 4)


@pytest.mark.parametrize(
    ("slide", "name"),
    [
        ("x/s.svs", "s"),
        ("s.ome.tiff", "s"),
        ("s.SVS", "s"),
        ("TCGA-A1-01Z-00-DX1.8FE62F64-A0AE", "TCGA-A1-01Z-00-DX1.8FE62F64-A0AE"),
        ("x/TCGA-A1-01Z-00-DX1.8FE62F64-A0AE.svs", "TCGA-A1-01Z-00-DX1.8FE62F64-A0AE"),
        ("", ""),
        (".svs", ".svs"),
    ],
)
def test_name_of_the_slide(slide, name):
    assert FeatureBag(np.ones((1, 2)), slide=slide).name == name


def test_repr_is_short():
    bag = FeatureBag(np.empty((0, 2)), slide="s.svs", reason="No tissue.")
    assert repr(bag) == "FeatureBag(slide='s.svs', shape=(0, 2), reason='No tissue.')"
    assert bag.path is None


def test_feature_bag_is_an_array():
    bag = FeatureBag(np.arange(6.0).reshape(3, 2), [[0, 0], [5, 0], [0, 5]], "x/s.svs")
    assert (len(bag), bag.shape, bag.name) == (3, (3, 2), "s")
    assert np.asarray(bag).dtype == np.float32
    assert np.asarray(bag, dtype=np.float64).dtype == np.float64
    assert bag.coords.dtype == np.int64


def test_feature_bag_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"s\.svs: expected features of shape"):
        FeatureBag(np.ones(3), slide="s.svs")
    with pytest.raises(ValueError, match=r"3 rows of features but 2 of coords"):
        FeatureBag(np.ones((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="shape \\(n, 2\\)"):
        TiledSlide("s.svs", coords=np.zeros((2, 3)))


def test_tiled_slide_pickles_and_reads(small_slides):
    [slide] = SlideTiler(tile_size=64).fit_transform(small_slides[:1])
    copied = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(copied.coords, slide.coords)
    np.testing.assert_array_equal(next(copied.iter_tiles()), next(slide.iter_tiles()))
    assert len(list(slide.iter_tiles())) == len(slide) > 0


def test_repr_of_a_tiled_slide(small_slides):
    [slide] = SlideTiler(tile_size=64, tissue=None).fit_transform(small_slides[:1])
    expected = f"TiledSlide(path={small_slides[0]!r}, n_tiles=30, tile_size=64, mpp=0.5)"
    assert repr(slide) == expected
    assert repr(TiledSlide("a.svs", reason="No.")).endswith(
        "n_tiles=0, tile_size=0, mpp=nan, reason='No.')"
    )


def test_tiled_slide_is_frozen(small_slides):
    [slide] = SlideTiler(tile_size=64).fit_transform(small_slides[:1])
    with pytest.raises(ValueError, match="read-only"):
        slide.coords[0] = 1


def test_slide_without_tiles_opens_no_file():
    assert list(TiledSlide("not there.svs").iter_tiles()) == []
