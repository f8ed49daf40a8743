"""A process that reads bad files one after another and writes down what becomes of each."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

from _fuzz_changes import write_input

MIB = 1 << 20


def _status(name):
    """Return a size that the kernel knows of this process, in bytes."""
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _load_targets(path):
    spec = importlib.util.spec_from_file_location("targets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _warm_up(jobs, targets, seeds, home):
    """Read one good file of each target."""
    folder = home / "warm"
    for target in dict.fromkeys(target for _, target, _ in jobs):
        kind, *_ = targets[target]
        folder.mkdir()
        recipe = {"kind": kind, "seed": 0, "changes": [], "inside": False, "ending": None}
        _judge(write_input(recipe, seeds, folder, "good"), targets[target], home)
        shutil.rmtree(folder)


def _judge(path, target, home):
    """Read one file; return what became of it, and what was said."""
    _, read, expected = target
    outcome, text = "read", ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            read(str(path), home)
        except MemoryError:
            outcome, text = "memory", traceback.format_exc()
        except expected as error:
            named = path.stem in str(error) and len(str(error)) < 3000
            outcome, text = "refused" if named else "unnamed", f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001  whatever else it is, it is what is looked for
            outcome, text = "unnamed", traceback.format_exc()
    stray = [str(each.message) for each in told if path.stem not in str(each.message)]
    return ("unnamed", "".join(stray)) if stray else (outcome, text)


def work(jobs, targets, seeds, home, bound):
    """
    Read files, one line of the journal before each and one behind it.

    Parameters
    ----------
    jobs : list of [int, str, dict]
        Number, target and recipe of each file.
    targets : dict of str to tuple
        What each target is, as in `_fuzz_targets`.
    seeds : path-like
        Folder of the good files.
    home : pathlib.Path
        Where everything is written.
    bound : int
        Bytes of memory that reading may take beyond what the process has.
    """
    journal = open(home / "journal.jsonl", "a", buffering=1)
    # What C libraries and the logging module write.
    stray = open(home / "stray.txt", "w+b", buffering=0)
    for stream in (1, 2):
        os.dup2(stray.fileno(), stream)
    for number, target, recipe in jobs:
        folder = home / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = write_input(recipe, seeds, folder, f"input{number:06}")
        journal.write(json.dumps({"start": number, "path": str(path)}) + "\n")
        stray.truncate(0)
        stray.seek(0)
        _forget_peak()
        before = _status("VmRSS")
        soft = _status("VmSize") + bound + 512 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        start = time.perf_counter()
        outcome, text = _judge(path, targets[target], home)
        seconds = time.perf_counter() - start
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        peak = _status("VmHWM") - before
        sys.stdout.flush()
        sys.stderr.flush()
        stray.seek(0)
        said = stray.read().decode(errors="replace")
        if said:
            outcome, text = "stray output", said
        elif peak > bound:
            outcome, text = "memory", f"{peak / MIB:.0f} MiB. {text}"
        elif list(folder.glob("*was-run*")):
            outcome, text = "code was run", text
        row = {"number": number, "outcome": outcome, "seconds": seconds, "peak": peak, "text": text}
        journal.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    home = Path(sys.argv[1])
    content = json.loads((home / "jobs.json").read_text())
    module = _load_targets(content["targets"])
    shutil.rmtree(home / "warm", ignore_errors=True)
    if getattr(module, "WARM_UP", False):
        _warm_up(content["jobs"], module.TARGETS, content["seeds"], home)
    work(content["jobs"], module.TARGETS, content["seeds"], home, content["bound"])
