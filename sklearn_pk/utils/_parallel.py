"""joblib loops that survive the loss of a worker."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
import sys
import warnings
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from itertools import islice

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend
from sklearn.utils.parallel import Parallel, delayed

try:
    from joblib.externals import cloudpickle
except ImportError:  # since 1.6 it is a requirement of joblib
    import cloudpickle

# The number of batches of tasks that joblib dispatches ahead for each worker.
_AHEAD = 2
# Dask cancels a task whose arguments are lost with a worker that another task has killed.
_ATTEMPTS = 3
_ALIGNMENT = 64
_JOBLIB_TIMEOUT = 10  # default wait_for_workers_timeout of the joblib backend


def register_dask():
    """
    Replace the joblib backend "dask" by one that survives the loss of a worker.

    Afterwards, a search of scikit-learn within ``joblib.parallel_config(backend="dask")``
    continues when a worker is killed: its arguments are sent again and its tasks are run again.
    A task that kills every worker that runs it ends the loop with
    ``distributed.KilledWorker``, where the backend of joblib would wait forever. The loops of
    sklearn_pk use this backend anyway.

    Large arguments pass through the scheduler, which keeps them until the loop ends.

    Raises
    ------
    ModuleNotFoundError
        If Dask is not installed.

    See Also
    --------
    joblib.parallel_config : Choose the backend.

    Examples
    --------
    >>> import joblib
    >>> from distributed import Client, LocalCluster
    >>> from sklearn.datasets import make_regression
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_pk.utils import register_dask
    >>> register_dask()
    >>> X, y = make_regression(200, 5, random_state=0)
    >>> search = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]})
    >>> with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
    ...     with Client(cluster), joblib.parallel_config(backend="dask"):
    ...         search.fit(X, y).best_params_
    {'alpha': 0.1}
    """
    from ._dask import DaskBackend

    joblib.register_parallel_backend("dask", DaskBackend)


class LostWorkerError(RuntimeError):
    """A task that kills every worker that runs it."""

    def __init__(self, name, error):
        super().__init__(name, error)
        self.name = name
        self.error = error

    def __str__(self):
        """Name the task and what to check."""
        return (
            f"{self.name}: its worker process was killed, and killed again when it ran this task "
            "alone. Check the log of the system or of the worker for a lack of memory, and "
            "whether the file crashes its decoder "
            f"({type(self.error).__name__}: {str(self.error).partition(chr(10))[0]})."
        )


def _lost_worker_errors():
    """Return the errors that joblib backends raise for a lost worker."""
    if "distributed" not in sys.modules:
        return (TerminatedWorkerError,)
    from distributed import KilledWorker

    # Dask runs a task again by itself, up to `allowed-failures` times.
    return (TerminatedWorkerError, KilledWorker, CancelledError)


def _call(function, position, *task):
    return position, function(*task)


def is_dask():
    """Return whether joblib loops run on a Dask cluster."""
    return "Dask" in type(get_active_backend()[0]).__name__


def count_jobs(n_jobs):
    """Return the number of workers of a loop."""
    if n_jobs == 1:
        return 1
    backend = _dask_backend()
    return joblib.effective_n_jobs(n_jobs) if backend is None else backend.effective_n_jobs(n_jobs)


def _dask_backend():
    """Return our backend where that of joblib for Dask is active, None otherwise."""
    backend, _ = get_active_backend()
    if type(backend).__name__ != "DaskDistributedBackend":
        return None
    from ._dask import DaskBackend

    options = dict(backend.submit_kwargs)
    if backend.wait_for_workers_timeout != _JOBLIB_TIMEOUT:
        options["wait_for_workers_timeout"] = backend.wait_for_workers_timeout
    return DaskBackend(client=backend.client, **options)


def _start(function, left, positions, n_jobs, batch_size):
    if n_jobs == 1:
        # In this process, whatever the backend: that for Dask ignores the number.
        return (_call(function, position, *left[position]) for position in positions)
    run = Parallel(
        n_jobs=n_jobs,
        return_as="generator_unordered",
        backend=_dask_backend(),
        batch_size=batch_size,
    )
    return run(delayed(_call)(function, position, *left[position]) for position in positions)


def _run(function, left, positions, n_jobs, batch_size=1):
    """Run some of the tasks in `left`, a dict of position to arguments; remove those done."""
    results = _start(function, left, positions, n_jobs, batch_size)
    try:
        for position, result in results:
            del left[position]
            yield position, result
    finally:
        with warnings.catch_warnings():
            # joblib warns of tasks that are cancelled when the caller stops early.
            warnings.simplefilter("ignore")
            results.close()


def _run_alone(function, left, position, n_jobs, name):
    """Run one task that may kill its worker."""
    for _ in range(_ATTEMPTS):
        try:
            yield from _run(function, left, [position], n_jobs)
        except _lost_worker_errors() as error:
            lost = error
            if not isinstance(error, CancelledError):
                break
        else:
            return
    del left[position]
    yield position, LostWorkerError(name(position), lost)


@contextmanager
def no_alarm_about_memory():
    """Silence the warning that joblib replaces a worker whose memory has grown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        yield


def map_tasks(function, tasks, *, n_jobs=None, name="task {}".format):
    """Yield (position, result) as tasks finish; a task that kills its worker, LostWorkerError."""
    left, batch_size = dict(enumerate(tasks)), "auto"
    while left:
        try:
            yield from _run(function, left, list(left), n_jobs, batch_size)
        except _lost_worker_errors():
            batch_size = 1
            # Tasks start in order, so the cause is among the first that are left. They run
            # together once more, which finishes the harmless ones, then one by one.
            suspects = list(islice(left, _AHEAD * count_jobs(n_jobs)))
            try:
                yield from _run(function, left, suspects, n_jobs)
            except _lost_worker_errors():
                for position in suspects:
                    if position in left:
                        yield from _run_alone(function, left, position, n_jobs, name)


def map_in_order(function, tasks, *, n_jobs=None, name="task {}".format):
    """Yield results in the order of the tasks; raise LostWorkerError."""
    waiting, turn = {}, 0
    with closing(map_tasks(function, tasks, n_jobs=n_jobs, name=name)) as results:
        for position, result in results:
            if isinstance(result, LostWorkerError):
                raise result
            waiting[position] = result
            while turn in waiting:
                yield waiting.pop(turn)
                turn += 1


def share(value):
    """Split a value into a small part and one array, which joblib sends to each worker once."""
    buffers = []
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    starts = np.cumsum([0, *(_aligned(len(part)) for part in parts)])
    content = np.zeros(starts[-1], dtype=np.uint8)
    for start, part in zip(starts, parts, strict=False):
        content[start : start + len(part)] = part
    return head, [len(part) for part in parts], content


def restore(head, sizes, content):
    """Undo :func:`share`."""
    starts = np.cumsum([0, *map(_aligned, sizes)])
    buffers = [content[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return pickle.loads(head, buffers=buffers)


def _aligned(size):
    return -(-size // _ALIGNMENT) * _ALIGNMENT
