"""Expression tile by tile, and of windows that move over a slide."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError

from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.regression._spatial import _grid, windows_of_tiles
from sklearn_pk.slides import FeatureBag

SIZE = 512
GENES = ["ESR1", "ERBB2", "MKI67", "PGR", "CD8A"]
CORNER = np.array([100, 7000])


def fit(genes=GENES, **parameters):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(16, 5, 8)), rng.normal(size=(16, 5))
    settings = {"max_epochs": 2, "depth": 1, "n_heads": 2, "head_dim": 4, "random_state": 0}
    model = PriorKnowledgeRegressor(**(settings | parameters))
    return model.fit(X, y if genes is None else pd.DataFrame(y, columns=genes))


@pytest.fixture(scope="module")
def model():
    # Tiles see each other, so that a window is not the mean over its tiles.
    return fit(aggregator="transformer")


def grid(n_columns, n_rows):
    return np.array([(column, row) for column in range(n_columns) for row in range(n_rows)])


def make_bag(cells, seed=0, **fields):
    features = np.random.default_rng(seed).normal(size=(len(cells), 8)).astype(np.float32)
    given = {"coords": CORNER + SIZE * cells, "slide": "a.svs", "size_level0": SIZE}
    return FeatureBag(features, **(given | fields))


def slow_window_mean(model, features, cells, window, stride):
    """Average over all positions of the window, the last of which ends where the slide does."""
    starts = []
    for last in cells.max(axis=0):
        at = list(range(0, max(0, last + 1 - window) + 1, stride))
        starts.append(sorted({*at, max(0, last + 1 - window)}))
    found = [[] for _ in features]
    for left in starts[0]:
        for top in starts[1]:
            inside = (cells >= (left, top)) & (cells < (left + window, top + window))
            tiles = np.flatnonzero(inside.all(axis=1))
            if len(tiles):
                values = model.predict([features[tiles]])[0]
                for tile in tiles:
                    found[tile].append(values)
    return np.array([np.mean(values, axis=0) for values in found])


@pytest.mark.parametrize("aggregator", ["mlp", "transformer", "summary_mixing", "topk"])
def test_single_tiles_are_slides_of_one_tile(aggregator):
    model = fit(aggregator=aggregator)
    bags = [make_bag(grid(3, 4)), make_bag(grid(10, 7), seed=1)]
    for bag, tiles in zip(bags, model.predict_tiles(bags), strict=True):
        expected = model.predict(bag.features[:, np.newaxis])
        assert np.ptp(expected, axis=0).min() > 0.01
        assert_allclose(tiles, expected, rtol=1e-4, atol=1e-6)
        assert set(tiles.dtypes) == {np.dtype("float32")}
        assert list(tiles.columns) == GENES


@pytest.mark.parametrize(
    ("window", "stride", "shape"),
    [
        (2, 1, (4, 3)),
        (2, 2, (5, 3)),
        (3, 2, (6, 5)),
        (4, 3, (9, 2)),
        (7, 1, (3, 4)),
        (1, 1, (3, 3)),
    ],
)
def test_windows_against_a_slow_reference(model, window, stride, shape):
    rng = np.random.default_rng(1)
    cells = rng.permutation(grid(*shape))[: int(0.8 * np.prod(shape))]
    bag = make_bag(cells)
    # The window is laid over the tiles that there are.
    cells = cells - cells.min(axis=0)
    [tiles] = model.predict_tiles([bag], window=window, stride=stride)
    expected = slow_window_mean(model, bag.features, cells, window, stride)
    assert_allclose(tiles, expected, rtol=1e-4, atol=1e-6)
    if window > 1:
        assert not np.allclose(tiles, model.predict_tiles([bag])[0], atol=1e-3)


def test_stride_changes_the_mean(model):
    bag = make_bag(grid(5, 5))
    steps = [model.predict_tiles([bag], window=3, stride=stride)[0] for stride in (1, 2)]
    assert not np.allclose(*steps, atol=1e-4)


def test_a_window_around_the_slide_gives_the_slide(model):
    bag = make_bag(grid(3, 2))
    [tiles] = model.predict_tiles([bag], window=3)
    assert_allclose(tiles, np.tile(model.predict([bag]), (6, 1)), rtol=1e-4, atol=1e-6)


def test_a_negative_prediction_is_cut_in_every_window():
    bag = make_bag(grid(4, 4))
    free, positive = fit(), fit(positive=True)
    assert (free.predict_tiles([bag], window=2)[0] < 0).any(axis=None)
    [tiles] = positive.predict_tiles([bag], window=2)
    expected = slow_window_mean(positive, bag.features, grid(4, 4), 2, 1)
    assert (tiles >= 0).all(axis=None)
    assert_allclose(tiles, expected, rtol=1e-4, atol=1e-6)


def test_many_windows(model):
    # More than are predicted at once.
    bag = make_bag(grid(9, 9))
    [tiles] = model.predict_tiles([bag], window=2)
    expected = slow_window_mean(model, bag.features, grid(9, 9), 2, 1)
    assert_allclose(tiles, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [None, 2])
def test_coordinates_index_the_tiles(model, window):
    cells = grid(3, 2)
    [tiles] = model.predict_tiles([make_bag(cells)], window=window)
    assert list(tiles.index.names) == ["x", "y"]
    assert_array_equal(np.array(list(tiles.index)), CORNER + SIZE * cells)
    assert tiles.attrs == {"slide": "a.svs", "size_level0": SIZE, "mpp": None}
    [tiles] = model.predict_tiles([make_bag(cells, tile_edge_um=128.0)], window=window)
    assert tiles.attrs["mpp"] == 128 / SIZE


def test_tiles_without_coordinates_are_numbered(model):
    features = make_bag(grid(2, 2)).features
    bags = [features, FeatureBag(features, slide="b.svs")]
    for tiles, slide in zip(model.predict_tiles(bags), ["", "b.svs"], strict=True):
        assert tiles.index.name == "tile"
        assert list(tiles.index) == [0, 1, 2, 3]
        assert tiles.attrs == {"slide": slide, "size_level0": None, "mpp": None}


@pytest.mark.parametrize("window", [None, 2])
def test_missing_tiles_are_left_out(model, window):
    full = make_bag(grid(4, 3))
    features, missing = full.features.copy(), [2, 7]
    features[missing] = np.nan
    present = np.setdiff1d(np.arange(12), missing)
    holed = make_bag(grid(4, 3), seed=0)
    holed = FeatureBag(features, coords=holed.coords, slide="a.svs", size_level0=SIZE)
    short = FeatureBag(
        full.features[present], coords=full.coords[present], slide="a.svs", size_level0=SIZE
    )
    tiles, expected = model.predict_tiles([holed, short], window=window)
    pd.testing.assert_frame_equal(tiles, expected)
    assert len(tiles) == 10


def test_missing_tiles_keep_the_numbers_of_the_others(model):
    X = np.random.default_rng(0).normal(size=(2, 4, 8))
    X[0, 1] = np.nan
    first, second = model.predict_tiles(X)
    assert list(first.index) == [0, 2, 3]
    assert list(second.index) == [0, 1, 2, 3]
    assert_allclose(first, model.predict(X[0, [0, 2, 3]][:, np.newaxis]), rtol=1e-4, atol=1e-6)


def test_size_is_found_where_it_is_not_given(model):
    cells = grid(4, 4)
    given, found = model.predict_tiles(
        [make_bag(cells), make_bag(cells, size_level0=None)], window=2
    )
    assert_array_equal(given, found)
    [lone] = model.predict_tiles([make_bag(cells[:1], size_level0=None)], window=2)
    assert_allclose(lone, model.predict([make_bag(cells[:1])]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [None, 2])
def test_genes_by_name(model, window):
    bag = make_bag(grid(3, 3))
    [full] = model.predict_tiles([bag], window=window)
    for genes in (["PGR", "ESR1"], np.array(["PGR", "ESR1"]), "MKI67"):
        [tiles] = model.predict_tiles([bag], genes=genes, window=window)
        expected = full[[genes] if isinstance(genes, str) else list(genes)]
        pd.testing.assert_frame_equal(tiles, expected)


def test_genes_by_position():
    bag, nameless = make_bag(grid(2, 2)), fit(genes=None)
    [full] = nameless.predict_tiles([bag])
    [tiles] = nameless.predict_tiles([bag], genes=[3, 0])
    assert list(tiles.columns) == [3, 0]
    pd.testing.assert_frame_equal(tiles, full[[3, 0]])
    with pytest.raises(KeyError, match="genes: 5, -1 not found among the 5 genes .* 0"):
        nameless.predict_tiles([bag], genes=[5, 2, -1])


@pytest.mark.parametrize("genes", [["ESR1", "TP53"], "TP53"])
def test_unknown_genes(model, genes):
    message = "genes: 'TP53' not found among the 5 genes of fit, such as 'ESR1'"
    with pytest.raises(KeyError, match=message):
        model.predict_tiles([make_bag(grid(2, 2))], genes=genes)


def test_a_window_needs_coordinates(model):
    bags = [make_bag(grid(2, 2)), FeatureBag(np.ones((4, 8)), slide="b.svs")]
    message = r"bag 1 \('b\.svs'\): window= needs the coordinates of the tiles.* no coordinates"
    with pytest.raises(ValueError, match=message):
        model.predict_tiles(bags, window=2)
    with pytest.raises(ValueError, match="bag 0: window= needs the coordinates"):
        model.predict_tiles([np.ones((4, 8))], window=2)


@pytest.mark.parametrize(("window", "stride"), [(2, 3), (2, 0)])
def test_bad_strides(model, window, stride):
    message = f"stride must lie between 1 and window={window}, got {stride}: otherwise windows"
    with pytest.raises(ValueError, match=message):
        model.predict_tiles([make_bag(grid(2, 2))], window=window, stride=stride)


def test_bad_bags(model):
    with pytest.raises(ValueError, match="X has 3 features, but PriorKnowledgeRegressor is exp"):
        model.predict_tiles([np.ones((4, 3))])
    with pytest.raises(ValueError, match=r"bag 0 \('e\.svs'\) has no tile"):
        model.predict_tiles([FeatureBag(np.empty((0, 8)), slide="e.svs")])
    with pytest.raises(NotFittedError):
        PriorKnowledgeRegressor().predict_tiles([make_bag(grid(2, 2))])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30, unique=True),
    st.integers(1, 12),
    st.data(),
)
@settings(deadline=None, max_examples=150)
def test_windows_cover_every_tile(cells, window, data):
    stride = data.draw(st.integers(1, window))
    cells = np.array(cells)
    windows = windows_of_tiles(cells, window, stride)
    assert set(np.concatenate(windows)) == set(range(len(cells)))
    for tiles in windows:
        assert len(set(tiles)) == len(tiles) > 0
        assert np.ptp(cells[tiles], axis=0).max() < window


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 11), st.data())
@settings(deadline=None, max_examples=100)
def test_windows_over_a_full_grid(n_columns, n_rows, window, data):
    stride = data.draw(st.integers(1, window))
    windows = windows_of_tiles(grid(n_columns, n_rows), window, stride)
    counts = [1 + -(-max(0, n - window) // stride) for n in (n_columns, n_rows)]
    assert len(windows) == np.prod(counts)
    # None hangs over the edge, unless the slide is smaller.
    assert {len(tiles) for tiles in windows} == {min(window, n_columns) * min(window, n_rows)}


def test_grids_need_not_have_whole_steps():
    corners = np.rint(np.arange(40) * 511.6).astype(int)
    coords = np.column_stack([corners, np.zeros(40, dtype=int)])
    bag = FeatureBag(np.ones((40, 8)), coords=coords, slide="a.svs", size_level0=512)
    assert _grid(bag.coords, 512, "a")[:, 0].tolist() == list(range(40))
    overlapping = np.column_stack([256 * np.arange(4), np.zeros(4, dtype=int)])
    assert _grid(overlapping, 512, "a")[:, 0].tolist() == [0, 1, 2, 3]
    sparse = np.column_stack([512 * np.array([0, 3, 5]), np.zeros(3, dtype=int)])
    assert _grid(sparse, 512, "a")[:, 0].tolist() == [0, 3, 5]
    assert _grid(sparse[:1], None, "a").tolist() == [[0, 0]]


def test_slides_that_are_no_grid(model):
    bag = FeatureBag(
        np.ones((3, 8)), coords=[(0, 0), (700, 0), (1000, 0)], slide="a.svs", size_level0=512
    )
    with pytest.raises(ValueError, match=r"bag 0 \('a.svs'\): window= needs tiles on a grid"):
        model.predict_tiles([bag], window=2)


def test_one_bag_instead_of_a_list(model):
    with pytest.raises(TypeError, match=r"expected a list of slides, got one, .*Pass \[X\]"):
        model.predict_tiles(make_bag(grid(2, 2)))


@pytest.mark.parametrize(("window", "stride"), [(2.5, 1), (2, "1"), (True, 1)])
def test_windows_are_whole_numbers(model, window, stride):
    with pytest.raises(TypeError, match="must be an int, in tiles, got"):
        model.predict_tiles([make_bag(grid(2, 2))], window=window, stride=stride)


@pytest.mark.parametrize("window", [0, -1])
def test_windows_hold_a_tile(model, window):
    with pytest.raises(ValueError, match=f"window must be at least 1, in tiles, got {window}"):
        model.predict_tiles([make_bag(grid(2, 2))], window=window)


def test_one_bag_is_no_table(model):
    bag = make_bag(grid(2, 2))
    for call in (model.predict, model.embed, model.predict_frame, model.predict_untrained):
        with pytest.raises(TypeError, match=r"expected a list of slides, got one, .*Pass \[X\]"):
            call(bag)
