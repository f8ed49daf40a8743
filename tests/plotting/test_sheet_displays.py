"""Contact sheets: tiles of one slide, and many slides."""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sklearn_pk.plotting import SlideSheetDisplay, TileSheetDisplay
from sklearn_pk.plotting._slide_sheet_display import shorten
from sklearn_pk.slides import SlideTiler


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_tiles_are_those_the_encoder_gets(cmu_slide):
    tiler = SlideTiler()
    display = TileSheetDisplay.from_estimator(tiler, cmu_slide, n_tiles=7, n_columns=3)
    [slide] = tiler.fit_transform([cmu_slide])
    tiles = list(slide.iter_tiles())
    assert len(display.axes_) == len(display.images) == 7
    # From the first to the last, evenly.
    assert display.positions.tolist() == [0, 7, 15, 22, 29, 37, 44]
    for position, ax in zip(display.positions, display.axes_, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), tiles[position])
    assert [ax.get_title() for ax in display.axes_] == list("1234567")
    assert display.ax_.get_title() == "cmu_small_region: 45 tiles"
    marks = [text for text in display.ax_.texts if text.get_text().isdigit()]
    assert [mark.get_text() for mark in marks] == list("1234567")
    middles = [np.array(mark.get_position()) * display.overview.downsample for mark in marks]
    np.testing.assert_allclose(middles, slide.coords[display.positions] + 128)
    [title] = [text for sub in display.figure_.subfigs for text in sub.texts]
    assert title.get_text() == "7 of 45 tiles, 256 px = 127.7 µm"
    display.figure_.canvas.draw()


def test_fewer_tiles_than_asked_for(cmu_slide):
    [slide] = SlideTiler(max_tiles=2, random_state=0).fit_transform([cmu_slide])
    display = TileSheetDisplay.from_estimator(SlideTiler(), slide, n_tiles=24)
    assert display.positions.tolist() == [0, 1]
    assert len(display.axes_) == 2
    display.figure_.canvas.draw()


def test_sheet_without_tiles_shows_the_reason(white_slide):
    display = TileSheetDisplay.from_estimator(SlideTiler(tile_size=64), white_slide)
    assert len(display.axes_) == 0
    [reason] = [text.get_text() for sub in display.figure_.subfigs for text in sub.texts]
    assert reason == "No tissue was found on the overview."
    display.figure_.canvas.draw()


def test_sheet_in_a_figure_of_the_user(small_slides):
    figure = plt.figure(layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    tiler = SlideTiler(tile_size=64)
    first = TileSheetDisplay.from_estimator(tiler, small_slides[0], n_tiles=4, figure=upper)
    second = SlideSheetDisplay.from_estimator(tiler, small_slides, figure=lower)
    assert first.figure_ is second.figure_ is figure
    figure.canvas.draw()
    assert len(plt.get_fignums()) == 1


def test_sheet_of_a_bad_slide_raises(bad_slides):
    with pytest.raises(ValueError, match="found None"):
        TileSheetDisplay.from_estimator(SlideTiler(), bad_slides["no_mpp"])


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_slides_good_and_bad(small_slides, bad_slides, white_slide, n_jobs):
    X = [*small_slides, white_slide, bad_slides["no_mpp"], bad_slides["missing"]]
    display = SlideSheetDisplay.from_estimator(
        SlideTiler(tile_size=64, n_jobs=n_jobs), X, n_columns=4
    )
    tiled = SlideTiler(tile_size=64).fit_transform(small_slides)
    titles = [ax.get_title() for ax in display.axes_]
    assert titles == [
        *(f"{slide.name}\n{len(slide)} tiles" for slide in tiled),
        "white\n0 tiles",
        "no_mpp\ncannot be used",
        "missing\ncannot be used",
    ]
    assert display.axes_[3].get_xlabel() == "No tissue was found on the\noverview."
    assert " ".join(texts(display.axes_[5])[0].split()) == (
        "Slide not found: 'missing.svs'. Check the path."
    )
    assert display.reasons[:3] == ["", "", ""]
    for panel, slide in zip(display.panels, tiled, strict=False):
        np.testing.assert_array_equal(panel.tiles, slide.coords)
    # Eight axes for six slides.
    assert len(display.figure_.axes) == 8
    assert not any(ax.axison for ax in display.figure_.axes[6:])
    display.figure_.canvas.draw()


def test_kinds_of_X(small_slides, bad_slides):
    tiler = SlideTiler(tile_size=64)
    frame = pd.DataFrame({"slide": [small_slides[0], bad_slides["no_mpp"]], "mpp": [None, 0.5]})
    display = SlideSheetDisplay.from_estimator(tiler, frame)
    assert [len(panel.tiles) > 0 for panel in display.panels] == [True, True]
    tiled = SlideTiler(tile_size=64, max_tiles=2, random_state=0).fit_transform(small_slides)
    display = SlideSheetDisplay.from_estimator(tiler, tiled)
    assert [len(panel.tiles) for panel in display.panels] == [2, 2, 2]
    display = SlideSheetDisplay.from_estimator(tiler, pd.Series(small_slides[:1], index=["x"]))
    assert display.names == ["a"]
    with pytest.raises(TypeError, match="Put a single slide into a list"):
        SlideSheetDisplay.from_estimator(tiler, small_slides[0])


def test_one_mask_for_many_slides_is_refused(small_slides):
    tiler = SlideTiler(tissue=np.ones((401, 333), dtype=bool))
    with pytest.raises(ValueError, match="is one mask, but 3 slides"):
        SlideSheetDisplay.from_estimator(tiler, small_slides)


def test_long_names_lose_their_middle():
    name = "TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAAA-4AB6-AD5C-276C26F997A1"
    assert len(shorten(name)) == 30
    assert shorten(name).startswith("TCGA-A1-A0SB-0…")
    assert shorten(name).endswith("276C26F997A1")
    assert shorten("short") == "short"
