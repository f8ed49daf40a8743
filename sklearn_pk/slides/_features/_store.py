"""The feature store: one HDF5 file per slide, in a layout that other tools read."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
import time
import uuid
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from ...utils._reporting import warn_user
from .._inputs import CANNOT_WRITE, describe_space
from .._tiler import TiledSlide
from .._wsi._reader import file_version, fingerprint
from ._feature_bag import FileBag
from ._formats import open_features

FORMAT_VERSION = 3
# From this version on, HDF5 protects its metadata by checksums: damage in older ones can crash
# the library. The newest version would be unreadable for older libraries.
_LIBVER = ("v110", "v110")
_CHUNK_BYTES = 1 << 20
# File systems take 255 bytes; the ending, ".damaged" and that of temporary files need up to 60.
_NAME_BYTES = 180
# No file takes a day to write.
_SECONDS_TO_WRITE = 24 * 3600


def store_key(slide, encoder_key):
    """Compute the key that identifies the features of one slide."""
    digest = hashlib.blake2b(f"{FORMAT_VERSION}\0{encoder_key}\0".encode(), digest_size=16)
    if isinstance(slide, TiledSlide):
        geometry = (slide.tile_size, slide.level, slide.read_size, slide.size_level0)
        resolution = (slide.mpp, slide.slide_mpp)
        if slide.level_downsample % 1:
            # Readers differ slightly in how they interpolate between the pixels of a level.
            resolution += (slide.reader,)
        content = slide.content or fingerprint(slide.path)
        # Empty where the fingerprint is of all bytes.
        version = slide.version if slide.content else file_version(slide.path)
        digest.update(f"{content}\0{geometry}\0{resolution}\0{version}".encode())
        if slide.coords is not None:
            digest.update(np.ascontiguousarray(slide.coords).tobytes())
        if slide.files:
            digest.update(repr(slide.files).encode())
    else:
        digest.update(f"{slide.shape}\0".encode())
        digest.update(np.ascontiguousarray(slide))
    return digest.hexdigest()


def store_path(folder, slide, key):
    """Return the path of the file of one slide."""
    name = slide.name if isinstance(slide, TiledSlide) else "tiles"
    return Path(folder) / file_name(name, f"-{key[:12]}.h5")


def file_name(name, ending):
    """Return the name of a file that every file system takes, and that is not hidden."""
    raw = os.fsencode(name)
    is_long, is_hidden = len(raw) > _NAME_BYTES, raw.startswith(b".")
    if not is_long and not is_hidden:
        return f"{name}{ending}"
    shortened = raw.lstrip(b".")[:_NAME_BYTES].decode(errors="ignore")
    # Names that differ only in what is cut off stay apart.
    return f"{shortened}~{hashlib.blake2b(raw, digest_size=6).hexdigest()}{ending}"


def check_store(path):
    """Raise an error if a file cannot be written, before hours are spent on its content."""
    path = Path(path).absolute()
    existing = next(folder for folder in path.parents if folder.exists())
    probe = _temporary(existing / path.name)
    try:
        probe.touch()
    except OSError as error:
        raise OSError(
            f"Features cannot be written to the store: {str(path)!r} ({error}). {CANNOT_WRITE}, "
            "or choose another store. Nothing was encoded for it."
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _temporary(path):
    # The same folder, because a rename is atomic within one file system only.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _slide_attributes(slide):
    """Return attributes of the coordinates, named as in TRIDENT, and of the file."""
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
        "reader": slide.reader,
        "level": slide.level,
        "read_size": slide.read_size,
        "tile_edge_um": slide.tile_edge_um,
        "tiling": repr(slide.params),
        "coords_unit": "level-0 pixels",
    }
    return coords, own


def _image(features, coords, attributes, coords_attributes):
    """Return the bytes of an HDF5 file."""
    # In memory, because the HDF5 library crashes later if it could not write to a disk. The name
    # is unique, or threads that write at the same time would open the file of another.
    name, memory = uuid.uuid4().hex, {"driver": "core", "backing_store": False}
    with h5py.File(name, "w", libver=_LIBVER, **memory) as file:
        _create_dataset(file, "features", features)
        if coords is not None:
            _create_dataset(file, "coords", coords)
            _set_attributes(file["coords"], coords_attributes)
        _set_attributes(file, attributes)
        file.flush()
        return file.id.get_file_image()


def _set_attributes(owner, attributes):
    """Set all attributes that are known."""
    for name, value in attributes.items():
        if isinstance(value, str) and value:
            # Text of variable length would lie in a heap that has no checksum, where damage can
            # make the HDF5 library run without end.
            owner.attrs[name] = np.bytes_(value.encode(errors="surrogateescape"))
        elif value not in ("", None) and value == value:
            owner.attrs[name] = value


def _create_dataset(file, name, array):
    options = {}
    if array.size:
        n_rows = max(1, _CHUNK_BYTES // array[0].nbytes)
        options = {"chunks": (min(len(array), n_rows), *array.shape[1:]), "fletcher32": True}
    file.create_dataset(name, data=array, **options)
    # Fletcher's checksum of zeros is zero, so zeroed chunks would pass for good ones.
    file.attrs[f"{name}_crc32"] = zlib.crc32(np.ascontiguousarray(array))


@lru_cache(maxsize=64)
def _sweep(folder):
    """Remove temporary files of killed processes, once per folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_TO_WRITE:
                path.unlink()


def write_features(path, slide, features, key, encoder, weights_hash):
    """Write the features of one slide."""
    coords, coords_attributes, attributes = None, {}, {}
    if isinstance(slide, TiledSlide):
        coords = slide.coords
        coords_attributes, attributes = _slide_attributes(slide)
    attributes |= {"encoder": encoder, "weights_hash": weights_hash, "key": key}
    _write(path, features, coords, attributes, coords_attributes)


def write_bag(path, bag):
    """Write a bag of any origin."""
    features = np.asarray(bag)
    coords_attributes = {"patch_size_level0": bag.size_level0}
    attributes = {"slide": Path(bag.slide).name, "key": store_key(features, bag.encoder)}
    for name in ("encoder", "weights_hash", "mpp", "tile_edge_um"):
        attributes[name] = getattr(bag, name)
    _write(path, features, bag.coords, attributes, coords_attributes)


def _write(path, features, coords, attributes, coords_attributes):
    """Write a file atomically."""
    path = Path(path)
    attributes = {"format_version": FORMAT_VERSION, **attributes}
    content = _image(features, coords, attributes, coords_attributes)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"Features cannot be written to the store: {str(path)!r} ({error}). The file needs "
            f"{len(content) / 1e6:.1f} MB{describe_space(path.parent)}. {CANNOT_WRITE}, or choose "
            "another store. Files in the store remain valid, and a second run continues after "
            "them."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_stored(path, key, shape, slide=None):
    """Return the bag of the file of one slide; None if it is missing, of another key or damaged."""
    stamp = None
    try:
        stamp = os.stat(path)
        file = open_features(path)
        # The shape first, so that a forged one costs no memory.
        if (file.key, file.shape, file.dtype) != (key, tuple(shape), "float32"):
            return None
        file.read_features()
        file.read_coords()
    except (OSError, ValueError) as error:
        if stamp is not None and _is_damage(error):
            _set_aside(Path(path), stamp, error)
        return None
    return FileBag(file, slide)


def _is_damage(error):
    """Return whether the file is at fault, not the system: memory, open files, a disk, rights."""
    cause = error.__cause__ or error
    return not isinstance(cause, MemoryError) and getattr(cause, "errno", None) is None


def _set_aside(path, stamp, error):
    """Rename a file that cannot be read, unless another process has replaced it, and warn."""
    aside = path.with_name(f"{path.name}.damaged")
    kept = ""
    with suppress(OSError):  # a store that is read only, or another process was faster
        if os.path.samestat(stamp, os.stat(path)):
            os.replace(path, aside)
            kept = f", and the file is kept as {aside.name!r}"
    warn_user(f"A file of the store cannot be read: {error} The slide is encoded again{kept}.")
