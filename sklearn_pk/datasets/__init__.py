"""Data sets: shipped real data and cohorts with planted truth."""

# SPDX-License-Identifier: BSD-3-Clause

from ._loaders import load_brca_expression, load_cgn, load_cmu_slide
from ._slide_cohort import make_slide_cohort

__all__ = ["load_brca_expression", "load_cgn", "load_cmu_slide", "make_slide_cohort"]
