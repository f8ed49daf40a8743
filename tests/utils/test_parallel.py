"""joblib loops whose workers are killed."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import signal
import threading
import time
from concurrent.futures import CancelledError

import joblib
import numpy as np
import pytest

from sklearn_pk.utils import _parallel
from sklearn_pk.utils._parallel import (
    LostWorkerError,
    count_jobs,
    map_in_order,
    map_tasks,
    restore,
    share,
)


def square(number, fatal=(), once=None):
    """Kill the process for fatal numbers; for the number in the name of a file, once only."""
    is_first = once is not None and number == 5 and not once.exists()
    if is_first:
        once.touch()
    if is_first or number in fatal:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_a_worker_that_dies_once_costs_nothing(tmp_path):
    tasks = [(number, (), tmp_path / "once") for number in range(30)]
    results = list(map_tasks(square, tasks, n_jobs=2))
    assert sorted(results) == [(number, number**2) for number in range(30)]
    assert (tmp_path / "once").exists()


def test_a_fatal_task_is_found_and_costs_no_other():
    fatal = (0, 1, 29)  # the first two, and the last
    tasks = [(number, fatal) for number in range(30)]
    results = dict(map_tasks(square, tasks, n_jobs=2, name="slide {}".format))
    assert sorted(results) == list(range(30))
    for number, result in results.items():
        if number in fatal:
            assert isinstance(result, LostWorkerError)
            assert str(result).startswith(f"slide {number}: its worker process was killed")
            assert str(pickle.loads(pickle.dumps(result))) == str(result)
        else:
            assert result == number**2


def test_results_in_order_or_an_error(monkeypatch):
    tasks = [(number,) for number in range(9)]
    assert list(map_in_order(square, tasks, n_jobs=2)) == [number**2 for number in range(9)]

    def finish(*args, **keywords):
        yield from [(1, 1), (0, 0), (3, 9), (2, LostWorkerError("task 2", MemoryError()))]

    monkeypatch.setattr(_parallel, "map_tasks", finish)
    results = map_in_order(square, tasks)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(LostWorkerError, match="task 2: its worker process was killed"):
        next(results)


def test_results_are_yielded_as_tasks_finish():
    started = []

    def note(number):
        started.append(number)
        return number

    results = map_tasks(note, [(number,) for number in range(5)])
    assert next(results) == (0, 0)
    assert started == [0]
    results.close()


def test_an_error_of_a_task_is_raised_unchanged():
    with pytest.raises(TypeError, match="unsupported operand"):
        list(map_tasks(square, [("text",)], n_jobs=2))


def test_one_job_runs_in_this_process_whatever_the_joblib_config():
    with joblib.parallel_config(n_jobs=2):
        assert count_jobs(None) == 2
        assert count_jobs(1) == 1
        here = dict(map_tasks(threading.get_ident, [()] * 3, n_jobs=1))
        there = dict(map_tasks(os.getpid, [()] * 3))
    assert set(here.values()) == {threading.get_ident()}
    assert os.getpid() not in there.values()


def total(head, sizes, content):
    total = sum(array.sum() for array in restore(head, sizes, content))
    return total, isinstance(content, np.memmap)


def test_shared_values_are_memory_mapped_in_workers():
    rng = np.random.default_rng(0)
    value = [rng.normal(size=(n, 64)) for n in (3000, 7, 0, 12)]
    shared = share(value)
    assert len(shared[0]) < 2000
    results = dict(map_tasks(total, [shared] * 6, n_jobs=2))
    assert set(results.values()) == {(sum(array.sum() for array in value), True)}
    for array, other in zip(value, restore(*shared), strict=True):
        np.testing.assert_array_equal(other, array)
        assert np.shares_memory(other, shared[2]) == bool(array.size)
        assert other.ctypes.data % 8 == 0


def test_objects_of_a_local_class_can_be_shared():
    class Own:
        value = 3

    [own] = restore(*share([Own()]))
    assert own.value == 3


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


def test_what_a_worker_cannot_unpickle_is_not_a_lost_worker():
    with pytest.raises(RuntimeError, match="un-serialize") as caught:
        list(map_tasks(str, [(Unreadable(),)] * 5, n_jobs=2))
    assert not isinstance(caught.value, LostWorkerError)


def test_an_error_without_text():
    assert "(CancelledError: )" in str(LostWorkerError("slide", CancelledError()))


def test_no_warning_when_the_caller_stops(recwarn):
    results = map_tasks(time.sleep, [(0.05,)] * 20, n_jobs=2)
    next(results)
    results.close()
    assert [str(each.message) for each in recwarn] == []


def test_nothing_large_to_share():
    assert restore(*share(["a", 1])) == ["a", 1]
