"""Kinds of slide files that are not read, by name, and the commands that convert them."""

# SPDX-License-Identifier: BSD-3-Clause

import shlex
from functools import partial

import numpy as np
import tifffile

PLAIN_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CZI = b"ZISRAWFILE"
_OUT = "'OUT.tif[tile,pyramid,bigtiff,compression=jpeg,Q=90]'"
# JPEG has no alpha: transparent pixels would become black.
_OUT_ALPHA = "'OUT.tif[tile,pyramid,bigtiff,compression=deflate]'"
TO_TILES = f"vips copy {{}} {_OUT_ALPHA}"
TO_EIGHT_BITS = f"vips msb {{}} {_OUT_ALPHA}"
TO_SRGB = f"vips icc_transform {{}} {_OUT} srgb"
# Without this, vips would make grey of bands whose meaning is not stated.
_AS_RGB = f"&& vips copy BANDS.v {_OUT} --interpretation srgb"
BFCONVERT = (
    "bfconvert -series 0 -z 0 -timepoint 0 -tilex 512 -tiley 512 -pyramid-resolutions 6 "
    "-pyramid-scale 2 -compression JPEG-2000 {} OUT.ome.tiff"
)
NO_STAIN = "Without the colours of H&E there is nothing to convert."
_PHOTOMETRIC, _EXTRA = tifffile.PHOTOMETRIC, tifffile.EXTRASAMPLE
_GREY = (_PHOTOMETRIC.MINISBLACK, _PHOTOMETRIC.MINISWHITE)
# JPEG and JPEG 2000, but not the YCbCr variant of Aperio: their decoders return RGB.
_TO_RGB = (6, 7, 33004, 33005, 34712, 34892)
_OTHERS = {
    ".isyntax": ("an iSyntax file of Philips", "isyntax-to-tiff {} OUT.tif"),
    ".vsi": ("a VSI file of Olympus", BFCONVERT),
    ".ets": ("a part of a VSI slide of Olympus; convert its .vsi file", None),
    ".lif": ("a LIF file of Leica", BFCONVERT),
    ".nd2": ("an ND2 file of Nikon", BFCONVERT),
    ".lsm": ("an LSM file of Zeiss", BFCONVERT),
    ".zvi": ("a ZVI file of Zeiss", BFCONVERT),
    ".jp2": ("a JPEG 2000 image", TO_TILES),
    ".jxl": ("a JPEG XL image", TO_TILES),
    ".gif": ("a GIF image, which has at most 256 colours", None),
    ".zarr": ("an OME-Zarr folder", "raw2ometiff {} OUT.ome.tiff"),
    ".kfb": ("a KFB file of KFBIO", None),
    ".sdpc": ("an SDPC file of SQRAY", None),
}


class UnsupportedKind(ValueError):
    """A file that may be whole, but is of a kind that is not read."""

    def __init__(self, kind, command=None, advice=""):
        super().__init__(kind, command, advice)

    def name(self, path):
        """Return the text of the error for a file."""
        kind, command, advice = self.args
        if command is not None:
            advice = f"{advice} Convert it: {command.format(shlex.quote(path))}".strip()
        elif not advice:
            advice = "Export it as a tiled RGB TIFF with the software of its scanner."
        return f"Slide {path!r} is {kind}. Expected a slide of 8-bit RGB pixels. {advice}"


def check_ending(path):
    """Refuse files of other formats by their ending."""
    for ending, found in _OTHERS.items():
        if path.lower().rstrip("/").endswith(ending):
            raise UnsupportedKind(*found)


def compose(rgba, *, premultiplied=False):
    """Compose RGBA pixels over white."""
    rgba = np.asarray(rgba)
    rgb = np.empty((*rgba.shape[:2], 3), dtype=np.uint8)
    # Row by row, which bounds the memory.
    for target, row in zip(rgb, rgba, strict=True):
        color, alpha = row[:, :3].astype(np.uint16), row[:, 3:].astype(np.uint16)
        if premultiplied:
            target[:] = np.minimum(color + 255 - alpha, 255)
        else:
            target[:] = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return rgb


def _keep(rgb):
    return rgb


def find_conversion(page):
    """Return the function that makes RGB of the decoded pixels of a TIFF page."""
    samples, color, bits = page.samplesperpixel, page.photometric, page.bitspersample
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        name = getattr(page.compression, "name", page.compression)
        raise UnsupportedKind(f"a TIFF with the compression {name}", TO_TILES)
    is_float = page.dtype is not None and page.dtype.kind == "f"
    if is_float and color in (_PHOTOMETRIC.RGB, *_GREY):
        command = f"vips linear {{}} {_OUT} 255 0 --uchar"
        advice = "Values from 0 to 1 become 0 to 255."
        raise UnsupportedKind(f"a TIFF of floating point ({page.dtype})", command, advice)
    if color in _GREY and samples == 1:
        raise UnsupportedKind(f"a grey TIFF of {bits} bits per pixel", advice=NO_STAIN)
    if color in _GREY:
        raise _bands(samples)
    if color == _PHOTOMETRIC.PALETTE and page.dtype == np.uint8 and samples == 1:
        table = np.asarray(page.colormap).T
        # Some programs write colours of 8 bits instead of 16.
        table = (table if table.max() < 256 else table >> 8).astype(np.uint8)
        return lambda pixels: table[pixels[..., 0]]
    if color == _PHOTOMETRIC.SEPARATED:
        advice = "Add --input-profile cmyk if it has no ICC profile."
        raise UnsupportedKind("a TIFF of printing inks (CMYK)", TO_SRGB, advice)
    if color not in (_PHOTOMETRIC.RGB, _PHOTOMETRIC.YCBCR):
        name = getattr(color, "name", color)
        command = f"vips colourspace {{}} {_OUT} srgb"
        raise UnsupportedKind(f"a TIFF of {name} pixels of {bits} bits", command)
    if page.dtype != np.uint8 or bits != 8:
        found = f"an RGB TIFF of {bits} bits per sample ({page.dtype})"
        raise UnsupportedKind(found, TO_EIGHT_BITS, "Only the upper 8 bits can be kept.")
    return _find_alpha(samples, tuple(page.extrasamples))


def _find_alpha(samples, extra):
    if samples == 3:
        return _keep
    if samples == 4 and extra == (_EXTRA.UNASSALPHA,):
        return compose
    if samples == 4 and extra == (_EXTRA.ASSOCALPHA,):
        return partial(compose, premultiplied=True)
    raise _bands(samples)


def _bands(samples):
    command = f"vips extract_band {{}} BANDS.v 0 --n 3 {_AS_RGB}"
    advice = "If the first three bands are red, green and blue, extract them."
    found = f"a TIFF of {samples} bands that are neither RGB nor RGB and alpha"
    return UnsupportedKind(found, command, advice)


def is_mask(page):
    """Return whether a TIFF page is a mask of another one."""
    return page.photometric == _PHOTOMETRIC.MASK or bool(page.subfiletype & 4)


def has_raw_ycbcr(page):
    """Return whether tifffile would return YCbCr instead of RGB."""
    return page.photometric == _PHOTOMETRIC.YCBCR and page.compression not in _TO_RGB


def find_levels(file):
    """Return the pages of the slide in a TIFF, the largest first, without masks."""
    if not file.series:
        raise ValueError("it holds no image, or the list of its images is cut off")
    images = [series for series in file.series if not is_mask(series.keyframe)]
    if not images:
        raise UnsupportedKind("a TIFF of masks only")
    if not file.is_svs:
        _check_planes(images[0])
        sizes = [each.keyframe.imagewidth * each.keyframe.imagelength for each in images]
        n_large = sum(4 * size > sizes[0] for size in sizes)
        if n_large > 1 and any(each.keyframe.samplesperpixel >= 3 for each in images[1:]):
            raise UnsupportedKind(f"a TIFF of {n_large} large images", BFCONVERT)
    return [level.keyframe for level in images[0].levels if not is_mask(level.keyframe)]


def _check_planes(series):
    """Refuse an image of several planes or separate channels."""
    axes = series.axes
    if axes in ("YXS", "SYX", "YX"):
        return
    if set(axes) == set("CYX"):
        n_channels = series.shape[axes.index("C")]
        raise UnsupportedKind(
            f"a TIFF of {n_channels} separate channels (axes {axes})",
            f"vips bandjoin '{{0}}[page=0] {{0}}[page=1] {{0}}[page=2]' BANDS.v {_AS_RGB}",
            "If the channels are red, green and blue, join them.",
        )
    shape = " x ".join(map(str, series.shape))
    raise UnsupportedKind(f"a TIFF of several planes (axes {axes}, {shape})", BFCONVERT)
