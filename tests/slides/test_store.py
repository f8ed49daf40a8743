"""The feature store."""

# SPDX-License-Identifier: BSD-3-Clause

import shutil

import h5py
import numpy as np
import pytest

from sklearn_pk.slides import SlideTiler, _store, read_features
from sklearn_pk.slides._store import read_stored, store_key, store_path, write_features


@pytest.fixture
def tiled(small_slides):
    return SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)[0]


@pytest.fixture
def stored(tmp_path, tiled):
    """Return the path, key and features of one slide in a store."""
    features = np.random.default_rng(0).normal(size=(len(tiled), 5)).astype(np.float32)
    key = store_key(tiled, "encoder")
    path = store_path(tmp_path / "store", tiled, key)
    write_features(path, tiled, features, key, "encoder", "hash")
    return path, key, features


def test_round_trip(stored, tiled):
    path, key, features = stored
    np.testing.assert_array_equal(read_stored(path, key, features.shape), features)
    bag = read_features(path)
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.coords, tiled.coords)
    assert (bag.slide, bag.size_level0, bag.tile_edge_um) == ("a.tiff", 64, 32.0)
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_layout_that_other_tools_read(stored):
    with h5py.File(stored[0]) as file:
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        assert dict(file["coords"].attrs) == {
            "patch_size": 64,
            "patch_size_level0": 64,
            "level0_magnification": 20.0,
            "target_magnification": 20.0,
            "overlap": 0,
            "level0_width": 333,
            "level0_height": 401,
        }
        own = dict(file.attrs)
    assert own["mpp"] == 0.5
    assert own["tile_edge_um"] == 32.0
    assert (own["encoder"], own["weights_hash"], own["complete"]) == ("encoder", "hash", True)
    assert own["format_version"] == _store.FORMAT_VERSION


def test_key_depends_on_all_that_matters(small_slides, tmp_path, tiled):
    moved = shutil.copy(small_slides[0], tmp_path / "renamed.tiff")
    tiler = SlideTiler(tile_size=64, random_state=0)
    key = store_key(tiled, "e")
    assert store_key(tiler.fit_transform([moved])[0], "e") == key
    others = [
        store_key(tiler.set_params(**{name: value}).fit_transform(small_slides[:1])[0], "e")
        for name, value in {"max_tiles": 3, "random_state": 1, "tile_size": 50, "mpp": 0.8}.items()
    ]
    others.append(store_key(tiled, "another encoder"))
    others.append(store_key(SlideTiler(tile_size=64).fit_transform(small_slides[1:2])[0], "e"))
    assert len({key, *others}) == 7


def test_arrays_have_keys_too():
    tiles = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert store_key(tiles, "e") == store_key(tiles.copy(), "e")
    assert store_key(tiles, "e") != store_key(tiles.reshape(1, 8, 4, 3), "e")
    assert store_key(tiles, "e") != store_key(tiles + np.uint8(1), "e")


def spoil_bytes(path):
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    content[offset] ^= 1
    path.write_bytes(content)


def change_attribute(name, value):
    def change(path):
        with h5py.File(path, "a") as file:
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value

    return change


def change_features(features):
    def change(path):
        with h5py.File(path, "a") as file:
            del file["features"]
            if features is not None:
                file["features"] = features

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not HDF5"),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        spoil_bytes,
        change_attribute("key", "of another slide"),
        change_attribute("complete", None),
        change_attribute("checksum", None),
        change_features(None),
        change_features(np.zeros((3, 5), dtype=np.float32)),
        change_features(np.full((30, 5), np.nan)),
        change_features(np.array(["text"], dtype="S4")),
    ],
    ids=[
        "missing",
        "empty",
        "text",
        "truncated",
        "flipped-bit",
        "foreign-key",
        "incomplete",
        "no-checksum",
        "no-features",
        "other-shape",
        "other-dtype",
        "no-numbers",
    ],
)
def test_a_bad_file_is_never_read_as_good(stored, spoil):
    path, key, features = stored
    spoil(path)
    assert read_stored(path, key, features.shape) is None


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failing_write_leaves_nothing(tmp_path, tiled, monkeypatch, step):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_store.os, step, full)
    path = tmp_path / "store" / "s.h5"
    with pytest.raises(OSError, match=r"cannot be written to the store: .*s\.h5.*No space left"):
        write_features(path, tiled, np.ones((2, 2), np.float32), "k", "e", "h")
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path, tiled):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="choose another store"):
        write_features(tmp_path / "file" / "s.h5", tiled, np.ones((2, 2), np.float32), "k", "e", "")


def write_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def test_files_of_other_tools(tmp_path):
    features = np.arange(6, dtype=np.float16).reshape(3, 2)
    coords = np.arange(6, dtype=np.int32).reshape(3, 2)
    bag = read_features(write_h5(tmp_path / "s1.h5", features=features, coords=coords))
    np.testing.assert_array_equal(bag, features)
    np.testing.assert_array_equal(bag.coords, coords)
    assert (bag.slide, bag.size_level0, bag.tile_edge_um) == ("s1", None, None)
    bag = read_features(write_h5(tmp_path / "s2.h5", features=features[None], coords=coords[None]))
    assert bag.shape == (3, 2)
    assert read_features(write_h5(tmp_path / "s3.h5", features=features[:0])).shape == (0, 2)


@pytest.mark.parametrize(
    ("datasets", "text"),
    [
        ({"feats": np.ones((2, 2))}, r"expected a data set 'features', found \['feats'\]"),
        ({"features": np.ones((2, 2), dtype=int)}, "expected features of floating point"),
        ({"features": np.ones(2)}, "expected features of shape"),
        ({"features": np.ones((2, 2)), "coords": np.ones((3, 2))}, "2 rows of features but 3"),
    ],
)
def test_wrong_files_are_named(tmp_path, datasets, text):
    with pytest.raises(ValueError, match=text) as info:
        read_features(write_h5(tmp_path / "bad.h5", **datasets))
    assert "bad.h5" in str(info.value)


def test_unreadable_files_are_named(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        read_features(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match=r"text\.h5.*not a readable HDF5 file"):
        read_features(tmp_path / "text.h5")
    spoil_bytes(stored[0])
    with pytest.raises(ValueError, match="damaged"):
        read_features(stored[0])


def test_a_forged_size_costs_no_memory(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("features", (1 << 30, 1024), "f4", chunks=(1, 1024))
    with pytest.raises(ValueError, match=r"huge\.h5.*declares 4398046511104 bytes"):
        read_features(tmp_path / "huge.h5")
