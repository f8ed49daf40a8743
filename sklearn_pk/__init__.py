"""Predict bulk gene expression from H&E slides with prior knowledge on gene-gene co-expression."""

# SPDX-License-Identifier: BSD-3-Clause

from importlib import import_module as _import_module

__version__ = "0.1.0.dev0"

__all__ = ["__version__"]

_SUBPACKAGES = (
    "datasets",
    "io",
    "metrics",
    "model_selection",
    "plotting",
    "prior",
    "regression",
    "slides",
    "utils",
)


def __dir__():
    return [*__all__, *_SUBPACKAGES]


def __getattr__(name):
    # Not before they are needed: regression imports torch.
    if name in _SUBPACKAGES:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
