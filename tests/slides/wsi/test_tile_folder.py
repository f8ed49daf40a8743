"""A folder of tile images is a bag."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, TiledSlide, check_slides
from sklearn_pk.slides._wsi._reader import fingerprint, open_slide
from sklearn_pk.slides._wsi._tile_folder import coords_of_names

CORNERS = [(0, 0), (64, 0), (0, 64), (128, 64)]


@pytest.fixture
def tiles(tissue_rgb):
    return [tissue_rgb[y : y + 64, x : x + 64] for x, y in CORNERS]


def write(folder, tiles, names):
    folder.mkdir()
    for tile, name in zip(tiles, names, strict=True):
        Image.fromarray(tile).save(folder / name)
    return str(folder)


def tile(X, **params):
    return SlideTiler(tile_size=64, max_tiles=None, **params).fit_transform(X)


@pytest.mark.parametrize(
    "pattern",
    [
        "x{x}_y{y}.png",
        "slide-1_x={x}_y={y}.png",
        "S [x={x},y={y},w=64,h=64].png",
        "TCGA-A1-0001-01Z_X{x}-Y{y}.tif",
        "tile_3_level0_{x}-{y}-{x2}-{y2}.png",
        "{x}_{y}.png",
        "S-1_({x},{y}).png",
        "S_{x}-{y}.png",
    ],
)
def test_coordinates_in_names(tmp_path, tiles, pattern):
    names = [pattern.format(x=x, y=y, x2=x + 64, y2=y + 64) for x, y in CORNERS]
    [tiled] = tile([write(tmp_path / "S1", tiles, names)])
    found = dict(zip(map(tuple, tiled.coords.tolist()), tiled.iter_tiles(), strict=True))
    assert len(found) == 4
    for corner, pixels in zip(CORNERS, tiles, strict=True):
        np.testing.assert_array_equal(found[corner], pixels)
    assert (tiled.name, tiled.size_level0) == ("S1", 64)


def test_size_in_names_of_qupath():
    names = [f"S [d=2,x={x},y={y},w=128,h=128].png" for x, y in CORNERS]
    np.testing.assert_array_equal(coords_of_names(names, 64), CORNERS)


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "b.png", "c.png", "d.png"],
        # Indices, whose order and step are not known, and parts of names.
        ["0_0.png", "0_1.png", "1_0.png", "1_1.png"],
        [f"TCGA-A1-0001-01-{number}.png" for number in range(4)],
        ["x0_y0.png", "x64_y0.png", "x0_y64.png", "overview.png"],
        ["S_x0_y0_1.png", "S_x0_y0_2.png", "S_x0_y0_3.png", "S_x0_y0_4.png"],
    ],
)
def test_without_coordinates(tmp_path, tiles, names):
    [tiled] = tile([write(tmp_path / "S1", tiles, names)])
    assert tiled.coords is None
    assert len(tiled) == 4
    assert tiled.files == tuple(sorted(names))
    order = np.argsort(names)
    np.testing.assert_array_equal(list(tiled.iter_tiles()), np.array(tiles)[order])
    [bag] = FoundationFeaturizer().fit_transform([tiled])
    assert bag.shape == (4, 1280)
    assert bag.coords is None


@pytest.mark.parametrize(
    ("separator", "file", "axes", "prefix"),
    [
        (",", "file", ("x", "y"), ""),
        (";", "Filename", ("X", "Y"), "tiles/"),
        ("\t", "anything", ("x_coord", "y_coord"), "C:\\slides\\"),
        (",", "patch", ("coord_x", "coord_y"), "S1/"),
    ],
)
def test_coordinates_in_a_table(tmp_path, tiles, separator, file, axes, prefix):
    names = [f"{letter}.png" for letter in "abcd"]
    folder = write(tmp_path / "S1", tiles, names)
    table = pd.DataFrame(CORNERS, columns=axes)
    table.insert(0, "slide", "S1")
    table[file] = [prefix + name for name in names]
    table[::-1].to_csv(f"{folder}/tiles.csv", sep=separator, index=False)
    (tmp_path / "S1" / "notes.txt").write_text("some text,\n\nof others")
    [tiled] = tile([folder])
    np.testing.assert_array_equal(tiled.coords, CORNERS)
    [bag] = FoundationFeaturizer(store=tmp_path / "store").fit_transform([tiled])
    np.testing.assert_array_equal(bag.coords, CORNERS)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([("a.png", 0, 0)], "does not list 'b.png'"),
        ([("a.png", 0, 0), ("a.png", 1, 1), ("b.png", 3, 3)], "lists a file twice"),
        ([("a.png", 0, 0), ("b.png", 0.5, 3)], "whole numbers"),
        ([("a.png", 0, 0), ("b.png", "?", 3)], "whole numbers"),
    ],
)
def test_wrong_tables(tmp_path, tiles, rows, text):
    folder = write(tmp_path / "S1", tiles[:2], ["a.png", "b.png"])
    pd.DataFrame(rows, columns=["file", "x", "y"]).to_csv(f"{folder}/t.csv", index=False)
    with pytest.raises(ValueError, match=rf"S1.*'t\.csv'.*{text}"):
        tile([folder])
    pd.DataFrame(rows, columns=["file", "x", "y"]).to_csv(f"{folder}/u.csv", index=False)
    with pytest.raises(ValueError, match="several tables"):
        tile([folder])


def test_folders_that_are_no_bag(tmp_path, tiles, tissue_rgb, small_slides):
    uneven = write(
        tmp_path / "uneven", [*tiles, tissue_rgb[:64, :65]], [f"{n}.png" for n in range(5)]
    )
    large = write(tmp_path / "large", [tissue_rgb[:128, :128]] * 2, ["a.png", "b.png"])
    grey = write(tmp_path / "grey", [tissue_rgb[:64, :64, 0]], ["a.png"])
    empty = write(tmp_path / "empty", [], [])
    slides = write(tmp_path / "slides", tiles, [f"{n}.png" for n in range(4)])
    (tmp_path / "slides" / "b.svs").touch()
    for folder, text in [
        (uneven, "squares of one size, found '0.png': 64 x 64, '4.png': 65 x 64"),
        (large, "tile_size=64 pixels, got 128. Pass tile_size=128"),
        (grey, r"a\.png.*without colour"),
        (empty, "got a folder with no image"),
        (slides, r"got a folder with slides such as 'b\.svs'"),
    ]:
        with pytest.raises(ValueError, match=text):
            tile([folder])


def test_resolution(tmp_path, tiles):
    folder = write(tmp_path / "S1", tiles, [f"x{x}_y{y}.png" for x, y in CORNERS])
    [tiled] = tile([folder])
    assert np.isnan([tiled.mpp, tiled.slide_mpp, tiled.tile_edge_um]).all()
    [tiled] = tile(pd.DataFrame({"slide": [folder], "mpp": [0.5]}))
    assert (tiled.mpp, tiled.slide_mpp, tiled.tile_edge_um) == (0.5, 0.5, 32)
    with pytest.raises(ValueError, match="mpp=0.5 um/px, got 1 in the column"):
        tile(pd.DataFrame({"slide": [folder], "mpp": [1.0]}))
    with pytest.raises(ValueError, match="tissue"):
        tile(pd.DataFrame({"slide": [folder], "tissue": ["otsu"]}))


def test_draw_report_and_errors(tmp_path, tiles, cmu_slide):
    folder = write(tmp_path / "S1", tiles, [f"x{x}_y{y}.png" for x, y in CORNERS])
    tiler = SlideTiler(tile_size=64, max_tiles=2, random_state=0)
    tiled, slide = tiler.fit_transform([folder, cmu_slide])
    assert (len(tiled), len(slide)) == (2, 2)
    assert len(tiled.files) == 2
    for name, corner in zip(tiled.files, tiled.coords.tolist(), strict=True):
        assert name == f"x{corner[0]}_y{corner[1]}.png"
    report = check_slides([folder], tiler=tiler)
    assert report.ok.tolist() == [True]
    assert report.n_tiles.tolist() == [4]
    for use in (tiler.inspect_slide, open_slide):
        with pytest.raises(ValueError, match="folder of tile images"):
            use(folder)
    with pytest.raises(ValueError, match="2 files but 1 coords"):
        TiledSlide("a", coords=[(0, 0)], files=("a.png", "b.png"))
    # Coordinates are in the names, so they count.
    before = fingerprint(folder)
    (tmp_path / "S1" / "x0_y0.png").rename(tmp_path / "S1" / "x0_y128.png")
    assert fingerprint(folder) != before
    with pytest.raises(ValueError, match="content has changed"):
        tiled.check_content()
