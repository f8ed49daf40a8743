"""SlideTiler with masks that are given: arrays, images and drawings."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sklearn_pk.slides import SlideTiler, _tiler
from sklearn_pk.slides._inputs import SlideRow
from sklearn_pk.slides._tissue._masks import choose_tissue, describe_source, draw_mask, sample_mask
from sklearn_pk.slides._wsi._reader import SlideInfo

# The slides a, b and c of small_slides are 333 x 401, 399 x 357 and 517 x 401 pixels.
WIDTH, HEIGHT = 333, 401


def left_half(height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), dtype=bool)
    mask[:, : width // 2] = True
    return mask


def rectangle(x0, y0, x1, y1):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation"},
            }
        ],
    }


def write_geojson(path, *corners):
    Path(path).write_text(json.dumps(rectangle(*corners)))
    return str(path)


@pytest.fixture
def left_file(tmp_path):
    return write_geojson(tmp_path / "left.geojson", 0, 0, 166, 401)


def tiles_of(tissue, slides, **params):
    params = {"tile_size": 64, **params}
    return SlideTiler(tissue=tissue, **params).fit_transform(slides)


@pytest.mark.parametrize("factor", [1, 0.25, 1 / 16])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_array_of_any_resolution(small_slides, factor, dtype):
    mask = left_half(round(HEIGHT * factor), round(WIDTH * factor)).astype(dtype) * 3
    [slide] = tiles_of(mask, small_slides[:1], min_tissue_fraction=0.4)
    # 2.6 tiles are left of the middle.
    assert np.unique(slide.coords[:, 0]).tolist() == [0, 64, 128]
    assert len(slide) == 3 * (HEIGHT // 64)


def test_image_and_drawing_agree_with_the_array(small_slides, left_file, tmp_path):
    image = str(tmp_path / "left.png")
    Image.fromarray(left_half()).save(image)
    [expected] = tiles_of(left_half(), small_slides[:1])
    for tissue in (left_file, image, Path(left_file), Path(image)):
        [slide] = tiles_of(tissue, small_slides[:1])
        np.testing.assert_array_equal(slide.coords, expected.coords)
        assert Path(tissue).name in dict(slide.params)["tissue"]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.convert("RGB"),
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("LA"),
        lambda image: image.convert("P"),
        lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
    ],
)
def test_kinds_of_images(change, small_slides, tmp_path):
    path = tmp_path / "mask.png"
    change(Image.fromarray(left_half().astype(np.uint8) * 255)).save(path)
    [slide] = tiles_of(path, small_slides[:1])
    [expected] = tiles_of(left_half(), small_slides[:1])
    np.testing.assert_array_equal(slide.coords, expected.coords)


def test_what_is_drawn_is_kept_even_if_flat(white_slide, tmp_path):
    drawing = write_geojson(tmp_path / "area.geojson", 0, 0, 128, 128)
    [slide] = tiles_of(drawing, [white_slide])
    assert slide.coords.tolist() == [[0, 0], [64, 0], [0, 64], [64, 64]]
    [slide] = tiles_of(lambda rgb: np.ones(rgb.shape[:2]), [white_slide])
    assert slide.reason == "All tiles on tissue are flat (low contrast)."


def test_drawing_needs_no_pixel_of_the_slide(small_slides, left_file, monkeypatch):
    monkeypatch.setattr("sklearn_pk.slides._tiler.read_overview", None)
    assert len(tiles_of(left_file, small_slides[:1])[0])


def test_empty_mask_gives_a_reason(small_slides):
    [slide] = tiles_of(np.zeros((40, 33), dtype=bool), small_slides[:1])
    assert slide.reason == "The tissue mask is empty."


def test_column_comes_before_the_parameter(small_slides, left_file):
    X = pd.DataFrame({"slide": [*small_slides, small_slides[0]]})
    X["tissue"] = [left_file, "entropy", None, left_half()]
    tiled = tiles_of("otsu", X)
    plain = tiles_of("otsu", small_slides)
    by_entropy = tiles_of("entropy", small_slides)
    np.testing.assert_array_equal(tiled[1].coords, by_entropy[1].coords)
    np.testing.assert_array_equal(tiled[2].coords, plain[2].coords)
    np.testing.assert_array_equal(tiled[0].coords, tiled[3].coords)
    assert tiled[0].coords[:, 0].max() == 128
    assert plain[0].coords[:, 0].max() > 128
    said = [dict(slide.params)["tissue"] for slide in tiled]
    assert said[0].startswith("left.geojson ")
    assert said[1:3] == ["entropy", "otsu"]
    assert said[3].startswith("mask (401, 333) ")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_values_of_the_column(missing, small_slides):
    X = pd.DataFrame({"slide": small_slides[:1], "tissue": pd.Series([missing], dtype=object)})
    [slide] = tiles_of("entropy", X)
    assert dict(slide.params)["tissue"] == "entropy"


def test_wrong_type_in_the_column(small_slides):
    X = pd.DataFrame({"slide": small_slides[:1], "tissue": [3.5]})
    with pytest.raises(TypeError, match=r"a\.tiff': the column 'tissue' must hold.*3\.5 of type"):
        tiles_of("otsu", X)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_folder_with_one_file_a_slide(small_slides, tmp_path, n_jobs):
    write_geojson(tmp_path / "a.geojson", 0, 0, 64, 401)
    write_geojson(tmp_path / "b.tiff.geojson", 64, 0, 128, 357)
    Image.fromarray(left_half(401, 517)).save(tmp_path / "c.png")
    tiled = tiles_of(str(tmp_path), small_slides, n_jobs=n_jobs)
    assert [np.unique(slide.coords[:, 0]).tolist() for slide in tiled] == [
        [0],
        [64],
        [0, 64, 128, 192],
    ]


def test_folder_without_a_file(small_slides, tmp_path):
    write_geojson(tmp_path / "b.geojson", 0, 0, 64, 357)
    with pytest.raises(FileNotFoundError, match=r"2 slides cannot be used") as info:
        SlideTiler(tile_size=64, tissue=tmp_path).fit(small_slides)
    assert "a.tiff' has no tissue mask in the folder" in str(info.value)
    assert "expected 'c.geojson', or with the ending .json or .png" in str(info.value)
    with pytest.warns(UserWarning, match="2 slides have no tiles"):
        tiler = SlideTiler(tile_size=64, tissue=tmp_path, errors="empty").fit(small_slides)
    with pytest.warns(UserWarning, match="2 slides have no tiles"):
        tiled = tiler.transform(small_slides)
    assert [len(slide) > 0 for slide in tiled] == [False, True, False]


def test_folder_with_two_files_of_a_slide(small_slides, tmp_path):
    write_geojson(tmp_path / "a.geojson", 0, 0, 64, 401)
    write_geojson(tmp_path / "a.tiff.geojson", 0, 0, 64, 401)
    with pytest.raises(ValueError, match=r"more than one.*'a\.geojson' and 'a\.tiff\.geojson'"):
        SlideTiler(tile_size=64, tissue=tmp_path).fit(small_slides[:1])


@pytest.mark.parametrize("drawn", [False, True])
def test_one_mask_is_for_one_slide(drawn, small_slides, left_file):
    tissue = left_file if drawn else left_half()
    with pytest.raises(ValueError, match="is one mask, but 3 slides have no mask of their own"):
        SlideTiler(tile_size=64, tissue=tissue).fit(small_slides)
    fitted = SlideTiler(tile_size=64, tissue=tissue).fit(small_slides[:1])
    with pytest.raises(ValueError, match="is one mask, but 2 slides"):
        fitted.transform(small_slides[:2])
    # One slide twice, or others with masks of their own.
    assert len(fitted.transform(small_slides[:1] * 2)) == 2
    X = pd.DataFrame({"slide": small_slides, "tissue": [None, "otsu", "otsu"]})
    assert len(fitted.transform(X)) == 3


@pytest.mark.parametrize(
    ("tissue", "text"),
    [
        (
            "ostu",
            "'otsu', 'saturation', 'entropy', a function.*Got 'ostu', which is neither",
        ),
        (Path("nowhere/masks"), "nowhere/masks.*existing file or folder"),
        (np.zeros((4, 5)), "dtype float64. Pass mask > threshold"),
        (np.zeros((4, 5, 3), dtype=bool), r"array of shape \(4, 5, 3\)"),
        (np.zeros((0, 5), dtype=bool), r"array of shape \(0, 5\)"),
        (3, "'tissue' parameter of SlideTiler"),
    ],
)
def test_wrong_parameter(tissue, text, small_slides):
    with pytest.raises(ValueError, match=text):
        SlideTiler(tissue=tissue).fit(small_slides[:1])


@pytest.mark.parametrize(
    ("tissue", "text"),
    [
        ("nowhere.geojson", r"its tissue mask does not exist: 'nowhere\.geojson'"),
        (np.zeros((10, 40), dtype=bool), "of 40 x 10 pixels does not have the proportions"),
        (np.zeros((40, 33)), "The tissue mask of slide .*a.tiff': expected a mask of bool"),
    ],
)
def test_wrong_mask_of_one_slide_is_named(tissue, text, small_slides):
    X = pd.DataFrame({"slide": small_slides, "tissue": [tissue, None, None]})
    with pytest.raises((FileNotFoundError, ValueError), match=text) as info:
        SlideTiler(tile_size=64).fit(X)
    assert repr(small_slides[0]) in str(info.value)
    with pytest.warns(UserWarning, match="1 slides have no tiles"):
        SlideTiler(tile_size=64, errors="empty").fit(X)


def test_bad_files_are_found_before_any_work(small_slides, tmp_path, monkeypatch):
    monkeypatch.setattr(_tiler, "tile_slide", None)
    text = tmp_path / "text.png"
    text.write_text("no image")
    color = tmp_path / "color.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(color)
    cut = tmp_path / "cut.png"
    Image.fromarray(left_half()).save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    real = tmp_path / "real.tif"
    Image.fromarray(np.zeros((401, 333), dtype=np.float32)).save(real)
    broken = tmp_path / "broken.geojson"
    broken.write_text("{")
    far = write_geojson(tmp_path / "far.geojson", 5000, 5000, 6000, 6000)
    cases = {
        text: "neither GeoJSON .* nor an image that can be read",
        color: "a colour image",
        cut: "nor an image that can be read",
        real: "holds float32",
        broken: "is not JSON",
        far: "outside the slide of 333 x 401 pixels: x 5000 to 6000",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message) as info:
            SlideTiler(tile_size=64, tissue=path).fit_transform(small_slides[:1])
        assert repr(small_slides[0]) in str(info.value)
        assert repr(str(path)) in str(info.value)


def test_changed_drawing_is_read_again(small_slides, left_file):
    tiler = SlideTiler(tile_size=64, tissue=left_file, random_state=0)
    [before] = tiler.fit_transform(small_slides[:1])
    state = os.stat(left_file)
    # The same size and, as after a copy that keeps times, the same time of modification.
    write_geojson(left_file, 0, 0, 133, 401)
    os.utime(left_file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(left_file).st_size == state.st_size
    [after] = tiler.transform(small_slides[:1])
    assert (before.coords[:, 0].max(), after.coords[:, 0].max()) == (128, 64)
    assert dict(before.params)["tissue"] != dict(after.params)["tissue"]
    os.remove(left_file)
    with pytest.raises(ValueError, match="existing file or folder"):
        tiler.transform(small_slides[:1])


def test_changed_array_is_used(small_slides):
    mask = left_half()
    tiler = SlideTiler(tile_size=64, tissue=mask, random_state=0)
    [before] = tiler.fit_transform(small_slides[:1])
    mask[:] = True
    [after] = tiler.transform(small_slides[:1])
    assert len(after) > len(before)


def test_file_added_to_a_folder_is_used(small_slides, tmp_path):
    tiler = SlideTiler(tile_size=64, tissue=tmp_path, random_state=0)
    old = write_geojson(tmp_path / "a.geojson", 0, 0, 64, 401)
    [before] = tiler.fit_transform(small_slides[:1])
    shutil.move(old, tmp_path / "a.json")
    write_geojson(tmp_path / "a.json", 128, 0, 192, 401)
    [after] = tiler.transform(small_slides[:1])
    assert (before.coords[0, 0], after.coords[0, 0]) == (0, 128)


def test_given_masks_are_cached(small_slides, left_file, monkeypatch):
    slides = small_slides[:1]
    tilers = [
        SlideTiler(tile_size=64, tissue=tissue, random_state=0).fit(slides)
        for tissue in (left_file, left_half())
    ]
    first = [tiler.transform(slides)[0] for tiler in tilers]
    monkeypatch.setattr(_tiler, "tile_slide", None)
    for tiler, slide in zip(tilers, first, strict=True):
        assert tiler.transform(slides)[0] is slide


def test_other_arrays_have_other_descriptions():
    mask = left_half()
    others = [mask.copy(), mask.astype(np.uint8), mask.T, ~mask]
    keys = [describe_source(each) for each in (mask, *others)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_name_of_a_method_comes_before_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "otsu").mkdir()
    assert choose_tissue("otsu", SlideRow("s.svs")) == "otsu"


class WithBounds:
    """Reader of a slide whose scanned area does not start at its corner."""

    properties = {"openslide.bounds-x": "100", "openslide.bounds-y": "30"}


def test_qupath_counts_from_the_scanned_area(tmp_path):
    path = Path(write_geojson(tmp_path / "a.geojson", 0, 0, 20, 10))
    info = SlideInfo("s.mrxs", (200, 80), ((200, 80),), (1.0,), 0.5, 20.0)
    mask = draw_mask(path, WithBounds, info, (80, 200), 1.0)
    assert mask.sum() == mask[30:40, 100:120].sum() == 200


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (6, 9)), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))
def test_masks_are_sampled_at_the_middle(mask, finer, coarser):
    fine = np.kron(mask, np.ones((finer, finer), dtype=bool))
    np.testing.assert_array_equal(sample_mask(fine, (6, 9), (finer, finer)), mask)
    step = 1 / coarser
    coarse = sample_mask(mask, (6 * coarser, 9 * coarser), (step, step))
    np.testing.assert_array_equal(coarse, np.kron(mask, np.ones((coarser, coarser), dtype=bool)))


def test_name_of_the_mask_is_in_every_error(small_slides, tmp_path):
    content = tmp_path / "good.png"
    Image.fromarray(left_half()).save(content)
    cut = tmp_path / "header.png"
    cut.write_bytes(content.read_bytes()[:20])  # "Truncated IHDR chunk", a ValueError
    wide = tmp_path / "wide.png"
    Image.fromarray(left_half(10, 40)).save(wide)
    volume = tmp_path / "volume.tif"
    tifffile.imwrite(
        volume, np.zeros((5, 40, 33), dtype=np.uint8), volumetric=True, tile=(1, 16, 16)
    )
    cases = {
        cut: "Truncated",
        wide: "of 40 x 10 pixels does not have",
        volume: "found the axes ZYX",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=rf"{path.name}.*{message}") as info:
            SlideTiler(tile_size=64, tissue=path).fit_transform(small_slides[:1])
        assert repr(small_slides[0]) in str(info.value)


@pytest.mark.parametrize(
    ("mode", "size", "text"),
    [
        ("1", (100_000, 2000), r"Image size \(200000000 pixels\) exceeds limit"),
        ("1", (11_585, 11_586), "declares 11585 x 11586 pixels, more than 134,217,728"),
        ("1", (10_000, 10_000), "does not have the proportions"),
    ],
)
def test_size_of_a_mask_is_bounded(mode, size, text, small_slides, tmp_path):
    # Pillow itself would warn of the last two. Its own limit is twice as high.
    path = tmp_path / "huge.png"
    Image.new(mode, size).save(path)
    with pytest.raises(ValueError, match=rf"huge\.png.*{text}"):
        SlideTiler(tile_size=64, tissue=path).fit_transform(small_slides[:1])


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("kind", ["gray", "white is zero", "colors", "planes", "bits"])
def test_masks_in_tiff(compression, kind, small_slides, tmp_path):
    path, mask = tmp_path / "mask.tif", left_half().astype(np.uint8) * 255
    options = {"compression": compression, "photometric": "minisblack"}
    if kind == "white is zero":
        mask, options["photometric"] = ~mask, "miniswhite"
    elif kind == "colors":
        mask, options["photometric"] = np.dstack([mask] * 3), "rgb"
    elif kind == "planes":
        mask, options = np.stack([mask] * 3), options | {"photometric": "rgb"}
        options["planarconfig"] = "separate"
    elif kind == "bits":
        mask = mask > 0
    tifffile.imwrite(path, mask, **options)
    [slide] = tiles_of(path, small_slides[:1])
    [expected] = tiles_of(left_half(), small_slides[:1])
    np.testing.assert_array_equal(slide.coords, expected.coords)


def test_colour_image_in_tiff(small_slides, tmp_path):
    path = tmp_path / "color.tif"
    rgb = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    rgb[5, 5, 2] = 1
    tifffile.imwrite(path, rgb, photometric="rgb")
    with pytest.raises(ValueError, match=r"color\.tif.*is a colour image"):
        SlideTiler(tile_size=64, tissue=path).fit_transform(small_slides[:1])


def test_damaged_tiff_prints_nothing(small_slides, tmp_path, capfd):
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, left_half().astype(np.uint8), compression="lzw", metadata=None)
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].tags["SamplesPerPixel"].valueoffset
    content = bytearray(path.read_bytes())
    content[start : start + 2] = b"\xff\xff"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mask\.tif"):
        SlideTiler(tile_size=64, tissue=path).fit_transform(small_slides[:1])
    assert capfd.readouterr() == ("", "")
