"""What the quickstart does with data of the user's own."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.preprocessing import StandardScaler

from sklearn_pk.datasets import load_brca_expression


@pytest.fixture(scope="module")
def quickstart(project_root):
    path = project_root / "docs" / "examples" / "plot_quickstart.py"
    spec = importlib.util.spec_from_file_location("plot_quickstart", path)
    module = importlib.util.module_from_spec(spec)
    with sklearn.config_context():
        spec.loader.exec_module(module)
    return module


def test_permutation_keeps_slides_of_a_patient_alike(quickstart):
    table = pd.DataFrame({"A": [1.0, 1.0, 2.0, 3.0, 4.0]})
    patients = pd.Series(["p", "p", "q", "r", "s"]).to_numpy()
    permuted = quickstart.permute_patients(table, patients, seed=0)
    assert permuted.index.equals(table.index)
    assert permuted["A"][0] == permuted["A"][1]
    assert sorted(permuted["A"][1:]) == [1.0, 2.0, 3.0, 4.0]
    assert not permuted.equals(table)


@pytest.mark.parametrize("layout", ["folder", "table"])
def test_own_features_run_to_the_end(project_root, tmp_path, layout):
    rng = np.random.default_rng(0)
    expression = load_brca_expression().expression.iloc[:20, :60]
    expression = expression.set_axis([f"p{i}" for i in range(20)])
    # The first features follow the first genes, so that there is something to find.
    signal = StandardScaler().fit_transform(expression)[:, :6]
    if layout == "folder":
        features = tmp_path / "features"
        features.mkdir()
        for name, row in zip(expression.index, signal, strict=True):
            with h5py.File(features / f"{name}-slide-1.h5", "w") as file:
                tiles = rng.normal(row, 0.1, size=(5, 6))
                file["features"] = tiles.astype(np.float32)
                file["coords"] = 256 * np.arange(10).reshape(5, 2)
    else:
        features = tmp_path / "features.csv"
        pd.DataFrame(signal, index=expression.index).to_csv(features)
    expression.to_csv(tmp_path / "expression.csv")
    script = project_root / "docs" / "examples" / "plot_quickstart.py"
    own = ["--features", features, "--expression", tmp_path / "expression.csv"]
    out = ["--out", tmp_path / "out", "--n-jobs", "1", "--max-epochs", "8"]
    done = subprocess.run(
        [sys.executable, script, *own, *out], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 rows of features have a row of expression." in done.stdout
    assert "n_quantiles" not in done.stderr
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    aggregators = ["mlp", "summary_mixing"] if layout == "folder" else ["mlp"]
    expected = [("ridge", "none"), ("ridge", "eigengenes")]
    expected += [(name, prior) for name in aggregators for prior in ("none", "combined")]
    assert list(zip(table["model"], table["prior"], strict=True))[:-1] == expected
    assert table["prior"].iloc[-1] == "permuted patients"
    assert table["r within folds"].iloc[:-1].max() > table["r within folds"].iloc[-1]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.csv", "report.html", "lambda_path.png", "best_gene.png"} <= written


def test_paths_that_are_not_there(quickstart, tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.csv"
    table.write_text("name,A\np1,1.0\n")
    missing = str(tmp_path / "missing")
    arguments = ["--features", missing, "--expression", str(table)]
    monkeypatch.setattr(sys, "argv", ["plot_quickstart.py", *arguments])
    with pytest.raises(SystemExit):
        quickstart.parse_arguments()
    assert f"there is no {missing}" in capsys.readouterr().err
