"""All steps on a Dask cluster, and the loss of workers and clients."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV, GroupKFold

from sklearn_pk.datasets import make_slide_cohort
from sklearn_pk.model_selection import cross_val_significance, prior_gain
from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import (
    FoundationFeaturizer,
    SlideTiler,
    SuperTileClusterer,
    _tiler,
    check_slides,
    read_features,
)
from sklearn_pk.utils import register_dask

pytestmark = pytest.mark.filterwarnings("ignore")  # of distributed itself, whatever its version
N_SLIDES = 24
MEAN = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return make_slide_cohort(N_SLIDES, random_state=0, out_dir=folder, slide_size=(512, 512))


@pytest.fixture(scope="module")
def tiled(cohort):
    return SlideTiler(tile_size=128, random_state=0).fit_transform(cohort.slides)


@pytest.fixture
def dask_backend(monkeypatch):
    """Register the backend "dask" as users do."""
    monkeypatch.setattr(joblib.parallel, "BACKENDS", dict(joblib.parallel.BACKENDS))
    register_dask()


def slow_encoder(seconds=0.2, fatal=None, folder=None):
    """Return an encoder that sleeps, and kills its process at tiles of a certain first pixel."""

    class Slow(torch.nn.Module):
        def forward(self, pixels):
            import os
            import signal
            import time

            time.sleep(seconds)
            if fatal is not None and abs(float(pixels[0, :, 0, 0].sum()) - fatal) < 1e-4:
                # The nanny of the worker must have seen it run first.
                time.sleep(2)
                os.kill(os.getpid(), signal.SIGKILL)
            return pixels.mean(dim=(2, 3))

    return Slow()


def assert_same_bags(bags, expected):
    assert len(bags) == len(expected)
    for bag, other in zip(bags, expected, strict=True):
        assert bag.slide == other.slide
        assert_array_equal(bag.coords, other.coords)
        assert_allclose(bag.features, other.features, rtol=1e-6)


def assert_whole(store, n_files):
    """Check that the store has one readable file per slide, and no other."""
    paths = sorted(store.glob("*.h5"))
    assert len(paths) == n_files
    assert len({path.name.rsplit("-", 1)[0] for path in paths}) == n_files
    for path in paths:
        assert np.isfinite(read_features(path).features).all()


def test_every_step_gives_the_same_from_another_folder(client, cohort, tmp_path, monkeypatch):
    folder = Path(cohort.slides[0]).parent
    monkeypatch.chdir(folder)
    paths = [os.path.relpath(path) for path in cohort.slides]
    tiler = SlideTiler(tile_size=128, random_state=0, max_tiles=9, memory="memory-of-tiles")
    featurizer = FoundationFeaturizer(MEAN, store="store-here", device="cpu", n_jobs=1)
    clusterer = SuperTileClusterer(n_clusters=3, random_state=0)
    tiled = tiler.fit_transform(paths)
    expected = featurizer.fit_transform(tiled)
    supertiles = clusterer.fit_transform(expected)
    report = check_slides(paths, tiler=tiler)
    # Tiles in the cache of this process would need no worker.
    monkeypatch.setattr(_tiler, "_cache", OrderedDict())
    with joblib.parallel_config(backend="dask"):
        same = tiler.set_params(memory=None).fit_transform(paths)
        featurizer.set_params(store="store-there", n_jobs=None)
        bags = featurizer.fit_transform(tiled)
        in_memory = featurizer.set_params(store=None).fit_transform(tiled)
        assert_array_equal(clusterer.fit_transform(bags), supertiles)
        assert check_slides(paths, tiler=tiler).equals(report)
    for slide, other in zip(same, tiled, strict=True):
        assert slide.path == other.path
        assert_array_equal(slide.coords, other.coords)
    assert_same_bags(bags, expected)
    assert_same_bags(in_memory, expected)
    assert {Path(bag.path).parent for bag in bags} == {folder / "store-there"}
    assert_whole(folder / "store-there", N_SLIDES)
    assert (folder / "memory-of-tiles").is_dir()
    assert featurizer.throughput_["n_encoded"] == N_SLIDES
    assert featurizer.throughput_["n_jobs"] == 2
    assert featurizer.throughput_["n_tiles"] == sum(map(len, tiled))


def test_models_and_controls_give_the_same(client, cohort, tiled):
    bags = FoundationFeaturizer(MEAN, device="cpu").fit_transform(tiled)
    model = PriorKnowledgeRegressor(
        prior=EigengeneEmbedder(4, random_state=0), embed_dim=8, max_epochs=3, random_state=0
    )
    options = {"groups": cohort.patients, "cv": GroupKFold(2)}
    y = cohort.expression.iloc[:, :60]
    here = cross_val_significance(model, bags, y, **options)
    gain = prior_gain(model, bags, y, n_seeds=1, random_state=0, **options)
    with joblib.parallel_config(backend="dask"):
        there = cross_val_significance(model, bags, y, **options)
        gain_there = prior_gain(model, bags, y, n_seeds=1, random_state=0, **options)
    assert_allclose(there.predictions, here.predictions, rtol=1e-5)
    assert there.n_significant == here.n_significant
    assert_allclose(gain_there["median_r"], gain["median_r"], rtol=1e-4)


def test_a_worker_killed_while_slides_are_encoded(client, kill_worker, tiled, tmp_path):
    featurizer = FoundationFeaturizer(slow_encoder(), store=tmp_path / "store", device="cpu")
    featurizer.fit(tiled)
    expected = featurizer.set_params(n_jobs=1, store=None).fit(tiled).transform(tiled)
    featurizer.set_params(n_jobs=None, store=tmp_path / "store").fit(tiled)
    early = {}

    def are_eight_stored():
        early.update({path: path.stat() for path in (tmp_path / "store").glob("*.h5")})
        return len(early) >= 8

    killer, killed = kill_worker(are_eight_stored)
    with joblib.parallel_config(backend="dask"):
        bags = featurizer.transform(tiled)
    killer.join()
    assert killed
    # Stored features are not computed again.
    for path, status in early.items():
        assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert_same_bags(bags, expected)
    assert_whole(tmp_path / "store", N_SLIDES)
    figures = featurizer.throughput_
    assert figures["n_encoded"] + figures["n_stored"] == N_SLIDES


def test_a_slide_that_kills_its_worker_costs_no_other(client, tiled, tmp_path):
    slides = tiled[:8]
    encoder = FoundationFeaturizer(slow_encoder(0), device="cpu", n_jobs=1).fit(slides)
    first = next(slides[5].iter_tiles())[0, 0].astype(np.float64)
    mean, std = encoder.encoder_.mean, encoder.encoder_.std
    fatal = float(((first / 255 - mean) / std).sum())
    featurizer = FoundationFeaturizer(
        slow_encoder(0, fatal), store=tmp_path, device="cpu", errors="empty"
    ).fit(slides)
    with joblib.parallel_config(backend="dask"):
        bags = featurizer.transform(slides)
    assert [len(bag) > 0 for bag in bags] == [number != 5 for number in range(8)]
    [[slide, reason]] = featurizer.failures_.to_numpy().tolist()
    assert slide == slides[5].path
    assert "its worker process was killed" in reason
    assert_whole(tmp_path, 7)


def test_a_worker_killed_during_a_search(client, kill_worker, tmp_path, dask_backend):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 30))
    y = X @ rng.normal(size=(30, 60)) + rng.normal(size=(240, 60))

    class Slow(PriorKnowledgeRegressor):
        def fit(self, X, y, groups=None):
            (tmp_path / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            time.sleep(0.3)
            return super().fit(X, y, groups=groups)

    model = Slow(embed_dim=8, max_epochs=3, random_state=0, device="cpu")
    grid = {"lambda_": [0.0, 0.2], "lr": [1e-3, 1e-2]}
    search = GridSearchCV(model, grid, cv=GroupKFold(3), scoring="r2", refit=False)
    here = search.fit(X, y, groups=np.arange(240)).cv_results_
    before = len(list(tmp_path.iterdir()))
    killer, killed = kill_worker(lambda: len(list(tmp_path.iterdir())) >= before + 3)
    with joblib.parallel_config(backend="dask"):
        there = search.fit(X, y, groups=np.arange(240)).cv_results_
    killer.join()
    assert killed
    for name in here:
        if name.startswith("split") or name.endswith("test_score"):
            assert_allclose(there[name], here[name], rtol=1e-5, err_msg=name)
    assert there["params"] == here["params"]


SCRIPT = """
import signal, sys, joblib, torch
from distributed import Client
# A shell starts background processes with interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from sklearn_pk.slides import FoundationFeaturizer, SlideTiler

class Slow(torch.nn.Module):
    def forward(self, pixels):
        import time
        time.sleep(0.2)
        return pixels.mean(dim=(2, 3))

if __name__ == "__main__":
    scheduler, folder, store, memory = sys.argv[1:]
    slides = sorted(map(str, Path(folder).glob("*.tif")))
    with Client(scheduler_file=scheduler), joblib.parallel_config(backend="dask"):
        tiled = SlideTiler(tile_size=128, random_state=0, memory=memory).fit_transform(slides)
        print("tiled", flush=True)
        featurizer = FoundationFeaturizer(Slow(), store=store, device="cpu").fit(tiled)
        featurizer.transform(tiled)
    print(featurizer.throughput_["n_stored"], featurizer.throughput_["n_encoded"], flush=True)
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents_at_rest(store):
    """Return the contents of a store once they have not changed for two seconds."""
    before, since = {}, time.monotonic()
    while time.monotonic() - since < 2:
        now = {path.name: path.read_bytes() for path in store.glob("*.h5")}
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.1)
    return before


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_script_resumes(scheduler_file, client, cohort, tmp_path, wait_for_files, sent):
    store, memory = tmp_path / "store", tmp_path / "memory"
    arguments = (scheduler_file, Path(cohort.slides[0]).parent, store, memory)
    with start(*arguments) as process:
        wait_for_files(store, 8, process)
        process.send_signal(sent)
        stopped = time.monotonic()
        _, err = process.communicate(timeout=30)
        seconds = time.monotonic() - stopped
    assert process.returncode == -sent
    if sent == signal.SIGINT:
        assert seconds < 10
        assert "KeyboardInterrupt" in err
    # Running tasks finish, the others are cancelled.
    before = contents_at_rest(store)
    assert 8 <= len(before) < N_SLIDES
    with start(*arguments) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == f"{len(before)} {N_SLIDES - len(before)}"
    assert {name: (store / name).read_bytes() for name in before} == before
    assert_whole(store, N_SLIDES)
    assert len(list(memory.rglob("output.pkl"))) == N_SLIDES
