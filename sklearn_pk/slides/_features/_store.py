"""The feature store: one HDF5 file a slide, in a layout that other tools read."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from .._inputs import CANNOT_WRITE, describe_space
from .._tiler import TiledSlide
from .._wsi._reader import fingerprint
from ._feature_bag import FileBag
from ._formats import checksum, open_features
from ._seal import USER_BLOCK, make_seal

FORMAT_VERSION = 2
# Nobody writes a file for a day.
_SECONDS_TO_WRITE = 24 * 3600


def store_key(slide, encoder_key):
    """Compute what tells the features of one slide from all others."""
    digest = hashlib.blake2b(f"{FORMAT_VERSION}\0{encoder_key}\0".encode(), digest_size=16)
    if isinstance(slide, TiledSlide):
        geometry = (slide.tile_size, slide.level, slide.read_size, slide.size_level0)
        resolution = (slide.mpp, slide.slide_mpp)
        if slide.level_downsample % 1:
            # Between two pixels of a level, the readers do not give quite the same.
            resolution += (slide.reader,)
        content = slide.content or fingerprint(slide.path)
        digest.update(f"{content}\0{geometry}\0{resolution}\0".encode())
        digest.update(np.ascontiguousarray(slide.coords).tobytes())
    else:
        digest.update(f"{slide.shape}\0".encode())
        digest.update(np.ascontiguousarray(slide))
    return digest.hexdigest()


def store_path(folder, slide, key):
    """Name the file of one slide."""
    name = slide.name if isinstance(slide, TiledSlide) else "tiles"
    return Path(folder) / f"{name[:100]}-{key[:12]}.h5"


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
        "reader": slide.reader,
        "level": slide.level,
        "read_size": slide.read_size,
        "tile_edge_um": slide.tile_edge_um,
        "tiling": repr(slide.params),
        "coords_unit": "level-0 pixels",
    }
    return _known(coords), _known(own)


def _pack(slide, features, key, encoder, weights_hash):
    """Return the content of a file in two parts: its seal, and what HDF5 makes of the features."""
    # In memory, because the HDF5 library crashes later on once it could not write to a disk.
    memory = {"driver": "core", "backing_store": False, "userblock_size": USER_BLOCK}
    # A name of its own, or threads that write at the same time would open one another's.
    with h5py.File(uuid.uuid4().hex, "w", **memory) as file:
        place = file.create_dataset("features", data=features)
        own = {}
        if isinstance(slide, TiledSlide):
            coords, own = _slide_attributes(slide)
            file.create_dataset("coords", data=slide.coords).attrs.update(coords)
        file.attrs.update(own)
        file.attrs["encoder"] = encoder
        file.attrs["weights_hash"] = weights_hash
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["checksum"] = checksum([features])
        file.attrs["key"] = key
        file.attrs["complete"] = True
        file.flush()
        start = place.id.get_offset()
        image = file.id.get_file_image()
    return make_seal(image, start, start + features.nbytes), image


@lru_cache(maxsize=64)
def _sweep(folder):
    """Remove what processes have left that were killed while they wrote, once in each folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_TO_WRITE:
                path.unlink()


def write_features(path, slide, features, key, encoder, weights_hash):
    """Write the features of one slide, so that the file is there whole or not at all."""
    path = Path(path)
    content = _pack(slide, features, key, encoder, weights_hash)
    # The same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with open(temporary, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"Features cannot be written to the store: {str(path)!r} ({error}). The file needs "
            f"{sum(map(len, content)) / 1e6:.1f} MB{describe_space(path.parent)}. {CANNOT_WRITE}, "
            "or choose another store. What is in the store stays good, and a second run goes on "
            "after it."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_stored(path, key, shape, slide=None):
    """Make a bag of the file of one slide if it is there and good."""
    try:
        file = open_features(path)
        # The shape first, so that a forged one costs no memory.
        if not file.sealed or (file.key, file.shape, file.dtype) != (key, tuple(shape), "float32"):
            return None
        return FileBag(file, slide) if file.is_intact() else None
    except (OSError, ValueError):
        return None
