"""From slides to features against plain references; results are written to a JSON file."""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import hashlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _common import RESULTS, describe, run_in_turns, timed, write_results
from _reference_tiling import for_each_tile, read_tile, reference_candidates, reference_keeps
from _slide import write_slide
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from sklearn_pk.slides import FoundationFeaturizer, SlideTiler
from sklearn_pk.slides._encoders._registry import find_encoder
from sklearn_pk.slides._encoders._weights import find_weights, load_encoder
from sklearn_pk.slides._supertiles import cluster_labels

SIZE = (40_000, 30_000)


def read_batches(tiled):
    """Read all tiles of a slide in batches."""
    with tiled.open_tiles() as read:
        for start in range(0, len(tiled), 32):
            yield read(start, start + 32)


def bench_tiling(path, n_tested, rng):
    """Find and read all tiles of a slide; the reference is timed on some of them and scaled."""
    start = time.perf_counter()
    [tiled] = SlideTiler(max_tiles=None).fit_transform([path])
    for _ in read_batches(tiled):
        pass
    seconds = time.perf_counter() - start
    (corners, tissue), mask_seconds = timed(reference_candidates, path, repeats=1)
    tested = np.sort(rng.permutation(np.flatnonzero(tissue))[:n_tested])
    keeps, tile_seconds = timed(for_each_tile, reference_keeps, path, corners[tested], repeats=1)
    keeps, tile_seconds = np.array(keeps), tile_seconds / len(tested)
    found = set(map(tuple, tiled.coords.tolist()))
    ours = np.array([tuple(corner) in found for corner in corners.tolist()])
    # The tested tiles stand for all on the mask of the reference.
    wrong = (ours[tested] != keeps).mean() * tissue.sum() + ours[~tissue].sum()
    reference = mask_seconds + tile_seconds * tissue.sum()
    return tiled, {
        "step": "tiling, reading and tissue test",
        "seconds": seconds,
        "reference_seconds": float(reference),
        "ratio": float(reference / seconds),
        "same_decision": float(1 - wrong / len(corners)),
        "kept_of_those_the_reference_keeps": float(ours[tested][keeps].mean()),
        "tiles": {"grid": len(corners), "ours": len(tiled), "reference_tested": len(tested)},
    }


def bench_reading(tiled, n_tiles):
    """Read the same tiles, in the same order, one by one with OpenSlide."""
    some = replace(tiled, coords=tiled.coords[:n_tiles])
    expected, reference = timed(for_each_tile, read_tile, some.path, some.coords)
    tiles, seconds = timed(lambda: list(read_batches(some)))
    return {
        "step": "reading tiles",
        "tiles_per_second": n_tiles / seconds,
        "reference_tiles_per_second": n_tiles / reference,
        "ratio": reference / seconds,
        "agree": bool(np.array_equal(np.concatenate(tiles), np.stack(expected))),
    }


_MEMORY = """
import sys
from pathlib import Path
from sklearn_pk.slides import SlideTiler
[tiled] = SlideTiler(max_tiles=None).fit_transform([sys.argv[1]])
with tiled.open_tiles() as read:
    for start in range(0, len(tiled), 32):
        read(start, start + 32)
print(Path("/proc/self/status").read_text())
"""


def bench_memory(path, layout):
    """Measure the peak of a process that tiles a slide and reads all tiles."""
    command = [sys.executable, "-c", _MEMORY, str(path)]
    status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    return {"step": f"peak memory, {layout}", "mib": peak / 1024}


def make_weights(name, folder):
    """Build an encoder with random weights, which do not affect its speed, and save them."""
    torch.manual_seed(0)
    state = find_encoder(name).build().state_dict()
    path = Path(folder) / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def pure_model(model, encoder, tiles, batch_size, device, dtype):
    """Encode tiles in memory with torch only."""
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (encoder.mean, encoder.std)
    )
    features = []
    with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype is not None):
        for start in range(0, len(tiles), batch_size):
            pixels = torch.from_numpy(tiles[start : start + batch_size]).to(device)
            pixels = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
            if encoder.fixed_size or pixels.shape[-1] > encoder.input_size:
                size = (encoder.input_size, encoder.input_size)
                pixels = torch.nn.functional.interpolate(
                    pixels, size=size, mode="bilinear", antialias=True
                )
            features.append(encoder.pool(model(pixels)).float().cpu().numpy())
    return np.concatenate(features)


def bench_encoding(name, weights, tiled, *, rounds, device, batch_size=32):
    """Encode from the file against the pure model on tiles in memory, in turns."""
    featurizer = FoundationFeaturizer(name, weights=weights, device=device, batch_size=batch_size)
    featurizer.fit([tiled])
    encoder = find_encoder(name)
    model = load_encoder(encoder, find_weights(encoder, weights), device)
    tiles = np.stack(list(tiled.iter_tiles()))
    dtype = torch.bfloat16 if device == "cuda" else None
    ways = {
        "ours": lambda: featurizer.transform([tiled])[0].features,
        "pure": lambda: pure_model(model, encoder, tiles, batch_size, device, dtype),
    }
    features, times = run_in_turns(ways, rounds)
    ours, pure = (float(np.median(times[way])) for way in ways)
    difference = np.abs(features["ours"] - features["pure"]).max() / np.abs(features["pure"]).max()
    return {
        "step": f"end-to-end encoding, {name}, {device}",
        "tiles_per_second": len(tiled) / ours,
        "pure_tiles_per_second": len(tiled) / pure,
        "share_of_pure": pure / ours,
        "largest_relative_difference": float(difference),
    }


def planted_tiles(rng, n_tiles=4000, n_features=1024):
    """Draw features of tiles around 300 centres."""
    centres = rng.normal(size=(300, n_features))
    tiles = centres[rng.integers(300, size=n_tiles)] + rng.normal(size=(n_tiles, n_features))
    return tiles.astype(np.float32)


def inertia(features, labels):
    """Sum the squared distances of tiles to the mean of their cluster."""
    total = 0.0
    for label in np.unique(labels):
        members = features[labels == label].astype(np.float64)
        total += np.square(members - members.mean(axis=0)).sum()
    return total


def bench_supertiles(features, n_clusters=100):
    """Cluster the tiles of a slide; the reference is scikit-learn's k-means with its defaults."""
    row = {"step": f"super-tiles, {features.shape[0]} x {features.shape[1]}, k = {n_clusters}"}
    expected, reference = timed(
        lambda: KMeans(n_clusters, random_state=0).fit_predict(features), repeats=3
    )
    labels, seconds = timed(cluster_labels, features, n_clusters, 0)
    with threadpool_limits(1):
        _, one_thread = timed(lambda: KMeans(n_clusters, random_state=0).fit(features))
    row |= {"seconds": seconds, "reference_seconds": reference, "ratio": reference / seconds}
    row |= {"ratio_to_reference_on_one_thread": one_thread / seconds}
    return row | {"relative_inertia": inertia(features, labels) / inertia(features, expected)}


_ENCODE = """
import sys
from pathlib import Path
from sklearn.pipeline import make_pipeline
from sklearn_pk.slides import FoundationFeaturizer, SlideTiler
paths = sorted(map(str, Path(sys.argv[1]).glob("*.tiff")))
featurizer = FoundationFeaturizer(store=sys.argv[2])
make_pipeline(SlideTiler(random_state=0), featurizer).fit_transform(paths)
print(featurizer.throughput_["n_stored"], featurizer.throughput_["n_encoded"])
"""


def bench_kill(folder, n_slides):
    """Kill a run, run again, and compare with an uninterrupted run."""
    slides = Path(folder) / "slides"
    slides.mkdir()
    for number in range(n_slides):
        write_slide(slides / f"{number:02}.tiff", 1024, 1408, levels=(1, 4), tissue=1, seed=number)
    stores = [Path(folder) / name for name in ("killed", "alone")]

    def command(store):
        return [sys.executable, "-c", _ENCODE, str(slides), str(store)]

    with subprocess.Popen(command(stores[0]), stdout=subprocess.DEVNULL) as process:
        while len(list(stores[0].glob("*.h5"))) < n_slides // 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in stores[0].glob("*.h5")}
    again = subprocess.run(command(stores[0]), check=True, capture_output=True, text=True).stdout
    subprocess.run(command(stores[1]), check=True, capture_output=True)
    content = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("*.h5")}
        for store in stores
    ]
    stored, encoded = map(int, again.split())
    return {
        "step": f"kill -9 in the middle of {n_slides} slides",
        "good_before": len(kept),
        "recomputed": sum(path.stat().st_mtime_ns != kept[path] for path in kept),
        "second_run": {"from_the_store": stored, "encoded": encoded},
        "same_bytes": content[0] == content[1] and len(content[0]) == n_slides,
    }


def main():
    """Run all benchmarks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tiles, for a look")
    parser.add_argument("--device", default="cpu", help="torch device of the encoders")
    parser.add_argument("--out", type=Path, default=RESULTS / "slides.json")
    arguments = parser.parse_args()
    share = 4 if arguments.quick else 1
    rng = np.random.default_rng(0)
    rows = []

    def record(row):
        print(row, flush=True)
        rows.append(row)
        results = describe(arguments.device) | {"slide": f"{SIZE[0]} x {SIZE[1]} px", "rows": rows}
        write_results(results, arguments.out)

    with tempfile.TemporaryDirectory() as folder:
        layouts = {"pyramid": (1, 4, 16), "single level": (1,)}
        paths = {name: Path(folder) / f"{name}.tiff" for name in layouts}
        for name, levels in layouts.items():
            write_slide(paths[name], *SIZE, levels=levels)
        tiled, row = bench_tiling(str(paths["pyramid"]), 400 // share, rng)
        record(row)
        record(bench_reading(tiled, 2000 // share))
        for name, path in paths.items():
            record(bench_memory(path, name))
        encoders = {"efficientnet-lite0": (None, 256), "resnet50": ("", 96)}
        if arguments.device != "cpu":
            encoders["uni"] = ("", 3072)
        for name, (weights, n_tiles) in encoders.items():
            weights = make_weights(name, folder) if weights == "" else None
            some = replace(tiled, coords=tiled.coords[: n_tiles // share])
            record(bench_encoding(name, weights, some, rounds=3, device=arguments.device))
        record(bench_supertiles(planted_tiles(rng)))
        record(bench_kill(folder, 30))


if __name__ == "__main__":
    main()
