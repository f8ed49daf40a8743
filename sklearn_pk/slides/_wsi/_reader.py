"""Open slide files, with OpenSlide or tifffile behind one interface."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ._openslide import OpenSlideReader
from ._overview import read_reduced
from ._tiff import TiffSlide

MPP_RANGE = (0.1, 2.0)
# A level this close to the resolution asked for is read as it is: resampling by a fraction of a
# percent would blur every tile and change nothing else.
SAME_RESOLUTION = 0.01
MAX_UPSAMPLING = 1.25
# Other scanners leave tiles out, let them overlap or write several files.
_FAST_VENDORS = {"aperio", "generic-tiff"}
_PROBE = 256
_MIB = 1 << 20


@dataclass(frozen=True)
class SlideInfo:
    """What the header of a slide says."""

    path: str
    size: tuple
    level_sizes: tuple
    level_downsamples: tuple
    mpp: float
    objective_power: float


def _stated_mpp(slide):
    return [_to_float(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]


def _same_levels(slide, tiff):
    """Compare the headers; OpenSlide sees but one level of OME-TIFF and not its um/px."""
    n_levels = len(slide.level_sizes)
    stated = _stated_mpp(slide)
    return (
        slide.level_sizes == tiff.level_sizes[:n_levels]
        and (n_levels == 1 or len(tiff.level_sizes) == n_levels)
        and np.allclose(slide.level_downsamples, tiff.level_downsamples[:n_levels], rtol=1e-9)
        and (np.isnan(stated).all() or np.allclose(stated, _stated_mpp(tiff), rtol=1e-6))
    )


def _same_pixels(slide, tiff):
    """Compare one tile of each level."""
    for level, (width, height) in enumerate(slide.level_sizes):
        # Where a corner falls between two pixels OpenSlide interpolates, so lower levels are
        # compared at the origin.
        corner = (0, 0) if level else (width // 2, height // 2)
        size = min(_PROBE, width), min(_PROBE, height)
        if not np.array_equal(slide.read(*corner, level, *size), tiff.read(*corner, level, *size)):
            return False
    return True


@lru_cache(maxsize=65536)
def _prefer_tifffile(state):
    """Decide whether tifffile may read a slide, once for each content of the file."""
    path = state[0]
    try:
        tiff = TiffSlide(path)
    except ValueError:
        return False
    with tiff:
        try:
            slide = OpenSlideReader(path)
        except ValueError:
            return True
        with slide, suppress(ValueError):
            return (
                slide.vendor in _FAST_VENDORS
                and not tiff.is_sparse
                and _same_levels(slide, tiff)
                and _same_pixels(slide, tiff)
            )
    return False


def open_slide(path, reader="auto"):
    """Open a slide and turn every failure to read it into an error that names it."""
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"Slide not found: {path!r}. Check the path.")
    if os.path.isdir(path):
        raise ValueError(f"Expected a slide file, got a folder: {path!r}.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"Slide may not be read: {path!r}. Check its permissions.")
    if os.path.getsize(path) == 0:
        raise ValueError(f"Slide is empty (0 bytes): {path!r}. Copy or download it again.")
    if reader == "tifffile":
        return TiffSlide(path)
    fast = reader == "auto" and _prefer_tifffile(file_state(path))
    return TiffSlide(path) if fast else OpenSlideReader(path)


def _to_float(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def resolve_mpp(path, properties, override=None):
    """Find the um/px of a slide and refuse an implausible value."""
    low, high = MPP_RANGE
    if override is not None and override == override:
        mpp = _to_float(override)
        if not low <= mpp <= high:
            raise ValueError(
                f"Slide {path!r}: the column 'mpp' must hold um/px from {low} to {high}, got "
                f"{override!r}."
            )
        return mpp
    found = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    x, y = (_to_float(value) for value in found)
    # Anisotropic pixels mean that one of both is wrong. NaN fails these comparisons too.
    if low <= (x + y) / 2 <= high and abs(x - y) <= 0.1 * x:
        return (x + y) / 2
    shown = found[0] if found[0] == found[1] else tuple(found)
    raise ValueError(
        f"Slide {path!r} states no plausible resolution: expected {low} to {high} um/px, found "
        f"{shown!r}. State it yourself: pass X as a DataFrame with the columns 'slide' and 'mpp' "
        "(um/px of level 0)."
    )


def slide_info(slide, path, mpp=None):
    """Read the header of an open slide."""
    return SlideInfo(
        path=path,
        size=slide.size,
        level_sizes=slide.level_sizes,
        level_downsamples=slide.level_downsamples,
        mpp=resolve_mpp(path, slide.properties, mpp),
        objective_power=_to_float(slide.properties.get("openslide.objective-power")),
    )


def check_slide(path, mpp=None, reader="auto"):
    """Check in milliseconds that a slide opens, has pixels and a plausible um/px."""
    with open_slide(path, reader) as slide:
        info = slide_info(slide, path, mpp)
        # The header of a truncated file may be whole; its last pixels are not.
        for level in {0, len(slide.level_sizes) - 1}:
            scale = slide.level_downsamples[level]
            x, y = (int((length - 1) * scale) for length in slide.level_sizes[level])
            slide.read(x, y, level, 1, 1)
    return info


def best_level(info, mpp):
    """Find the pyramid level with the largest downsample that is not coarser than asked."""
    limit = mpp * (1 + SAME_RESOLUTION)
    fine = [
        (downsample, level)
        for level, downsample in enumerate(info.level_downsamples)
        if info.mpp * downsample <= limit
    ]
    return max(fine)[1] if fine else 0


def read_tile(slide, x, y, level, read_size, tile_size):
    """Read one tile."""
    pixels = slide.read(x, y, level, read_size, read_size)
    if read_size == tile_size:
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((tile_size, tile_size), Image.Resampling.BICUBIC))


def read_overview(slide, info, mpp):
    """Read the whole slide at a low resolution, in blocks."""
    level = best_level(info, mpp)
    downsample = info.level_downsamples[level]
    factor = max(1, int(mpp * (1 + SAME_RESOLUTION) / (info.mpp * downsample)))

    def read(x, y, size):
        return Image.fromarray(slide.read(x, y, level, *size))

    overview = read_reduced(read, info.level_sizes[level], downsample, factor)
    return overview, factor * downsample


def file_state(path):
    """Return what changes when a file changes: its resolved path, size and time."""
    path = os.path.realpath(path)
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=65536)
def _fingerprint(path, size, mtime_ns):
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        if size <= 8 * _MIB:
            digest.update(file.read())
        else:
            for position in np.linspace(0, size - _MIB, 5, dtype=np.int64).tolist():
                file.seek(position)
                digest.update(file.read(_MIB))
    # MIRAX keeps its pixels in a folder beside the file.
    folder = Path(path).with_suffix("")
    if path.lower().endswith(".mrxs") and folder.is_dir():
        for part in sorted(folder.iterdir()):
            digest.update(f"{part.name}:{part.stat().st_size}".encode())
    return digest.hexdigest()


def fingerprint(path):
    """Identify the content of a slide without reading all of it."""
    return _fingerprint(*file_state(path))
