"""SpatialExpressionDisplay draws the values of predict_tiles at the tile coordinates."""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib.pyplot as plt
import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_pk.plotting import SpatialExpressionDisplay, _slide
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRidge
from sklearn_pk.slides import BagPooler, FeatureBag, SlideTiler, SuperTileClusterer
from sklearn_pk.slides._wsi import _reader


def table(corners, values, *, size=None, slide="S1", gene="ESR1"):
    """Return a table such as predict_tiles returns."""
    index = pd.MultiIndex.from_arrays(np.asarray(corners).T, names=["x", "y"])
    tiles = pd.DataFrame({gene: np.asarray(values, dtype=np.float32)}, index=index)
    tiles.attrs.update(slide=slide, size_level0=size)
    return tiles


def grid(n_columns, n_rows, step=100):
    return np.array([(x, y) for y in range(n_rows) for x in range(n_columns)]) * step


def corners_of(display):
    """Return corners and edges of the squares, in pixels of the image."""
    vertices = np.array([path.vertices[:4] for path in display.tiles_.get_paths()])
    return vertices.min(axis=1), np.ptp(vertices, axis=1)


def texts_of(display):
    return [text.get_text() for text in display.ax_.texts]


@pytest.fixture(scope="module")
def tiled(cmu_slide):
    [tiled] = SlideTiler().fit_transform([cmu_slide])
    return tiled


@pytest.fixture(scope="module")
def bags(tiled):
    """One bag with the tiles of the real slide and some without slides, random features."""
    rng = np.random.default_rng(0)
    others = [rng.normal(size=(6, 8)) for _ in range(11)]
    features = rng.normal(size=(len(tiled), 8))
    edge = tiled.tile_edge_um
    return [FeatureBag(features, tiled.coords, tiled.path, tiled.size_level0, edge), *others]


@pytest.fixture(scope="module")
def expression(brca_expression):
    return brca_expression.iloc[:12, :5]


@pytest.fixture(scope="module")
def model(bags, expression):
    model = PriorKnowledgeRegressor(max_epochs=2, early_stopping=None, device="cpu", random_state=0)
    return model.fit(bags, expression)


def test_real_slide_and_fitted_model(model, bags, tiled, expression):
    gene = expression.columns[2]
    display = SpatialExpressionDisplay.from_estimator(
        model, bags[0], gene=gene, slide=tiled, units="log2"
    )
    [expected] = model.predict_tiles(bags[:1], genes=[gene])
    assert_allclose(display.tiles_.get_array(), expected[gene])
    corners, edges = corners_of(display)
    assert_allclose(corners * display.downsample, tiled.coords)
    assert_allclose(edges * display.downsample, tiled.size_level0)
    assert display.ax_.get_title() == f"{gene}: cmu_small_region"
    assert display.colorbar_.ax.get_ylabel() == f"Predicted {gene} (log2)"
    assert "200 µm" in texts_of(display)
    [bar] = display.ax_.lines
    assert_allclose(np.ptp(bar.get_xdata()) * display.downsample * 0.499, 200)
    # The colours depend on the values and are transparent.
    display.figure_.canvas.draw()
    colors = display.tiles_.get_facecolor()
    assert_allclose(colors, display.tiles_.to_rgba(expected[gene], alpha=0.6))
    assert len(np.unique(colors, axis=0)) > 10


def test_window_is_passed_on(model, bags):
    display = SpatialExpressionDisplay.from_estimator(
        model,
        bags[0],
        gene="ESR1" if "ESR1" in model.gene_names_out_ else model.gene_names_out_[0],
        window=3,
        stride=2,
    )
    [expected] = model.predict_tiles(bags[:1], genes=[display.gene], window=3, stride=2)
    assert_allclose(display.values, expected[display.gene])


def test_image_is_the_slide(cmu_slide, tiled):
    tiles = table(tiled.coords, np.arange(len(tiled)), size=tiled.size_level0, slide="")
    for slide in (cmu_slide, tiled):
        display = SpatialExpressionDisplay.from_predictions(tiles, slide=slide)
        assert display.mpp == pytest.approx(0.499)
        assert display.ax_.get_title() == "ESR1: cmu_small_region"
    with openslide.OpenSlide(cmu_slide) as file:
        level = np.asarray(file.read_region((0, 0), 0, file.dimensions).convert("RGB"))
    # A small slide is shown at full resolution; a block of the reader has 2,048 pixels.
    assert display.downsample == 2
    whole = SpatialExpressionDisplay.from_predictions(tiles, slide=tiled, size=3000)
    np.testing.assert_array_equal(whole.image, level)
    small = SpatialExpressionDisplay.from_predictions(tiles, slide=tiled, size=700)
    assert small.downsample == 4
    assert small.image.shape == (742, 555, 3)
    assert_allclose(small.image[:741].mean(), level.mean(), rtol=0.01)
    blocks = level[:2964].reshape(741, 4, 555, 4, 3).mean(axis=(1, 3))
    assert np.abs(small.image[:741] - blocks).max() <= 1


def test_slide_is_shown_in_grey_below_the_tiles():
    image = np.zeros((30, 40, 3), np.uint8)
    image[..., 0] = 200
    display = SpatialExpressionDisplay.from_predictions(
        table(grid(2, 2), range(4), size=100), thumbnail=image, downsample=10, mpp=0.5
    )
    assert_allclose(display.image_.get_array(), 0.299 * 200)
    assert display.ax_.get_xlim() == (0, 40)
    assert display.ax_.get_ylim() == (30, 0)
    corners, edges = corners_of(display)
    assert_allclose(corners, grid(2, 2) / 10)
    assert_allclose(edges, 10)
    assert display.image_.get_zorder() < display.tiles_.get_zorder()
    assert display.tiles_.get_alpha() == 0.6
    assert display.plot(alpha=0.3, cmap="magma").tiles_.get_alpha() == 0.3
    assert display.tiles_.get_cmap().name == "magma"


def test_map_without_slide(model, bags, tiled):
    display = SpatialExpressionDisplay.from_estimator(model, bags[0], gene=model.gene_names_out_[0])
    corners, _ = corners_of(display)
    assert_allclose(corners, tiled.coords - tiled.coords.min(axis=0))
    assert display.image_ is None
    assert display.tiles_.get_alpha() == 1
    width = np.ptp(tiled.coords[:, 0]) + tiled.size_level0
    assert display.ax_.get_xlim() == (0, width)
    # The bag has the edge of its tiles in um.
    assert display.mpp == pytest.approx(0.499, rel=0.01)
    assert "100 µm" in texts_of(display)


def test_edge_of_tiles_is_inferred():
    corners = np.delete(grid(5, 4, step=224), [3, 7], axis=0)
    display = SpatialExpressionDisplay.from_predictions(table(corners, range(18)))
    assert_allclose(corners_of(display)[1], 224)
    assert texts_of(display) == []
    display = SpatialExpressionDisplay.from_predictions(table(corners, range(18)), tile_size=100)
    assert_allclose(corners_of(display)[1], 100)
    with pytest.raises(ValueError, match="tile_size cannot be inferred from one tile"):
        SpatialExpressionDisplay.from_predictions(table([(5, 5)], [1]))
    one = SpatialExpressionDisplay.from_predictions(table([(5, 5)], [1], size=10))
    assert_allclose(corners_of(one)[1], 10)


def test_overlapping_tiles_do_not_mix():
    display = SpatialExpressionDisplay.from_predictions(table(grid(4, 4), range(16), size=200))
    corners, edges = corners_of(display)
    assert_allclose(edges, 100)
    assert_allclose(corners, grid(4, 4) + 50)
    assert display.ax_.get_xlim() == (0, 500)


def test_limits_are_percentiles_with_arrows():
    values = np.linspace(0, 1, 400)
    values[[0, -1]] = -50, 90
    display = SpatialExpressionDisplay.from_predictions(table(grid(20, 20), values))
    assert_allclose(display.tiles_.get_clim(), np.percentile(np.float32(values), [1, 99]))
    assert display.colorbar_.extend == "both"
    for limits, extend in [((None, 90), "min"), ((-50, None), "max"), ((-50, 90), "neither")]:
        display.plot(vmin=limits[0], vmax=limits[1])
        assert display.colorbar_.extend == extend
    assert display.tiles_.get_clim() == (-50, 90)
    with pytest.raises(ValueError, match="vmin must be smaller than vmax, got 3 and 2"):
        display.plot(vmin=3, vmax=2)


@pytest.mark.parametrize("value", [0, 7.5, -3])
def test_constant_map(value):
    values = value * (1 + 1e-7 * np.arange(9))
    display = SpatialExpressionDisplay.from_predictions(table(grid(3, 3), values))
    display.figure_.canvas.draw()
    low, high = display.tiles_.get_clim()
    assert low < value < high
    assert np.ptp(display.tiles_.get_facecolor(), axis=0).max() < 0.01
    assert display.colorbar_.extend == "neither"


def test_tiles_without_coordinates(model, bags):
    array = np.asarray(bags[0])
    with pytest.raises(ValueError, match=r"indexed by x and y.*\['tile'\].*coords=.*super-tiles"):
        SpatialExpressionDisplay.from_estimator(model, array, gene=model.gene_names_out_[0])
    with pytest.raises(TypeError, match=r"predict_tiles\(\[bag\]\)\[0\], got an instance of list"):
        SpatialExpressionDisplay.from_predictions([table(grid(2, 2), range(4))])


def test_gene_is_one_of_the_columns():
    tiles = table(grid(2, 2), range(4)).assign(TP53=[5, 6, 7, 8])
    with pytest.raises(ValueError, match="2 genes. Select one"):
        SpatialExpressionDisplay.from_predictions(tiles)
    with pytest.raises(ValueError, match="one of the 2 columns, got 'KRT5'.*'ESR1', 'TP53'"):
        SpatialExpressionDisplay.from_predictions(tiles, gene="KRT5")
    display = SpatialExpressionDisplay.from_predictions(tiles, gene="TP53")
    assert display.tiles_.get_array().tolist() == [5, 6, 7, 8]
    numbered = table(grid(2, 2), range(4), gene=7, slide="")
    assert SpatialExpressionDisplay.from_predictions(numbered).ax_.get_title() == "gene 7"


def test_pipelines_and_searches_are_followed(bags, expression):
    search = GridSearchCV(
        make_pipeline(
            FunctionTransformer(),
            PriorKnowledgeRegressor(
                max_epochs=1, early_stopping=None, device="cpu", random_state=0
            ),
        ),
        {"priorknowledgeregressor__lr": [1e-3]},
        cv=2,
    ).fit(bags, expression)
    gene = expression.columns[0]
    display = SpatialExpressionDisplay.from_estimator(search, bags[0], gene=gene)
    [expected] = search.best_estimator_[-1].predict_tiles(bags[:1], genes=[gene])
    assert_allclose(display.values, expected[gene])
    with pytest.raises(TypeError, match="must have predict_tiles.*BaseEstimator"):
        SpatialExpressionDisplay.from_estimator(BaseEstimator(), bags[0], gene=gene)


def test_map_of_a_pipeline_with_super_tiles_is_that_of_the_tiles(bags, expression):
    pipeline = make_pipeline(
        SuperTileClusterer(n_clusters=3, random_state=0),
        PriorKnowledgeRegressor(max_epochs=1, early_stopping=None, device="cpu", random_state=0),
    ).fit(bags, expression)
    gene = expression.columns[0]
    display = SpatialExpressionDisplay.from_estimator(pipeline, bags[0], gene=gene)
    [tiles] = pipeline[-1].predict_tiles(bags[:1], genes=[gene])
    assert_allclose(display.values, tiles[gene])


def test_steps_between_pooler_and_regressor_have_no_map(bags, expression):
    ridge = PriorKnowledgeRidge(prior=None)
    gene = expression.columns[0]
    steps = BagPooler(statistics=["mean"]), StandardScaler()
    pipeline = make_pipeline(*steps, ridge).fit(bags, expression)
    with pytest.raises(ValueError, match="step 'standardscaler' takes what 'bagpooler' makes"):
        SpatialExpressionDisplay.from_estimator(pipeline, bags[0], gene=gene)
    pipeline = make_pipeline(BagPooler(), ridge).fit(bags, expression)
    with pytest.raises(ValueError, match=r"takes \['mean', 'std'\] of all tiles of a slide"):
        SpatialExpressionDisplay.from_estimator(pipeline, bags[0], gene=gene)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corners": np.zeros((3, 3))}, r"corners must have the shape \(n_tiles, 2\), got \(3, 3"),
        ({"corners": np.zeros((0, 2))}, r"corners must have the shape .* got \(0, 2\)"),
        ({"corners": [(0, 0)] * 4}, r"several tiles start at \[0.0, 0.0\]"),
        ({"values": [1, 2]}, r"values must have the shape \(4,\)"),
        ({"values": [1, 2, 3, np.nan]}, "values must be finite"),
        ({"tile_size": 0}, "tile_size must be a positive number, got 0"),
        ({"mpp": -1}, "mpp must be a positive number, got -1"),
        ({"downsample": np.nan}, "downsample must be a positive number, got nan"),
        ({"image": np.zeros((9, 9))}, r"image must be RGB .* got \(9, 9\)"),
        ({"image": np.zeros((9, 9, 3))}, r"3 of 4 tiles are outside .* 9 x 9 .* downsample=1"),
    ],
)
def test_invalid_data(changes, message):
    data = {"corners": grid(2, 2), "values": range(4), "tile_size": 100} | changes
    with pytest.raises(ValueError, match=message):
        SpatialExpressionDisplay(**data).plot()
    assert not plt.get_fignums()


def test_slides_that_cannot_be_read(tmp_path):
    tiles = table(grid(2, 2), range(4))
    with pytest.raises(ValueError, match="slide: Slide not found: .*none.svs.*pass thumbnail="):
        SpatialExpressionDisplay.from_predictions(tiles, slide=tmp_path / "none.svs")
    with pytest.raises(ValueError, match="exclusive. Pass one"):
        SpatialExpressionDisplay.from_predictions(
            tiles, slide="a.svs", thumbnail=np.zeros((9, 9, 3), np.uint8)
        )


@pytest.mark.parametrize(
    ("stated", "shown"), [("a/b/S1.2.svs", "S1.2"), ("S1.2", "S1.2"), (7, "7"), (None, "")]
)
def test_title_has_the_name_of_the_slide(stated, shown):
    display = SpatialExpressionDisplay.from_predictions(table(grid(2, 2), range(4), slide=stated))
    assert display.ax_.get_title() == "ESR1" + (shown and f": {shown}")


def test_resolution_of_the_user_takes_precedence(cmu_slide, tiled):
    tiles = table(tiled.coords, np.arange(len(tiled)), slide=cmu_slide)
    display = SpatialExpressionDisplay.from_predictions(tiles, slide=cmu_slide, mpp=0.25)
    assert "100 µm" in texts_of(display)


def test_image_of_another_slide_warns(cmu_slide, tiled):
    tiles = table(tiled.coords, np.arange(len(tiled)), slide="TCGA-AA-0001-01Z.svs")
    with pytest.warns(UserWarning, match="tiles are from the slide 'TCGA-AA-0001.*image is from"):
        SpatialExpressionDisplay.from_predictions(tiles, slide=cmu_slide)


def test_several_genes_raise():
    with pytest.raises(ValueError, match=r"one gene, got \['ESR1', 'PGR'\]"):
        SpatialExpressionDisplay.from_predictions(table(grid(2, 2), range(4)), gene=["ESR1", "PGR"])


@pytest.mark.parametrize("layout", ["constrained", None])
@pytest.mark.parametrize("shape", [(900, 300), (300, 900), (600, 620)])
def test_nothing_overlaps_in_a_grid(layout, shape):
    figure, axes = plt.subplots(2, 2, figsize=(7, 6), layout=layout)
    image = np.full((*shape, 3), 200, np.uint8)
    tiles = table(grid(3, 3), range(9), slide="TCGA-CR-7395-01A-01-TS1.2f0b")
    displays = [
        SpatialExpressionDisplay.from_predictions(
            tiles, thumbnail=image, mpp=0.5, units="log2 TPM", ax=ax, fontsize=7, vmin=0, vmax=8
        )
        for ax in axes.ravel()
    ]
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for display in displays:
        ax, bar = display.ax_, display.colorbar_.ax
        parts = [ax.patch.get_window_extent(), bar.get_tightbbox(renderer)]
        parts += [text.get_window_extent() for text in [ax.title, *ax.texts]]
        for number, part in enumerate(parts):
            assert not any(part.overlaps(other) for other in parts[:number])
            assert figure.bbox.x0 <= part.x0
            assert part.x1 <= figure.bbox.x1
    boxes = [display.ax_.get_tightbbox(renderer) for display in displays]
    bars = [display.colorbar_.ax.get_tightbbox(renderer) for display in displays]
    for number, box in enumerate(boxes):
        for other in (*boxes[:number], *bars[:number]):
            assert not box.overlaps(other)
        height = displays[number].ax_.patch.get_window_extent().height
        assert_allclose(displays[number].colorbar_.ax.get_window_extent().height, height, rtol=0.01)


def test_many_tiles_are_rasterized():
    tiles = table(grid(100, 30), np.arange(3000))
    display = SpatialExpressionDisplay.from_predictions(tiles)
    display.figure_.canvas.draw()
    assert display.tiles_.get_rasterized()


def test_adjacent_tiles_have_no_gap():
    image = np.full((333, 333, 3), 255, np.uint8)
    tiles = table(grid(9, 9, step=37), np.full(81, 5))
    display = SpatialExpressionDisplay.from_predictions(tiles, thumbnail=image)
    display.figure_.canvas.draw()
    pixels = np.asarray(display.figure_.canvas.buffer_rgba())[::-1]
    box = display.ax_.get_window_extent()
    inside = pixels[int(box.y0) + 4 : int(box.y1) - 4, int(box.x0) + 4 : int(box.x1) - 4, :3]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 1


def test_long_title_is_split():
    figure, axes = plt.subplots(1, 4, figsize=(9, 2))
    name = "TCGA-CR-7395-01A-01-TS1.2f0b"
    tiles = table(grid(3, 3), range(9), slide=name)
    for ax in axes:
        title = SpatialExpressionDisplay.from_predictions(tiles, ax=ax).ax_.title
        assert title.get_text() == f"ESR1\n{name}"
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in axes]
    assert all(one.x1 < other.x0 for one, other in zip(boxes[:-1], boxes[1:], strict=True))


def test_pyramid_is_read_block_by_block(tmp_path, tiled, monkeypatch):
    with openslide.OpenSlide(tiled.path) as slide:
        level = np.array(slide.read_region((0, 0), 0, (1999, 1501)).convert("RGB"))
    path = tmp_path / "pyramid.tiff"
    with tifffile.TiffWriter(path) as tiff:
        for part in (level, level[::2, ::2]):
            reduced = 0 if part is level else 1
            tiff.write(part, photometric="rgb", tile=(256, 256), subfiletype=reduced)
    reads = []
    with _reader.open_slide(path) as slide:  # whose pixels are compared once
        reader, read = type(slide), type(slide).read

    def spy(slide, x, y, number, *size):
        reads.append((number, *size))
        return read(slide, x, y, number, *size)

    monkeypatch.setattr(reader, "read", spy)
    monkeypatch.setattr(_reader, "_BLOCK", 301)
    overview, downsample, mpp = _slide.read_overview(path, 300)
    assert {number for number, *_ in reads} == {1}
    assert max(max(size) for _, *size in reads) == 300
    assert downsample == pytest.approx(6, rel=0.01)
    assert np.isnan(mpp)
    expected = np.asarray(Image.fromarray(level[::2, ::2]).reduce(3))
    assert overview.shape == expected.shape
    # If a block starts between two pixels, the nearest one is taken.
    assert np.abs(overview.astype(int) - expected).mean() < 2


def test_verdict_and_common_limits(cmu_slide, tiled):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, len(tiled))) + [[0], [5]]
    tables = [table(tiled.coords, each, slide=tiled.path) for each in values]
    report = pd.DataFrame({"r": [0.123], "significant": [False]}, index=["ESR1"])
    display = SpatialExpressionDisplay.from_predictions(
        tables[0], report=report, reference=tables, slide=cmu_slide, size=600, beside=True
    )
    assert display.ax_.get_title().endswith("r = 0.12, not significant")
    limits = np.percentile(np.concatenate([each["ESR1"] for each in tables]), [1, 99])
    assert_allclose([display.tiles_.norm.vmin, display.tiles_.norm.vmax], limits)
    own = SpatialExpressionDisplay.from_predictions(tables[0], reference=tables, vmin=-9)
    assert_allclose([own.tiles_.norm.vmin, own.tiles_.norm.vmax], [-9, limits[1]])
    # The slide is in colour beside the map.
    [image] = display.slide_ax_.images
    assert_allclose(image.get_array(), display.image)
    assert display.slide_ax_.figure is display.figure_
    assert display.slide_ax_.get_position().x1 < display.ax_.get_position().x0
    with pytest.raises(ValueError, match="report lacks 1 of 1 genes of the map: 'ESR1'"):
        SpatialExpressionDisplay.from_predictions(tables[0], report=report.rename({"ESR1": "A"}))
    with pytest.raises(
        ValueError, match="reference: the table of the slide 'cmu_small_region' lacks .*'ESR1'"
    ):
        SpatialExpressionDisplay.from_predictions(
            tables[0], reference=[tables[1].rename(columns={"ESR1": "A"})]
        )
    with pytest.raises(ValueError, match="beside=True shows the slide in a figure of its own"):
        SpatialExpressionDisplay.from_predictions(tables[0], beside=True)


def test_scale_bar_of_a_slide_without_um_per_pixel(model, write_slide, tissue_rgb, tmp_path):
    slide = write_slide(tmp_path / "a.tiff", tissue_rgb, mpp=None)
    coords = grid(4, 4, step=64)
    bag = FeatureBag(np.random.default_rng(0).normal(size=(16, 8)), coords, slide, 64, 32.0)
    display = SpatialExpressionDisplay.from_estimator(
        model, bag, gene=model.gene_names_out_[0], slide=slide
    )
    assert display.mpp == 0.5
    assert "50 µm" in texts_of(display)
