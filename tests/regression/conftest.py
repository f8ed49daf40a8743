"""Data that tests of several modules share; others make their own."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest


@pytest.fixture(scope="module")
def data():
    """Return features of 40 slides with 5 super-tiles each, and 12 genes that depend on them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 5, 6)).astype(np.float32)
    return X, X.mean(axis=1) @ rng.normal(size=(6, 12)) + rng.normal(size=(40, 12))
