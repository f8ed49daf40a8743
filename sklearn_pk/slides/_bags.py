"""FeatureBag: the features of the tiles of one slide."""

# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ._inputs import check_coords


@dataclass(frozen=True, eq=False)
class FeatureBag:
    """
    The features of the tiles of one slide.

    Whatever takes an array of shape (tiles, n_features) takes a bag.

    Parameters
    ----------
    features : array-like of shape (n, d)
        Features, kept as float32.
    coords : array-like of shape (n, 2), default=None
        Upper left corner (x, y) of each tile, in level-0 pixels.
    slide : str, default=""
        Path or name of the slide.
    size_level0 : int, default=None
        Edge of a tile in level-0 pixels.
    tile_edge_um : float, default=None
        Edge of a tile in um.
    reason : str, default=""
        Why the bag is empty; empty where it is not.

    See Also
    --------
    FoundationFeaturizer : Makes bags of tiled slides.
    SuperTileClusterer : Makes bags shorter.
    read_features : Reads bags from files.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.slides import FeatureBag
    >>> bag = FeatureBag(np.ones((3, 4)), slide="a.svs")
    >>> bag.shape, np.asarray(bag).dtype
    ((3, 4), dtype('float32'))
    """

    features: np.ndarray = field(repr=False)
    coords: np.ndarray | None = field(default=None, repr=False)
    slide: str = ""
    size_level0: int | None = None
    tile_edge_um: float | None = None
    reason: str = ""

    def __post_init__(self):
        """Check shapes and fix dtypes."""
        owner = str(self.slide) or "FeatureBag"
        features = np.asarray(self.features, dtype=np.float32)
        if features.ndim != 2:
            raise ValueError(
                f"{owner}: expected features of shape (tiles, n_features), got {features.shape}."
            )
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "slide", str(self.slide))
        if self.coords is None:
            return
        coords = check_coords(self.coords, owner)
        if len(coords) != len(features):
            raise ValueError(
                f"{owner}: got {len(features)} rows of features but {len(coords)} of coords; "
                "each tile needs one of both."
            )
        object.__setattr__(self, "coords", coords)

    @property
    def name(self):
        """Name of the slide: its file name without the ending."""
        return Path(self.slide).stem

    @property
    def shape(self):
        """Number of tiles and of features."""
        return self.features.shape

    def __len__(self):
        """Count the tiles."""
        return len(self.features)

    def __array__(self, dtype=None, copy=None):
        """Return the features as an array."""
        return np.array(self.features, dtype=dtype, copy=copy)
