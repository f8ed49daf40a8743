"""Bad files, drawn with hypothesis: a change is a few numbers, and always gives the same bytes."""

# SPDX-License-Identifier: BSD-3-Clause

import json
from functools import lru_cache
from pathlib import Path

from _fuzz_made import MADE, make_file
from _fuzz_seeds import find_fields, pack, unpack
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

_NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 1 << 32)
_NUMBERS += ((1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1, 1 << 40, 1000, 65500)
_JUNK = [
    *(b"", b"\0", b"\xff\xfe", b"nan", b"inf", b"-1e999", b"1e308", b"99999999999999999999"),
    *(b"-1", b"null", b"{}", b"[]", b'"', b"'", b",", b"\t", b"\n", b"\r", b"\n\n", b"\xc3"),
    *(b"[" * 5000, b"a" * 70000, b"9" * 5000, b"0x10", b"1_0", b"1,5", b"<x>", b"=1+1"),
]
_ENDINGS = {
    "slide": (".svs", ".tiff", ".ndpi", ".mrxs", ".dcm", ".png", ".h5"),
    "mask": (".png", ".tif", ".geojson", ".jpg", ".eps"),
    "drawing": (".geojson", ".json", ".png"),
    "hdf5": (".h5", ".hdf5", ".pt", ".npz", ".pkl"),
    "tensor": (".pt", ".pth", ".h5", ".npy"),
    "weights": (".safetensors", ".bin", ".pt"),
    "sequoia": (".safetensors", ".bin", ".pt"),
    "table": (".csv", ".tsv", ".csv.gz", ".csv.xz", ".csv.zip", ".parquet", ".npz", ".txt.bz2"),
    "aliases": (".csv", ".tsv"),
}

# Hypothesis likes small numbers; they are spread, so that all parts of a file are hit alike.
_share = st.integers(0, (1 << 20) - 1).map(
    lambda number: number * 0x9E3779B1 % (1 << 20) / (1 << 20)
)
_place = st.tuples(st.booleans(), _share)
_field = st.tuples(st.just("field"), _share, st.sampled_from(_NUMBERS))
_bit = st.tuples(st.just("bit"), _place, st.integers(0, 7))
_number = st.tuples(
    st.just("number"), _place, st.sampled_from((1, 2, 4, 8)), st.sampled_from(_NUMBERS)
)
_cut = st.tuples(st.just("cut"), _share)
_length = st.sampled_from((1, 2, 4, 16, 100, 512, 4096))
_drop = st.tuples(st.just("drop"), _place, _length)
_zero = st.tuples(st.just("fill"), _place, _length, st.sampled_from((0, 0xFF, 0x41)))
_insert = st.tuples(st.just("insert"), _place, _length, st.sampled_from((0, 0xFF, 0x41)))
_copy = st.tuples(st.just("copy"), _share, _place, _length)
_junk = st.tuples(st.just("junk"), _share, st.integers(0, len(_JUNK) - 1))
_other = st.tuples(st.sampled_from(("before", "behind")), _share)
_binary = st.one_of(
    _field, _field, _field, _bit, _number, _cut, _drop, _zero, _insert, _copy, _other
)
_text = st.one_of(_junk, _junk, _junk, _bit, _cut, _drop, _zero, _insert, _copy, _other)
_TEXTS = {"drawing", "gene sets", "aliases"}


@lru_cache(maxsize=256)
def _read(path):
    data = Path(path).read_bytes()
    return data, find_fields(data)


def _changed(data, change, fields, others):  # noqa: C901  one branch a change
    """Return the bytes with one change."""
    if not data:
        return data
    kind, where, *more = change
    if kind in ("before", "behind"):
        other = others[int(where * len(others))]
        return other + data if kind == "before" else data + other
    if kind == "cut":
        return data[: int(where * len(data))]
    if kind == "junk":
        start = int(where * len(data))
        # A whole word is replaced, so that the rest can still be read.
        stop = start
        while stop < len(data) and data[stop] not in b',\t\n:[]{}"':
            stop += 1
        while start and data[start - 1] not in b',\t\n:[]{}"':
            start -= 1
        return data[:start] + _JUNK[more[0]] + data[stop:]
    if kind == "copy":
        start, source, length = _position(more[0], data, fields), int(where * len(data)), more[1]
        return data[:start] + data[source : source + length] + data[start + length :]
    if kind == "field":
        start, width = fields[int(where * len(fields))]
        return _put(data, start, width, more[0])
    start = _position(where, data, fields)
    if kind == "bit":
        return data[:start] + bytes([data[start] ^ 1 << more[0]]) + data[start + 1 :]
    if kind == "number":
        return _put(data, start, *more)
    if kind == "drop":
        return data[:start] + data[start + more[0] :]
    stop = start + more[0] * (kind == "fill")
    return data[:start] + bytes([more[1]]) * more[0] + data[stop:]


def _position(place, data, fields):
    """Return the place of a change: anywhere, or within a field that a reader computes with."""
    anywhere, share = place
    if anywhere:
        return int(share * len(data))
    return min(fields[int(share * len(fields))][0], len(data) - 1)


def _put(data, start, width, number):
    order = "big" if data[:2] == b"MM" or data[:4] == b"\x89PNG" else "little"
    return data[:start] + (number % (1 << 8 * width)).to_bytes(width, order) + data[start + width :]


def write_input(recipe, seeds, folder, stem):
    """
    Write the bad file that a recipe stands for.

    Parameters
    ----------
    recipe : dict
        What :func:`draw_recipes` returns.
    seeds : path-like
        Folder of the good files.
    folder : path-like
        Where to write it.
    stem : str
        Its name without ending.

    Returns
    -------
    path : pathlib.Path
        The file.
    """
    place = Path(seeds) / recipe["kind"]
    if "made" in recipe:
        return make_file(recipe["made"], recipe["values"], folder, stem)
    names = sorted(path.name for path in place.iterdir())
    name = names[recipe["seed"] % len(names)]
    data, fields = _read(str(place / name))
    others = [_read(str(place / other))[0] for other in names]
    parts = unpack(data) if recipe["inside"] else None
    if parts:
        part = sorted(parts)[recipe["seed"] % len(parts)]
        content = parts[part]
        inner = find_fields(content) or [(0, 0)]
        for change in recipe["changes"]:
            content = _changed(content, change, inner, others)
        data = pack(parts | {part: content})
    else:
        for change in recipe["changes"]:
            fields = [each for each in fields if sum(each) <= len(data)] or [(0, 0)]
            data = _changed(data, change, fields, others)
    ending = name[name.index(".") :]
    endings = _ENDINGS.get(recipe["kind"])
    if endings and recipe["ending"] is not None:
        ending = endings[recipe["ending"] % len(endings)]
    path = Path(folder) / f"{stem}{ending}"
    path.write_bytes(data)
    return path


def _recipes(kind):
    changes = st.lists(_text if kind in _TEXTS else _binary, min_size=1, max_size=4)
    if kind == "table":
        changes = st.one_of(changes, st.lists(_text, min_size=1, max_size=4))
    ending = st.one_of(*[st.none()] * 7, st.integers(0, 20))
    changed = st.fixed_dictionaries(
        {
            "kind": st.just(kind),
            "seed": st.integers(0, 200),
            "inside": st.booleans(),
            "ending": ending,
            "changes": changes,
        }
    )
    made = [
        st.fixed_dictionaries({"kind": st.just(kind), "made": st.just(name), "values": strategy})
        for name, strategy in MADE.get(kind, {}).items()
    ]
    return st.one_of(changed, changed, changed, *made) if made else changed


def draw_recipes(kind, n_inputs, number):
    """
    Draw recipes of bad files, none twice.

    Parameters
    ----------
    kind : str
        Kind of file.
    n_inputs : int
        How many.
    number : int
        Seed of the draw.

    Returns
    -------
    recipes : list of dict
        The recipes; they can be written as JSON.
    """
    found = {}

    def collect(recipe):
        found.setdefault(json.dumps(recipe), None)

    for part in range(100):
        collect_all = given(_recipes(kind))(collect)
        collect_all = settings(
            max_examples=max(50, n_inputs),
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(collect_all)
        seed(number * 100 + part)(collect_all)()
        if len(found) >= n_inputs:
            break
    return [json.loads(recipe) for recipe in list(found)[:n_inputs]]
