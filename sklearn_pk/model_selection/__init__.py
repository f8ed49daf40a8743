"""Folds over patients, and the number of significant genes over all folds."""

# SPDX-License-Identifier: BSD-3-Clause

from ._barcodes import patient_ids
from ._cross_val import cross_val_significance
from ._final_model import FinalModel
from ._prior_gain import PriorGainTable, prior_gain
from ._result import CrossValSignificance
from ._sites import SiteGroupKFold, site_ids

__all__ = [
    "CrossValSignificance",
    "FinalModel",
    "PriorGainTable",
    "SiteGroupKFold",
    "cross_val_significance",
    "patient_ids",
    "prior_gain",
    "site_ids",
]
