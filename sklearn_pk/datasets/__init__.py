"""Data sets: shipped data and cohorts with planted truth."""

# SPDX-License-Identifier: BSD-3-Clause

from ._expression_cohort import make_expression_cohort
from ._loaders import load_brca_expression, load_cgn, load_cmu_slide
from ._slide_cohort import make_slide_cohort

__all__ = [
    "load_brca_expression",
    "load_cgn",
    "load_cmu_slide",
    "make_expression_cohort",
    "make_slide_cohort",
]


def __getattr__(name):
    # Readers of tables were here before they moved to io.
    if name in ("match_samples", "read_expression", "read_table"):
        from .. import io

        return getattr(io, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
