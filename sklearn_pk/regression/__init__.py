"""Regression: from bags of tile features to the expression of all genes."""

# SPDX-License-Identifier: BSD-3-Clause

from ._layer import PriorKnowledgeLinear
from ._regressor import PriorKnowledgeRegressor

__all__ = ["PriorKnowledgeLinear", "PriorKnowledgeRegressor"]
