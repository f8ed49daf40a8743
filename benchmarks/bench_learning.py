"""Regressor and ridge regression on real data; results are written to a JSON file.

The input is two tables with one row per patient and the patients as first column: features and
expression. Targets are mapped to a normal distribution on the training patients of each fold.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from _common import RESULTS, describe, write_results
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer, StandardScaler

from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor

WIDTH = 128
PUBLISHED = {"lr": 1e-3, "init_scale": 1.0}


def external():
    """Compute the published external prior: the left factor of the graph of the collection."""
    embedder = NMFGeneEmbedder(n_components=WIDTH, factors="left", random_state=0)
    return make_pipeline(CoexpressionGraph(source="external"), embedder)


def permute_rows(G):
    """Assign the embedding of another gene to each gene."""
    return np.random.default_rng(0).permutation(G)


def shuffled():
    """Compute eigengenes and assign them to the wrong genes."""
    return make_pipeline(EigengeneEmbedder(30), FunctionTransformer(permute_rows))


def make_settings(n_genes):
    """Return the settings of the regressor, by name."""
    zeros = np.zeros((n_genes, WIDTH))
    return {
        "none": {},
        "external, 0.5": {"prior": external(), "lambda_": 0.5},
        "zeros, 0.5": {"prior": zeros, "lambda_": 0.5},
        "eigengenes, 0.5": {"prior": EigengeneEmbedder(30), "lambda_": 0.5},
        "eigengenes, 0.9": {"prior": EigengeneEmbedder(30), "lambda_": 0.9},
        "eigengenes in random order, 0.9": {"prior": shuffled(), "lambda_": 0.9},
        "zeros, 0.9": {"prior": zeros, "lambda_": 0.9},
        "none, batches of 64": {"batch_size": 64},
        "none, lr and init as published": PUBLISHED,
        "external, 0.5, lr and init as published": PUBLISHED
        | {"prior": external(), "lambda_": 0.5},
    }


def measure(estimator, X, y):
    """Count significant genes over all folds."""
    start = time.perf_counter()
    result = cross_val_significance(
        estimator,
        X,
        y,
        cv=KFold(5, shuffle=True, random_state=0),
        target_transformer=QuantileTransformer(output_distribution="normal", n_quantiles=200),
        fdr=0.2,  # as published
    )
    return {
        "n_significant": int(result.report["significant"].sum()),
        "n_significant_against_mean": int(result.mean_report["significant"].sum()),
        "median_r": float(result.report["r"].median()),
        "seconds": time.perf_counter() - start,
    }


def main():
    """Run all settings and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--expression", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", help="run these only, and keep the other rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "learning.json")
    arguments = parser.parse_args()
    y = pd.read_csv(arguments.expression, index_col=0)
    X = pd.read_csv(arguments.features, index_col=0).loc[y.index]
    ridge = Ridge(alpha=3000)
    # Predicting the leading principal components of expression is reduced-rank regression.
    reduced = TransformedTargetRegressor(
        ridge, transformer=PCA(20, random_state=0), check_inverse=False
    )
    linear = {"ridge": ridge, "reduced-rank ridge": reduced}
    jobs = [(name, make_pipeline(StandardScaler(), each), None) for name, each in linear.items()]
    for name, parameters in make_settings(y.shape[1]).items():
        for seed in range(arguments.seeds):
            model = PriorKnowledgeRegressor(embed_dim=WIDTH, random_state=seed, **parameters)
            jobs.append((name, model, seed))
    rows = []
    if arguments.settings:
        jobs = [job for job in jobs if job[0] in arguments.settings]
        rows = json.loads(arguments.out.read_text())["rows"]
        rows = [row for row in rows if row["setting"] not in arguments.settings]
    for name, model, seed in jobs:
        rows.append({"setting": name, "seed": seed} | measure(model, X, y))
        print(json.dumps(rows[-1]), flush=True)
    size = {"n_patients": len(y), "n_genes": y.shape[1]}
    write_results(describe() | size | {"rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
