"""The process that opens HDF5 files of others: it may crash, hang and be interrupted."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from sklearn_pk.slides import read_features
from sklearn_pk.slides._features import _hdf5, _hdf5_guard

FEATURES = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)

# The real process, but for files of some names.
_SPOILED = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("real", {real!r})
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
real._CPU_SECONDS = 0.3
answer, spoiled = real._answer, []

def spoil(send, request):
    name = os.path.basename(request["path"])
    if name == "crash.h5" or spoiled:
        os.abort()
    if name == "hang.h5":
        with real._Limits():
            while True:
                pass
    if name == "memory.h5":
        bytes(3 << 30)
    if name == "halfway.h5" and request["read"]:
        request = request | {{"read": False}}
    answer(send, request)
    if name == "late.h5":
        spoiled.append(name)

real._answer = spoil
real._serve()
"""


def write(path):
    with h5py.File(path, "w") as file:
        file["features"] = FEATURES
    return path


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """Start another process than the real one."""
    script = tmp_path / "spoiled.py"
    script.write_text(_SPOILED.format(real=_hdf5.__file__))
    _hdf5_guard._close()
    monkeypatch.setattr(_hdf5, "__file__", str(script))
    yield tmp_path
    _hdf5_guard._close()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("crash.h5", "the HDF5 library crashes on it, exit status -6"),
        ("hang.h5", "the HDF5 library does not come to an end on it"),
        pytest.param(
            "memory.h5",
            "not a readable HDF5 file",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no limit there"),
        ),
    ],
)
def test_what_a_file_does_to_the_process_is_told(spoiled, name, text):
    good = write(spoiled / "good.h5")
    for _ in range(2):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=rf"{name}.*{text}"):
            read_features(write(spoiled / name))
        assert time.perf_counter() - start < 30
        np.testing.assert_array_equal(read_features(good), FEATURES)


def test_a_file_is_not_blamed_for_an_earlier_one(spoiled):
    for name in ("late.h5", "good.h5"):
        np.testing.assert_array_equal(read_features(write(spoiled / name)), FEATURES)


def test_an_answer_that_ends_too_early(spoiled):
    bag = read_features(write(spoiled / "halfway.h5"))
    with pytest.raises(ValueError, match=r"halfway\.h5.*1600 bytes of features are missing"):
        bag.features  # noqa: B018


def test_a_process_that_does_not_start(spoiled):
    Path(_hdf5.__file__).write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match=r"good\.h5.*did not start: exit status 3"):
        read_features(write(spoiled / "good.h5"))


def test_one_process_serves_all_files(tmp_path):
    read_features(write(tmp_path / "a.h5"))
    process = _hdf5_guard._reader._process.pid
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match=r"text\.h5"):
        read_features(tmp_path / "text.h5")
    read_features(write(tmp_path / "b.h5"))
    assert _hdf5_guard._reader._process.pid == process


def test_an_interrupted_answer_is_not_given_to_the_next(tmp_path, monkeypatch):
    bag, other = (read_features(write(tmp_path / f"{name}.h5")) for name in "ab")
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["features"][...] = FEATURES + 1
    other = read_features(tmp_path / "b.h5")
    receive, n_received = _hdf5_guard._Reader._receive, []

    def interrupted(self):
        n_received.append(None)
        if len(n_received) == 2:
            raise KeyboardInterrupt
        return receive(self)

    monkeypatch.setattr(_hdf5_guard._Reader, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bag.features  # noqa: B018
    np.testing.assert_array_equal(other.features, FEATURES + 1)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("axis", [False, True])
def test_blocks_make_the_whole(tmp_path, monkeypatch, compression, axis):
    monkeypatch.setattr(_hdf5, "BLOCK_BYTES", 200)
    values = FEATURES[None] if axis else FEATURES
    chunks = (1, 7, 3) if axis else (7, 3)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        stored = file.create_dataset(
            "features", data=values, chunks=chunks if compression else None, compression=compression
        )
        blocks = list(_hdf5.read_blocks(stored))
        assert len(blocks) > 5
        np.testing.assert_array_equal(np.concatenate(blocks), FEATURES)
        # Each chunk is unpacked once.
        assert not compression or all(len(block) == 7 for block in blocks[:-1])


_FORKED = """
import os, sys, warnings
from sklearn_pk.slides._features import _hdf5_guard
from sklearn_pk.slides import read_features
bag = read_features(sys.argv[1])
first = bag.features
pid = _hdf5_guard._reader._process.pid
warnings.simplefilter("error")
# As if neither had read it before.
_hdf5_guard._proven.clear()
child = os.fork()
if not child:
    same = (bag.features == first).all()
    os._exit(0 if same and _hdf5_guard._reader._process.pid != pid else 1)
assert os.waitpid(child, 0)[1] == 0
assert (bag.features == first).all()
print(pid)
sys.stdout.flush()
if sys.argv[2] == "killed":
    os._exit(0)
"""


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_forked_processes_have_their_own_and_none_is_left(tmp_path, end):
    path = write(tmp_path / "s.h5")
    command = [sys.executable, "-W", "ignore", "-c", _FORKED, str(path), end]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    for _ in range(200):
        if not is_alive(int(found.stdout)):
            return
        time.sleep(0.05)
    pytest.fail("the process is still there")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and is not asked for its status by anybody is gone, too.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_was_read_there_is_read_here_until_it_changes(tmp_path, monkeypatch):
    bag = read_features(write(tmp_path / "a.h5"))
    asked = []
    ask = _hdf5_guard._ask_guarded

    def note(path, wanted, read):
        asked.append(wanted[0])
        return ask(path, wanted, read)

    monkeypatch.setattr(_hdf5_guard, "_ask_guarded", note)
    for _ in range(3):
        np.testing.assert_array_equal(bag.features, FEATURES)
    assert asked == ["features"]
    later = time.time() + 10
    os.utime(write(tmp_path / "a.h5"), (later, later))
    bag = read_features(tmp_path / "a.h5")
    np.testing.assert_array_equal(bag.features, FEATURES)
    assert len(asked) == 3
