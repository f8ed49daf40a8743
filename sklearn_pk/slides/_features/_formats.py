"""Files of tile features: what they hold, known without reading it, and read when asked."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import math
import os
import pickle
import struct
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from .._wsi._reader import MPP_RANGE
from . import _hdf5, _hdf5_guard
from ._seal import check_seal
from ._tensors import load_tensor

TORCH_ENDINGS = {".pt", ".pth"}
# They can hold code, or do not say which columns are features: HE2RNA puts coordinates first.
REFUSED_ENDINGS = {".pkl", ".pickle", ".joblib", ".npy", ".npz"}
# By tool: TRIDENT, CLAM and ours; STAMP; SEQUOIA; PRALINE.
_WHOLE_SLIDES = "slide_features_"  # folders of TRIDENT
_TILES = ("features", "feats", "uni_features", "resnet_features")
_SUPER_TILES = ("cluster_features", "cluster_mean_features")
# No compression filter of HDF5 does much better than this, so more is a forged header.
_MAX_EXPANSION = 1100
# What h5py and torch raise on files that are damaged or somebody else's.
_BAD_FILE = (
    *_hdf5.BAD_FILE,
    *(EOFError, OverflowError, AssertionError, struct.error, pickle.UnpicklingError),
)


@dataclass(frozen=True)
class FeatureFile:
    """What is known about a file of tile features before its features are read."""

    path: str
    dataset: str
    shape: tuple
    dtype: str
    slide: str
    encoder: str = ""
    size_level0: int | None = None
    tile_edge_um: float | None = None
    coords_scale: float | None = None
    coords_in_um: bool = False
    key: str = ""
    stamp: tuple = ()
    sealed: bool = False

    def read_features(self):
        """Read the features."""
        with self._check() as own:
            if self.dataset:
                features = self._read(self.dataset, own)
            else:
                # A copy, because a tensor that is mapped into memory would follow the file.
                features = np.array(load_tensor(self.path).float().numpy())
            if features.shape != self.shape:
                raise self._changed()
            if self.key and own.get("checksum") != checksum([features]):
                raise ValueError(
                    f"{self.path!r} is damaged: its features do not match their checksum."
                )
        return features.astype(np.float32, copy=False)

    def read_coords(self):
        """Read the coordinates."""
        if self.coords_scale is None:
            return None
        with self._check() as own:
            coords = self._read("coords", own)
            if coords.shape != (self.shape[0], 2):
                raise self._changed()
        if not np.isfinite(coords).all():
            raise ValueError(f"{self.path!r}: its coords contain NaN or infinity.")
        if self.coords_scale != 1 or coords.dtype.kind == "f":
            coords = np.rint(coords * self.coords_scale)
        return coords.astype(np.int64)

    def is_intact(self):
        """Tell whether the features are those that our store wrote."""
        with self._check(), h5py.File(self.path, "r", locking=False) as file:
            return file.attrs.get("checksum") == checksum(_hdf5.read_blocks(file[self.dataset]))

    @contextmanager
    def _check(self):
        """Check that the file is the one that was described; name it in every error."""
        with _name_errors(self.path):
            # Files of the store carry their key, and two processes may write one of them in turn.
            if not self.key and _stamp(self.path) != self.stamp:
                raise self._changed()
            if self.sealed:
                check_seal(self.path)
            yield {}

    def _read(self, name, own):
        """Read a data set; what the file says of itself is added to `own`."""
        described, array = _hdf5_guard.ask(self.path, [name], read=True, trusted=self.sealed)
        own |= described["attributes"]
        if self.key and own.get("key") != self.key:
            raise self._changed()
        return array

    def _changed(self):
        return ValueError(
            f"{self.path!r} has changed since it was opened: it held {self.shape[0]} tiles of "
            f"{self.shape[1]} features. Open it again with read_features."
        )


def checksum(blocks):
    """Compute the checksum of an array that may come in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    for block in blocks:
        digest.update(np.ascontiguousarray(block))
    return digest.hexdigest()


def open_features(path, *, features=None, mpp=None):
    """Look what a file of tile features holds, without reading it."""
    if not isinstance(mpp, Real | Mapping | pd.Series | None):
        raise TypeError(
            "mpp must be a number (um/px), or a mapping or Series from names of slides to such "
            f"numbers, got {mpp!r}."
        )
    path = Path(os.path.abspath(path))
    if path.suffix.lower() in REFUSED_ENDINGS:
        raise ValueError(
            f"{str(path)!r}: {path.suffix} files are not read, because they can hold code, or "
            "columns that are no features. Load it yourself if you trust it, and make a "
            "FeatureBag(array, slide=NAME) of it."
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
    with _name_errors(path):
        if path.exists() and not path.is_file():
            raise ValueError(f"{str(path)!r}: expected a file of features, got a folder or device.")
        if path.suffix.lower() in TORCH_ENDINGS:
            return _describe_torch(path)
        sealed = check_seal(path)
        wanted = [*_TILES, *_SUPER_TILES, "coords"] if features is None else [features, "coords"]
        file, _ = _hdf5_guard.ask(path, wanted, trusted=sealed)
        return replace(_describe_hdf5(file, path, features, mpp), sealed=sealed)


@contextmanager
def _name_errors(path):
    """Say in every error about a file which one it is."""
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
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path!r} holds Python objects, not only tensors. It is refused, because objects can "
            "run code when they are loaded."
        ) from error
    except _BAD_FILE as error:
        if repr(path) in str(error):
            raise
        kind = "torch" if Path(path).suffix.lower() in TORCH_ENDINGS else "HDF5"
        raise ValueError(f"{path!r} is not a readable {kind} file ({error}).") from error


def _stamp(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _describe_hdf5(file, path, features, mpp):
    name = _find_dataset(file, path, features)
    stored, own = file["stored"], file["attributes"]
    shape = _check_dataset(stored[name], name, "f", path)
    key = _text(own.get("key"))
    if key and not own.get("complete", False):
        raise ValueError(f"{str(path)!r} is incomplete: the run that wrote it was stopped.")
    described = FeatureFile(
        path=str(path),
        dataset=name,
        shape=shape,
        dtype=stored[name]["what"],
        # Only our own files state it with the ending of the slide's file.
        slide=(key and _text(own.get("slide"))) or path.stem,
        encoder=_encoder_of(file, name, path),
        key=key if "checksum" in own and name == "features" else "",
        stamp=_stamp(path),
    )
    if "coords" not in stored or name in _SUPER_TILES:
        return described
    return _describe_coords(described, stored["coords"], own, mpp)


def _find_dataset(file, path, features):
    """Return the name of the data set that holds the features."""
    stored = file["stored"]
    found = [name for name in _TILES if name in stored]
    if features is not None:
        found = [features] if features in stored else []
    elif len(found) > 1:
        raise ValueError(
            f"{str(path)!r} holds several sets of features: {found!r}. Choose one with features=."
        )
    else:
        found = found or [name for name in _SUPER_TILES if name in stored]
    if found:
        return found[0]
    names, n_names = file["names"], file["n_names"]
    if features is None and names == ["coords"]:
        text = f"{str(path)!r} holds coordinates of tiles, but no features."
        raise NoTileFeatures(text, "coordinates only")
    listed = f"{names[:5]!r}" + (f" and {n_names - 5} more" if n_names > 5 else "")
    expected = repr(features) if features is not None else "'features'"
    raise ValueError(
        f"{str(path)!r}: expected a data set {expected}, found {listed}. Name the one that holds "
        "the features with features=."
    )


class NoTileFeatures(ValueError):
    """A file that was never meant to hold features of tiles."""

    def __init__(self, text, what=""):
        super().__init__(text)
        self.what = what


def _check_dataset(stored, name, kinds, path):
    """Return the shape of a data set of (n, width) or (1, n, width) numbers that is all there."""
    path = str(path)
    if not stored["kind"] or stored["kind"] not in kinds:
        what = "floating point" if kinds == "f" else "numbers"
        raise ValueError(f"{path!r}: expected {name} of {what}, got {stored['what']}.")
    if stored["nbytes"] > _MAX_EXPANSION * os.path.getsize(path):
        raise ValueError(f"{path!r}: declares {stored['nbytes']} bytes, which it cannot hold.")
    shape = _hdf5.shape_of(stored["shape"])
    if len(shape) != 2 or not shape[1]:
        raise ValueError(f"{path!r}: expected {name} of shape (tiles, n_features), got {shape}.")
    if not stored["is_written"]:
        raise ValueError(
            f"{path!r} is incomplete: a part of its {name} was never written. Make it again."
        )
    return shape


def _encoder_of(file, name, path):
    """Return the encoder as the file, the data set or, for TRIDENT, the folder states it."""
    own = file["attributes"]
    stated = _text(own.get("encoder")) or _text(own.get("extractor"))
    if not stated and name in _TILES and name.endswith("_features"):
        stated = name.removesuffix("_features")
    if not stated and "savetodir" in file["stored"][name]["attributes"]:
        stated = path.parent.name.removeprefix("features_")
    return stated


def _describe_coords(described, stored, own, mpp):
    """Add what is known about the places of the tiles."""
    n_tiles = described.shape[0]
    shape = _check_dataset(stored, "coords", "iuf", described.path)
    if shape != (n_tiles, 2):
        raise ValueError(
            f"{described.path!r}: got {n_tiles} rows of features but coords of shape {shape}; "
            f"expected ({n_tiles}, 2)."
        )
    edge = _number(own.get("tile_edge_um", own.get("tile_size_um")))
    if described.dataset != "feats" and _text(own.get("unit")) != "um":
        size = _number(stored["attributes"].get("patch_size_level0"))
        return replace(
            described,
            size_level0=None if size is None else round(size),
            tile_edge_um=edge,
            coords_scale=1.0,
        )
    in_um = _text(own.get("unit")) == "um" or edge is not None
    if edge is None and in_um:
        edge = _number(own.get("tile_size"))
    described = replace(described, tile_edge_um=edge)
    slide_mpp = find_mpp(mpp, described.slide)
    if not in_um or slide_mpp is None:
        return replace(described, coords_in_um=in_um)
    size = None if edge is None else round(edge / slide_mpp)
    return replace(described, size_level0=size, coords_scale=1 / slide_mpp)


def find_mpp(mpp, slide):
    """Look the um/px of a slide up."""
    value = mpp.get(slide) if isinstance(mpp, Mapping | pd.Series) else mpp
    if value is None or pd.isna(value):
        return None
    low, high = MPP_RANGE
    if not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"mpp of slide {slide!r} must be {low} to {high} um/px, got {value!r}.")
    return float(value)


def _text(value):
    return "" if value is None else str(value)


def _number(value):
    """Return an attribute as a float, None where it is no number (TRIDENT writes 'None')."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _describe_torch(path):
    tensor = load_tensor(str(path))
    return FeatureFile(
        path=str(path),
        dataset="",
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        slide=path.stem,
        stamp=_stamp(path),
    )
