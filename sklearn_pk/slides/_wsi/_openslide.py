"""Read slides with OpenSlide."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager

import numpy as np
import openslide
from PIL import Image

from ._slide_files import check_dicom
from ._tiff import DamagedTiffError, check_tiff, damaged


class OpenSlideReader:
    """Pixels of a slide that OpenSlide opens."""

    library = "openslide"

    def __init__(self, path):
        self._path = path
        self.vendor = openslide.OpenSlide.detect_format(path) or ""
        check_dicom(path)
        try:
            only_levels = check_tiff(path, self.vendor)
        except DamagedTiffError as error:
            raise ValueError(damaged(path, error)) from error
        if not only_levels:
            raise ValueError(
                f"OpenSlide takes other pages of {path!r}, such as masks, for levels of the slide. "
                "Pass reader='auto' or 'tifffile'."
            )
        if not self.vendor:
            raise ValueError(
                f"Not a slide that OpenSlide can read: {path!r}. Expected a whole slide image "
                "such as SVS, tiled pyramidal TIFF, NDPI, MRXS or DICOM, complete to its last "
                "byte; with reader='auto' also PNG, JPEG or any TIFF of 8-bit RGB."
            )
        with self._name_slide():
            self._slide = openslide.OpenSlide(path)
            self.size = self._slide.dimensions
            self.level_sizes = self._slide.level_dimensions
            self.level_downsamples = self._slide.level_downsamples
            self.properties = self._slide.properties

    def __enter__(self):
        """Return the slide itself."""
        return self

    def __exit__(self, *error):
        """Close the file."""
        self._slide.close()

    @contextmanager
    def _name_slide(self):
        try:
            yield
        except openslide.OpenSlideError as error:
            raise ValueError(
                f"OpenSlide cannot read the slide {self._path!r} ({error}). Compare its size or "
                "checksum with the source. If it is incomplete, copy or download it again; if "
                "not, OpenSlide does not support this kind of file, so convert it to a tiled TIFF."
            ) from error

    def read(self, x, y, level, width, height):
        """Read a rectangle of one level; (x, y) is its corner in level-0 pixels."""
        with self._name_slide():
            image = self._slide.read_region((x, y), level, (width, height))
        if image.getextrema()[3][0] == 255:
            return np.asarray(image.convert("RGB"))
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return np.asarray(white)
