"""Areas drawn in QuPath."""

# SPDX-License-Identifier: BSD-3-Clause

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_pk.slides._tissue import _annotations
from sklearn_pk.slides._tissue._annotations import (
    Area,
    draw_areas,
    fill_areas,
    place_areas,
    read_areas,
)


def square(x, y, edge):
    return [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]


def feature(geometry, name=None, kind="annotation"):
    properties = {"objectType": kind}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "slide.geojson"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def inside_by_rays(x, y, rings):
    """Cast a ray to the right and count the edges it crosses, point by point."""
    crossed = 0
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring[:-1], ring[1:], strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
                crossed += 1
    return crossed % 2 == 1


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(3, 12), st.integers(1, 3), st.sampled_from([1.0, 2.5, 16.0])
)
def test_pixels_inside_are_filled(seed, n_points, n_rings, scale):
    rng = np.random.default_rng(seed)
    shape = (13, 17)
    # Outside of the grid too, crossing themselves and one another.
    rings = [rng.uniform(-8, 24, (n_points, 2)) * scale for _ in range(n_rings)]
    rings = [np.concatenate([ring, ring[:1]]) for ring in rings]
    mask = fill_areas([Area(shapely.Polygon(rings[0], rings[1:]), False)], shape, scale)
    expected = [
        [inside_by_rays((column + 0.5) * scale, (row + 0.5) * scale, rings) for column in range(17)]
        for row in range(13)
    ]
    np.testing.assert_array_equal(mask, expected)


def test_many_areas_are_their_union():
    rng = np.random.default_rng(0)
    # Some cross themselves, and most overlap others.
    areas = [
        Area(shapely.Polygon(rng.uniform(0, 40, (rng.integers(3, 9), 2))), ignored)
        for ignored in rng.random(40) < 0.3
    ]
    alone = [(fill_areas([area._replace(is_ignored=False)], (40, 40), 1.0), area) for area in areas]
    expected = np.any([mask for mask, area in alone if not area.is_ignored], axis=0)
    expected &= ~np.any([mask for mask, area in alone if area.is_ignored], axis=0)
    np.testing.assert_array_equal(fill_areas(areas, (40, 40), 1.0), expected)
    assert 0 < expected.sum() < 1600


def test_a_circle_is_filled():
    angles = np.linspace(0, 2 * np.pi, 500)
    ring = 40 + 30 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = fill_areas([Area(shapely.Polygon(ring), False)], (80, 80), 1.0)
    assert mask.sum() == pytest.approx(np.pi * 30**2, rel=0.01)


def test_holes_unions_and_what_is_left_out(write):
    path = write(
        {
            "type": "FeatureCollection",
            "features": [
                feature(polygon(square(2, 2, 2)), "Ignore*"),
                feature(polygon(square(0, 0, 8), square(5, 5, 2)), "Tumor"),
                # Overlaps the first area, and covers a part of its hole.
                feature(polygon(square(6, 6, 6))),
            ],
        }
    )
    mask = fill_areas(read_areas(path), (14, 14), 1.0)
    expected = np.zeros((14, 14), dtype=bool)
    expected[:8, :8] = True
    expected[5:7, 5:7] = False
    expected[6:12, 6:12] = True
    expected[2:4, 2:4] = False
    np.testing.assert_array_equal(mask, expected)


AREA = polygon(square(1, 1, 4))


@pytest.mark.parametrize(
    "content",
    [
        AREA,
        feature(AREA),
        [feature(AREA)],
        {"type": "FeatureCollection", "features": [feature(AREA), feature(None)]},
        {"type": "GeometryCollection", "geometries": [AREA, {"type": "Point", "coordinates": []}]},
        feature({"type": "MultiPolygon", "coordinates": [AREA["coordinates"]]}),
        [feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}), feature(AREA)],
        # Detections of the program are not drawn.
        [feature(AREA), feature(polygon(square(0, 0, 12)), kind="cell")],
        [
            feature(AREA),
            {**feature(polygon(square(0, 0, 12))), "id": "PathCellObject", "properties": {}},
        ],
        # A third coordinate, and members that are null or missing.
        {
            "type": "Feature",
            "properties": None,
            "geometry": polygon([[*point, 0.0] for point in square(1, 1, 4)]),
        },
        [feature(AREA), feature({"type": "Polygon", "coordinates": []})],
        [
            feature(AREA),
            {
                **feature(polygon(square(8, 8, 2))),
                "properties": {"classification": {"names": ["Ignore*"]}},
            },
        ],
    ],
)
def test_ways_to_write_one_area(content, write):
    mask = fill_areas(read_areas(write(content)), (14, 14), 1.0)
    assert mask.sum() == mask[1:5, 1:5].sum() == 16


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", r"is not JSON"),
        ("<xml>", r"is not JSON"),
        ("[" * 200_000, r"is not JSON"),
        ("\x00\xff\xfe", r"is not JSON"),
        ("3", r"is not GeoJSON: found '3'"),
        ({"features": []}, r"is not GeoJSON"),
        ({"type": "FeatureCollection"}, r"is not GeoJSON: found 'None'"),
        ({"type": "FeatureCollection", "features": []}, r"holds no area\. Expected closed"),
        (feature({"type": "LineString", "coordinates": []}), "holds no area, only LineString"),
        (feature(AREA, kind="detection"), "holds no area"),
        (feature(AREA, "Ignore*"), r"areas of the class 'Ignore\*' only"),
        (polygon(square(0, 0, 4)[:-1]), r"\(number 1\) that cannot be read: .* closed linestring"),
        (polygon([[0, 0], [1, float("nan")], [1, 1], [0, 0]]), "cannot be read: .*invalid"),
        (polygon([[0, 0], [1, "x"], [1, 1], [0, 0]]), "type must be number, but is string"),
        (polygon([[0], [1], [1], [0]]), "Expected two or three coordinates"),
        (polygon(7), "type must be array, but is number"),
        ({"type": "Polygon", "coordinates": 7}, "type must be array, but is number"),
        ({"type": "Polygon", "coordinates": "7" * 5000}, "type must be array, but is string"),
        ([{"type": f"{n}" * 5000} for n in range(99)], "Unknown geometry type"),
    ],
)
def test_bad_files_are_named(content, text, write):
    path = write(content)
    with pytest.raises(ValueError, match=text) as info:
        draw_areas(path, "slide.svs", (0, 0), (30, 40), (40, 30), 1.0)
    assert "Slide 'slide.svs'" in str(info.value)
    assert repr(str(path)) in str(info.value)
    assert len(str(info.value)) < 1000


def test_huge_file_is_refused(write, monkeypatch):
    monkeypatch.setattr(_annotations, "_MAX_BYTES", 10)
    with pytest.raises(ValueError, match="without cells"):
        read_areas(write(AREA))


def test_origin_is_added():
    [moved] = place_areas([Area(shapely.Polygon(square(1, 2, 4)), False)], (10, 20), (30, 40))
    assert moved.polygon.equals(shapely.Polygon(square(11, 22, 4)))


@pytest.mark.parametrize("corner", [(30, 5), (5, 40), (-4, 5), (5, -4)])
def test_area_outside_the_slide(corner):
    areas = [Area(shapely.Polygon(square(x, y, 4)), False) for x, y in ((5, 5), corner)]
    with pytest.raises(ValueError, match=r"has a polygon \(number 2\) outside the slide of 30"):
        place_areas(areas, (0, 0), (30, 40))
    # One that extends beyond the slide is cut off.
    areas = [Area(shapely.Polygon(square(28, 38, 4)), False)]
    mask = fill_areas(place_areas(areas, (0, 0), (30, 40)), (40, 30), 1.0)
    assert mask.sum() == mask[38:, 28:].sum() == 4


@pytest.mark.parametrize("ring", [square(0, 0, 1e308), square(-40, 5, 50), square(5, -1e5, 2e5)])
def test_area_far_larger_than_the_slide(ring):
    with pytest.raises(ValueError, match=r"\(number 1\) far larger than the slide of 30"):
        place_areas([Area(shapely.Polygon(ring), False)], (0, 0), (30, 40))
