"""A thousand bad files: every one is refused by name or read, and none costs the process."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib
import sys

import pytest

N_INPUTS = 1000


@pytest.fixture(scope="module")
def bench(project_root):
    """Return the modules of the benchmark, which makes and reads the files."""
    path = list(sys.path)
    sys.path.insert(0, str(project_root / "benchmarks"))
    names = ("bench_fuzz", "_fuzz", "_fuzz_seeds", "_fuzz_targets", "_fuzz_changes")
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = path


@pytest.fixture(scope="module")
def seeds(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    bench["_fuzz_seeds"].write_seeds(folder)
    return folder


@pytest.fixture(scope="module")
def all_rows(bench, seeds, tmp_path_factory):
    """Run the benchmark as its command line does on fewer files, and on good ones behind them."""
    jobs = bench["bench_fuzz"].make_jobs(N_INPUTS, seed=3)
    n_bad = len(jobs)
    for target, (kind, *_) in bench["_fuzz_targets"].TARGETS.items():
        recipe = {"kind": kind, "changes": [], "inside": False, "ending": None}
        number = len(list((seeds / kind).iterdir()))
        jobs += [(target, recipe | {"seed": seed}) for seed in range(number)]
    rows = bench["_fuzz"].run_jobs(jobs, seeds, tmp_path_factory.mktemp("home"))
    return rows[:n_bad], rows[n_bad:]


@pytest.fixture(scope="module")
def rows(all_rows):
    return all_rows[0]


def test_every_bad_file_is_refused_by_name_or_read(bench, rows):
    assert len(rows) >= N_INPUTS
    failed = [row for row in rows if row["outcome"] not in bench["_fuzz"].GOOD]
    told = "\n".join(
        f"{row['target']}, {row['number']}: {row['outcome']}, {row['text'][-500:]}"
        for row in failed
    )
    assert not failed, told


def test_memory_and_time_are_bounded(bench, rows):
    assert max(row["peak"] for row in rows) <= bench["_fuzz"].BOUND
    assert max(row["seconds"] for row in rows) <= 60


def test_the_files_are_bad_enough(bench, rows):
    table = bench["bench_fuzz"].summarize(rows)
    assert {row["target"] for row in table} == set(bench["_fuzz_targets"].TARGETS)
    assert all(row["refused_by_name"] >= row["inputs"] / 3 for row in table)
    # Not all of them fall at the first hurdle.
    texts = {row["text"].split("(")[-1][:40] for row in rows if row["outcome"] == "refused"}
    assert len(texts) > 100


def test_the_good_files_are_read(bench, all_rows):
    _, rows = all_rows
    refused = [row["target"] for row in rows if row["outcome"] != "read"]
    # OpenSlide knows neither the um/px of OME-TIFF nor every compression; of a folder, all files
    # have to be of one encoder.
    assert set(refused) <= {"slide, openslide", "folder of features"}
    assert len(refused) <= 6
    assert len(rows) > 10 * len(refused)
    assert all(row["outcome"] in bench["_fuzz"].GOOD for row in rows)


def test_inputs_are_drawn_by_the_seed(bench):
    def make(seed):
        return bench["bench_fuzz"].make_jobs(40, seed, ["table", "mask drawing"])

    assert make(1) == make(1)
    assert make(1) != make(2)


_BAD_TARGETS = """
import logging, os, sys, time, warnings
import numpy as np

def hold(path, home):
    np.ones(300 << 20, dtype=np.uint8)

def lose(path, home):
    raise ValueError("something is wrong")

def stray(path, home):
    logging.getLogger("somebody").warning("look")

def warn(path, home):
    warnings.warn("careful")

def run(path, home):
    os.mkdir(path + ".was-run")

def refuse(path, home):
    raise ValueError(f"{path} is bad")

def fail(path, home):
    raise KeyError(path)

KIND = "gene sets"
TARGETS = {
    "crash": (KIND, lambda path, home: os.abort(), (ValueError,)),
    "hang": (KIND, lambda path, home: time.sleep(60), (ValueError,)),
}
for each in (hold, lose, stray, warn, run, refuse, fail):
    TARGETS[each.__name__] = (KIND, each, (ValueError,))
TARGETS["fine"] = (KIND, lambda path, home: None, (ValueError,))
"""


def test_what_goes_wrong_is_noticed(bench, seeds, tmp_path):
    targets = tmp_path / "bad_targets.py"
    targets.write_text(_BAD_TARGETS)
    names = ("fine", "crash", "hold", "hang", "lose", "stray", "warn", "run", "refuse")
    recipe = {"kind": "gene sets", "seed": 0, "changes": [], "inside": False, "ending": None}
    rows = bench["_fuzz"].run_jobs(
        [(name, recipe) for name in (*names, "fail", "fine")],
        seeds,
        tmp_path / "home",
        targets=targets,
        bound=200 << 20,
        patience=5,
        keep=tmp_path / "keep",
    )
    assert [(row["target"], row["outcome"]) for row in rows] == [
        ("fine", "read"),
        ("crash", "crash"),
        ("hold", "memory"),
        ("hang", "hang"),
        ("lose", "unnamed"),
        ("stray", "stray output"),
        ("warn", "unnamed"),
        ("run", "code was run"),
        ("refuse", "refused"),
        ("fail", "unnamed"),
        ("fine", "read"),
    ]
    assert "SIGABRT" in rows[1]["text"]
    kept = sorted(path.name for path in (tmp_path / "keep").iterdir())
    assert kept[:3] == ["000001-crash", "000002-memory", "000003-hang"]
    assert len(list((tmp_path / "keep" / "000001-crash").iterdir())) == 2
