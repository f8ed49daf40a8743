"""Two workers of a Dask cluster against one, and the overhead per slide."""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import gc
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import tifffile
import torch
from _cluster import cluster
from _common import RESULTS, describe, timed, write_results
from _slide import write_slide
from sklearn.model_selection import GridSearchCV, GroupKFold

from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, SuperTileClusterer, _tiler
from sklearn_pk.utils import register_dask

EDGE = 64


def tile(paths):
    """Find the tiles of slides without the cache of this process."""
    return tile_anew(SlideTiler(random_state=0).fit(paths), paths)


def search(X, y):
    """Search over six lambdas with four folds."""
    model = PriorKnowledgeRegressor(
        prior=np.random.default_rng(0).normal(size=(y.shape[1], 64)),
        embed_dim=64,
        max_epochs=12,
        early_stopping=None,
        random_state=0,
        device="cpu",
    )
    grid = {"lambda_": [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]}
    found = GridSearchCV(model, grid, cv=GroupKFold(4), scoring="r2", refit=False)
    return found.fit(X, y, groups=np.arange(len(X))).cv_results_["mean_test_score"]


def bench_workers(name, function, *arguments, same, rounds):
    """Call a function on one and on two workers in turns, and locally without and with joblib."""
    results, seconds = {}, {way: [] for way in ("one", "two", "plain_one", "plain_two")}
    with cluster(1) as one, cluster(2) as two:
        ways = {
            "one": {"backend": "dask", "client": one},
            "two": {"backend": "dask", "client": two},
            "plain_one": {"backend": "sequential"},
            "plain_two": {"backend": "loky", "n_jobs": 2},
        }
        for number in range(rounds + 1):
            for way, options in ways.items():
                with joblib.parallel_config(**options):
                    results[way], spent = timed(function, *arguments, repeats=1)
                if number:
                    seconds[way].append(spent)
    return {
        "step": f"{name}, two workers against one",
        "ratio": median_ratio(seconds["one"], seconds["two"]),
        "ratio_of_joblibs_own_processes": median_ratio(seconds["plain_one"], seconds["plain_two"]),
        "seconds": seconds,
        "same_result": all(same(results["plain_one"], each) for each in results.values()),
    }


def bench_allocator(name, function, *arguments, rounds):
    """Call a function on a worker with default and recommended memory settings."""
    seconds = {"as_dask_sets_it": [], "as_the_docs_say": []}
    with cluster(1, {}) as theirs, cluster(1) as ours:
        for number in range(rounds + 1):
            for way, client in zip(seconds, (theirs, ours), strict=True):
                with joblib.parallel_config(backend="dask", client=client):
                    _, spent = timed(function, *arguments, repeats=1)
                if number:
                    seconds[way].append(spent)
    step = f"{name} on one worker, its memory allocator as Dask sets it against as the docs say"
    return {"step": step, "ratio": median_ratio(*seconds.values()), "seconds": seconds}


def median_ratio(first, second):
    """Return the median of the ratios of the rounds."""
    return float(np.median(np.divide(first, second)))


def spin(n_rounds):
    """Multiply small matrices and add numbers: work that fits into the cache of one core."""
    values = np.random.default_rng(0).normal(size=(150, 150))
    for _ in range(n_rounds):
        values = np.tanh(values @ values)
        sum(range(2000))


def bench_machine(rounds):
    """Measure the maximum speed-up of two processes on this machine."""
    work = [joblib.delayed(spin)(1500) for _ in range(8)]
    seconds = {1: [], 2: []}
    for number in range(rounds + 1):
        for n_jobs in seconds:
            # Both in processes that are already running.
            with joblib.parallel_config(backend="loky"):
                halves = [work] if n_jobs == 1 else [work[:4], work[4:]]
                tasks = [joblib.delayed(_run_all)(half) for half in halves]
                _, spent = timed(joblib.Parallel(n_jobs=2), tasks, repeats=1)
            if number:
                seconds[n_jobs].append(spent)
    step = "two processes of this machine against one, work in the cache"
    return {"step": step, "ratio": median_ratio(seconds[1], seconds[2])}


def _run_all(tasks):
    for function, args, options in tasks:
        function(*args, **options)


def bench_full_size(folder, rounds):
    """Find the tiles of a slide of full size, which reads only its overview."""
    path = str(folder / "full.tiff")
    write_slide(path, 40_000, 30_000)
    seconds = [timed(tile, [path], repeats=1)[1] for _ in range(rounds)]
    [slide] = tile([path])
    step = "tiles of one slide of 40,000 x 30,000 px found, in one process"
    return {"step": step, "seconds": min(seconds), "n_tiles": len(slide)}


def same_tiles(first, second):
    """Compare the tiles of slides."""
    pairs = zip(first, second, strict=True)
    return all(np.array_equal(one.coords, two.coords) for one, two in pairs)


def write_tiny_slides(folder, n_slides):
    """Write slides of four tiles, each with different content."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(n_slides):
        paths.append(str(folder / f"{number:05}.tiff"))
        pixels = rng.integers(0, 256, size=(2, 2, 3), dtype=np.uint8)
        tifffile.imwrite(
            paths[-1],
            pixels.repeat(EDGE, axis=0).repeat(EDGE, axis=1),
            tile=(EDGE, EDGE),
            photometric="rgb",
            compression="deflate",
            resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )
    return paths


def memory_mb():
    """Return the current memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def watched(row):
    """Record the memory after a fifth of the time and at the end."""
    gc.collect()
    seen, done = [(time.perf_counter(), memory_mb())], threading.Event()

    def watch():
        while not done.wait(0.2):
            seen.append((time.perf_counter(), memory_mb()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    seen.append((time.perf_counter(), memory_mb()))
    begin, end = seen[0][0], seen[-1][0]
    fifth = next(mb for at, mb in seen if at >= begin + (end - begin) / 5)
    row |= {"mb_at_first": seen[0][1], "mb_at_a_fifth": fifth, "mb_at_the_end": seen[-1][1]}


def bench_overhead(folder, n_slides):
    """Measure each step on tiny slides, locally and on two workers."""
    slides = folder / "tiny"
    slides.mkdir()
    paths = write_tiny_slides(slides, n_slides)
    encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def record(step, function, *arguments):
        row = {"step": f"{n_slides:,} tiny slides: {step}, {where}"}
        start = time.perf_counter()
        with watched(row):
            result = function(*arguments)
        row["ms_a_slide"] = (time.perf_counter() - start) / n_slides * 1e3
        growth = row["mb_at_the_end"] - row["mb_at_a_fifth"]
        row["kb_a_slide"] = growth * 1e3 / (0.8 * n_slides)
        rows.append(row)
        return result

    rows = []
    tiler = SlideTiler(tile_size=EDGE, tissue=None, random_state=0)
    featurizer = FoundationFeaturizer(encoder, device="cpu")
    clusterer = SuperTileClusterer(n_clusters=2, random_state=0)
    for where, options in (("in one process", {}), ("on two workers", {"backend": "dask"})):
        with joblib.parallel_config(**options):
            # Workers have imported the packages.
            joblib.Parallel()(joblib.delayed(warm_up)() for _ in range(8))
            tiler.set_params(memory=folder / f"memory {where}").fit(paths[:1])
            tiled = record("tiling", tile_anew, tiler, paths)
            record("tiling, from memory=", tile_anew, tiler, paths)
            featurizer.set_params(store=folder / f"store {where}").fit(tiled)
            record("encoding", featurizer.transform, tiled)
            bags = record("encoding, from the store", featurizer.transform, tiled)
            record("super-tiles", clusterer.fit(bags).transform, bags)
    rows.append(bench_disk(folder, n_slides))
    return rows


def tile_anew(tiler, paths):
    """Tile without the cache of this process."""
    _tiler._cache.clear()
    return tiler.transform(paths)


def warm_up():
    """Import the packages in a worker."""
    import timm  # noqa: F401

    time.sleep(0.5)


def bench_disk(folder, n_slides):
    """Write the same number of bytes to the same number of files, flushed to the disk."""
    content = next((folder / "store in one process").glob("*.h5")).read_bytes()
    plain = folder / "plain"
    plain.mkdir()

    def write():
        for number in range(n_slides):
            with open(plain / f"{number}.part", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(plain / f"{number}.part", plain / f"{number}")

    _, seconds = timed(write, repeats=1)
    step = f"{n_slides:,} tiny slides: the disk alone, for what encoding writes"
    return {"step": step, "ms_a_slide": seconds / n_slides * 1e3, "bytes": len(content)}


def main():
    """Run all benchmarks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer slides, for a look")
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster.json")
    arguments = parser.parse_args()
    n_large, n_tiny, rounds = (4, 300, 1) if arguments.quick else (32, 10_000, 3)
    register_dask()
    rows = []

    def record(*new):
        for row in new:
            print(row, flush=True)
        rows.extend(new)
        write_results(describe() | {"rows": rows}, arguments.out)

    with tempfile.TemporaryDirectory() as folder:
        record(bench_machine(rounds))
        record(bench_full_size(Path(folder), rounds))
        paths = [f"{folder}/{number:02}.tiff" for number in range(n_large)]
        for number, path in enumerate(paths):
            # Without a pyramid, so that the whole level has to be decoded.
            write_slide(path, 12_000, 9_000, levels=(1,), seed=number)
        record(bench_workers("tiling", tile, paths, same=same_tiles, rounds=rounds))
        record(bench_allocator("tiling", tile, paths, rounds=1))
        rng = np.random.default_rng(0)
        X = rng.normal(size=(600, 607)).astype(np.float32)
        y = X @ rng.normal(size=(607, 1558)) + 20 * rng.normal(size=(600, 1558))
        record(bench_workers("search", search, X, y, same=np.allclose, rounds=rounds))
        record(bench_allocator("search", search, X, y, rounds=1))
        with cluster(2):
            record(*bench_overhead(Path(folder), n_tiny))


if __name__ == "__main__":
    main()
