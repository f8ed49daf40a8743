"""Progress bars and warnings."""

# SPDX-License-Identifier: BSD-3-Clause

import io
import multiprocessing
import re
from contextlib import contextmanager, redirect_stderr

import numpy as np
import pytest

from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.utils import _reporting
from sklearn_pk.utils._annotation import is_unlogged
from sklearn_pk.utils._reporting import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def terminal(monkeypatch, parent=None):
    """Capture standard error as a terminal; a fixture would be undone by pytest."""
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    with redirect_stderr(Terminal()) as stderr:
        yield stderr


def test_bar_on_a_terminal(monkeypatch):
    with terminal(monkeypatch) as stderr:
        assert list(progress(range(3), desc="counting", verbose=1)) == [0, 1, 2]
    assert "counting" in stderr.getvalue()


def test_lines_in_a_log(monkeypatch):
    times = iter(range(0, 1000, 4))
    monkeypatch.setattr(_reporting.time, "monotonic", lambda: next(times))
    with redirect_stderr(io.StringIO()) as stderr:
        bar = progress(range(9), desc="Encoding", verbose=1, unit="slide")
        bar.mininterval = 0
        for _ in bar:
            pass
    *lines, last = stderr.getvalue().splitlines()
    assert 1 < len(lines) < 9
    for line in (*lines, last):
        assert re.fullmatch(r"Encoding: \d of 9 slide, \d\d:\d\d elapsed, .* left", line)
    assert last.startswith("Encoding: 9 of 9")


@pytest.mark.parametrize(("verbose", "parent"), [(0, None), (1, "the process that started it")])
def test_silent_unless_asked_for_and_in_a_worker(monkeypatch, verbose, parent):
    with terminal(monkeypatch, parent) as stderr:
        list(progress(range(3), desc="counting", verbose=verbose))
    assert stderr.getvalue() == ""


def test_training_shows_losses_and_correlation(monkeypatch):
    X = [[float(number)] for number in range(20)]
    y = [[number, -number] for number in range(20)]
    with terminal(monkeypatch) as stderr:
        PriorKnowledgeRegressor(max_epochs=3, verbose=1, random_state=0).fit(X, y)
    for name in ("training", "train_loss=", "valid_loss=", "valid_r=", "best="):
        assert name in stderr.getvalue()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rng: rng.negative_binomial(1, 0.001, size=(300, 20)), True),  # counts
        (lambda rng: rng.gamma(0.2, 50, size=(20, 50)), True),  # FPKM
        (lambda rng: np.log2(rng.negative_binomial(1, 0.001, size=(30, 20)) + 1), False),
        (lambda rng: rng.normal(size=(30, 20)) * 400, False),  # centred
        (lambda rng: rng.uniform(1000, 2000, size=(30, 20)), False),  # large, not skewed
        (lambda rng: np.zeros((3, 2)), False),
    ],
)
def test_expression_that_is_not_logged(make, expected):
    assert is_unlogged(make(np.random.default_rng(0))) is expected
