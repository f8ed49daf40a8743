"""From slide files to bags of features."""

# SPDX-License-Identifier: BSD-3-Clause

from ._bags import FeatureBag
from ._encoders import Encoder, list_encoders
from ._featurizer import FoundationFeaturizer
from ._store import read_features
from ._supertiles import SuperTileClusterer
from ._tiled import TiledSlide
from ._tiler import SlideTiler

__all__ = [
    "Encoder",
    "FeatureBag",
    "FoundationFeaturizer",
    "SlideTiler",
    "SuperTileClusterer",
    "TiledSlide",
    "list_encoders",
    "read_features",
]
