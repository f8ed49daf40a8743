"""check_slides reports on slides before they are processed."""

# SPDX-License-Identifier: BSD-3-Clause

import multiprocessing
import os
import re
import shutil
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.slides import SlideTiler, check_slides

COLUMNS = [
    "slide",
    "ok",
    "reason",
    "vendor",
    "reader",
    "mpp",
    "objective_power",
    "width",
    "height",
    "n_levels",
    "tissue_mm2",
    "ink_mm2",
    "n_tiles",
    "size_bytes",
]


def test_real_slide(cmu_slide):
    report = check_slides([cmu_slide])
    assert report.columns.tolist() == COLUMNS
    row = report.iloc[0]
    assert row.ok
    assert row.reason == ""
    assert (row.vendor, row.mpp, row.objective_power) == ("aperio", 0.499, 20)
    assert (row.width, row.height, row.n_levels) == (2220, 2967, 1)
    assert row.size_bytes == os.path.getsize(cmu_slide)
    [tiled] = SlideTiler(max_tiles=None).fit_transform([cmu_slide])
    assert row.n_tiles == len(tiled) == 45
    assert row.ink_mm2 == 0
    _, mask, downsample, _ = SlideTiler().inspect_slide(cmu_slide)
    assert row.tissue_mm2 == pytest.approx(mask.sum() * (downsample * 0.499e-3) ** 2, rel=0.02)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_bad_slides_lose_no_other(bad_slides, cmu_slide, white_slide, n_jobs):
    X = [*bad_slides.values(), white_slide, cmu_slide]
    report = check_slides(X, n_jobs=n_jobs)
    assert report.slide.tolist() == X
    report.index = [*bad_slides, "white", "good"]
    assert report.index[report.ok].tolist() == ["good"]
    expected = {
        "missing": "Slide not found",
        "text": "Not a slide",
        "zero": "0 bytes",
        "truncated": "Not a slide|damaged or truncated",
        "no_mpp": "no plausible resolution.*found None.*column.*'mpp'",
        "wrong_mpp": "no plausible resolution.*found '25",
        "folder": "got a folder",
        "white": "No tissue was found",
    }
    for name, text in expected.items():
        assert re.search(text, report.reason[name])
    # The rest of the header is reported.
    assert report.width[["no_mpp", "wrong_mpp"]].tolist() == [200, 200]
    assert report.mpp[["no_mpp", "wrong_mpp"]].isna().all()
    assert report.width[["missing", "text"]].isna().all()
    assert report.n_tiles["white"] == 0
    assert report.n_tiles.isna().sum() == 7
    assert report.index[report.size_bytes.isna()].tolist() == ["missing", "folder"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_unreadable_slide(cmu_slide):
    # Root may read everything, so another user looks, in a folder that he may enter.
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        locked, good = (
            shutil.copy(cmu_slide, f"{folder}/{name}.svs") for name in ("locked", "good")
        )
        os.chmod(locked, 0)
        os.chmod(good, 0o644)
        check_slides([good])  # Imports what is imported late, which he might not read either.
        context = multiprocessing.get_context("fork")
        reports = context.SimpleQueue()

        def look():
            if os.getuid() == 0:
                os.setuid(65534)
            reports.put(check_slides([locked, good]))

        process = context.Process(target=look)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        report = reports.get()
    assert report.ok.tolist() == [False, True]
    assert "may not be read" in report.reason[0]


def test_types_do_not_depend_on_what_is_missing(cmu_slide):
    for X in ([cmu_slide], ["missing.svs"], ["missing.svs", cmu_slide]):
        report = check_slides(X)
        assert report.ok.dtype == bool
        integers = report[["width", "height", "n_levels", "n_tiles", "size_bytes"]]
        assert set(integers.dtypes.astype(str)) == {"Int64"}
        floats = report[["mpp", "objective_power", "tissue_mm2", "ink_mm2"]]
        assert set(floats.dtypes.astype(str)) == {"float64"}


def test_options_of_the_tiler(small_slides, tmp_path):
    X = pd.DataFrame({"slide": small_slides}, index=["a", "b", "c"])
    plain = check_slides(X, tiler=SlideTiler(tile_size=64, tissue=None, max_tiles=3))
    padded = check_slides(X, tiler=SlideTiler(tile_size=64, tissue=None, pad=True))
    assert plain.index.tolist() == ["a", "b", "c"]
    assert plain.n_tiles.tolist() == [5 * 6, 6 * 5, 8 * 6]
    assert padded.n_tiles.tolist() == [6 * 7, 7 * 6, 9 * 7]
    assert plain.tissue_mm2["a"] == pytest.approx(333 * 401 * 0.25e-6, rel=1e-3)
    assert plain.n_levels.tolist() == [2, 1, 3]
    assert plain.vendor.tolist() == ["generic-tiff"] * 3
    masks = check_slides(X, tiler=SlideTiler(tissue=tmp_path, reader="openslide"))
    assert not masks.ok.any()
    assert masks.reason.str.contains("no tissue mask in the folder").all()
    assert masks.reader.tolist() == ["openslide"] * 3
    too_fine = check_slides(X, tiler=SlideTiler(mpp=0.25))
    assert too_fine.reason.str.contains("too coarse for mpp=0.25").all()


def test_columns_of_X(bad_slides, small_slides):
    X = pd.DataFrame(
        {
            "slide": [bad_slides["no_mpp"], small_slides[0]],
            "mpp": [0.5, np.nan],
            "tissue": [None, np.ones((401, 333), dtype=bool)],
        }
    )
    report = check_slides(X, tiler=SlideTiler(tile_size=64))
    assert report.ok.tolist() == [True, True]
    assert report.mpp.tolist() == pytest.approx([0.5, 0.5], rel=1e-3)
    assert report.n_tiles[1] == 5 * 6


def test_header_only(small_slides, bad_slides, monkeypatch):
    monkeypatch.setattr("sklearn_pk.slides._tiler.read_overview", None)
    X = pd.Series([small_slides[0], bad_slides["zero"]], index=[7, 8])
    report = check_slides(X, header_only=True)
    assert report.ok.to_dict() == {7: True, 8: False}
    assert report.width[7] == 333
    assert report[["tissue_mm2", "n_tiles"]].isna().all(axis=None)


def test_wrong_arguments(cmu_slide):
    with pytest.raises(TypeError, match="Put a single slide into a list"):
        check_slides(cmu_slide)
    with pytest.raises(ValueError, match="got no slide"):
        check_slides([])
    with pytest.raises(ValueError, match="'tiler' parameter"):
        check_slides([cmu_slide], tiler="otsu")
    with pytest.raises(ValueError, match="overlap must be smaller"):
        check_slides([cmu_slide], tiler=SlideTiler(tile_size=64, overlap=64))
    with pytest.raises(ValueError, match="'tile_size' parameter"):
        check_slides([cmu_slide], tiler=SlideTiler(tile_size=0))


def test_every_reason_names_the_slide(small_slides, white_slide):
    few_pixels = np.zeros((357, 399), dtype=bool)
    few_pixels[5:25, 5:25] = True
    X = pd.DataFrame(
        {
            "slide": [white_slide, *small_slides[:2]],
            "tissue": [None, np.zeros((401, 333), dtype=bool), few_pixels],
        }
    )
    reports = [check_slides(X, tiler=SlideTiler(tile_size=size)) for size in (64, 2048)]
    texts = ("No tissue was found", "mask is empty", "No tile has more", *["is smaller than"] * 3)
    reasons = [reason for report in reports for reason in report.reason]
    for path, text, reason in zip([*X["slide"]] * 2, texts, reasons, strict=True):
        assert repr(path) in reason
        assert text in reason
