"""What is tried on each bad file: every way of the package to read one."""

# SPDX-License-Identifier: BSD-3-Clause

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _fuzz_seeds import KEY, MODEL, SHAPE, features, write_tiff

from sklearn_pk.datasets import load_cmu_slide, read_expression, read_table
from sklearn_pk.prior import read_gmt
from sklearn_pk.prior._gene_sets import load_aliases, load_edges
from sklearn_pk.regression import load_sequoia
from sklearn_pk.slides import SlideTiler, SuperTileClusterer, check_slides, read_features
from sklearn_pk.slides._encoders._lookup import Encoder
from sklearn_pk.slides._encoders._weights import load_encoder
from sklearn_pk.slides._features._store import open_stored
from sklearn_pk.slides._wsi._reader import open_slide

# Whether each target reads a good file before the first bad one, so that none of these is blamed
# for what has to be imported.
WARM_UP = True
_ENCODER = Encoder("small", *MODEL)


class Unnamed(Exception):
    """Something that should not have happened: an error without the file, or a wrong value."""


class Refused(ValueError):
    """A reason that a report gives instead of an error."""


def _row(report):
    """Raise the reason of a report of one slide."""
    [reason] = report["reason"]
    if not report["ok"][0]:
        raise Refused(reason)


def _tile_options():
    return {"tile_size": 64, "mpp": 0.5, "max_tiles": 4, "random_state": 0}


def read_slide(path, reader, home):
    """Check a slide, tile it, and read its tiles."""
    tiler = SlideTiler(reader=reader, **_tile_options())
    _row(check_slides([path], tiler=tiler))
    [tiled] = tiler.fit_transform([path])
    with tiled.open_tiles() as read:
        read(0, len(tiled))


def read_mask(path, home):
    """Tile a good slide with a bad mask."""
    slide = Path(home) / "good.tiff"
    if not slide.exists():
        with open_slide(load_cmu_slide().path) as file:
            write_tiff(slide, file.read(900, 1200, 0, 320, 288))
    X = pd.DataFrame({"slide": [str(slide)], "tissue": [str(path)]})
    try:
        _row(check_slides(X, tiler=SlideTiler(**_tile_options())))
    except Refused as reason:
        # The mask was read: it is the slide that has no tissue by it.
        if "mask is empty" not in str(reason) and "No tile has more" not in str(reason):
            raise


def read_bag(path, home):
    """Read features, and give them to an estimator that has to refuse NaN."""
    bag = read_features(path)
    values = bag.features
    bag.coords  # noqa: B018
    if values.shape != bag.shape or values.dtype != np.float32:
        raise Unnamed(f"{bag!r} gives {values.shape} of {values.dtype}")
    missing = np.isnan(values).all(axis=1)  # as a missing tile is written
    if not np.isfinite(values[~missing]).all():
        SuperTileClusterer(n_clusters=2, random_state=0).fit_transform([bag])
        raise Unnamed(f"{bag!r}: NaN or infinity is not refused")


def read_folder(path, home):
    """Read a folder with a bad file beside a good one."""
    folder = Path(home) / "folder"
    folder.mkdir()
    try:
        torch.save(torch.from_numpy(features()), folder / "good.pt")
        place = folder / Path(path).name
        shutil.move(path, place)
        bags = read_features(folder)
        if len(bags) + len(bags.failures) == 1 and not _passed_over(place):
            raise Unnamed(f"{place.name} is lost")
        if len(bags.failures):
            raise Refused(bags.failures["reason"][0])
    finally:
        shutil.rmtree(folder)


def _passed_over(place):
    """Tell a file that nobody took for features, or that holds no more than places of tiles."""
    if place.suffix not in (".h5", ".hdf5", ".pt", ".pth", ".pkl", ".npy", ".npz"):
        return True
    try:
        read_features(place)
    except ValueError as error:
        return "coordinates of tiles, but no features" in str(error)
    return False


def read_stored(path, home):
    """Open a file as one of our store: it must be what was written, or nothing."""
    bag = open_stored(path, KEY, SHAPE)
    if bag is None:
        raise Refused(f"{path}: not in the store")
    if not np.array_equal(bag.features, features()):
        raise Unnamed("a wrong array comes from the store")


def read_weights(path, home):
    """Load the weights of an encoder."""
    load_encoder(_ENCODER, path, "cpu")


def read_checkpoint(path, home):
    """Load a checkpoint, and predict with it."""
    load_sequoia(path).predict([np.zeros((5, 8), dtype=np.float32)])


def read_gene_sets(path, home):
    """Read gene sets, as stars and as cliques."""
    read_gmt(path)
    for edges in ("star", "clique"):
        load_edges(path, edges=edges)


def read_aliases(path, home):
    """Read other names of genes."""
    load_aliases(path)


def read_tables(path, home):
    """Read a table in both ways."""
    first = None
    for read in (read_table, read_expression):
        try:
            read(path)
        except (OSError, TypeError, ValueError) as error:
            first = first or error
            if Path(path).name not in str(error):
                raise
    if first:
        raise first


def _with_reader(reader):
    return lambda path, home: read_slide(path, reader, home)


_FILE = (FileNotFoundError, PermissionError, ValueError)
# By target: the kind of file, what reads it, and the errors that its documentation names.
TARGETS = {
    "slide, tifffile": ("slide", _with_reader("tifffile"), _FILE),
    "slide, openslide": ("slide", _with_reader("openslide"), _FILE),
    "slide, auto": ("slide", _with_reader("auto"), _FILE),
    "mask image": ("mask", read_mask, _FILE),
    "mask drawing": ("drawing", read_mask, _FILE),
    "features, HDF5": ("hdf5", read_bag, _FILE),
    "features, torch": ("tensor", read_bag, _FILE),
    "folder of features": ("hdf5", read_folder, _FILE),
    "feature store": ("store", read_stored, _FILE),
    "encoder weights": ("weights", read_weights, _FILE),
    "checkpoint": ("sequoia", read_checkpoint, _FILE),
    "gene sets": ("gene sets", read_gene_sets, _FILE),
    "aliases": ("aliases", read_aliases, _FILE),
    "table": ("table", read_tables, (*_FILE, TypeError)),
}
