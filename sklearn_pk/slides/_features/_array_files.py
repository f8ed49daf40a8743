"""Features in files of arrays: torch, safetensors, numpy and tables; no code is ever run."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import shapely

from ...utils._bags import as_array
from ...utils._tensor_files import load_torch

# Names of features and of coordinates, in the order in which they are looked for.
FEATURES = ("features", "feats", "embeddings", "embedding", "feature", "feat", "x", "X")
COORDS = ("coords", "coordinates", "coord", "positions", "xy")
_X_COLUMNS = ("x", "coord_x", "coords_x", "x_coord", "tile_x", "pos_x", "left", "minx")
_Y_COLUMNS = ("y", "coord_y", "coords_y", "y_coord", "tile_y", "pos_y", "top", "miny")
_NUMBERED = re.compile(r"(.*?)[ _.-]?(\d+)")
# What pandas and numpy raise on files that are damaged or of another kind.
_BAD = (OSError, EOFError, LookupError, TypeError, ValueError, OverflowError, zipfile.BadZipFile)


class NoTileFeatures(ValueError):
    """A file that was never meant to hold features of tiles."""

    def __init__(self, text, what=""):
        super().__init__(text)
        self.what = what


class TileArrays(NamedTuple):
    """Features of shape (tiles, n_features), an array or a tensor, and what else a file holds."""

    features: object
    coords: object = None
    dtype: str = ""
    encoder: str = ""


def load_arrays(path, name=None):
    """Load the features and coordinates of a file, mapped into memory where possible."""
    load = _LOADERS[ending_of(path)]
    arrays = load(str(path), name)
    features = _check(str(path), arrays.features)
    coords = arrays.coords
    if coords is not None:
        coords = np.asarray(as_array(coords))
        if coords.shape != (len(features), 2) or coords.dtype.kind not in "iuf":
            raise ValueError(
                f"{str(path)!r}: got {len(features)} rows of features but coords of shape "
                f"{coords.shape} and dtype {coords.dtype}; expected numbers of shape "
                f"({len(features)}, 2)."
            )
    dtype = str(features.dtype).removeprefix("torch.")
    return TileArrays(features, coords, dtype, arrays.encoder)


def ending_of(path):
    """Return the ending of a file, in lower case; two of a compressed table."""
    name = os.path.basename(str(path)).lower()
    return next((ending for ending in sorted(_LOADERS, key=len)[::-1] if name.endswith(ending)), "")


def stem_of(path):
    """Return the name of a file without its ending."""
    name = os.path.basename(str(path))
    return name[: len(name) - len(ending_of(path))] or name


def _check(path, features):
    """Check an array or tensor of features."""
    if hasattr(features, "is_floating_point"):
        import torch

        is_dense = features.layout == torch.strided and not features.is_meta
        if not is_dense or not features.is_floating_point():
            kind = f"{features.layout}, {features.dtype}"
            raise ValueError(f"{path!r}: expected a dense tensor of floating point, got {kind}.")
        if features.nbytes > os.path.getsize(path):
            raise ValueError(f"{path!r}: declares {features.nbytes} bytes, which it cannot hold.")
        features = features.detach()
    elif features.dtype.kind != "f":
        raise ValueError(
            f"{path!r}: expected features of floating point, got dtype {features.dtype}."
        )
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if features.ndim != 2 or not features.shape[1]:
        shape = tuple(features.shape)
        raise ValueError(f"{path!r}: expected features of shape (tiles, n_features), got {shape}.")
    return features


def _choose(path, found, name):
    """Return the features and the coordinates among named arrays."""
    known = [name] if name is not None else [key for key in FEATURES if key in found]
    if name is None and not known and "coords" in found and len(found) == 1:
        text = f"{path!r} holds coordinates of tiles, but no features."
        raise NoTileFeatures(text, "coordinates only")
    if not known or known[0] not in found:
        listed = f"{sorted(map(str, found))[:5]!r}"
        expected = repr(name) if name is not None else "'features'"
        raise ValueError(
            f"{path!r}: expected an array {expected}, found {listed}. Name the one that holds the "
            "features with features=."
        )
    coords = next((key for key in COORDS if key in found and key != known[0]), None)
    return known[0], coords


def _load_torch(path, name):
    import torch

    value = load_torch(path, mmap=True)
    if isinstance(value, dict):
        arrays = {
            key: each for key, each in value.items() if torch.is_tensor(each) or _is_list(each)
        }
        features, coords = _choose(path, arrays, name)
        found = value[features], None if coords is None else value[coords]
    else:
        found = value, None
    features, coords = map(_stack, found)
    if not torch.is_tensor(features):
        raise ValueError(
            f"{path!r}: expected a tensor, or a dictionary with 'features' and 'coords', got "
            f"{type(features).__name__}."
        )
    return TileArrays(features, coords)


def _is_list(value):
    return isinstance(value, list | tuple) and len(value) > 0 and hasattr(value[0], "detach")


def _stack(value):
    """Stack a list with one tensor per tile."""
    import torch

    if not _is_list(value) or len({getattr(row, "shape", None) for row in value}) != 1:
        return value
    return torch.stack(list(value))


def _load_safetensors(path, name):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            features, coords = _choose(path, set(file.keys()), name)
            coords = None if coords is None else file.get_tensor(coords)
            return TileArrays(file.get_tensor(features), coords)
    except SafetensorError as error:
        raise ValueError(f"{path!r} is not a readable safetensors file ({error}).") from error


@contextmanager
def _name_bad(path):
    """Name the file where numpy or pandas cannot read it."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except _BAD as error:
        kind = ending_of(path)
        raise ValueError(
            f"{path!r} is not a readable {kind} file ({str(error).split('. If you')[0]}). Arrays "
            "of objects are pickles, which are never loaded."
        ) from error


def _load_npy(path, name):
    with _name_bad(path), open(path, "rb") as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path!r} is not a readable .npy file (it is an archive of several).")
    if array.ndim == 2 and len(array) and array.shape[1] > 3 and array.dtype.kind == "f":
        n_coordinates = _count_coordinates(np.asarray(array[:100], dtype=np.float64))
        if n_coordinates:
            raise ValueError(
                f"{path!r}: its first {n_coordinates} columns are whole numbers, as coordinates "
                "are (HE2RNA), and the others are not. Load it, and pass the columns of features "
                "and coordinates as FeatureBag(array, coords, slide=NAME)."
            )
    return TileArrays(array)


def _count_coordinates(rows):
    """Count leading columns of whole numbers before columns that are not."""
    is_whole = (rows == np.rint(rows)).all(axis=0) & (np.ptp(rows, axis=0) > 0)
    # The level of HE2RNA, its first column, is the same for all tiles.
    is_whole[0] = (rows[:, 0] == np.rint(rows[:, 0])).all() and rows[0, 0] != 0
    n_leading = int(np.argmin(is_whole)) if not is_whole.all() else 0
    return n_leading if n_leading in (2, 3) and not is_whole[n_leading:].any() else 0


def _load_npz(path, name):
    with _name_bad(path), zipfile.ZipFile(path) as archive:
        n_bytes = sum(member.file_size for member in archive.infolist())
        names = {member.removesuffix(".npy") for member in archive.namelist()}
    if n_bytes > 1100 * os.path.getsize(path):
        raise ValueError(f"{path!r}: declares {n_bytes} bytes, which it cannot hold.")
    chosen = _choose(path, names, name)
    with _name_bad(path), np.load(path, allow_pickle=False) as file:
        return TileArrays(*(None if key is None else file[key] for key in chosen))


def _load_table(path, name):
    with _name_bad(path):
        if path.lower().endswith(".parquet"):
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, sep="\t" if ".tsv" in path.lower() else ",")
    return _split_table(path, table, name)


def _split_table(path, table, prefix=None):
    """Split a table with one row per tile into features and coordinates."""
    table = table.rename(columns=str)
    lower = {column.lower(): column for column in table.columns}
    axes = [next((lower[key] for key in keys if key in lower), None)
              for keys in (_X_COLUMNS, _Y_COLUMNS)]  # fmt: skip
    families = {}
    for column in table.columns:
        match = _NUMBERED.fullmatch(column)
        if match and column not in axes:
            families.setdefault(match[1], []).append(column)
    if prefix is not None:
        families = {key: each for key, each in families.items() if key == prefix}
    largest = max(families.values(), key=len, default=[])
    numbers = sorted(int(_NUMBERED.fullmatch(column)[2]) for column in largest)
    is_complete = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    if len(largest) < 8 or not is_complete:
        text = (
            f"{path!r}: expected a table with one row per tile and numbered columns of features, "
            f"such as 'feature_0', 'feature_1', found the columns {list(table.columns[:5])!r}."
        )
        raise NoTileFeatures(text, "tables without features")
    largest = sorted(largest, key=lambda column: int(_NUMBERED.fullmatch(column)[2]))
    wrong = [column for column in largest if table[column].dtype.kind not in "fiu"]
    if wrong:
        raise ValueError(f"{path!r}: expected numbers in {wrong[0]!r}, got text or missing values.")
    coords = None if None in axes else table[axes].to_numpy()
    return TileArrays(table[largest].to_numpy(dtype=np.float32), coords)


def _load_zarr(path, name):
    """Load the table of a SpatialData store, as LazySlide writes it, or of an AnnData store."""
    try:
        import zarr
    except ImportError as error:
        raise ValueError(f"{path!r}: reading Zarr needs `pip install zarr` ({error}).") from error

    _check_codecs(path)
    with _name_bad(path):
        root = zarr.open_group(path, mode="r")
        tables = dict(root["tables"].groups()) if "tables" in root else {"": root}
    if name is not None or len(tables) != 1:
        if name not in tables:
            raise ValueError(
                f"{path!r}: expected one table, found {sorted(tables)!r}. Choose one with "
                "features=."
            )
        chosen = name
    else:
        [chosen] = tables
    table = tables[chosen]
    if not isinstance(table.get("X"), zarr.Array):
        raise ValueError(f"{path!r}: expected a dense array 'X' in its table {chosen!r}.")
    with _name_bad(path):
        features = table["X"][...]
        coords = _find_coords(path, table, len(features))
    region = table.attrs.get("region")
    region = region[0] if isinstance(region, list) and len(region) == 1 else region
    return TileArrays(features, coords, encoder=chosen.removesuffix(f"_{region}"))


def _find_coords(path, table, n_tiles):
    """Return the corners of the tiles, by the specification of SpatialData; None without."""
    region, key = table.attrs.get("region"), table.attrs.get("instance_key")
    region = region[0] if isinstance(region, list) and len(region) == 1 else region
    shapes = os.path.join(path, "shapes", str(region), "shapes.parquet")
    if not isinstance(region, str) or not os.path.isfile(shapes):
        return None
    shapes = pd.read_parquet(shapes)
    corners = pd.DataFrame(shapely.bounds(shapely.from_wkb(shapes["geometry"])), shapes.index)
    ids = table["obs"][key][...] if key in table["obs"] else ()
    if len(ids) != n_tiles or not set(ids) <= set(corners.index):
        raise ValueError(
            f"{path!r}: its {n_tiles} rows of features do not belong to the {len(corners)} tiles "
            f"in its shapes {region!r}."
        )
    return corners.loc[ids, [0, 1]].to_numpy()


def _check_codecs(path):
    """Refuse codecs that are not known; one of numcodecs runs pickles."""
    for file in Path(path).rglob("*"):
        if file.name not in (".zarray", "zarr.json", ".zmetadata"):
            continue
        try:
            found = set(_codecs_in(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path!r} is not a readable .zarr file ({error}).") from error
        if found - _CODECS:
            raise ValueError(
                f"{path!r}: expected the codecs {sorted(_CODECS)!r}, found "
                f"{sorted(found - _CODECS)!r} in {file.name!r}. Others can run code."
            )


def _codecs_in(value):
    """Yield the names of the codecs in the metadata of Zarr."""
    if isinstance(value, list):
        for each in value:
            yield from _codecs_in(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key in ("filters", "compressor", "codecs", "index_codecs"):
                for codec in each if isinstance(each, list) else [each]:
                    if isinstance(codec, dict):
                        yield str(codec.get("id", codec.get("name")))
            yield from _codecs_in(each)


_CODECS = {"blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "bytes", "transpose", "crc32c"}
_CODECS |= {"sharding_indexed", "vlen-utf8", "vlen-bytes", "vlen-array", "shuffle", "delta"}

_LOADERS = {
    ".pt": _load_torch,
    ".pth": _load_torch,
    ".safetensors": _load_safetensors,
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".csv": _load_table,
    ".csv.gz": _load_table,
    ".tsv": _load_table,
    ".tsv.gz": _load_table,
    ".parquet": _load_table,
    ".zarr": _load_zarr,
}
ARRAY_ENDINGS = frozenset(_LOADERS)
