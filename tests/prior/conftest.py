"""Fixtures of the tests of prior knowledge."""

# SPDX-License-Identifier: BSD-3-Clause

import pytest


@pytest.fixture(scope="session")
def genes(brca_expression):
    """Return the shipped expression with genes as rows."""
    return brca_expression.T
