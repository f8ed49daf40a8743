"""Tissue mask and tiles over the overview of a slide."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
from matplotlib.patches import Patch

from ._slide import TILE_COLOR, VEIL, below_axes, draw_scale_bar, draw_squares, draw_veil
from ._style import set_axes


class TissueMaskDisplay:
    """
    Tissue mask and tiles over the overview of a slide.

    Build it with :meth:`from_estimator`.

    Parameters
    ----------
    thumbnail : ndarray of shape (height, width, 3), uint8
        RGB overview of the slide.
    mask : ndarray of shape (height, width), bool, default=None
        True on tissue; the background is darkened. None darkens nothing.
    tiles : ndarray of shape (n, 2), default=None
        Upper left corners (x, y) of the kept tiles in level-0 pixels; None draws none.
    tile_size : float, default=None
        Edge of a tile in level-0 pixels. Required with `tiles`.
    downsample : float, default=1.0
        Level-0 pixels per pixel of the overview.
    mpp : float, default=None
        Resolution of level 0 in um/px, for the scale bar; None draws no scale bar.
    title : str, default=None
        Title, such as the name of the slide, to which the number of tiles is added.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the slide.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    image_ : matplotlib AxesImage
        The overview.
    veil_ : matplotlib AxesImage or None
        The overlay that darkens the background.
    tiles_ : matplotlib PatchCollection or None
        The kept tiles.

    See Also
    --------
    TileSheetDisplay : Shows some of the tiles beside the slide.
    SlideSheetDisplay : Shows many slides.
    sklearn_pk.slides.SlideTiler : Computes mask and tiles.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.plotting import TissueMaskDisplay
    >>> from sklearn_pk.slides import SlideTiler
    >>> display = TissueMaskDisplay.from_estimator(SlideTiler(), load_cmu_slide().path)
    >>> display.ax_.get_title()
    'cmu_small_region: 45 tiles'
    """

    def __init__(
        self,
        thumbnail,
        *,
        mask=None,
        tiles=None,
        tile_size=None,
        downsample=1.0,
        mpp=None,
        title=None,
    ):
        self.thumbnail = thumbnail
        self.mask = mask
        self.tiles = tiles
        self.tile_size = tile_size
        self.downsample = downsample
        self.mpp = mpp
        self.title = title

    @classmethod
    def from_estimator(cls, tiler, slide, *, size=1200, ax=None):
        """
        Draw the tissue and the tiles that a tiler finds on a slide.

        Parameters
        ----------
        tiler : SlideTiler
            The tiler, fitted or not.
        slide : path-like, DataFrame of one row, or TiledSlide
            The slide, with its um/px if the file has none. A TiledSlide is shown with its own
            tiles.
        size : int, default=1200
            Longer side of the overview in pixels; a smaller slide is not enlarged.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : TissueMaskDisplay
            The plotted display.

        Raises
        ------
        ValueError
            If the slide cannot be read or has no um/px.
        """
        return cls._from_inspection(*tiler.inspect_slide(slide, size=size)).plot(ax=ax)

    @classmethod
    def _from_inspection(cls, thumbnail, mask, downsample, tiled):
        """Build a display, without plotting it, from the result of ``inspect_slide``."""
        return cls(
            thumbnail,
            mask=mask,
            tiles=tiled.coords,
            tile_size=tiled.size_level0,
            downsample=downsample,
            mpp=tiled.slide_mpp,
            title=Path(tiled.path).stem,
        )

    def plot(self, ax=None, *, legend=True, tile_kwargs=None, fontsize=None):
        """
        Draw overview, tissue, tiles and scale bar.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.
        legend : bool, default=True
            Whether to draw a legend of the colours.
        tile_kwargs : dict, default=None
            Passed to ``matplotlib.collections.PatchCollection``.
        fontsize : float, default=None
            Font size of the scale bar in points; None takes that of matplotlib.

        Returns
        -------
        display : TissueMaskDisplay
            The display itself.

        Raises
        ------
        ValueError
            If there are tiles but no `tile_size`.
        """
        if self.tiles is not None and self.tile_size is None:
            raise ValueError("tiles require tile_size, their edge in level-0 pixels, got None.")
        ax = set_axes(self, ax, (6, 6))
        height, width = self.thumbnail.shape[:2]
        extent = (0, width, height, 0)
        self.image_ = ax.imshow(self.thumbnail, extent=extent, interpolation="antialiased")
        self.veil_ = None
        if self.mask is not None:
            self.veil_ = draw_veil(ax, self.mask, width, height)
        # A tile that extends beyond the border must not enlarge the axes.
        ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        self.tiles_ = self._draw_tiles(ax, tile_kwargs or {})
        if self.mpp is not None:
            draw_scale_bar(ax, width, self.mpp * self.downsample, fontsize=fontsize)
        count = None if self.tiles is None else f"{len(self.tiles)} tiles"
        ax.set_title(": ".join(part for part in (self.title, count) if part))
        if legend:
            self._draw_legend(ax)
        return self

    def _draw_tiles(self, ax, tile_kwargs):
        if self.tiles is None or not len(self.tiles):
            return None
        corners = np.asarray(self.tiles) / self.downsample
        return draw_squares(ax, corners, self.tile_size / self.downsample, **tile_kwargs)

    def _draw_legend(self, ax):
        handles = []
        if self.veil_ is not None and not self.mask.all():
            handles.append(Patch(facecolor=VEIL, edgecolor="none", label="no tissue"))
        if self.tiles_ is not None:
            handles.append(Patch(facecolor="none", edgecolor=TILE_COLOR, label="kept tiles"))
        if handles:
            ax.legend(
                handles=handles,
                loc="upper left",
                bbox_to_anchor=(0, 0),
                bbox_transform=below_axes(ax, 14),
                borderaxespad=0,
                ncols=2,
                frameon=False,
            )
