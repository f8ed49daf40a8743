"""export_map: the predicted expression of the tiles of a slide, for other programs."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..plotting._slide import (
    check_tile_table,
    common_limits,
    edges_of_tiles,
    load_overview,
    name_of_slide,
    warn_if_other_slide,
)
from ..plotting._style import held_out
from ..slides import FeatureBag, TiledSlide
from ..utils._files import written_whole
from ..utils._reporting import warn_user
from ..utils._validation import did_you_mean, name_some
from ._viewer import write_deep_zoom, write_viewer

# Longer side of the overview, in pixels.
OVERVIEW = 4000
_COORDINATES = ["x", "y", "tile_size"]


@dataclass
class TileMap:
    """The tiles of one slide, checked."""

    name: str
    corners: np.ndarray  # (n, 2), level-0 pixels
    values: np.ndarray  # (n, n_genes), float32
    genes: list
    edge: float  # level-0 pixels
    step: float  # the part of it that does not overlap other tiles
    path: str | None  # slide file
    mpp: float | None  # of level 0
    units: str | None
    accuracy: list | None  # (r, significant, reason) of each gene
    limits: list | None  # (low, high) of each gene over several slides
    n_reference: int
    image: np.ndarray | None = None
    downsample: float = 1.0
    offset: tuple = (0, 0)  # of the scanned region, level-0 pixels
    deep_zoom: dict | None = None

    def frame(self):
        """Return the tiles as a table."""
        taken = [name for name in _COORDINATES if name in self.genes]
        if taken:
            raise ValueError(
                f"predictions: {name_some(taken)} are columns for the tiles. Rename these genes."
            )
        columns = dict(zip(_COORDINATES, [*self.corners.T, self.edge], strict=True))
        table = pd.DataFrame(self.values, columns=self.genes)
        return pd.concat([pd.DataFrame(columns, index=table.index), table], axis=1)


def export_map(
    slide,
    predictions,
    path,
    *,
    genes=None,
    report=None,
    reference=None,
    units=None,
    mpp=None,
    tile_size=None,
    tiles=False,
):
    """
    Export the predicted expression of the tiles of a slide.

    The ending of `path` selects the format:

    - ``.html``: a viewer in one file for any web browser, which needs neither a network nor
      other files: the slide, genes to search, opacity, the slide beside the map, limits of
      the colours, a scale bar, and the value and percentile of the tile below the pointer.
    - ``.geojson``: one detection per tile for QuPath, with the genes as measurements.
    - ``.h5ad``: AnnData with tiles as observations, as scanpy and squidpy read it; needs the
      package anndata.
    - ``.csv``, ``.parquet``: a table with the columns ``x``, ``y``, ``tile_size`` (level-0
      pixels) and one column per gene.

    Parameters
    ----------
    slide : path-like, TiledSlide or FeatureBag
        The slide. From a bag, the slide is shown only if the bag has the path of an existing
        file.
    predictions : DataFrame or array-like of shape (n_tiles, n_genes)
        One of the tables that ``predict_tiles`` returns, indexed by the corners of the tiles in
        level-0 pixels. Rows of other tables and arrays are the tiles of `slide` in their order.
    path : str or path-like
        File to write. An existing one is replaced.
    genes : list of str, default=None
        Genes to export, in this order; None exports all. A viewer is meant for up to 500.
    report : CrossValSignificance or DataFrame, default=None
        Held-out accuracy of the model: a result, or its report. The viewer shows r and
        significance of each gene, and draws genes that are not significant in grey; a ``.h5ad``
        has them in ``var``.
    reference : list of DataFrame, default=None
        Tables of several slides. The viewer then has limits of the colours that are common to
        them: the 1st and 99th percentile of each gene over all of their tiles.
    units : str, default=None
        Units of the expression, such as "log2 TPM".
    mpp : float, default=None
        Resolution of level 0 in um/px, for the scale bar. None takes that of the slide or of
        the bag; without one, there is no scale bar.
    tile_size : float, default=None
        Edge of a tile in level-0 pixels. None takes that of `predictions`, the slide or the bag
        or, without one, the smallest distance between tiles.
    tiles : bool, default=False
        Whether to write the slide at full resolution for the viewer as well, as DeepZoom in the
        folder ``NAME_files`` beside ``NAME.html``. It takes minutes and about the space of the
        slide. Without the folder, the viewer shows the overview inside.

    Raises
    ------
    FileExistsError
        If `tiles` is True and the folder exists.
    FileNotFoundError, PermissionError
        If the slide cannot be opened.
    ImportError
        If anndata is needed and not installed.
    OSError
        If the file cannot be written.
    TypeError
        If `slide` or `predictions` is of another type.
    ValueError
        If the ending of `path` is unknown, a gene is missing, predictions are not finite or do
        not fit the tiles, tiles are outside the slide, or there are too many for a viewer.

    Warns
    -----
    UserWarning
        If the predictions name another slide, or the slide of a bag is not shown.

    See Also
    --------
    sklearn_pk.plotting.SpatialExpressionDisplay : Draws one gene.
    sklearn_pk.regression.PriorKnowledgeRegressor.predict_tiles : Predicts tiles.

    Notes
    -----
    QuPath counts pixels from the corner of the scanned region where a slide states one (MIRAX),
    as do the coordinates of a ``.geojson``. This needs the slide file; from a bag without it,
    coordinates are those of the whole slide.

    A viewer holds values with 65,535 steps between the lowest and the highest of each gene, or
    with 255 above 4 million values.

    Examples
    --------
    >>> import pandas as pd
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.io import export_map
    >>> corners = pd.MultiIndex.from_tuples([(513, 1026), (1026, 1026)], names=["x", "y"])
    >>> tiles = pd.DataFrame({"ESR1": [5.0, 7.0]}, index=corners)
    >>> tiles.attrs.update(slide="cmu", size_level0=513)
    >>> path = mkdtemp() + "/map.csv"
    >>> export_map(load_cmu_slide().path, tiles, path)
    >>> print(Path(path).read_text())
    x,y,tile_size,ESR1
    513,1026,513.0,5.0
    1026,1026,513.0,7.0
    <BLANKLINE>
    """
    write = _WRITERS.get(Path(path).suffix.lower())
    if write is None:
        raise ValueError(f"path must end in one of {', '.join(_WRITERS)}, got {os.fspath(path)!r}.")
    if tiles and write is not write_viewer:
        raise ValueError(f"tiles=True is for the viewer: path must end in .html, got {path!r}.")
    tile_map = read_tiles(slide, predictions, genes, report, reference, units, mpp, tile_size)
    if write is not _write_table:
        _add_image(tile_map, slide, thumbnail=write is not _write_geojson)
    if tiles:
        tile_map.deep_zoom = write_deep_zoom(tile_map.path, Path(path))
    with written_whole(path) as temporary:
        write(tile_map, temporary)


def read_tiles(slide, predictions, genes, report, reference, units, mpp, tile_size):
    """Check what is exported."""
    known = _describe_slide(slide)
    table = _as_table(predictions, known)
    table = _choose_genes(table, genes)
    corners = table.index.to_frame().to_numpy()
    if known["coords"] is not None:
        _check_fit(table.index, known)
    values = table.to_numpy(dtype=np.float32)
    if not np.isfinite(values).all():
        wrong = table.columns[~np.isfinite(values).all(axis=0)]
        raise ValueError(
            f"predictions must be finite, but have NaN or infinity in {name_some(wrong)}."
        )
    if isinstance(known["path"], str):
        warn_if_other_slide(table.attrs.get("slide"), known["path"])
    size = tile_size or table.attrs.get("size_level0") or known["size"]
    edge, step = edges_of_tiles(corners.astype(float), size)
    found = [mpp, known["mpp"], table.attrs.get("mpp")]
    return TileMap(
        name=known["name"] or name_of_slide(table),
        corners=corners,
        values=values,
        genes=list(table.columns),
        edge=float(edge),
        step=float(step),
        path=known["path"],
        mpp=next((float(each) for each in found if not pd.isna(each)), None),
        units=units,
        accuracy=None if report is None else held_out(report, list(table.columns)),
        limits=None
        if reference is None
        else [common_limits(reference, gene) for gene in table.columns],
        n_reference=0 if reference is None else len(reference),
    )


def _describe_slide(slide):
    """Return what is known about a slide: its file, name, tiles, size of tiles and um/px."""
    if isinstance(slide, TiledSlide):
        slide.check_content()
        known = {"path": slide.path, "name": slide.name, "coords": slide.coords}
        return known | {"size": slide.size_level0, "mpp": slide.slide_mpp, "n": len(slide)}
    if isinstance(slide, FeatureBag):
        edge, size = slide.tile_edge_um, slide.size_level0
        path = slide.slide if slide.slide and os.path.isfile(slide.slide) else None
        known = {"path": path, "name": slide.name, "coords": slide.coords, "size": size}
        return known | {"mpp": edge / size if edge and size else None, "n": len(slide)}
    if isinstance(slide, str | os.PathLike):
        path = os.fspath(slide)
        if not os.path.exists(path):
            raise FileNotFoundError(f"Slide not found: {path!r}. Check the path.")
        known = {"path": path, "name": Path(path).stem, "coords": None}
        return known | {"size": None, "mpp": None, "n": None}
    raise TypeError(
        "slide must be the path of a slide, a TiledSlide or a FeatureBag, got an instance of "
        f"{type(slide).__name__}."
    )


def _as_table(predictions, known):
    """Return predictions as a table indexed by the corners of the tiles."""
    if isinstance(predictions, list | tuple):
        raise TypeError(
            f"predictions must be the table of one slide, got a list of {len(predictions)}. Export "
            "one after the other: export_map(slide, tables[0], path)."
        )
    if isinstance(predictions, pd.Series):
        predictions = predictions.to_frame()
    is_table = isinstance(predictions, pd.DataFrame)
    table = predictions if is_table else pd.DataFrame(np.atleast_2d(np.asarray(predictions)))
    if list(table.index.names) != ["x", "y"]:
        if known["coords"] is None:
            check_tile_table(table, "predictions")
        if len(table) != known["n"]:
            raise ValueError(
                f"predictions have {len(table)} rows, but the slide {known['name']!r} has "
                f"{known['n']} tiles. Pass one row per tile, or a table of predict_tiles."
            )
        attrs = table.attrs
        table = table.set_axis(pd.MultiIndex.from_arrays(known["coords"].T, names=["x", "y"]))
        table.attrs = attrs
    if not table.size:
        raise ValueError(f"predictions must have tiles and genes, got shape {table.shape}.")
    table = table.rename(columns=str)
    if not table.columns.is_unique:
        repeated = table.columns[table.columns.duplicated()]
        raise ValueError(f"predictions must have each gene once, got {name_some(repeated)} again.")
    return table


def _choose_genes(table, genes):
    if genes is None:
        return table
    genes = [genes] if isinstance(genes, str) else list(map(str, genes))
    unknown = [gene for gene in genes if gene not in table.columns]
    if unknown:
        raise ValueError(
            f"genes: {name_some(unknown)} not found among the {table.shape[1]} genes of "
            f"predictions.{did_you_mean(unknown, table.columns)}"
        )
    return table[genes]


def _check_fit(index, known):
    """Check that predictions are those of the tiles of a slide."""
    own = pd.MultiIndex.from_arrays(np.asarray(known["coords"]).T, names=["x", "y"])
    foreign = ~index.isin(own)
    if foreign.any():
        raise ValueError(
            f"predictions do not fit the slide {known['name']!r}: {foreign.sum()} of {len(index)} "
            f"tiles are not among its {len(own)}, such as the one at {index[foreign][0]}. Pass the "
            "predictions of this slide."
        )


def _add_image(tiles, slide, *, thumbnail):
    """Read the overview and the um/px of the slide file."""
    if tiles.path is None:
        if thumbnail:
            warn_user(
                f"The map has no slide below: the bag knows it as {slide.slide!r}, which is not a "
                "file here. Pass the path of the slide instead of the bag."
            )
        return
    image, downsample, mpp, properties = load_overview(tiles.path, OVERVIEW if thumbnail else 64)
    size = np.array(image.shape[1::-1]) * downsample
    outside = ((tiles.corners < 0) | (tiles.corners >= size)).any(axis=1)
    if outside.any():
        raise ValueError(
            f"predictions do not fit the slide {tiles.path!r} of {size[0]:.0f} x {size[1]:.0f} "
            f"level-0 pixels: {outside.sum()} of {len(outside)} tiles are outside, such as the one "
            f"at {tiles.corners[outside.argmax()].tolist()}."
        )
    factor = max(image.shape[:2]) / OVERVIEW
    if factor > 1:
        height, width = (max(1, round(length / factor)) for length in image.shape[:2])
        downsample *= image.shape[1] / width
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    tiles.image, tiles.downsample = image, downsample
    tiles.mpp = mpp if tiles.mpp is None and not pd.isna(mpp) else tiles.mpp
    tiles.offset = tuple(int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")


def geojson_lines(tiles) -> Iterator[str]:
    """Yield the lines of a collection of detections."""
    yield '{"type": "FeatureCollection", "features": ['
    last = len(tiles.corners) - 1
    corners, edge = (tiles.corners - np.array(tiles.offset)).tolist(), tiles.edge
    edge = int(edge) if float(edge).is_integer() else edge
    for number, ((x, y), values) in enumerate(zip(corners, tiles.values.tolist(), strict=True)):
        ring = [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]
        # float32 has seven digits.
        rounded = [float(f"{value:.7g}") for value in values]
        feature = {
            "type": "Feature",
            # The same tile has the same identifier in each export.
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tiles.name} {x} {y} {edge}")),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "detection",
                "measurements": dict(zip(tiles.genes, rounded, strict=True)),
            },
        }
        yield json.dumps(feature) + ("," if number < last else "")
    yield "]}"


def _write_geojson(tiles, path):
    with open(path, "w", encoding="utf-8") as file:
        for line in geojson_lines(tiles):
            file.write(line + "\n")


def _write_table(tiles, path):
    if path.suffix == ".parquet":
        tiles.frame().to_parquet(path)
    else:
        tiles.frame().to_csv(path, index=False)


def _write_h5ad(tiles, path):
    try:
        from anndata import AnnData
    except ImportError as error:
        raise ImportError(
            "A .h5ad file needs the package anndata: pip install 'sklearn_pk[anndata]'."
        ) from error
    name = tiles.name or "slide"
    obs = pd.DataFrame({"tile_size": tiles.edge, "slide": name}, index=_tile_names(tiles))
    var = pd.DataFrame(index=pd.Index(tiles.genes, dtype=object))
    if tiles.accuracy is not None:
        var["r"], var["significant"], var["reason"] = map(list, zip(*tiles.accuracy, strict=True))
    spatial = {
        "images": {},
        # Radius 1 is half of the edge: spots are as wide as tiles.
        "scalefactors": {"spot_diameter_fullres": tiles.step, "tissue_hires_scalef": 1.0},
        "metadata": {"source_image_path": Path(tiles.path or "").name},
    }
    if tiles.mpp is not None:
        spatial["metadata"]["mpp"] = tiles.mpp
    if tiles.image is not None:
        spatial["images"]["hires"] = tiles.image
        spatial["scalefactors"]["tissue_hires_scalef"] = 1 / tiles.downsample
    adata = AnnData(tiles.values, obs=obs, var=var)
    adata.obsm["spatial"] = tiles.corners + tiles.edge / 2
    adata.uns["spatial"] = {name: spatial}
    if tiles.units is not None:
        adata.uns["units"] = tiles.units
    adata.write_h5ad(path)


def _tile_names(tiles):
    return pd.Index([f"{tiles.name}_{x}_{y}" for x, y in tiles.corners.tolist()], dtype=object)


_WRITERS = {
    ".html": write_viewer,
    ".geojson": _write_geojson,
    ".h5ad": _write_h5ad,
    ".csv": _write_table,
    ".parquet": _write_table,
}
