"""Tiles of earlier runs."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Hashable
from functools import cache
from importlib.metadata import version

from ._inputs import CANNOT_WRITE, describe_space
from ._tiling import tile_slide
from ._tissue._masks import choose_tissue, source_key
from ._wsi._reader import file_state, fingerprint


def outcome(function, *args):
    """Return the result of a function, or the error that speaks of a bad slide."""
    try:
        return function(*args)
    except (OSError, ValueError) as error:
        return error


def cache_key(row, params, seed, reader):
    """Return what tells the tiles of one slide from those of all others."""
    try:
        mask = source_key(choose_tissue(params["tissue"], row))
        state = file_state(row.path)
    except (OSError, ValueError):
        return None
    others = (value for name, value in params.items() if name != "tissue")
    key = (state, row.path, row.mpp, mask, *others, seed, reader)
    return key if all(isinstance(value, Hashable) for value in key) else None


@cache
def _versions():
    """Return the versions of all that pixels go through."""
    names = ("sklearn_pk", "openslide-bin", "openslide-python", "tifffile", "imagecodecs", "pillow")
    return tuple(map(version, names))


class _BadSlide(Exception):
    """Tells the error of a slide from those of the memory."""


def _tile_state(state, row, params, seed, reader):
    """Tile a slide; `state` is what joblib knows the result by besides the others."""
    try:
        return tile_slide(row, params, seed, reader)
    except (OSError, ValueError) as error:
        raise _BadSlide(error) from error


def tile_known(row, params, seed, reader, memory):
    """Tile a slide, or take it from the memory of an earlier run."""
    if memory is None:
        return outcome(tile_slide, row, params, seed, reader)
    key = cache_key(row, params, seed, reader)
    # Functions are known by their name, and a changed one would be given what the former found.
    if key is None or any(map(callable, (params["tissue"], row.tissue))):
        return outcome(tile_slide, row, params, seed, reader)
    try:
        state = (_versions(), fingerprint(row.path), key)
        return memory.cache(_tile_state)(state, row, params, seed, reader)
    except _BadSlide as error:
        return error.args[0]
    except OSError as error:
        folder = getattr(memory, "location", None) or "."
        raise OSError(
            f"Tiles of slide {row.path!r} cannot be kept in memory={str(folder)!r} "
            f"({error}){describe_space(folder)}. {CANNOT_WRITE}, or choose another folder."
        ) from error
