"""Loops of joblib that outlive the death of a worker."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
import sys
import warnings
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

# joblib hands out no more than this many batches of tasks a worker ahead of their end.
_AHEAD = 2
# A cancelled task may have lost its arguments with a worker that others have killed.
_ATTEMPTS = 3
_ALIGNMENT = 64
_JOBLIBS_TIMEOUT = 10


def register_dask():
    """
    Make the backend "dask" of joblib go on when a worker dies.

    Afterwards, ``joblib.parallel_config(backend="dask")`` around a search of scikit-learn
    survives the loss of a worker: what it held is sent again, and what it did is done again. A
    task that kills each worker that tries it ends the loop with ``distributed.KilledWorker``,
    where joblib would wait without end. The loops of sklearn_pk are so anyway.

    Large arguments go through the scheduler, which keeps them until the loop ends.

    Raises
    ------
    ModuleNotFoundError
        If Dask is not installed.

    See Also
    --------
    joblib.parallel_config : Chooses the backend.

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
    import distributed  # noqa: F401  # joblib would notice only later that it is missing

    from ._dask import DurableDaskBackend

    joblib.register_parallel_backend("dask", DurableDaskBackend)


class LostWorkerError(RuntimeError):
    """A task whose worker is killed whenever it is worked on."""

    def __init__(self, name, error):
        super().__init__(name, error)
        self.name = name
        self.error = error

    def __str__(self):
        """Name the task and say what to look for."""
        return (
            f"{self.name}: the process that worked on it was killed, and was killed again when it "
            "worked on nothing else. Look for a lack of memory, in the log of the system or of "
            "the worker, or a file that crashes its decoder "
            f"({type(self.error).__name__}: {str(self.error).partition(chr(10))[0]})."
        )


def _losses():
    """Return the types of error by which joblib's backends say that a worker is gone."""
    kinds = (TerminatedWorkerError,)
    if "distributed" not in sys.modules:
        return kinds
    from distributed import KilledWorker
    from distributed.client import CancelledError

    # Dask does a task again itself, up to `allowed-failures` times.
    return (*kinds, KilledWorker, CancelledError)


def _call(function, position, *task):
    return position, function(*task)


def is_dask():
    """Tell whether loops of joblib go to a Dask cluster."""
    return "Dask" in type(get_active_backend()[0]).__name__


def count_jobs(n_jobs):
    """Count the workers of a loop."""
    if n_jobs == 1:
        return 1
    backend = _durable_backend()
    return joblib.effective_n_jobs(n_jobs) if backend is None else backend.effective_n_jobs(n_jobs)


def _durable_backend():
    """Return ours in place of joblib's for Dask, and None for others."""
    backend, _ = get_active_backend()
    if type(backend).__name__ != "DaskDistributedBackend":
        return None
    if not hasattr(backend, "_durable"):
        from ._dask import DurableDaskBackend

        options = dict(backend.submit_kwargs)
        if backend.wait_for_workers_timeout != _JOBLIBS_TIMEOUT:
            options["wait_for_workers_timeout"] = backend.wait_for_workers_timeout
        backend._durable = DurableDaskBackend(
            client=backend.client, scatter=backend._scatter, **options
        )
    return backend._durable


def _start(function, left, positions, n_jobs, batch_size):
    if n_jobs == 1:
        # Here, whatever the backend: that of Dask would leave the number unread.
        return (_call(function, position, *left[position]) for position in positions)
    run = Parallel(
        n_jobs=n_jobs,
        return_as="generator_unordered",
        backend=_durable_backend(),
        batch_size=batch_size,
    )
    return run(delayed(_call)(function, position, *left[position]) for position in positions)


def _run(function, left, positions, n_jobs, batch_size=1):
    """Run some of the tasks that are left, and take those that are done out of them."""
    results = _start(function, left, positions, n_jobs, batch_size)
    try:
        for position, result in results:
            del left[position]
            yield position, result
    finally:
        with warnings.catch_warnings():
            # About tasks that were in work when the caller had seen enough.
            warnings.simplefilter("ignore")
            results.close()


def _run_alone(function, left, position, n_jobs, name):
    """Run one task that may kill its worker."""
    for _ in range(_ATTEMPTS):
        try:
            yield from _run(function, left, [position], n_jobs)
        except _losses() as error:
            lost = error
            if not type(error).__name__.endswith("CancelledError"):
                break
        else:
            return
    del left[position]
    yield position, LostWorkerError(name(position), lost)


@contextmanager
def no_alarm_about_memory():
    """Leave out that joblib has replaced a worker whose memory has grown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        yield


def map_tasks(function, tasks, *, n_jobs=None, name="task {}".format):
    """Call a function for each task, by as many workers as joblib has."""
    left, batch_size = dict(enumerate(tasks)), "auto"
    while left:
        try:
            yield from _run(function, left, list(left), n_jobs, batch_size)
        except _losses():
            batch_size = 1
            # Tasks start in order, so it was one of the first that are left. Together once more,
            # because those that do no harm are done then, and the others one by one.
            suspects = list(islice(left, _AHEAD * count_jobs(n_jobs)))
            try:
                yield from _run(function, left, suspects, n_jobs)
            except _losses():
                for position in suspects:
                    if position in left:
                        yield from _run_alone(function, left, position, n_jobs, name)


def map_in_order(function, tasks, *, n_jobs=None, name="task {}".format):
    """Call a function for each task as :func:`map_tasks` does, and wait for results in order."""
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
    """Take a value apart into what is small and one array, which joblib sends to a worker once."""
    buffers = []
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    starts = np.cumsum([0, *(_aligned(len(part)) for part in parts)])
    content = np.zeros(starts[-1], dtype=np.uint8)
    for start, part in zip(starts, parts, strict=False):
        content[start : start + len(part)] = part
    return head, [len(part) for part in parts], content


def restore(head, sizes, content):
    """Put together what :func:`share` has taken apart."""
    starts = np.cumsum([0, *map(_aligned, sizes)])
    buffers = [content[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return pickle.loads(head, buffers=buffers)


def _aligned(size):
    return -(-size // _ALIGNMENT) * _ALIGNMENT
