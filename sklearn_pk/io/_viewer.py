"""The map of a slide as one HTML file, shown by OpenSeadragon."""

# SPDX-License-Identifier: BSD-3-Clause

import base64
import html
import io
import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from ..plotting._slide import MAP_LIMITS, color_limits
from ..plotting._style import format_verdict

# More values than a file below 30 MB holds.
MOST_VALUES = 12_000_000
# Up to this many, values have two bytes.
PRECISE_VALUES = 4_000_000
# Pixels of the longer side of the empty overview that stands for a missing slide.
_EMPTY_OVERVIEW = 512
_QUALITY = 82
_TILE, _OVERLAP = 510, 1  # of DeepZoom, in pixels


def write_viewer(tiles, path):
    """Write the viewer of a TileMap."""
    if tiles.values.size > MOST_VALUES:
        raise ValueError(
            f"A viewer holds up to {MOST_VALUES:,} values, got {tiles.values.shape[1]:,} genes in "
            f"{len(tiles.values):,} tiles. Choose some with genes=[...]."
        )
    data = files("sklearn_pk.io") / "data"
    parts = {
        "TITLE": html.escape(f"{tiles.name}: predicted gene expression"),
        "LICENSE": html.escape((data / "openseadragon.LICENSE.txt").read_text(encoding="utf-8")),
        "OPENSEADRAGON": (data / "openseadragon.min.js").read_text(encoding="utf-8"),
        # "<" would end the script of which this is the content.
        "DATA": json.dumps(describe(tiles), allow_nan=False).replace("<", "\\u003c"),
    }
    page = (data / "viewer.html").read_text(encoding="utf-8")
    pieces = page.split("@@")  # text and names of parts in turn
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    path.write_text("".join(pieces), encoding="utf-8")


def write_deep_zoom(slide, path):
    """Write a slide as DeepZoom beside a viewer, and describe it for OpenSeadragon."""
    if slide is None:
        raise ValueError("tiles=True needs the slide file. Pass its path instead of the bag.")
    folder = path.with_name(f"{path.stem}_files")
    if folder.exists():
        raise FileExistsError(f"{str(folder)!r} exists. Remove it, or choose another path.")
    try:
        image = openslide.OpenSlide(slide)
    except openslide.OpenSlideError as error:
        raise ValueError(f"tiles=True: OpenSlide cannot read {slide!r} ({error}).") from error
    unfinished = path.with_name(f".{uuid.uuid4().hex[:8]}_files")
    try:
        with image:
            zoom = DeepZoomGenerator(image, _TILE, _OVERLAP, limit_bounds=False)
            _write_levels(zoom, unfinished)
            width, height = image.dimensions
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = {"Width": width, "Height": height}
    about = {"Url": f"{quote(folder.name)}/", "Format": "jpeg", "Overlap": _OVERLAP}
    about |= {"xmlns": "http://schemas.microsoft.com/deepzoom/2008", "TileSize": _TILE}
    return {"Image": about | {"Size": size}}


def _write_levels(zoom, folder):
    def write(tile):
        level, column, row = tile
        image = zoom.get_tile(level, (column, row))
        image.save(folder / str(level) / f"{column}_{row}.jpeg", quality=_QUALITY)

    for level, (columns, rows) in enumerate(zoom.level_tiles):
        (folder / str(level)).mkdir(parents=True)
        with ThreadPoolExecutor() as threads:
            found = ((level, column, row) for column in range(columns) for row in range(rows))
            for _ in threads.map(write, found):
                pass


def describe(tiles):
    """Return what the page needs, as JSON."""
    image, downsample, origin = tiles.image, tiles.downsample, np.zeros(2)
    if image is None:
        origin = tiles.corners.min(axis=0)
        extent = np.ptp(tiles.corners, axis=0) + tiles.edge
        downsample = float(max(extent) / _EMPTY_OVERVIEW)
        width, height = np.maximum(1, np.rint(extent / downsample)).astype(int)
        image = np.full((height, width, 3), 255, dtype=np.uint8)
    corners = tiles.corners - origin + (tiles.edge - tiles.step) / 2
    return {
        "slide": tiles.name,
        "units": tiles.units,
        "mpp": tiles.mpp,
        "downsample": downsample,
        "width": image.shape[1],
        "deepZoom": tiles.deep_zoom,
        "image": _encode_image(image),
        "step": tiles.step,
        "x": _encode(corners[:, 0].astype("<f4")),
        "y": _encode(corners[:, 1].astype("<f4")),
        "corners": _encode(tiles.corners.astype("<i4")),
        "bytes": 2 if tiles.values.size <= PRECISE_VALUES else 1,
        "genes": [_describe_gene(tiles, number) for number in range(len(tiles.genes))],
        "nReference": tiles.n_reference,
        "colors": {name: _colors(name) for name in ("viridis", "gray")},
    }


def _describe_gene(tiles, number):
    values = tiles.values[:, number].astype(np.float64)
    low, high = float(values.min()), float(values.max())
    dtype = np.dtype("<u2" if tiles.values.size <= PRECISE_VALUES else "u1")
    codes = np.rint((values - low) / ((high - low) or 1) * np.iinfo(dtype).max).astype(dtype)
    gene = {
        "name": tiles.genes[number],
        "low": low,
        "high": high,
        "slide": color_limits(values, None, None, **MAP_LIMITS),
        "codes": _encode(codes),
    }
    if tiles.limits is not None:
        gene["common"] = tiles.limits[number]
    if tiles.accuracy is not None:
        r, significant, reason = tiles.accuracy[number]
        gene["verdict"] = "held-out " + format_verdict(r, significant)
        gene["verdict"] += f" ({reason})" if reason and not significant else ""
        gene["significant"] = significant
    return gene


def _encode(array):
    return base64.b64encode(np.ascontiguousarray(array)).decode("ascii")


def _encode_image(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _colors(name):
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in mpl.colormaps[name](range(256), bytes=True)]
