"""Threads of our own around single-threaded linear algebra."""

# SPDX-License-Identifier: BSD-3-Clause

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_info, threadpool_limits

# The limit holds for the whole process, so fits that overlap in threads share one.
_LOCK = threading.Lock()
_SHARED = {"users": 0, "limit": None, "n_threads": 1}


def _enter():
    with _LOCK:
        if not _SHARED["users"]:
            pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            _SHARED["n_threads"] = max((pool["num_threads"] for pool in pools), default=1)
            _SHARED["limit"] = threadpool_limits(1, user_api="blas")
        _SHARED["users"] += 1
        return _SHARED["n_threads"]


def _leave():
    with _LOCK:
        _SHARED["users"] -= 1
        if not _SHARED["users"]:
            _SHARED["limit"].restore_original_limits()


@contextmanager
def blas_threads():
    """Give the threads of the linear algebra library to tasks of ours."""
    n_threads = _enter()
    try:
        with ThreadPoolExecutor(n_threads) as executor:
            yield executor.map
    finally:
        _leave()
