"""joblib's backend for Dask, without the faults that end a long run."""

# SPDX-License-Identifier: BSD-3-Clause

import asyncio
from concurrent.futures import Future
from functools import partial
from uuid import uuid4

import dask
import joblib
from joblib._dask import Batch, DaskDistributedBackend
from joblib._utils import _TracebackCapturingWrapper


def _give(data):
    return data


class _KeepingClient:
    """A client of Dask that leaves scattered data with the scheduler."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        return getattr(self.client, name)

    def keep(self, data):
        # Dask would warn that the data go through the scheduler, as they are meant to.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PB"}):
            return self.client.submit(partial(_give, data), pure=False)

    async def scatter(self, data, **options):
        return self.keep(data)


class _DurableBatch(Batch):
    """Tasks of a worker, whose own loops are as durable."""

    def __call__(self, tasks=None):
        with joblib.parallel_config(backend=DurableDaskBackend()):
            return [function(*args, **kwargs) for function, args, kwargs in tasks]


class DurableDaskBackend(DaskDistributedBackend):
    """joblib's backend for Dask, for loops that go on when a worker dies."""

    def __init__(self, *, scatter=None, client=None, wait_for_workers_timeout=120, **options):
        super().__init__(
            client=getattr(client, "client", client),
            wait_for_workers_timeout=wait_for_workers_timeout,
            **options,
        )
        self.client = _KeepingClient(self.client)
        self._following = set()
        self._is_aborted = False
        self._scatter = list(scatter or ())
        self.data_futures = {id(data): self.client.keep(data) for data in self._scatter}

    def __reduce__(self):
        return DurableDaskBackend, ()

    def get_nested_backend(self):
        """Return the backend of loops inside of loops."""
        return DurableDaskBackend(client=self.client), -1

    def effective_n_jobs(self, n_jobs):
        """Count the workers; with one, too, the caller is none of them."""
        return max(2, super().effective_n_jobs(n_jobs))

    async def _to_func_args(self, func):
        _, tasks = await super()._to_func_args(func)
        return _DurableBatch(tasks), tasks

    def start_call(self):
        """Begin a loop."""
        self._is_aborted = False
        super().start_call()

    def submit(self, func, callback=None):
        """Send a batch of tasks."""
        result = Future()
        result.get = result.result  # as joblib calls it
        self.client.loop.add_callback(self._start, func, callback, result)
        return result

    apply_async = submit  # its name in joblib 1.4

    def _start(self, func, callback, result):
        if self._is_aborted:
            return
        following = asyncio.ensure_future(self._follow(func, callback, result))
        self._following.add(following)
        following.add_done_callback(self._following.discard)

    async def _follow(self, func, callback, result):
        """Wait for the result of a batch, which may be lost and computed again."""
        try:
            batch, tasks = await self._to_func_args(func)
            future = self.client.submit(
                _TracebackCapturingWrapper(batch),
                tasks=tasks,
                key=f"{batch!r}-{uuid4().hex}",
                **self.submit_kwargs,
            )
            outcome = await self.client.gather(future, asynchronous=True)
        except Exception as error:  # noqa: BLE001  # is raised where the result is taken
            outcome = error
        result.set_result(outcome)
        callback(outcome)

    async def _collect(self):
        """Leave out what joblib does here: each result is followed by itself."""

    def retrieve_result_callback(self, out):
        """Return a result."""
        if isinstance(out, BaseException):
            raise out
        return super().retrieve_result_callback(out)

    def abort_everything(self, ensure_ready=True):
        """Cancel all tasks."""
        self._is_aborted = True
        for following in list(self._following):
            # In its own thread; without anybody to wait for it, Dask cancels the task.
            self.client.loop.add_callback(following.cancel)
