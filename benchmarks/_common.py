"""Shared by the benchmark scripts: timing, hardware, the table and the JSON file."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import json
import os
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
UNFINISHED = ".unfinished-"


def timed(function, *arguments, repeats=3):
    """Return the result and the seconds of the fastest of several calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def run_in_turns(ways, rounds):
    """
    Call functions in turns, with the order reversed in every other round.

    Parameters
    ----------
    ways : dict of str to callable
        The functions.
    rounds : int
        Timed rounds, after one to warm up.

    Returns
    -------
    results : dict of str to object
        Last return value of each function.
    seconds : dict of str to list of float
        Seconds of each call.
    """
    results, seconds = {}, {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else reversed(ways):
            results[name], spent = timed(ways[name], repeats=1)
            seconds[name].append(spent)
    return results, {name: each[1:] for name, each in seconds.items()}


def peak_mb():
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe(device="cpu"):
    """Return the hardware and the versions of a result."""
    hardware = f"{platform.machine()}, {os.cpu_count()} logical cores, CPU only"
    if str(device).startswith("cuda"):
        import torch

        hardware = f"{hardware.removesuffix(', CPU only')}, {torch.cuda.get_device_name()}"
    names = (
        "numpy",
        "scipy",
        "scikit-learn",
        "torch",
        "tifffile",
        "openslide-python",
        "sklearn_pk",
    )
    return {"hardware": hardware, "versions": {name: version(name) for name in names}}


def write_results(results, path):
    """Write a JSON file in one step."""
    text = json.dumps(results, indent=2) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text))


def write_file(path, write):
    """Write a file in one step: whole or not at all; return its checksum."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}")
    try:
        write(temporary)
        found = checksum(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def checksum(path):
    """Return the SHA-256 of a file, None if there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder):
    """Remove what killed processes have left half-written."""
    for path in Path(folder).rglob(f"{UNFINISHED}*"):
        if time.time() - path.stat().st_mtime > 3600:  # nobody writes it any more
            path.unlink(missing_ok=True)
