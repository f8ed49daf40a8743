"""DataFrames as plain arrays, for ways of saving that know no pandas."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd

_MARK = "pandas"


def freeze_frames(state):
    """
    Replace the DataFrames and Series among the values of a dict.

    Parameters
    ----------
    state : dict
        Attributes of an estimator.

    Returns
    -------
    dict
        The same with dicts of arrays in their place.
    """
    return {name: _freeze(value) for name, value in state.items()}


def thaw_frames(state):
    """
    Undo :func:`freeze_frames`.

    Parameters
    ----------
    state : dict
        What it returned.

    Returns
    -------
    dict
        Attributes of an estimator.
    """
    return {name: _thaw(value) for name, value in state.items()}


def _plain(values):
    array = np.asarray(values)
    return array if array.dtype.kind in "biuf" else np.array(list(values), dtype=object)


def _freeze(value):
    if isinstance(value, pd.Series):
        return {_MARK: "Series", "name": value.name, "frame": _freeze(value.to_frame(0))}
    if not isinstance(value, pd.DataFrame):
        return value
    plain_index = isinstance(value.index, pd.RangeIndex)
    return {
        _MARK: "DataFrame",
        "index": None if plain_index else _plain(value.index),
        "index_names": list(value.index.names),
        "n_rows": len(value),
        "columns": _plain(value.columns),
        "data": [_plain(value.iloc[:, number]) for number in range(value.shape[1])],
    }


def _thaw(value):
    if not isinstance(value, dict) or _MARK not in value:
        return value
    if value[_MARK] == "Series":
        return _thaw(value["frame"])[0].rename(value["name"])
    names = value["index_names"]
    index = pd.RangeIndex(value["n_rows"])
    if value["index"] is not None:
        several = len(names) > 1
        index = pd.MultiIndex.from_tuples(value["index"]) if several else pd.Index(value["index"])
    frame = pd.DataFrame(dict(enumerate(value["data"])), index=index.set_names(names))
    return frame.set_axis(value["columns"], axis=1)
