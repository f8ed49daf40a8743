"""The paper's experiment as one command: settings, resuming, tables, and what goes wrong."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib
import json
import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

N, N_GENES = 60, 40


@pytest.fixture
def table2(project_root, monkeypatch):
    """Return the modules of the script, by name."""
    for folder in ("benchmarks", "benchmarks/paper"):
        monkeypatch.syspath_prepend(str(project_root / folder))
    names = ("_common", "_data", "_runs", "_tables", "table2")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write two cohorts whose features follow three factors of expression."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    loadings = np.repeat(rng.normal(size=(3, N_GENES // 4)), [4] * (N_GENES // 4), axis=1)
    genes = [f"G{gene}" for gene in range(N_GENES)]
    for name, n in (("", N), ("external-", 30)):
        factors = rng.normal(size=(n, 3))
        samples = [f"{name}P{i}" for i in range(n)]
        y = factors @ loadings + 0.3 * rng.normal(size=(n, N_GENES))
        X = np.c_[factors, rng.normal(size=(n, 3))] + 0.2 * rng.normal(size=(n, 6))
        pd.DataFrame(y, index=samples, columns=genes).to_csv(folder / f"{name}expression.csv")
        slides = [f"{sample}-slide" for sample in samples]
        pd.DataFrame(X, index=slides).add_prefix("f").to_csv(folder / f"{name}features.csv")
    gmt = [f"SET_G{4 * i}\tx\t" + "\t".join(genes[4 * i : 4 * i + 4]) for i in range(10)]
    (folder / "sets.gmt").write_text("\n".join(gmt) + "\n")
    return folder


@pytest.fixture
def run(table2, folder, capsys):
    """Return what runs the command here, and returns its exit code and its output."""

    def run(out, *more):
        own = ["--features", folder / "features.csv", "--expression", folder / "expression.csv"]
        few = ["--embed-dim", "8", "--max-epochs", "4", "--n-jobs", "1", "--n-boot", "20"]
        few += ["--threshold", "0.5", "--gene-sets", folder / "sets.gmt", "--out", out]
        try:
            code = table2["table2"].main([str(each) for each in (*own, *few, *more)])
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out

    return run


def test_from_tables_to_results_and_on(run, tmp_path):
    out = tmp_path / "out"
    some = ["--priors", "external", "--lambdas", "0.5", "--controls", "zero", "rewired"]
    code, text = run(out, *some, "--seeds", "2", "--dry-run")
    assert code is None
    assert "60 of 60 samples have a row of expression (60 patients, 40 genes, 6" in text
    assert "4 settings x 2 seeds, 5 folds each: 8 of 8 runs are left" in text
    assert "Roughly " in text
    assert not out.exists()
    code, text = run(out, *some, "--seeds", "1")
    assert code is None
    assert "[4/4] mlp_zero_0.5, seed 0:" in text
    kept = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("seed*")}
    assert len(kept) == 4 * 4
    # More seeds and priors are added to what is there.
    more = ["--priors", "external", "eigen", "--lambdas", "0.5", "--seeds", "2"]
    code, text = run(out, *more)
    assert code is None
    assert "10 of 14 runs are left" in text
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    results = json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == 14
    assert results["hardware"]
    assert results["cohort"]["n_genes"] == N_GENES
    compared = {(row["prior"], row["setting"], row["reference"]) for row in results["comparisons"]}
    assert ("external", "external", "external, rewired") in compared
    assert ("eigen", "eigen", "zeros") in compared
    assert ("eigen", "eigen, shuffled", "no prior") in compared
    assert all(row["ci_low"] <= row["ci_high"] for row in results["comparisons"])
    tables = (out / "table2.rst").read_text()
    assert "over rewired" in tables
    assert tables in text
    written = {path.name for path in out.iterdir()}
    assert {"lambda_paths.png", "gains.png", "audit.csv", "manifest.json"} <= written
    assert "significant" in pd.read_parquet(out / "runs" / "mlp_none" / "seed0.parquet")
    # What was damaged is named and done again.
    (out / "manifest.json").write_bytes(b"\0" * 100)
    (out / "cv-truth.npy").write_bytes(b"")
    code, text = run(out, *more)
    assert code is None
    assert "manifest.json is damaged" in text
    assert "cv-truth.npy is damaged or missing" in text
    assert "1 of 14 runs are left" in text
    assert (out / "table2.rst").read_text() == tables
    (tmp_path / "other.gmt").write_text("SET_G1\tx\tG2\tG3\n")
    code, _ = run(out, *more, "--gene-sets", tmp_path / "other.gmt")
    assert "gene_sets_content: " in code
    code, _ = run(out, *more, "--training", "published")
    assert "training: 'default' there, 'published' now" in code


def test_models_of_the_folds_predict_another_cohort(run, folder, tmp_path):
    external = ["--external-features", folder / "external-features.csv"]
    external += ["--external-expression", folder / "external-expression.csv"]
    few = ["--priors", "none", "--seeds", "1", "--max-epochs", "80", "--transform", "none"]
    code, text = run(tmp_path, *few, *external)
    assert code is None
    assert "External cohort: 30 of 30 samples" in text
    assert "Significant genes of the external cohort" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["external_cohort"]["n_samples"] == 30
    # Three factors are in the features, of both cohorts.
    [row] = results["runs"]
    assert row["external"]["median_r"] > 0.3
    truth = np.load(tmp_path / "external-truth.npy")
    expected = pd.read_csv(folder / "external-expression.csv", index_col=0)
    np.testing.assert_allclose(truth, expected, rtol=1e-5)


def test_what_cannot_run_costs_no_other_run(run, folder, tmp_path):
    (tmp_path / "other.gmt").write_text("SET_X1\tx\tX2\tX3\n")
    few = ["--lambdas", "0.5", "--controls", "--seeds", "1", "--priors", "external", "eigen"]
    code, text = run(tmp_path / "out", *few, "--gene-sets", tmp_path / "other.gmt")
    assert code.startswith("1 runs failed:\nmlp_external_0.5, seed 0: ")
    assert "mlp_external_0.5, seed 0: failed: " in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["prior"] for row in results["runs"]} == {"none", "eigen"}
    assert " -- " in (tmp_path / "out" / "table2.rst").read_text()


def test_a_cohort_that_cannot_be_predicted_is_told_at_once(run, folder, tmp_path):
    expression = pd.read_csv(folder / "external-expression.csv", index_col=0)
    expression.add_prefix("X").to_csv(tmp_path / "other.csv")
    external = ["--external-features", folder / "external-features.csv"]
    code, text = run(tmp_path / "out", *external, "--external-expression", tmp_path / "other.csv")
    assert code.startswith("error: The external cohort has none of the genes: 'XG0' there, 'G0'")
    assert "0 of 40 genes are in both cohorts" in text
    features = pd.read_csv(folder / "external-features.csv", index_col=0)
    features.iloc[:, :4].to_csv(tmp_path / "few.csv")
    external = ["--external-expression", folder / "external-expression.csv"]
    code, _ = run(tmp_path / "out", *external, "--external-features", tmp_path / "few.csv")
    assert "The external cohort has 4 features, the first one has 6" in code


def test_the_script_says_what_it_takes(project_root):
    script = project_root / "benchmarks" / "paper" / "table2.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout


def test_settings(table2):
    Setting = table2["_runs"].Setting
    settings = table2["_runs"].make_settings(
        ["mlp"], ["none", "external", "eigen:projected"], [0.5], ["zero", "shuffled", "rewired"]
    )
    expected = [
        Setting("mlp", "none"),
        *(Setting("mlp", "external", control, 0.5) for control in ("", "shuffled", "rewired")),
        *(
            Setting("mlp", "eigen:projected", control, each)
            for control in ("", "shuffled")
            for each in (0.5, 1)
        ),
        Setting("mlp", "zero", "", 0.5),
    ]
    assert settings == expected
    assert settings[4].name == "mlp_eigen-projected_0.5"
    assert len({setting.name for setting in settings}) == len(settings)
    make = table2["_runs"].make_settings
    assert make(["mlp"], ["none"], [0.5], ["zero"]) == [Setting("mlp", "none")]


def test_the_weight_of_a_fold_is_that_of_its_held_out_patients(table2, tmp_path):
    runs, tables = table2["_runs"], table2["_tables"]
    store = runs.Store(tmp_path)
    folds = [(np.arange(2, 4), np.arange(2)), (np.arange(2), np.arange(2, 4))]
    losses = {0.1: (1.0, 3.0), 0.9: (2.0, 2.0)}
    rows = []
    for lambda_, of_folds in losses.items():
        setting = runs.Setting("mlp", "eigen", "", lambda_)
        row = {"aggregator": "mlp", "prior": "eigen", "control": "", "lambda_": lambda_}
        row |= {"seed": 0, "n_significant": int(10 * lambda_)}
        row["folds"] = [{"held_out_loss": loss} for loss in of_folds]
        prediction = np.full((4, 3), lambda_)
        given = {"cv": (np.zeros((4, 3)), prediction, -prediction)}
        store.keep(setting, 0, row, given, pd.DataFrame({"r": [0.5]}))
        rows.append(store.row(setting, 0))
    line = tables.Line("mlp", "eigen", "", pd.DataFrame(rows), store)
    assert line.by_held_out(0).tolist() == [0.1, 0.9]
    [(truth, prediction, untrained)] = line.results(folds, [0])
    np.testing.assert_allclose(prediction[:, 0], [0.1, 0.1, 0.9, 0.9])
    np.testing.assert_allclose(untrained, -prediction)
    assert not truth.any()
    assert line.best_lambda() == 0.9
    assert store.row(runs.Setting("mlp", "eigen", "", 0.5), 0) is None


def damage(path, rng):
    """Write less or other than there was, or nothing."""
    content = bytearray(path.read_bytes())
    kind, start = rng.integers(4), rng.integers(len(content))
    if kind == 0:
        path.unlink()
        return
    if kind == 1:
        del content[start:]
    elif kind == 2:
        content[start] ^= 1 << rng.integers(8)
    else:
        content[start // 2 : start + 8] = bytes(start + 8 - start // 2)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_runs_are_repeated(table2, tmp_path, seed):
    runs, rng, lines = table2["_runs"], np.random.default_rng(seed), []
    settings = [runs.Setting("mlp", "none"), runs.Setting("mlp", "eigen", "", 0.5)]
    truth = rng.normal(size=(20, 3))
    given = dict.fromkeys(["cv", "external"], (truth, truth + 1, truth + 2))

    def keep(setting):
        row = {"n_significant": 7, "median_r": 0.25}
        runs.Store(tmp_path).keep(setting, 0, row, given, pd.DataFrame({"r": [0.5]}))

    for setting in settings:
        keep(setting)
    files = sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert len(files) == 2 * 6
    path = files[seed % len(files)]
    damage(path, rng)
    store = runs.Store(tmp_path, say=lines.append)
    unfinished = [setting for setting in settings if store.row(setting, 0) is None]
    damaged = [setting for setting in settings if setting.name == path.parent.name]
    if (path.suffix, path.exists()) == (".json", False):  # nobody knows that it was there
        assert not lines
    else:
        [line] = lines
        assert f"{path.name} is damaged" in line
    assert unfinished == damaged
    path = tmp_path / f"{['cv', 'external'][seed % 2]}-truth.npy"
    damage(path, rng)
    assert store.lost_truth(given) == [path.name]
    keep(*damaged)
    store = runs.Store(tmp_path, say=pytest.fail)
    assert all(store.row(setting, 0) for setting in settings)
    assert not store.lost_truth(given)
    np.testing.assert_array_equal(store.truth("external"), truth.astype(np.float32))
    assert runs.Store(tmp_path, {"data": "other"}).row(settings[0], 0) is None


def test_a_full_disk_leaves_nothing(table2, tmp_path):
    common = table2["_common"]

    def write(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "kept.json").write_text("whole")
    with pytest.raises(OSError, match="No space"):
        common.write_file(tmp_path / "kept.json", write)
    old, young = (tmp_path / f"{common.UNFINISHED}{name}" for name in ("1-a.npy", "2-b.npy"))
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    common.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept.json", young.name}
    assert (tmp_path / "kept.json").read_text() == "whole"


def test_the_loss_of_held_out_patients_is_that_of_predictions(table2, folder):
    runs = table2["_runs"]
    cohort = table2["_data"].read_cohort(folder / "features.csv", folder / "expression.csv")
    design = runs.Design(0.5, "cgn", 8, 8, "rank", "default", 5)
    fold = design.make_folds(cohort)[0]
    transformer = design.make_transformer(N).fit(cohort.expression.to_numpy()[fold[0]])
    y = cohort.expression.iloc[fold[0]]
    y = pd.DataFrame(transformer.transform(y.to_numpy()), index=y.index, columns=y.columns)
    losses = {}
    for prior in ("eigen", "eigen:projected"):
        setting = runs.Setting("mlp", prior, "", 0.5)
        model = design.make_model(setting, 0, N_GENES).fit(cohort.X.iloc[fold[0]], y)
        losses[prior] = runs._held_out_loss(fold, model, transformer, cohort)
        known = model.history_.set_index("epoch")["valid_loss"][model.best_epoch_]
        # The projection has no part in training.
        assert np.isclose(losses[prior], known, rtol=1e-5) == (prior == "eigen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--priors", "eigne"], "expected one of none, external.*got 'eigne'"),
        (["--priors", "none:projected"], "got 'none:projected'"),
        (["--lambdas", "1.5"], r"expected a number in \(0, 1\], got '1.5'"),
        (["--external-features", "x"], "go together"),
        (["--features", "missing.csv"], "--features: there is no missing.csv"),
        (["--seeds", "0"], "--seeds: expected at least 1, got '0'"),
        (["--n-boot", "1"], "--n-boot: expected at least 2"),
        (["--gene-sets", "missing.gmt"], "--gene-sets: there is no missing.gmt"),
        (["--device", "gpu9"], "--device: "),
    ],
)
def test_bad_arguments(table2, folder, tmp_path, capsys, arguments, message):
    given = ["--features", str(folder / "features.csv"), "--out", str(tmp_path)]
    given += ["--expression", str(folder / "expression.csv"), *arguments]
    with pytest.raises(SystemExit):
        table2["table2"].parse(given)
    assert re.search(message, capsys.readouterr().err)


def test_what_does_not_match_is_told(table2, folder, tmp_path):
    features = pd.read_csv(folder / "features.csv", index_col=0)
    features.index = [*features.index[:58], "Q1", "Q2"]
    features.to_csv(tmp_path / "features.csv")
    cohort = table2["_data"].read_cohort(tmp_path / "features.csv", folder / "expression.csv")
    text = table2["_data"].describe_audit("Cohort", cohort)
    assert "Cohort: 58 of 60 samples have a row" in text
    assert "58 by start of the name" in text
    assert "2 left out: no row of that name, such as 'Q1'" in text
    assert "2 rows of expression have no sample, such as 'P58'" in text


def test_bags_become_super_tiles_once(table2, folder, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    for i in range(9):
        with h5py.File(tmp_path / "features" / f"P{i}.h5", "w") as file:
            n_tiles = 0 if i == 8 else 20
            file["features"] = rng.normal(size=(n_tiles, 6)).astype(np.float32)
    read = table2["_data"].read_cohort
    given = (tmp_path / "features", folder / "expression.csv")
    cohort = read(*given, n_clusters=4, work=tmp_path / "work" / "supertiles")
    assert cohort.X.shape == (8, 4, 6)
    cohort.write_audit(tmp_path / "audit.csv")
    audit = pd.read_csv(tmp_path / "audit.csv", index_col=0)
    assert audit.loc["P8", "how"] == "no tiles"
    assert audit.loc["P7", "row"] == "P7"
    assert "1 slides cannot be used, such as P8: no tiles" in table2["_data"].describe_audit(
        "C", cohort
    )
    assert not cohort.is_table
    assert cohort.n_features == 6
    [path] = (tmp_path / "work").glob("*.npy")
    written = path.stat().st_mtime_ns
    again = read(*given, n_clusters=4, work=tmp_path / "work" / "supertiles")
    assert path.stat().st_mtime_ns == written
    assert again.fingerprint() == cohort.fingerprint()
    # Other features in the same file are not mistaken for these.
    with h5py.File(tmp_path / "features" / "P0.h5", "a") as file:
        file["features"][:] = 0
    changed = read(*given, n_clusters=4, work=tmp_path / "work" / "supertiles")
    assert not changed.X[0, 0].any()
    assert changed.fingerprint() != cohort.fingerprint()
    bags = read(*given, n_clusters=0)
    assert bags.X[0].shape == (20, 6)
    assert bags.fingerprint() != cohort.fingerprint()


def test_too_few_patients(run, folder, tmp_path):
    pd.read_csv(folder / "features.csv", index_col=0)[:4].to_csv(tmp_path / "few.csv")
    code, text = run(tmp_path / "out", "--features", tmp_path / "few.csv")
    assert code == "error: 5 folds need as many patients, got 4."
    assert "4 of 4 samples have a row of expression" in text
