"""Reads bad files in a process of its own that may crash, hang or be stopped."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

BOUND = 1 << 30
PATIENCE = 10.0
# To import everything takes a while, but no file is to blame for it.
_START = 120.0
GOOD = ("refused", "read")
TARGETS = Path(__file__).with_name("_fuzz_targets.py")


class _Journal:
    """The lines that a worker has written, as they come."""

    def __init__(self, path):
        self._path, self._position = path, 0

    def read(self):
        if not self._path.exists():
            return []
        with open(self._path) as file:
            file.seek(self._position)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._position += len(whole.encode())
        return [json.loads(line) for line in whole.splitlines()]


def _watch(process, journal, patience):
    """Collect what a worker finds; return its rows, and what it was at when it stopped."""
    rows, current, since, allowed = [], None, time.monotonic(), _START
    while True:
        ended = process.poll() is not None
        for line in journal.read():
            since, allowed = time.monotonic(), patience
            if "start" in line:
                current = line
            else:
                rows.append(line)
                current = None
        if ended:
            return rows, current, "crash"
        if time.monotonic() - since > allowed:
            process.kill()
            process.wait()
            return rows, current, "hang"
        time.sleep(0.02)


def run_jobs(
    jobs, seeds, home, *, targets=TARGETS, bound=BOUND, patience=PATIENCE, keep=None, report=None
):
    """
    Read bad files in a process that is started again whenever one has brought it down.

    Parameters
    ----------
    jobs : list of (str, dict)
        Target and recipe of each file.
    seeds : path-like
        Folder of the good files.
    home : path-like
        Empty folder for everything that is written.
    targets : path-like, default=those of the package
        Module with what is tried on the files.
    bound : int, default=1 GiB
        Bytes of memory that reading one file may take.
    patience : float, default=10
        Seconds it may take.
    keep : path-like, default=None
        Folder to which the files are copied that did not end well.
    report : callable, default=None
        Called with each row of a file that did not.

    Returns
    -------
    rows : list of dict
        Of each file its number, target, outcome, text, seconds and peak memory in bytes.
    """
    home = Path(home)
    home.mkdir(parents=True, exist_ok=True)
    todo = [[number, *job] for number, job in enumerate(jobs)]
    rows = []
    while todo:
        content = {"jobs": todo, "seeds": str(seeds), "bound": bound, "targets": str(targets)}
        (home / "jobs.json").write_text(json.dumps(content))
        journal = home / "journal.jsonl"
        journal.unlink(missing_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"MPLBACKEND": "Agg", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        worker = [sys.executable, str(Path(__file__).with_name("_fuzz_worker.py")), str(home)]
        with open(home / "worker.txt", "wb") as output:
            process = subprocess.Popen(
                worker, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
            found, current, end = _watch(process, _Journal(journal), patience)
        if current is None and len(found) < len(todo):
            names = ("worker.txt", "stray.txt")
            said = "".join(
                (home / name).read_text(errors="replace")
                for name in names
                if (home / name).exists()
            )
            raise RuntimeError(f"The worker ended between two files:\n{said[-3000:]}")
        if current is not None:
            code = process.returncode
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            said = (home / "stray.txt").read_text(errors="replace")
            row = {"number": current["start"], "outcome": end, "seconds": patience, "peak": 0}
            found.append(row | {"text": f"{name} {said}"})
        for row in found:
            row["target"] = jobs[row["number"]][0]
            if row["outcome"] not in GOOD:
                _keep(row, jobs[row["number"]][1], home, seeds, keep)
                if report:
                    report(row)
        rows += found
        todo = todo[len(found) :]
    return rows


def _keep(row, recipe, home, seeds, keep):
    """Copy the file and its recipe to where they can be looked at."""
    if keep is None:
        return
    from _fuzz_changes import write_input

    folder = Path(keep) / f"{row['number']:06}-{row['outcome'].replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_input(recipe, seeds, folder, f"input{row['number']:06}")
    (folder / "row.json").write_text(json.dumps(row | {"recipe": recipe}, indent=1))
