"""The feature store."""

# SPDX-License-Identifier: BSD-3-Clause

import dataclasses
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from sklearn_pk.slides import SlideTiler, read_features
from sklearn_pk.slides._features import _store
from sklearn_pk.slides._features._store import (
    check_store,
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
    assert (own["encoder"], own["weights_hash"]) == (b"encoder", b"hash")
    assert own["format_version"] == _store.FORMAT_VERSION


def test_key_depends_on_slide_tiles_and_encoder(small_slides, tmp_path, tiled):
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
    # Between the pixels of a level, OpenSlide interpolates and tifffile takes the nearest.
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


def flip_bit(path):
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        offset = file["features"].id.get_chunk_info(0).byte_offset
    content[offset] ^= 1
    path.write_bytes(content)


def zero_features(path):
    """Zero a chunk with its Fletcher checksum, which is zero for zeros."""
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with h5py.File(path) as file:
        assert not file["features"][()].any()


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
        with h5py.File(path) as file:
            coords, attributes = file["coords"][()], dict(file.attrs)
        with h5py.File(path, "w") as file:
            file["coords"] = coords
            file.attrs.update(attributes)
            if features is not None:
                file["features"] = features

    return change


@pytest.mark.parametrize(
    "replace",
    [
        lambda path: path.unlink(),
        change_attribute("key", "of another slide"),
        change_attribute("features_crc32", None),
        change_features(np.full((30, 5), np.nan)),
    ],
    ids=["missing", "foreign-key", "no-checksum", "other-dtype"],
)
def test_a_file_of_other_features_is_not_read(stored, replace):
    path, key, features = stored
    replace(path)
    assert open_stored(path, key, features.shape) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not HDF5"),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        flip_bit,
        zero_features,
        change_features(None),
        change_features(np.zeros((3, 5), dtype=np.float32)),
        change_features(np.array(["text"], dtype="S4")),
    ],
    ids=[
        "empty",
        "text",
        "truncated",
        "flipped-bit",
        "zeroed",
        "no-features",
        "other-shape",
        "no-numbers",
    ],
)
def test_a_damaged_file_is_named_and_set_aside(stored, damage):
    path, key, features = stored
    damage(path)
    content = path.read_bytes()
    with pytest.warns(UserWarning, match=rf"{path.name}.* encoded again, and the file is kept as"):
        assert open_stored(path, key, features.shape) is None
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content


def test_a_damaged_file_where_nothing_can_be_renamed(stored, monkeypatch):
    path, key, features = stored
    flip_bit(path)

    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_store.os, "replace", refuse)
    with pytest.warns(UserWarning, match=rf"{path.name}.* The slide is encoded again\.$"):
        assert open_stored(path, key, features.shape) is None
    assert path.exists()


def test_a_good_file_is_not_set_aside_where_the_system_fails(stored):
    path, key, features = stored
    program = (
        "import resource, sys, warnings\n"
        "import numpy as np\n"
        "from sklearn_pk.slides._features._store import open_stored\n"
        "warnings.simplefilter('error')\n"
        "assert open_stored(sys.argv[1], sys.argv[2], (30, 5)) is not None\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
        "held = []\n"
        "try:\n"
        "    while True:\n"
        "        held.append(open(sys.argv[1]))\n"
        "except OSError:\n"
        "    pass\n"
        "assert open_stored(sys.argv[1], sys.argv[2], (30, 5)) is None\n"
    )
    assert features.shape == (30, 5)
    subprocess.run([sys.executable, "-c", program, str(path), key], check=True)
    np.testing.assert_array_equal(open_stored(path, key, features.shape).features, features)


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


def test_arrays_are_stored_without_coordinates(tmp_path):
    tiles = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    key, features = store_key(tiles, "e"), np.ones((3, 2), dtype=np.float32)
    write_features(tmp_path / "s.h5", tiles, features, key, "e", "hash")
    bag = open_stored(tmp_path / "s.h5", key, (3, 2), "slide 0")
    assert (bag.slide, bag.coords, bag.size_level0) == ("slide 0", None, None)
    assert open_stored(tmp_path / "s.h5", key, (3, 3)) is None
    assert open_stored(tmp_path / "s.h5", "another", (3, 2)) is None
    write_features(tmp_path / "s.h5", tiles, features.astype(np.float64), key, "e", "hash")
    assert open_stored(tmp_path / "s.h5", key, (3, 2)) is None


def test_a_file_damageed_after_it_was_opened(stored):
    path, key, features = stored
    bag = open_stored(path, key, features.shape)
    flip_bit(path)
    with pytest.raises(ValueError, match=r"a-.*\.h5' is not a readable HDF5 file"):
        bag.features  # noqa: B018
    zero_features(path)
    with pytest.raises(ValueError, match=r"a-.*\.h5' is damaged: its features do not match"):
        bag.features  # noqa: B018


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is not a readable HDF5 file"),
        (change_attribute("key", "of another slide"), "has changed"),
        (change_features(np.zeros((3, 5), dtype=np.float32)), "has changed"),
        (change_features(None), "has changed"),
    ],
    ids=["truncated", "foreign-key", "other-shape", "no-features"],
)
def test_a_file_replaced_after_it_was_opened(stored, damage, text):
    path, key, features = stored
    bag = open_stored(path, key, features.shape)
    damage(path)
    with pytest.raises(ValueError, match=rf"{path.name}' {text}"):
        bag.features  # noqa: B018


def test_another_process_may_write_the_same_slide_again(stored, tiled):
    path, key, features = stored
    bag = open_stored(path, key, features.shape)
    # On another device the numbers differ by rounding; they are of the same key.
    write_features(path, tiled, np.nextafter(features, 9), key, "encoder", "hash")
    np.testing.assert_allclose(bag.features, features, rtol=1e-6)


def test_damaged_coordinates_are_noticed(stored, tiled):
    path, key, features = stored
    with h5py.File(path, "a") as file:
        file["coords"][0, 0] += 1
    with pytest.raises(ValueError, match=r"a-.*\.h5' is damaged: its coords do not match"):
        read_features(path).coords  # noqa: B018
    with pytest.warns(UserWarning, match="its coords do not match"):
        assert open_stored(path, key, features.shape) is None


def test_everything_in_a_file_has_a_checksum(stored):
    with h5py.File(stored[0]) as file:
        assert file["features"].fletcher32
        assert file["coords"].fletcher32
        # Text of variable length would lie outside of what HDF5 protects.
        assert all(file.attrs.get_id(name).dtype.kind != "O" for name in file.attrs)
    content = stored[0].read_bytes()
    assert content[8] == 3, "version of the superblock; older ones have no checksum"
    assert not any(block in content for block in (b"GCOL", b"HEAP", b"TREE", b"SNOD"))


def test_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(_store, "_CHUNK_BYTES", 100)
    features = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    tiles = np.zeros((64, 2, 2, 3), dtype=np.uint8)
    write_features(tmp_path / "s.h5", tiles, features, "key", "e", "hash")
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["features"].chunks == (5, 5)
    np.testing.assert_array_equal(open_stored(tmp_path / "s.h5", "key", (64, 5)), features)


def test_files_of_an_earlier_version_are_computed_again(stored, tiled, monkeypatch):
    path, key, _ = stored
    monkeypatch.setattr(_store, "FORMAT_VERSION", _store.FORMAT_VERSION - 1)
    assert store_key(tiled, "encoder") != key
    assert store_path(path.parent, tiled, store_key(tiled, "encoder")) != path


def test_a_file_without_a_checksum_is_read_as_one_of_another_tool(stored):
    path, _, features = stored
    change_attribute("features_crc32", None)(path)
    bag = read_features(path)
    np.testing.assert_array_equal(bag, features)
    change_attribute("more", 1)(path)
    with pytest.raises(ValueError, match="has changed"):
        bag.features  # noqa: B018


@pytest.fixture
def large(tmp_path, small_slides):
    """A slide of 9 MiB; most of it lies behind the pixels and between the hashed samples."""
    path = tmp_path / "large.tiff"
    path.write_bytes(Path(small_slides[0]).read_bytes() + bytes(9 << 20))
    return path


def change(path):
    """Change a byte that is not sampled, and keep the size and the time of modification."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek((1 << 20) + (1 << 19))
        file.write(os.urandom(8))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(path):
    before, other = path.stat(), path.with_name("other.tiff")
    shutil.copyfile(path, other)
    change(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("full_hash", [False, True])
@pytest.mark.parametrize("modify", [change, replace_file])
def test_a_large_slide_that_changed_is_not_served_stale(large, modify, full_hash):
    tiler = SlideTiler(tile_size=64, random_state=0, full_hash=full_hash)
    for _ in range(5):
        [before] = tiler.fit_transform([large])
        modify(large)
        with pytest.raises(ValueError, match=r"large\.tiff' is not the file that was tiled"):
            before.check_content()
        [after] = tiler.fit_transform([large])
        assert store_key(before, "e") != store_key(after, "e")
        np.testing.assert_array_equal(before.coords, after.coords)


def test_a_moved_slide_is_found_by_its_content(large):
    keys = {}
    for full_hash in (False, True):
        tiler = SlideTiler(tile_size=64, random_state=0, full_hash=full_hash)
        moved = Path(shutil.copyfile(large, large.with_name(f"{full_hash}.tiff")))
        slides = tiler.fit_transform([large, moved])
        keys[full_hash] = [store_key(slide, "e") for slide in slides]
    assert keys[True][0] == keys[True][1]
    assert keys[False][0] != keys[False][1]


def test_a_store_that_cannot_be_written_is_told_before_encoding(tmp_path, tiled):
    names = [path.name for path in tmp_path.iterdir()]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Nothing was encoded for it"):
        check_store(tmp_path / "file" / "s.h5")
    check_store(tmp_path / "new" / "s.h5")
    assert [path.name for path in tmp_path.iterdir() if path.name != "file"] == names
