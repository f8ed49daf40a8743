"""Differences between settings and a reference, with their confidence intervals."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from matplotlib.ticker import Formatter, MaxNLocator, StrMethodFormatter

from ..metrics import compare_significance
from ..metrics._comparison import MEASURES
from ._style import GREY, OKABE_ITO, check_table, set_axes

_NUMBERS = ["value", "reference_value", "difference", "ci_low", "ci_high"]
_COLUMNS = ("setting", "reference", "measure", *_NUMBERS)
_LABELS = {"n_significant": "significant genes", "median_r": "median r"}
_COLOR, _HOLLOW = OKABE_ITO[0], "0.45"
# In points: font sizes of names and numbers, size of the marker, gap between marker and text.
_NAME, _NUMBER, _MARKER, _GAP = 9, 8, 7, 2
_ROW = 22  # height of a row below which everything is scaled down
_MARGIN = 0.05  # relative to the range of the differences
# In heights of a row: space above the first point, for its name, and below the last one.
_ABOVE, _BELOW = 0.85, 0.4


def _rows_of(comparison, measure):
    """Return the checked rows of one measure."""
    present = [name for name in MEASURES if (comparison["measure"] == name).any()]
    if measure not in present:
        raise ValueError(
            f"measure must be one of those in the comparison, {present}, got {measure!r}."
        )
    rows = comparison[comparison["measure"] == measure].reset_index(drop=True)
    invalid = rows[["setting", "reference"]].isna().any(axis=1)
    invalid |= ~np.isfinite(rows[_NUMBERS].to_numpy(dtype=float)).all(axis=1)
    if invalid.any():
        raise ValueError(
            f"comparison must not contain NaN or infinity, but {invalid.sum()} of the {len(rows)} "
            f"rows of {measure!r} do, first that of {rows['setting'][invalid.argmax()]!r}."
        )
    references = rows["reference"].unique().tolist()
    if len(references) > 1:
        raise ValueError(f"comparison must have one reference, got {references}; plot each alone.")
    values = rows["reference_value"].to_numpy(dtype=float)
    if not np.allclose(values, values[0], rtol=1e-9, atol=0):
        raise ValueError(
            f"comparison must have one value of the reference {references[0]!r}, got "
            f"{values.min():g} to {values.max():g}; plot each comparison alone."
        )
    repeated = rows["setting"].duplicated()
    if repeated.any():
        raise ValueError(
            "comparison must have one row per setting and measure, but has several for "
            f"{rows['setting'][repeated.argmax()]!r}."
        )
    return rows


def _format(number, measure, sign=""):
    """Format a count with one decimal unless it is an integer, and r with three."""
    digits = 1 if measure == "n_significant" else 3
    number = round(float(number), digits) + 0.0  # no negative zero
    text = f"{number:{sign if number else ''},.{digits}f}"
    text = text.removesuffix(".0") if measure == "n_significant" else text
    return Formatter.fix_minus(text)


def _describe_reference(name, value, measure):
    number = _format(value, measure)
    if measure == "n_significant":
        return f"Reference: {name}, {number} significant {'gene' if number == '1' else 'genes'}"
    return f"Reference: {name}, {_LABELS[measure]} {number}"


def _shrink(lines, width):
    """Scale down all texts until those of each line fit into a width in pixels."""
    # Twice, since the width is not proportional to the font size.
    for _ in range(2):
        needed = max(sum(text.get_window_extent().width for text in line) for line in lines)
        for text in (text for line in lines for text in line):
            text.set_fontsize(text.get_fontsize() * min(1.0, width / needed))


class ComparisonDisplay:
    """
    Differences between settings and a reference, with their confidence intervals.

    One row per setting, in the order of the comparison. Points are filled if the interval
    excludes 0 and hollow if it contains 0. Names and numbers are above the intervals, inside the
    axes. Build it with :meth:`from_comparison` or :meth:`from_results`.

    Parameters
    ----------
    comparison : DataFrame of n_settings or more rows
        Return value of :func:`~sklearn_pk.metrics.compare_significance`.
    measure : {"n_significant", "median_r"}, default="n_significant"
        The measure to draw.

    Attributes
    ----------
    rows : DataFrame of n_settings rows
        The rows of the comparison that are drawn, from top to bottom.
    ax_ : matplotlib Axes
        Axes with the rows.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    errorbars_ : list of matplotlib ErrorbarContainer
        Point and interval of each setting.
    names_ : list of matplotlib Annotation
        Name of each setting, at the left.
    texts_ : list of matplotlib Annotation
        Difference and interval of each setting, at the right.
    line_ : matplotlib Line2D
        The line at 0, which is the reference.

    Raises
    ------
    TypeError
        If `comparison` is not a DataFrame.
    ValueError
        If `comparison` lacks columns or the measure, contains NaN, has several references or a
        setting twice.

    See Also
    --------
    sklearn_pk.metrics.compare_significance : Computes the differences.
    sklearn_pk.model_selection.prior_gain : Runs a model with its prior, without and with
        controls.
    SignificanceDisplay : All genes of one report.

    Notes
    -----
    The comparison does not contain the level of the intervals, so that it is not shown.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from sklearn_pk.plotting import ComparisonDisplay
    >>> rng = np.random.default_rng(0)
    >>> y_true, noise, untrained = rng.normal(size=(3, 80, 50))
    >>> display = ComparisonDisplay.from_results(
    ...     {
    ...         "weak": (y_true, 0.1 * y_true + 0.5 * noise, untrained),
    ...         "strong": (y_true, 0.3 * y_true + 0.5 * noise, untrained),
    ...     },
    ...     n_boot=200,
    ...     random_state=0,
    ... )
    >>> display.ax_.get_title()
    'Reference: weak, 10 significant genes'
    >>> [text.get_text() for text in display.names_]
    ['strong']
    """

    def __init__(self, comparison, *, measure="n_significant"):
        check_table(comparison, "comparison", _COLUMNS, "compare_significance")
        self.comparison = comparison
        self.measure = measure
        self.rows = _rows_of(comparison, measure)

    @classmethod
    def from_comparison(cls, comparison, *, measure="n_significant", ax=None):
        """
        Draw a comparison.

        Parameters
        ----------
        comparison : DataFrame of n_settings or more rows
            Return value of :func:`~sklearn_pk.metrics.compare_significance`.
        measure : {"n_significant", "median_r"}, default="n_significant"
            The measure to draw.
        ax : matplotlib Axes, default=None
            As in :meth:`plot`.

        Returns
        -------
        display : ComparisonDisplay
            The plotted display.
        """
        return cls(comparison, measure=measure).plot(ax=ax)

    @classmethod
    def from_results(cls, reports, *, measure="n_significant", ax=None, **options):
        """
        Compare results and draw the comparison.

        Parameters
        ----------
        reports : dict of str to result, or to list of results
            The settings, as in :func:`~sklearn_pk.metrics.compare_significance`.
        measure : {"n_significant", "median_r"}, default="n_significant"
            The measure to draw.
        ax : matplotlib Axes, default=None
            As in :meth:`plot`.
        **options : dict
            Further parameters of :func:`~sklearn_pk.metrics.compare_significance`, such as
            ``reference``.

        Returns
        -------
        display : ComparisonDisplay
            The plotted display. Its ``comparison`` has both measures.

        Raises
        ------
        TypeError
            As :func:`~sklearn_pk.metrics.compare_significance`.
        ValueError
            As :func:`~sklearn_pk.metrics.compare_significance`, or if the measure is unknown.
        """
        if measure not in MEASURES:  # before the draws, which take long
            raise ValueError(f"measure must be one of {list(MEASURES)}, got {measure!r}.")
        return cls.from_comparison(compare_significance(reports, **options), measure=measure, ax=ax)

    def plot(self, ax=None):
        """
        Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure whose height depends on the number of
            settings. Texts are scaled down if the axes are too small.

        Returns
        -------
        display : ComparisonDisplay
            The display itself.
        """
        n_rows = len(self.rows)
        ax = set_axes(self, ax, (6.4, 1.2 + 0.42 * n_rows))
        height = 72 / ax.figure.dpi * ax.get_window_extent().height / (n_rows - 1 + _ABOVE + _BELOW)
        scale = min(1.0, height / _ROW)
        self.line_ = ax.axvline(0, color=GREY, ls="--", lw=0.8, zorder=0)
        self._draw_intervals(scale)
        self._label_axes()
        self._label_rows(scale)
        return self

    def _draw_intervals(self, scale):
        self.errorbars_ = []
        for row in self.rows.itertuples():
            filled = row.ci_low > 0 or row.ci_high < 0
            errorbar = self.ax_.errorbar(
                row.difference,
                row.Index,
                xerr=[[row.difference - row.ci_low], [row.ci_high - row.difference]],
                fmt="o",
                ms=_MARKER * scale,
                color=_COLOR if filled else _HOLLOW,
                mfc=_COLOR if filled else self.ax_.get_facecolor(),
                lw=1.8 if filled else 1.2,
                capsize=2.5 * scale,
            )
            self.errorbars_.append(errorbar)

    def _label_axes(self):
        ax, name = self.ax_, self.rows["reference"][0]
        low, high = min(0.0, self.rows["ci_low"].min()), max(0.0, self.rows["ci_high"].max())
        margin = _MARGIN * (high - low) or 1.0
        ax.set(xlim=(low - margin, high + margin), yticks=[])
        ax.set_ylim(len(self.rows) - 1 + _BELOW, -_ABOVE)
        counts = self.measure == "n_significant"
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=counts, steps=[1, 2, 2.5, 5, 10]))
        if counts:
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.spines[["top", "right", "left"]].set_visible(False)
        value = self.rows["reference_value"][0]
        title = ax.set_title(_describe_reference(name, value, self.measure), parse_math=False)
        label = f"Difference in {_LABELS[self.measure]} from {str(name)!r}"
        label = ax.set_xlabel(label, parse_math=False)
        for text in (title, label):
            _shrink([[text]], 0.98 * ax.get_window_extent().width)

    def _label_rows(self, scale):
        """Write names and numbers above the intervals, without overlap."""

        def write(text, row, edge, size):
            return self.ax_.annotate(
                text,
                (edge, row),
                (0, (_MARKER / 2 + _GAP) * scale),
                xycoords=self.ax_.get_yaxis_transform(),
                textcoords="offset points",
                ha="right" if edge else "left",
                va="bottom",
                fontsize=size * scale,
                parse_math=False,
                # Covers the line at 0, but not the intervals.
                bbox={"facecolor": self.ax_.get_facecolor(), "edgecolor": "none", "pad": 0},
                zorder=1,
            )

        self.names_, self.texts_ = [], []
        for row in self.rows.itertuples():
            low, high = (_format(limit, self.measure) for limit in (row.ci_low, row.ci_high))
            text = f"{_format(row.difference, self.measure, '+')} [{low}, {high}]"
            self.names_.append(write(str(row.setting), row.Index, 0, _NAME))
            self.texts_.append(write(text, row.Index, 1, _NUMBER))
        lines = list(zip(self.names_, self.texts_, strict=True))
        _shrink(lines, 0.96 * self.ax_.get_window_extent().width)
