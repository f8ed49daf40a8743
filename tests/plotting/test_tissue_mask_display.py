"""TissueMaskDisplay draws what SlideTiler finds."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.plotting import TissueMaskDisplay
from sklearn_pk.plotting._slide import scale_bar_length
from sklearn_pk.slides import SlideTiler


def test_real_slide(cmu_slide):
    tiler = SlideTiler()
    display = TissueMaskDisplay.from_estimator(tiler, cmu_slide)
    [slide] = tiler.fit_transform([cmu_slide])
    assert display.ax_.get_title() == "cmu_small_region: 45 tiles"
    corners = [path.vertices[0] * display.downsample for path in display.tiles_.get_paths()]
    np.testing.assert_allclose(corners, slide.coords)
    # 1,200 pixels along the longer side, at any resolution of the mask.
    assert display.ax_.get_xlim() == (0, 898)
    assert display.ax_.get_ylim() == (1200, 0)
    assert "200 µm" in [text.get_text() for text in display.ax_.texts]
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["no tissue", "kept tiles"]


def test_tiled_slide_keeps_its_tiles(cmu_slide):
    [slide] = SlideTiler(max_tiles=5, random_state=0).fit_transform([cmu_slide])
    display = TissueMaskDisplay.from_estimator(SlideTiler(), slide, size=300)
    assert display.ax_.get_title() == "cmu_small_region: 5 tiles"
    corners = [path.vertices[0] * display.downsample for path in display.tiles_.get_paths()]
    np.testing.assert_allclose(corners, slide.coords)
    assert display.thumbnail.shape == (300, 224, 3)


def test_veil_covers_the_background():
    mask = np.zeros((10, 15), dtype=bool)
    mask[5:8, 3:] = True
    # The mask may have another resolution than the image.
    display = TissueMaskDisplay(np.zeros((20, 30, 3), np.uint8), mask=mask).plot()
    alpha = display.veil_.get_array()[..., 3]
    np.testing.assert_array_equal(alpha == 0, mask)
    assert tuple(display.veil_.get_extent()) == (0, 30, 20, 0)
    assert TissueMaskDisplay(np.zeros((20, 30, 3), np.uint8)).plot().veil_ is None


def test_lines_are_thin_where_tiles_are_small():
    image = np.zeros((500, 500, 3), np.uint8)
    widths = [
        TissueMaskDisplay(image, tiles=np.zeros((1, 2)), tile_size=size).plot().tiles_
        for size in (5, 10, 400)
    ]
    widths = [tiles.get_linewidth()[0] for tiles in widths]
    assert 0.1 < widths[0] < widths[1] < widths[2] == 1


def test_slide_without_tissue(white_slide):
    display = TissueMaskDisplay.from_estimator(SlideTiler(tile_size=64), white_slide)
    assert display.ax_.get_title() == "white: 0 tiles"
    assert display.tiles_ is None
    assert (display.veil_.get_array()[..., 3] > 0).all()
    display.figure_.canvas.draw()


def test_um_of_the_user(bad_slides):
    frame = pd.DataFrame({"slide": [bad_slides["no_mpp"]], "mpp": [0.5]})
    display = TissueMaskDisplay.from_estimator(SlideTiler(tile_size=64), frame)
    assert display.mpp == 0.5
    with pytest.raises(ValueError, match="found None"):
        TissueMaskDisplay.from_estimator(SlideTiler(), bad_slides["no_mpp"])


def test_axes_and_style_of_the_user():
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    image = np.zeros((8, 8, 3), np.uint8)
    display = TissueMaskDisplay(image, tiles=np.zeros((1, 2)), tile_size=4)
    display.plot(ax, legend=False, tile_kwargs={"lw": 3, "edgecolors": "k"})
    assert display.tiles_.get_edgecolor().tolist() == [[0, 0, 0, 1]]
    assert display.ax_ is ax
    assert ax.get_legend() is None
    assert display.tiles_.get_linewidth() == [3]
    with pytest.raises(ValueError, match="tiles require tile_size"):
        TissueMaskDisplay(image, tiles=np.zeros((1, 2))).plot(ax)


@pytest.mark.parametrize(
    ("width", "length"), [(1100, 200), (9, 1), (26_000, 5000), (5000, 1000), (1e5, 20_000)]
)
def test_scale_bar_is_round(width, length):
    assert scale_bar_length(width) == length


def test_length_of_the_scale_bar():
    image = np.zeros((50, 100, 3), np.uint8)
    display = TissueMaskDisplay(image, downsample=4.0, mpp=0.25).plot()
    [label] = [text.get_text() for text in display.ax_.texts]
    for bar in display.ax_.lines:
        start, end = bar.get_xdata()
        assert (end - start) * 4.0 * 0.25 == pytest.approx(20)
    assert label == "20 µm"
