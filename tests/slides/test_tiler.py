"""SlideTiler: from slide files to tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import shutil
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_pk.slides import SlideTiler, TiledSlide, _tiler
from sklearn_pk.slides._grid import mask_resolution, tile_geometry, tile_grid
from sklearn_pk.slides._reader import SlideInfo


@st.composite
def headers(draw):
    """Headers of slides of any size, whose levels are rounded down as scanners do."""
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    step, n_levels = draw(st.sampled_from([2, 3, 4])), draw(st.integers(1, 4))
    sizes = [(max(1, width // step**i), max(1, height // step**i)) for i in range(n_levels)]
    downsamples = [(width / w + height / h) / 2 for w, h in sizes]
    mpp = draw(st.floats(0.1, 0.6))
    return SlideInfo("s", (width, height), tuple(sizes), tuple(downsamples), mpp, 20.0)


@settings(max_examples=150, deadline=None)
@given(headers(), st.integers(24, 300), st.integers(0, 16))
def test_tiles_stay_inside_and_apart(info, tile_size, overlap):
    level, read_size, edge = tile_geometry(info, tile_size, 0.5)
    step = max(1, edge - overlap)
    coords = tile_grid(info, level, read_size, edge, step)
    assert coords.dtype == np.int64
    assert (coords >= 0).all()
    assert (coords + edge <= info.size).all()
    inside = coords / info.level_downsamples[level] + read_size
    assert (inside <= np.array(info.level_sizes[level]) + 1e-5).all()
    x, y = np.unique(coords[:, 0]), np.unique(coords[:, 1])
    assert (np.diff(x) == step).all()
    assert (np.diff(y) == step).all()
    assert len(coords) == len(x) * len(y)


@pytest.mark.parametrize(
    ("width", "n_tiles"), [(63, 0), (64, 1), (65, 1), (127, 1), (128, 2), (129, 2)]
)
def test_grid_fills_the_slide(width, n_tiles):
    info = SlideInfo("s", (width, 64), ((width, 64),), (1.0,), 0.5, 20.0)
    assert len(tile_grid(info, 0, 64, 64, 64)) == n_tiles


@pytest.mark.parametrize(
    ("slide_mpp", "downsamples", "expected"),
    [
        (0.499, (1.0,), (0, 256, 256)),
        (0.25, (1.0, 2.0), (1, 256, 512)),
        (0.25, (1.0, 4.0), (0, 512, 512)),
        (0.2, (1.0, 2.0), (1, 320, 640)),
        (0.6, (1.0,), (0, 213, 213)),
    ],
)
def test_geometry(slide_mpp, downsamples, expected):
    sizes = tuple((int(4000 / d), int(4000 / d)) for d in downsamples)
    info = SlideInfo("s", sizes[0], sizes, downsamples, slide_mpp, 20.0)
    assert tile_geometry(info, 256, 0.5) == expected


def test_mask_is_fine_enough_for_small_tiles():
    assert mask_resolution(256.0) == 8.0
    assert mask_resolution(32.0) == 2.0


def test_real_slide(cmu_slide):
    [slide] = SlideTiler().fit_transform([cmu_slide])
    assert (slide.level, slide.read_size, slide.size_level0) == (0, 256, 256)
    assert slide.tile_edge_um == pytest.approx(256 * 0.499)
    assert len(slide) == 45
    assert not slide.coords.flags.writeable
    with openslide.OpenSlide(cmu_slide) as opened:
        region = opened.read_region(slide.coords[7].tolist(), 0, (256, 256))
    np.testing.assert_array_equal(list(slide.iter_tiles())[7], np.asarray(region)[..., :3])


@pytest.mark.parametrize(("tile_size", "mpp"), [(64, 0.5), (50, 0.7), (33, 1.0), (17, 2.1)])
def test_tiles_have_the_size_asked_for(small_slides, tile_size, mpp):
    for slide in SlideTiler(tile_size=tile_size, mpp=mpp).fit_transform(small_slides):
        assert len(slide)
        shapes = {tile.shape for tile in slide.iter_tiles()}
        assert shapes == {(tile_size, tile_size, 3)}
        assert slide.tile_edge_um == pytest.approx(tile_size * mpp, rel=0.03)
        assert (slide.coords + slide.size_level0 <= slide.slide_size).all()


def test_coarser_level_is_used(small_slides):
    [slide] = SlideTiler(tile_size=32, mpp=1.0).fit_transform([small_slides[0]])
    assert (slide.level, slide.read_size, slide.size_level0) == (1, 32, 64)


def test_overlap(small_slides):
    plain, dense = (
        SlideTiler(tile_size=64, overlap=overlap, tissue=None).fit_transform(small_slides[:1])[0]
        for overlap in (0, 32)
    )
    assert np.diff(np.unique(plain.coords[:, 0])).tolist() == [64] * 4
    assert np.diff(np.unique(dense.coords[:, 0])).tolist() == [32] * 8


def test_tissue_options(small_slides):
    tiler = SlideTiler(tile_size=64, tissue=None)
    everything = len(tiler.fit_transform(small_slides[:1])[0])
    assert everything == (333 // 64) * (401 // 64)
    tiler.set_params(
        tissue=lambda rgb: np.arange(rgb.shape[1]) < rgb.shape[1] / 2 + 0 * rgb[..., 0]
    )
    [half] = tiler.fit_transform(small_slides[:1])
    assert 0 < len(half) < everything
    assert half.coords[:, 0].max() < 333 / 2


def test_min_tissue_fraction(cmu_slide):
    counts = [
        len(SlideTiler(min_tissue_fraction=share).fit_transform([cmu_slide])[0])
        for share in (0, 0.2, 0.9)
    ]
    assert counts[0] > counts[1] > counts[2] > 0


def test_draw_depends_on_the_slide_alone(small_slides, tmp_path):
    tiler = SlideTiler(tile_size=32, max_tiles=9, random_state=3)
    first = tiler.fit_transform(small_slides)
    assert [len(slide) for slide in first] == [9, 9, 9]
    moved = shutil.copy(small_slides[2], tmp_path / "renamed.tiff")
    [same] = SlideTiler(tile_size=32, max_tiles=9, random_state=3).fit_transform([moved])
    np.testing.assert_array_equal(same.coords, first[2].coords)
    [other] = tiler.set_params(random_state=4).fit_transform([moved])
    assert not np.array_equal(other.coords, same.coords)
    # Reading order, so that neighbours share decoded blocks.
    assert (np.diff(same.coords[:, 1]) >= 0).all()


def test_random_state_may_be_none_or_an_instance(small_slides):
    for state in (None, np.random.RandomState(0)):
        tiler = SlideTiler(tile_size=32, max_tiles=5, random_state=state).fit(small_slides)
        one, other = tiler.transform(small_slides), tiler.transform(small_slides)
        np.testing.assert_array_equal(one[0].coords, other[0].coords)


def test_white_slide_gives_a_reason(white_slide):
    tiler = SlideTiler(tile_size=64)
    [slide] = tiler.fit_transform([white_slide])
    assert len(slide) == 0
    assert "No tissue" in slide.reason
    assert tiler.failures_.to_numpy().tolist() == [[white_slide, slide.reason]]


def test_slide_smaller_than_a_tile(small_slides):
    [slide] = SlideTiler(tile_size=2048).fit_transform(small_slides[:1])
    assert "333 x 401 pixels is smaller than one tile of 2048" in slide.reason


def test_all_bad_slides_are_reported_at_once(bad_slides, cmu_slide):
    with pytest.raises(ValueError, match=f"{len(bad_slides)} slides cannot be used") as info:
        SlideTiler().fit([*bad_slides.values(), cmu_slide])
    assert all(repr(path) in str(info.value) for path in bad_slides.values())
    assert repr(cmu_slide) not in str(info.value)


def test_missing_slides(bad_slides, cmu_slide):
    with pytest.raises(FileNotFoundError, match="Slide not found"):
        SlideTiler().fit([bad_slides["missing"]])
    with pytest.raises(FileNotFoundError, match="2 slides"):
        SlideTiler().fit(["a.svs", cmu_slide, "b.svs"])


def test_bad_slides_are_not_tiled_before_they_are_reported(bad_slides, cmu_slide, monkeypatch):
    monkeypatch.setattr(_tiler, "tile_slide", None)
    with pytest.raises(ValueError, match="found None"):
        SlideTiler().fit_transform([cmu_slide, bad_slides["no_mpp"]])


def test_errors_empty(bad_slides, cmu_slide):
    tiler = SlideTiler(errors="empty")
    X = [bad_slides["text"], cmu_slide, bad_slides["missing"]]
    with pytest.warns(UserWarning, match="2 slides have no tiles.*text.svs"):
        tiler.fit(X)
    with pytest.warns(UserWarning, match="2 slides have no tiles"):
        slides = tiler.transform(X)
    assert [len(slide) for slide in slides] == [0, 45, 0]
    assert "Slide not found" in slides[2].reason
    assert tiler.failures_["slide"].tolist() == [X[0], X[2]]
    assert tiler.failures_.columns.tolist() == ["slide", "reason"]


def test_slide_that_goes_bad_after_fit(tmp_path, small_slides):
    path = shutil.copy(small_slides[0], tmp_path / "gone.tiff")
    tiler = SlideTiler(tile_size=64).fit([path])
    os.remove(path)
    with pytest.raises(FileNotFoundError, match=r"gone\.tiff"):
        tiler.transform([path])


def test_mpp_column(bad_slides, cmu_slide):
    X = pd.DataFrame({"slide": [bad_slides["no_mpp"], cmu_slide], "mpp": [0.25, np.nan]})
    first, second = SlideTiler(tile_size=64).fit_transform(X)
    assert (first.slide_mpp, first.read_size) == (0.25, 128)
    assert second.slide_mpp == 0.499


def test_kinds_of_X(small_slides):
    tiler = SlideTiler(tile_size=64)
    expected = [slide.coords for slide in tiler.fit_transform(small_slides)]
    for X in (
        np.array(small_slides),
        pd.Series(small_slides, index=[5, 3, 1]),
        pd.DataFrame({"slide": small_slides}),
        [Path(path) for path in small_slides],
    ):
        for found, coords in zip(tiler.fit_transform(X), expected, strict=True):
            np.testing.assert_array_equal(found.coords, coords)


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        ("a.svs", TypeError, "Put a single slide into a list"),
        (Path("a.svs"), TypeError, "Put a single slide into a list"),
        ([1, 2], TypeError, "got 1 of type int at position 0"),
        (["a.svs", None], TypeError, "NoneType at position 1"),
        ([], ValueError, "n_samples=0"),
        (np.array([["a.svs"]]), ValueError, r"array of shape \(1, 1\)"),
        (pd.DataFrame({"path": ["a.svs"]}), ValueError, r"the columns \['path'\]"),
    ],
)
def test_wrong_X(X, error, text):
    with pytest.raises(error, match=text):
        SlideTiler().fit(X)


def test_too_coarse_slide(bad_slides):
    X = pd.DataFrame({"slide": [bad_slides["no_mpp"]], "mpp": [1.0]})
    with pytest.raises(ValueError, match="1 um/px, too coarse for mpp=0.5"):
        SlideTiler().fit(X)


def test_wrong_parameters(cmu_slide):
    with pytest.raises(ValueError, match="overlap must be smaller than tile_size=64, got 64"):
        SlideTiler(tile_size=64, overlap=64).fit([cmu_slide])
    with pytest.raises(ValueError, match="'tissue' parameter"):
        SlideTiler(tissue="magic").fit([cmu_slide])


@pytest.fixture
def count_tilings(monkeypatch):
    calls = []
    tile_slide = _tiler.tile_slide

    def counted(path, *args):
        calls.append(path)
        return tile_slide(path, *args)

    monkeypatch.setattr(_tiler, "tile_slide", counted)
    return calls


def test_tiles_are_remembered(small_slides, count_tilings):
    tiler = SlideTiler(tile_size=64, random_state=0)
    tiler.fit_transform(small_slides)
    SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides[::-1])
    assert count_tilings == small_slides
    tiler.set_params(min_tissue_fraction=0.5).fit_transform(small_slides[:1])
    assert len(count_tilings) == 4


def test_changed_slide_is_tiled_again(tmp_path, small_slides, count_tilings):
    path = shutil.copy(small_slides[0], tmp_path / "s.tiff")
    tiler = SlideTiler(tile_size=64, random_state=0)
    [before] = tiler.fit_transform([path])
    shutil.copy(small_slides[1], path)
    [after] = tiler.transform([path])
    assert len(count_tilings) == 2
    assert before.slide_size != after.slide_size


def test_memory_of_tiles_is_bounded(small_slides, monkeypatch):
    monkeypatch.setattr(_tiler, "_CACHE_SIZE", 2)
    SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)
    assert len(_tiler._cache) == 2


def test_inspect_slide(cmu_slide, bad_slides):
    overview, mask, downsample, tiled = SlideTiler().inspect_slide(cmu_slide)
    assert overview.shape[:2] == mask.shape == (186, 139)
    assert downsample == 16
    assert isinstance(tiled, TiledSlide)
    frame = pd.DataFrame({"slide": [bad_slides["no_mpp"]], "mpp": [0.5]})
    assert SlideTiler(tile_size=64).inspect_slide(frame)[3].slide_mpp == 0.5
    with pytest.raises(ValueError, match="must be one slide, got 2"):
        SlideTiler().inspect_slide(pd.concat([frame, frame]))
