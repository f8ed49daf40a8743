"""The command: from slides to features, from features to results, from a model to a map."""

# SPDX-License-Identifier: BSD-3-Clause

import re
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

from sklearn_pk.__main__ import main
from sklearn_pk.datasets import load_cmu_slide


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "cmu.svs").symlink_to(load_cmu_slide().path)
    (folder / "notes.txt").write_text("no slide")
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Write features of 40 slides that follow two factors of expression, and the expression."""
    folder, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    factors = rng.normal(size=(40, 2))
    names = [f"P{number}" for number in range(40)]
    (folder / "features").mkdir()
    for name, row in zip(names, factors, strict=True):
        with h5py.File(folder / "features" / f"{name}.h5", "w") as file:
            file["features"] = (row @ np.eye(2, 6) + rng.normal(size=(20, 6))).astype(np.float32)
            file["coords"] = np.stack(np.divmod(np.arange(20), 5), axis=1) * 200
            file["coords"].attrs["patch_size_level0"] = 200
    loadings = rng.normal(size=(2, 30))
    loadings[:, 20:] = 0
    y = 9 + factors @ loadings + 0.3 * rng.normal(size=(40, 30))
    genes = [f"GENE{number}" for number in range(30)]
    pd.DataFrame(y, names, genes).to_csv(folder / "expression.csv")
    others = rng.normal(size=(50, 2)) @ loadings + 9 + 0.3 * rng.normal(size=(50, 30))
    pd.DataFrame(others, [f"Q{number}" for number in range(50)], genes).to_csv(
        folder / "others.csv"
    )
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_help_of_each_command_has_an_example(capsys):
    for command in ("check", "encode", "run", "map"):
        with pytest.raises(SystemExit, match="0"):
            run(command, "--help")
        assert f"example: sklearn-pk {command} " in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "sklearn_pk", "fly"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "invalid choice: 'fly'" in done.stderr


def test_check(slides, tmp_path, capsys):
    out = tmp_path / "report.csv"
    assert run("check", slides, "--out", out) == 0
    assert "1 of 1 slides can be tiled." in capsys.readouterr().out
    assert pd.read_csv(out).n_tiles.tolist() == [45]
    (slides / "damaged.svs").write_bytes(b"x" * 999)
    assert run("check", slides) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 slides can be tiled." in printed
    assert "damaged.svs" in printed


@pytest.mark.filterwarnings("ignore:1 slides have no tiles")
@pytest.mark.filterwarnings("ignore:1 slides have no features")
def test_encode(slides, tmp_path, capsys):
    store = tmp_path / "store"
    encode = ("encode", slides, "--store", store, "--max-tiles", 5)
    assert run(*encode, "--dry-run") == 0
    assert "cmu.svs" in capsys.readouterr().out
    assert not store.exists()
    table = tmp_path / "slides.csv"
    pd.DataFrame({"slide": [slides / "cmu.svs"] * 1, "mpp": [0.499]}).to_csv(table, index=False)
    assert run("encode", table, *encode[2:], "--shard", "2/2") == 0
    assert not store.exists()
    assert run("encode", table, *encode[2:], "--shard", "1/2") == 0
    assert len(list(store.rglob("*.h5"))) == 1
    (slides / "damaged.svs").write_bytes(b"x" * 999)
    assert run(*encode) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 slides have features" in printed
    assert "damaged.svs: " in printed


def test_from_features_to_results_and_a_map(cohort, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("--features", cohort / "features", "--expression", cohort / "expression.csv")
    given += ("--genes-in", "columns")
    assert run("run", *given, "--out", out, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "40 of 40" in printed
    assert "30 genes." in printed
    assert {path.name for path in out.iterdir()} == {"matching.csv"}
    assert run("run", *given, "--out", out) == 0
    assert "with false discoveries controlled at 5 % by permutation" in capsys.readouterr().out
    found = set(pd.read_csv(out / "significant_genes.csv").gene)
    assert "Calibrated by permuted patients" in (out / "report.html").read_text()
    planted = {f"GENE{number}" for number in range(20)}
    assert len(found & planted) >= 15
    assert len(found - planted) <= 2
    target = tmp_path / "map.csv"
    of_slide = ("--features", cohort / "features", "--genes", "GENE3", "--out", target)
    assert run("map", out / "model.skops", "P3.svs", *of_slide) == 0
    assert list(pd.read_csv(target)) == ["x", "y", "tile_size", "GENE3"]
    assert len(pd.read_csv(target)) == 20
    assert run("map", out / "model.skops", "P99.svs", *of_slide) == 1
    assert "expected the features of one slide named 'P99', found 0" in capsys.readouterr().err


def test_expression_of_others(cohort, tmp_path, capsys):
    given = ("--features", cohort / "features", "--expression", cohort / "expression.csv")
    given += ("--genes-in", "columns")
    others = ("--others", cohort / "others.csv", "--kernel", "rbf")
    assert run("run", *given, *others, "--out", tmp_path) == 0
    assert not (tmp_path / "model.skops").exists()
    assert "by an empirical null" in capsys.readouterr().out
    assert run("run", *given, "--others", cohort / "expression.csv", "--out", tmp_path) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "{empty}"], "found no slides, which are files ending with .bif"),
        (["check", "{table}"], r"expected the column 'slide', got \['path'\]"),
        (["run", "--features", "x.csv", "--expression", "x.csv", "--out", "{empty}"], "x.csv"),
        (["map", "x.skops", "x.svs", "--out", "x.csv"], "x.skops"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    table = tmp_path / "slides.csv"
    table.write_text("path\nx.svs\n")
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "table": table}
    assert run(*(each.format(**places) for each in arguments)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_shards(shard, capsys):
    with pytest.raises(SystemExit):
        run("encode", "x", "--store", "y", "--shard", shard)
    assert "expected I/N" in capsys.readouterr().err
