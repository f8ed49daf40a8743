"""A Dask cluster: a scheduler and two workers in processes of their own, over TCP."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

# Workers are forked from a process that has imported what they need, so that they start, and are
# started again when they are killed, within a second.
WORKER = """
from distributed.cli.dask_worker import main
from distributed.utils import get_mp_context

if __name__ == "__main__":
    # The last one is imported by torch at the first step of a training.
    modules = ["distributed", "sklearn_pk.regression", "sklearn_pk.slides", "torch._dynamo"]
    get_mp_context().set_forkserver_preload(modules)
    main()
"""


@pytest.fixture(scope="session")
def scheduler_file(tmp_path_factory):
    """Path of the scheduler file of a cluster whose working directory is another."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("cluster")
    path = folder / "scheduler.json"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    shared = ["--scheduler-file", str(path), "--no-dashboard"]
    commands = (
        ["-m", "dask", "scheduler", *shared, "--host", "127.0.0.1", "--port", "0"],
        ["-c", WORKER, *shared, "--nworkers", "2", "--nthreads", "1", "--memory-limit", "0"],
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver",
    }
    processes = []
    with open(folder / "log", "w") as log:
        try:
            for command in commands:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        cwd=elsewhere,
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
                deadline = time.monotonic() + 60
                while not path.exists():
                    assert processes[0].poll() is None, (folder / "log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield path
        finally:
            for process in reversed(processes):
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


@pytest.fixture
def client(scheduler_file):
    """A client of the cluster, once both workers run."""
    distributed = pytest.importorskip("distributed")
    with distributed.Client(scheduler_file=str(scheduler_file)) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def kill_worker(client):
    """
    Return a function that kills the worker with the most data once a condition holds.

    It does so in a thread, and returns the thread and a list for the address of the worker.
    """

    def kill_when(condition):
        killed = []

        def kill():
            deadline = time.monotonic() + 60
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)
            pids, held = client.run(os.getpid), client.has_what()
            address = max(pids, key=lambda worker: len(held.get(worker, ())))
            os.kill(pids[address], signal.SIGKILL)
            killed.append(address)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        return killer, killed

    return kill_when
