"""The suites of asv at sizes where each takes an instant, and the table that is made of them."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest
from scipy import sparse

NETWORK = {"dim": 16, "n_heads": 2, "n_tiles": 5, "batch_size": 3, "n_genes": 10}
# Two pieces, one of them with four tiles of tissue.
PIECE = (3, 8)
SLIDE = {"width": 1536, "height": 2048, "tissue": 0.75}
# With two tiles a cluster, no two minima of k-means are alike.
LOOSE = {"tolerance": 0.5}
SIZES = {
    "Report": {"n_slides": 30, "n_genes": 8},
    "ValidationCorrelation": {"n_slides": 6, "n_genes": 5},
    "SummaryMixingStep": NETWORK,
    "TransformerStep": NETWORK,
    "Graph": {"n_genes": 60, "n_patients": 50},
    "Factorization": {"n_genes": 300, "n_components": 8, "n_iter": 2},
    "SuperTiles": {"n_tiles": 60, "n_features": 8, "n_clusters": 30} | LOOSE,
    "Encoding": {"n_tiles": 2, "batch_size": 2},
    "Reading": SLIDE,
    "Mask": {"edge": 256},
    "Tiling": SLIDE,
}


@pytest.fixture(scope="module")
def bench_speed(project_root):
    """Import the script as if it were run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project_root / "benchmarks")
        yield importlib.import_module("bench_speed")


@pytest.fixture
def suites(bench_speed, monkeypatch):
    """Find the suites as asv does, and shrink them."""
    package = importlib.import_module("suites")
    found = {}
    for info in pkgutil.iter_modules(package.__path__, "suites."):
        module = importlib.import_module(info.name)
        found |= {
            name: value
            for name, value in vars(module).items()
            if inspect.isclass(value) and not inspect.isabstract(value) and list_benchmarks(value)
        }
    for name, sizes in SIZES.items():
        for size, value in ({"n_rounds": 1} | sizes).items():
            monkeypatch.setattr(found[name], size, value)
    monkeypatch.setattr(importlib.import_module("_slide"), "PIECE", PIECE)
    return found


def list_benchmarks(suite):
    """Name the methods that asv runs."""
    return [name for name in dir(suite) if name.startswith(("time_", "track_", "peakmem_"))]


def spoil(result):
    """Make a result wrong, whatever it is."""
    if isinstance(result, tuple):
        return tuple(spoil(part) for part in result)
    if isinstance(result, np.ndarray) and result.dtype == bool:
        return ~result
    if sparse.issparse(result):
        return type(result)(result.shape)
    return result * 0 if isinstance(result, np.ndarray) else result + 1


def spoil_suite(suite, monkeypatch):
    right = suite.ours
    monkeypatch.setattr(suite, "ours", lambda self: spoil(right(self)))


def test_all_suites_are_tested_and_in_the_table(suites, bench_speed):
    in_table = [suite.__name__ for suite in bench_speed.SUITES]
    assert sorted(in_table) == sorted(SIZES)
    assert set(suites) == {*SIZES, "GraphMemory"}
    steps = [suite.step for suite in bench_speed.SUITES]
    assert all(steps)
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize("name", [*SIZES, "GraphMemory"])
def test_each_benchmark_runs(suites, name):
    for benchmark in list_benchmarks(suites[name]):
        suite = suites[name]()
        run = getattr(suite, benchmark)
        values = getattr(run, "params", getattr(suite, "params", None))
        for parameters in [()] if values is None else [(value,) for value in values]:
            suite.setup(*parameters)
            result = run(*parameters)
            getattr(suite, "teardown", lambda *_: None)(*parameters)
            assert not benchmark.startswith("track_") or result > 0


@pytest.mark.parametrize("name", SIZES)
def test_a_wrong_result_is_noticed(suites, name, monkeypatch):
    spoil_suite(suites[name], monkeypatch)
    suite = suites[name]()
    with pytest.raises(AssertionError, match=f"{suite.step}: the library and its reference differ"):
        suite.setup("ours")


def test_nan_disagrees(suites, monkeypatch):
    suite = suites["Report"]
    monkeypatch.setattr(suite, "difference", lambda self, ours, reference: np.nan)
    with pytest.raises(AssertionError, match="differ by nan"):
        suite().setup()


def test_table(suites, bench_speed, monkeypatch, tmp_path, capsys):
    chosen = (suites["Report"], suites["Reading"])
    monkeypatch.setattr(bench_speed, "SUITES", chosen)
    path = tmp_path / "speed.json"
    bench_speed.main(["--rounds", "2", "--out", str(path)])
    header, rule, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(bench_speed.COLUMNS)
    assert len({len(line) for line in (header, rule, *lines)}) == 1
    assert [line.split()[-1] for line in lines] == ["yes", "yes"]
    results = json.loads(path.read_text())
    assert results["threads"]["torch"] >= 1
    for row, suite in zip(results["rows"], chosen, strict=True):
        assert row["step"] == suite.step
        fastest = min(row["reference_seconds"]) / min(row["ours_seconds"])
        assert row["ratio"] == pytest.approx(fastest)
        assert len(row["ours_seconds"]) == len(row["reference_seconds"]) == 2
        assert row["agree"] is True


def test_a_disagreement_fails_the_table(suites, bench_speed, monkeypatch, tmp_path, capsys):
    spoil_suite(suites["Report"], monkeypatch)
    monkeypatch.setattr(bench_speed, "SUITES", (suites["Report"], suites["Graph"]))
    path = tmp_path / "speed.json"
    # A text is what Python prints before it exits with 1.
    with pytest.raises(SystemExit, match="does not agree with its reference"):
        bench_speed.main(["--rounds", "1", "--out", str(path)])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]] == ["NO", "yes"]
    assert [row["agree"] for row in json.loads(path.read_text())["rows"]] == [False, True]


def test_configuration_of_asv(project_root):
    folder = project_root / "benchmarks" / "asv"
    settings = json.loads((folder / "asv.conf.json").read_text())
    assert (folder / settings["benchmark_dir"] / "__init__.py").is_file()
    assert (folder / settings["repo"]).resolve() == project_root.resolve()
    # What git ignores.
    assert all(settings[name].startswith(".asv/") for name in ("env_dir", "results_dir"))
    assert settings["html_dir"].startswith(".asv/")
