"""Statistics on predicted expression, and scorers for scikit-learn's searches."""

# SPDX-License-Identifier: BSD-3-Clause

from ._comparison import compare_significance
from ._correlation import pearson_by_gene, steiger_test
from ._preservation import neighborhood_preservation
from ._scorer import make_significance_scorer, significance_scorer
from ._significance import significance_report

__all__ = [
    "compare_significance",
    "make_significance_scorer",
    "neighborhood_preservation",
    "pearson_by_gene",
    "significance_report",
    "significance_scorer",
    "steiger_test",
]
