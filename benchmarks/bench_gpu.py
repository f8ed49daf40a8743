"""
Speed of each step on one GPU, in at most ten minutes; results are written to a JSON file.

``python benchmarks/bench_gpu.py`` takes the first GPU. A step that would begin after `--minutes` is
left out, and named. Rates are compared with what the device reaches in one large product and one
large copy, its roofline as measured. ``--device cpu --small`` shows that the script runs.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _common import RESULTS, describe, write_results
from scipy import sparse

from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    PriorKnowledgeRidge,
)
from sklearn_pk.slides import Encoder, FoundationFeaturizer
from sklearn_pk.slides._encoders._inference import TileEncoder
from sklearn_pk.slides._encoders._weights import load_encoder
from sklearn_pk.utils._device import pick_device, pick_dtype

AGGREGATORS = ("mlp", "attention", "transformer", "summary_mixing", "topk")
LAMBDAS = (0.1, 0.2, 0.5, 0.8, 0.9)
# Table 2 of the paper: its fits, and the epochs of one, as early stopping needed on real features.
N_FITS, N_EPOCHS = 480, 60
SIZES = {
    "full": {
        "n_slides": 1133, "n_tiles": 100, "n_features": 1024, "n_genes": 25_761, "depth": 6,
        "n_components": 1024, "n_graph": 6000, "n_encoded": 2048, "batch_size": 128, "edge": 224,
        "model": "vit_large_patch16_224", "product": 8192, "n_iter": 5,
    },
    "small": {
        "n_slides": 12, "n_tiles": 3, "n_features": 8, "n_genes": 30, "depth": 1,
        "n_components": 4, "n_graph": 60, "n_encoded": 4, "batch_size": 2, "edge": 32,
        "model": "test_vit", "product": 64, "n_iter": 2,
    },
}  # fmt: skip


def seconds_of(function, device, repeats=3):
    """Return the fastest of several calls, after one to warm up, until the device has finished."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure_roofline(size, device):
    """Measure products per second in each precision, and bytes per second of a copy."""
    edge, rates = size["product"], {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(edge, edge, device=device, dtype=dtype)
        rates[f"{str(dtype).removeprefix('torch.')}_tflops"] = (
            2 * edge**3 / seconds_of(lambda a=a: a @ a, device) / 1e12
        )
    a = torch.empty(edge**2, device=device)
    gb = 2 * a.nbytes / 1e9
    return rates | {"gb_per_second": gb / seconds_of(a.clone, device)}


def make_cohort(size):
    """Draw features and expression that depends on them."""
    rng = np.random.default_rng(0)
    shape = size["n_slides"], size["n_tiles"], size["n_features"]
    X = rng.standard_normal(shape, dtype=np.float32)
    weights = rng.standard_normal((size["n_features"], size["n_genes"]), dtype=np.float32)
    y = X.mean(axis=1) @ weights + rng.standard_normal(
        (size["n_slides"], size["n_genes"]), dtype=np.float32
    )
    return X, y, np.ascontiguousarray(weights.T)


def bench_encode(size, device):
    """Encode tiles in memory, against the model alone in the same precision."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (size["n_encoded"], *[size["edge"]] * 2, 3), dtype=np.uint8)
    import timm

    module = timm.create_model(size["model"], num_classes=0, img_size=size["edge"]).eval()
    encoder = Encoder("bench", module, input_size=size["edge"])
    dtype, batch_size = pick_dtype("auto", device), size["batch_size"]
    featurizer = FoundationFeaturizer(encoder, device=device, batch_size=batch_size).fit([tiles])
    ours = seconds_of(lambda: featurizer.transform([tiles]), device, repeats=1)
    model = TileEncoder(
        load_encoder(encoder, None, device, products=dtype), encoder, device=device, dtype=dtype
    )
    batch = torch.from_numpy(tiles[:batch_size]).to(device)
    alone = seconds_of(lambda: model(batch), device) * len(tiles) / batch_size
    return {
        "dtype": dtype,
        "tiles_per_second": len(tiles) / ours,
        "model_alone_tiles_per_second": len(tiles) / alone,
        "of_model_alone": alone / ours,
    }


def fit_parameters(size, device, dtype):
    """Return the parameters of a fit that trains two epochs."""
    return {
        "depth": size["depth"], "device": device, "dtype": dtype, "early_stopping": None,
        "max_epochs": 2, "random_state": 0,
    }  # fmt: skip


def bench_steps(size, device):
    """Train each aggregator; seconds of a step, and its products of the last layer alone."""
    X, y, G = make_cohort(size)
    rows = []
    for aggregator in AGGREGATORS:
        for dtype in ("float32", "auto"):
            parameters = fit_parameters(size, device, dtype)
            model = PriorKnowledgeRegressor(prior=G, aggregator=aggregator, **parameters)
            model.fit(X, y)
            n_steps = -(-(len(X) - len(model.validation_indices_)) // model.batch_size)
            weights = [w for name, w in model.net_.module_.named_parameters()]
            n_last = model.net_.module_.layer.weight.numel()
            # Forward and backward: three products of two operations for each weight and input.
            per_tile = sum(w.numel() for w in weights) - n_last
            flops = 6 * model.batch_size * (per_tile * size["n_tiles"] + n_last)
            # AdamW reads weights, gradients and two moments, and writes all but the gradients.
            n_bytes = 4 * 7 * sum(w.numel() for w in weights)
            seconds = float(model.history_["dur"].iloc[-1]) / n_steps
            rows.append(
                {
                    "aggregator": aggregator,
                    "dtype": dtype,
                    "seconds_per_step": seconds,
                    "tflops": flops / seconds / 1e12,
                    "optimizer_gb_per_second": n_bytes / seconds / 1e9,
                }
            )
    return rows


def bench_lambdas(size, device):
    """Train five lambdas at once, against five fits, and extrapolate Table 2."""
    X, y, G = make_cohort(size)
    estimator = PriorKnowledgeRegressor(
        prior=G, aggregator="mlp", **fit_parameters(size, device, "auto")
    )
    held_out = len(X) // 5
    fold = [(np.arange(held_out, len(X)), np.arange(held_out))]
    spent = []

    def score(model, X, y):
        spent.append(float(model.history_["dur"].iloc[-1]))
        return 0.0

    def search(cv):
        spent.clear()
        PriorKnowledgeRegressorCV(estimator, LAMBDAS, cv=cv, refit=False, scoring=score).fit(X, y)
        return sum(spent)  # the time of an epoch is divided among the networks of a stack

    search(fold)
    together = search(fold)
    one = estimator.set_params(lambda_=0.5).fit(X[held_out:], y[held_out:])
    apart = len(LAMBDAS) * float(one.history_["dur"].iloc[-1])
    five_folds = search(5)
    return {
        "epoch_of_five_lambdas_seconds": together,
        "epochs_of_five_fits_seconds": apart,
        "times_as_fast": apart / together,
        "epoch_of_25_networks_seconds": five_folds,
        "table2_hours_extrapolated": five_folds / 25 * N_FITS * N_EPOCHS / 3600,
        "table2_assumes": {"fits": N_FITS, "epochs": N_EPOCHS, "aggregator": "mlp"},
    }


def bench_graph(size, device):
    """Find co-expressed pairs, which are the same on the CPU."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((size["n_graph"], 200)) + rng.standard_normal(200)
    graph = CoexpressionGraph(threshold=0.6, device=device)
    return {"seconds": seconds_of(lambda: graph.fit(values), device, repeats=1)}


def bench_hals(size, device):
    """Factorise a graph."""
    rng = np.random.default_rng(0)
    graph = sparse.random_array((size["n_graph"],) * 2, density=0.01, rng=rng, dtype=np.float32)
    graph = sparse.csr_array(graph + graph.T)
    embedder = NMFGeneEmbedder(
        size["n_components"], device=device, max_iter=size["n_iter"], tol=0, random_state=0
    )
    seconds = seconds_of(lambda: embedder.fit(graph), device, repeats=1)
    return {"seconds_per_iteration": seconds / size["n_iter"]}


def bench_ridge(size, device):
    """Fit the ridge on mean features; it computes on the CPU."""
    X, y, G = make_cohort(size)
    ridge = PriorKnowledgeRidge(prior=G)
    return {"seconds": seconds_of(lambda: ridge.fit(X.mean(axis=1), y), "cpu", repeats=1)}


STEPS = {
    "encode": bench_encode,
    "steps": bench_steps,
    "lambdas": bench_lambdas,
    "graph": bench_graph,
    "hals": bench_hals,
    "ridge": bench_ridge,
}


def main(arguments=None):
    """Measure all steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--small", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args(arguments)
    device, size = pick_device(arguments.device), SIZES["small" if arguments.small else "full"]
    if device == "cpu" and not arguments.small:
        parser.error("there is no GPU; pass --small for a trial on the CPU")
    start, left_out = time.perf_counter(), []
    results = describe(device) | {"device": device, "size": size}
    results["roofline"] = measure_roofline(size, device)
    for name, step in STEPS.items():
        if time.perf_counter() - start > 60 * arguments.minutes:
            left_out.append(name)
            continue
        print(f"{name} ...", flush=True)
        results[name] = step(size, device)
        # Each step may be the last that an interrupted run finishes.
        write_results(results | {"left_out": left_out}, arguments.out)
    results |= {"left_out": left_out, "seconds": time.perf_counter() - start}
    write_results(results, arguments.out)


if __name__ == "__main__":
    main()
