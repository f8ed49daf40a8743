"""Regression: from bags of tile features to the expression of all genes."""

# SPDX-License-Identifier: BSD-3-Clause

from ._inject import inject_prior_knowledge
from ._layer import PriorKnowledgeLinear
from ._regressor import PriorKnowledgeRegressor
from ._regressor_cv import PriorKnowledgeRegressorCV
from ._ridge import PriorKnowledgeRidge
from ._sequoia import load_sequoia

__all__ = [
    "PriorKnowledgeLinear",
    "PriorKnowledgeRegressor",
    "PriorKnowledgeRegressorCV",
    "PriorKnowledgeRidge",
    "inject_prior_knowledge",
    "load_sequoia",
]
