"""Stores that cannot be written, and slides that are replaced."""

# SPDX-License-Identifier: BSD-3-Clause

import errno
import os
import shutil

import numpy as np
import pytest
import torch

from sklearn_pk.datasets import make_slide_cohort
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler, _encoding, read_features
from sklearn_pk.slides._features import _store

MEAN = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
TILER = SlideTiler(tile_size=128, random_state=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return make_slide_cohort(4, random_state=0, out_dir=folder, slide_size=(512, 512)).slides


@pytest.fixture
def tiled(paths):
    return TILER.fit_transform(paths)


class DiskThatFills:
    """System calls that fail from the third file on."""

    def __init__(self, number, step):
        self.error = OSError(number, os.strerror(number))
        self.step = step
        self.n_calls = 0

    def __getattr__(self, name):
        return self.fail if name == self.step else getattr(os, name)

    def fail(self, *args):
        self.n_calls += 1
        if self.n_calls > 2:
            raise self.error
        return getattr(os, self.step)(*args)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_store_that_cannot_be_written(tiled, tmp_path, monkeypatch, number, step):
    featurizer = FoundationFeaturizer(MEAN, store=tmp_path, device="cpu").fit(tiled)
    with monkeypatch.context() as patch:
        patch.setattr(_store, "os", DiskThatFills(number, step))
        with pytest.raises(OSError, match=r"cannot be written to the store") as caught:
            featurizer.transform(tiled)
    text = str(caught.value)
    assert tiled[2].name in text
    assert str(tmp_path) in text
    assert os.strerror(number) in text
    free = shutil.disk_usage(tmp_path).free / 1e6
    assert float(text.split(" MB are free")[0].split()[-1].replace(",", "")) == pytest.approx(
        free, rel=0.5
    )
    stored = sorted(tmp_path.iterdir())
    assert [path.name.rsplit("-", 1)[0] for path in stored] == [slide.name for slide in tiled[:2]]
    for path in stored:
        assert np.isfinite(read_features(path).features).all()
    featurizer.transform(tiled)
    assert (featurizer.throughput_["n_stored"], featurizer.throughput_["n_encoded"]) == (2, 2)


def test_a_full_store_is_read_without_permission_to_write(tiled, tmp_path, monkeypatch):
    featurizer = FoundationFeaturizer(MEAN, store=tmp_path, device="cpu").fit(tiled)
    expected = featurizer.transform(tiled)
    monkeypatch.setattr(_encoding, "write_features", None)
    for bag, other in zip(featurizer.transform(tiled), expected, strict=True):
        np.testing.assert_array_equal(bag.features, other.features)
    assert featurizer.throughput_["n_stored"] == 4


@pytest.mark.parametrize("store", [True, False])
def test_a_slide_replaced_after_it_was_tiled(paths, tmp_path, store):
    mine = [shutil.copy(path, tmp_path) for path in paths[:2]]
    tiled = TILER.fit_transform(mine)
    folder = tmp_path / "store" if store else None
    featurizer = FoundationFeaturizer(MEAN, store=folder, device="cpu").fit(tiled)
    expected = featurizer.transform(tiled)
    shutil.copy(paths[2], mine[0])
    with pytest.raises(
        ValueError, match=r"is not the file that was tiled.*Tile it again"
    ) as caught:
        featurizer.transform(tiled)
    assert repr(mine[0]) in str(caught.value)
    with pytest.warns(UserWarning, match="1 slides have no features"):
        bags = featurizer.set_params(errors="empty").transform(tiled)
    assert len(bags[0]) == 0
    np.testing.assert_array_equal(bags[1].features, expected[1].features)
    # Tiled again, it is the other slide, and the old file of the store is not used.
    again = featurizer.transform(TILER.fit_transform(mine))
    [other] = featurizer.set_params(store=None).transform(TILER.fit_transform(paths[2:3]))
    np.testing.assert_array_equal(again[0].features, other.features)
    # The first one, copied back, is found in the store, though its time has changed.
    shutil.copy(paths[0], mine[0])
    featurizer.set_params(store=folder).fit(tiled)
    np.testing.assert_array_equal(featurizer.transform(tiled)[0].features, expected[0].features)


def test_files_of_killed_processes_are_removed_after_a_day(tiled, tmp_path):
    young, old = tmp_path / ".a-1.h5.aa.tmp", tmp_path / ".a-2.h5.bb.tmp"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    _store._sweep.cache_clear()
    FoundationFeaturizer(MEAN, store=tmp_path, device="cpu").fit(tiled).transform(tiled)
    assert young.exists()
    assert not old.exists()
    assert len(list(tmp_path.glob("*.h5"))) == 4


def test_without_a_store_a_slide_replaced_while_it_is_read_is_refused(paths, tmp_path):
    mine = shutil.copy(paths[0], tmp_path)

    class Meddler(torch.nn.Module):
        def forward(self, pixels):
            shutil.copy(paths[1], mine)
            return pixels.mean(dim=(2, 3))

    tiled = TILER.fit_transform([mine])
    encoder = Encoder("meddler", Meddler(), width=3)
    featurizer = FoundationFeaturizer(encoder, device="cpu", batch_size=64).fit(tiled)
    with pytest.raises(ValueError, match="changed while it was read"):
        featurizer.transform(tiled)


def test_a_moved_slide_is_found_in_the_store(paths, tmp_path):
    tiled = TILER.fit_transform(paths[:1])
    featurizer = FoundationFeaturizer(MEAN, store=tmp_path / "store", device="cpu").fit(tiled)
    featurizer.transform(tiled)
    moved = TILER.fit_transform([shutil.copy(paths[0], tmp_path)])
    featurizer.transform(moved)
    assert featurizer.throughput_["n_stored"] == 1
