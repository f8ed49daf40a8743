"""SuperTileClusterer: from all tiles of a slide to a few super-tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.slides import FeatureBag, SuperTileClusterer


@pytest.fixture
def bags():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n_tiles, 6)).astype(np.float32) for n_tiles in (40, 3, 25)]


def heaps(sizes, seed=0):
    """Return tiles in well separated heaps, shuffled, and the mean of each heap."""
    rng = np.random.default_rng(seed)
    centers = 100 * np.eye(len(sizes), 5)
    members = [center + rng.normal(size=(n, 5)) for center, n in zip(centers, sizes, strict=True)]
    return rng.permutation(np.concatenate(members)), np.array([m.mean(axis=0) for m in members])


def test_rows_are_cluster_means_largest_first():
    tiles, means = heaps([30, 20, 10])
    [found] = SuperTileClusterer(n_clusters=3, random_state=0).fit_transform([tiles])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means, rtol=1e-5, atol=1e-4)


def test_short_bags_keep_their_tiles(bags):
    X = SuperTileClusterer(n_clusters=4, random_state=0).fit_transform(bags)
    assert X.shape == (3, 4, 6)
    np.testing.assert_array_equal(X[1, :3], bags[1])
    assert np.isnan(X[1, 3]).all()
    assert np.isfinite(X[[0, 2]]).all()


def test_duplicate_tiles_give_missing_rows_and_no_warning():
    tiles = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0], [9.0, 0.0]]), [5, 9, 7], axis=0)
    [found] = SuperTileClusterer(n_clusters=6, random_state=0).fit_transform([tiles])
    present = ~np.isnan(found).all(axis=1)
    assert present.tolist() == [True] * 3 + [False] * 3
    assert np.isfinite(found[:3]).all()
    np.testing.assert_array_equal(found[:3], [[5, 5], [9, 0], [0, 1]])


def test_kinds_of_X(bags):
    clusterer = SuperTileClusterer(n_clusters=4, random_state=0)
    expected = clusterer.fit_transform(bags)
    padded = np.full((3, 50, 6), np.nan, dtype=np.float32)
    for row, bag in enumerate(bags):
        padded[row, 5 : 5 + len(bag)] = bag
    for X in (padded, [FeatureBag(bag) for bag in bags], tuple(bags)):
        np.testing.assert_array_equal(clusterer.fit_transform(X), expected)


def test_table_is_one_tile_a_slide():
    X = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"])
    clusterer = SuperTileClusterer(n_clusters=2, random_state=0).fit(X)
    assert clusterer.feature_names_in_.tolist() == ["a", "b"]
    found = clusterer.transform(X)
    np.testing.assert_array_equal(found[:, 0], X)
    assert np.isnan(found[:, 1]).all()


def test_empty_bag_is_missing_all_over(bags):
    empty = FeatureBag(np.empty((0, 6)), slide="white.svs")
    X = SuperTileClusterer(n_clusters=4, random_state=0).fit_transform([bags[0], empty])
    assert np.isnan(X[1]).all()
    assert np.isfinite(X[0]).all()


def test_seed_decides(bags):
    one, same, other = (
        SuperTileClusterer(n_clusters=8, random_state=seed).fit_transform(bags[:1])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("value", "text"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_bad_values_are_named(bags, value, text):
    bags[2][4, 1] = value
    named = [FeatureBag(bag, slide=f"slide-{row}.svs") for row, bag in enumerate(bags)]
    with pytest.raises(ValueError, match=rf"slide-2\.svs.*{text}"):
        SuperTileClusterer().fit(named)


def test_widths_that_differ_are_named(bags):
    named = [FeatureBag(bags[0]), FeatureBag(bags[1][:, :4], slide="odd.svs")]
    with pytest.raises(ValueError, match=r"odd\.svs.*4 features.*6"):
        SuperTileClusterer().fit(named)
    clusterer = SuperTileClusterer(n_clusters=4).fit(bags)
    with pytest.raises(ValueError, match="X has 4 features, but .* is expecting 6"):
        clusterer.transform([bags[0][:, :4]])


def test_wrong_parameter(bags):
    with pytest.raises(ValueError, match="'n_clusters' parameter"):
        SuperTileClusterer(n_clusters=0).fit(bags)


def test_names_of_an_earlier_table_are_forgotten(bags):
    clusterer = SuperTileClusterer(n_clusters=2, random_state=0)
    clusterer.fit(pd.DataFrame(bags[0], columns=list("abcdef")))
    assert list(clusterer.feature_names_in_) == list("abcdef")
    assert not hasattr(clusterer.fit(bags), "feature_names_in_")
