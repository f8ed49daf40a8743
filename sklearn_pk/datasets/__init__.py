"""Data sets: shipped data, cohorts with planted truth, and readers of expression tables."""

# SPDX-License-Identifier: BSD-3-Clause

from ._expression_cohort import make_expression_cohort
from ._loaders import load_brca_expression, load_cgn, load_cmu_slide
from ._matching import match_samples
from ._slide_cohort import make_slide_cohort
from ._tables import read_expression, read_table

__all__ = [
    "load_brca_expression",
    "load_cgn",
    "load_cmu_slide",
    "make_expression_cohort",
    "make_slide_cohort",
    "match_samples",
    "read_expression",
    "read_table",
]
