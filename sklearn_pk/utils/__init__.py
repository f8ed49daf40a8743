"""Utilities shared by all parts of sklearn_pk."""

# SPDX-License-Identifier: BSD-3-Clause

from ._bags import check_bags, validate_bags
from ._discovery import all_estimators, all_public_objects
from ._parallel import register_dask
from ._patients import check_groups
from ._validation import check_expression

__all__ = [
    "all_estimators",
    "all_public_objects",
    "check_bags",
    "check_expression",
    "check_groups",
    "register_dask",
    "validate_bags",
]
