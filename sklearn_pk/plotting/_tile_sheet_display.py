"""Some tiles of a slide, as the encoder receives them, beside the slide."""

# SPDX-License-Identifier: BSD-3-Clause

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patheffects import withStroke

from ._slide import draw_squares, format_um
from ._style import OKABE_ITO
from ._tissue_mask_display import TissueMaskDisplay

_SHOWN = OKABE_ITO[1]
_STROKE = [withStroke(linewidth=2, foreground="white")]


class TileSheetDisplay:
    """
    Some tiles of a slide, as the encoder receives them, beside the slide.

    Build it with :meth:`from_estimator`. Tiles have the same numbers on the slide.

    Parameters
    ----------
    overview : TissueMaskDisplay
        The slide with all kept tiles; it need not be plotted.
    images : ndarray of shape (n_images, height, width, 3), uint8
        RGB pixels of the tiles to show.
    positions : array-like of shape (n_images,)
        Their positions among the tiles of `overview`.
    tile_um : float, default=None
        Edge of a tile in um, for the title.
    reason : str, default=""
        Why there are no tiles, shown instead of them.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure with slide and tiles.
    ax_ : matplotlib Axes
        Axes with the slide.
    axes_ : ndarray of matplotlib Axes
        Axes with one tile each.

    See Also
    --------
    TissueMaskDisplay : Shows the slide alone.
    SlideSheetDisplay : Shows many slides.
    sklearn_pk.slides.SlideTiler : Finds the tiles.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.plotting import TileSheetDisplay
    >>> from sklearn_pk.slides import SlideTiler
    >>> display = TileSheetDisplay.from_estimator(
    ...     SlideTiler(), load_cmu_slide().path, n_tiles=6, n_columns=3
    ... )
    >>> display.axes_.shape
    (6,)
    """

    def __init__(self, overview, images, positions, *, tile_um=None, reason=""):
        self.overview = overview
        self.images = images
        self.positions = positions
        self.tile_um = tile_um
        self.reason = reason

    @classmethod
    def from_estimator(cls, tiler, slide, *, n_tiles=24, n_columns=6, figure=None):
        """
        Show tiles that a tiler keeps, evenly spaced over the slide.

        Parameters
        ----------
        tiler : SlideTiler
            The tiler, fitted or not.
        slide : path-like, DataFrame of one row, or TiledSlide
            The slide, with its um/px if the file has none. A TiledSlide is shown with its own
            tiles.
        n_tiles : int, default=24
            Maximum number of tiles to show.
        n_columns : int, default=6
            Number of tiles per row.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw on; None creates a new one.

        Returns
        -------
        display : TileSheetDisplay
            The plotted display.

        Raises
        ------
        ValueError
            If the slide cannot be read or has no um/px.
        """
        inspected = tiler.inspect_slide(slide)
        overview, tiled = TissueMaskDisplay._from_inspection(*inspected), inspected[-1]
        n_shown = min(n_tiles, len(tiled))
        positions = np.linspace(0, len(tiled) - 1, n_shown).round().astype(int)
        with tiled.open_tiles() as read:
            images = [read(position, position + 1)[0] for position in positions.tolist()]
        display = cls(overview, images, positions, tile_um=tiled.tile_edge_um, reason=tiled.reason)
        return display.plot(n_columns=n_columns, figure=figure)

    def plot(self, *, n_columns=6, figure=None):
        """
        Draw the slide, and the tiles beside it.

        Parameters
        ----------
        n_columns : int, default=6
            Number of tiles per row.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw on; None creates a new one.

        Returns
        -------
        display : TileSheetDisplay
            The display itself.
        """
        n_columns = max(1, min(n_columns, len(self.images)))
        n_rows = max(1, -(-len(self.images) // n_columns))
        if figure is None:
            size = (5 + 1.15 * max(n_columns, 3), max(4.5, 0.5 + 1.25 * n_rows))
            figure = plt.figure(figsize=size, layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(5, 1.15 * max(n_columns, 3)))
        self.ax_ = left.subplots()
        self.overview.plot(self.ax_, legend=False)
        self._mark_tiles()
        if len(self.images):
            axes = right.subplots(n_rows, n_columns, squeeze=False).ravel()
            self._draw_images(axes)
            right.suptitle(self._title(), fontsize="medium")
            self.axes_ = axes[: len(self.images)]
        else:
            right.text(0.5, 0.5, textwrap.fill(self.reason, 36), ha="center", va="center")
            self.axes_ = np.empty(0, dtype=object)
        self.figure_ = self.ax_.get_figure(root=True)
        return self

    def _title(self):
        text = f"{len(self.images)} of {len(self.overview.tiles)} tiles"
        if self.tile_um is None:
            return text
        return f"{text}, {len(self.images[0])} px = {format_um(round(self.tile_um, 1))}"

    def _mark_tiles(self):
        overview = self.overview
        if not len(self.images):
            return
        edge = overview.tile_size / overview.downsample
        corners = np.asarray(overview.tiles)[self.positions] / overview.downsample
        draw_squares(self.ax_, corners, edge, edgecolor=_SHOWN, linewidth=1.2)
        for number, (x, y) in enumerate(corners + edge / 2, start=1):
            style = {"ha": "center", "va": "center", "fontsize": 8, "path_effects": _STROKE}
            self.ax_.text(x, y, str(number), **style)

    def _draw_images(self, axes):
        for number, (ax, image) in enumerate(zip(axes, self.images, strict=False), start=1):
            ax.imshow(image)
            ax.set_title(str(number), fontsize=8, pad=2)
        for ax in axes:
            ax.set_axis_off()
