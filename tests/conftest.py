"""Fixtures shared by tests of several parts."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from pathlib import Path

import pytest

from sklearn_pk.datasets import load_brca_expression, load_cmu_slide


@pytest.fixture(scope="session")
def project_root():
    """Root of the checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wait_for_files():
    """Return a function that waits until a store has some files, while a process runs."""

    def wait(store, number, process):
        deadline = time.monotonic() + 120
        while len(list(store.glob("*.h5"))) < number:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


@pytest.fixture(scope="session")
def cmu_slide():
    """Path of the shipped H&E slide."""
    return load_cmu_slide().path


@pytest.fixture(scope="session")
def brca_expression():
    """Real expression, 250 samples x 1,000 genes; a test that changes it works on a copy."""
    return load_brca_expression().expression
