"""The feature store: one HDF5 file a slide, in a layout that other tools read."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from ._bags import FeatureBag
from ._reader import fingerprint
from ._tiled import TiledSlide

FORMAT_VERSION = 1
# What h5py raises on files that are damaged or somebody else's.
_BAD_FILE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
# No compression filter of HDF5 does much better than this, so more is a forged header.
_MAX_EXPANSION = 1100


def store_key(slide, encoder_key):
    """
    Compute what tells the features of one slide from all others.

    Parameters
    ----------
    slide : TiledSlide or ndarray of shape (n_tiles, height, width, 3), uint8
        The slide and its tiles. The coordinates stand for all parameters of the tiling that
        led to them, `random_state` and a mask of the user's own included.
    encoder_key : str
        Identity of the encoder, of its weights and of how it is fed.

    Returns
    -------
    str
        Hexadecimal digest of the content of the slide, its tiles, the encoder and the version
        of the format.
    """
    digest = hashlib.blake2b(f"{FORMAT_VERSION}\0{encoder_key}\0".encode(), digest_size=16)
    if isinstance(slide, TiledSlide):
        geometry = (slide.tile_size, slide.level, slide.read_size, slide.size_level0)
        resolution = (slide.mpp, slide.slide_mpp)
        digest.update(f"{fingerprint(slide.path)}\0{geometry}\0{resolution}\0".encode())
        digest.update(np.ascontiguousarray(slide.coords).tobytes())
    else:
        digest.update(f"{slide.shape}\0".encode())
        digest.update(np.ascontiguousarray(slide))
    return digest.hexdigest()


def store_path(folder, slide, key):
    """
    Name the file of one slide.

    Parameters
    ----------
    folder : path-like
        The store.
    slide : TiledSlide or ndarray
        The slide.
    key : str
        Key of :func:`store_key`.

    Returns
    -------
    pathlib.Path
        The path; slides of one name and other content lie side by side.
    """
    name = slide.name if isinstance(slide, TiledSlide) else "tiles"
    return Path(folder) / f"{name[:100]}-{key[:12]}.h5"


def _checksum(features):
    return hashlib.blake2b(np.ascontiguousarray(features), digest_size=16).hexdigest()


def _known(attributes):
    return {name: value for name, value in attributes.items() if value == value}


def _slide_attributes(slide):
    """Attributes of the coordinates as TRIDENT names them, and of the file as we do."""
    coords = {
        "patch_size": slide.tile_size,
        "patch_size_level0": slide.size_level0,
        "level0_magnification": slide.objective_power,
        "target_magnification": 10 / slide.mpp,
        "overlap": dict(slide.params).get("overlap", 0),
        "level0_width": slide.slide_size[0],
        "level0_height": slide.slide_size[1],
    }
    if slide.objective_power != slide.objective_power:
        coords["level0_magnification"] = 10 / slide.slide_mpp
    own = {
        "slide": Path(slide.path).name,
        "mpp": slide.mpp,
        "slide_mpp": slide.slide_mpp,
        "level": slide.level,
        "read_size": slide.read_size,
        "tile_edge_um": slide.tile_edge_um,
        "tiling": repr(slide.params),
        "coords_unit": "level-0 pixels",
    }
    return _known(coords), _known(own)


def write_features(path, slide, features, key, encoder, weights_hash):
    """
    Write the features of one slide, so that the file is there whole or not at all.

    Parameters
    ----------
    path : path-like
        The file; its folder is made if it is missing.
    slide : TiledSlide or ndarray
        The slide and its tiles.
    features : ndarray of shape (n_tiles, n_features), float32
        Features.
    key : str
        Key of :func:`store_key`.
    encoder : str
        Name of the encoder.
    weights_hash : str
        Hash of its weights.

    Raises
    ------
    OSError
        If the file cannot be written, for example because the disk is full; nothing is left
        behind.
    """
    path = Path(path)
    # The same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            file.create_dataset("features", data=features)
            own = {}
            if isinstance(slide, TiledSlide):
                coords, own = _slide_attributes(slide)
                file.create_dataset("coords", data=slide.coords).attrs.update(coords)
            file.attrs.update(own)
            file.attrs["encoder"] = encoder
            file.attrs["weights_hash"] = weights_hash
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["checksum"] = _checksum(features)
            file.attrs["key"] = key
            file.attrs["complete"] = True
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"Features cannot be written to the store: {str(path)!r} ({error}). Look for a full "
            "disk or missing permission, or choose another store."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_stored(path, key, shape):
    """
    Read the features of one slide if they are there and good.

    Parameters
    ----------
    path : path-like
        The file.
    key : str
        Key that the file must carry.
    shape : tuple of int
        Number of tiles and of features it must hold.

    Returns
    -------
    ndarray of shape (n_tiles, n_features), float32, or None
        The features; None if the file is missing, incomplete, damaged or somebody else's.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            stored, attributes = file["features"], dict(file.attrs)
            if attributes.get("key") != key or not attributes.get("complete", False):
                return None
            # Before reading, so that a forged shape costs no memory.
            if stored.shape != tuple(shape) or stored.dtype != np.float32:
                return None
            features = stored[()]
    except _BAD_FILE:
        return None
    return features if _checksum(features) == attributes.get("checksum") else None


def _read_datasets(file, path):
    """Return features, coords (or None) and the attributes of coords and of the file."""
    if "features" not in file:
        raise ValueError(f"{str(path)!r}: expected a data set 'features', found {sorted(file)!r}.")
    stored = file["features"]
    if not isinstance(stored, h5py.Dataset) or stored.dtype.kind != "f":
        kind = getattr(stored, "dtype", "a group")
        raise ValueError(f"{str(path)!r}: expected features of floating point, got {kind}.")
    if stored.nbytes > _MAX_EXPANSION * os.path.getsize(path):
        raise ValueError(f"{str(path)!r}: declares {stored.nbytes} bytes, which it cannot hold.")
    coords = file["coords"][()] if "coords" in file else None
    attributes = dict(file["coords"].attrs) if "coords" in file else {}
    return stored[()], coords, attributes, dict(file.attrs)


def read_features(path):
    """
    Read a file of tile features.

    Reads the files of the feature store and others of the same layout (TRIDENT): a data set
    `features` of shape (n_tiles, n_features) or (1, n_tiles, n_features), and, if they are
    known, `coords` of shape (n_tiles, 2) in level-0 pixels.

    Parameters
    ----------
    path : str or path-like
        HDF5 file.

    Returns
    -------
    bag : FeatureBag
        The features. Its slide is named as the file says, or as the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no HDF5 file or does not hold such features.

    See Also
    --------
    FoundationFeaturizer : Writes such files.

    Examples
    --------
    >>> import h5py, numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn_pk.slides import read_features
    >>> with TemporaryDirectory() as folder:
    ...     with h5py.File(folder + "/slide.h5", "w") as file:
    ...         file["features"] = np.zeros((5, 8), dtype=np.float32)
    ...     read_features(folder + "/slide.h5").shape
    (5, 8)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"File of features not found: {str(path)!r}. Check the path.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            features, coords, attributes, own = _read_datasets(file, path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} is not a readable HDF5 file ({error}).") from error
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
        coords = coords[0] if coords is not None and coords.ndim == 3 else coords
    if own.get("checksum", "") not in ("", _checksum(features)):
        raise ValueError(f"{str(path)!r} is damaged: its features do not match their checksum.")
    size, edge = attributes.get("patch_size_level0"), own.get("tile_edge_um")
    slide = str(own.get("slide", path.stem))
    try:
        return FeatureBag(
            features,
            coords,
            slide,
            None if size is None else int(size),
            None if edge is None else float(edge),
        )
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
