"""Training of the regressor against plain torch; results are written to a JSON file.

Each step runs in a process of its own. Fits are timed in turns, within one process, and the ratio
is that of the fastest; their memory is measured in a process for each.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from _common import RESULTS, describe, peak_mb, run_in_turns, timed, write_results
from _reference_training import (
    HeadByHead,
    make_network,
    make_optimizer,
    replace_mixers,
    train_step,
)
from torch.nn import functional as F

from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV
from sklearn_pk.regression._network import build_network
from sklearn_pk.regression._regressor import check_training_data, prepare, tile_statistics
from sklearn_pk.regression._training import mean_correlation
from sklearn_pk.slides import read_features

LAMBDAS = [0.1, 0.2, 0.5, 0.8, 0.9]

# Slides, tiles, features, genes, width, epochs: the paper's cohort (fewer slides), and a table with
# one row per patient, where a step takes a millisecond or two.
SHAPES = {
    "paper": (256, 100, 1024, 25_761, None, 3),
    "table": (707, 1, 607, 1558, 128, 20),
}


def make_data(shape):
    """Draw features, expression and gene embeddings in float32."""
    n_slides, n_tiles, n_features, n_genes, width, _ = SHAPES[shape]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_slides, n_tiles, n_features), dtype=np.float32)
    y = rng.standard_normal((n_slides, n_genes), dtype=np.float32)
    G = rng.standard_normal((n_genes, width or n_features), dtype=np.float32)
    return X, y, G


def make_model(shape, G, **parameters):
    """Make the regressor; every epoch is trained."""
    *_, width, n_epochs = SHAPES[shape]
    settings = {
        "prior": G,
        "embed_dim": width,
        "max_epochs": n_epochs,
        "early_stopping": None,
        "random_state": 0,
    }
    return PriorKnowledgeRegressor(**(settings | parameters))


def step_mixing(arguments):
    """Make training steps of a summary mixing network, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n_genes = arguments.n_genes
    network = make_network("summary_mixing", n_genes)
    if arguments.way == "reference":
        replace_mixers(network, HeadByHead)
    # A second row uses the fused version on both sides.
    fused = arguments.way == "ours" or arguments.optimizer == "fused"
    optimizer = make_optimizer(network, fused=fused)
    X, y = torch.randn(16, 100, 1024), torch.randn(16, n_genes)
    with torch.no_grad():
        first = network(X)
    _, seconds = timed(train_step, network, optimizer, X, y, repeats=4)
    return {"seconds": seconds, "output": first[:, :: n_genes // 50].flatten().tolist()}


def train_by_hand(model, start, X, y):
    """Train the network of a regressor in plain torch."""
    mean, scale = tile_statistics(list(X), range(len(X)))
    network = build_network(start.module_params, start.embeddings, start.seed)
    network.feature_mean.copy_(torch.from_numpy(mean))
    network.feature_scale.copy_(torch.from_numpy(scale))
    network.target_mean.copy_(torch.from_numpy(y.mean(axis=0, dtype=np.float64)))
    spread = math.sqrt(y.var(axis=0, dtype=np.float64).mean())
    network.target_scale.fill_(spread)
    optimizer = torch.optim.AdamW(network.parameters(), lr=model.lr, weight_decay=0.0, fused=True)
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    valid = torch.from_numpy(start.valid)
    train = torch.from_numpy(start.train)
    generator = torch.Generator().manual_seed(start.seed)
    lowest, history = math.inf, []
    for _ in range(model.max_epochs):
        network.train()
        total = 0.0
        for rows in train[torch.randperm(len(train), generator=generator)].split(16):
            optimizer.zero_grad()
            loss = F.mse_loss(network(X[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        network.eval()
        with torch.no_grad():
            predicted = torch.cat([network(X[rows]) for rows in valid.split(16)])
            loss = F.mse_loss(predicted, y[valid]).item()
            r = mean_correlation(y[valid], predicted).item()
        history.append((total / len(train), loss, r))
        if loss < lowest:
            lowest = loss
            best = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    network.load_state_dict(best, strict=False)
    return history


def step_fit(arguments):
    """Train one network: in turns to measure time, once to measure memory."""
    X, y, G = make_data(arguments.shape)
    model = make_model(arguments.shape, G)
    # Both need the seed and the held-out patients.
    start = prepare(model, check_training_data(model, X, y, None))

    def ours():
        return model.fit(X, y).history_[["train_loss", "valid_loss"]].to_numpy().tolist()

    def reference():
        return [row[:2] for row in train_by_hand(model, start, X, y)]

    return in_turns(ours, reference, arguments)


def in_turns(ours, reference, arguments):
    """Time both in one process, or run one of them to measure its memory."""
    if arguments.way != "both":
        {"ours": ours, "reference": reference}[arguments.way]()
        return {"mb": peak_mb()}
    losses, seconds = run_in_turns({"ours": ours, "reference": reference}, arguments.rounds)
    row = {f"{name}_seconds": each for name, each in seconds.items()}
    difference = np.abs(np.array(losses["ours"]) - np.array(losses["reference"])).max()
    ratio = min(row["ours_seconds"]) / min(row["reference_seconds"])
    return row | {"ratio": ratio, "largest_difference": float(difference)}


def step_epoch(arguments):
    """Train one epoch at the size of the paper's cohort."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((arguments.n_slides, 100, 1024), dtype=np.float32)
    y = rng.standard_normal((arguments.n_slides, arguments.n_genes), dtype=np.float32)
    G = rng.standard_normal((arguments.n_genes, 1024), dtype=np.float32)
    input_mb = (X.nbytes + y.nbytes + G.nbytes) / 2**20
    model = PriorKnowledgeRegressor(
        prior=G, aggregator=arguments.aggregator, max_epochs=1, random_state=0
    ).fit(X, y)
    epoch = float(model.history_["dur"][0])
    held_out = torch.from_numpy(y[model.validation_indices_])
    predicted, seconds = held_out + 1.0, []
    for _ in range(5):
        start = time.perf_counter()
        mean_correlation(held_out, predicted)
        seconds.append(time.perf_counter() - start)
    return {
        "epoch_seconds": epoch,
        "input_mb": input_mb,
        "mb_above_input": peak_mb() - input_mb,
        "metric_share": float(np.median(seconds)) / epoch,
    }


def step_lambdas(arguments):
    """Train all lambdas on four fifths of the slides, together or one after the other."""
    X, y, G = make_data(arguments.shape)
    held_out = len(X) // 5
    test, train = np.arange(held_out), np.arange(held_out, len(X))
    single = make_model(arguments.shape, G)
    # Half the epochs, since five networks take long.
    parameters = single.get_params() | {"max_epochs": max(2, single.max_epochs // 2)}
    del parameters["lambda_"]

    def reference():
        losses = []
        for lambda_ in LAMBDAS:
            model = PriorKnowledgeRegressor(lambda_=lambda_, **parameters)
            losses.append(model.fit(X[train], y[train]).history_["valid_loss"].tolist())
        return losses

    def ours():
        losses = []

        def scoring(estimator, X, y):
            losses.append(estimator.history_["valid_loss"].tolist())
            return 0.0

        regressor = PriorKnowledgeRegressor(**parameters)
        PriorKnowledgeRegressorCV(
            regressor, LAMBDAS, cv=[(train, test)], refit=False, scoring=scoring
        ).fit(X, y)
        return losses

    return in_turns(ours, reference, arguments)


def step_files(arguments):
    """Train on bags in memory or in HDF5 files, which the system may have cached."""
    X, y, G = make_data("paper")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.way == "ours":
            for number, tiles in enumerate(X):
                with h5py.File(f"{folder}/S{number:04d}.h5", "w") as file:
                    file["features"] = tiles
            X = read_features(folder)
        model = make_model("paper", G).fit(X, y)
    return {
        "seconds": float(model.history_["dur"].median()),
        "losses": model.history_[["train_loss", "valid_loss"]].to_numpy().tolist(),
    }


STEPS = {
    "mixing": step_mixing,
    "fit": step_fit,
    "epoch": step_epoch,
    "lambdas": step_lambdas,
    "files": step_files,
}


def run_step(step, arguments, **options):
    """Run one step in a new process and return its results."""
    settings = {"n_genes": arguments.n_genes, "n_slides": arguments.n_slides} | options
    command = [sys.executable, __file__, "--step", step]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"step": step} | options | json.loads(output.splitlines()[-1])


def compare(step, arguments, rounds, **options):
    """Run ours and the reference in turns; return the row with the ratio of the medians."""
    found = {"ours": [], "reference": []}
    for number in range(rounds):
        for way in ("reference", "ours") if number % 2 else ("ours", "reference"):
            found[way].append(run_step(step, arguments, way=way, **options))
    row = {"step": step} | options
    for way, results in found.items():
        row[f"{way}_seconds"] = [result["seconds"] for result in results]
    ours, reference = (np.median(row[f"{way}_seconds"]) for way in ("ours", "reference"))
    row["ratio"] = float(ours / reference)
    for key in ("losses", "output"):
        if key in found["ours"][0]:
            ours, reference = (
                np.array([result[key] for result in found[way]]) for way in ("ours", "reference")
            )
            row["largest_difference"] = float(np.abs(ours - reference).max())
    print(json.dumps(row), flush=True)
    return row


def main():
    """Run all steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-genes", type=int, default=25_761)
    parser.add_argument("--n-slides", type=int, default=1133)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "regression.json")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--way", default="ours", help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="paper", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--optimizer", default="plain", help=argparse.SUPPRESS)
    parser.add_argument("--aggregator", default="mlp", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    rows = [compare("mixing", arguments, 2, optimizer=each) for each in ("plain", "fused")]
    for step in ("fit", "lambdas"):
        for shape in SHAPES:
            row = run_step(step, arguments, shape=shape, way="both", rounds=arguments.rounds)
            for way in ("ours", "reference"):
                row[f"{way}_mb"] = run_step(step, arguments, shape=shape, way=way)["mb"]
            row["memory_ratio"] = row["ours_mb"] / row["reference_mb"]
            print(json.dumps(row), flush=True)
            rows.append(row)
    rows.append(compare("files", arguments, arguments.rounds))
    for aggregator in ("mlp", "summary_mixing"):
        rows.append(run_step("epoch", arguments, aggregator=aggregator))
        print(json.dumps(rows[-1]), flush=True)
    write_results(describe() | {"rows": rows}, arguments.out)
    if any(row.get("largest_difference", 0.0) > 1e-4 for row in rows):
        raise SystemExit("a result does not agree with its reference")


if __name__ == "__main__":
    main()
