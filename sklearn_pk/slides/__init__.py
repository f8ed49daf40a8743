"""From slide files to bags of features."""

# SPDX-License-Identifier: BSD-3-Clause

from ._bags import FeatureBag
from ._checks import check_slides
from ._encoders import Encoder, list_encoders
from ._feature_folder import FeatureBags, read_features
from ._featurizer import FoundationFeaturizer
from ._supertiles import SuperTileClusterer
from ._tiled import TiledSlide
from ._tiler import SlideTiler

__all__ = [
    "Encoder",
    "FeatureBag",
    "FeatureBags",
    "FoundationFeaturizer",
    "SlideTiler",
    "SuperTileClusterer",
    "TiledSlide",
    "check_slides",
    "list_encoders",
    "read_features",
]
