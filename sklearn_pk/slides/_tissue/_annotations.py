"""Areas drawn in QuPath: read from GeoJSON, filled on a grid of pixels."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
from typing import NamedTuple

import numpy as np
import shapely

# The class QuPath gives to areas to leave out.
IGNORED_CLASS = "Ignore*"
# Found by the program, not drawn: thousands of cells exported along would become the mask.
_DETECTIONS = {"cell", "detection", "tile"}
_MAX_BYTES = 256 << 20
_ADVICE = "Expected closed polygons in level-0 pixels, as QuPath exports them."


class Area(NamedTuple):
    """One polygon, with its holes, that is tissue or to be left out."""

    polygon: shapely.Polygon
    is_ignored: bool


def draw_areas(path, slide, origin, size, shape, scale):
    """Draw a GeoJSON file on a grid of pixels; errors name the slide and the file."""
    try:
        areas = place_areas(read_areas(path), origin, size)
    except ValueError as error:
        raise ValueError(f"Slide {slide!r}: its tissue mask {os.fspath(path)!r} {error}") from error
    return fill_areas(areas, shape, scale)


def read_areas(path):
    """Read the areas of a GeoJSON file."""
    size = os.path.getsize(path)
    if size > _MAX_BYTES:
        raise ValueError(
            f"has {size >> 20} MiB, more than {_MAX_BYTES >> 20}. Export the annotations alone, "
            "without cells."
        )
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}). {_ADVICE}") from error
    areas, others = [], set()
    for number, (geometry, is_ignored) in enumerate(_geometries(content), start=1):
        try:
            parts = shapely.get_parts(shapely.from_geojson(json.dumps(geometry)))
        except shapely.GEOSException as error:
            raise ValueError(
                f"has a geometry (number {number}) that cannot be read: {error}. {_ADVICE}"
            ) from error
        others |= {part.geom_type for part in parts if part.geom_type != "Polygon"}
        areas += [Area(part, is_ignored) for part in parts if part.geom_type == "Polygon"]
    areas = [area for area in areas if not area.polygon.is_empty]
    if all(area.is_ignored for area in areas):
        found = f"holds no area, only {', '.join(sorted(others))}" if others else "holds no area"
        if areas:
            found = f"holds areas of the class {IGNORED_CLASS!r} only"
        raise ValueError(f"{found}. {_ADVICE}")
    return areas


def _geometries(content):
    """Yield each geometry of a document in order, and whether its class is to be left out."""
    todo = [(content, False)]
    while todo:
        item, is_ignored = todo.pop()
        if isinstance(item, list):
            todo.extend((each, is_ignored) for each in reversed(item))
            continue
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(kind, str):
            raise ValueError(f"is not GeoJSON: found {str(item)[:60]!r}. {_ADVICE}")
        if kind == "Feature":
            # GeoJSON allows a feature without a geometry.
            if item.get("geometry") is not None and not _is_detection(item):
                todo.append((item["geometry"], _is_ignored(item)))
        elif kind in ("FeatureCollection", "GeometryCollection"):
            todo.append((item.get("features" if kind[0] == "F" else "geometries"), is_ignored))
        else:
            yield item, is_ignored


def _properties(feature):
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _is_detection(feature):
    # Before version 0.3, QuPath wrote the kind as "id": "PathCellObject".
    old = str(feature.get("id")).lower().removeprefix("path").removesuffix("object")
    return _properties(feature).get("objectType", old) in _DETECTIONS


def _is_ignored(feature):
    classification = _properties(feature).get("classification")
    if isinstance(classification, dict):
        names = classification.get("names")
        classification = classification.get("name", names[0] if names else None)
    return classification == IGNORED_CLASS


def place_areas(areas, origin, size):
    """Move areas to the level-0 pixels of a slide and refuse those outside of it."""
    moved = [
        area._replace(polygon=shapely.transform(area.polygon, lambda points: points + origin))
        for area in areas
    ]
    for number, area in enumerate(moved, start=1):
        left, top, right, bottom = area.polygon.bounds
        if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
            raise ValueError(
                f"has a polygon (number {number}) outside the slide of {size[0]} x {size[1]} "
                f"pixels: x {left:g} to {right:g}, y {top:g} to {bottom:g}. Check that it was "
                "drawn on this slide, and that its unit is level-0 pixels."
            )
    return moved


def fill_areas(areas, shape, scale):
    """Draw areas on a grid: a pixel belongs to an area if its middle does."""
    mask = np.zeros(shape, dtype=bool)
    for area in sorted(areas, key=lambda each: each.is_ignored):
        inside, (x, y) = _fill(area.polygon, shape, scale)
        window = mask[y : y + inside.shape[0], x : x + inside.shape[1]]
        window[inside] = not area.is_ignored
    return mask


def _fill(polygon, shape, scale):
    """Fill a polygon by the even-odd rule; return the filled window and its corner (x, y)."""
    # Pillow fills the pixels that an outline touches, which makes areas half a pixel too wide;
    # shapely.contains_xy tests the middles, but takes seconds on a mask of full size.
    rings = [shapely.get_coordinates(ring) / scale for ring in shapely.get_rings(polygon)]
    starts = np.concatenate([ring[:-1] for ring in rings])
    stops = np.concatenate([ring[1:] for ring in rings])
    low = np.clip(np.floor(starts.min(axis=0)), 0, shape[::-1]).astype(np.int64)
    high = np.clip(np.ceil(starts.max(axis=0)), low, shape[::-1]).astype(np.int64)
    width, height = high - low
    starts, steps = starts - low, stops - starts
    # An edge crosses the middles of the rows from first to last - 1.
    ends = np.sort([starts[:, 1], starts[:, 1] + steps[:, 1]], axis=0)
    first, last = np.clip(np.ceil(ends - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edges = np.repeat(np.arange(len(starts)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - last, counts)
    start, step = starts[edges], steps[edges]
    x = start[:, 0] + (rows + 0.5 - start[:, 1]) / step[:, 1] * step[:, 0]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    # One column more, for edges to the right of the window.
    turns = np.zeros((height, width + 1), dtype=np.uint8)
    np.bitwise_xor.at(turns, (rows, columns), 1)
    return np.bitwise_xor.accumulate(turns[:, :-1], axis=1).astype(bool), low
