"""What to do when a device has no memory left."""

# SPDX-License-Identifier: BSD-3-Clause

import gc
import os
import sys
import traceback
from contextlib import contextmanager

# What torch says in errors that have no type of their own: CUDA and MPS, for pinned memory too;
# cuBLAS and cuDNN; the CPU; and C++ and the system underneath.
_TEXTS = (
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Cannot allocate memory",
)
_GIB = 2**30


def is_out_of_memory(error):
    """Tell whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # Torch has moved this type, so it is known by its name.
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return any(text in str(error) for text in _TEXTS)


def free_device_memory(device):
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def describe_memory(device):
    """Name a device and its memory."""
    import torch

    kind = torch.device(device).type
    sizes = None
    try:
        if kind == "cuda":
            sizes = torch.cuda.mem_get_info(device)
        elif kind == "mps":
            total = torch.mps.recommended_max_memory()
            sizes = total - torch.mps.driver_allocated_memory(), total
        elif kind == "cpu":
            sizes = _memory_of_process()
    except (OSError, RuntimeError, ValueError):
        # This is part of an error's text, which must not fail for want of a number.
        sizes = None
    if sizes is None:
        return str(device)
    free, total = (max(0, size) / _GIB for size in sizes)
    return f"{device} ({free:.1f} of {total:.1f} GiB free)"


def _memory_of_process():
    """Return free and total bytes: those of the machine, or of a smaller limit such as ulimit's."""
    if sys.platform != "linux":
        return None
    import resource

    with open("/proc/meminfo", encoding="ascii") as file:
        known = dict(line.split(":") for line in file)
    free, total = (int(known[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < total:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        free, total = min(free, limit - used), limit
    return free, total


def _let_go(error):
    """Drop the variables of all functions that an error has left, which would keep tensors."""
    errors = [error]
    seen = set()
    while errors:
        error = errors.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            errors += [error.__cause__, error.__context__]


def attempt(function, *arguments, device):
    """Call a function; where memory runs out, free what it has used."""
    try:
        return function(*arguments), None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error
    # Not before the end of the except block, within which the error is still being handled.
    _let_go(failure)
    free_device_memory(device)
    return None, failure


@contextmanager
def explain_out_of_memory(device, explain):
    """Say what to do when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _let_go(error)
        free_device_memory(device)
        raise MemoryError(explain(describe_memory(device))) from error


class Halving:
    """Work through items in batches, which are halved for good where memory does not suffice."""

    def __init__(self, size, device, *, filled=False):
        self.size = size
        self.device = device
        self.filled = filled

    def __call__(self, function, n_items, explain):
        """Call a function on all items."""
        results, first = [], 0
        while first < n_items:
            last = n_items if self.size is None else min(first + self.size, n_items)
            result, failure = attempt(function, first, last, device=self.device)
            if failure is None:
                results.append(result)
                first = last
                continue
            tried = self.size if self.filled and self.size else last - first
            if tried == 1:
                raise MemoryError(explain(describe_memory(self.device))) from failure
            self.size = -(-tried // 2)
        return results
