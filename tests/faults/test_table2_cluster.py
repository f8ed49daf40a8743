"""The paper's experiment on a cluster, as a user starts it."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import subprocess
import sys

import numpy as np
import pandas as pd


def test_table2_on_a_cluster_gives_the_same(scheduler_file, client, project_root, tmp_path):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(60, 3))
    samples = [f"P{number}" for number in range(60)]
    y = factors @ rng.normal(size=(3, 30)) + 0.3 * rng.normal(size=(60, 30))
    genes = [f"G{number}" for number in range(30)]
    pd.DataFrame(y, samples, genes).to_csv(tmp_path / "expression.csv")
    pd.DataFrame(factors, samples).add_prefix("f").to_csv(tmp_path / "features.csv")

    def run(out, *more):
        command = [sys.executable, project_root / "benchmarks" / "paper" / "table2.py"]
        command += ["--features", "features.csv", "--expression", "expression.csv", "--out", out]
        command += ["--priors", "eigen", "--lambdas", "0.5", "--seeds", "2", "--n-boot", "20"]
        command += ["--embed-dim", "8", "--max-epochs", "3", "--device", "cpu", *more]
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        runs = pd.DataFrame(json.loads((tmp_path / out / "results.json").read_text())["runs"])
        return runs[["prior", "control", "lambda_", "seed", "n_significant", "median_r"]]

    here, there = run("here", "--n-jobs", "1"), run("there", "--scheduler", scheduler_file)
    pd.testing.assert_frame_equal(there, here, rtol=1e-4)
    assert len(here) == 8
