"""Time and memory of the report on significant genes, the scorer and the bootstrap, as JSON.

The report is compared with a loop over genes that calls scipy, timed on some of the genes and
scaled. `--coverage` simulates how often bootstrap intervals cover the true difference.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _common import RESULTS, describe, peak_mb, timed, write_results
from scipy import special, stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict, cross_validate

from sklearn_pk.metrics import compare_significance, significance_report, significance_scorer
from sklearn_pk.metrics._comparison import resample_measures
from sklearn_pk.regression import PriorKnowledgeRegressor

CRITERIA = {"alpha": 0.05, "fdr": 0.2, "compat": None}


def make_tables(n_slides, n_genes, dtype=np.float64):
    """Draw truth, prediction and baseline."""
    rng = np.random.default_rng(0)
    y_true, y_pred, y_baseline = rng.standard_normal((3, n_slides, n_genes), dtype=dtype)
    for prediction, truth in zip(y_pred, y_true, strict=True):  # no copy that hides a peak
        prediction += dtype(0.1) * truth
    return y_true, y_pred, y_baseline


def loop_over_genes(y_true, y_pred, y_baseline):
    """Compute the report gene by gene; return the significant genes."""
    n, rows = len(y_true), []
    for truth, prediction, baseline in zip(y_true.T, y_pred.T, y_baseline.T, strict=True):
        r, p = stats.pearsonr(truth, prediction)
        r_baseline, _ = stats.pearsonr(truth, baseline)
        r_between, _ = stats.pearsonr(prediction, baseline)
        determinant = 1 - r**2 - r_baseline**2 - r_between**2 + 2 * r * r_baseline * r_between
        mean = (r + r_baseline) / 2
        t = (r - r_baseline) * np.sqrt(
            (n - 1)
            * (1 + r_between)
            / (2 * (n - 1) / (n - 3) * determinant + mean**2 * (1 - r_between) ** 3)
        )
        rmse = np.sqrt(np.mean((truth - prediction) ** 2))
        rmse_baseline = np.sqrt(np.mean((truth - baseline) ** 2))
        ratios = rmse / stats.iqr(truth), rmse / np.mean(truth)
        passed = r > 0 and p < 0.05 and rmse < rmse_baseline and r > r_baseline
        rows.append((passed, p, stats.t.sf(t, n - 3), *ratios))
    passed, p, p_steiger, *_ = (np.array(column) for column in zip(*rows, strict=True))
    stats.false_discovery_control(p)
    corrected = stats.false_discovery_control(p_steiger)
    return passed & (p_steiger < 0.05) & (corrected < 0.2)


def bench_report(arguments):
    """Time the report of all genes against a loop over 1,000 of them, scaled, in turns."""
    tables = make_tables(arguments.n_slides, arguments.n_genes)
    few = [table[:, :1000] for table in tables]
    agree = np.array_equal(significance_report(*few, fdr=0.2)["significant"], loop_over_genes(*few))
    ours, reference = [], []
    for _ in range(arguments.rounds):
        reference.append(timed(loop_over_genes, *few, repeats=1)[1] * arguments.n_genes / 1000)
        ours.append(timed(significance_report, *tables, repeats=1)[1])
    return {
        "seconds": ours,
        "reference_seconds": reference,
        "ratio": min(reference) / min(ours),
        "ratio_of_medians": np.median(reference) / np.median(ours),
        "verdicts_agree_on_1000": bool(agree),
    }


def bench_memory(arguments):
    """Measure the memory of the report above its input, for both precisions."""
    tables = make_tables(arguments.n_slides, arguments.n_genes, np.dtype(arguments.dtype).type)
    input_mb = sum(table.nbytes for table in tables) / 2**20
    before = peak_mb()
    significance_report(*tables)
    return {
        "dtype": arguments.dtype,
        "input_mb": input_mb,
        "above_input_mb": peak_mb() - before,
    }


def bench_scorer(arguments):
    """Measure the fraction of a fold that the scorer takes, with the shortest training."""
    spent = {"scoring": 0.0, "report": 0.0}

    def scorer(estimator, X, y):
        start = time.perf_counter()
        score = significance_scorer(estimator, X, y)
        spent["scoring"] += time.perf_counter() - start
        tables = y, estimator.predict(X), estimator.predict_untrained(X)
        spent["report"] += timed(significance_report, *tables, repeats=1)[1]
        return score

    rng = np.random.default_rng(0)
    X = rng.standard_normal((320, 100, 1024), dtype=np.float32)
    y = rng.standard_normal((320, arguments.n_genes), dtype=np.float32)
    model = PriorKnowledgeRegressor(max_epochs=arguments.epochs, random_state=0)
    folds = [next(KFold(5).split(X))]
    found = cross_validate(model, X, y, cv=folds, scoring=scorer, error_score="raise")
    fits = found["fit_time"].sum()
    total = fits + spent["scoring"]
    return {
        "epochs": arguments.epochs,
        "fit_seconds": fits,
        "scoring_seconds": spent["scoring"],
        "report_seconds": spent["report"],
        "share_of_scoring_with_both_predictions": spent["scoring"] / total,
        "share_of_report": spent["report"] / total,
    }


def bench_bootstrap(arguments):
    """Compare two settings at full size; four of five patients have one slide, the others two."""
    y_true, y_pred, y_baseline = make_tables(arguments.n_slides, arguments.n_genes)
    better = y_pred + 0.05 * y_true
    patients = np.arange(arguments.n_slides) * 5 // 6
    reports = {"none": (y_true, y_pred, y_baseline), "prior": (y_true, better, y_baseline)}
    before = peak_mb()
    start = time.perf_counter()
    table = compare_significance(reports, groups=patients, n_boot=arguments.n_boot, random_state=0)
    return {
        "n_boot": arguments.n_boot,
        "seconds": time.perf_counter() - start,
        "above_input_mb": peak_mb() - before,
        "table": table.round(4).to_dict("records"),
    }


def draw_cohort(rng, noise, n=150, n_genes=300, n_factors=10):
    """Draw correlated genes, and two models of the same slides with different noise."""
    design = np.random.default_rng(0)
    loadings = design.normal(size=(n_factors, n_genes))
    loadings /= np.linalg.norm(loadings, axis=0)
    visible = design.uniform(0, 0.4, size=n_genes)
    factors, own = rng.normal(size=(2, n, n_factors)), rng.normal(size=(5, n, n_genes))
    signal = np.sqrt(0.7) * factors[0] @ loadings + np.sqrt(0.3) * own[0]
    rest = np.sqrt(0.5) * factors[1] @ loadings + np.sqrt(0.5) * own[1]
    y_true = visible * signal + np.sqrt(1 - visible**2) * rest
    shared = signal + 0.6 * own[2]
    models = [0.3 * (shared + scale * rng.normal(size=(n, n_genes))) for scale in noise]
    return y_true, models, 0.3 * own[3]


def train_on_cohort(rng, alphas, n=60, n_genes=40):
    """Draw a cohort and cross-validate ridges on it, so that the models vary with the cohort."""
    X = rng.normal(size=(n, 10))
    coefficients = np.random.default_rng(0).normal(size=(10, n_genes)) * 0.15
    y_true = X @ coefficients + rng.normal(size=(n, n_genes))
    return y_true, [cross_val_predict(Ridge(alpha=alpha), X, y_true) for alpha in alphas], None


def intervals(observed, draws, level=0.95):
    """Return the lower and upper ends of several methods."""
    z = special.ndtri((1 + level) / 2)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    below = np.mean(draws < observed) + np.mean(draws == observed) / 2
    z0 = special.ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    margin = z * draws.std(ddof=1)
    return {
        "normal": (observed - margin, observed + margin),
        "percentile": (low, high),
        "basic": (2 * observed - high, 2 * observed - low),
        "bias-corrected": tuple(np.quantile(draws, special.ndtr(2 * z0 + np.array([-z, z])))),
    }


def simulate_coverage(arguments):
    """Count how often intervals cover the mean difference over many cohorts."""
    rows = []
    cohorts = {
        "given models, equal": lambda rng: draw_cohort(rng, (0.5, 0.5)),
        "given models, one is worse": lambda rng: draw_cohort(rng, (0.5, 1.2)),
        "ridges trained in folds": lambda rng: train_on_cohort(rng, (3, 300)),
    }
    for name, draw in cohorts.items():
        rng = np.random.default_rng(1)
        differences = []
        for _ in range(arguments.cohorts):
            y_true, models, baseline = draw(rng)
            n = len(y_true)
            drawn = rng.multinomial(n, np.full(n, 1 / n), size=400).T
            weights = np.column_stack([np.ones(n), drawn])
            first, second = (
                resample_measures((y_true, model, baseline), weights, CRITERIA) for model in models
            )
            differences.append(second - first)
        differences = np.array(differences)
        for number, measure in enumerate(("n_significant", "median_r")):
            truth = differences[:, number, 0].mean()
            ends = [intervals(row[0], row[1:]) for row in differences[:, number]]
            rows.append(
                {
                    "models": name,
                    "measure": measure,
                    "true_difference": truth,
                    "covered": {
                        method: float(
                            np.mean([e[method][0] <= truth <= e[method][1] for e in ends])
                        )
                        for method in ends[0]
                    },
                }
            )
    return {"cohorts": arguments.cohorts, "rows": rows}


STEPS = {
    "report": bench_report,
    "memory": bench_memory,
    "scorer": bench_scorer,
    "bootstrap": bench_bootstrap,
    "coverage": simulate_coverage,
}


def run_step(step, arguments, **options):
    """Run one step in a new process and return its results."""
    names = ("n_genes", "n_slides", "n_boot", "rounds", "epochs", "cohorts")
    settings = {name: getattr(arguments, name) for name in names} | options
    command = [sys.executable, __file__, "--step", step]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row = {"step": step} | json.loads(output.splitlines()[-1])
    print(json.dumps(row, indent=1), flush=True)
    return row


def main():
    """Run all steps, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", choices=STEPS, help="run this step here and print its figures")
    parser.add_argument("--n-genes", type=int, default=25_761)
    parser.add_argument("--n-slides", type=int, default=1133)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    # Early stopping waits for 20 epochs by default, so every training is at least that long.
    parser.add_argument("--epochs", type=int, default=21, help="of the training that is scored")
    parser.add_argument("--cohorts", type=int, default=200, help="simulated, for the coverage")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--coverage", action="store_true", help="simulate the coverage, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "significance.json")
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    rows = [run_step("report", arguments)]
    rows += [run_step("memory", arguments, dtype=dtype) for dtype in ("float64", "float32")]
    rows += [run_step(step, arguments) for step in ("scorer", "bootstrap")]
    if arguments.coverage:
        rows.append(run_step("coverage", arguments))
    write_results(describe() | {"rows": rows}, arguments.out)
    if not rows[0]["verdicts_agree_on_1000"]:
        raise SystemExit("a result does not agree with its reference")


if __name__ == "__main__":
    main()
