"""DataFrames as plain arrays, for formats without pandas such as skops."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd

_MARK = "__sklearn_pk_frame__"


def freeze_frames(state):
    """Replace DataFrames and Series among the values of a dict by plain arrays."""
    return {name: _freeze(value) for name, value in state.items()}


def thaw_frames(state):
    """Undo :func:`freeze_frames`."""
    return {name: _thaw(value) for name, value in state.items()}


def _freeze(value):
    if isinstance(value, pd.Series):
        return {_MARK: "Series", "name": value.name, "frame": _freeze(value.to_frame(0))}
    if not isinstance(value, pd.DataFrame):
        return value
    dtypes = set(value.dtypes)
    first = next(iter(dtypes), None)
    if len(dtypes) == 1 and isinstance(first, np.dtype) and first.kind in "fiub":
        data = value.to_numpy()  # expression, with thousands of columns
    else:
        data = [_freeze_values(value.iloc[:, number]) for number in range(value.shape[1])]
    return {
        _MARK: "DataFrame",
        "index": _freeze_index(value.index),
        "columns": _freeze_index(value.columns),
        "data": data,
    }


def _thaw(value):
    if not isinstance(value, dict) or _MARK not in value:
        return value
    if value[_MARK] == "Series":
        return _thaw(value["frame"])[0].rename(value["name"])
    index = _thaw_index(value["index"])
    if isinstance(value["data"], np.ndarray):
        return pd.DataFrame(value["data"], index, _thaw_index(value["columns"]))
    data = {n: pd.Series(_thaw_values(part), index) for n, part in enumerate(value["data"])}
    return pd.DataFrame(data, index=index).set_axis(_thaw_index(value["columns"]), axis=1)


def _freeze_index(index):
    if isinstance(index, pd.RangeIndex):
        return {"range": [index.start, index.stop, index.step], "names": list(index.names)}
    levels = [_freeze_values(index.get_level_values(n)) for n in range(index.nlevels)]
    is_multi = isinstance(index, pd.MultiIndex)
    return {"levels": levels, "is_multi": is_multi, "names": list(index.names)}


def _thaw_index(frozen):
    if "range" in frozen:
        return pd.RangeIndex(*frozen["range"], name=frozen["names"][0])
    levels = [_thaw_values(level) for level in frozen["levels"]]
    if frozen["is_multi"]:
        return pd.MultiIndex.from_arrays(levels, names=frozen["names"])
    return pd.Index(levels[0], name=frozen["names"][0])


def _freeze_values(values):
    dtype = values.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return {"values": values.to_numpy()}
    plain = np.empty(len(values), dtype=object)
    for position, value in enumerate(values):  # one by one, because NumPy unpacks tuples
        plain[position] = None if value is pd.NA else value
    return {"values": plain, "dtype": str(dtype)}


def _thaw_values(frozen):
    dtype = frozen.get("dtype")
    return frozen["values"] if dtype is None else pd.array(frozen["values"], dtype=dtype)
