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
    found = list(_geometries(content))
    texts = [json.dumps(geometry) for geometry, _ in found]
    read = shapely.from_geojson(np.array(texts, dtype=object), on_invalid="ignore")
    for number in np.flatnonzero(shapely.is_missing(read)):
        try:
            shapely.from_geojson(texts[number])
        except shapely.GEOSException as error:
            raise ValueError(
                f"has a geometry (number {number + 1}) that cannot be read: {error}. {_ADVICE}"
            ) from error
    parts, owner = shapely.get_parts(read, return_index=True)
    is_polygon = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    others = {part.geom_type for part in parts[~is_polygon]}
    areas = [
        Area(part, found[number][1])
        for part, number in zip(parts[is_polygon], owner[is_polygon], strict=True)
    ]
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
    """Move areas to the level-0 pixels of a slide and refuse those that are not on it."""
    polygons = np.array([area.polygon for area in areas])
    polygons = shapely.transform(polygons, lambda points: points + origin)
    left, top, right, bottom = shapely.bounds(polygons).T
    width, height = size
    is_outside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    # Of another slide or in another unit; drawn by hand, an area may pass the border.
    is_far = (left < -width) | (top < -height) | (right > 2 * width) | (bottom > 2 * height)
    for number in np.flatnonzero(is_outside | is_far):
        where = "outside" if is_outside[number] else "far larger than"
        raise ValueError(
            f"has a polygon (number {number + 1}) {where} the slide of {width} x {height} pixels: "
            f"x {left[number]:g} to {right[number]:g}, y {top[number]:g} to {bottom[number]:g}. "
            "Check that it was drawn on this slide, and that its unit is level-0 pixels."
        )
    return [area._replace(polygon=each) for area, each in zip(areas, polygons, strict=True)]


def fill_areas(areas, shape, scale):
    """Draw areas on a grid: a pixel belongs to an area if its middle does."""
    kept, ignored = (
        _fill([area.polygon for area in areas if area.is_ignored == each], shape, scale)
        for each in (False, True)
    )
    return kept & ~ignored


def _fill(polygons, shape, scale):
    """Fill the union of polygons; of those that cross themselves, by the even-odd rule."""
    # Pillow fills the pixels that an outline touches, which makes areas half a pixel too wide;
    # shapely.contains_xy tests the middles, but takes seconds on a mask of full size.
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(np.array(polygons, object))))
    parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    rings, owner = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    is_edge = ring[1:] == ring[:-1]
    starts, steps = points[:-1][is_edge] / scale, np.diff(points, axis=0)[is_edge] / scale
    ring = ring[:-1][is_edge]
    # Outer rings are turned one way and holes the other, so that crossings count the polygons.
    area = np.bincount(ring, starts[:, 0] * steps[:, 1] - starts[:, 1] * steps[:, 0], len(rings))
    is_hole = np.diff(owner, prepend=-1) == 0
    turn = (np.sign(area) * np.where(is_hole, -1, 1))[ring] * np.sign(steps[:, 1])
    height, width = shape
    # An edge crosses the middles of the rows from first to last - 1.
    ends = np.sort([starts[:, 1], starts[:, 1] + steps[:, 1]], axis=0)
    first, last = np.clip(np.ceil(ends - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edges = np.repeat(np.arange(len(starts)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - last, counts)
    start, step = starts[edges], steps[edges]
    x = start[:, 0] + (rows + 0.5 - start[:, 1]) / step[:, 1] * step[:, 0]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    # One column more, for edges to the right of the grid.
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(crossings, (rows, columns), turn[edges].astype(np.int32))
    return np.cumsum(crossings[:, :-1], axis=1, dtype=np.int32) != 0
