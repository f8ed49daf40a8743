"""Warnings that point to the line of the user."""

# SPDX-License-Identifier: BSD-3-Clause

import sys
import warnings

# Packages whose lines are not those of the user.
_INSIDE = ("sklearn_pk", "sklearn")


def warn_user(text):
    """Warn where the user has called this package, however deep inside it the warning arises."""
    level, frame = 1, sys._getframe()
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
