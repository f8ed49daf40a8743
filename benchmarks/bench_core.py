"""Speed of the core steps against plain references, in one run; figures go to a JSON file."""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
from pathlib import Path

import numpy as np
from _common import RESULTS, describe, timed, write_results
from scipy import stats

from sklearn_pk.metrics import significance_report


def loop_over_genes(y_true, y_pred, y_baseline):
    """Test one gene after the other, up to the correction over genes."""
    n = len(y_true)
    tests = []
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
        passed = r > 0 and p < 0.05 and rmse < rmse_baseline and r > r_baseline
        tests.append((passed, stats.t.sf(t, n - 3)))
    passed, p_steiger = (np.array(column) for column in zip(*tests, strict=True))
    corrected = stats.false_discovery_control(p_steiger)
    return passed & (p_steiger < 0.05) & (corrected < 0.2)


def bench_significance(n_slides, n_genes, rng):
    """Report of all genes against a loop over 1,000 of them, scaled."""
    shape = (n_slides, n_genes)
    y_true = rng.normal(size=shape)
    y_pred = 0.1 * y_true + rng.normal(size=shape)
    y_baseline = rng.normal(size=shape)
    few = [table[:, :1000] for table in (y_true, y_pred, y_baseline)]
    verdicts, reference = timed(loop_over_genes, *few)
    agree = np.array_equal(significance_report(*few)["significant"], verdicts)
    _, ours = timed(significance_report, y_true, y_pred, y_baseline)
    return ours, reference * n_genes / few[0].shape[1], agree


def main():
    """Run all of them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of 25,761 genes")
    parser.add_argument("--out", type=Path, default=RESULTS / "core.json")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    n_genes = int(25_761 * arguments.scale)
    rows = {
        f"significance report, {n_genes:,} genes x 1,133 slides": bench_significance(
            1133, n_genes, rng
        ),
    }
    results = describe() | {"rows": []}
    print(f"{'step':60} {'ours':>9} {'reference':>10} {'ratio':>7}  agree")
    for name, (ours, reference, agree) in rows.items():
        print(f"{name:60} {ours:8.2f}s {reference:9.2f}s {reference / ours:6.1f}x  {agree}")
        results["rows"].append(
            {
                "step": name,
                "seconds": ours,
                "reference_seconds": reference,
                "ratio": reference / ours,
                "agree": bool(agree),
            }
        )
    write_results(results, arguments.out)
    if not all(row["agree"] for row in results["rows"]):
        raise SystemExit("a result does not agree with its reference")


if __name__ == "__main__":
    main()
