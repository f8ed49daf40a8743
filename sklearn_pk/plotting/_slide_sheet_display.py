"""Many slides on one sheet, each with its tissue and its tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from ._tissue_mask_display import TissueMaskDisplay

_NAME_LENGTH = 30
_LINE_LENGTH = 34
_MAX_LINES = 9


def shorten(name, length=_NAME_LENGTH):
    """Replace the middle of a long name by an ellipsis."""
    if len(name) <= length:
        return name
    start = (length - 1) // 2
    return f"{name[:start]}…{name[len(name) - (length - 1 - start) :]}"


class SlideSheetDisplay:
    """
    Many slides on one sheet, each with its tissue and its tiles.

    Build it with :meth:`from_estimator`. For a slide that cannot be used, the reason is shown.

    Parameters
    ----------
    panels : list of TissueMaskDisplay or None
        One per slide; None for a slide that cannot be used. They need not be plotted.
    names : list of str
        Name of each slide.
    reasons : list of str
        Why a slide has no tiles; empty if it has tiles.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure with the slides.
    axes_ : ndarray of matplotlib Axes
        Axes with one slide each.

    See Also
    --------
    TissueMaskDisplay : Shows one slide.
    TileSheetDisplay : Shows tiles of one slide.
    sklearn_pk.slides.check_slides : Reports the problems of each slide.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.plotting import SlideSheetDisplay
    >>> from sklearn_pk.slides import SlideTiler
    >>> slides = [load_cmu_slide().path, "missing.svs"]
    >>> display = SlideSheetDisplay.from_estimator(SlideTiler(), slides)
    >>> display.reasons
    ['', "Slide not found: 'missing.svs'. Check the path."]
    """

    def __init__(self, panels, names, reasons):
        self.panels = panels
        self.names = names
        self.reasons = reasons

    @classmethod
    def from_estimator(cls, tiler, X, *, size=300, n_columns=6, figure=None):
        """
        Show the tissue and the tiles that a tiler finds on each slide.

        Parameters
        ----------
        tiler : SlideTiler
            The tiler, fitted or not. Its `n_jobs` is the number of slides read in parallel.
        X : list of path-like, Series, DataFrame with the column ``slide``, or list of TiledSlide
            Slides, as input of the tiler. TiledSlide objects are shown with their own
            tiles.
        size : int, default=300
            Longer side of an overview in pixels.
        n_columns : int, default=6
            Number of slides per row.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw on; None creates a new one.

        Returns
        -------
        display : SlideSheetDisplay
            The plotted display.

        Raises
        ------
        TypeError
            If X is not a list of slides.
        """
        panels, names, reasons = [], [], []
        for inspected in tiler.inspect_slides(X, size=size):
            thumbnail, tiled = inspected[0], inspected[-1]
            path = Path(tiled.path)
            usable = thumbnail is not None
            panels.append(TissueMaskDisplay._from_inspection(*inspected) if usable else None)
            names.append(path.stem)
            # Without the folder, which would take too much space.
            reasons.append(tiled.reason.replace(str(path), path.name))
        return cls(panels, names, reasons).plot(n_columns=n_columns, figure=figure)

    def plot(self, *, n_columns=6, figure=None):
        """
        Draw the slides row by row.

        Parameters
        ----------
        n_columns : int, default=6
            Number of slides per row.
        figure : matplotlib Figure or SubFigure, default=None
            Figure to draw on; None creates a new one.

        Returns
        -------
        display : SlideSheetDisplay
            The display itself.
        """
        n_columns = max(1, min(n_columns, len(self.panels)))
        n_rows = -(-len(self.panels) // n_columns)
        if figure is None:
            figure = plt.figure(figsize=(2.2 * n_columns, 2.6 * n_rows), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for ax in axes[len(self.panels) :]:
            ax.set_axis_off()
        self.axes_ = axes[: len(self.panels)]
        rows = zip(self.axes_, self.panels, self.names, self.reasons, strict=True)
        for ax, panel, name, reason in rows:
            self._draw_panel(ax, panel, shorten(name), reason)
        self.figure_ = axes[0].get_figure(root=True)
        return self

    def _draw_panel(self, ax, panel, name, reason):
        lines = textwrap.wrap(reason, _LINE_LENGTH, max_lines=_MAX_LINES, placeholder=" …")
        if panel is None:
            ax.set(xticks=[], yticks=[], box_aspect=1, facecolor="0.92")
            middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
            ax.text(0.5, 0.5, "\n".join(lines), fontsize=6, **middle)
            ax.set_title(f"{name}\ncannot be used", fontsize=7)
            return
        panel.plot(ax, legend=False, fontsize=6)
        ax.set_title(f"{name}\n{len(panel.tiles)} tiles", fontsize=7)
        if lines:
            ax.set_xlabel("\n".join(lines), fontsize=6, labelpad=13)
