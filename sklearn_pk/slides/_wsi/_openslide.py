"""Read slides with OpenSlide."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager

import numpy as np
import openslide
from PIL import Image

from ._tiff import check_tiff_header


class OpenSlideReader:
    """Pixels of a slide that OpenSlide opens."""

    name = "openslide"

    def __init__(self, path):
        self._path = path
        try:
            check_tiff_header(path)
        except ValueError as error:
            raise self._damaged(error) from error
        with self._name_slide():
            self._slide = openslide.OpenSlide(path)
            self.size = self._slide.dimensions
            self.level_sizes = self._slide.level_dimensions
            self.level_downsamples = self._slide.level_downsamples
            self.properties = self._slide.properties
        self.vendor = self.properties.get("openslide.vendor", "")

    def __enter__(self):
        """Return the slide itself."""
        return self

    def __exit__(self, *error):
        """Close the file."""
        self._slide.close()

    @contextmanager
    def _name_slide(self):
        path = self._path
        try:
            yield
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise ValueError(
                f"Not a slide that OpenSlide or tifffile can read: {path!r}. Expected a whole "
                "slide image such as SVS, tiled pyramidal TIFF, NDPI, MRXS or DICOM, complete to "
                "its last byte."
            ) from error
        except openslide.OpenSlideError as error:
            raise self._damaged(error) from error

    def _damaged(self, error):
        return ValueError(
            f"Slide is damaged or truncated: {self._path!r} ({error}). Copy or download it again."
        )

    def read(self, x, y, level, width, height):
        """Read a rectangle of one level; (x, y) is its corner in level-0 pixels."""
        with self._name_slide():
            image = self._slide.read_region((x, y), level, (width, height))
        if image.getextrema()[3][0] == 255:
            return np.asarray(image.convert("RGB"))
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return np.asarray(white)
