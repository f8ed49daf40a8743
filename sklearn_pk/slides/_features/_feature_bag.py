"""FeatureBag: the features of the tiles of one slide."""

# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ...utils._bags import as_array
from .._inputs import check_coords
from ._formats import open_features

# The names of TCGA slides contain a dot, so not everything after a dot is an ending.
_SLIDE_ENDINGS = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif"),
    *(".czi", ".zvi", ".dcm", ".qptiff", ".isyntax", ".sdpc", ".zarr", ".png", ".jpg", ".jpeg"),
    *(".h5", ".hdf5", ".pt", ".ome"),
}


@dataclass(frozen=True, eq=False, repr=False)
class FeatureBag:
    """
    The features of the tiles of one slide.

    A bag can be used wherever an array of shape (tiles, n_features) is expected. The features
    are in memory or, with :meth:`from_file`, in a file that is read at each access: such a bag
    is small and is pickled as its path.

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
        Why the bag is empty; "" if it is not.
    encoder : str, default=""
        Name of the encoder that computed the features; "" if it is not known.
    weights_hash : str, default=""
        Hash of its weights; "" if it is not known.
    mpp : float, default=None
        Resolution of the tiles in um/px, as the encoder saw them.

    Attributes
    ----------
    path : str or None
        File that holds the features, None if they are in memory.

    See Also
    --------
    FoundationFeaturizer : Computes bags from tiled slides.
    SuperTileClusterer : Reduces bags to super-tiles.
    read_features : Reads bags from files.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.slides import FeatureBag
    >>> bag = FeatureBag(np.ones((3, 4)), slide="a.svs")
    >>> bag, np.asarray(bag).dtype
    (FeatureBag(slide='a.svs', shape=(3, 4)), dtype('float32'))
    """

    features: np.ndarray
    coords: np.ndarray | None = None
    slide: str = ""
    size_level0: int | None = None
    tile_edge_um: float | None = None
    reason: str = ""
    encoder: str = ""
    weights_hash: str = ""
    mpp: float | None = None

    # Without annotation, so not a field: only bags of from_file have one.
    path = None

    def __post_init__(self):
        """Check shapes and fix dtypes."""
        owner = str(self.slide) or "FeatureBag"
        features = np.asarray(as_array(self.features), dtype=np.float32)
        if features.ndim != 2:
            raise ValueError(
                f"{owner}: expected features of shape (tiles, n_features), got {features.shape}."
            )
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "slide", str(self.slide))
        if self.coords is None:
            return
        coords = check_coords(as_array(self.coords), owner)
        if len(coords) != len(features):
            raise ValueError(
                f"{owner}: got {len(features)} rows of features but {len(coords)} of coords; "
                "each tile needs one row in both."
            )
        object.__setattr__(self, "coords", coords)

    @classmethod
    def from_file(cls, path, *, features=None, mpp=None):
        """
        Make a bag whose features are read from a file at each access.

        Parameters
        ----------
        path : str or path-like
            A file that :func:`read_features` reads.
        features : str, default=None
            Data set that holds the features, if a file has several.
        mpp : float, mapping or Series, default=None
            Resolution of level 0 in um/px, or a mapping from names of slides to resolutions. It
            converts coordinates in um (STAMP) to pixels.

        Returns
        -------
        bag : FeatureBag
            The bag. Its shape is known without reading the features.

        Raises
        ------
        FileNotFoundError, PermissionError
            If the file cannot be opened.
        TypeError
            If `mpp` is of another type.
        ValueError
            If the file does not hold features, is damaged, or holds Python objects.
        """
        return FileBag(open_features(path, features=features, mpp=mpp))

    @property
    def name(self):
        """Name of the slide: its file name without the ending."""
        name = Path(self.slide).name
        while Path(name).suffix.lower() in _SLIDE_ENDINGS:
            name = name.removesuffix(Path(name).suffix)
        return name

    @property
    def shape(self):
        """Number of tiles and of features."""
        return self.features.shape

    @property
    def ndim(self):
        """Number of dimensions, which is 2."""
        return 2

    @property
    def dtype(self):
        """Type of the features, which is float32."""
        return np.dtype(np.float32)

    def __len__(self):
        """Count the tiles."""
        return self.shape[0]

    def __repr__(self):
        """Name the slide and the shape; nothing is read."""
        known = [f"slide={self.slide!r}", f"shape={self.shape}"]
        known += [f"{key}={value!r}" for key in ("path", "reason") if (value := getattr(self, key))]
        return f"FeatureBag({', '.join(known)})"

    def _describe(self):
        """Describe the bag; no features are read."""
        return {
            "slide": self.name,
            "tiles": self.shape[0],
            "features": self.shape[1],
            "encoder": self.encoder,
            "um/px": self.mpp,
            "tile edge (um)": self.tile_edge_um,
        }

    def _repr_html_(self):
        """Show what is known of the bag, escaped."""
        return pd.DataFrame([self._describe()]).to_html(index=False, na_rep="")

    def __array__(self, dtype=None, copy=None):
        """Return the features as an array."""
        return np.array(self.features, dtype=dtype, copy=copy)


class FileBag(FeatureBag):
    """A bag whose features and coordinates are in a file."""

    def __init__(self, file, slide=None):
        values = {
            "file": file,
            "slide": file.slide if slide is None else str(slide),
            "size_level0": file.size_level0,
            "tile_edge_um": file.tile_edge_um,
            "encoder": file.encoder,
            "weights_hash": file.weights_hash,
            "mpp": file.mpp,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def features(self):
        """Features, read from the file."""
        return self.file.read_features()

    @property
    def coords(self):
        """Corners of the tiles in level-0 pixels, read from the file."""
        coords = self.file.read_coords()
        return None if coords is None else check_coords(coords, self.path)

    @property
    def path(self):
        """Absolute path of the file."""
        return self.file.path

    @property
    def shape(self):
        """Number of tiles and of features, known without reading."""
        return self.file.shape


class PatientBag(FeatureBag):
    """The bags of the slides of one patient, joined when they are read."""

    def __init__(self, patient, bags):
        bags = tuple(bags)
        widths = {bag.shape[1]: bag.name for bag in bags}
        if len(widths) > 1:
            raise ValueError(
                f"patient {patient!r}: expected slides of the same number of features, got "
                f"{', '.join(f'{name!r} with {width}' for width, name in widths.items())}."
            )
        values = {"bags": bags, "slide": patient, "slides": tuple(bag.name for bag in bags)}
        values["reason"] = "" if any(map(len, bags)) else "; ".join(bag.reason for bag in bags)
        for name in ("size_level0", "tile_edge_um", "encoder", "weights_hash", "mpp"):
            found = {getattr(bag, name) for bag in bags}
            values[name] = found.pop() if len(found) == 1 else getattr(FeatureBag, name)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def name(self):
        """Name of the patient."""
        return self.slide

    @property
    def features(self):
        """Features of all slides, read from their files."""
        return np.concatenate([bag.features for bag in self.bags])

    @property
    def coords(self):
        """Corners of the tiles within their slides; None if they are missing for a slide."""
        coords = [bag.coords for bag in self.bags]
        return None if any(each is None for each in coords) else np.concatenate(coords)

    @property
    def slide_of_tile(self):
        """Number of the slide of each tile, in the order of `slides`."""
        return np.repeat(np.arange(len(self.bags)), [len(bag) for bag in self.bags])

    @property
    def path(self):
        """Path of the first slide that is in a file, None if all are in memory."""
        return next((bag.path for bag in self.bags if bag.path is not None), None)

    @property
    def shape(self):
        """Number of tiles and of features, known without reading."""
        return sum(map(len, self.bags)), self.bags[0].shape[1]
