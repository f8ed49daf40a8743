"""Device and precision of torch."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import os
import sys
import tempfile
import threading
from contextlib import contextmanager, nullcontext
from functools import cache

from ._reporting import warn_user

try:
    import fcntl
except ImportError:  # on Windows, where processes are not counted
    fcntl = None

# Processes that are counted on one device.
_MOST_PROCESSES = 64

# Files of GPUs that this process has picked, locked until it ends.
_CLAIMS = {}

# The precision holds for the whole process, so blocks that overlap in threads share one.
_LOCK = threading.Lock()
_PRECISION = {"users": 0, "before": None}


def pick_device(device):
    """Return the name of a torch device; "auto" is resolved, a device that is absent refused."""
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return "cuda" if not _is_worker() else f"cuda:{_pick_gpu(os.getpid())}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ValueError(
            f"device={device!r} is not available here ({error}). Use 'auto' or 'cpu'."
        ) from error
    if torch.device(device).type == "meta":
        raise ValueError(f"device={device!r} computes shapes, not numbers. Use 'auto' or 'cpu'.")
    return device


def _is_worker():
    """Return whether this process is a worker of joblib, Dask or multiprocessing."""
    if multiprocessing.parent_process() is not None:
        return True
    worker = sys.modules.get("distributed.worker")
    try:
        return worker is not None and bool(worker.get_worker())
    except ValueError:  # not within a task
        return False


@cache
def _pick_gpu(process):
    """Return the number of a GPU that the fewest workers use, and keep it for this process."""
    import torch

    numbers = range(torch.cuda.device_count())
    with _lock(_path_of_lock("all", "pick"), wait=True):
        number = min(numbers, key=lambda each: count_processes(each, "worker"))
        _CLAIMS[process] = _lock_free_file(number, "worker")
        n_workers = count_processes(number, "worker")
    if n_workers > 1:
        warn_user(
            f"device='auto': {n_workers} worker processes share the GPU cuda:{number}, which is "
            "slower than one, and may exceed its memory. Use no more workers than GPUs (n_jobs), "
            "or device='cpu'."
        )
    return number


def _path_of_lock(name, purpose):
    user = os.getuid() if hasattr(os, "getuid") else 0
    return os.path.join(tempfile.gettempdir(), f"sklearn_pk-{user}-{name}-{purpose}.lock")


def _paths_of_gpu(device, purpose):
    """Return the files that processes on a GPU lock, one each."""
    import torch

    number = device if isinstance(device, int) else torch.device(device).index
    number = torch.cuda.current_device() if number is None else number
    # Workers may number GPUs differently (CUDA_VISIBLE_DEVICES).
    name = getattr(torch.cuda.get_device_properties(number), "uuid", number)
    return [_path_of_lock(name, f"{purpose}-{slot}") for slot in range(_MOST_PROCESSES)]


def _lock(path, wait=False):
    """Lock a file until it is closed or the process ends; return None if another has locked it."""
    file = open(path, "a")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
    return file


def _lock_free_file(device, purpose):
    return next(filter(None, map(_lock, _paths_of_gpu(device, purpose))), None)


def count_processes(device, purpose="training"):
    """Count the processes on a GPU, by the files that they lock."""
    n_processes = 0
    for path in filter(os.path.exists, _paths_of_gpu(device, purpose)):
        file = _lock(path)
        n_processes += file is None
        if file is not None:
            file.close()
    return n_processes


@contextmanager
def occupy(device):
    """Let other processes know that this one uses a GPU."""
    import torch

    device = torch.device(device)
    file = _lock_free_file(device, "training") if device.type == "cuda" else None
    try:
        yield
    finally:
        if file is not None:
            file.close()


def use_device(device):
    """Make a CUDA device the current one, so that nothing is allocated on the first."""
    import torch

    device = torch.device(device)
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def free_memory(device):
    """Return the bytes of a CUDA device that torch can allocate, its own cache included."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def pick_dtype(dtype, device):
    """Return the precision, for "auto" the one that suits the device."""
    import torch

    if dtype != "auto":
        return dtype
    if torch.device(device).type != "cuda":
        return "float32"
    # Where bfloat16 is emulated, it is slower than float16.
    fast = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float16"


@contextmanager
def full_precision():
    """Multiply float32 matrices in full precision, whatever the user has set."""
    import torch

    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    with _LOCK:
        if not _PRECISION["users"]:
            _PRECISION["before"] = [each.fp32_precision for each in backends]
            for each in backends:
                each.fp32_precision = "ieee"
        _PRECISION["users"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _PRECISION["users"] -= 1
            if not _PRECISION["users"]:
                for each, before in zip(backends, _PRECISION["before"], strict=True):
                    each.fp32_precision = before
