"""Tissue mask and tiles over the overview of a slide."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle

from ._colors import OKABE_ITO

_TISSUE, _TILES = OKABE_ITO[0], OKABE_ITO[1]


def scale_bar_length(width_um):
    """
    Choose a round length of about a fifth of the width.

    Parameters
    ----------
    width_um : float
        Width of the picture in um.

    Returns
    -------
    length : float
        1, 2 or 5 times a power of ten, in um.
    """
    target = width_um / 5
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def _format_um(length):
    return f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"


class TissueMaskDisplay:
    """
    Tissue mask and tiles over the overview of a slide.

    Build it with :meth:`from_estimator`.

    Parameters
    ----------
    thumbnail : ndarray of shape (height, width, 3), uint8
        RGB overview of the slide.
    mask : ndarray of shape (height, width), bool, default=None
        True on tissue; None draws no outline.
    tiles : ndarray of shape (n, 2), default=None
        Upper left corners (x, y) of the kept tiles in level-0 pixels; None draws none.
    tile_size : float, default=None
        Edge of a tile in level-0 pixels. Needed with `tiles`.
    downsample : float, default=1.0
        Level-0 pixels per pixel of the overview.
    mpp : float, default=None
        Resolution of level 0 in um/px, for the scale bar; None draws none.
    title : str, default=None
        Title, such as the name of the slide; the number of tiles is added.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure that holds the axes.
    image_ : matplotlib AxesImage
        The overview.
    outline_ : matplotlib QuadContourSet or None
        Outline of the tissue.
    tiles_ : matplotlib PatchCollection or None
        The kept tiles.

    See Also
    --------
    sklearn_pk.slides.SlideTiler : Finds mask and tiles.

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
    def from_estimator(cls, tiler, slide, *, ax=None):
        """
        Draw what a tiler finds on a slide.

        Parameters
        ----------
        tiler : SlideTiler
            The tiler, fitted or not.
        slide : path-like, or DataFrame of one row
            The slide, with its um/px where the file states none.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.

        Returns
        -------
        display : TissueMaskDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the slide cannot be read or states no um/px.
        """
        thumbnail, mask, downsample, tiled = tiler.inspect_slide(slide)
        display = cls(
            thumbnail,
            mask=mask,
            tiles=tiled.coords,
            tile_size=tiled.size_level0,
            downsample=downsample,
            mpp=tiled.slide_mpp,
            title=Path(tiled.path).stem,
        )
        return display.plot(ax=ax)

    def plot(self, ax=None, *, legend=True, tile_kwargs=None):
        """
        Draw overview, outline of the tissue, tiles and scale bar.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        legend : bool, default=True
            Whether to explain the colours.
        tile_kwargs : dict, default=None
            Passed to ``matplotlib.collections.PatchCollection``.

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
            raise ValueError("tiles need tile_size, their edge in level-0 pixels; got None.")
        if ax is None:
            _, ax = plt.subplots(figsize=(6, 6), layout="constrained")
        height, width = self.thumbnail.shape[:2]
        extent = (0, width, height, 0)
        self.image_ = ax.imshow(self.thumbnail, extent=extent, interpolation="nearest")
        self.outline_ = self._draw_mask(ax)
        self.tiles_ = self._draw_tiles(ax, tile_kwargs or {})
        if self.mpp is not None:
            self._draw_scale_bar(ax, width, height)
        # A tile that starts near the border must not widen the picture.
        ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        count = None if self.tiles is None else f"{len(self.tiles)} tiles"
        ax.set_title(": ".join(part for part in (self.title, count) if part))
        if legend:
            self._draw_legend(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_mask(self, ax):
        # A mask of one value has no outline, and matplotlib would warn.
        if self.mask is None or self.mask.all() or not self.mask.any():
            return None
        height, width = self.mask.shape
        x, y = np.arange(width + 2) - 0.5, np.arange(height + 2) - 0.5
        # The frame of background closes the outline where tissue touches the border.
        closed = np.pad(self.mask, 1).astype(float)
        return ax.contour(x, y, closed, levels=[0.5], colors=[_TISSUE], linewidths=1.5)

    def _draw_tiles(self, ax, tile_kwargs):
        if self.tiles is None or not len(self.tiles):
            return None
        edge = self.tile_size / self.downsample
        corners = np.asarray(self.tiles) / self.downsample
        style = {"edgecolor": _TILES, "facecolor": "none", "linewidth": 1.0}
        style |= normalize_kwargs(tile_kwargs, PatchCollection)
        squares = PatchCollection([Rectangle(corner, edge, edge) for corner in corners], **style)
        return ax.add_collection(squares)

    def _draw_scale_bar(self, ax, width, height):
        pixel_um = self.mpp * self.downsample
        length = scale_bar_length(width * pixel_um)
        end, margin = length / pixel_um, 0.04
        right, bottom = width * (1 - margin), height * (1 - margin)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"}
        ax.plot([right - end, right], [bottom, bottom], color="white", lw=6, solid_capstyle="butt")
        ax.plot([right - end, right], [bottom, bottom], color="black", lw=3, solid_capstyle="butt")
        ax.annotate(
            _format_um(length),
            (right - end / 2, bottom),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            va="bottom",
            bbox=box,
        )

    def _draw_legend(self, ax):
        shown = [(self.outline_, _TISSUE, "tissue"), (self.tiles_, _TILES, "kept tiles")]
        handles = [
            Patch(edgecolor=color, facecolor="none", label=label)
            for artist, color, label in shown
            if artist is not None
        ]
        if handles:
            ax.legend(
                handles=handles,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.01),
                ncols=2,
                frameon=False,
            )
