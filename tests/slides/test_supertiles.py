"""SuperTileClusterer: from all tiles of a slide to a few super-tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans

from sklearn_pk.slides import BagPooler, FeatureBag, SuperTileClusterer, _supertiles
from sklearn_pk.slides._supertiles import (
    cluster_labels,
    cluster_means,
    find_distinct,
    project_tiles,
)


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


def inertia(tiles, labels):
    """Sum the squared distances to the mean of the cluster."""
    clusters = [tiles[labels == label].astype(float) for label in np.unique(labels)]
    return sum(((each - each.mean(axis=0)) ** 2).sum() for each in clusters)


def heaped(rng):
    return rng.normal(size=(20, 200))[rng.integers(20, size=600)] + rng.normal(size=(600, 200)) / 2


def spread(rng):
    return rng.normal(size=(600, 200)) * np.arange(1, 201) ** -0.5


def shapeless(rng):
    return rng.normal(size=(600, 200))


@pytest.mark.parametrize("make", [heaped, spread, shapeless])
def test_clusters_are_as_tight_as_those_of_scikit_learn(make):
    tiles = make(np.random.default_rng(0)).astype(np.float32)
    ours = [inertia(tiles, cluster_labels(tiles, 20, seed)) for seed in range(8)]
    theirs = [KMeans(20, random_state=seed).fit(tiles).inertia_ for seed in range(8)]
    assert np.mean(ours) <= 1.005 * np.mean(theirs)


def test_wide_tiles_are_projected():
    tiles = np.random.default_rng(0).normal(size=(500, 300)).astype(np.float32)
    assert project_tiles(tiles, 100, 0).shape == (500, 64)
    assert project_tiles(tiles, 100, 0).dtype == np.float32
    assert project_tiles(tiles, 125, 0) is tiles, "four tiles a cluster are few"
    assert project_tiles(tiles[:, :128], 100, 0).shape == (500, 128)
    more = np.random.default_rng(0).normal(size=(2001, 300))
    assert project_tiles(more, 500, 0).shape == (2001, 125)


def test_the_projection_keeps_the_distances():
    rng = np.random.default_rng(0)
    tiles = 50 + rng.normal(size=(500, 64)) @ rng.normal(size=(64, 300))
    kept = project_tiles(tiles, 4, 0)
    expected = np.linalg.norm(tiles[:50] - tiles[50:100], axis=1)
    np.testing.assert_allclose(np.linalg.norm(kept[:50] - kept[50:100], axis=1), expected)


def test_means_are_those_of_the_labels():
    tiles = np.random.default_rng(0).normal(size=(500, 300)).astype(np.float32)
    labels, means = cluster_labels(tiles, 20, 3), cluster_means(tiles, 20, 3)
    counts = np.bincount(labels)
    assert len(counts) == 20
    order = np.argsort(-counts, kind="stable")
    expected = [tiles[labels == label].mean(axis=0) for label in order]
    np.testing.assert_allclose(means, expected, atol=1e-5)


def test_wide_duplicates_are_found_exactly():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(9, 500)).astype(np.float32)
    kinds[:, 0] = 0  # as rectified features often are
    members = rng.permutation(np.repeat(np.arange(9), range(20, 29)))
    [found] = SuperTileClusterer(n_clusters=12, random_state=0).fit_transform([kinds[members]])
    np.testing.assert_array_equal(found[:9], kinds[::-1])
    assert np.isnan(found[9:]).all()
    alike = SuperTileClusterer(n_clusters=12, random_state=0).fit_transform([kinds[[4] * 40]])
    np.testing.assert_array_equal(alike[0, 0], kinds[4])
    assert np.isnan(alike[0, 1:]).all()


def test_duplicates_among_many_kinds_leave_no_hole():
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(30, 500)).astype(np.float32)[rng.integers(30, size=900)]
    [found] = SuperTileClusterer(n_clusters=12, random_state=0).fit_transform([tiles])
    assert np.isfinite(found).all()
    assert len(find_distinct(tiles)) == 30


def test_tiles_that_differ_by_less_than_rounding():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, 500)).astype(np.float32)
    tiles = kinds[rng.integers(3, size=200)]
    tiles[:, 0] = 1e-20 * np.arange(200)
    assert len(find_distinct(tiles)) == 200
    [found] = SuperTileClusterer(n_clusters=6, random_state=0).fit_transform([tiles])
    present = np.isfinite(found).all(axis=1)
    assert 3 <= present.sum() < 6
    assert np.isnan(found[~present]).all()
    distances = np.abs(found[present, np.newaxis, 1:] - kinds[:, 1:]).max(axis=2)
    assert (distances.min(axis=1) < 1e-6).all()


def test_slides_do_not_share_their_random_numbers():
    tiles = shapeless(np.random.default_rng(0)).astype(np.float32)
    # Twice as far apart, exactly: with the same numbers the clusters would be the same.
    assert np.any(cluster_labels(tiles, 20, 0) != cluster_labels(2 * tiles, 20, 0))
    np.testing.assert_array_equal(cluster_labels(tiles, 20, 0), cluster_labels(tiles, 20, 0))


def test_of_equally_frequent_kinds_the_first_comes_first():
    tiles = np.array([[1.0, 2.0], [3.0, 1.0], [1.0, 2.0], [3.0, 1.0], [2.0, 2.0]])
    assert find_distinct(tiles).tolist() == [0, 1, 4]
    assert find_distinct(tiles[1:]).tolist() == [0, 1, 3]


@pytest.fixture
def stored_bags(tmp_path):
    """Twenty bags in files, and the same features in memory."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, 256)).astype(np.float32) for n in range(400, 420)]
    bags = []
    for number, values in enumerate(features):
        path = tmp_path / f"slide-{number}.h5"
        with h5py.File(path, "w") as file:
            file["features"] = values
        bags.append(FeatureBag.from_file(path))
    return bags, features


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_bags_in_files_give_what_bags_in_memory_give(stored_bags, n_jobs):
    bags, features = stored_bags
    clusterer = SuperTileClusterer(n_clusters=3, random_state=0)
    expected = clusterer.fit_transform(features[:4])
    found = clusterer.set_params(n_jobs=n_jobs).fit_transform(bags[:4])
    np.testing.assert_array_equal(found, expected)


def test_bags_in_files_are_read_one_by_one(stored_bags):
    bags, features = stored_bags
    tracemalloc.start()
    clusterer = SuperTileClusterer(n_clusters=3, random_state=0).fit(bags)
    assert tracemalloc.get_traced_memory()[1] < features[0].nbytes
    clusterer.transform(bags)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(each.nbytes for each in features) / 2


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_bad_values_in_a_file_name_the_slide(stored_bags, n_jobs, tmp_path):
    bags = stored_bags[0]
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["features"] = np.full((9, 256), np.inf, dtype=np.float32)
    bags = [*bags[:2], FeatureBag.from_file(tmp_path / "bad.h5")]
    clusterer = SuperTileClusterer(n_clusters=3, random_state=0, n_jobs=n_jobs).fit(bags)
    with pytest.raises(ValueError, match=r"bag 2 \('bad'\) contains infinity"):
        clusterer.transform(bags)


def test_expression_of_other_slides_is_refused(stored_bags):
    bags = stored_bags[0][:3]
    y = pd.DataFrame({"ESR1": [1.0, 2.0, 3.0]}, index=[bag.name for bag in bags])
    SuperTileClusterer().fit(bags, y)
    with pytest.raises(ValueError, match=r"2 of 3 carry different names.*slide-0"):
        SuperTileClusterer().fit(bags, y.iloc[::-1])
    with pytest.raises(ValueError, match="X has 3 samples, y has 2 rows"):
        SuperTileClusterer().fit(bags, y.iloc[:2])


def test_a_bag_whose_file_is_gone_is_named(stored_bags):
    bags = stored_bags[0][:2]
    Path(bags[1].path).unlink()
    with pytest.raises(FileNotFoundError, match=r"slide-1\.h5"):
        SuperTileClusterer(n_clusters=3).fit(bags).transform(bags)


def test_progress_counts_slides_that_are_done(bags, monkeypatch):
    done, options = [], {}

    def watch(results, **kwargs):
        options.update(kwargs)
        for means in results:
            done.append(means.shape)
            yield means

    monkeypatch.setattr(_supertiles, "progress", watch)
    SuperTileClusterer(n_clusters=4, random_state=0, verbose=1).fit_transform(bags)
    assert done == [(4, 6)] * 3
    assert (options["total"], options["verbose"]) == (3, 1)


def test_pooling_leaves_missing_tiles_out(bags):
    padded = np.full((3, 40, 6), np.nan, dtype=np.float32)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
    statistics = ["mean", "std", "max", "min", "median", 0.9]
    pooler = BagPooler(statistics=statistics)
    pooled = pooler.fit_transform(padded)
    np.testing.assert_array_equal(pooled, pooler.fit_transform(bags))
    for row, bag in zip(pooled, bags, strict=True):
        frame = pd.DataFrame(bag.astype(np.float64))
        expected = [frame.mean(), frame.std(ddof=0), frame.max(), frame.min(), frame.median()]
        np.testing.assert_allclose(row, np.concatenate([*expected, frame.quantile(0.9)]))
    assert pooler.get_feature_names_out()[[0, 6, 35]].tolist() == ["mean_0", "std_0", "0.9_5"]


def test_pooling_reads_files_one_by_one(tmp_path, bags):
    files = []
    for number, bag in enumerate(bags):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["features"] = bag
        files.append(FeatureBag.from_file(tmp_path / f"{number}.h5"))
    np.testing.assert_array_equal(BagPooler().fit_transform(files), BagPooler().fit_transform(bags))


@pytest.mark.parametrize(
    ("statistics", "text"),
    [
        (["mean", "mode"], r"statistics: 'mode' is not one of 'mean', .*nor a quantile"),
        ([1.5], r"statistics: 1\.5 is not one of"),
        ([], "at least one statistic, got none"),
    ],
)
def test_statistics_that_do_not_exist(bags, statistics, text):
    with pytest.raises(ValueError, match=text):
        BagPooler(statistics=statistics).fit(bags)


def test_pooling_a_slide_without_tiles(bags):
    with pytest.raises(ValueError, match=r"bag 1 .*tile"):
        BagPooler().fit([bags[0], np.empty((0, 6))])
