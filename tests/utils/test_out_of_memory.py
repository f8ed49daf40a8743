"""Out-of-memory errors: recognised, memory freed, batches halved."""

# SPDX-License-Identifier: BSD-3-Clause

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from sklearn_pk.utils._out_of_memory import (
    Halving,
    attempt,
    describe_memory,
    explain_out_of_memory,
    free_device_memory,
    is_out_of_memory,
)

# Torch before 2.5 has it there only.
OutOfMemoryError = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OutOfMemoryError(""),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.0 GB)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_out_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
                     "that dataloader's workers are out of shared memory."),
        ValueError("out of memory"),
        OSError(12, "Cannot allocate memory"),
        KeyboardInterrupt("out of memory"),
    ],
)  # fmt: skip
def test_other_errors(error):
    assert not is_out_of_memory(error)


DOUBTFUL = [
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "GET was unable to find an engine to execute this computation",
    "CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseCreate(handle)`",
]


@pytest.mark.parametrize("text", DOUBTFUL)
def test_errors_that_mean_it_where_little_memory_is_left(monkeypatch, text):
    for free, expected in ((70, False), (3, True)):
        sizes = (free * 2**30, 80 * 2**30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, sizes=sizes: sizes)
        assert is_out_of_memory(RuntimeError(text), "cuda:1") == expected
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(("text", "expected"), [("20.50 GiB", True), ("1.00 GB", False)])
def test_buffers_of_mps(monkeypatch, text, expected):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**35)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**30)
    assert is_out_of_memory(RuntimeError(f"Invalid buffer size: {text}"), "mps") == expected


def test_import_does_not_load_torch():
    code = "import sys, sklearn_pk.utils._out_of_memory; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def fail(alive, error, kind=None):
    """Make a tensor, and fail while it is in use, three functions and two errors deep."""

    def inner():
        tensor = torch.zeros(10)
        alive.append(weakref.ref(tensor))
        raise error

    try:
        inner()
    except RuntimeError as first:
        other = torch.ones(10)
        alive.append(weakref.ref(other))
        if kind is None:
            raise
        raise kind("CUDA out of memory, again") from first


@pytest.mark.parametrize("kind", [None, RuntimeError])
def test_attempt_frees_memory(kind):
    alive = []
    result, failure = attempt(
        fail, alive, OutOfMemoryError("CUDA out of memory"), kind, device="cpu"
    )
    assert result is None
    assert "CUDA out of memory" in str(failure)
    assert failure.__traceback__ is not None, "the traceback is kept"
    assert [ref() for ref in alive] == [None, None]


def test_attempt_frees_reference_cycles():
    alive = []

    def circle():
        tensor = torch.zeros(10)
        holder = [tensor]
        holder.append(holder)
        alive.append(weakref.ref(tensor))
        raise OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        attempt(circle, device="cpu")
        assert alive[0]() is None
    finally:
        gc.enable()


def test_attempt_without_out_of_memory():
    assert attempt(divmod, 7, 2, device="cpu") == ((3, 1), None)
    with pytest.raises(RuntimeError, match="^wrong shape$"):
        attempt(fail, [], RuntimeError("wrong shape"), device="cpu")
    with pytest.raises(ZeroDivisionError):
        attempt(divmod, 7, 0, device="cpu")


def test_explained():
    alive = []
    with pytest.raises(MemoryError, match=r"^device='cpu': cpu.* is full$") as caught:
        with explain_out_of_memory("cpu", lambda memory: f"device='cpu': {memory} is full"):
            fail(alive, OutOfMemoryError("CUDA out of memory"))
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    assert [ref() for ref in alive] == [None, None]
    with pytest.raises(RuntimeError, match="^wrong shape$"):
        with explain_out_of_memory("cpu", str):
            raise RuntimeError("wrong shape")


def test_caches_are_emptied_where_there_are_any(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    for device in ("cpu", "meta", "cuda:1", "mps"):
        free_device_memory(device)
    assert emptied == ["cuda", "mps"]


def test_memory_of_devices(monkeypatch):
    sizes = {"cuda:1": (2**30, 80 * 2**30)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", sizes.__getitem__)
    assert describe_memory("cuda:1") == "cuda:1 (1.0 of 80.0 GiB free)"
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**34)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**35)
    assert describe_memory("mps") == "mps (0.0 of 16.0 GiB free)"
    assert describe_memory("meta") == "meta"

    def broken(device):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert describe_memory("cuda") == "cuda"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and RLIMIT_AS are Linux's")
def test_memory_of_a_process_that_is_limited():
    code = (
        "import resource, torch\n"
        "from sklearn_pk.utils._out_of_memory import describe_memory, is_out_of_memory\n"
        "print(describe_memory('cpu'))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))\n"
        "print(describe_memory('cpu'))\n"
        "try:\n"
        "    torch.empty(2**28)\n"
        "except RuntimeError as error:\n"
        "    print(is_out_of_memory(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    free, limited, known = done.stdout.splitlines()
    assert float(free.split()[3]) > float(limited.split()[3])
    assert limited.startswith("cpu (0.5 of ")
    assert known == "True"


def picky(most, seen):
    def function(first, last):
        seen.append((first, last))
        if last - first > most:
            raise OutOfMemoryError("CUDA out of memory")
        return list(range(first, last))

    return function


@pytest.mark.parametrize(
    ("size", "most", "n_items", "then", "seen"),
    [
        (4, 4, 6, 4, [(0, 4), (4, 6)]),
        (4, 3, 6, 2, [(0, 4), (0, 2), (2, 4), (4, 6)]),
        (None, 9, 6, None, [(0, 6)]),
        (None, 2, 6, 2, [(0, 6), (0, 3), (0, 2), (2, 4), (4, 6)]),
        # The last batch is smaller, and so is the batch that failed.
        (8, 2, 3, 2, [(0, 3), (0, 2), (2, 3)]),
    ],
)
def test_halving(size, most, n_items, then, seen):
    halving, calls = Halving(size, "cpu"), []
    parts = halving(picky(most, calls), n_items, str)
    assert [item for part in parts for item in part] == list(range(n_items))
    assert calls == seen
    assert halving.size == then
    # The reduced size is kept.
    calls.clear()
    halving(picky(most, calls), n_items, str)
    assert all(last - first <= most for first, last in calls)


def test_halving_of_batches_that_are_filled_up():
    halving, tried = Halving(8, "cpu", filled=True), []

    def function(first, last):
        tried.append((halving.size, first, last))
        if halving.size > 4:
            raise OutOfMemoryError("CUDA out of memory")

    halving(function, 1, str)
    assert tried == [(8, 0, 1), (4, 0, 1)]


def test_halving_ends():
    halving = Halving(4, "cpu")
    with pytest.raises(MemoryError, match="^no room on cpu") as caught:
        halving(picky(0, []), 3, lambda memory: f"no room on {memory}")
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
