"""Handling of out-of-memory errors of any device."""

# SPDX-License-Identifier: BSD-3-Clause

import gc
import os
import re
import sys
import traceback
from contextlib import contextmanager

# Texts of torch errors without a type of their own: of CUDA and MPS, pinned memory included; of
# cuBLAS and cuDNN; of the CPU; of C++ and the operating system.
_TEXTS = (
    "out of memory",
    "_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Cannot allocate memory",
)
# Texts that have other causes as well: a library that cannot be initialised, a shape that it does
# not support.
_DOUBTFUL_TEXTS = (
    "_STATUS_NOT_INITIALIZED",
    "unable to find an engine",
    "_STATUS_INSUFFICIENT_RESOURCES",
    "Invalid buffer size",
)
_GIB = 2**30


def is_out_of_memory(error, device="cpu"):
    """Return whether an error means that a device has run out of memory."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # The type has different modules in different versions of torch.
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    text = str(error)
    if any(each in text for each in _TEXTS):
        return True
    return any(each in text for each in _DOUBTFUL_TEXTS) and _is_low(device, text)


def _is_low(device, text):
    """Return whether the memory of a GPU is almost used up, or a buffer too large for the rest."""
    sizes = _sizes_of_memory(device)
    if sizes is None or str(device).startswith("cpu"):
        return False
    free, total = sizes
    buffer = re.search(r"buffer size: ([\d.]+) ([KMG])i?B", text)
    asked = float(buffer[1]) * 1024 ** (" KMG".index(buffer[2])) if buffer else 0
    return free < max(_GIB, total / 20) or asked > free / 2


def free_device_memory(device):
    """Free unused memory of a device."""
    import torch

    gc.collect()
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
    elif kind == "mps":
        torch.mps.empty_cache()


def _sizes_of_memory(device):
    """Return free and total bytes of a device, None if they are not known."""
    import torch

    kind = torch.device(device).type
    try:
        if kind == "cuda":
            return torch.cuda.mem_get_info(device)
        if kind == "mps":
            total = torch.mps.recommended_max_memory()
            return total - torch.mps.driver_allocated_memory(), total
        return _memory_of_process() if kind == "cpu" else None
    except (OSError, RuntimeError, ValueError):
        # The caller is about to raise an error, whose text needs no numbers.
        return None


def describe_memory(device):
    """Return the device, with its free and total memory if known."""
    sizes = _sizes_of_memory(device)
    if sizes is None:
        return str(device)
    free, total = (max(0, size) / _GIB for size in sizes)
    return f"{device} ({free:.1f} of {total:.1f} GiB free)"


def _memory_of_process():
    """Return free and total bytes of the machine, or of the limit of the process if smaller."""
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


def _clear_frames(error):
    """Clear the frames of an error, whose variables would keep tensors alive."""
    errors = [error]
    seen = set()
    while errors:
        error = errors.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            errors += [error.__cause__, error.__context__]


def attempt(function, *arguments, device):
    """Call a function; return its result and None, or None and an out-of-memory error."""
    try:
        return function(*arguments), None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error, device):
            raise
        failure = error
    # After the except block, which itself refers to the error.
    _clear_frames(failure)
    free_device_memory(device)
    return None, failure


@contextmanager
def explain_out_of_memory(device, explain):
    """Turn an out-of-memory error into a MemoryError with an explanation."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error, device):
            raise
        _clear_frames(error)
        free_device_memory(device)
        raise MemoryError(explain(describe_memory(device))) from error


class Halving:
    """Process items in batches; halve the batch size permanently when memory runs out."""

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
