"""Helpers shared by all parts of sklearn_pk."""

# SPDX-License-Identifier: BSD-3-Clause

from ._bags import check_bag, check_bags, is_bag_input, validate_bags
from ._device import pick_device
from ._discovery import all_estimators, all_public_objects
from ._parallel import register_dask
from ._progress import progress
from ._validation import check_expression, check_groups, check_sample_names

__all__ = [
    "all_estimators",
    "all_public_objects",
    "check_bag",
    "check_bags",
    "check_expression",
    "check_groups",
    "check_sample_names",
    "is_bag_input",
    "pick_device",
    "progress",
    "register_dask",
    "validate_bags",
]
