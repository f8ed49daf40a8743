"""Predicted expression of one gene over a slide."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Real
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from ..utils._pipelines import tile_predictor
from ._slide import (
    MAP_LIMITS,
    check_tile_table,
    color_limits,
    common_limits,
    draw_color_bar,
    draw_scale_bar,
    draw_squares,
    edges_of_tiles,
    fit_title,
    name_of_slide,
    read_overview,
    warn_if_other_slide,
)
from ._style import RASTERIZED, find_gene, format_units, format_verdict, held_out, set_axes


class SpatialExpressionDisplay:
    """
    Predicted expression of one gene over a slide.

    Build it with :meth:`from_predictions` or :meth:`from_estimator`. Each tile is a square whose
    colour is the predicted expression. The slide below is shown in grey, so that its stain does
    not interfere with the colours.

    Parameters
    ----------
    corners : array-like of shape (n_tiles, 2)
        Upper left corners (x, y) of the tiles in level-0 pixels.
    values : array-like of shape (n_tiles,)
        Predicted expression of the gene in each tile.
    tile_size : float, default=None
        Edge of a tile in level-0 pixels. None takes the distance between neighbours, which is
        too large if no two tiles are adjacent.
    gene : str or int, default=None
        Name of the gene, for title and colour bar.
    image : ndarray of shape (height, width, 3), uint8, default=None
        RGB overview of the whole slide. None draws the tiles on white within their bounding box.
    downsample : float, default=1.0
        Level-0 pixels per pixel of `image`.
    mpp : float, default=None
        Resolution of level 0 in um/px, for the scale bar; None and NaN draw no scale bar.
    slide_name : str, default=None
        Name of the slide, for the title.
    units : str, default=None
        Units of the expression, such as "log2 TPM", for the colour bar; None shows none.
    verdict : str, default=None
        How well the gene is predicted, for the title, such as "r = 0.12, not significant".

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the map.
    slide_ax_ : matplotlib Axes or None
        Axes with the slide in colour, with ``beside=True``.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    image_ : matplotlib AxesImage or None
        The slide.
    tiles_ : matplotlib PatchCollection
        The tiles, in the order of `corners`.
    colorbar_ : matplotlib Colorbar
        The colour bar.

    See Also
    --------
    TissueMaskDisplay : Shows the tiles on the slide.
    PredictionDisplay : Compares predictions for whole slides with their true expression.
    sklearn_pk.regression.PriorKnowledgeRegressor.predict_tiles : Returns the table.

    Notes
    -----
    Overlapping tiles are drawn as non-overlapping squares in their centres, as wide as the
    distance between tiles, so that colours do not mix.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import pandas as pd
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.plotting import SpatialExpressionDisplay
    >>> corners = pd.MultiIndex.from_tuples([(513, 1026), (1026, 1026)], names=["x", "y"])
    >>> tiles = pd.DataFrame({"ESR1": [5.0, 7.0]}, index=corners)
    >>> tiles.attrs.update(slide="cmu", size_level0=513)
    >>> display = SpatialExpressionDisplay.from_predictions(tiles, slide=load_cmu_slide().path)
    >>> display.ax_.get_title()
    'ESR1: cmu'
    """

    def __init__(
        self,
        corners,
        values,
        *,
        tile_size=None,
        gene=None,
        image=None,
        downsample=1.0,
        mpp=None,
        slide_name=None,
        units=None,
        verdict=None,
    ):
        self.corners = corners
        self.values = values
        self.tile_size = tile_size
        self.gene = gene
        self.image = image
        self.downsample = downsample
        self.mpp = mpp
        self.slide_name = slide_name
        self.units = units
        self.verdict = verdict

    @classmethod
    def from_predictions(
        cls,
        tiles,
        *,
        gene=None,
        slide=None,
        thumbnail=None,
        downsample=1.0,
        mpp=None,
        tile_size=None,
        units=None,
        report=None,
        reference=None,
        size=1200,
        ax=None,
        **style,
    ):
        """
        Draw one gene of a table of tiles.

        Parameters
        ----------
        tiles : DataFrame of shape (n_tiles, n_genes)
            One of the tables returned by ``predict_tiles``: the expression of the tiles of one
            slide, indexed by their upper left corners ``x`` and ``y`` in level-0 pixels.
        gene : str or int, default=None
            The column to draw. Required if there are several.
        slide : path-like or TiledSlide, default=None
            The slide to show below the tiles. None shows no slide.
        thumbnail : ndarray of shape (height, width, 3), uint8, default=None
            RGB overview of the whole slide to show instead of `slide`, such as that of
            ``SlideTiler().inspect_slide`` with its `downsample`.
        downsample : float, default=1.0
            Level-0 pixels per pixel of `thumbnail`.
        mpp : float, default=None
            Resolution of level 0 in um/px, for the scale bar. None takes that of `slide` or, if
            it has none, ``tiles.attrs["mpp"]``; without both, there is no scale bar.
        tile_size : float, default=None
            Edge of a tile in level-0 pixels. None takes ``tiles.attrs["size_level0"]`` or, if
            that is missing, the smallest distance between tiles, which is too large if no two
            tiles are adjacent.
        units : str, default=None
            Units of the expression, such as "log2 TPM", for the colour bar; None shows none.
        report : DataFrame or CrossValSignificance, default=None
            Held-out accuracy of the model, whose r and significance of the gene are written in
            the title: :func:`~sklearn_pk.metrics.significance_report`, or a result with one.
        reference : list of DataFrame, default=None
            Tables of several slides, whose 1st and 99th percentile together are the limits of
            the colours. With the same tables, maps of different slides are comparable.
        size : int, default=1200
            Minimum length in pixels of the longer side of the overview of `slide` (within 1 %),
            unless the slide is smaller.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.
        **style : object
            Passed to :meth:`plot`.

        Returns
        -------
        display : SpatialExpressionDisplay
            The plotted display.

        Raises
        ------
        TypeError
            If `tiles` is not a DataFrame.
        ValueError
            If the tiles have no coordinates or are outside the slide, if the gene is missing
            there, in `report` or in `reference`, or if the slide cannot be read.
        """
        check_tile_table(tiles)
        if isinstance(gene, list | tuple):
            raise ValueError(f"gene must be one gene, got {gene!r}. Draw one map per gene.")
        column, gene = find_gene(gene, tiles.columns.to_numpy(dtype=object), tiles.shape[1])
        name, edge = name_of_slide(tiles), tiles.attrs.get("size_level0")
        if slide is not None:
            if thumbnail is not None:
                raise ValueError("slide and thumbnail are exclusive. Pass one of them.")
            path = getattr(slide, "path", slide)
            thumbnail, downsample, slide_mpp = read_overview(path, size)
            # A TiledSlide has the um/px given by the user if the file has none.
            mpp = getattr(slide, "slide_mpp", slide_mpp) if mpp is None else mpp
            warn_if_other_slide(tiles.attrs.get("slide"), path)
            name = name or Path(path).stem
            edge = edge or getattr(slide, "size_level0", None)
        verdict = None
        if report is not None:
            [(r, significant, _)] = held_out(report, [gene])
            verdict = format_verdict(r, significant)
        if reference is not None:
            low, high = common_limits(reference, gene)
            style = {"vmin": low, "vmax": high} | style
        display = cls(
            tiles.index.to_frame().to_numpy(),
            tiles.iloc[:, column].to_numpy(),
            tile_size=tile_size or edge,
            gene=gene,
            image=thumbnail,
            downsample=downsample,
            mpp=tiles.attrs.get("mpp") if pd.isna(mpp) else mpp,
            slide_name=name,
            units=units,
            verdict=verdict,
        )
        return display.plot(ax, **style)

    @classmethod
    def from_estimator(cls, estimator, X, *, gene, window=None, stride=1, **options):
        """
        Predict the expression of one gene in the tiles of a slide, and draw it.

        Parameters
        ----------
        estimator : estimator, CrossValSignificance or FinalModel
            Fitted regressor that has ``predict_tiles``, or a Pipeline or search that ends in
            one, whose other steps transform the slide first. A result of
            :func:`~sklearn_pk.model_selection.cross_val_significance` takes the model that has
            not seen a slide of its cohort.
        X : FeatureBag, or what the Pipeline takes as one slide
            One slide: the features of its tiles, with their coordinates.
        gene : str or int
            The gene to draw: its name, or its position if the genes have no names.
        window : int, default=None
            Edge of the sliding window of ``predict_tiles``, in tiles. None predicts each tile
            separately.
        stride : int, default=1
            Step of the window, in tiles; at most `window`.
        **options : object
            Passed to :meth:`from_predictions`, such as the slide to show and the axes.

        Returns
        -------
        display : SpatialExpressionDisplay
            The plotted display.

        Raises
        ------
        KeyError
            If the estimator does not have the gene.
        TypeError
            If the estimator has no ``predict_tiles``.
        ValueError
            If the tiles have no coordinates or are outside the slide, if the slide cannot be
            read, or if a step of a Pipeline needs more of a slide than the mean of its tiles.

        Notes
        -----
        A map needs the features of the original tiles. Steps of a Pipeline that reduce slides to
        super-tiles or to the mean of their tiles are therefore left out.
        """
        estimator, bags = tile_predictor(estimator, [X])
        [tiles] = estimator.predict_tiles(bags, genes=[gene], window=window, stride=stride)
        return cls.from_predictions(tiles, **options)

    def plot(
        self,
        ax=None,
        *,
        cmap="viridis",
        vmin=None,
        vmax=None,
        alpha=0.6,
        fontsize=None,
        beside=False,
    ):
        """
        Draw slide, tiles, colour bar and scale bar.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.
        cmap : str or matplotlib Colormap, default="viridis"
            Colour map of the expression.
        vmin, vmax : float, default=None
            Limits of the colour map; pass the same for comparable slides. None takes the 1st and
            the 99th percentile. An arrow marks an end that some tiles exceed.
        alpha : float, default=0.6
            Opacity of the tiles over a slide, from 0 to 1. Without a slide they are opaque.
        fontsize : float, default=None
            Font size in points; None takes that of matplotlib.
        beside : bool, default=False
            Whether to show the slide in colour beside the map, in a new figure.

        Returns
        -------
        display : SpatialExpressionDisplay
            The display itself.

        Raises
        ------
        ValueError
            If shapes do not match, a number is not finite or out of range, tiles are outside
            `image`, or `beside` is True with `ax` or without `image`.
        """
        corners, values = self._check_tiles()
        edge, step = edges_of_tiles(corners, self.tile_size)
        self._check_image(corners)
        limits = color_limits(values, vmin, vmax, **MAP_LIMITS)
        self.slide_ax_ = None
        if beside:
            ax = self._draw_beside(ax)
        ax = set_axes(self, ax, (6.6, 6))
        width = self._draw_image(ax, corners, edge)
        if self.image is None:
            corners, alpha = corners - corners.min(axis=0), 1.0
        self.tiles_ = draw_squares(
            ax,
            (corners + (edge - step) / 2) / self.downsample,
            step / self.downsample,
            array=values,
            cmap=cmap,
            norm=Normalize(*limits),
            alpha=alpha,
            facecolor="C0",
            edgecolor="none",
            linewidth=0,
            rasterized=len(values) > RASTERIZED,
        )
        self._draw_frame(ax, values, limits, width, fontsize)
        return self

    def _check_tiles(self):
        corners = np.asarray(self.corners, dtype=np.float64)
        values = np.asarray(self.values, dtype=np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners):
            raise ValueError(f"corners must have the shape (n_tiles, 2), got {corners.shape}.")
        if values.shape != corners.shape[:1]:
            raise ValueError(
                f"values must have the shape ({len(corners)},), one per tile of corners, got "
                f"{values.shape}."
            )
        for name, array in (("corners", corners), ("values", values)):
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite, got NaN or infinity.")
        _check_positive("downsample", self.downsample)
        for name in ("tile_size", "mpp"):
            if not pd.isna(getattr(self, name)):
                _check_positive(name, getattr(self, name))
        return corners, values

    def _check_image(self, corners):
        if self.image is None:
            return
        shape = np.shape(self.image)
        if len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"image must be RGB of shape (height, width, 3), got {shape}.")
        size = np.array(shape[1::-1]) * self.downsample
        outside = ((corners < 0) | (corners >= size)).any(axis=1)
        if outside.any():
            raise ValueError(
                f"corners: {outside.sum()} of {len(corners)} tiles are outside the image of "
                f"{size[0]:.0f} x {size[1]:.0f} level-0 pixels, such as "
                f"{corners[outside.argmax()].tolist()}. Check that it shows this slide, and "
                f"downsample={self.downsample:g}."
            )

    def _draw_beside(self, ax):
        """Draw the slide in colour, and return the axes for the map."""
        if ax is not None or self.image is None:
            raise ValueError(
                "beside=True shows the slide in a figure of its own: it needs slide= or "
                "thumbnail=, and ax=None."
            )
        height, width = np.shape(self.image)[:2]
        _, (self.slide_ax_, ax) = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
        self.slide_ax_.imshow(self.image, extent=(0, width, height, 0), interpolation="antialiased")
        self.slide_ax_.set(xticks=[], yticks=[], title=self.slide_name)
        return ax

    def _draw_image(self, ax, corners, edge):
        """Draw the slide, set the limits, and return the width in pixels."""
        self.image_ = None
        if self.image is None:
            width, height = (np.ptp(corners, axis=0) + edge) / self.downsample
        else:
            height, width = np.shape(self.image)[:2]
            # Luminance as in ITU-R BT.601, as in PIL.
            grey = np.asarray(self.image)[..., :3] @ np.array([0.299, 0.587, 0.114])
            style = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "antialiased"}
            self.image_ = ax.imshow(grey, extent=(0, width, height, 0), **style)
        ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        return width

    def _draw_frame(self, ax, values, limits, width, fontsize):
        gene = self.gene if self.gene is None or isinstance(self.gene, str) else f"gene {self.gene}"
        label = "Predicted expression" if gene is None else f"Predicted {gene}"
        label += format_units(self.units)
        beyond = bool((values < limits[0]).any()), bool((values > limits[1]).any())
        extend = {(True, False): "min", (False, True): "max", (True, True): "both"}
        self.colorbar_ = draw_color_bar(
            ax, self.tiles_, label, extend=extend.get(beyond, "neither"), fontsize=fontsize
        )
        if not pd.isna(self.mpp):
            draw_scale_bar(ax, width, self.mpp * self.downsample, fontsize=fontsize)
        # With the verdict on a line of its own, it is never cut.
        fit_title(ax, [gene, self.slide_name], fontsize=fontsize, below=self.verdict)


def _check_positive(name, value):
    if not isinstance(value, Real) or not 0 < value < np.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}.")
