"""Validation of bags."""

# SPDX-License-Identifier: BSD-3-Clause

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator

from sklearn_pk.utils import check_bags, validate_bags
from sklearn_pk.utils._bags import check_bag, is_bag_input, read_bag, stays_in_file

NAN = np.nan


class Stored:
    """A bag in a file, with its shape and path, which counts how often it is read."""

    def __init__(self, features, path="s.h5"):
        self.features, self.path, self.n_reads = np.asarray(features, np.float32), path, 0
        self.shape = self.features.shape

    def __array__(self, dtype=None, copy=None):
        self.n_reads += 1
        return np.array(self.features, dtype=dtype)


@pytest.fixture
def stored():
    return [Stored([[1, 2], [NAN, NAN]], "a.h5"), Stored([[3, 4]], "b.h5")]


def test_lazy_bags_are_not_read(stored):
    estimator = BaseEstimator()
    for container in (list, tuple, to_array):
        assert is_bag_input(container(stored))
        bags = validate_bags(estimator, container(stored), reset=True, lazy=True)
        assert bags == stored
    assert [bag.n_reads for bag in stored] == [0, 0]
    assert estimator.n_features_in_ == 2


def to_array(bags):
    array = np.empty(len(bags), dtype=object)
    for row, bag in enumerate(bags):
        array[row] = bag
    return array


def test_bags_in_files_are_read_by_default(stored):
    bags = validate_bags(BaseEstimator(), stored, reset=True)
    np.testing.assert_array_equal(bags[0], [[1, 2]])
    np.testing.assert_array_equal(bags[1], [[3, 4]])
    assert [bag.n_reads for bag in stored] == [1, 1]


def test_bags_in_memory_are_checked_at_once(stored):
    bags = validate_bags(
        BaseEstimator(), [[[1.0, 2.0], [NAN, NAN]], *stored], reset=True, lazy=True
    )
    np.testing.assert_array_equal(bags[0], [[1, 2]])
    assert bags[1:] == stored
    with pytest.raises(ValueError, match="bag 1 contains NaN in a tile"):
        check_bags([stored[0], [[1.0, NAN]]], lazy=True)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((3, 3), r"bag 1 \('x.h5'\) has 3 features per tile, but the others have 2"),
        ((3,), r"bag 1 \('x.h5'\): expected features of shape"),
        ((0, 2), r"bag 1 \('x.h5'\) has no tile"),
    ],
)
def test_shapes_are_checked_without_reading(stored, shape, text):
    odd = Stored(np.ones(shape), "x.h5")
    with pytest.raises(ValueError, match=text):
        check_bags([stored[0], odd], lazy=True)
    assert odd.n_reads == 0
    if shape == (0, 2):
        assert check_bags([stored[0], odd], lazy=True, allow_empty=True)[1] is odd


def test_width_differs_from_fit(stored):
    estimator = BaseEstimator()
    estimator.n_features_in_ = 5
    with pytest.raises(ValueError, match="X has 2 features, but BaseEstimator is expecting 5"):
        validate_bags(estimator, stored, reset=False, lazy=True)


@pytest.mark.parametrize(("value", "text"), [(NAN, "contains NaN"), (np.inf, "infinity")])
def test_content_is_checked_when_it_is_read(value, text):
    bad = Stored([[1, 2], [3, value]], "bad.h5")
    with pytest.raises(ValueError, match=rf"bag 7 \('bad.h5'\) .*{text}"):
        read_bag(bad, position=7)


def test_missing_tiles_are_dropped_when_read(stored):
    np.testing.assert_array_equal(read_bag(stored[0]), [[1, 2]])
    assert read_bag(np.ones((0, 2)), allow_empty=True).shape == (0, 2)
    with pytest.raises(ValueError, match="has no tile"):
        read_bag([[NAN, NAN]])
    whole = np.ones((2, 2))
    assert read_bag(whole) is whole


def test_stays_in_file(stored, tmp_path):
    in_memory = Stored([[1]], None)
    slide = SimpleNamespace(path="a.svs")
    kinds = [stored[0], in_memory, slide, np.ones((1, 1)), tmp_path, "a.h5"]
    assert [stays_in_file(kind) for kind in kinds] == [True, False, False, False, False, False]


def test_dtypes():
    assert check_bag(np.ones((1, 2), dtype=np.float16)).dtype == np.float32
    assert check_bag(np.ones((1, 2), dtype=int)).dtype == np.float64
    with pytest.raises(TypeError, match="expected numbers, got an array of dtype object"):
        check_bag(np.array([[None]]))


@pytest.mark.parametrize("X", [np.array(3, dtype=object), np.empty(0, dtype=object), [], "a"])
def test_is_not_a_list_of_bags(X):
    assert not is_bag_input(X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_are_taken_like_arrays(dtype):
    rows = torch.arange(12.0).reshape(2, 3, 2).to(dtype).requires_grad_()
    expected = rows.detach().float().numpy()
    for X in (rows, list(rows), tuple(rows)):
        bags = validate_bags(BaseEstimator(), X, reset=True)
        np.testing.assert_array_equal(np.array(bags), expected)
        assert {bag.dtype for bag in bags} == {np.dtype(np.float32)}
    for X in (rows[:, 0], list(rows[:, 0])):
        table = validate_bags(BaseEstimator(), X, reset=True)
        np.testing.assert_array_equal(np.array(table)[:, 0], expected[:, 0])
