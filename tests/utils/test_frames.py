"""DataFrames as plain arrays and back."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle

import numpy as np
import pandas as pd
import pytest
import skops.io
from pandas.testing import assert_frame_equal, assert_series_equal

from sklearn_pk.utils._frames import freeze_frames, thaw_frames

COLUMNS = {
    "whole": [1, 2, 3],
    "part": [0.5, np.nan, -1.0],
    "yes": [True, False, True],
    "text": ["x", "y", None],
    "any": ["x", 3, (1, 2)],
}


def round_trip(value):
    return thaw_frames(freeze_frames({"value": value}))["value"]


def pandas_objects(value):
    if isinstance(value, dict):
        return [found for each in value.values() for found in pandas_objects(each)]
    if isinstance(value, list):
        return [found for each in value for found in pandas_objects(each)]
    return [value] if type(value).__module__.startswith("pandas") else []


INDEXES = {
    "numbers": None,
    "named numbers": pd.RangeIndex(3, name="row"),
    "text": ["g1", "g0", "g2"],
    "named text": pd.Index(["g1", "g0", "g2"], name="gene"),
    "integers": [7, 3, 5],
    "floats": [0.5, 0.1, 7.0],
    "mixed": pd.Index(["g1", 3, 0.5], dtype=object),
    "repeated": ["g", "g", "h"],
}


@pytest.mark.parametrize("name", INDEXES)
def test_frames_and_series(name):
    frame = pd.DataFrame(COLUMNS, index=INDEXES[name])
    assert_frame_equal(round_trip(frame), frame)
    for column in frame:
        assert_series_equal(round_trip(frame[column]), frame[column])


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint16", "float64", "bool"])
def test_numeric_dtypes_are_kept(dtype):
    frame = pd.DataFrame(np.eye(3, dtype=dtype), columns=list("abc"))
    assert_frame_equal(round_trip(frame), frame)


@pytest.mark.parametrize("columns", [["a", "a"], [5, 3], ["a", 3], [("a", 1), "b"], None])
def test_names_of_columns(columns):
    values = [[1.5, "x"], [2.5, "y"]]
    frame = pd.DataFrame(values)
    if columns is not None:
        frame.columns = pd.Index(columns, tupleize_cols=False)
    assert_frame_equal(round_trip(frame), frame)


@pytest.mark.parametrize("name", ["gene", None, 3, ("gene", 1)])
def test_names_of_series(name):
    series = pd.Series([1, 2], index=["p", "q"], name=name)
    assert_series_equal(round_trip(series), series)


def test_empty_frames():
    for frame in (pd.DataFrame({"a": [], "b": []}), pd.DataFrame(index=["p", "q"])):
        assert_frame_equal(round_trip(frame), frame)


def test_other_values_are_passed_on():
    values = {"a": np.ones(3), "b": {"c": 1}, "c": [1, 2], "d": None, "e": "text"}
    frozen = freeze_frames(values)
    for name, value in values.items():
        assert frozen[name] is value
        assert thaw_frames(frozen)[name] is value


@pytest.mark.parametrize("index", [None, ["g1", "g0", "g2"], [7, 3, 5]])
def test_frozen_frames_hold_no_pandas_objects(index):
    frame = pd.DataFrame(COLUMNS, index=index).drop(columns="any")
    frozen = freeze_frames({"frame": frame, "series": frame["text"]})
    assert pandas_objects(frozen) == []
    assert pandas_objects({"frame": [frame]}) == [frame], "the search does find frames"
    saved = skops.io.dumps(frozen)
    assert skops.io.get_untrusted_types(data=saved) == []
    for copied in (skops.io.loads(saved), pickle.loads(pickle.dumps(frozen))):
        thawed = thaw_frames(copied)
        assert_frame_equal(thawed["frame"], frame)
        assert_series_equal(thawed["series"], frame["text"])


def test_input_is_unchanged():
    frame = pd.DataFrame(COLUMNS, index=["g1", "g0", "g2"])
    state, expected = {"frame": frame, "n": 3}, frame.copy(deep=True)
    frozen = freeze_frames(state)
    assert state["frame"] is frame
    first = thaw_frames(frozen)["frame"]
    first.iloc[0, 0], first.iloc[1, 3] = 99, "changed"
    first.index = ["a", "b", "c"]
    assert_frame_equal(frame, expected)
    assert_frame_equal(thaw_frames(frozen)["frame"], expected)


FRAMES = {
    "multi-index": pd.DataFrame(
        {"a": [1.5, 2.5]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["n", None])
    ),
    "multi-columns": pd.DataFrame(
        [[1, 2]], columns=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)])
    ),
    "part of a range": pd.DataFrame({"a": range(9)}).iloc[5:8],
    "named columns": pd.DataFrame({"a": [1]}).rename_axis(columns="genes"),
    "tuples": pd.DataFrame({"pair": [(1, 2), (3, 4)]}),
    "categories": pd.DataFrame({"a": pd.Categorical(["x", "y", "x"])}),
    "missing integers": pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64")}),
    "strings": pd.DataFrame({"a": pd.array(["x", None], dtype="string")}),
    "no rows": pd.DataFrame({"a": np.empty(0)}, index=pd.Index([], dtype=object)),
    "one level": pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_arrays([["x"]], names=["n"])),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_of_all_kinds(name):
    frame = FRAMES[name]
    saved = skops.io.loads(skops.io.dumps(freeze_frames({"value": frame})))
    for thawed in (round_trip(frame), thaw_frames(saved)["value"]):
        assert_frame_equal(thawed, frame)


def test_other_dicts_are_unchanged():
    aliases = {"pandas": "PANDAS1", "DataFrame": "DF"}
    assert round_trip(aliases) == aliases
