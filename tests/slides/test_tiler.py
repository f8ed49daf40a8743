"""SlideTiler finds the tiles of slides."""

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
from sklearn_pk.slides._grid import fraction_inside, mask_resolution, tile_geometry, tile_grid
from sklearn_pk.slides._wsi._reader import SlideInfo


@st.composite
def headers(draw):
    """Draw headers of slides of any size, with levels rounded down as scanners do."""
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    step, n_levels = draw(st.sampled_from([2, 3, 4])), draw(st.integers(1, 4))
    sizes = [(max(1, width // step**i), max(1, height // step**i)) for i in range(n_levels)]
    downsamples = [(width / w + height / h) / 2 for w, h in sizes]
    mpp = draw(st.floats(0.1, 0.6))
    return SlideInfo("s", (width, height), tuple(sizes), tuple(downsamples), mpp, 20.0)


@settings(max_examples=80, deadline=None)
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


@settings(max_examples=80, deadline=None)
@given(headers(), st.integers(24, 300), st.integers(0, 20))
def test_padded_tiles_cover_the_slide(info, tile_size, overlap):
    level, read_size, edge = tile_geometry(info, tile_size, 0.5)
    step = max(1, edge - overlap)
    coords = tile_grid(info, level, read_size, edge, step, pad=True)
    assert coords.dtype == np.int64
    for axis, length in enumerate(info.size):
        starts = np.unique(coords[:, axis])
        assert starts[0] == 0
        assert starts[-1] + edge >= length
        assert (np.diff(starts) == step).all()
        assert step <= edge
        # Every tile is needed: the last one brings pixels that no other has.
        assert len(starts) == 1 or starts[-2] + edge < length
    assert len(coords) == np.prod([len(np.unique(coords[:, axis])) for axis in (0, 1)])
    inside = tile_grid(info, level, read_size, edge, step)
    # As complex numbers, pairs are compared as one.
    assert np.isin(inside @ [1, 1j], coords @ [1, 1j]).all()
    assert (fraction_inside(inside, edge, info.size) == 1).all()


@pytest.mark.parametrize(
    ("width", "overlap", "starts"),
    [
        (1, 0, [0]),
        (63, 0, [0]),
        (64, 0, [0]),
        (65, 0, [0, 64]),
        (128, 0, [0, 64]),
        (129, 0, [0, 64, 128]),
        (64, 32, [0]),
        (96, 32, [0, 32]),
        (97, 32, [0, 32, 64]),
    ],
)
def test_number_of_padded_tiles(width, overlap, starts):
    info = SlideInfo("s", (width, 64), ((width, 64),), (1.0,), 0.5, 20.0)
    coords = tile_grid(info, 0, 64, 64, 64 - overlap, pad=True)
    assert coords[:, 0].tolist() == starts
    assert (coords[:, 1] == 0).all()


def test_fraction_inside():
    coords = np.array([[0, 0], [60, 0], [60, 90]])
    assert fraction_inside(coords, 40, (100, 100)).tolist() == [1.0, 1.0, 0.25]


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


@pytest.mark.parametrize("reader", ["auto", "openslide", "tifffile"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_padding_is_white(position, reader, small_slides, tissue_rgb):
    path = small_slides[position]
    [plain] = SlideTiler(tile_size=64, tissue=None).fit_transform([path])
    [padded] = SlideTiler(tile_size=64, tissue=None, pad=True, reader=reader).fit_transform([path])
    width, height = plain.slide_size
    assert len(padded) == -(-width // 64) * -(-height // 64) > len(plain)
    with openslide.OpenSlide(path) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    for (x, y), tile in zip(padded.coords, padded.iter_tiles(), strict=True):
        inside = whole[y : y + 64, x : x + 64]
        np.testing.assert_array_equal(tile[: inside.shape[0], : inside.shape[1]], inside)
        assert (tile[inside.shape[0] :] == 255).all()
        assert (tile[:, inside.shape[1] :] == 255).all()


def test_padding_of_a_coarser_level(small_slides):
    [slide] = SlideTiler(tile_size=32, mpp=1.0, tissue=None, pad=True).fit_transform(
        small_slides[:1]
    )
    # Level 1 of 333 x 401 pixels has 166 x 200.
    assert (slide.level, len(slide)) == (1, 6 * 7)
    last = list(slide.iter_tiles())[-1]
    assert last.shape == (32, 32, 3)
    assert (last[9:] == 255).all()
    assert (last[:, 7:] == 255).all()
    assert (last[:8, :6] < 255).any(axis=2).all()


def test_padding_is_not_tissue(small_slides):
    everything = np.ones((401, 333), dtype=bool)
    corners = {}
    for fraction in (0.0, 0.2, 0.5):
        tiler = SlideTiler(tile_size=64, tissue=everything, pad=True, min_tissue_fraction=fraction)
        [slide] = tiler.fit_transform(small_slides[:1])
        corners[fraction] = np.unique(slide.coords[:, 0]).max(), np.unique(slide.coords[:, 1]).max()
    # The last column holds 13 of 64 pixels, the last row 17.
    assert corners == {0.0: (320, 384), 0.2: (320, 384), 0.5: (256, 320)}
    assert 13 / 64 > 0.2 > 13 * 17 / 64**2


def test_slide_smaller_than_a_tile_is_padded(small_slides):
    [slide] = SlideTiler(tile_size=2048, pad=True, min_tissue_fraction=0).fit_transform(
        small_slides[:1]
    )
    assert slide.coords.tolist() == [[0, 0]]


@pytest.mark.parametrize("tissue", ["otsu", "saturation", "entropy"])
def test_reader_does_not_change_the_tiles(tissue, small_slides, cmu_slide):
    X = [*small_slides, cmu_slide] if tissue == "otsu" else small_slides
    auto, slow, fast = (
        SlideTiler(tile_size=64, tissue=tissue, reader=reader, random_state=0).fit_transform(X)
        for reader in ("auto", "openslide", "tifffile")
    )
    for one, other, third in zip(auto, slow, fast, strict=True):
        assert len(one)
        np.testing.assert_array_equal(one.coords, other.coords)
        np.testing.assert_array_equal(one.coords, third.coords)
        assert one.params == other.params == third.params
        assert (one.reader, other.reader, third.reader) == ("tifffile", "openslide", "tifffile")


def test_reader_is_used(cmu_slide, bad_slides):
    with pytest.raises(ValueError, match="tifffile"):
        SlideTiler(reader="tifffile").fit([bad_slides["text"]])
    with pytest.raises(ValueError, match="'reader' parameter"):
        SlideTiler(reader="opencv").fit([cmu_slide])


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
        len(SlideTiler(min_tissue_fraction=fraction).fit_transform([cmu_slide])[0])
        for fraction in (0, 0.2, 0.9)
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
    # Reading order, so that neighbours use the same decoded blocks.
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

    def counted(row, *args):
        calls.append(row.path)
        return tile_slide(row, *args)

    monkeypatch.setattr(_tiler, "tile_slide", counted)
    return calls


def test_tiles_are_cached(small_slides, count_tilings):
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


def test_cache_is_bounded(small_slides, monkeypatch):
    monkeypatch.setattr(_tiler, "_CACHE_SIZE", 2)
    SlideTiler(tile_size=64, random_state=0).fit_transform(small_slides)
    assert len(_tiler._cache) == 2


def test_missing_mpp_is_cached_too(small_slides, count_tilings):
    X = pd.DataFrame({"slide": small_slides[:1], "mpp": [np.nan]})
    for _ in range(2):
        SlideTiler(tile_size=64, random_state=0).fit_transform(X.copy())
    assert count_tilings == small_slides[:1]


@pytest.mark.parametrize("value", [25.0, 0.01, -1, "0.5 um"])
def test_error_on_the_mpp_column(value, small_slides):
    X = pd.DataFrame({"slide": small_slides[:1], "mpp": pd.Series([value], dtype=object)})
    with pytest.raises(ValueError, match="column 'mpp' must hold um/px from 0.1 to 2") as info:
        SlideTiler(tile_size=64).fit(X)
    assert repr(small_slides[0]) in str(info.value)
    assert str(info.value).endswith(f"got {value!r}.")


def test_error_on_missing_mpp(bad_slides):
    for name, found in (("no_mpp", "None"), ("wrong_mpp", "'25")):
        with pytest.raises(ValueError, match=f"found {found}.*columns 'slide' and 'mpp'") as info:
            SlideTiler().fit([bad_slides[name]])
        assert repr(bad_slides[name]) in str(info.value)


def test_inspect_slide(cmu_slide, bad_slides, small_slides):
    thumbnail, mask, downsample, tiled = SlideTiler().inspect_slide(cmu_slide)
    assert thumbnail.shape[:2] == mask.shape == (1200, 898)
    assert downsample == 2967 / 1200
    assert isinstance(tiled, TiledSlide)
    with openslide.OpenSlide(cmu_slide) as slide:
        expected = np.asarray(slide.get_thumbnail((898, 1200)), dtype=float)
    assert np.abs(thumbnail - expected).mean() < 5
    # A coarser thumbnail is made from the overview, one without a mask from the slide.
    for tissue in ("otsu", None):
        small, small_mask, downsample, _ = SlideTiler(tissue=tissue).inspect_slide(
            cmu_slide, size=100
        )
        assert small.shape == (100, 75, 3)
        assert downsample == 29.67
        assert np.abs(small - thumbnail[6::12, 6::12][:, :75].astype(float)).mean() < 25
    assert small_mask.all()
    thumbnail, mask, downsample, _ = SlideTiler(tile_size=64).inspect_slide(small_slides[0])
    assert thumbnail.shape == (401, 333, 3)
    assert downsample == 1
    frame = pd.DataFrame({"slide": [bad_slides["no_mpp"]], "mpp": [0.5]})
    assert SlideTiler(tile_size=64).inspect_slide(frame)[3].slide_mpp == 0.5
    with pytest.raises(ValueError, match="must be one slide, got 2"):
        SlideTiler().inspect_slide(pd.concat([frame, frame]))
    with pytest.raises(ValueError, match="found None"):
        SlideTiler().inspect_slide(bad_slides["no_mpp"])


def test_inspect_a_given_mask(small_slides):
    drawn = np.zeros((401, 333), dtype=bool)
    drawn[100:301, 50:250] = True
    _, mask, _, tiled = SlideTiler(tile_size=64, tissue=drawn).inspect_slide(small_slides[0])
    # The mask is drawn at 2 um/px, that is on every fourth pixel of the slide.
    assert (mask == drawn).mean() > 0.98
    assert len(tiled)


def test_inspect_tiled_slides(small_slides):
    tiler = SlideTiler(tile_size=64, max_tiles=3, random_state=0)
    tiled = tiler.fit_transform(small_slides)
    found = SlideTiler(tile_size=32, random_state=1).inspect_slides(tiled)
    assert [each[3] for each in found] == tiled
    assert tiler.inspect_slide(tiled[1])[3] is tiled[1]
    with pytest.raises(ValueError, match="was tiled with the tissue mask 'otsu', this tiler has"):
        SlideTiler(tissue="entropy").inspect_slide(tiled[0])


def test_inspect_slides_goes_on_after_a_bad_one(small_slides, bad_slides):
    tiler = SlideTiler(tile_size=64)
    found = tiler.inspect_slides([small_slides[0], bad_slides["zero"], small_slides[1]], size=50)
    assert [each[0] is None for each in found] == [False, True, False]
    assert [len(each[3]) > 0 for each in found] == [True, False, True]
    assert found[0][0].shape == (50, 42, 3)
    assert found[1][:3] == (None, None, None)
    assert "0 bytes" in found[1][3].reason
    with pytest.raises(TypeError, match="Expected a list of slide paths"):
        tiler.inspect_slides(None)
    with pytest.raises(ValueError, match="overlap must be smaller"):
        tiler.set_params(overlap=64).inspect_slides(small_slides)
