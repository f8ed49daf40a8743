"""A slide of full size for the benchmarks, composed of the shipped real tissue."""

# SPDX-License-Identifier: BSD-3-Clause

import itertools

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from sklearn_pk.datasets import load_cmu_slide
from sklearn_pk.slides._wsi import _reader

TILE = 256
# A piece of the real slide, in tiles: 2,048 x 2,816 pixels.
PIECE = (8, 11)
MPP = 0.5


def _pieces(rng):
    """Return background and four mirror images of the real tissue, each (2816, 2048, 3) uint8."""
    width, height = (n * TILE for n in PIECE)
    with _reader.open_slide(load_cmu_slide().path) as slide:
        tissue = slide.read(100, 100, 0, width, height)
    noise = rng.normal(243, 1.5, size=(height, width, 1)) + rng.normal(0, 0.7, size=(1, 1, 3))
    background = noise.clip(0, 255).astype(np.uint8)
    return [background, *(tissue[::y, ::x] for y in (1, -1) for x in (1, -1))]


def _encode(pixels):
    return imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=70, subsampling="420")


def _cut(pixels):
    """Cut an image into encoded tiles, row by row, and pad the last ones."""
    rows, columns = (-(-length // TILE) for length in pixels.shape[:2])
    missing = [
        (0, n * TILE - length) for n, length in zip((rows, columns), pixels.shape, strict=False)
    ]
    pixels = np.pad(pixels, [*missing, (0, 0)], mode="edge")
    for row, column in itertools.product(range(rows), range(columns)):
        yield _encode(pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE])


def write_slide(path, width, height, *, levels=(1, 4, 16), tissue=0.4, seed=0):
    """
    Write a tiled JPEG pyramid of real tissue on background.

    Parameters
    ----------
    path : path-like
        TIFF file to write.
    width, height : int
        Size of level 0 in pixels.
    levels : tuple of int, default=(1, 4, 16)
        Downsample of each level.
    tissue : float, default=0.4
        Fraction of the pieces with tissue.
    seed : int, default=0
        Seed of their positions.
    """
    rng = np.random.default_rng(seed)
    pieces = _pieces(rng)
    shape = tuple(
        -(-length // (n * TILE)) for length, n in zip((height, width), PIECE[::-1], strict=True)
    )
    kinds = np.where(rng.random(shape) < tissue, rng.integers(1, len(pieces), shape), 0)
    encoded = [list(_cut(piece)) for piece in pieces]

    def base():
        for row, column in itertools.product(range(-(-height // TILE)), range(-(-width // TILE))):
            kind = kinds[row // PIECE[1], column // PIECE[0]]
            yield encoded[kind][row % PIECE[1] * PIECE[0] + column % PIECE[0]]

    options = {"dtype": np.uint8, "tile": (TILE, TILE), "compression": "jpeg"}
    options |= {"photometric": "ycbcr", "subsampling": (2, 2)}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in levels:
            if level == 1:
                resolution = {"resolution": (1e4 / MPP,) * 2, "resolutionunit": "CENTIMETER"}
                tiff.write(base(), shape=(height, width, 3), **options, **resolution)
                continue
            small = np.stack([np.asarray(Image.fromarray(piece).reduce(level)) for piece in pieces])
            rows = [np.concatenate(small[row], axis=1) for row in kinds]
            whole = np.concatenate(rows)[: height // level, : width // level]
            tiff.write(_cut(whole), shape=whole.shape, subfiletype=1, **options)
