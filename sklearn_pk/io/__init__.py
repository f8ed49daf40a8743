"""Read expression tables and match them with slides."""

# SPDX-License-Identifier: BSD-3-Clause

from ._expression import read_expression
from ._matching import match_samples
from ._tables import read_table

__all__ = ["match_samples", "read_expression", "read_table"]
