"""Speed of each step against plain references, in minutes; results are written to a JSON file.

The suites of ``asv`` are run without asv, at sizes that take seconds. Times are the fastest of some
rounds in turns, with as many threads as the libraries take by default. Two threads wait for each
other where other programs keep the cores busy; OMP_NUM_THREADS=1 gives steadier ratios then. The
other scripts measure the size as published.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import os
import sys
from pathlib import Path

import torch
from _common import RESULTS, describe, write_results
from threadpoolctl import threadpool_info

sys.path.insert(0, str(Path(__file__).parent / "asv"))

from suites import prior, regression, significance, slides

SUITES = (
    significance.Report,
    regression.ValidationCorrelation,
    regression.SummaryMixingStep,
    regression.TransformerStep,
    prior.Graph,
    prior.Factorization,
    slides.SuperTiles,
    slides.Encoding,
    slides.Reading,
    slides.Mask,
    slides.Tiling,
)
COLUMNS = ("step", "size", "ours", "reference", "ratio", "agree")


def count_threads():
    """Return the number of threads of each library."""
    threads = {pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()}
    return threads | {"torch": torch.get_num_threads(), "cores": os.cpu_count()}


def run_suite(suite, rounds):
    """Compare both methods, time them, and return a row of the results."""
    suite.prepare()
    try:
        difference = suite.compare()
        seconds = suite.measure(rounds)
        size = suite.size
    finally:
        suite.teardown()
    return {
        "step": suite.step,
        "size": size,
        "ours_seconds": seconds["ours"],
        "reference_seconds": seconds["reference"],
        "ratio": min(seconds["reference"]) / min(seconds["ours"]),
        "difference": difference,
        "tolerance": suite.tolerance,
        "agree": difference <= suite.tolerance,
    }


def format_seconds(seconds):
    """Write a time with three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def format_table(rows):
    """Write the table as text."""
    cells = [COLUMNS]
    for row in rows:
        times = (format_seconds(min(row[f"{way}_seconds"])) for way in ("ours", "reference"))
        agree = "yes" if row["agree"] else "NO"
        cells.append((row["step"], row["size"], *times, f"{row['ratio']:.3g}x", agree))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        texts, figures = line[:2], line[2:]
        padded = [cell.ljust(width) for cell, width in zip(texts, widths, strict=False)]
        padded += [cell.rjust(width) for cell, width in zip(figures, widths[2:], strict=True)]
        lines.append("  ".join(padded))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def main(arguments=None):
    """Run all suites, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    arguments = parser.parse_args(arguments)
    threads, rows = count_threads(), []
    for suite in SUITES:
        print(f"{suite.step} ...", file=sys.stderr, flush=True)
        rows.append(run_suite(suite(), arguments.rounds))
    print(format_table(rows))
    write_results(describe() | {"threads": threads, "rows": rows}, arguments.out)
    if not all(row["agree"] for row in rows):
        raise SystemExit("a result does not agree with its reference")


if __name__ == "__main__":
    main()
