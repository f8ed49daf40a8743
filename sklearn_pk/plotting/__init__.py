"""Pictures of slides, searches and predictions, as scikit-learn displays."""

# SPDX-License-Identifier: BSD-3-Clause

from ._comparison_display import ComparisonDisplay
from ._gene_graph_display import GeneGraphDisplay
from ._lambda_path_display import LambdaPathDisplay
from ._prediction_display import PredictionDisplay
from ._significance_display import SignificanceDisplay
from ._slide_sheet_display import SlideSheetDisplay
from ._spatial_expression_display import SpatialExpressionDisplay
from ._tile_sheet_display import TileSheetDisplay
from ._tissue_mask_display import TissueMaskDisplay

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
