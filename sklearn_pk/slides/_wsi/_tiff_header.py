"""A look at the header of a TIFF before a C library computes with it."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import struct
from itertools import pairwise

MAX_TILE_BYTES = 64 << 20
# White background packs a few hundred times, and a tile that is left out takes 8 bytes or more.
MAX_EXPANSION = 20_000
_MAX_PAGES = 1000
_MAX_TAGS = 4096
_TYPES = {3: "H", 4: "I", 16: "Q"}
_SUBFILE, _WIDTH, _HEIGHT, _DESCRIPTION, _SOFTWARE = 254, 256, 257, 270, 305
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS = 322, 323, 324
# They say in XML or in a way of their own which images are levels.
_OTHER_WRITERS = (b"<", b"Philips", b"MedScan", b"Hamamatsu")


class _Pages:
    """Tags of the pages of a TIFF, one page after another."""

    def __init__(self, file):
        self._file = file
        start = file.read(8)
        self._order = {b"II": "<", b"MM": ">"}.get(start[:2])
        kind = self._order and self._unpack("H", start[2:4])
        self.is_tiff = kind in (42, 43)
        self._layout = ("Q", "Q", "HHQ", 20) if kind == 43 else ("H", "I", "HHI", 12)
        if kind == 42:
            self._first = start[4:8]
        elif kind == 43:
            self._first = file.read(8)

    def _unpack(self, form, data):
        return struct.unpack(self._order + form, data)[0]

    def __iter__(self):
        """Yield a dict of tags to (count, value or the bytes of it), until the chain ends."""
        if not self.is_tiff:
            return
        number, offset, _, size = self._layout
        place, seen = self._unpack(offset, self._first), set()
        while place and place not in seen and len(seen) < _MAX_PAGES:
            seen.add(place)
            self._file.seek(place)
            n_tags = self._unpack(number, self._file.read(struct.calcsize("<" + number)))
            if n_tags > _MAX_TAGS:
                return
            entries = self._file.read(n_tags * size)
            following = self._file.read(struct.calcsize("<" + offset))
            yield dict(
                self._tag(entries[start : start + size]) for start in range(0, len(entries), size)
            )
            place = self._unpack(offset, following)

    def _tag(self, entry):
        form = self._layout[2]
        code, kind, count = struct.unpack(self._order + form, entry[: struct.calcsize("<" + form)])
        value = entry[struct.calcsize("<" + form) :]
        if count == 1 and kind in _TYPES:
            code_of_type = _TYPES[kind]
            width = struct.calcsize("<" + code_of_type)
            if width <= len(value):
                return code, (count, self._unpack(code_of_type, value[:width]))
        return code, (count, value)

    def text(self, page, tag):
        """Return how a text begins."""
        count, value = page.get(tag, (0, b""))
        if not isinstance(value, bytes) or count <= len(value):
            return value if isinstance(value, bytes) else b""
        self._file.seek(self._unpack(self._layout[1], value))
        return self._file.read(min(count, 32))


def check_tiff_header(path):
    """Refuse a TIFF that declares tiles of any size, or more pixels than the file can hold."""
    levels = []
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        pages = _Pages(file)
        try:
            known = True
            for page in pages:
                tags = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
                sides = [page.get(tag, (0, None))[1] for tag in tags]
                if not all(isinstance(side, int) for side in sides):
                    continue
                check_tiles(*sides, page.get(_OFFSETS, (0, 0))[0], size)
                levels.append((sides, page.get(_SUBFILE, (1, 0))[1]))
                texts = [pages.text(page, tag) for tag in (_DESCRIPTION, _SOFTWARE)]
                known = known and not any(text.startswith(_OTHER_WRITERS) for text in texts)
        except (struct.error, OverflowError, OSError):
            return
    if known:
        _check_order(levels)


def check_tiles(width, height, tile_width, tile_height, n_listed, file_size):
    """Refuse a level that declares too much."""
    if not all((width, height, tile_width, tile_height)):
        raise ValueError(
            f"{width} x {height} pixels in tiles of {tile_width} x {tile_height} are declared"
        )
    if 4 * tile_width * tile_height > MAX_TILE_BYTES:
        raise ValueError(f"tiles of {tile_width} x {tile_height} pixels are too large")
    expected = -(-width // tile_width) * -(-height // tile_height)
    if n_listed < expected:
        raise ValueError(f"{n_listed} tiles are listed, expected {expected}")
    if 3 * width * height > MAX_EXPANSION * file_size:
        raise ValueError(
            f"{width} x {height} pixels are declared, which a file of {file_size} bytes cannot hold"
        )


def _check_order(levels):
    """Refuse levels of which one is finer than the one before: OpenSlide writes to the terminal."""
    sides = [level[0] for number, level in enumerate(levels) if not number or level[1] in (0, 1)]
    sides = sorted(sides, key=lambda each: -each[0])
    downsamples = [(sides[0][0] / side[0] + sides[0][1] / side[1]) / 2 for side in sides]
    if any(later < earlier for earlier, later in pairwise(downsamples)):
        raise ValueError(f"the levels do not get smaller by {downsamples}")
