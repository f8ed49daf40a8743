"""joblib backend for Dask."""

# SPDX-License-Identifier: BSD-3-Clause

import threading

import joblib
import numpy as np
import pytest

distributed = pytest.importorskip("distributed")
DaskBackend = pytest.importorskip("sklearn_pk.utils._dask").DaskBackend

pytestmark = pytest.mark.filterwarnings("ignore")  # of distributed itself, whatever its version


def test_no_client_and_no_worker():  # before there is one in this module
    with pytest.raises(ValueError, match="no Dask client"):
        DaskBackend()
    with distributed.Client(processes=False, n_workers=0, dashboard_address=None) as client:
        backend = DaskBackend(client=client, wait_for_workers_timeout=0.1)
        with pytest.raises(TimeoutError, match=r"no worker after 0\.1 s"):
            backend.effective_n_jobs(-1)


@pytest.fixture(scope="module")
def client():
    """A cluster of two threads in this process."""
    with distributed.Client(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as client:
        yield client


@pytest.fixture
def parallel(client):
    return joblib.Parallel(backend=DaskBackend())


def test_results_in_order(parallel):
    assert parallel(joblib.delayed(abs)(-n) for n in range(40)) == list(range(40))


def test_large_arguments_are_sent_once(parallel, monkeypatch):
    sent, send = [], DaskBackend._send
    monkeypatch.setattr(DaskBackend, "_send", lambda *args: sent.append(args) or send(*args))
    large, other = np.arange(1000.0), np.ones(1000)
    calls = [joblib.delayed(np.dot)(large, b=other) for _ in range(9)]
    assert parallel(calls) == [large.sum()] * 9
    assert len(sent) == 2
    calls = [joblib.delayed(np.sum)(np.full(1000, n)) for n in range(9)]
    assert parallel(calls) == [1000 * n for n in range(9)]


def test_scattered_arguments_are_kept_between_loops(client, monkeypatch):
    large = np.arange(1000.0)
    backend = DaskBackend(scatter=[large])
    monkeypatch.setattr(DaskBackend, "_send", None)
    for _ in range(2):
        calls = [joblib.delayed(np.sum)(large) for _ in range(3)]
        assert joblib.Parallel(backend=backend)(calls) == [large.sum()] * 3


def divide(number):
    return 1 / number


def test_an_error_has_the_traceback_of_the_worker(parallel):
    with pytest.raises(ZeroDivisionError) as caught:
        parallel(joblib.delayed(divide)(number) for number in (2, 1, 0))
    assert "return 1 / number" in caught.value.__notes__[0]
    # The backend is of use afterwards.
    assert parallel([joblib.delayed(divide)(1)]) == [1]


def test_an_argument_that_cannot_be_pickled_ends_the_loop(parallel):
    tasks = [1] * 30 + [threading.Lock()]  # far enough back to be sent by a callback
    with pytest.raises(TypeError, match="pickle"):
        parallel(joblib.delayed(divide)(task) for task in tasks)


def total(number):
    parallel = joblib.Parallel(n_jobs=-1)
    assert isinstance(joblib.parallel.get_active_backend()[0], DaskBackend)
    return sum(parallel(joblib.delayed(abs)(each) for each in range(number)))


def test_loops_inside_of_tasks_do_not_wait_for_each_other(parallel):
    assert parallel(joblib.delayed(total)(n) for n in range(6)) == [0, 0, 1, 3, 6, 10]


def test_tasks_are_cancelled_when_the_caller_stops(client):
    started = []
    parallel = joblib.Parallel(backend=DaskBackend(), return_as="generator_unordered", batch_size=1)
    results = parallel(joblib.delayed(started.append)(n) for n in range(1000))
    next(results)
    results.close()
    assert len(started) < 1000


def test_parameters_of_the_backend(client):
    with pytest.raises(TypeError, match="scatter must be a list or tuple, got ndarray"):
        DaskBackend(scatter=np.ones(3))
    with joblib.parallel_config(backend=DaskBackend(priority=3)):
        assert joblib.Parallel()(joblib.delayed(abs)(n) for n in (-1, 2)) == [1, 2]
