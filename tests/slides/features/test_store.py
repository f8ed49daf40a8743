"""The feature store."""

# SPDX-License-Identifier: BSD-3-Clause

import dataclasses
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from sklearn_pk.slides import SlideTiler, read_features
from sklearn_pk.slides._features import _store
from sklearn_pk.slides._features._seal import USER_BLOCK, make_seal
from sklearn_pk.slides._features._store import (
    open_stored,
    store_key,
    store_path,
    write_features,
)


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
    np.testing.assert_array_equal(open_stored(path, key, features.shape).features, features)
    bag = read_features(path)
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.coords, tiled.coords)
    assert (bag.slide, bag.size_level0, bag.tile_edge_um) == ("a.tiff", 64, 32.0)
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_threads_write_at_the_same_time(tmp_path, tiled):
    features = np.random.default_rng(0).normal(size=(len(tiled), 500)).astype(np.float32)

    def write(number):
        path = tmp_path / "store" / f"{number}.h5"
        write_features(path, tiled, features + number, "key", "encoder", "hash")
        return open_stored(path, "key", features.shape).features

    with ThreadPoolExecutor(8) as threads:
        for number, found in enumerate(threads.map(write, range(64))):
            np.testing.assert_array_equal(found, features + number)


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


def test_key_depends_on_the_reader_where_pixels_do(tiled):
    # Between two pixels of a level OpenSlide interpolates, tifffile takes the nearest.
    for downsample, n_keys in [(1.0, 1), (2.0, 1), (2.0005, 2)]:
        slides = [
            dataclasses.replace(tiled, level_downsample=downsample, reader=reader)
            for reader in ("openslide", "tifffile")
        ]
        assert len({store_key(slide, "encoder") for slide in slides}) == n_keys


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


def reseal(path):
    """Seal a file again, so that what lies behind the seal is looked at."""
    with h5py.File(path) as file:
        assert file.userblock_size == USER_BLOCK
        start = stop = USER_BLOCK
        if "features" in file:
            start = file["features"].id.get_offset()
            stop = start + file["features"].nbytes
    content = path.read_bytes()[USER_BLOCK:]
    path.write_bytes(make_seal(content, start, stop) + content)


def change_attribute(name, value):
    def change(path):
        with h5py.File(path, "a") as file:
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value
        reseal(path)

    return change


def change_features(features):
    def change(path):
        with h5py.File(path) as file:
            coords, attributes = file["coords"][()], dict(file.attrs)
        with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
            file["coords"] = coords
            file.attrs.update(attributes)
            if features is not None:
                file["features"] = features
        reseal(path)

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
    assert open_stored(path, key, features.shape) is None


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


def test_a_stored_bag_reads_its_file(stored, tiled):
    path, key, features = stored
    bag = open_stored(path, key, features.shape, tiled.path)
    assert (bag.path, bag.shape, bag.slide) == (str(path), features.shape, tiled.path)
    assert (bag.size_level0, bag.tile_edge_um) == (tiled.size_level0, tiled.tile_edge_um)
    np.testing.assert_array_equal(bag, features)
    np.testing.assert_array_equal(bag.coords, tiled.coords)
    assert open_stored(path, key, features.shape).slide == "a.tiff"


def test_arrays_are_stored_without_places(tmp_path):
    tiles = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    key, features = store_key(tiles, "e"), np.ones((3, 2), dtype=np.float32)
    write_features(tmp_path / "s.h5", tiles, features, key, "e", "hash")
    bag = open_stored(tmp_path / "s.h5", key, (3, 2), "slide 0")
    assert (bag.slide, bag.coords, bag.size_level0) == ("slide 0", None, None)
    assert open_stored(tmp_path / "s.h5", key, (3, 3)) is None
    assert open_stored(tmp_path / "s.h5", "another", (3, 2)) is None
    write_features(tmp_path / "s.h5", tiles, features.astype(np.float64), key, "e", "hash")
    assert open_stored(tmp_path / "s.h5", key, (3, 2)) is None


def test_a_file_spoiled_after_it_was_opened(stored):
    path, key, features = stored
    bag = open_stored(path, key, features.shape)
    spoil_bytes(path)
    with pytest.raises(ValueError, match=r"a-.*\.h5' is damaged: its features do not match"):
        bag.features  # noqa: B018


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is damaged"),
        (change_attribute("key", "of another slide"), "has changed"),
        (change_features(np.zeros((3, 5), dtype=np.float32)), "has changed"),
        (change_features(None), "is not a readable HDF5 file"),
    ],
    ids=["truncated", "foreign-key", "other-shape", "no-features"],
)
def test_a_file_replaced_after_it_was_opened(stored, spoil, text):
    path, key, features = stored
    bag = open_stored(path, key, features.shape)
    spoil(path)
    with pytest.raises(ValueError, match=rf"{path.name}' {text}"):
        bag.features  # noqa: B018


def test_another_process_may_write_the_same_slide_again(stored, tiled):
    path, key, features = stored
    bag = open_stored(path, key, features.shape)
    # On another device the numbers differ by rounding; they are of the same key.
    write_features(path, tiled, np.nextafter(features, 9), key, "encoder", "hash")
    np.testing.assert_allclose(bag.features, features, rtol=1e-6)


def test_spoiled_places_are_noticed(stored, tiled):
    path, key, features = stored
    with h5py.File(path, "a") as file:
        file["coords"][0, 0] += 1
    assert open_stored(path, key, features.shape) is None
    with pytest.raises(ValueError, match=r"a-.*\.h5' is damaged: it is not what was written"):
        read_features(path)


def test_what_is_sealed(stored, tiled):
    path, _, features = stored
    content = path.read_bytes()
    _, start, stop = map(int, re.match(rb"sklearn_pk seal (1) (\d+) (\d+) ", content).groups())
    assert content[start:stop] == features.tobytes()
    # HDF5 of any tool finds the file behind the seal.
    assert content[USER_BLOCK:].startswith(b"\x89HDF")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["coords"], tiled.coords)


def test_no_bit_may_flip(stored):
    # Without the seal, some of these let the HDF5 library run for ever.
    path, key, features = stored
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    sizes = {len(content): 400, 4096: 200}  # The header more often than its share.
    for limit, n_flips in sizes.items():
        for position in rng.integers(len(b"sklearn_pk seal 1 "), limit, n_flips).tolist():
            spoiled = bytearray(content)
            spoiled[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(spoiled)
            assert open_stored(path, key, features.shape) is None


def test_a_file_without_its_seal_is_computed_again(stored):
    path, key, features = stored
    path.write_bytes(path.read_bytes()[USER_BLOCK:])
    assert open_stored(path, key, features.shape) is None
    np.testing.assert_array_equal(read_features(path).features, features)


def test_a_file_of_an_unfinished_run_is_named(stored):
    change_attribute("complete", False)(stored[0])
    with pytest.raises(ValueError, match=r"\.h5' is incomplete: the run that wrote it was stopped"):
        read_features(stored[0])


def test_a_file_without_a_checksum_is_read_as_one_of_another_tool(stored):
    path, _, features = stored
    change_attribute("checksum", None)(path)
    bag = read_features(path)
    np.testing.assert_array_equal(bag, features)
    change_attribute("more", 1)(path)
    with pytest.raises(ValueError, match="has changed"):
        bag.features  # noqa: B018
