"""Files of tile features: described from their headers, read on demand."""

# SPDX-License-Identifier: BSD-3-Clause

import math
import os
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from ...utils._bags import as_array
from .._wsi._reader import MPP_RANGE
from ._array_files import ARRAY_ENDINGS, NoTileFeatures, ending_of, load_arrays, stem_of

# They can hold code.
REFUSED_ENDINGS = {".pkl", ".pickle", ".joblib"}
_WHOLE_SLIDES = "slide_features_"  # folders of TRIDENT
# By tool: TRIDENT, CLAM and this package; STAMP; SEQUOIA; PRALINE.
_TILES = ("features", "feats", "uni_features", "resnet_features")
_SUPER_TILES = ("cluster_features", "cluster_mean_features")
# No compression filter of HDF5 does much better than this, so more is a forged header.
_MAX_EXPANSION = 1100
# What h5py raises on files that are damaged or of another kind.
_BAD_FILE = (
    *(OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError),
    *(MemoryError, OverflowError),
)


@dataclass(frozen=True)
class FeatureFile:
    """What is known about a file of tile features before its features are read."""

    path: str
    dataset: str  # name of the array; empty where the file names none
    shape: tuple
    dtype: str
    slide: str
    encoder: str = ""
    weights_hash: str = ""
    mpp: float | None = None  # of the tiles
    magnification: float | None = None  # of the tiles, as TRIDENT states it
    size_level0: int | None = None
    tile_edge_um: float | None = None
    coords_scale: float | None = None
    coords_in_um: bool = False
    key: str = ""  # only of files with a checksum
    stamp: tuple = ()

    def read_features(self):
        """Read the features as float32."""
        if self._is_hdf5:
            features = self._read(self.dataset, self.shape)
        else:
            # A copy, because what is mapped into memory changes with its file.
            features = np.array(as_array(self._load().features))
            if features.shape != self.shape:
                raise self._changed()
        return features.astype(np.float32, copy=False)

    def read_coords(self):
        """Read the coordinates in level-0 pixels, None where there are none."""
        if self.coords_scale is None:
            return None
        if self._is_hdf5:
            coords = self._read("coords", (self.shape[0], 2))
        else:
            coords = self._load().coords
        if not np.isfinite(coords).all():
            raise ValueError(f"{self.path!r}: its coords contain NaN or infinity.")
        if self.coords_scale != 1 or coords.dtype.kind == "f":
            coords = np.rint(coords * self.coords_scale)
        return coords.astype(np.int64)

    def read_first(self):
        """Read the features of the first tile, as bytes, to compare files at little cost."""
        if not self._is_hdf5:
            return np.array(as_array(self._load().features[:1])).tobytes()
        with _open_hdf5(self.path) as file:
            stored = _find(file, self.dataset)
            return np.asarray(stored[0, :1] if stored.ndim == 3 else stored[:1]).tobytes()

    @property
    def _is_hdf5(self):
        return not ending_of(self.path)

    def _load(self):
        with _name_errors(self.path):
            self._check_stamp()
            return load_arrays(self.path, self.dataset or None)

    def _read(self, name, shape):
        with _open_hdf5(self.path) as file:
            self._check_stamp()
            stored = _find(file, name)
            if not isinstance(stored, h5py.Dataset) or _shape_of(stored) != shape:
                raise self._changed()
            array = stored[0] if stored.ndim == 3 else stored[()]
            if not self.key:
                return array
            if _text(file.attrs, "key") != self.key:
                raise self._changed()
            if _text(file.attrs, f"{name}_crc32") != str(zlib.crc32(array)):
                raise ValueError(
                    f"{self.path!r} is damaged: its {name} do not match their checksum. In a "
                    "store, the next run computes it again; a copy has to be made again."
                )
        return array

    def _check_stamp(self):
        # Files of the store carry their key, and two processes may write the same file.
        if not self.key and _stamp(self.path) != self.stamp:
            raise self._changed()

    def _changed(self):
        return ValueError(
            f"{self.path!r} has changed since it was opened: it held {self.shape[0]} tiles of "
            f"{self.shape[1]} features. Open it again with read_features."
        )


def open_features(path, *, features=None, mpp=None):
    """Describe a file of tile features without reading them."""
    if not isinstance(mpp, Real | Mapping | pd.Series | None):
        raise TypeError(
            "mpp must be a number (um/px), or a mapping or Series from names of slides to such "
            f"numbers, got {mpp!r}."
        )
    path = Path(os.path.abspath(path))
    if path.suffix.lower() in REFUSED_ENDINGS:
        raise ValueError(
            f"{str(path)!r}: {path.suffix} files are not read, because they can hold code. Load "
            "it yourself if you trust it, and make a FeatureBag(array, slide=NAME) of it."
        )
    if not path.parent.name.startswith(_WHOLE_SLIDES):
        return _open(path, features, mpp)
    try:
        opened = _open(path, features, mpp)
    except ValueError as error:
        raise _whole_slide(path) from error
    if opened.shape[0] == 1 and opened.coords_scale is None:
        raise _whole_slide(path)
    return opened


def _whole_slide(path):
    text = f"{str(path)!r} holds features of a whole slide, as its folder says, but none of tiles."
    return NoTileFeatures(text, "features of whole slides")


def _open(path, features, mpp):
    if path.exists() and not path.is_file() and ending_of(path) != ".zarr":
        raise ValueError(f"{str(path)!r}: expected a file of features, got a folder or device.")
    if ending_of(path) in ARRAY_ENDINGS:
        with _name_errors(path):
            return _describe_arrays(path, features)
    with _open_hdf5(path) as file:
        return _describe_hdf5(file, path, features, mpp)


@contextmanager
def _name_errors(path):
    """Name the file in every error."""
    path = str(path)
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"File of features not found: {path!r}. Check the path; a file that was there before "
            "has been moved or deleted."
        ) from error
    except PermissionError as error:
        raise PermissionError(f"File of features cannot be opened: {path!r} ({error}).") from error


@contextmanager
def _open_hdf5(path):
    with _name_errors(path):
        try:
            with h5py.File(path, "r", locking=False) as file:
                yield file
        except (FileNotFoundError, PermissionError):
            raise
        except _BAD_FILE as error:
            if repr(str(path)) in str(error):
                raise
            raise ValueError(f"{str(path)!r} is not a readable HDF5 file ({error}).") from error


def _stamp(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _find(file, name):
    """Return a member that lies in the file itself, None where there is none."""
    found = file
    for part in name.strip("/").split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"its {name!r} is a link, and only what is in the file itself is read")
        found = found[part]
    if isinstance(found, h5py.Dataset):
        created = found.id.get_create_plist()
        if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
            raise ValueError(f"the values of its {name!r} are in another file, which is not read")
    return found


def _describe_hdf5(file, path, features, mpp):
    name, stored = _find_features(file, path, features)
    shape = _check_dataset(stored, name, "f", path)
    key = _text(file.attrs, "key") if name == "features" and "features_crc32" in file.attrs else ""
    described = FeatureFile(
        path=str(path),
        dataset=name,
        shape=shape,
        dtype=str(stored.dtype),
        # Only files of the store name the slide with its ending.
        slide=("format_version" in file.attrs and _text(file.attrs, "slide")) or path.stem,
        encoder=_encoder_of(file, name, path),
        weights_hash=_text(file.attrs, "weights_hash"),
        # Other tools may mean level 0.
        mpp=_number(file.attrs, "mpp") if "format_version" in file.attrs else None,
        key=key,
        stamp=_stamp(path),
    )
    coords = None if name in _SUPER_TILES else _find(file, "coords")
    return described if coords is None else _describe_coords(described, file, coords, mpp)


def _find_features(file, path, features):
    """Return the name of the data set that holds the features, and the data set."""
    wanted = [*_TILES, *_SUPER_TILES] if features is None else [features]
    found = {name: stored for name in wanted if (stored := _find(file, name)) is not None}
    tiles = [name for name in found if name in _TILES]
    if features is None and len(tiles) > 1:
        raise ValueError(
            f"{str(path)!r} holds several sets of features: {tiles!r}. Choose one with features=."
        )
    if found:
        return next(iter(found.items()))
    names = sorted(file)
    if features is None and names == ["coords"]:
        text = f"{str(path)!r} holds coordinates of tiles, but no features."
        raise NoTileFeatures(text, "coordinates only")
    listed = f"{names[:5]!r}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    expected = repr(features) if features is not None else "'features'"
    raise ValueError(
        f"{str(path)!r}: expected a data set {expected}, found {listed}. Name the one that holds "
        "the features with features=."
    )


def _check_dataset(stored, name, kinds, path):
    """Return the shape (n, width) of a data set of numbers that is complete."""
    path = str(path)
    is_array = isinstance(stored, h5py.Dataset) and stored.shape is not None
    if not is_array or stored.dtype.kind not in kinds:
        expected = "floating point" if kinds == "f" else "numbers"
        found = "a group" if isinstance(stored, h5py.Group) else getattr(stored, "dtype", "a type")
        raise ValueError(f"{path!r}: expected {name} of {expected}, got {found}.")
    chunk = math.prod(stored.chunks or (0,)) * stored.dtype.itemsize
    n_bytes = max(stored.nbytes, chunk)
    if n_bytes > _MAX_EXPANSION * os.path.getsize(path):
        raise ValueError(f"{path!r}: declares {n_bytes} bytes, which it cannot hold.")
    shape = _shape_of(stored)
    if len(shape) != 2 or not shape[1]:
        raise ValueError(f"{path!r}: expected {name} of shape (tiles, n_features), got {shape}.")
    if not _is_written(stored):
        raise ValueError(
            f"{path!r} is incomplete: a part of its {name} was never written. Make it again."
        )
    return shape


def _shape_of(stored):
    """Return the shape without a first axis of length one, as in (1, n, width)."""
    shape = stored.shape or ()
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _is_written(stored):
    # HDF5 reads missing parts as zeros.
    if stored.chunks is None:
        return stored.id.get_storage_size() >= stored.nbytes
    sizes = zip(stored.shape, stored.chunks, strict=True)
    return stored.id.get_num_chunks() >= math.prod(math.ceil(n / size) for n, size in sizes)


def _encoder_of(file, name, path):
    """Return the encoder as the file, the data set or, for TRIDENT, the folder states it."""
    stated = _text(file.attrs, "encoder") or _text(file.attrs, "extractor")
    if not stated and name in _TILES and name.endswith("_features"):
        stated = name.removesuffix("_features")
    if not stated and "savetodir" in file[name].attrs:
        stated = path.parent.name.removeprefix("features_")
    return stated


def _describe_coords(described, file, stored, mpp):
    """Add what is known about the coordinates of the tiles."""
    n_tiles = described.shape[0]
    shape = _check_dataset(stored, "coords", "iuf", described.path)
    if shape != (n_tiles, 2):
        raise ValueError(
            f"{described.path!r}: got {n_tiles} rows of features but coords of shape {shape}; "
            f"expected ({n_tiles}, 2)."
        )
    edge = _number(file.attrs, "tile_edge_um", "tile_size_um")
    in_um = _text(file.attrs, "unit") == "um"
    if described.dataset != "feats" and not in_um:
        size = _number(stored.attrs, "patch_size_level0")
        return replace(
            described,
            magnification=_number(stored.attrs, "target_magnification"),
            size_level0=None if size is None else round(size),
            tile_edge_um=edge,
            coords_scale=1.0,
        )
    if edge is None and in_um:
        edge = _number(file.attrs, "tile_size")
    in_um = in_um or edge is not None
    edge_px = _number(file.attrs, "tile_size_px")
    tile_mpp = edge / edge_px if edge and edge_px else described.mpp
    described = replace(described, tile_edge_um=edge, mpp=tile_mpp)
    slide_mpp = find_mpp(mpp, described.slide)
    if not in_um or slide_mpp is None:
        return replace(described, coords_in_um=in_um)
    size = None if edge is None else round(edge / slide_mpp)
    return replace(described, size_level0=size, coords_scale=1 / slide_mpp)


def find_mpp(mpp, slide):
    """Return the um/px of a slide, None where it is not given."""
    value = mpp.get(slide) if isinstance(mpp, Mapping | pd.Series) else mpp
    if value is None or pd.isna(value):
        return None
    low, high = MPP_RANGE
    if not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"mpp of slide {slide!r} must be {low} to {high} um/px, got {value!r}.")
    return float(value)


def _text(attributes, name):
    """Return an attribute as text, empty where it is missing."""
    value = attributes.get(name, "")
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    # Names of files that are not UTF-8, such as those in Latin-1, are found again.
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _number(attributes, *names):
    """Return the first attribute that is there as a float; TRIDENT writes 'None' for no number."""
    found = next((name for name in names if name in attributes), names[0])
    try:
        number = float(_text(attributes, found))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _describe_arrays(path, name):
    arrays = load_arrays(path, name)
    return FeatureFile(
        path=str(path),
        dataset=name or "",
        shape=tuple(arrays.features.shape),
        dtype=arrays.dtype,
        slide=stem_of(path),
        encoder=arrays.encoder,
        coords_scale=None if arrays.coords is None else 1.0,
        stamp=_stamp(path),
    )
