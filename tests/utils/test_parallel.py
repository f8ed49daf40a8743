"""Loops of joblib whose workers die."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import signal
import threading
import time

import joblib
import numpy as np
import pytest

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


@pytest.mark.parametrize("fatal", [(13,), (0, 29), (7, 8, 9)])
def test_a_fatal_task_is_found_and_costs_no_other(fatal):
    tasks = [(number, fatal) for number in range(30)]
    results = dict(map_tasks(square, tasks, n_jobs=2, name="slide {}".format))
    assert sorted(results) == list(range(30))
    for number, result in results.items():
        if number in fatal:
            assert isinstance(result, LostWorkerError)
            assert str(result).startswith(
                f"slide {number}: the process that worked on it was killed"
            )
            assert str(pickle.loads(pickle.dumps(result))) == str(result)
        else:
            assert result == number**2


def test_in_order_or_not_at_all():
    assert list(map_in_order(square, [(number,) for number in range(9)], n_jobs=2)) == [
        number**2 for number in range(9)
    ]
    with pytest.raises(LostWorkerError, match="task 2: the process"):
        list(map_in_order(square, [(number, (2,)) for number in range(9)], n_jobs=2))


def test_results_are_there_as_they_come():
    started = []

    def note(number):
        started.append(number)
        return number

    results = map_tasks(note, [(number,) for number in range(5)])
    assert next(results) == (0, 0)
    assert started == [0]
    results.close()


def test_an_error_of_a_task_is_raised_as_it_is():
    with pytest.raises(TypeError, match="unsupported operand"):
        list(map_tasks(square, [("text",)], n_jobs=2))


def test_one_job_is_this_process_whatever_joblib_is_set_to():
    with joblib.parallel_config(n_jobs=2):
        assert count_jobs(None) == 2
        assert count_jobs(1) == 1
        here = dict(map_tasks(threading.get_ident, [()] * 3, n_jobs=1))
        there = dict(map_tasks(os.getpid, [()] * 3))
    assert set(here.values()) == {threading.get_ident()}
    assert os.getpid() not in there.values()


class Counted:
    """Count how often it is pickled."""

    n_pickled = 0

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        type(self).n_pickled += 1
        return Counted, (self.array,)


def total(head, sizes, content):
    return sum(each.array.sum() for each in restore(head, sizes, content))


def test_what_is_shared_is_taken_apart_once():
    rng = np.random.default_rng(0)
    value = [Counted(rng.normal(size=(n, 64))) for n in (3000, 7, 0, 12)]
    Counted.n_pickled = 0
    shared = share(value)
    assert len(shared[0]) < 2000
    results = dict(map_tasks(total, [shared] * 6, n_jobs=2))
    assert Counted.n_pickled == 4
    expected = sum(each.array.sum() for each in value)
    assert set(results.values()) == {expected}
    for each, other in zip(value, restore(*shared), strict=True):
        np.testing.assert_array_equal(other.array, each.array)
        assert np.shares_memory(other.array, shared[2]) == bool(each.array.size)
        assert other.array.ctypes.data % 8 == 0


def test_nothing_to_share():
    assert restore(*share(["a", 1])) == ["a", 1]
