"""The script on planted genes, from the command line to its figure."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_pk.regression._embeddings import seed_prior


@pytest.fixture(scope="module")
def script(project_root):
    return project_root / "benchmarks" / "paper" / "planted.py"


@pytest.fixture(scope="module")
def planted(script):
    """Return the script as a module."""
    path = list(sys.path)
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location("planted_script", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def out(script, tmp_path_factory):
    """Folder of a run in a process of its own."""
    folder = tmp_path_factory.mktemp("planted")
    # The cohort is small, and the counts of the script are those of the published test.
    quiet = ["-W", "ignore:The untrained baseline has:UserWarning"]
    subprocess.run(
        [sys.executable, "-W", "error", *quiet, str(script), "--quick", "--out", str(folder)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )
    return folder


def test_results(out):
    results = json.loads((out / "results.json").read_text())
    assert results["hardware"]
    assert results["shared"]["n_genes"] == 60
    rows = pd.DataFrame(results["rows"])
    assert len(rows) == 2 * (1 + 2 + 2), "none once, graph and zero for both lambdas"
    assert set(rows["prior"]) == {"none", "graph", "zero"}
    assert set(rows.loc[rows["prior"] == "none", "lambda_"]) == {0.0}
    assert rows.loc[~rows["permuted"], "recall"].between(0, 1).all()
    permuted = rows[rows["permuted"]]
    assert permuted["recall"].isna().all()
    assert_array_equal(permuted["n_false"], permuted["n_significant"])
    assert rows["median_r"].between(-1, 1).all()


def test_figure_and_table(out):
    image = plt.imread(out / "planted.png")
    assert image.shape[1] > 1000
    assert image.std() > 0.05, "not blank"
    table = (out / "planted.rst").read_text(encoding="utf-8")
    assert table.startswith(".. list-table::")
    assert table.count("   * - ") == 1 + 10
    assert "40, permuted" in table


def test_a_second_call_runs_nothing_again(planted, out, monkeypatch, capsys):
    before = (out / "results.json").read_bytes()
    monkeypatch.setattr(planted, "measure", None)
    planted.main(["--quick", "--out", str(out)])
    assert "0 runs done, 10 in" in capsys.readouterr().out
    assert (out / "results.json").read_bytes() == before


def test_what_is_missing_is_run(planted, out, tmp_path):
    results = json.loads((out / "results.json").read_text())
    lost = results["rows"].pop(3)
    (tmp_path / "results.json").write_text(json.dumps(results))
    planted.main(["--quick", "--out", str(tmp_path)])
    again = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(again) == 10
    assert {k: v for k, v in again[-1].items() if k != "seconds"} == {
        k: v for k, v in lost.items() if k != "seconds"
    }


def test_other_data_are_refused(planted, out):
    with pytest.raises(SystemExit, match=r"n_genes=60, not 80\. Pass another --out"):
        planted.main(["--quick", "--n-genes", "80", "--out", str(out)])


def test_bad_input(planted, tmp_path, capsys):
    with pytest.raises(SystemExit):
        planted.main(["--lambdas", "1.5", "--out", str(tmp_path)])
    assert r"argument --lambdas: must lie in [0, 1], got 1.5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        planted.main(["--priors", "oracle", "--out", str(tmp_path)])
    assert "invalid choice: 'oracle'" in capsys.readouterr().err


def test_patients_are_permuted_as_wholes(planted):
    patients = np.array(["a", "a", "b", "c", "c", "d"])
    expression = pd.DataFrame({"g": [1.0, 1.0, 2.0, 3.0, 3.0, 4.0]}, index=list("uvwxyz"))
    permuted = planted.permute_patients(expression, patients, seed=0)
    assert permuted.index.equals(expression.index)
    by_patient = permuted["g"].groupby(patients)
    assert (by_patient.nunique() == 1).all()
    assert sorted(by_patient.first()) == [1, 2, 3, 4]
    assert not permuted.equals(expression)


def test_count_tells_right_from_wrong(planted):
    share = np.array([0.0, 0.0, 0.05, 0.3, 0.4])
    found = planted.count(np.array([True, False, True, True, False]), share, 0.1)
    assert found == {"n_significant": 3, "n_false": 1, "recall": 0.5, "fdr": 1 / 3}
    nothing = planted.count(np.zeros(5, dtype=bool), np.zeros(5), 0.1)
    assert nothing == {"n_significant": 0, "n_false": 0, "recall": None, "fdr": 0.0}


@pytest.mark.parametrize("name", ["graph", "eigengenes"])
def test_shuffled_priors_hold_the_embeddings_of_other_genes(planted, name):
    cohort = planted.make_expression_cohort(30, n_genes=40, n_modules=4, random_state=0)
    own, other = (
        seed_prior(planted.make_prior(each, cohort, 0, 8, 0.6), 0).fit_transform(
            cohort.expression.T
        )
        for each in (name, f"shuffled {name}")
    )
    assert not np.allclose(own, other)
    assert_allclose(own[np.lexsort(own.T)], other[np.lexsort(other.T)])


def test_gains_are_paired_by_seed(planted):
    rows = [
        {"n_slides": 50, "prior": prior, "lambda_": lambda_, "seed": seed, "permuted": False}
        | dict.fromkeys(("fdr", "n_false", "median_r", "recall_mean", "seconds"), 0.0)
        | {"recall": recall + seed / 10}
        for prior, lambda_, recall in (("none", 0.0, 0.3), ("zero", 0.5, 0.4), ("graph", 0.5, 0.6))
        for seed in (0, 1, 2)
    ]
    table = planted.summarize(rows).set_index("prior")
    assert table.loc["graph", "recall_over_zero"] == pytest.approx(0.2)
    assert table.loc["graph", "recall_over_none"] == pytest.approx(0.3)
    assert table.loc["graph", "recall_over_zero_half"] == pytest.approx(0, abs=1e-9)
    assert table.loc["graph", "recall_high"] == pytest.approx(0.8)
