"""Choice of the device, its precision, and workers that share it."""

# SPDX-License-Identifier: BSD-3-Clause

import threading

import pytest
import torch

from sklearn_pk.utils import _device
from sklearn_pk.utils._device import full_precision, pick_device
from tests.pretended_cuda import pretended_cuda


def test_meta_is_refused():
    for device in ("meta", "meta:0"):
        with pytest.raises(ValueError, match="computes shapes, not numbers"):
            pick_device(device)


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_precision_that_was_set_by_its_new_name(before):
    matmul = torch.backends.cuda.matmul
    kept = matmul.fp32_precision
    matmul.fp32_precision = before
    try:
        with full_precision():
            assert matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == before
    finally:
        matmul.fp32_precision = kept


def test_precision_of_overlapping_threads():
    matmul, kept = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    inside, leave, found = threading.Event(), threading.Event(), []

    def other():
        with full_precision():
            inside.set()
            leave.wait(10)
            found.append(matmul.fp32_precision)

    thread = threading.Thread(target=other)
    try:
        with full_precision():
            thread.start()
            assert inside.wait(10)
        assert matmul.fp32_precision == "ieee", "the other thread still needs it"
        leave.set()
        thread.join()
        assert (found, matmul.fp32_precision) == (["ieee"], "tf32")
    finally:
        leave.set()
        matmul.fp32_precision = kept


@pytest.fixture
def workers(monkeypatch):
    """Pretend to be one worker after the other, all of which live on."""
    monkeypatch.setattr(_device, "_is_worker", lambda: True)
    monkeypatch.setattr(_device, "_CLAIMS", {})
    numbers = iter(range(100))
    monkeypatch.setattr(_device.os, "getpid", lambda: -1 - next(numbers))
    yield
    for file in _device._CLAIMS.values():
        file.close()
    _device._pick_gpu.cache_clear()


def test_workers_take_a_gpu_each(workers):
    with pretended_cuda(count=3):
        found = [pick_device("auto") for _ in range(3)]
        assert found == ["cuda:0", "cuda:1", "cuda:2"]
        with pytest.warns(UserWarning, match="2 worker processes share the GPU cuda:0"):
            assert pick_device("auto") == "cuda:0"


def test_the_main_process_takes_the_first_gpu():
    with pretended_cuda(count=2):
        assert pick_device("auto") == "cuda"
    assert pick_device("auto") in ("cpu", "cuda")
