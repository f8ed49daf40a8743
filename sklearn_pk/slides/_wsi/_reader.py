"""Open slides with whichever library reads them: levels, um/px, tiles, overview, fingerprint."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import openslide
from PIL import Image

from ._czi import CziReader
from ._image import ImageReader
from ._kinds import CZI, PLAIN_IMAGES, TIFF, UnsupportedKind, check_ending
from ._openslide import OpenSlideReader
from ._slide_files import file_state, is_tile_folder, slide_files, slide_state
from ._tiff import FAST_VENDORS, NotInTilesError, TiffReader, stated_mpp, to_float

MPP_RANGE = (0.1, 2.0)
# A level this close to the requested resolution is not resampled: a change of a fraction of a
# percent would only blur every tile.
SAME_RESOLUTION = 0.01
MAX_UPSAMPLING = 1.25
_BLOCK = 2048
_MIB = 1 << 20
_HASHED_COMPLETELY = 8 * _MIB


@dataclass(frozen=True)
class SlideInfo:
    """The header of a slide."""

    path: str
    size: tuple
    level_sizes: tuple
    level_downsamples: tuple
    mpp: float
    objective_power: float


def _open_tiff(path):
    """Open a TIFF with tifffile, in tiles where it has tiles."""
    try:
        return TiffReader(path)
    except NotInTilesError:
        return ImageReader(path)


READERS = {
    "openslide": OpenSlideReader,
    "tifffile": _open_tiff,
    "pillow": ImageReader,
    "pylibCZIrw": CziReader,
}


@lru_cache(maxsize=65536)
def _choose_reader(state):
    """Choose the library that reads a slide; determined once for each content of the file."""
    path = state[0]
    with open(path, "rb") as file:
        start = file.read(len(CZI))
    # The file of a MIRAX slide is a JPEG with its preview.
    if start.startswith(PLAIN_IMAGES) and not path.lower().endswith(".mrxs"):
        return "pillow"
    if start == CZI:
        return "openslide" if _openslide_reads(path) else "pylibCZIrw"
    return _choose_for_tiff(path) if start.startswith(TIFF) else "openslide"


def _openslide_reads(path):
    try:
        with OpenSlideReader(path) as slide:
            level = len(slide.level_sizes) - 1
            slide.read(0, 0, level, *slide.level_sizes[level])
    except ValueError:
        return False
    return True


def _choose_for_tiff(path):
    """Choose tifffile where it returns the same pixels as OpenSlide, or is the only one."""
    try:
        tiff = _open_tiff(path)
    except UnsupportedKind:
        # What tifffile takes for several images may be the format of a vendor.
        if openslide.OpenSlide.detect_format(path) in {None, *FAST_VENDORS}:
            raise
        return "openslide"
    except ValueError:
        return "openslide"
    with tiff:
        try:
            slide = OpenSlideReader(path)
        except ValueError:
            return "tifffile"
        with slide:
            is_same = isinstance(tiff, TiffReader) and tiff.agrees_with(slide)
            return "tifffile" if is_same else "openslide"


def open_slide(path, reader="auto"):
    """Open a slide; every error names it."""
    path = os.fspath(path)
    _check_access(path)
    try:
        check_ending(path)
        first = slide_files(path)[0]
        if is_tile_folder(path):
            raise ValueError(
                f"{path!r} is a folder of tile images, so there is no image of the slide. "
                "SlideTiler takes it as a bag."
            )
        if reader == "auto":
            reader = _choose_reader(file_state(first))
        return READERS[reader](first)
    except UnsupportedKind as error:
        raise ValueError(error.name(path)) from error


def _check_access(path):
    if not os.path.exists(path):
        raise FileNotFoundError(f"Slide not found: {path!r}. Check the path.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"Slide may not be read: {path!r}. Check its permissions.")
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise ValueError(f"Slide is a pipe or a device: {path!r}. Expected a file or a folder.")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ValueError(f"Slide is empty (0 bytes): {path!r}. Copy or download it again.")


def resolve_mpp(path, properties, override=None):
    """Find the um/px of a slide and refuse an implausible value."""
    low, high = MPP_RANGE
    if override is not None and override == override:
        mpp = to_float(override)
        if not low <= mpp <= high:
            raise ValueError(
                f"Slide {path!r}: the column 'mpp' must hold um/px from {low} to {high}, got "
                f"{override!r}."
            )
        return mpp
    x, y = stated_mpp(properties)
    # If both differ, one of them is wrong. NaN fails these comparisons too.
    if low <= (x + y) / 2 <= high and abs(x - y) <= 0.1 * x:
        return (x + y) / 2
    found = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
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
        objective_power=to_float(slide.properties.get("openslide.objective-power")),
    )


def check_slide(path, mpp=None, reader="auto"):
    """Check in milliseconds that a slide can be opened and read, and has a plausible um/px."""
    with open_slide(path, reader) as slide:
        info = slide_info(slide, path, mpp)
        # The header of a truncated file may be whole; its last pixels are not.
        for level in {0, len(slide.level_sizes) - 1}:
            scale = slide.level_downsamples[level]
            x, y = (int((length - 1) * scale) for length in slide.level_sizes[level])
            slide.read(x, y, level, 1, 1)
    return info


def best_level(info, mpp):
    """Find the coarsest pyramid level that is not coarser than `mpp`."""
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
    """Read the whole slide at a low resolution; return level-0 pixels per pixel as well."""
    level = best_level(info, mpp)
    downsample = info.level_downsamples[level]
    factor = max(1, int(mpp * (1 + SAME_RESOLUTION) / (info.mpp * downsample)))
    width, height = info.level_sizes[level]
    overview = np.empty((-(-height // factor), -(-width // factor), 3), dtype=np.uint8)
    # Block by block, each reduced before the next one is read, which bounds the memory.
    step = max(1, _BLOCK // factor) * factor
    for top in range(0, height, step):
        for left in range(0, width, step):
            size = (min(step, width - left), min(step, height - top))
            corner = (round(left * downsample), round(top * downsample))
            block = Image.fromarray(slide.read(*corner, level, *size)).reduce(factor)
            row, column = top // factor, left // factor
            overview[row : row + block.height, column : column + block.width] = block
    return overview, factor * downsample


@lru_cache(maxsize=65536)
def _fingerprint(path, size, *changes):
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        if size <= _HASHED_COMPLETELY:
            digest.update(file.read())
        else:
            for position in np.linspace(0, size - _MIB, 5, dtype=np.int64).tolist():
                file.seek(position)
                digest.update(file.read(_MIB))
    return digest.hexdigest()


def fingerprint(path):
    """Identify the content of a slide, with all its files, without reading all of it."""
    states = slide_state(path)
    parts = [_fingerprint(*state) for state in states]
    if len(parts) == 1:
        return parts[0]
    if is_tile_folder(path):
        # Their names may hold their coordinates.
        names = [os.path.basename(state[0]) for state in states]
        parts = [f"{name}\0{part}\0" for name, part in zip(names, parts, strict=True)]
    # Any file of a DICOM series may come first.
    return hashlib.blake2b("".join(sorted(parts)).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=65536)
def _hash_all(path, *changes):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_version(path, full=False):
    """
    Tell apart slides of the same fingerprint, which is made of samples of large files.

    By a hash of all bytes if `full`, else by inode and times; "" where all bytes were sampled.
    """
    states = slide_state(path)
    if all(state[1] <= _HASHED_COMPLETELY for state in states):
        return ""
    # Any file of a DICOM series may come first.
    if full:
        return f"sha256 {' '.join(sorted(_hash_all(*state) for state in states))}"
    text = repr(sorted(state[1:] for state in states))
    return f"state {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
