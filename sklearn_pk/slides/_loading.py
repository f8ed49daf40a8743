"""Read the tiles of many slides ahead of the model."""

# SPDX-License-Identifier: BSD-3-Clause

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from ..utils._device import use_device
from ..utils._out_of_memory import explain_out_of_memory
from ._encoders._inference import apply_transform
from ._tiler import TiledSlide

MAX_WORKERS = 8
# Per worker: it reads one batch while the others wait in shared memory.
_BATCHES_AHEAD = 2
# A forked worker starts in milliseconds and needs no pickling; a spawned one imports torch for
# seconds and runs the script of the user again. What makes forking dangerous, threads of OpenMP
# and a CUDA device in use, is not touched by workers: they only read.
_START_METHOD = "fork" if sys.platform == "linux" else None
# The most specific first.
_ERRORS = (FileNotFoundError, PermissionError, OSError, ValueError)


def read_ahead(function, items, ahead=_BATCHES_AHEAD):
    """Yield function(item) in order, computed in a thread up to `ahead` items early."""
    pending = deque()
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def plain_error(error):
    """Return the error as a builtin one, which can be pickled."""
    return next(kind for kind in _ERRORS if isinstance(error, kind))(str(error))


class TileBatches:
    """A map-style dataset: (position, start, stop) -> (position, start, tiles or error)."""

    def __init__(self, slides, transform=None):
        self.slides = slides
        self.transform = transform
        self._position = self._read = None
        self._open = ExitStack()

    def __getitem__(self, index):
        import torch

        position, start, stop = index
        try:
            tiles = self._read_tiles(position, start, stop)
        except (OSError, ValueError) as error:
            return position, start, plain_error(error)
        if self.transform is not None:
            return position, start, apply_transform(self.transform, tiles)
        # Torch warns about memory that is not writable.
        return position, start, torch.from_numpy(np.require(tiles, requirements=["C", "W"]))

    def _read_tiles(self, position, start, stop):
        slide = self.slides[position]
        if not isinstance(slide, TiledSlide):
            return np.asarray(slide[start:stop])
        reopen, self._position = position != self._position, None
        # An error passes through the context of the open slide, which names it and closes it.
        with self._open as stack:
            if reopen:
                stack.close()
                self._read = stack.enter_context(slide.open_tiles())
            tiles = self._read(start, stop)
            self._open = stack.pop_all()
        self._position = position
        return tiles

    def close(self):
        """Close the slide that is open."""
        self._open.close()
        self._position = self._read = None


def _free_shared_memory():
    """Return the free bytes of shared memory, through which workers pass tiles."""
    try:
        status = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return sys.maxsize
    return status.f_bavail * status.f_frsize


def count_workers(num_workers, device, batch_bytes):
    """Return the number of processes that read tiles."""
    if num_workers is None:
        use_thread = device == "cpu" or _START_METHOD is None
        num_workers = 0 if use_thread else min(MAX_WORKERS, joblib.cpu_count() - 1)
    if multiprocessing.current_process().daemon:
        return 0
    # Half of the memory stays free. A worker fills one batch besides those that wait.
    n_fitting = _free_shared_memory() // 2 // (batch_bytes * (_BATCHES_AHEAD + 1))
    return min(num_workers, n_fitting)


def _start_worker(worker_id):
    """Prepare a worker: the main process handles Ctrl-C, and threads do not survive a fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    # Objects of the main process, such as open HDF5 files, must not be finalised by workers.
    gc.freeze()


def _identity(batch):
    return batch


def _explain_memory(memory):
    return (
        f"Tiles that are read ahead do not fit into the memory of {memory}. Pass a smaller "
        "batch_size or fewer num_workers."
    )


def _read_pinned(dataset, device, index):
    """Read a batch into memory that a GPU can fetch from while the host continues."""
    position, start, tiles = dataset[index]
    if not isinstance(tiles, Exception):
        # The current device is that of the thread.
        with use_device(device):
            tiles = tiles.pin_memory()
    return position, start, tiles


def load_batches(dataset, plan, *, num_workers=0, pin_memory=None):
    """Yield the batches of a plan in order, read ahead in a thread or in processes."""
    if num_workers == 0:
        read = dataset.__getitem__
        if pin_memory is not None:
            read = partial(_read_pinned, dataset, pin_memory)
        try:
            with explain_out_of_memory("cpu", _explain_memory):
                yield from read_ahead(read, plan)
        finally:
            dataset.close()
        return
    import torch
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=plan,
        num_workers=num_workers,
        prefetch_factor=_BATCHES_AHEAD,
        collate_fn=_identity,
        pin_memory=pin_memory is not None,
        worker_init_fn=_start_worker,
        multiprocessing_context=_START_METHOD,
        # Otherwise a seed for the workers is drawn from the generator of the user.
        generator=torch.Generator("cpu"),
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn about forks beside threads; see _START_METHOD.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        batches = iter(loader)
    try:
        # The memory that a CUDA device fetches from can run out, too.
        with explain_out_of_memory("cpu", _explain_memory):
            yield from batches
    finally:
        # Ends the workers now; the traceback of an error would keep `batches`, and so them, alive.
        batches.__del__()


@contextmanager
def explain_lost_worker(unfinished):
    """Name the slides being processed if a process that reads is killed."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        # Torch raises it wherever the main process is, even while it writes a file.
        if "DataLoader worker (pid" not in str(error):
            raise
        raise RuntimeError(
            f"A process that read tiles was killed ({error}). Slides being processed: "
            f"{', '.join(map(repr, unfinished()))}. Look for a lack of memory or a slide that "
            "crashes its decoder. With a store, a second run continues after the last finished "
            "slide; num_workers=0 reads in this process."
        ) from error
