"""Where the mask of a slide comes from: a method, an array, an image or drawn areas."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from sklearn.utils._param_validation import InvalidParameterError

from .._wsi._tiff import BAD_TIFF
from ._annotations import draw_areas
from ._methods import METHODS

_DRAWINGS = (".geojson", ".json")
_ENDINGS = (*_DRAWINGS, ".png")
# Pillow has other formats for which it starts programs (EPS), or which are not images.
_IMAGES = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PIXELS = 1 << 27
_BAD_IMAGE = (*BAD_TIFF, SyntaxError, zlib.error, Image.DecompressionBombError)
_TAKES = (
    f"{', '.join(map(repr, METHODS))}, a function, a mask array, the path of a GeoJSON file or "
    "a mask image, a folder of such files, or None"
)


def check_tissue(tissue, slides):
    """Check the parameter `tissue` of a tiler against its slides."""
    if isinstance(tissue, np.ndarray):
        check_mask_array(tissue, "tissue")
    elif isinstance(tissue, str | os.PathLike):
        if tissue in METHODS or os.path.isdir(tissue):
            return
        if not os.path.exists(tissue):
            raise InvalidParameterError(
                f"The 'tissue' parameter of SlideTiler must be {_TAKES}. Got {tissue!r}, which is "
                "neither a method nor an existing file or folder."
            )
    else:
        return
    users = {slide.path for slide in slides if slide.tissue is None}
    if len(users) > 1:
        raise InvalidParameterError(
            f"The 'tissue' parameter of SlideTiler is one mask, but {len(users)} slides have no "
            "mask of their own. Pass X as a DataFrame with the columns 'slide' and 'tissue', or a "
            "folder with one file per slide."
        )


def check_mask_array(mask, owner):
    """Check that an array is a mask."""
    if mask.dtype.kind not in "bui":
        raise ValueError(
            f"{owner}: expected a mask of bool or whole numbers (0 is background), got an array "
            f"of dtype {mask.dtype}. Pass mask > threshold."
        )
    if mask.ndim != 2 or not mask.size:
        raise ValueError(
            f"{owner}: expected a mask of shape (height, width) over the whole slide, got an "
            f"array of shape {mask.shape}."
        )


def choose_tissue(tissue, slide):
    """Return the source of the mask of one slide: a method, a function, an array or a path."""
    chosen = tissue if slide.tissue is None else slide.tissue
    if not isinstance(chosen, str | os.PathLike) or chosen in METHODS:
        return chosen
    path = Path(chosen)
    if path.is_dir():
        return _find_in_folder(path, slide.path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Slide {slide.path!r}: its tissue mask does not exist: {str(path)!r}. Expected "
            f"{_TAKES}."
        )
    return path


def absolute_tissue(tissue):
    """Make the path of a file or folder of masks absolute, for workers in other folders."""
    is_path = isinstance(tissue, str | os.PathLike) and tissue not in METHODS
    return os.path.abspath(tissue) if is_path else tissue


def _find_in_folder(folder, slide):
    name = Path(slide)
    bases = dict.fromkeys((name.stem, name.name))
    candidates = [folder / f"{base}{ending}" for base in bases for ending in _ENDINGS]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"Slide {slide!r} has no tissue mask in the folder {str(folder)!r}: expected "
            f"{candidates[0].name!r}, or with the ending {' or '.join(_ENDINGS[1:])}."
        )
    if len(found) > 1:
        names = " and ".join(repr(path.name) for path in found)
        raise ValueError(
            f"Slide {slide!r} has more than one tissue mask in the folder {str(folder)!r}: "
            f"{names}. Keep one."
        )
    return found[0]


def is_given(source):
    """Return whether a mask is given, not computed from the overview."""
    return isinstance(source, np.ndarray | Path)


def describe_source(source):
    """Describe a source of masks; another mask has another description, a function its name."""
    if isinstance(source, np.ndarray):
        digest = _digest(np.ascontiguousarray(source), source.shape, source.dtype)
        return f"mask {source.shape} {digest}"
    if isinstance(source, Path):
        return f"{source.name} {_digest(source.read_bytes())}"
    return getattr(source, "__qualname__", repr(source)) if callable(source) else source


def _digest(content, *more):
    return hashlib.blake2b(content, digest_size=8, key=repr(more).encode()[:64]).hexdigest()


def read_mask_image(path, slide):
    """Read a mask from an image."""
    owner = f"Slide {slide!r}: its tissue mask {str(path)!r}"
    try:
        channels = _read_image(path)
    except _BAD_IMAGE as error:
        raise ValueError(
            f"{owner} is neither GeoJSON ({' or '.join(_DRAWINGS)}) nor an image that can be read "
            f"({error})."
        ) from error
    # Two channels are grey and alpha, the fourth is alpha.
    others = channels[1:3] if len(channels) > 2 else []
    if not all(np.array_equal(channels[0], each) for each in others):
        raise ValueError(f"{owner} is a colour image. Expected a mask of one channel.")
    if channels[0].dtype.kind not in "bui":
        raise ValueError(f"{owner} holds {channels[0].dtype}. Expected a mask of whole numbers.")
    return channels[0]


def _read_image(path):
    """Return the channels of an image."""
    with open(path, "rb") as file:
        is_tiff = file.read(4) in _TIFF_MAGIC
    if is_tiff:
        return _read_tiff(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit below
        with Image.open(path, formats=_IMAGES) as image:
            _check_pixels(image.width, image.height)
            if len(image.getbands()) == 1:
                return [np.asarray(image)]
            return [np.asarray(image.getchannel(each)) for each in image.getbands()]


def _read_tiff(path):
    """Return the channels of the first image; Pillow would let libtiff print its messages."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"expected an image, found the axes {page.axes}")
        _check_pixels(max(page.imagewidth, page.tilewidth), max(page.imagelength, page.tilelength))
        pixels = page.asarray(maxworkers=1)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = ~pixels
    channels = [pixels] if page.axes == "YX" else np.moveaxis(pixels, page.axes.index("S"), 0)
    if channels[0].ndim != 2 or not channels[0].size:
        raise ValueError(f"expected an image, found the shape {channels[0].shape}")
    return channels


def _check_pixels(width, height):
    if width * height > _MAX_PIXELS:
        raise ValueError(f"it declares {width} x {height} pixels, more than {_MAX_PIXELS:,}")


def sample_mask(mask, shape, steps):
    """Put a mask on another grid: a pixel takes the value at its middle."""
    rows, columns = (
        np.minimum(((np.arange(length) + 0.5) * step).astype(np.int64), limit - 1)
        for length, step, limit in zip(shape, steps, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)].astype(bool)


def draw_mask(source, slide, info, shape, scale):
    """Draw a given mask on a grid of pixels over a slide."""
    if isinstance(source, Path) and source.suffix.lower() in _DRAWINGS:
        # QuPath counts from the corner of the scanned area.
        origin = [float(slide.properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy"]
        return draw_areas(source, info.path, origin, info.size, shape, scale)
    if isinstance(source, Path):
        mask, owner = read_mask_image(source, info.path), f"its tissue mask {str(source)!r}"
    else:
        mask, owner = source, "its tissue mask"
        check_mask_array(mask, f"The tissue mask of slide {info.path!r}")
    width, height = info.size
    steps = mask.shape[0] / height, mask.shape[1] / width
    _check_aspect(mask.shape, info, owner)
    return sample_mask(mask, shape, (steps[0] * scale, steps[1] * scale))


def _check_aspect(shape, info, owner):
    """Refuse a mask of other proportions than the slide, allowing for rounding."""
    (height, width), (slide_width, slide_height) = shape, info.size
    expected = (width * slide_height / slide_width, height * slide_width / slide_height)
    off = (abs(height - expected[0]), abs(width - expected[1]))
    if min(off) > 1.5 and min(off[0] / height, off[1] / width) > 0.01:
        raise ValueError(
            f"Slide {info.path!r}: {owner} of {width} x {height} pixels does not have the "
            f"proportions of the slide, {slide_width} x {slide_height}. A mask must cover the "
            "whole slide, at any resolution."
        )
