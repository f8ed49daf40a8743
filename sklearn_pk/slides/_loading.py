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

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from ..utils._out_of_memory import explain_out_of_memory
from ._tiler import TiledSlide

MAX_WORKERS = 8
# Below this, starting a process takes longer than reading.
FEW_BATCHES = 4
# Of each worker: it reads one batch while the others wait in shared memory.
_BATCHES_AHEAD = 2
# A forked worker is there in milliseconds and needs no pickling; a spawned one imports torch for
# seconds and runs the script of the user again. What makes forking dangerous, threads of OpenMP
# and a CUDA device in use, is not touched by workers: they only read.
_START_METHOD = "fork" if sys.platform == "linux" else None
# In this order, so that the narrowest is found first.
_ERRORS = (FileNotFoundError, PermissionError, OSError, ValueError)


def read_ahead(function, items, ahead=2):
    """Apply a function in a thread to the next items while the last result is worked on."""
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
    """Return the error as a builtin one, which survives the way to another process."""
    return next(kind for kind in _ERRORS if isinstance(error, kind))(str(error))


def apply_transform(transform, tiles):
    """Prepare tiles by the function that belongs to an encoder."""
    import torch
    from PIL import Image

    images = [transform(Image.fromarray(tile)) for tile in tiles]
    for image in images:
        if not torch.is_tensor(image) or image.ndim != 3 or not image.is_floating_point():
            shown = f"{tuple(image.shape)} and {image.dtype}" if torch.is_tensor(image) else image
            raise TypeError(
                "The transform of an encoder must turn a PIL image into a float tensor of shape "
                f"(3, height, width), got {shown!r}."
            )
    return torch.stack(images).float()


class TileBatches:
    """Tiles by their place, as a map-style dataset of torch."""

    def __init__(self, slides, transform=None):
        self.slides = slides
        self.transform = transform
        self._position = self._read = None
        self._open = ExitStack()

    def __getitem__(self, index):
        """Read a batch."""
        import torch

        position, start, stop = index
        try:
            tiles = self._tiles(position, start, stop)
        except (OSError, ValueError) as error:
            return position, start, plain_error(error)
        if self.transform is not None:
            return position, start, apply_transform(self.transform, tiles)
        # Torch warns about memory that may not be written to.
        return position, start, torch.from_numpy(np.require(tiles, requirements=["C", "W"]))

    def _tiles(self, position, start, stop):
        slide = self.slides[position]
        if not isinstance(slide, TiledSlide):
            return np.asarray(slide[start:stop])
        reopen, self._position = position != self._position, None
        # An error leaves through the open slide, which is closed then and may name itself.
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


def _shared_memory():
    """Count the free bytes of shared memory, through which workers hand over tiles."""
    try:
        status = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return sys.maxsize
    return status.f_bavail * status.f_frsize


def count_workers(num_workers, device, batch_bytes):
    """Decide how many processes read tiles."""
    if num_workers is None:
        here = device == "cpu" or _START_METHOD is None
        num_workers = 0 if here else min(MAX_WORKERS, joblib.cpu_count() - 1)
    if multiprocessing.current_process().daemon:
        return 0
    # Half of it is for others; each worker has one batch in the making beside those that wait.
    fitting = _shared_memory() // 2 // (batch_bytes * (_BATCHES_AHEAD + 1))
    return min(num_workers, fitting)


def _start_worker(worker_id):
    """Prepare a worker: the main process handles Ctrl-C, and threads do not survive a fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    # What the main process has left, open HDF5 files for example, is not for workers to clear.
    gc.freeze()


def _as_it_is(batch):
    return batch


def _explain_memory(memory):
    return (
        f"Tiles that are read ahead do not fit into the memory of {memory}. Pass a smaller "
        "batch_size or fewer num_workers."
    )


def load_batches(dataset, plan, *, num_workers=0, pin_memory=False):
    """Read batches in order, ahead of whoever takes them."""
    if num_workers == 0:
        try:
            with explain_out_of_memory("cpu", _explain_memory):
                yield from read_ahead(dataset.__getitem__, plan, _BATCHES_AHEAD)
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
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=_START_METHOD,
        # Its own, or a seed for the workers would be drawn from the one of the user.
        generator=torch.Generator(),
    )
    with warnings.catch_warnings():
        # Python 3.12 and later warn about forks beside threads; see _START_METHOD.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        batches = iter(loader)
    try:
        # The memory that a CUDA device fetches from can be short, too.
        with explain_out_of_memory("cpu", _explain_memory):
            yield from batches
    finally:
        # Left to the garbage collector, workers would live as long as the traceback of an error.
        batches._shutdown_workers()


@contextmanager
def explain_lost_worker(in_work):
    """Name the slides in work if a process that reads has died."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        # Torch raises it wherever the main process is, even while it writes a file.
        if "DataLoader worker (pid" not in str(error):
            raise
        raise RuntimeError(
            f"A process that read tiles was killed ({error}). In work were: "
            f"{', '.join(map(repr, in_work()))}. Look for a lack of memory or a slide that crashes "
            "its decoder. With a store, a second run goes on after the last finished slide; "
            "num_workers=0 reads in this process."
        ) from error
