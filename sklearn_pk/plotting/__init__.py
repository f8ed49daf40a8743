"""Pictures of slides, searches and predictions, as scikit-learn displays."""

# SPDX-License-Identifier: BSD-3-Clause

from ._lambda_path import LambdaPathDisplay
from ._prediction import PredictionDisplay
from ._slide_sheet import SlideSheetDisplay
from ._tile_sheet import TileSheetDisplay
from ._tissue_mask import TissueMaskDisplay

__all__ = [
    "LambdaPathDisplay",
    "PredictionDisplay",
    "SlideSheetDisplay",
    "TileSheetDisplay",
    "TissueMaskDisplay",
]
