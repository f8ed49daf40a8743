"""Folds over patients, and the number of significant genes over all folds."""

# SPDX-License-Identifier: BSD-3-Clause

from ._cross_val import CrossValSignificance, cross_val_significance
from ._patients import patient_ids

__all__ = ["CrossValSignificance", "cross_val_significance", "patient_ids"]
