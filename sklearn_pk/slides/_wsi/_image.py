"""Read images without tiles, such as PNG, JPEG and TIFF in strips, into memory."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
import zlib
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import tifffile
from PIL import Image

from ._kinds import (
    NO_STAIN,
    PLAIN_IMAGES,
    TO_EIGHT_BITS,
    TO_SRGB,
    TO_TILES,
    UnsupportedKind,
    compose,
    find_conversion,
    find_levels,
    has_raw_ycbcr,
)
from ._tiff import BAD_TIFF, check_ends, count_planes, name_damage, read_properties

# 384 MiB of RGB, and up to 1 GiB while it is decoded.
MAX_PIXELS = 1 << 27
_BAND = 256
BAD_IMAGE = (*BAD_TIFF, SyntaxError, zlib.error, Image.DecompressionBombError)
# Other formats of Pillow are no images of tissue, or start programs (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_COLOR_MODES = ("RGB", "RGBA", "P", "PA")


class ImageReader:
    """Pixels of an image that is read as a whole; it is the only level."""

    level_downsamples = (1.0,)

    def __init__(self, path):
        self._path = path
        with open(path, "rb") as file:
            is_plain = file.read(8).startswith(PLAIN_IMAGES)
        self.library = "pillow" if is_plain else "tifffile"
        describe, self._read = (
            (_describe_image, _read_image) if is_plain else (_describe_tiff, _read_tiff)
        )
        with _name_image(path, self.library):
            self.vendor, self.size, self.properties = describe(path)
        width, height = self.size
        if width * height > MAX_PIXELS:
            raise UnsupportedKind(
                f"an image without tiles of {width} x {height} pixels, and images of more than "
                f"{MAX_PIXELS:,} pixels are not read into memory",
                TO_TILES,
            )
        self.level_sizes = (self.size,)

    def __enter__(self):
        """Return the slide itself."""
        return self

    def __exit__(self, *error):
        """Forget the pixels."""
        self.__dict__.pop("pixels", None)

    @cached_property
    def pixels(self):
        """RGB pixels of the whole image."""
        with name_damage(self._path, BAD_IMAGE):
            return self._read(self._path)

    def read(self, x, y, level, width, height):
        """Read a rectangle; (x, y) is its corner."""
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top = max(x, 0), max(y, 0)
        inside = self.pixels[top : max(y + height, 0), left : max(x + width, 0)]
        n_rows, n_columns = inside.shape[:2]
        region[top - y : top - y + n_rows, left - x : left - x + n_columns] = inside
        return region


@contextmanager
def _name_image(path, library):
    try:
        yield
    except UnsupportedKind:
        raise
    except BAD_IMAGE as error:
        raise ValueError(
            f"Not an image that {library} can read: {path!r} ({error}). Expected PNG, JPEG, BMP, "
            "WebP or TIFF, complete to its last byte."
        ) from error


@contextmanager
def _open_image(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is MAX_PIXELS
        with Image.open(path, formats=_FORMATS) as image:
            yield image


def _describe_image(path):
    """Return format, size and um/px of an image; refuse pixels that are not 8-bit RGB."""
    if path.lower().endswith(".mrxs"):
        advice = "Pass reader='auto'."
        raise UnsupportedKind("a MIRAX slide, and this file holds only its preview", advice=advice)
    with _open_image(path) as image:
        if image.mode == "CMYK":
            raise UnsupportedKind("an image of printing inks (CMYK)", TO_SRGB)
        if image.mode not in _COLOR_MODES:
            kind = f"a {image.format} image without colour (mode {image.mode!r} of Pillow)"
            raise UnsupportedKind(kind, advice=NO_STAIN)
        if image.format == "PNG":
            _check_png_depth(path)
        properties = {
            f"openslide.mpp-{axis}": str(25_400 / float(dpi))
            for axis, dpi in zip("xy", image.info.get("dpi", ()), strict=False)
            if dpi
        }
        return image.format.lower(), image.size, properties


def _check_png_depth(path):
    # Pillow reduces 16 bits to 8 without a word.
    with open(path, "rb") as file:
        depth = file.read(25)[24]
    if depth > 8:
        advice = "Only the upper 8 bits can be kept."
        raise UnsupportedKind(f"a PNG of {depth} bits per sample", TO_EIGHT_BITS, advice)


def _read_image(path):
    with _open_image(path) as image:
        is_opaque = image.mode == "RGB" and "transparency" not in image.info
        width, height = image.size
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        # Band by band, which bounds the memory.
        for top in range(0, height, _BAND):
            band = image.crop((0, top, width, min(top + _BAND, height)))
            pixels[top : top + _BAND] = band if is_opaque else compose(band.convert("RGBA"))
        return pixels


def _describe_tiff(path):
    with tifffile.TiffFile(path) as file:
        page = find_levels(file)[0]
        find_conversion(page)
        if has_raw_ycbcr(page):
            kind = "a TIFF of YCbCr pixels that are not compressed as JPEG"
            raise UnsupportedKind(kind, TO_TILES)
        if 0 in page.databytecounts:
            raise UnsupportedKind("a TIFF in strips, some of which are left out", TO_TILES)
        size = (page.imagewidth, page.imagelength)
        return "generic-tiff", size, read_properties(file, page)


def _read_tiff(path):
    with tifffile.TiffFile(path) as file:
        page = find_levels(file)[0]
        check_ends(page, file)
        pixels = page.asarray(maxworkers=1)
        if count_planes(page) > 1:
            pixels = np.moveaxis(pixels, 0, -1)
        elif pixels.ndim == 2:
            pixels = pixels[..., np.newaxis]
        return find_conversion(page)(pixels)
