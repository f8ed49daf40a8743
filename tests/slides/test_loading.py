"""Reading of tiles ahead of the model."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler, read_features
from sklearn_pk.slides._encoders._inference import apply_transform
from sklearn_pk.slides._encoding import FEW_BATCHES, EncodingRun
from sklearn_pk.slides._loading import (
    TileBatches,
    count_workers,
    load_batches,
    read_ahead,
)

MAIN = os.getpid()


def mean_colours():
    """An encoder whose features are known: the normalised mean of each channel."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def scaled(image):
    """A transform as users pass it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def deadly(image):
    """A transform that kills the process in which it runs, unless that is the main one."""
    if os.getpid() != MAIN:
        os.kill(os.getpid(), signal.SIGKILL)
    return scaled(image)


def faulty(image):
    """A transform that raises."""
    raise RuntimeError("no stain vector")


def spans(slides, size):
    """Cut slides into batches."""
    return [
        (position, start, min(start + size, len(slide)))
        for position, slide in enumerate(slides)
        for start in range(0, len(slide), size)
    ]


@pytest.fixture
def tiled(small_slides):
    return SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)


def test_read_ahead_keeps_order():
    assert list(read_ahead(lambda item: item**2, range(6))) == [0, 1, 4, 9, 16, 25]
    assert list(read_ahead(lambda item: item, [])) == []


def test_read_ahead_is_bounded_and_runs_beside_the_caller():
    taken, threads = [], set()

    def items():
        for item in range(10):
            taken.append((item, threading.get_ident()))
            yield item

    def function(item):
        threads.add(threading.get_ident())
        return item

    results = read_ahead(function, items(), ahead=2)
    assert next(results) == 0
    assert [item for item, _ in taken] == [0, 1, 2]
    assert {thread for _, thread in taken} == {threading.get_ident()}
    assert threads.isdisjoint({threading.get_ident()})
    results.close()


def test_read_ahead_raises_errors_in_order():
    def function(item):
        if item == 2:
            raise ValueError("damaged tile")
        return item

    results = read_ahead(function, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="damaged tile"):
        next(results)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_are_the_tiles_in_order(tiled, num_workers):
    plan = spans(tiled, 7)
    expected = [np.stack(list(slide.iter_tiles())) for slide in tiled]
    with closing(load_batches(TileBatches(tiled), iter(plan), num_workers=num_workers)) as batches:
        found = list(batches)
    assert [(position, start) for position, start, _ in found] == [span[:2] for span in plan]
    for (position, start, stop), (_, _, tiles) in zip(plan, found, strict=True):
        assert tiles.dtype == torch.uint8
        np.testing.assert_array_equal(tiles, expected[position][start:stop])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_plan_is_followed_lazily(tiled, num_workers):
    taken = []

    def plan():
        for span in spans(tiled, 2):
            taken.append(span)
            yield span

    with closing(load_batches(TileBatches(tiled), plan(), num_workers=num_workers)) as batches:
        next(batches)
        assert 1 < len(taken) < 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_slide_does_not_end_others(tiled, tmp_path, num_workers):
    path = shutil.copy(tiled[1].path, tmp_path / "gone.tiff")
    [bad] = SlideTiler(tile_size=64).fit_transform([path])
    (tmp_path / "gone.tiff").unlink()
    slides = [tiled[0], bad, tiled[2]]
    plan = spans(slides, 8)
    found = list(load_batches(TileBatches(slides), iter(plan), num_workers=num_workers))
    errors = [batch for position, _, batch in found if position == 1]
    assert {type(error) for error in errors} == {FileNotFoundError}
    assert "gone.tiff" in str(errors[0])
    counts = dict.fromkeys(range(3), 0)
    for position, _, batch in found:
        counts[position] += len(batch) if torch.is_tensor(batch) else 0
    assert counts == {0: len(tiled[0]), 1: 0, 2: len(tiled[2])}


def test_errors_cross_processes_as_builtin_ones(tiled):
    class Odd(ValueError):
        def __init__(self, first, second):
            super().__init__(f"{first} {second}")

    class Broken:
        def __getitem__(self, index):
            raise Odd("damaged", "block")

    _, _, error = TileBatches([Broken()])[0, 0, 1]
    assert type(error) is ValueError
    assert str(pickle.loads(pickle.dumps(error))) == "damaged block"


def test_slide_stays_open_between_batches(tiled, monkeypatch):
    opened = []
    open_tiles = type(tiled[0]).open_tiles

    def noted(slide):
        opened.append(slide.name)
        return open_tiles(slide)

    monkeypatch.setattr(type(tiled[0]), "open_tiles", noted)
    dataset = TileBatches(tiled)
    for span in spans(tiled, 3):
        dataset[span]
    assert opened == ["a", "b", "c"]
    dataset.close()
    dataset[2, 0, 1]
    assert opened == ["a", "b", "c", "c"]
    dataset.close()


def test_slide_is_opened_again_after_an_error(tiled, tmp_path):
    path = shutil.copy(tiled[0].path, tmp_path / "s.tiff")
    [slide] = SlideTiler(tile_size=64, random_state=0).fit_transform([path])
    dataset = TileBatches([slide])
    shutil.move(path, tmp_path / "away.tiff")
    assert isinstance(dataset[0, 0, 2][2], FileNotFoundError)
    shutil.move(tmp_path / "away.tiff", path)
    np.testing.assert_array_equal(dataset[0, 0, 1][2][0], next(slide.iter_tiles()))
    dataset.close()


def test_slide_is_opened_again_after_an_error_while_it_was_open(tiled, tmp_path):
    path = tmp_path / "s.tiff"
    content = Path(tiled[0].path).read_bytes()
    path.write_bytes(content)
    [slide] = SlideTiler(tile_size=64, random_state=0).fit_transform([path])
    expected = np.stack(list(slide.iter_tiles()))
    dataset = TileBatches([slide])
    np.testing.assert_array_equal(dataset[0, 0, 1][2], expected[:1])
    path.write_bytes(b"\0" * len(content))
    assert isinstance(dataset[0, len(slide) - 1, len(slide)][2], ValueError)
    path.write_bytes(content)
    np.testing.assert_array_equal(dataset[0, 1, 3][2], expected[1:3])
    dataset.close()


class Patchy:
    """Tiles of which the first cannot be read."""

    def __len__(self):
        return 6

    def __getitem__(self, tiles):
        if tiles.start == 0:
            raise ValueError("damaged tile")
        return np.ones((tiles.stop - tiles.start, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [2, 8])
@pytest.mark.parametrize("fail_fast", [False, True])
def test_rest_of_a_bad_slide_is_left_out(fail_fast, batch_size):
    whole = np.full((3, 8, 8, 3), 5, dtype=np.uint8)
    featurizer = FoundationFeaturizer(mean_colours(), batch_size=batch_size, device="cpu")
    featurizer.fit([whole])
    slides = list(enumerate([whole, Patchy(), whole]))
    run = EncodingRun(featurizer._make_slide_encoder(), slides, fail_fast=fail_fast)
    run.run()
    assert {position: str(error) for position, error in run.errors.items()} == {1: "damaged tile"}
    assert list(run.bags) == ([0] if fail_fast else [0, 2])
    [expected] = featurizer.transform([whole])
    for bag in run.bags.values():
        np.testing.assert_array_equal(bag.features, expected.features)
    figures = run.throughput.summary()
    assert figures["n_encoded"] == len(run.bags)
    assert figures["n_tiles"] == 3 * len(run.bags)


def test_own_tiles_are_only_copied_if_read_only():
    tiles = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    assert np.shares_memory(TileBatches([tiles])[0, 1, 3][2].numpy(), tiles)
    tiles.flags.writeable = False
    batch = TileBatches([tiles])[0, 1, 3][2]
    assert batch.shape == (2, 8, 8, 3)
    assert not np.shares_memory(batch.numpy(), tiles)


def test_transform_of_the_encoder_prepares_tiles(tiled):
    for num_workers in (0, 1):
        dataset = TileBatches(tiled, scaled)
        [(_, _, batch)] = load_batches(dataset, iter([(0, 0, 3)]), num_workers=num_workers)
        expected = np.stack(list(tiled[0].iter_tiles()))[:3].transpose(0, 3, 1, 2) / 255
        assert batch.dtype == torch.float32
        np.testing.assert_allclose(batch, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "result", [np.zeros((3, 8, 8)), torch.zeros(8, 8), torch.zeros(3, 8, 8).byte()]
)
def test_transform_that_gives_something_else(result):
    with pytest.raises(TypeError, match=r"float tensor of shape \(3, height, width\), got"):
        apply_transform(lambda image: result, np.zeros((1, 8, 8, 3), dtype=np.uint8))


def test_random_state_of_the_user_is_left_alone(tiled):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(load_batches(TileBatches(tiled), iter([(0, 0, 2)]), num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_process_is_left_behind(tiled):
    before = set(multiprocessing.active_children())  # those of joblib, from other tests
    batches = load_batches(TileBatches(tiled), iter(spans(tiled, 1)), num_workers=2)
    next(batches)
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    batches.close()
    assert not started & set(multiprocessing.active_children())


def test_number_of_workers():
    assert count_workers(None, "cpu", 1) == 0
    assert count_workers(3, "cpu", 1) == 3
    assert count_workers(0, "cuda", 1) == 0
    assert 0 <= count_workers(None, "cuda", 1) <= 8
    assert count_workers(3, "cpu", 1 << 60) == 0  # No shared memory holds such batches.


def test_number_of_workers_where_processes_may_have_no_children():
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=lambda: results.put(count_workers(2, "cpu", 1)), daemon=True)
    process.start()
    assert results.get() == 0
    process.join()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_features_do_not_depend_on_num_workers(tiled, num_workers):
    expected = FoundationFeaturizer(mean_colours(), batch_size=5).fit_transform(tiled)
    featurizer = FoundationFeaturizer(mean_colours(), batch_size=5, num_workers=num_workers)
    bags = featurizer.fit_transform(tiled)
    assert featurizer.throughput_["num_workers"] == num_workers
    for bag, other in zip(bags, expected, strict=True):
        np.testing.assert_array_equal(bag.features, other.features)


def test_no_process_is_started_for_few_batches_or_stored_slides(tiled, tmp_path):
    few = max(map(len, tiled))
    featurizer = FoundationFeaturizer(mean_colours(), batch_size=few, num_workers=2).fit(tiled)
    featurizer.transform(tiled)
    assert len(tiled) < FEW_BATCHES
    assert featurizer.throughput_["num_workers"] == 0
    featurizer.set_params(batch_size=2, store=tmp_path)
    for expected in (2, 0):
        featurizer.transform(tiled)
        assert featurizer.throughput_["num_workers"] == expected


def test_worker_that_is_killed(tiled, tmp_path):
    X = [np.zeros((2, 64, 64, 3), dtype=np.uint8), *tiled]
    encoder = Encoder("mine", mean_colours(), width=3, transform=deadly, transform_name="deadly")
    featurizer = FoundationFeaturizer(
        encoder, store=tmp_path, batch_size=4, num_workers=1, errors="empty"
    )
    before = set(multiprocessing.active_children())  # those of joblib, from other tests
    with pytest.raises(
        RuntimeError, match=r"(?s)read tiles was killed.*being processed: .*a\.tiff"
    ):
        featurizer.fit(tiled).transform(tiled)
    assert set(multiprocessing.active_children()) <= before
    featurizer.set_params(num_workers=0)
    bags = featurizer.transform(X)
    assert [len(bag) for bag in bags] == [len(slide) for slide in X]
    assert [len(read_features(path)) for path in tmp_path.glob("a-*.h5")] == [len(tiled[0])]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_transform_is_not_a_killed_worker(tiled, num_workers):
    encoder = Encoder("mine", mean_colours(), width=3, transform=faulty)
    featurizer = FoundationFeaturizer(encoder, batch_size=4, num_workers=num_workers).fit(tiled)
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match="no stain vector") as caught:
        featurizer.transform(tiled)
    assert "killed" not in str(caught.value)
    # The traceback is still there, and with it whatever it refers to.
    assert set(multiprocessing.active_children()) <= before


def test_processes_of_a_thread(tiled):
    featurizer = FoundationFeaturizer(mean_colours(), batch_size=4, num_workers=1).fit(tiled)
    with ThreadPoolExecutor(1) as pool:
        bags = pool.submit(featurizer.transform, tiled).result()
    assert featurizer.throughput_["num_workers"] == 1
    assert [len(bag) for bag in bags] == [len(slide) for slide in tiled]
