"""Read tiled TIFF slides with tifffile, several times as fast as OpenSlide."""

# SPDX-License-Identifier: BSD-3-Clause

import logging
import math
import struct
from collections import OrderedDict
from contextlib import ExitStack, contextmanager, suppress
from xml.etree import ElementTree

import numpy as np
import tifffile

from ._kinds import UnsupportedKind, find_conversion, find_levels, has_raw_ycbcr

# What tifffile and imagecodecs raise on damaged files and on files that are not TIFF.
BAD_TIFF = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError, struct.error, ElementTree.ParseError),
    ImportError,  # a codec that imagecodecs was built without
    MemoryError,  # the header declares sizes that do not exist
)
# Where both grids differ, a tile overlaps several tiles of the file, which its neighbours need too.
_CACHE_BYTES = 64 << 20
_MAX_TILE_BYTES = 64 << 20
_PROBE = 256
# Other scanners leave tiles out, let them overlap or write several files.
FAST_VENDORS = {"aperio", "generic-tiff"}
_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
# Without a handler its messages would be printed; what matters is raised.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def to_float(value):
    """Return a number that a file states, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def stated_mpp(properties):
    """Return the um/px along x and y that a slide states."""
    return [to_float(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]


class NotInTilesError(ValueError):
    """A TIFF that cannot be read in parts."""


class TiffReader:
    """Pixels of a TIFF or SVS file whose levels are 8-bit RGB in tiles."""

    library = "tifffile"

    def __init__(self, path):
        self._path = path
        self._decoded = OrderedDict()
        self._decoded_bytes = 0
        with ExitStack() as stack, _name_header(path):
            self._file = stack.enter_context(tifffile.TiffFile(path))
            self._read_header()
            self._close = stack.pop_all().close

    def _read_header(self):
        file = self._file
        levels = find_levels(file)
        self._pages = [page for page in levels if page.is_tiled]
        if not self._pages or self._pages[0] is not levels[0]:
            raise NotInTilesError("its pixels are not stored in tiles")
        if has_raw_ycbcr(levels[0]):
            raise ValueError("its pixels are YCbCr, which only OpenSlide converts")
        self._to_rgb = [find_conversion(page) for page in self._pages]
        for page in self._pages:
            _check_tiles(page)
            check_ends(page, file)
        _check_last_page(file)
        self.level_sizes = tuple((page.imagewidth, page.imagelength) for page in self._pages)
        self.size = self.level_sizes[0]
        # As OpenSlide computes them.
        self.level_downsamples = tuple(
            (self.size[0] / width + self.size[1] / height) / 2 for width, height in self.level_sizes
        )
        self.vendor = "aperio" if file.is_svs else "generic-tiff"
        self.properties = read_properties(file, self._pages[0])

    def __enter__(self):
        """Return the slide itself."""
        return self

    def __exit__(self, *error):
        """Close the file."""
        self._close()

    def _tile(self, level, index):
        """Return the RGB pixels of one tile of the file, None where it is left out."""
        key = (level, index)
        if key in self._decoded:
            self._decoded.move_to_end(key)
            return self._decoded[key]
        page = self._pages[level]
        # Each plane of a planar image has its own tiles.
        n_planes = count_planes(page)
        n_tiles = len(page.databytecounts) // n_planes
        indices = [index + plane * n_tiles for plane in range(n_planes)]
        if not all(page.databytecounts[each] for each in indices):
            return None
        with name_damage(self._path):
            planes = [self._decode(page, each) for each in indices]
        tile = self._to_rgb[level](planes[0] if n_planes == 1 else np.concatenate(planes, axis=-1))
        self._decoded[key] = tile
        self._decoded_bytes += tile.nbytes
        while self._decoded_bytes > _CACHE_BYTES:
            self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, page, index):
        file = self._file.filehandle
        file.seek(page.dataoffsets[index])
        # Before decode is looked up: tifffile reads tags from the same file when it needs them.
        data = file.read(page.databytecounts[index])
        return page.decode(data, index, jpegtables=page.jpegtables)[0][0]

    def read(self, x, y, level, width, height):
        """Read a rectangle of one level; (x, y) is its corner in level-0 pixels."""
        page = self._pages[level]
        left, top = (round(value / self.level_downsamples[level]) for value in (x, y))
        rows = _overlaps(top, height, page.tilelength, page.imagelength)
        columns = _overlaps(left, width, page.tilewidth, page.imagewidth)
        per_row = -(-page.imagewidth // page.tilewidth)
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        for row, inside_y, target_y in rows:
            for column, inside_x, target_x in columns:
                tile = self._tile(level, row * per_row + column)
                if tile is not None:
                    pixels[target_y, target_x] = tile[inside_y, inside_x]
        return pixels

    def agrees_with(self, slide):
        """Return whether OpenSlide finds the same levels, um/px and pixels."""
        is_sparse = any(0 in page.databytecounts for page in self._pages)
        if is_sparse or slide.vendor not in FAST_VENDORS or not self._same_header(slide):
            return False
        with suppress(ValueError):
            return all(self._same_pixels(slide, level) for level in range(len(slide.level_sizes)))
        return False

    def _same_header(self, slide):
        # Of OME-TIFF, OpenSlide sees only one level and no um/px.
        n_levels = len(slide.level_sizes)
        expected, found = stated_mpp(slide.properties), stated_mpp(self.properties)
        return (
            slide.level_sizes == self.level_sizes[:n_levels]
            and n_levels in (1, len(self.level_sizes))
            and (np.isnan(expected).all() or np.allclose(expected, found, rtol=1e-6))
        )

    def _same_pixels(self, slide, level):
        width, height = slide.level_sizes[level]
        # Where a corner falls between two pixels OpenSlide interpolates, so lower levels are
        # compared at the origin.
        corner = (0, 0) if level else (width // 2, height // 2)
        region = (*corner, level, min(_PROBE, width), min(_PROBE, height))
        return np.array_equal(slide.read(*region), self.read(*region))


def _overlaps(start, length, edge, limit):
    """List the tiles of the file along one axis, with what to take of each and where it goes."""
    first, stop = max(start, 0), min(start + length, limit)
    overlaps = []
    for index in range(first // edge, -(-stop // edge) if first < stop else 0):
        low, high = max(first, index * edge), min(stop, (index + 1) * edge)
        inside = slice(low - index * edge, high - index * edge)
        overlaps.append((index, inside, slice(low - start, high - start)))
    return overlaps


@contextmanager
def _name_header(path):
    try:
        yield
    except (UnsupportedKind, NotInTilesError):
        raise
    except DamagedTiffError as error:
        raise ValueError(damaged(path, error)) from error
    except BAD_TIFF as error:
        raise ValueError(
            f"Not a TIFF that tifffile can read: {path!r} ({error}). Expected a tiled TIFF or SVS "
            "file, complete to its last byte."
        ) from error


@contextmanager
def name_damage(path, errors=BAD_TIFF):
    """Say of errors while pixels are decoded that the slide is damaged."""
    try:
        yield
    except errors as error:
        raise ValueError(damaged(path, error)) from error


def damaged(path, error):
    """Return the text of the error for a damaged slide."""
    return f"Slide is damaged or truncated: {path!r} ({error}). Copy or download it again."


def count_planes(page):
    """Return the number of parts that hold one channel each."""
    return 1 if page.planarconfig == tifffile.PLANARCONFIG.CONTIG else page.samplesperpixel


def check_ends(page, file):
    """Refuse a page whose pixels are cut off."""
    ends = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64)
    if ends.max() > file.filehandle.size:
        raise DamagedTiffError(
            f"the file ends at byte {file.filehandle.size}, its last tile at {ends.max()}"
        )


def _check_last_page(file):
    # tifffile stops without an error where the next image is cut off.
    file.filehandle.seek(file.pages.next_page_offset)
    link = file.filehandle.read(file.tiff.offsetsize)
    (following,) = struct.unpack(file.tiff.offsetformat, link)
    if following:
        raise DamagedTiffError(
            f"the file ends at byte {file.filehandle.size}, its next image is at {following}"
        )


class DamagedTiffError(ValueError):
    """A header that declares pixels which do not exist."""


def _check_tiles(page):
    width, height = page.imagewidth, page.imagelength
    tile_width, tile_height = page.tilewidth, page.tilelength
    if not all((width, height, tile_width, tile_height)):
        raise DamagedTiffError(
            f"{width} x {height} pixels in tiles of {tile_width} x {tile_height} are declared"
        )
    if 4 * tile_width * tile_height > _MAX_TILE_BYTES:
        raise DamagedTiffError(f"tiles of {tile_width} x {tile_height} pixels are too large")
    tags = [page.tags.get(name) for name in ("TileOffsets", "TileByteCounts")]
    n_listed = min(0 if tag is None else tag.count for tag in tags)
    expected = -(-width // tile_width) * -(-height // tile_height) * count_planes(page)
    if n_listed < expected:
        raise DamagedTiffError(f"{n_listed} tiles are listed, expected {expected}")


def check_tiff(path, vendor):
    """
    Refuse a TIFF before OpenSlide reads it.

    Return whether all pages that OpenSlide takes for levels are levels.
    """
    # OpenSlide ends the process where it gets no memory for a tile, reads tiles that are not
    # listed as white, and makes RGB of any pixels.
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for page in file.pages if page.is_tiled]
            for page in pages:
                _check_tiles(page)
            if vendor not in FAST_VENDORS:
                # The pages of other vendors have an order of their own.
                find_conversion(file.series[0].keyframe)
                return True
            for page in pages:
                check_ends(page, file)
            levels = find_levels(file)
            for page in levels:
                find_conversion(page)
            if file.is_svs:
                # tifffile takes the second page for the thumbnail, which anonymised files lack.
                levels = [*levels, *(page for page in pages if _is_level_of(levels[0], page))]
            offsets = {page.offset for page in levels}
            used = [file.pages[0], *(page for page in pages if page.is_reduced)]
            return all(page.offset in offsets for page in used)
    except (DamagedTiffError, UnsupportedKind):
        raise
    except BAD_TIFF:
        return True  # Not a TIFF, or OpenSlide reports what is wrong with it.


def _is_level_of(first, page):
    """Return whether a page has the colours of the first level, and its shape, but smaller."""
    kinds = [(each.photometric, each.samplesperpixel, each.bitspersample) for each in (first, page)]
    ratios = [first.imagewidth / page.imagewidth, first.imagelength / page.imagelength]
    return kinds[0] == kinds[1] and abs(ratios[0] / ratios[1] - 1) < 0.02 and ratios[0] > 1


def read_properties(file, page):
    """Find the um/px and the magnification, under the names that OpenSlide gives them."""
    properties = {}
    if file.is_svs:
        stated = tifffile.tifffile.svs_description_metadata(page.description)
        mpp = (stated.get("MPP"), stated.get("MPP"))
        properties["openslide.objective-power"] = stated.get("AppMag")
    elif file.is_ome:
        mpp = _ome_mpp(file.ome_metadata)
    elif page.resolutionunit in (2, 3) and "XResolution" in page.tags:
        mpp = [1 / value if value else None for value in page.get_resolution("MICROMETER")]
    else:
        mpp = (None, None)
    properties["openslide.mpp-x"], properties["openslide.mpp-y"] = mpp
    return {name: str(value) for name, value in properties.items() if value is not None}


def _ome_mpp(text):
    """Read the um/px of the first image of OME-XML; um is the unit where none is stated."""
    pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    sizes = []
    for axis in "XY":
        value = None if pixels is None else pixels.get(f"PhysicalSize{axis}")
        factor = value and _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(float(value) * factor if factor else None)
    return sizes
