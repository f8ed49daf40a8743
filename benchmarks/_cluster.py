"""A Dask cluster for the benchmarks: a scheduler and worker processes over TCP."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

# By default, Dask makes workers return each large block at once and request it again.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}


@contextmanager
def cluster(n_workers, environment=KEEP_MEMORY):
    """
    Start a scheduler and workers of one thread each, as the command line does.

    Parameters
    ----------
    n_workers : int
        Number of worker processes.
    environment : dict of str to str
        Variables of their environment.

    Yields
    ------
    distributed.Client
        A client; all workers are connected.
    """
    from distributed import Client

    processes = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "scheduler.json"
        shared = ["--scheduler-file", str(path), "--no-dashboard"]
        commands = (
            ["scheduler", *shared, "--host", "127.0.0.1", "--port", "0"],
            ["worker", *shared, "--nworkers", str(n_workers), "--nthreads", "1"],
        )
        try:
            for command in commands:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dask", *command, *_memory(command)],
                        cwd=folder,
                        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
                while not path.exists():
                    time.sleep(0.05)
            with Client(scheduler_file=str(path)) as client:
                client.wait_for_workers(n_workers)
                yield client
        finally:
            for process in reversed(processes):
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                process.wait()


def _memory(command):
    return ["--memory-limit", "0"] if command[0] == "worker" else []
