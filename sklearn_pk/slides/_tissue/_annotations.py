"""Areas drawn in QuPath: read from GeoJSON, filled on a grid of pixels."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
from typing import NamedTuple

import numpy as np

# The name QuPath gives to what is to be left out.
IGNORED_CLASS = "Ignore*"
# Found by the program, not drawn: with thousands of cells exported along, they would be the mask.
_DETECTIONS = {"cell", "detection", "tile"}
_MAX_BYTES = 256 << 20
_CHUNK = 1024


class Polygon(NamedTuple):
    """One area with its holes."""

    rings: list
    left_out: bool


def read_polygons(path, slide):
    """Read the areas of a GeoJSON file."""
    size = os.path.getsize(path)
    if size > _MAX_BYTES:
        fault = f"has {size >> 20} MiB, more than {_MAX_BYTES >> 20}"
        raise _error(path, slide, fault, "Export the annotations alone, without cells.")
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise _error(path, slide, f"is not JSON ({error})") from error
    polygons, others = [], []
    for geometry, left_out in _geometries(content, path, slide):
        kind = geometry["type"]
        if kind not in ("Polygon", "MultiPolygon"):
            others.append(kind)
            continue
        parts = geometry.get("coordinates")
        for rings in [parts] if kind == "Polygon" else _as_list(parts, path, slide):
            checked = [
                _check_ring(ring, len(polygons), path, slide)
                for ring in _as_list(rings, path, slide)
            ]
            # An empty list stands for an empty geometry.
            if checked:
                polygons.append(Polygon(checked, left_out))
    if all(polygon.left_out for polygon in polygons):
        raise _error(path, slide, _describe_nothing(polygons, others))
    return polygons


def _describe_nothing(polygons, others):
    if polygons:
        return f"holds areas of the class {IGNORED_CLASS!r} only"
    found = ", ".join(sorted({kind[:40] for kind in others})[:10])
    return f"holds no area, only {found}" if found else "holds no area"


def _error(path, slide, fault, advice=None):
    advice = advice or "Expected closed polygons in level-0 pixels, as QuPath exports them."
    return ValueError(f"Slide {slide!r}: its tissue mask {os.fspath(path)!r} {fault}. {advice}")


def _as_list(value, path, slide):
    if not isinstance(value, list):
        raise _error(path, slide, f"has {repr(value)[:60]} where a list of coordinates is expected")
    return value


def _geometries(content, path, slide):
    """Yield each geometry of a document in order, with whether it is to be left out."""
    todo = [(content, False)]
    while todo:
        item, left_out = todo.pop()
        if isinstance(item, list):
            todo.extend((each, left_out) for each in reversed(item))
            continue
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(kind, str):
            raise _error(path, slide, f"is not GeoJSON: found {str(item)[:60]!r}")
        if kind == "Feature":
            # A feature may have no place, which GeoJSON writes as null.
            if not _is_detection(item) and item.get("geometry") is not None:
                todo.append((item["geometry"], _is_ignored(item)))
        elif kind in ("FeatureCollection", "GeometryCollection"):
            parts = item.get("features" if kind == "FeatureCollection" else "geometries")
            todo.append((_as_list(parts, path, slide), left_out))
        else:
            yield item, left_out


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


def _check_ring(ring, number, path, slide):
    """Return a ring as an array, or refuse it."""
    name = f"has a polygon (number {number + 1})"
    try:
        points = np.array(ring, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _error(path, slide, f"{name} whose points are no pairs of numbers") from error
    # A third coordinate would be a height.
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise _error(path, slide, f"{name} whose points are no pairs of numbers")
    points = points[:, :2]
    if len(points) < 4:
        raise _error(path, slide, f"{name} of {len(points)} points; at least 4 are needed")
    if (points[0] != points[-1]).any():
        first, last = points[0].tolist(), points[-1].tolist()
        raise _error(
            path, slide, f"{name} that is not closed: it starts at {first} and ends at {last}"
        )
    return points


def place_polygons(polygons, origin, size, path, slide):
    """Move polygons to the coordinates of a slide and refuse those that miss it."""
    moved = [
        Polygon([ring + np.asarray(origin, dtype=float) for ring in polygon.rings], *polygon[1:])
        for polygon in polygons
    ]
    for number, polygon in enumerate(moved, start=1):
        low, high = polygon.rings[0].min(axis=0), polygon.rings[0].max(axis=0)
        if (high <= 0).any() or (low >= size).any():
            raise _error(
                path,
                slide,
                f"has a polygon (number {number}) outside the slide of {size[0]} x {size[1]} "
                f"pixels: x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}",
                "Check that it was drawn on this slide, and that its unit is level-0 pixels.",
            )
    return moved


def _crossings(starts, stops, n_rows):
    """Return the row and the x of each crossing of an edge and the middle of a row."""
    low, high = np.minimum(starts[:, 1], stops[:, 1]), np.maximum(starts[:, 1], stops[:, 1])
    first, last = (np.clip(np.ceil(y - 0.5), 0, n_rows).astype(np.int64) for y in (low, high))
    counts = last - first
    edges = np.repeat(np.arange(len(starts)), counts)
    # Number of the row within its edge.
    steps = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = first[edges] + steps
    start, stop = starts[edges], stops[edges]
    share = (rows + 0.5 - start[:, 1]) / (stop[:, 1] - start[:, 1])
    return rows, start[:, 0] + share * (stop[:, 0] - start[:, 0])


def _fill(rings, shape):
    """Fill rings by the even-odd rule; return the filled window and its corner."""
    starts = np.concatenate([ring[:-1] for ring in rings])
    stops = np.concatenate([ring[1:] for ring in rings])
    low = np.clip(np.floor(starts.min(axis=0)), 0, shape[::-1]).astype(np.int64)
    high = np.clip(np.ceil(starts.max(axis=0)), low, shape[::-1]).astype(np.int64)
    width, height = high - low
    # One column more, for edges to the right of the window.
    turns = np.zeros((height, width + 1), dtype=np.uint8)
    # In parts, because an edge crosses up to all rows.
    for first in range(0, len(starts), _CHUNK):
        part = slice(first, first + _CHUNK)
        rows, x = _crossings(starts[part] - low, stops[part] - low, height)
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.bitwise_xor.at(turns, (rows, columns), 1)
    inside = np.bitwise_xor.accumulate(turns[:, :-1], axis=1).astype(bool)
    return inside, low


def fill_polygons(polygons, shape, scale):
    """Draw polygons on a grid: a pixel belongs to an area if its middle does."""
    mask = np.zeros(shape, dtype=bool)
    for polygon in sorted(polygons, key=lambda each: each.left_out):
        inside, (x, y) = _fill([ring / scale for ring in polygon.rings], shape)
        window = mask[y : y + inside.shape[0], x : x + inside.shape[1]]
        window[inside] = not polygon.left_out
    return mask
