"""How many genes are significant if nothing can be predicted, and how many planted ones are found.

Simulates cohorts in which the features are independent of expression, and others in which 200 of
1,000 genes follow the features. Compares the published test with the calibrated ones; measures
how much of the error cancels in the gain of a prior; times permutations at the size of a cohort of
TCGA. Writes JSON after each cell, and runs no cell again that is in the file.

    python benchmarks/paper/calibration.py null power gains
    python benchmarks/paper/calibration.py timing
    python benchmarks/paper/calibration.py cohort --tables features.csv.gz expression.csv.gz
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import json
import os
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.preprocessing import QuantileTransformer

from sklearn_pk.io import read_table
from sklearn_pk.metrics import compare_significance, significance_report
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRidge

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import RESULTS, describe, peak_mb, write_results

N_GENES, N_FEATURES, N_PLANTED = 1000, 64, 200
# A penalty as data with signal choose; without any, leave-one-out takes the largest.
PENALTY = 100.0
MODELS = {
    "ridge": lambda: PriorKnowledgeRidge(prior=None, alpha=PENALTY),
    "ridge, penalty chosen": lambda: PriorKnowledgeRidge(prior=None),
    "prior": lambda: PriorKnowledgeRidge(lambda_=0.9, alpha=PENALTY),
    "network": lambda: PriorKnowledgeRegressor(
        embed_dim=32, max_epochs=20, lr=1e-3, random_state=0
    ),
}
NULLS = {
    "ridge": ("permutation", "empirical", "analytic"),
    "ridge, penalty chosen": ("permutation", "analytic"),
    "prior": ("permutation", "empirical"),
    "network": ("empirical",),
}
N_PERMUTATIONS = {"permutation": 100, "empirical": 3, "analytic": None}


def simulate(seed, n_patients, n_slides, correlated, explained=0.0):
    """Return features, expression, patients, and which genes follow the features."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), n_slides)
    tissue = rng.normal(size=(n_patients, N_FEATURES))
    X = tissue[patients]
    if n_slides > 1:
        X = X + 0.7 * rng.normal(size=X.shape)
    y = rng.normal(size=(n_patients, N_GENES))
    if correlated:
        y += rng.normal(size=(n_patients, 10)) @ rng.normal(size=(10, N_GENES))
    y /= y.std(axis=0)
    planted = np.arange(N_GENES) < (N_PLANTED if explained else 0)
    signal = tissue @ rng.normal(size=(N_FEATURES, planted.sum()))
    y[:, planted] *= np.sqrt(1 - explained)
    y[:, planted] += np.sqrt(explained) * signal / signal.std(axis=0)
    return X, y[patients], patients, planted


def run_once(seed, model, null, planted=0.0, **cohort):
    """Return the counts of one cohort, and the calibrated p-values of genes without signal."""
    X, y, patients, truth = simulate(seed, explained=planted, **cohort)
    options = {"groups": patients, "random_state": seed}
    options |= {"null": null, "n_permutations": N_PERMUTATIONS[null]}
    result = cross_val_significance(MODELS[model](), X, y, **options)
    found = result.report["significant"].to_numpy()
    slides = result.report_by_slide()
    nominal = significance_report(
        result.y_true, result.predictions, None, groups=patients, fdr=0.05
    )["significant"].to_numpy()
    published = significance_report(result.y_true, result.predictions, None, compat="sequoia")
    published = published["significant"].to_numpy()
    counts = {
        "calibrated": int(found.sum()),
        "calibrated_false": int(found[~truth].sum()),
        "published_untrained": int(result.n_published),
        "published_mean": int(published.sum()),
        "published_mean_false": int(published[~truth].sum()),
        "nominal_mean": int(nominal.sum()),
        "nominal_mean_false": int(nominal[~truth].sum()),
        "slides_untrained": int(slides["significant"].sum()),
    }
    if result.null_counts is not None:
        counts["expected_published_untrained"] = float(result.null_counts.mean())
    return counts, result.report["null_p"].to_numpy()[~truth]


def summarize(runs, correlated):
    """Return means over runs, the fraction with a false discovery, and how uniform p is."""
    counts, p = [run[0] for run in runs], np.array([run[1] for run in runs])
    n = len(runs)
    false = np.array([each["calibrated_false"] for each in counts])
    found = np.array([each["calibrated"] for each in counts])
    row = {name: float(np.mean([each[name] for each in counts])) for name in counts[0]}
    row |= {
        "runs": n,
        "runs_with_false_discovery": float((false > 0).mean()),
        "limit": 0.05 + 3 * np.sqrt(0.05 * 0.95 / n),
        "false_discovery_proportion": float(np.mean(false / np.maximum(found, 1))),
        "p_below_0.05": float((p < 0.05).mean()),
        "p_below_0.001": float((p < 0.001).mean()),
        # Genes of a run are one sample only if they are independent.
        "ks_p": float(stats.kstest(p[:, 0] if correlated else p.ravel(), "uniform").pvalue),
        "ks_distance": float(stats.kstest(p.ravel(), "uniform").statistic),
    }
    for kind in ("published_mean", "nominal_mean"):
        false = np.array([each[f"{kind}_false"] for each in counts])
        total = np.array([each[kind] for each in counts])
        row[f"{kind}_fdp"] = float(np.mean(false / np.maximum(total, 1)))
    return row


def measure_gains(n_runs, null):
    """Compare a prior with none where nothing can be predicted: how much of the error cancels."""
    counts, median, covered = [], [], []
    for seed in range(n_runs):
        X, y, patients, _ = simulate(seed, 100, 1, correlated=True)
        results = {
            name: cross_val_significance(
                MODELS[name](), X, y, groups=patients, null=null, random_state=seed
            )
            for name in ("ridge", "prior")
        }
        counts.append([each.mean_report["significant"].sum() for each in results.values()])
        column = "r" if null == "published" else "r_fold"
        median.append([each.report[column].median() for each in results.values()])
        table = compare_significance(results, baseline="mean", n_boot=200, random_state=seed)
        covered.append(((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).tolist())
    rows = {"runs": n_runs}
    for position, (name, values) in enumerate({"genes": counts, "median_r": median}.items()):
        none, prior = np.array(values, dtype=float).T
        rows[name] = {
            "ridge_mean": none.mean(),
            "ridge_sd": none.std(ddof=1),
            "prior_mean": prior.mean(),
            "prior_sd": prior.std(ddof=1),
            "gain_mean": (prior - none).mean(),
            "gain_sd": (prior - none).std(ddof=1),
            "gain_sd_if_independent": np.hypot(none.std(ddof=1), prior.std(ddof=1)),
            "intervals_with_zero": float(np.mean([each[position] for each in covered])),
        }
    return rows


def measure_time(n_permutations, prior):
    """Time permutations at 1,133 slides and 25,761 genes."""
    rng = np.random.default_rng(0)
    n, n_genes = 1133, 25_761
    programs = rng.normal(size=(n, 30)).astype(np.float32)
    X = programs @ rng.normal(size=(30, 256)) + 3 * rng.normal(size=(n, 256))
    y = rng.standard_normal(size=(n, n_genes), dtype=np.float32)
    y *= 8
    y += programs @ rng.standard_normal(size=(30, n_genes), dtype=np.float32)
    del programs
    rows = {}
    for name, options in {
        "published": {"null": "published"},
        "permutation": {"null": "permutation", "n_permutations": n_permutations},
    }.items():
        start, cpu = time.perf_counter(), time.process_time()
        result = cross_val_significance(
            PriorKnowledgeRidge(prior=prior), X, y, random_state=0, **options
        )
        rows[name] = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mb": peak_mb(),
        }
        print(name, result, rows[name], flush=True)
        del result
    return rows | {"n_permutations": n_permutations, "load": os.getloadavg()[0]}


def count_in_cohort(features, expression, n_permutations):
    """Count the genes of a cohort by both tests, with and without a prior."""
    X, y = read_table(features), read_table(expression)
    patients = [name for name in X.index if name in set(y.index)]
    X, y = X.loc[patients].to_numpy(dtype=float), y.loc[patients]
    X = np.where(np.isnan(X), np.nanmedian(X, axis=0), X)
    models = {
        "ridge": (PriorKnowledgeRidge(prior=None), "permutation"),
        "ridge, analytic": (PriorKnowledgeRidge(prior=None), "analytic"),
        "ridge with eigengenes": (PriorKnowledgeRidge(), "permutation"),
    }
    rows = {}
    for name, (model, null) in models.items():
        start = time.perf_counter()
        result = cross_val_significance(
            model,
            X,
            y,
            groups=patients,
            target_transformer=QuantileTransformer(
                n_quantiles=len(y) // 5 * 4, output_distribution="normal"
            ),
            null=null,
            n_permutations=n_permutations if null == "permutation" else None,
            random_state=0,
        )
        rows[name] = {
            "null": null,
            "calibrated": result.n_significant,
            "calibrated_mean": int(result.mean_report["significant"].sum()),
            "published": result.n_published,
            "median_r": result.median_r,
            "median_r_fold": float(result.report["r_fold"].median()),
            "verdict": result.verdict,
            "seconds": time.perf_counter() - start,
        }
        if result.null_r is not None:
            rows[name]["inflation"] = float(np.arctanh(result.null_r).std() * np.sqrt(len(y) - 15))
        print(name, rows[name], flush=True)
    return rows | {"n_patients": len(y), "n_genes": y.shape[1]}


def main():
    """Run what was asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="+", choices=["null", "power", "gains", "timing", "cohort"])
    parser.add_argument("--tables", type=Path, nargs=2)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 100, 300])
    parser.add_argument("--slides", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--explained", type=float, default=0.3)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--prior", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration.json")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results |= describe() | {"threads": os.environ.get("OMP_NUM_THREADS")}
    cells = [
        (kind, *cell)
        for kind in ("null", "power")
        if kind in arguments.what
        for cell in product(arguments.models, arguments.sizes, arguments.slides, (False, True))
    ]
    for kind, model, n_patients, n_slides, correlated in cells:
        for null in NULLS[model]:
            genes = "correlated" if correlated else "independent"
            name = f"{kind}; {model}; {null}; n={n_patients}; slides={n_slides}; {genes} genes"
            if results.get("cells", {}).get(name, {"runs": 0})["runs"] >= arguments.runs:
                continue
            cohort = {"n_patients": n_patients, "n_slides": n_slides, "correlated": correlated}
            planted = arguments.explained if kind == "power" else 0.0
            runs = [run_once(s, model, null, planted, **cohort) for s in range(arguments.runs)]
            row = summarize(runs, correlated)
            results.setdefault("cells", {})[name] = row
            print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
            write_results(results, arguments.out)
    if "gains" in arguments.what:
        for null in ("published", "empirical"):
            results[f"gains, {null}"] = measure_gains(arguments.runs, null)
        write_results(results, arguments.out)
    if "timing" in arguments.what:
        timing = measure_time(arguments.permutations, arguments.prior)
        results.setdefault("timing", {})[arguments.prior or "ridge"] = timing
        write_results(results, arguments.out)
    if "cohort" in arguments.what:
        results["cohort"] = count_in_cohort(*arguments.tables, arguments.permutations)
        write_results(results, arguments.out)


if __name__ == "__main__":
    main()
