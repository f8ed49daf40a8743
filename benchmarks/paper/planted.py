"""Recovery of planted genes: what a prior adds to none and to controls, over n and lambda.

Cohorts of make_expression_cohort have genes whose link to the tiles is planted and genes without
one, so that significant genes can be counted as right or wrong. Controls are zeros and the
embeddings of other genes; ridge regression on the means of the tiles is the plain reference, and
permuted patients are the case with nothing to find.

The defaults take half an hour on one core. The shape of TCGA-BRCA is --n-slides 1133 --n-genes
25761 --n-tiles 100 --n-features 1024 --embed-dim 1024 --device cuda. Every finished run is kept in
results.json of --out and is not run again, so that a grid may be made of several calls.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import json
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_pk.datasets import make_expression_cohort
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.utils._reporting import progress

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import describe, write_results  # noqa: E402
from _planted_report import WITHOUT_LAMBDA, draw, summarize, write_table  # noqa: E402

PRIORS = (
    "none",
    "graph",
    "internal",
    "eigengenes",
    "zero",
    "shuffled graph",
    "shuffled eigengenes",
    "ridge",
)
QUICK = {
    "n_slides": [40],
    "n_permuted": [40],
    "n_genes": 60,
    "n_tiles": 4,
    "n_features": 16,
    "n_modules": 4,
    "embed_dim": 8,
    "lambdas": [0.5, 0.9],
    "priors": ["none", "graph", "zero"],
    "seeds": [0],
    "max_epochs": 3,
}
# Common to all runs of one results.json.
SHARED = (
    "n_genes",
    "n_tiles",
    "n_features",
    "n_modules",
    "aggregator",
    "embed_dim",
    "max_epochs",
    "early_stopping",
    "threshold",
    "level",
)
KEY = ["n_slides", "prior", "lambda_", "seed", "permuted"]


def shuffle_rows(G, seed):
    """Assign the embedding of another gene to each gene."""
    return np.random.default_rng(seed).permutation(G)


def mean_of_tiles(X):
    """Average the tiles of each slide."""
    return np.mean(X, axis=1)


def make_prior(name, cohort, seed, width, threshold):
    """Return what the name stands for."""
    if name.startswith("shuffled "):
        prior = make_prior(name.removeprefix("shuffled "), cohort, seed, width, threshold)
        return make_pipeline(prior, FunctionTransformer(partial(shuffle_rows, seed=seed)))
    if name == "none":
        return None
    if name == "zero":
        return np.zeros((cohort.expression.shape[1], width))
    if name == "eigengenes":
        return EigengeneEmbedder(min(30, width))
    graphs = {
        "graph": CoexpressionGraph(source="external", external=cohort.edges),
        "internal": CoexpressionGraph(threshold=threshold),
    }
    return make_pipeline(graphs[name], NMFGeneEmbedder(width))


def make_model(run, cohort, arguments):
    """Return the estimator of a run."""
    if run["prior"] == "ridge":
        return make_pipeline(FunctionTransformer(mean_of_tiles), RidgeCV(np.logspace(0, 4, 9)))
    width = arguments.embed_dim
    return PriorKnowledgeRegressor(
        prior=make_prior(run["prior"], cohort, run["seed"], width, arguments.threshold),
        aggregator=arguments.aggregator,
        lambda_=run["lambda_"],
        embed_dim=width,
        max_epochs=arguments.max_epochs,
        early_stopping=arguments.early_stopping,
        device=arguments.device,
        random_state=run["seed"],
    )


def permute_patients(expression, patients, seed):
    """Assign the expression of another patient to the slides of each patient."""
    _, first, number = np.unique(patients, return_index=True, return_inverse=True)
    rows = np.random.default_rng(seed).permutation(first)[number]
    return pd.DataFrame(
        expression.to_numpy()[rows], index=expression.index, columns=expression.columns
    )


def count(significant, planted, level):
    """Count right and wrong genes among the significant ones."""
    n_false = int((significant & (planted == 0)).sum())
    is_planted = planted > level
    return {
        "n_significant": int(significant.sum()),
        "n_false": n_false,
        "recall": float(significant[is_planted].mean()) if is_planted.any() else None,
        "fdr": n_false / max(1, int(significant.sum())),
    }


def measure(run, cohort, arguments):
    """Cross-validate one setting and count what it found."""
    expression, planted = cohort.expression, cohort.planted.to_numpy()
    if run["permuted"]:
        expression = permute_patients(expression, cohort.patients, run["seed"])
        planted = np.zeros_like(planted)
    start = time.perf_counter()
    result = cross_val_significance(
        make_model(run, cohort, arguments),
        cohort.X,
        expression,
        groups=cohort.patients,
        cv=GroupKFold(5),
        fdr=0.2,  # as published
        n_jobs=arguments.n_jobs,
    )
    r = result.report["r"].to_numpy()[cohort.planted.to_numpy() > arguments.level]
    found = count(result.report["significant"].to_numpy(), planted, arguments.level)
    against_mean = count(result.mean_report["significant"].to_numpy(), planted, arguments.level)
    if result.untrained_predictions is None:
        found = dict.fromkeys(found)
    return (
        run
        | found
        | {f"{name}_mean": value for name, value in against_mean.items()}
        | {"median_r": float(np.median(r)), "seconds": time.perf_counter() - start}
    )


def list_runs(arguments):
    """List all settings, those without lambda once."""
    sizes = [(n, False) for n in arguments.n_slides] + [(n, True) for n in arguments.n_permuted]
    runs = []
    # A cohort is generated once for all of its runs, which are consecutive.
    for seed, (n_slides, permuted) in product(arguments.seeds, sizes):
        for prior in arguments.priors:
            for lambda_ in [0.0] if prior in WITHOUT_LAMBDA else arguments.lambdas:
                values = (n_slides, prior, lambda_, seed, permuted)
                runs.append(dict(zip(KEY, values, strict=True)))
    return runs


def load_rows(path, shared):
    """Return the rows of earlier calls, which must have run on data of the same kind."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    other = {name: found["shared"].get(name) for name in SHARED}
    differing = [f"{n}={other[n]!r}, not {shared[n]!r}" for n in SHARED if other[n] != shared[n]]
    if differing:
        raise SystemExit(f"{path} holds runs with {'; '.join(differing)}. Pass another --out.")
    return found["rows"]


def run_all(arguments):
    """Run what is not in results.json yet and return all rows, those of earlier calls too."""
    path = arguments.out / "results.json"
    shared = {name: getattr(arguments, name) for name in SHARED}
    rows = load_rows(path, shared)
    done = {tuple(row[name] for name in KEY) for row in rows}
    missing = [run for run in list_runs(arguments) if tuple(run.values()) not in done]
    cohort, made_for = None, None
    for run in progress(missing, desc="Runs", verbose=1, unit="run"):
        if made_for != (run["seed"], run["n_slides"]):
            made_for = (run["seed"], run["n_slides"])
            sizes = {name: shared[name] for name in SHARED[:4]}
            cohort = make_expression_cohort(made_for[1], random_state=made_for[0], **sizes)
        rows.append(measure(run, cohort, arguments))
        write_results(describe(arguments.device) | {"shared": shared, "rows": rows}, path)
    print(f"{len(missing)} runs done, {len(rows)} in {path}")
    return rows


def fraction(text):
    """Read a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], got {text}")
    return value


def parse(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--n-slides", type=int, nargs="+", default=[100, 200, 400, 800])
    add("--n-permuted", type=int, nargs="*", default=[200], help="sizes with permuted patients")
    add("--n-genes", type=int, default=1000)
    add("--n-tiles", type=int, default=20)
    add("--n-features", type=int, default=64)
    add("--n-modules", type=int, default=20)
    add("--lambdas", type=fraction, nargs="+", default=[0.1, 0.5, 0.9])
    add("--aggregator", default="mlp")
    add("--embed-dim", type=int, default=64)
    add("--max-epochs", type=int, default=200)
    add("--early-stopping", choices=["loss+corr", "loss"], default="loss+corr")
    add("--threshold", type=fraction, default=0.6, help="r of the edges of the internal graph")
    add("--level", type=fraction, default=0.1, help="least planted fraction of a gene to be found")
    add("--priors", nargs="+", choices=PRIORS, default=list(PRIORS), metavar="PRIOR")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--device", default="cpu")
    add("--n-jobs", type=int, help="folds at a time")
    add("--quick", action="store_true", help="a minute cohort, to see whether all works")
    add("--out", type=Path, required=True, help="folder for results.json, planted.png, planted.rst")
    if "--quick" in (sys.argv if argv is None else argv):
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


def main(argv=None):
    """Run the settings, then draw and tabulate all results."""
    arguments = parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = summarize(run_all(arguments))
    draw(table, arguments.out / "planted.png")
    write_table(table, arguments.out / "planted.rst")


if __name__ == "__main__":
    main()
