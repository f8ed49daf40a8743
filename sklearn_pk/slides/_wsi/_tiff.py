"""Read tiled TIFF slides with tifffile, several times as fast as OpenSlide does."""

# SPDX-License-Identifier: BSD-3-Clause

import logging
import struct
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from xml.etree import ElementTree

import numpy as np
import tifffile

from ._tiff_header import check_tiles

# What tifffile and imagecodecs raise on files that are damaged or no TIFF: they check little
# before they compute with what a header says.
_BAD_FILE = (
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ImportError,  # a codec that imagecodecs was built without
    MemoryError,  # which a header can ask for any amount of
    struct.error,
    ElementTree.ParseError,
)
# Tiles overlap several tiles of the file unless both grids agree; what the neighbours need again
# is kept up to this size.
_CACHE_BYTES = 64 << 20
# It logs whatever is odd about a file, and what is logged where nobody listens is printed. What
# matters is raised.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffSlide:
    """Pixels of a tiled TIFF or SVS file."""

    name = "tifffile"

    def __init__(self, path):
        self._path = path
        self._decoded = OrderedDict()
        self._held = 0
        with ExitStack() as stack, self._named("Not a tiled TIFF that tifffile can read"):
            self._file = stack.enter_context(tifffile.TiffFile(path))
            self._read_header()
            self._close = stack.pop_all().close

    def _read_header(self):
        self._pages = self._find_pages()
        size = self._file.filehandle.size
        for page in self._pages:
            _check_page(page, size)
        following = _next_offset(self._file, self._file.pages[-1])
        if following >= size:
            raise ValueError(f"the file ends at byte {size}, its next image is at {following}")
        self.level_sizes = tuple((page.imagewidth, page.imagelength) for page in self._pages)
        self.size = self.level_sizes[0]
        # As OpenSlide computes them.
        self.level_downsamples = tuple(
            (self.size[0] / width + self.size[1] / height) / 2 for width, height in self.level_sizes
        )
        self.vendor = "aperio" if self._file.is_svs else "generic-tiff"
        self.properties = _read_properties(self._file, self._pages[0])

    def __enter__(self):
        """Return the slide itself."""
        return self

    def __exit__(self, *error):
        """Close the file."""
        self._close()

    @contextmanager
    def _named(self, problem):
        """Turn whatever a bad file causes into an error that names the slide."""
        try:
            yield
        except _BAD_FILE as error:
            raise ValueError(
                f"{problem}: {self._path!r} ({error}). Copy or download it again."
            ) from error

    def _find_pages(self):
        levels = [level.keyframe for level in self._file.series[0].levels]
        tiled = [page for page in levels if page.is_tiled]
        if not tiled or tiled[0] is not levels[0]:
            raise ValueError("its pixels are not stored in tiles")
        return tiled

    @property
    def is_sparse(self):
        """Whether tiles are left out of the file."""
        return any(0 in page.databytecounts for page in self._pages)

    def _tile(self, level, index):
        """Return the pixels of one tile of the file, None where it is left out."""
        key = (level, index)
        if key in self._decoded:
            self._decoded.move_to_end(key)
            return self._decoded[key]
        page = self._pages[level]
        count = page.databytecounts[index]
        if not count:
            return None
        with self._named("Slide is damaged or truncated"):
            file = self._file.filehandle
            file.seek(page.dataoffsets[index])
            # Before decode is looked up: tifffile reads tags from the same file when it needs them.
            data = file.read(count)
            tile = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
        self._decoded[key] = tile
        self._held += tile.nbytes
        while self._held > _CACHE_BYTES:
            self._held -= self._decoded.popitem(last=False)[1].nbytes
        return tile

    def read(self, x, y, level, width, height):
        """Read a rectangle of one level."""
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
                    pixels[target_y, target_x] = tile[inside_y, inside_x, :3]
        return pixels


def _overlaps(start, length, edge, limit):
    """List the tiles of the file along one axis, with what to take of each and where it goes."""
    first, stop = max(start, 0), min(start + length, limit)
    overlaps = []
    for index in range(first // edge, -(-stop // edge) if first < stop else 0):
        low, high = max(first, index * edge), min(stop, (index + 1) * edge)
        inside = slice(low - index * edge, high - index * edge)
        overlaps.append((index, inside, slice(low - start, high - start)))
    return overlaps


def _check_page(page, file_size):
    """Refuse a level that is no 8-bit RGB in tiles, or that is cut off."""
    if page.samplesperpixel not in (3, 4) or page.planarconfig != 1 or page.dtype != np.uint8:
        raise ValueError(
            f"expected 8-bit RGB, got {page.samplesperpixel} samples of {page.dtype} a pixel"
        )
    sides = (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    check_tiles(*sides, min(len(page.dataoffsets), len(page.databytecounts)), file_size)
    ends = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64)
    if ends.max() > file_size:
        raise ValueError(f"the file ends at byte {file_size}, its last tile at {ends.max()}")


def _next_offset(file, page):
    """Return where the image after a page starts, 0 for the last; tifffile stops without a word."""
    layout, handle = file.tiff, file.filehandle
    handle.seek(page.offset)
    (n_tags,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
    handle.seek(page.offset + layout.tagnosize + n_tags * layout.tagsize)
    return struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))[0]


def _read_properties(file, page):
    """Find the um/px and the magnification."""
    properties = {}
    if file.is_svs:
        stated = tifffile.tifffile.svs_description_metadata(page.description)
        mpp = (stated.get("MPP"), stated.get("MPP"))
        properties["openslide.objective-power"] = stated.get("AppMag")
    elif file.is_ome:
        mpp = _ome_mpp(file.ome_metadata)
    else:
        mpp = _tag_mpp(page)
    properties["openslide.mpp-x"], properties["openslide.mpp-y"] = mpp
    return {name: str(value) for name, value in properties.items() if value is not None}


def _ome_mpp(text):
    """Read the um/px of the first image of OME-XML; um is the unit where none is stated."""
    factors = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    sizes = []
    for axis in "XY":
        value = None if pixels is None else pixels.get(f"PhysicalSize{axis}")
        factor = (
            None if pixels is None else factors.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        )
        sizes.append(None if value is None or factor is None else float(value) * factor)
    return tuple(sizes)


def _tag_mpp(page):
    """Read the um/px from the tags of the resolution."""
    if page.resolutionunit not in (2, 3) or "XResolution" not in page.tags:
        return None, None
    return tuple(1 / value if value else None for value in page.get_resolution("MICROMETER"))
