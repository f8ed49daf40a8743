"""export_map writes what QuPath, scanpy, tables and browsers read."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib.util
import json
import sys

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_pk.io import _maps, export_map
from sklearn_pk.slides import FeatureBag, SlideTiler

HAS_ANNDATA = importlib.util.find_spec("anndata") is not None
ENDINGS = [".geojson", ".csv", ".parquet", ".html"]


@pytest.fixture(scope="module")
def tiled(cmu_slide):
    [tiled] = SlideTiler().fit_transform([cmu_slide])
    return tiled


@pytest.fixture(scope="module")
def tiles(tiled):
    """Return a table such as predict_tiles returns."""
    values = np.random.default_rng(0).normal(8, 1, size=(len(tiled), 3)).astype(np.float32)
    index = pd.MultiIndex.from_arrays(tiled.coords.T, names=["x", "y"])
    table = pd.DataFrame(values, index=index, columns=["ESR1", "MKI67", "<b>&GENE"])
    table.attrs.update(slide=tiled.path, size_level0=tiled.size_level0)
    return table


@pytest.fixture(scope="module")
def report():
    return pd.DataFrame(
        {"r": [0.5, 0.1, 0.2], "significant": [True, False, True], "reason": ["", "r <= 0", ""]},
        index=["ESR1", "MKI67", "<b>&GENE"],
    )


def bag_of(tiled, **changes):
    fields = {
        "features": np.ones((len(tiled), 4)),
        "coords": tiled.coords,
        "slide": tiled.path,
        "size_level0": tiled.size_level0,
        "tile_edge_um": tiled.tile_edge_um,
    }
    return FeatureBag(**(fields | changes))


def test_geojson_for_qupath(tiles, tiled, cmu_slide, tmp_path):
    export_map(cmu_slide, tiles, tmp_path / "map.geojson")
    collection = json.loads((tmp_path / "map.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    assert len({feature["id"] for feature in features}) == len(tiles)
    for feature, corner, (_, row) in zip(features, tiled.coords, tiles.iterrows(), strict=True):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        [ring] = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == corner.tolist()
        assert_array_equal(ring[2], corner + tiled.size_level0)
        assert feature["properties"]["objectType"] == "detection"
        measurements = feature["properties"]["measurements"]
        assert list(measurements) == list(tiles.columns)
        assert_allclose(list(measurements.values()), row, rtol=1e-6)
    # The same tiles keep their identifiers.
    export_map(tiled, tiles, tmp_path / "again.geojson", genes=["MKI67"])
    again = json.loads((tmp_path / "again.geojson").read_text())["features"]
    assert [each["id"] for each in again] == [each["id"] for each in features]
    assert list(again[0]["properties"]["measurements"]) == ["MKI67"]


def test_coordinates_of_qupath_start_at_the_scanned_region(tiles, cmu_slide, tmp_path, monkeypatch):
    bounds = {"openslide.bounds-x": "100", "openslide.bounds-y": "30"}
    load = _maps.load_overview
    monkeypatch.setattr(_maps, "load_overview", lambda *args: (*load(*args)[:3], bounds))
    export_map(cmu_slide, tiles, tmp_path / "map.geojson")
    [ring] = json.loads((tmp_path / "map.geojson").read_text())["features"][0]["geometry"][
        "coordinates"
    ]
    assert_array_equal(ring[0], np.array(tiles.index[0]) - [100, 30])


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables(ending, tiles, tiled, tmp_path):
    path = tmp_path / f"map{ending}"
    export_map(tiled, tiles, path)
    table = pd.read_csv(path) if ending == ".csv" else pd.read_parquet(path)
    assert list(table) == ["x", "y", "tile_size", *tiles.columns]
    assert_array_equal(table[["x", "y"]], tiled.coords)
    assert_array_equal(table["tile_size"], tiled.size_level0)
    assert_allclose(table[tiles.columns], tiles, rtol=1e-6)
    with pytest.raises(ValueError, match="'x' are columns for the tiles"):
        export_map(tiled, tiles.rename(columns={"ESR1": "x"}), path)


@pytest.mark.skipif(not HAS_ANNDATA, reason="anndata is not installed")
@pytest.mark.parametrize("with_slide", [True, False])
def test_anndata(with_slide, tiles, tiled, report, tmp_path):
    import anndata

    path = tmp_path / "map.h5ad"
    if with_slide:
        export_map(tiled, tiles, path, report=report, units="log2")
    else:
        with pytest.warns(UserWarning, match="no slide below"):
            export_map(bag_of(tiled, slide="cmu_small_region"), tiles, path)
    adata = anndata.read_h5ad(path)
    assert_array_equal(adata.X, tiles)
    assert list(adata.var_names) == list(tiles.columns)
    assert adata.obs_names.is_unique
    centres = tiled.coords + tiled.size_level0 / 2
    assert_allclose(adata.obsm["spatial"], centres)
    spatial = adata.uns["spatial"]["cmu_small_region"]
    factors = spatial["scalefactors"]
    assert factors["spot_diameter_fullres"] == tiled.size_level0
    assert_allclose(spatial["metadata"]["mpp"], 0.499, rtol=1e-3)
    if with_slide:
        image = spatial["images"]["hires"]
        assert image.dtype == np.uint8
        size = np.array(image.shape[1::-1]) / factors["tissue_hires_scalef"]
        assert_allclose(size, tiled.slide_size, rtol=1e-3)
        assert_allclose(adata.var["r"], report["r"])
        assert adata.var["significant"].tolist() == [True, False, True]
    else:
        assert not spatial.get("images")


def test_without_anndata(tiles, tiled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_pk\[anndata\]'"):
        export_map(tiled, tiles, tmp_path / "map.h5ad")
    assert not list(tmp_path.iterdir())


def test_rows_of_a_bag(tiles, tiled, tmp_path):
    # Arrays and tables without coordinates have the tiles of the bag.
    path, bag = tmp_path / "map.csv", bag_of(tiled)
    export_map(bag, tiles.to_numpy(), path)
    assert list(pd.read_csv(path)) == ["x", "y", "tile_size", "0", "1", "2"]
    export_map(bag, tiles["ESR1"].reset_index(drop=True), path)
    table = pd.read_csv(path)
    assert_array_equal(table[["x", "y"]], tiled.coords)
    assert_allclose(table["ESR1"], tiles["ESR1"], rtol=1e-6)
    # Some tiles of the bag, and tiles without a stated size.
    export_map(bag_of(tiled, size_level0=None), tiles.iloc[::-2], path)
    assert_array_equal(pd.read_csv(path)[["x", "y"]], tiled.coords[::-2])


@pytest.mark.parametrize("ending", ENDINGS)
def test_predictions_that_do_not_fit(ending, tiles, tiled, report, cmu_slide, tmp_path):
    path = tmp_path / f"map{ending}"
    moved = tiles.set_axis(pd.MultiIndex.from_arrays(tiled.coords.T + 7, names=["x", "y"]), axis=0)
    with pytest.raises(ValueError, match=r"do not fit the slide 'cmu_small_region': .*such as the"):
        export_map(tiled, moved, path)
    with pytest.raises(ValueError, match=r"have 5 rows, but the slide .* has \d+ tiles"):
        export_map(bag_of(tiled), tiles.to_numpy()[:5], path)
    with pytest.raises(TypeError, match="got a list of 1"):
        export_map(tiled, [tiles], path)
    with pytest.raises(ValueError, match="must be indexed by x and y"):
        export_map(cmu_slide, tiles.reset_index(drop=True), path)
    with pytest.raises(ValueError, match="NaN or infinity in 'MKI67'"):
        export_map(tiled, tiles.assign(MKI67=np.nan), path)
    with pytest.raises(ValueError, match=r"'esr1', 'XYZ' not found.*Did you mean 'ESR1'\?"):
        export_map(tiled, tiles, path, genes=["esr1", "XYZ"])
    with pytest.raises(ValueError, match="report lacks 2 of 3 genes"):
        export_map(tiled, tiles, path, report=report[:1])
    with pytest.raises(FileNotFoundError, match="Slide not found: 'moved.svs'"):
        export_map("moved.svs", tiles, path)
    with pytest.raises(TypeError, match="an instance of int"):
        export_map(3, tiles, path)
    if ending in (".geojson", ".html"):
        outside = tiles.set_axis(
            pd.MultiIndex.from_arrays(tiled.coords.T + 100_000, names=["x", "y"]), axis=0
        )
        with pytest.raises(ValueError, match="tiles are outside, such as the one at"):
            export_map(cmu_slide, outside, path)
    assert not list(tmp_path.iterdir())


def test_other_slides_and_paths(tiles, tiled, small_slides, tmp_path):
    foreign = tiles.iloc[:1].copy()
    foreign.attrs.update(slide="S7", size_level0=100)
    foreign.index = pd.MultiIndex.from_tuples([(0, 0)], names=["x", "y"])
    with pytest.warns(UserWarning, match="from the slide 'S7', but the image is from"):
        export_map(small_slides[0], foreign, tmp_path / "map.csv")
    with pytest.raises(ValueError, match=r"must end in one of .html, .geojson.*got .*map.png"):
        export_map(tiled, tiles, tmp_path / "map.png")
    with pytest.raises(OSError, match=r"map.csv' cannot be written"):
        export_map(tiled, tiles, tmp_path / "none" / "map.csv")
