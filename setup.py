"""Everything is in pyproject.toml."""

# SPDX-License-Identifier: BSD-3-Clause

from setuptools import setup

setup()
