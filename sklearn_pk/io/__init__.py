"""Read expression tables, match them with slides, and save models and maps."""

# SPDX-License-Identifier: BSD-3-Clause

from ._expression import read_expression
from ._maps import export_map
from ._matching import match_samples
from ._models import ModelVersionWarning, SavedModel, load_model, save_model
from ._tables import read_table

__all__ = [
    "ModelVersionWarning",
    "SavedModel",
    "export_map",
    "load_model",
    "match_samples",
    "read_expression",
    "read_table",
    "save_model",
]
