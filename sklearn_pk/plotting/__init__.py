"""Pictures of slides, searches and predictions, as scikit-learn displays."""

# SPDX-License-Identifier: BSD-3-Clause

from ._comparison import ComparisonDisplay
from ._gene_graph import GeneGraphDisplay
from ._lambda_path import LambdaPathDisplay
from ._prediction import PredictionDisplay
from ._significance import SignificanceDisplay
from ._slide_sheet import SlideSheetDisplay
from ._spatial_expression import SpatialExpressionDisplay
from ._tile_sheet import TileSheetDisplay
from ._tissue_mask import TissueMaskDisplay

__all__ = [
    "ComparisonDisplay",
    "GeneGraphDisplay",
    "LambdaPathDisplay",
    "PredictionDisplay",
    "SignificanceDisplay",
    "SlideSheetDisplay",
    "SpatialExpressionDisplay",
    "TileSheetDisplay",
    "TissueMaskDisplay",
]
