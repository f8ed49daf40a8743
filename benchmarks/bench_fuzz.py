"""Reads thousands of bad files with every reader and loader; figures go to a JSON file."""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from _common import RESULTS, describe, write_results
from _fuzz import BOUND, GOOD, PATIENCE, run_jobs
from _fuzz_bombs import bombs
from _fuzz_changes import draw_recipes
from _fuzz_seeds import write_seeds
from _fuzz_targets import TARGETS

# How many of a hundred files a target gets; what is read by C code gets more.
SHARES = {
    "slide, tifffile": 12,
    "slide, openslide": 14,
    "slide, auto": 6,
    "mask image": 7,
    "mask drawing": 5,
    "features, HDF5": 18,
    "features, torch": 7,
    "folder of features": 4,
    "feature store": 6,
    "encoder weights": 3,
    "checkpoint": 5,
    "gene sets": 3,
    "aliases": 2,
    "table": 8,
}


def make_jobs(n_inputs, seed, targets=TARGETS):
    """
    Draw the bad files of all targets, the bombs first.

    Parameters
    ----------
    n_inputs : int
        How many for all targets together.
    seed : int
        Seed of the draw.
    targets : iterable of str, default=all
        Targets to draw for.

    Returns
    -------
    jobs : list of (str, dict)
        Target and recipe of each.
    """
    jobs = []
    total = sum(SHARES[target] for target in targets)
    for number, target in enumerate(SHARES):
        if target in targets:
            kind = TARGETS[target][0]
            first = [(target, recipe) for recipe in bombs(kind)] if "folder" not in target else []
            n_drawn = max(1, -(-n_inputs * SHARES[target] // total) - len(first))
            recipes = draw_recipes(kind, n_drawn, 1000 * seed + number)
            jobs += first + [(target, recipe) for recipe in recipes]
    return jobs


def summarize(rows):
    """
    Count what became of the files of each target.

    Parameters
    ----------
    rows : list of dict
        What :func:`run_jobs` returns.

    Returns
    -------
    table : list of dict
        One row a target.
    """
    table = []
    for target in dict.fromkeys(row["target"] for row in rows):
        some = [row for row in rows if row["target"] == target]
        outcomes = Counter(row["outcome"] for row in some)
        seconds = np.array([row["seconds"] for row in some])
        # Refused like others, but only because that library runs in a process of its own.
        stopped = sum("the HDF5 library" in row["text"] for row in some)
        table.append(
            {
                "target": target,
                "inputs": len(some),
                "refused_by_name": outcomes.pop("refused", 0),
                "read": outcomes.pop("read", 0),
                "crashes": outcomes.pop("crash", 0),
                "hangs": outcomes.pop("hang", 0),
                "unnamed": outcomes.pop("unnamed", 0),
                "other": dict(outcomes),
                "hdf5_processes_lost": stopped,
                "peak_mib": round(max(row["peak"] for row in some) / 2**20, 1),
                "ms_median": round(1e3 * float(np.median(seconds)), 2),
                "ms_largest": round(1e3 * float(seconds.max()), 1),
            }
        )
    return table


def main():
    """Run all of it and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=6500, help="number of bad files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--targets", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--keep", type=Path, help="folder for files that do not end well")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    arguments = parser.parse_args()
    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    jobs = make_jobs(arguments.inputs, arguments.seed, arguments.targets)

    def report(row):
        said = row["text"].strip().splitlines() or [""]
        print(row["number"], row["target"], row["outcome"], said[-1][:200], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds"
        write_seeds(seeds)
        rows = run_jobs(jobs, seeds, Path(folder) / "home", keep=keep, report=report)
    table = summarize(rows)
    for row in table:
        print(row)
    failed = [row for row in rows if row["outcome"] not in GOOD]
    more = ("h5py", "openslide-bin", "imagecodecs", "pillow", "pandas", "pyarrow", "safetensors")
    about = describe()
    about["versions"] |= {name: version(name) for name in (*more, "hypothesis")}
    limits = {"memory_bound_mib": BOUND >> 20, "patience_s": PATIENCE}
    results = about | {"seed": arguments.seed, "inputs": len(rows), "failed": len(failed)}
    write_results(results | limits | {"rows": table}, arguments.out)
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} files did not end well; they are in {keep}.")


if __name__ == "__main__":
    main()
