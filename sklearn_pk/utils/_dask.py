"""joblib backend for Dask whose loops survive the loss of a worker."""

# SPDX-License-Identifier: BSD-3-Clause

import weakref
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from traceback import format_exception
from uuid import uuid4

import dask
import joblib
from dask.sizeof import sizeof
from dask.utils import funcname
from distributed import Client, get_client, get_worker, rejoin, secede
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

# Arguments of more bytes are sent once for all tasks of a loop.
_LARGE = 1000


def _identity(data):
    return data


class _Position(int):
    """Stands for a large argument: its position among those of the batch."""


class _Batch:
    """Calls of a loop; Dask passes their large arguments."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *large):
        def fill(value):
            return large[value] if type(value) is _Position else value

        with joblib.parallel_config(backend=DaskBackend()):
            return [
                function(*map(fill, args), **{name: fill(kwargs[name]) for name in kwargs})
                for function, args, kwargs in self.calls
            ]


class DaskBackend(AutoBatchingMixin, ParallelBackendBase):
    """Run the tasks of joblib on a Dask cluster, again if their worker is lost."""

    MIN_IDEAL_BATCH_DURATION = 0.2
    MAX_IDEAL_BATCH_DURATION = 1.0
    default_n_jobs = -1
    supports_retrieve_callback = True

    def __init__(
        self,
        scheduler_host=None,
        *,
        scatter=(),
        client=None,
        wait_for_workers_timeout=120,
        nesting_level=None,
        **submit_options,
    ):
        super().__init__(nesting_level=nesting_level)
        if client is None and scheduler_host:
            client = Client(scheduler_host, set_as_default=False)
        try:
            self.client = client or get_client()
        except ValueError as error:
            raise ValueError(
                "There is no Dask client. Create one first: distributed.Client(address), or "
                "distributed.Client() for workers on this machine."
            ) from error
        if not isinstance(scatter, list | tuple | None):
            raise TypeError(f"scatter must be a list or tuple, got {type(scatter).__name__}.")
        self.wait_for_workers_timeout = wait_for_workers_timeout
        self.submit_options = submit_options
        self._is_aborted = False
        self._pending = set()
        self._scatter = list(scatter or ())
        self._scattered = {id(data): self._send(data) for data in self._scatter}
        self._sent = {}  # id of an argument: a weak reference to it, and its Dask future

    def effective_n_jobs(self, n_jobs):
        """Return the number of threads of all workers, but 2 for one thread."""
        n_threads = sum(self.client.ncores().values())
        if not n_threads and self.wait_for_workers_timeout:
            try:  # with a task, for which an adaptive cluster starts a worker
                self.client.submit(int, pure=False).result(timeout=self.wait_for_workers_timeout)
            except TimeoutError as error:
                raise TimeoutError(
                    f"The Dask cluster has no worker after {self.wait_for_workers_timeout} s. "
                    "Check that workers are started and reach the scheduler, or wait longer: "
                    "parallel_config(backend='dask', wait_for_workers_timeout=...)."
                ) from error
            n_threads = sum(self.client.ncores().values())
        # With one job, joblib would run the tasks in the process of the caller.
        return max(2, n_threads)

    def start_call(self):
        """Begin a loop."""
        self._is_aborted = False
        self._sent.clear()

    def stop_call(self):
        """End a loop."""
        self._sent.clear()
        self.reset_batch_stats()

    def get_nested_backend(self):
        """Return the backend of loops inside of tasks."""
        return self, -1

    @contextmanager
    def retrieval_context(self):
        """Let a worker that waits for an inner loop work on its tasks."""
        try:
            get_worker()
        except ValueError:
            yield
            return
        secede()
        try:
            yield
        finally:
            rejoin()

    def submit(self, func, callback=None):
        """Send a batch of tasks."""
        large = {}
        try:
            calls = [
                (
                    function,
                    [self._replace(value, large) for value in args],
                    {name: self._replace(value, large) for name, value in kwargs.items()},
                )
                for function, args, kwargs in func.items
            ]
            key = f"{funcname(func.items[0][0])}-{uuid4().hex}"
            future = self.client.submit(_Batch(calls), *large, key=key, **self.submit_options)
        except Exception as error:  # noqa: BLE001  # raised by joblib, in the thread of the caller
            future = Future()
            future.set_exception(error)
            callback(future)
            return future
        self._pending.add(future)
        if self._is_aborted:
            future.cancel()
        future.add_done_callback(callback)
        future.add_done_callback(self._pending.discard)
        return future

    apply_async = submit  # its name in joblib 1.4

    def retrieve_result_callback(self, future):
        """Return the result of a batch, which Dask computes again if it is lost."""
        try:
            return future.result()
        except Exception as error:
            # joblib drops the traceback, which ends in the worker.
            error.add_note("".join(format_exception(error)))
            raise

    def abort_everything(self, ensure_ready=True):
        """Cancel the tasks that have not begun."""
        self._is_aborted = True
        if self.client.status == "running":
            self.client.cancel(list(self._pending))

    def _replace(self, value, large):
        """Replace a large argument by its position in `large`, a dict of Dask futures."""
        future = self._scattered.get(id(value)) or self._future_of(value)
        return value if future is None else _Position(large.setdefault(future, len(large)))

    def _future_of(self, value):
        key, sent = id(value), self._sent
        reference, future = sent.get(key, (None, None))
        if reference is not None and reference() is value:
            return future
        try:
            reference = weakref.ref(value, lambda _: sent.pop(key, None))
        except TypeError:  # a list, a number or the like
            return None
        if sizeof(value) <= _LARGE:
            return None
        sent[key] = reference, self._send(value)
        return sent[key][1]

    def _send(self, data):
        """Leave data with the scheduler, which sends it again if a worker is lost."""
        # Dask warns of large data that passes through the scheduler.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PB"}):
            return self.client.submit(partial(_identity, data), pure=False)
