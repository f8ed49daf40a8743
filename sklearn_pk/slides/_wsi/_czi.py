"""Read CZI files that OpenSlide does not read, with pylibCZIrw."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import ExitStack, contextmanager
from itertools import product

import numpy as np

from ._kinds import BFCONVERT, UnsupportedKind

# Levels are halves of the level above, until both edges are smaller.
_SMALLEST = 1024
_PROBE = 256


class CziReader:
    """Pixels of a CZI file of one plane of 8-bit RGB."""

    library = "pylibCZIrw"
    vendor = "zeiss"

    def __init__(self, path):
        try:
            from pylibCZIrw import czi
        except ImportError as error:
            advice = "It can be read after: pip install 'sklearn_pk[czi]'."
            raise UnsupportedKind(
                "a CZI file that OpenSlide does not read", BFCONVERT, advice
            ) from error
        self._path = path
        with ExitStack() as stack, self._name_slide():
            self._file = stack.enter_context(czi.open_czi(path))
            self._read_header()
            self._close = stack.pop_all().close

    def _read_header(self):
        box = self._file.total_bounding_box
        (left, right), (top, bottom) = box.pop("X"), box.pop("Y")
        several = {axis: stop - start for axis, (start, stop) in box.items() if stop - start > 1}
        if several:
            raise UnsupportedKind(f"a CZI file of several planes {several!r}", BFCONVERT)
        types = sorted(set(self._file.pixel_types.values()))
        if types != ["Bgr24"]:
            raise UnsupportedKind(f"a CZI file of {', '.join(types)} pixels", BFCONVERT)
        self._corner, self.size = (left, top), (right - left, bottom - top)
        self._plane = {axis: start for axis, (start, _) in box.items()}
        n_levels = max(1, 1 + int(np.ceil(np.log2(max(self.size) / _SMALLEST))))
        if self._lacks_pyramid():
            n_levels = 1
        self.level_downsamples = tuple(float(1 << level) for level in range(n_levels))
        self.level_sizes = tuple(
            tuple(length >> level for length in self.size) for level in range(n_levels)
        )
        self.properties = _read_scaling(self._file.metadata)

    def _lacks_pyramid(self):
        # Without one, libCZI makes levels by taking every second pixel, which is no resampling.
        width, height = (max(1, min(length // 8, _PROBE)) for length in self.size)
        for part in product((2, 1, 3), repeat=2):
            corner = [length * at // 4 for length, at in zip(self.size, part, strict=True)]
            fine = self.read(*corner, 0, 2 * width, 2 * height)
            if (fine == fine[0, 0]).all():
                continue  # nothing to see
            coarse = self.read(*corner, 1, width, height)
            return any(np.array_equal(coarse, fine[y::2, x::2]) for x in (0, 1) for y in (0, 1))
        return True

    def __enter__(self):
        """Return the slide itself."""
        return self

    def __exit__(self, *error):
        """Close the file."""
        self._close()

    @contextmanager
    def _name_slide(self):
        try:
            yield
        except UnsupportedKind:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"pylibCZIrw cannot read the slide {self._path!r} ({error}). Compare its size with "
                "that of the source, and copy or download it again if it is incomplete."
            ) from error

    def read(self, x, y, level, width, height):
        """Read a rectangle of one level; (x, y) is its corner in level-0 pixels."""
        scale = 1 << level
        corner = (self._corner[0] + x, self._corner[1] + y)
        with self._name_slide():
            pixels = self._file.read(
                roi=(*corner, width * scale, height * scale),
                plane=self._plane,
                zoom=1 / scale,
                background_pixel=(1.0, 1.0, 1.0),
            )
        return np.ascontiguousarray(pixels[..., ::-1])


def _read_scaling(metadata):
    """Find the um/px, under the names that OpenSlide gives them."""
    scaling = (metadata["ImageDocument"]["Metadata"] or {}).get("Scaling") or {}
    distances = (scaling.get("Items") or {}).get("Distance") or []
    return {
        f"openslide.mpp-{each['@Id'].lower()}": str(float(each["Value"]) * 1e6)
        for each in (distances if isinstance(distances, list) else [distances])
        if each.get("@Id") in ("X", "Y") and each.get("Value")
    }
