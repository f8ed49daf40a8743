"""Fixtures of the display tests."""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib as mpl
import pytest


@pytest.fixture(autouse=True)
def plt():
    """Return pyplot without a screen, and close all figures after the test."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")
