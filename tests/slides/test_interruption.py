"""Runs that are killed, interrupted or out of disk space, and concurrent runs."""

# SPDX-License-Identifier: BSD-3-Clause

import contextlib
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler, read_features

# Encodes the slides of a folder as a user's script, by a slow encoder or by one that is stuck once
# two slides are stored, and says so.
SCRIPT = """
import signal, sys, time
from pathlib import Path
import numpy as np
import torch
# A shell starts what is in the background with interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler

def slow(image):
    time.sleep(0.01)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

class Stuck(torch.nn.Module):
    def forward(self, pixels):
        if len(list(Path(store).glob("*.h5"))) == 2:
            print("stuck", flush=True)
            time.sleep(60)
        return pixels.mean(dim=(2, 3))

folder, store, kind, n_threads, num_workers = sys.argv[1:]
means = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
torch.set_num_threads(int(n_threads))
paths = sorted(Path(folder).glob("*.tiff"))
slides = SlideTiler(tile_size=64, tissue=None, random_state=0).fit_transform(paths)
FoundationFeaturizer(
    Stuck() if kind == "stuck" else Encoder("means", means, 3, transform=slow, transform_name="t"),
    store=store, batch_size=4, num_workers=int(num_workers)
).fit_transform(slides)
"""


def fast(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def make_encoder():
    """Return the encoder of the script, without its delay."""
    means = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return Encoder("means", means, 3, transform=fast, transform_name="t")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tissue_rgb, write_slide):
    """Thirty small slides of different content and size."""
    folder = tmp_path_factory.mktemp("thirty")
    for number in range(30):
        top, left, edge = 7 * number, 11 * number, 130 + 64 * (number % 4)
        write_slide(folder / f"{number:02}.tiff", tissue_rgb[top : top + 140, left : left + edge])
    return folder


@pytest.fixture(scope="module")
def tiled(folder):
    return SlideTiler(tile_size=64, tissue=None, random_state=0).fit_transform(
        sorted(folder.glob("*.tiff"))
    )


@contextlib.contextmanager
def running(folder, store, kind="slow", num_workers=1):
    """Run the script in a process group of its own."""
    command = [sys.executable, "-c", SCRIPT, folder, store, kind]
    command += [torch.get_num_threads(), num_workers]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


def contents(store):
    return {path.name: path.read_bytes() for path in store.iterdir() if path.suffix == ".h5"}


def test_killed_run_is_resumed(folder, tiled, tmp_path, wait_for_files):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    featurizer = FoundationFeaturizer(
        make_encoder(), store=undisturbed, batch_size=4, num_workers=1
    ).fit(tiled)
    bags = featurizer.transform(tiled)
    with running(folder, killed) as process:
        wait_for_files(killed, 8, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = contents(killed)
    assert 8 <= len(before) < 30
    again = featurizer.set_params(store=killed).transform(tiled)
    figures = featurizer.throughput_
    assert (figures["n_stored"], figures["n_encoded"]) == (len(before), 30 - len(before))
    after = contents(killed)
    assert {name: after[name] for name in before} == before
    assert after == contents(undisturbed)
    for bag, other in zip(bags, again, strict=True):
        np.testing.assert_array_equal(bag.features, other.features)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_interrupted_run_ends_at_once_and_leaves_a_good_store(folder, tiled, tmp_path, num_workers):
    with running(folder, tmp_path, "stuck", num_workers) as process:
        # At this point, because Python drops an interrupt that it gets within a weakref's callback,
        # as when h5py closes a file.
        assert process.stdout.readline() == "stuck\n", process.stderr.read()
        # To all processes, as a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT, err
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1
    assert len(contents(tmp_path)) == len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        assert read_features(path).shape[1] == 3


def test_two_runs_at_once(folder, tiled, tmp_path, wait_for_files):
    featurizer = FoundationFeaturizer(make_encoder(), store=tmp_path, batch_size=4, num_workers=0)
    featurizer.fit(tiled)
    with running(folder, tmp_path, num_workers=0) as process:
        wait_for_files(tmp_path, 1, process)
        bags = featurizer.transform(tiled)
        assert process.wait(timeout=120) == 0, process.stderr.read()
    assert len(list(tmp_path.iterdir())) == 30
    featurizer.transform(tiled)
    assert featurizer.throughput_["n_stored"] == 30
    alone = featurizer.set_params(store=None).transform(tiled)
    for bag, other in zip(bags, alone, strict=True):
        np.testing.assert_array_equal(bag.features, other.features)


@contextlib.contextmanager
def largest_file(n_bytes):
    """Limit the size of files of this process, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# h5py fails again in a destructor when it releases a file that it could not write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk(tiled, tmp_path):
    small, large = tiled[0], tiled[3]
    wide = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(20), torch.nn.Flatten())
    featurizer = FoundationFeaturizer(wide, store=tmp_path, errors="empty").fit(tiled)
    limit = 1200 * 4 * (len(small) + len(large)) // 2
    with (
        largest_file(limit),
        pytest.raises(OSError, match=r"(?s)cannot be written.*03-\w+\.h5.*full"),
    ):
        featurizer.transform([small, large])
    assert [path.name[:3] for path in tmp_path.iterdir()] == ["00-"]
    bags = featurizer.transform([small, large])
    assert featurizer.throughput_["n_stored"] == 1
    assert [len(bag) for bag in bags] == [len(small), len(large)]
