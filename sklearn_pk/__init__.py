"""Predict bulk gene expression from H&E slides with prior knowledge on gene-gene co-expression."""

# SPDX-License-Identifier: BSD-3-Clause

__version__ = "0.1.0.dev0"

__all__ = ["__version__"]
