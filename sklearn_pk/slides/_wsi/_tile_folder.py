"""Folders of tile images: which files are tiles, and where they lie on their slide."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ._image import ImageReader
from ._kinds import UnsupportedKind

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_TABLES = (".csv", ".tsv", ".txt")
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".qptiff")
_AXIS_COLUMNS = ("{}", "{}_coord", "coord_{}", "{}_pos", "pos_{}", "{}_level0", "{}0")
# Labelled; as histolab names both corners; the last two numbers, x before y.
_LABELLED = re.compile(r"x[=_-]?(-?\d+)[\W_]+y[=_-]?(-?\d+)", re.IGNORECASE)
_CORNERS = re.compile(r"level\d+_(\d+)-(\d+)-\d+-\d+$")
_LAST_TWO = re.compile(r"(?:^|[\W_])(\d+)[\W_]+(\d+)\W*$")
_WIDTH = re.compile(r"[,_ ]w=(\d+)")


class TileFolder(NamedTuple):
    """The tile images of a folder."""

    names: tuple
    coords: np.ndarray  # (n, 2) in level-0 pixels, None where they are not known
    edge: int  # in pixels
    size_level0: int


def find_tile_files(folder):
    """Return the tile images of a folder and its tables; refuse folders of other files."""
    files = sorted(
        entry.path
        for entry in os.scandir(folder)
        if entry.is_file() and not entry.name.startswith(".")
    )
    slides = [os.path.basename(path) for path in files if path.lower().endswith(_SLIDES)]
    if slides or not any(map(_is_image, files)):
        found = f"slides such as {slides[0]!r}" if slides else "no image"
        raise ValueError(
            f"Expected a slide file, the folder of one DICOM series, or a folder of tile images "
            f"({', '.join(_IMAGES)}), got a folder with {found}: {folder!r}. List slides one by "
            "one; of a MIRAX slide, pass the .mrxs file."
        )
    return [path for path in files if _is_image(path) or path.lower().endswith(_TABLES)]


def _is_image(path):
    return path.lower().endswith(_IMAGES)


def read_tile_folder(folder):
    """Find the tile images of a folder, their size and their coordinates."""
    files = find_tile_files(folder)
    images = list(filter(_is_image, files))
    sizes = {}
    for path in images:
        try:
            with ImageReader(path) as image:
                sizes.setdefault(image.size, os.path.basename(path))
        except UnsupportedKind as error:
            raise ValueError(error.name(path)) from error
    (width, height), *others = sizes
    if others or width != height:
        found = ", ".join(f"{name!r}: {w} x {h}" for (w, h), name in list(sizes.items())[:3])
        raise ValueError(
            f"Folder {folder!r}: expected tile images that are squares of one size, found {found}. "
            "Slides are listed one by one."
        )
    names = tuple(map(os.path.basename, images))
    table = _find_table(folder, [path for path in files if not _is_image(path)], names)
    if table is not None:
        return TileFolder(names, _coords_of_table(folder, *table, names), width, width)
    stated = {int(found[1]) for name in names if (found := _WIDTH.search(name))}
    size_level0 = stated.pop() if len(stated) == 1 else width
    return TileFolder(names, coords_of_names(names, width), width, size_level0)


def _find_table(folder, paths, names):
    """Return the path of the table of coordinates, and its columns file, x and y."""
    found, known = [], {*names, *(Path(name).stem for name in names)}
    for path in paths:
        try:
            table = pd.read_csv(path, sep=None, engine="python", dtype=str)
        except (ValueError, pd.errors.ParserError):
            continue  # some other text
        columns = {str(name).strip().lower(): name for name in table.columns}
        possible = [[name.format(axis) for name in _AXIS_COLUMNS] for axis in "xy"]
        axes = [next((columns[n] for n in each if n in columns), None) for each in possible]
        # The column of file names has any name.
        n_known = table.map(_file_name).isin(known).sum()
        if None not in axes and n_known.max():
            found.append((path, table[[n_known.idxmax(), *axes]]))
    if len(found) > 1:
        names = [os.path.basename(path) for path, _ in found]
        raise ValueError(
            f"Folder {folder!r} holds several tables of coordinates: {names!r}. Keep one."
        )
    return found[0] if found else None


def _file_name(text):
    return re.split(r"[/\\]", str(text))[-1]


def _coords_of_table(folder, path, table, names):
    owner = f"Folder {folder!r}: its table {os.path.basename(path)!r}"
    files = list(map(_file_name, table.iloc[:, 0]))
    rows = {name: row for row, name in enumerate(files)}
    found = [rows.get(name, rows.get(Path(name).stem)) for name in names]
    if None in found or len(rows) < len(files):
        missing = names[found.index(None)] if None in found else None
        problem = f"does not list {missing!r}" if missing else "lists a file twice"
        raise ValueError(f"{owner} {problem}. Expected one row per tile image.")
    coords = table.iloc[found, 1:].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(coords).all() or (coords % 1).any():
        raise ValueError(f"{owner} must hold whole numbers as x and y, in level-0 pixels.")
    return coords.astype(np.int64)


def coords_of_names(names, edge):
    """Return the coordinates that all names state, None where they state none."""
    stems = [Path(name).stem for name in names]
    for pattern in (_LABELLED, _CORNERS, _LAST_TWO):
        found = [pattern.search(stem) for stem in stems]
        if all(found):
            coords = np.array([match.groups() for match in found], dtype=np.int64)
            is_unique = len(np.unique(coords, axis=0)) == len(coords)
            if is_unique and (pattern is not _LAST_TWO or _is_grid(coords, edge)):
                return coords
    return None


def _is_grid(coords, edge):
    """Return whether numbers are corners in pixels, not indices or parts of names."""
    steps = [np.diff(np.unique(axis)) for axis in coords.T]
    return len(coords) > 1 and all((each >= edge / 2).all() for each in steps)
