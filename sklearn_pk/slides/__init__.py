"""From slide files to bags of features."""

# SPDX-License-Identifier: BSD-3-Clause

from ._encoders._encoder import Encoder
from ._encoders._registry import list_encoders
from ._features._feature_bag import FeatureBag
from ._features._folder import FeatureBags, read_features
from ._featurizer import FoundationFeaturizer
from ._quality import check_slides
from ._supertiles import BagPooler, SuperTileClusterer
from ._tiler import SlideTiler, TiledSlide

__all__ = [
    "BagPooler",
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
