"""Which genes are predicted significantly, in one plot."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from scipy import optimize, special, stats

from ..metrics import significance_report
from ..metrics._correlation import pearson_pvalue
from ..metrics._scorer import predict_with_untrained
from ..utils._validation import did_you_mean
from ._style import GREY, OKABE_ITO, RASTERIZED, check_table, set_axes

_COLUMNS = ("r", "p", "p_fdr", "r_baseline", "steiger_p", "steiger_fdr", "significant", "reason")
# The first words of the reasons that depend on the levels.
_TESTS = ("Pearson", "Steiger", "Permutation", "Empirical", "Analytic")
_KINDS = ("sorted", "volcano")
_LABEL_SIZE = 8  # points
_LINE = 1.35  # line spacing of names, in font heights
_COLOR, _MARKED = OKABE_ITO[:2]
_HOLLOW, _BASELINE = "0.55", "0.78"


def _check_report(report):
    origin = "significance_report, such as the report of cross_val_significance"
    check_table(report, "report", _COLUMNS, origin)
    if report.empty:
        raise ValueError("report must have at least one gene, got none.")
    against_mean = report["steiger_p"].isna().all()
    # The reason of a significant gene is "", which is NaN when read back from csv.
    needed = ["r", "p", "p_fdr", "significant"] if against_mean else list(_COLUMNS[:-1])
    invalid = report[needed].isna().any(axis=1)
    if invalid.any():
        raise ValueError(
            f"report must not contain NaN, but {invalid.sum()} of {len(report)} genes do, first "
            f"{report.index[invalid.argmax()]!r}."
        )


def _check_levels(report, p, corrected, alpha, fdr):
    """Check that these levels agree with the significance of the genes in the report."""
    passes = (p < alpha) & (corrected < fdr)
    if "null_p" not in report:
        passes &= report["p"] < alpha
    at_level = report["reason"].astype(str).str.startswith(_TESTS)
    wrong = (report["significant"].astype(bool) & ~passes) | (at_level & passes)
    if wrong.any():
        raise ValueError(
            f"alpha={alpha:g} and fdr={fdr:g} are not the levels of the report: they change the "
            f"significance of {wrong.sum()} of {len(report)} genes, first "
            f"{report.index[wrong.argmax()]!r}. Use the same levels for both."
        )


def _critical_r(r, p, alpha):
    """Return the r whose two-sided p-value is alpha, or None if r and p have no common n."""
    known = np.flatnonzero((p > 0) & (p < 1) & (np.abs(r) < 1))
    if not known.size:
        return None
    best = known[np.abs(np.log(p[known] / alpha)).argmin()]

    def excess(n):
        return pearson_pvalue(r[best], n) - p[best]

    if excess(3) < 0 or excess(1e9) > 0:
        return None
    n = round(optimize.brentq(excess, 3, 1e9))
    if not np.allclose(pearson_pvalue(r, n), p, rtol=1e-6, atol=1e-12):
        return None
    t = special.stdtrit(n - 2, 1 - alpha / 2)
    return t / np.sqrt(n - 2 + t**2)


def _corrected_level(p, corrected, fdr):
    """Return the largest p-value that passes Benjamini-Hochberg, or None if unknown."""
    # The report may contain only some of the tested genes.
    if not np.allclose(stats.false_discovery_control(p), corrected):
        return None
    return fdr * np.mean(corrected < fdr) or None


def _spread(heights, gap, top):
    """Move ascending heights apart, up to the top."""
    heights = list(heights)
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + gap)
    for k in range(len(heights) - 1, -1, -1):
        heights[k] = min(heights[k], top)
        top = heights[k] - gap
    return heights


def _plural(count):
    return f"{count:,} gene" if count == 1 else f"{count:,} genes"


class SignificanceDisplay:
    """
    Significance of all predicted genes.

    Build it with :meth:`from_report`, :meth:`from_predictions` or :meth:`from_estimator`.

    Parameters
    ----------
    report : DataFrame of n_genes rows, indexed by gene
        Return value of :func:`~sklearn_pk.metrics.significance_report`.
    alpha : float, default=0.05
        Level for p-values of the report.
    fdr : float, default=0.05
        Level for corrected p-values of the report.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the genes.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    significant_, not_significant_ : matplotlib PathCollection
        The genes, filled and hollow circles.
    ceiling_ : matplotlib PathCollection or None
        Genes whose p-value underflows to 0, as triangles at the upper edge of the volcano plot;
        None if there are none.
    baseline_ : matplotlib PathCollection or None
        The baseline's r of the same genes, with ``kind="sorted"`` and unless the baseline is
        the mean.
    highlighted_ : matplotlib PathCollection or None
        Markers around the highlighted genes.
    levels_ : list of matplotlib Line2D
        The lines of the levels, identified by their labels.
    labels_ : list of matplotlib Annotation
        Names of genes.

    Raises
    ------
    TypeError
        If `report` is not a DataFrame.
    ValueError
        If `report` lacks columns or genes, contains NaN, or has other levels.

    See Also
    --------
    sklearn_pk.metrics.significance_report : Computes the report.
    sklearn_pk.model_selection.cross_val_significance : The report over all folds.
    PredictionDisplay : One of the genes.

    Notes
    -----
    A significant gene is beyond all lines. The converse does not hold, since the RMSE, which is
    not shown, must be below the baseline's, too. The line of the corrected p-value is drawn if
    it is below that of the p-value itself.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import numpy as np
    >>> from sklearn_pk.plotting import SignificanceDisplay
    >>> rng = np.random.default_rng(0)
    >>> y_true = rng.normal(size=(50, 3))
    >>> y_pred = y_true * [1, 1, 0] + rng.normal(size=(50, 3))
    >>> display = SignificanceDisplay.from_predictions(y_true, y_pred, rng.normal(size=(50, 3)))
    >>> display.ax_.get_title()
    '2 of 3 genes significant, median r = 0.55'
    """

    def __init__(self, report, *, alpha=0.05, fdr=0.05):
        _check_report(report)
        # When read back from a file, the gene names may be a column.
        report = report.set_index("gene") if "gene" in report else report
        self.report = report
        self.alpha = alpha
        self.fdr = fdr
        self._against_mean = report["steiger_p"].isna().all()
        self._calibrated = "null_p" in report
        names = ("p", "p_fdr") if self._against_mean else ("steiger_p", "steiger_fdr")
        names = ("null_p", "null_fdr") if self._calibrated else names
        self._p, self._corrected = (report[name].to_numpy() for name in names)
        _check_levels(report, self._p, self._corrected, alpha, fdr)

    @classmethod
    def from_report(
        cls, report, *, alpha=0.05, fdr=0.05, kind="sorted", n_labels=5, highlight=(), ax=None
    ):
        """
        Draw a report.

        Parameters
        ----------
        report : DataFrame of n_genes rows, indexed by gene
            Return value of :func:`~sklearn_pk.metrics.significance_report`, such as the report
            of :func:`~sklearn_pk.model_selection.cross_val_significance`.
        alpha, fdr : float
            Levels of the report.
        kind, n_labels, highlight, ax : object
            As in :meth:`plot`.

        Returns
        -------
        display : SignificanceDisplay
            The plotted display.

        Raises
        ------
        TypeError
            If `report` is not a DataFrame.
        ValueError
            If `report` is not a report with these levels, or lacks a gene to highlight.
        """
        display = cls(report, alpha=alpha, fdr=fdr)
        return display.plot(ax, kind=kind, n_labels=n_labels, highlight=highlight)

    @classmethod
    def from_predictions(
        cls,
        y_true,
        y_pred,
        y_baseline,
        *,
        gene_names=None,
        alpha=0.05,
        fdr=0.05,
        groups=None,
        compat=None,
        kind="sorted",
        n_labels=5,
        highlight=(),
        ax=None,
    ):
        """
        Test predictions and draw the genes.

        Parameters
        ----------
        y_true : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
            True expression of samples the model has not seen.
        y_pred : array-like or DataFrame of the same shape
            Predictions.
        y_baseline : array-like or DataFrame of the same shape, or None
            Predictions of the baseline; None takes the mean of `y_true`.
        gene_names, alpha, fdr, groups, compat : object
            As in :func:`~sklearn_pk.metrics.significance_report`.
        kind, n_labels, highlight, ax : object
            As in :meth:`plot`.

        Returns
        -------
        display : SignificanceDisplay
            The plotted display.

        Raises
        ------
        ValueError
            As :func:`~sklearn_pk.metrics.significance_report`, or if a gene to highlight is
            not in the tables.
        """
        report = significance_report(
            y_true,
            y_pred,
            y_baseline,
            gene_names=gene_names,
            alpha=alpha,
            fdr=fdr,
            groups=groups,
            compat=compat,
        )
        plot = {"kind": kind, "n_labels": n_labels, "highlight": highlight, "ax": ax}
        return cls.from_report(report, alpha=alpha, fdr=fdr, **plot)

    @classmethod
    def from_estimator(cls, estimator, X, y, **parameters):
        """
        Test the predictions of a fitted estimator and draw the genes.

        Parameters
        ----------
        estimator : estimator
            Fitted regressor, or a Pipeline or search that ends in one. Its baseline is
            ``predict_untrained`` if it has one, and otherwise the mean of `y`.
        X : sequence or array of n_samples
            Samples the estimator has not seen.
        y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
            Their true expression.
        **parameters : dict
            Keyword parameters of :meth:`from_predictions`.

        Returns
        -------
        display : SignificanceDisplay
            The plotted display.

        Raises
        ------
        ValueError
            As :meth:`from_predictions`.
        """
        return cls.from_predictions(y, *predict_with_untrained(estimator, X), **parameters)

    def plot(self, ax=None, *, kind="sorted", n_labels=5, highlight=()):
        """
        Draw the genes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure. Gene names are at the right of the axes
            and the legend below, so in a figure with several axes use
            ``plt.subplots(layout="constrained")``.
        kind : {"sorted", "volcano"}, default="sorted"
            "sorted" draws r of all genes in ascending order, with the baseline's r of the same
            genes. "volcano" draws the p-value of Steiger's test over r. If the baseline is the
            mean, there is no such test, and "volcano" draws the p-value of r itself, which
            depends on r alone. For a report with a calibrated null, both draw r within folds, and
            "volcano" its p-value.
        n_labels : int, default=5
            Number of significant genes to label, those with the largest r.
        highlight : str or sequence of str, default=()
            Genes to mark and label.

        Returns
        -------
        display : SignificanceDisplay
            The display itself.

        Raises
        ------
        ValueError
            If `kind` is unknown, or a gene to highlight is not in the report.
        """
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}.")
        marked = self._find(highlight)
        ax = set_axes(self, ax, (6.8, 5.4))
        self.ceiling_ = self.baseline_ = self.highlighted_ = None
        self.levels_ = []
        r = self.report["r_fold" if self._calibrated else "r"].to_numpy()
        x, y = self._draw_volcano(r) if kind == "volcano" else self._draw_sorted(r)
        if marked.any():
            self.highlighted_ = ax.scatter(
                x[marked], y[marked], s=70, marker="D", facecolor="none", edgecolor=_MARKED, lw=1.5
            )
            self.highlighted_.set_label("highlighted")
        significant = self.report["significant"].to_numpy(dtype=bool)
        best = np.flatnonzero(significant)[np.argsort(-r[significant], kind="stable")][:n_labels]
        self._label(x, y, marked, np.union1d(best, np.flatnonzero(marked)))
        ax.set_title(
            f"{significant.sum():,} of {_plural(len(r))} significant, median r = {np.median(r):.2f}"
        )
        ax.spines[["top", "right"]].set_visible(False)
        # Below the axis label, where it does not hide genes.
        legend = ax.legend(
            frameon=False,
            fontsize="small",
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            borderaxespad=4.5,
        )
        for handle in legend.legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([30])  # the points may be tiny
        return self

    def _find(self, highlight):
        names = [highlight] if isinstance(highlight, str) else list(highlight)
        unknown = [name for name in names if name not in self.report.index]
        if unknown:
            raise ValueError(
                f"highlight must contain genes of the report, got {unknown}; its first genes are "
                f"{self.report.index[:3].tolist()}.{did_you_mean(unknown, self.report.index)}"
            )
        return self.report.index.isin(names)

    def _draw_volcano(self, r):
        test = "Pearson" if self._against_mean else "Steiger"
        test = "Calibrated" if self._calibrated else test
        levels = {f"{test} p = {self.alpha:g}": self.alpha}
        corrected = _corrected_level(self._p, self._corrected, self.fdr)
        if corrected is not None and corrected < self.alpha:
            levels[f"{test} FDR = {self.fdr:g}"] = corrected
        for (label, level), style in zip(levels.items(), ("--", ":"), strict=False):
            self._draw_level(self.ax_.axhline, -np.log10(level), label, style)
        if not self._against_mean:  # otherwise equal to the level of p
            self._draw_critical_r(self.ax_.axvline)
        underflow = self._p == 0
        y = -np.log10(np.where(underflow, 1.0, self._p))
        top = 1.08 * max(y.max(), *-np.log10(list(levels.values())), 1.0)
        y[underflow] = top
        self._draw_genes(r, y, underflow)
        self.ax_.set_ylim(-0.03 * top, 1.04 * top)
        within = " within folds" if self._calibrated else ""
        self.ax_.set_xlabel(f"Pearson r of truth and prediction{within}")
        what = "Pearson's r" if self._against_mean else "Steiger's test against the baseline"
        what = "calibrated test of r" if self._calibrated else what
        self.ax_.set_ylabel(rf"$-\log_{{10}}$ p, {what}")
        return r, y

    def _draw_sorted(self, r):
        x = np.empty(len(r))
        x[np.argsort(r, kind="stable")] = np.arange(1, len(r) + 1)
        self._draw_level(self.ax_.axhline, 0, None, "-")
        if not self._against_mean:
            self.baseline_ = self.ax_.scatter(
                x,
                self.report["r_baseline"],
                s=self._size() / 2,
                color=_BASELINE,
                marker="x",
                lw=0.6,
                rasterized=len(r) > RASTERIZED,
                label="baseline, same gene",
            )
        self._draw_critical_r(self.ax_.axhline)
        self._draw_genes(x, r, np.zeros(len(r), dtype=bool))
        self.ax_.set_xlabel("Genes, sorted by r")
        self.ax_.set_ylabel("Pearson r of truth and prediction")
        self.ax_.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        self.ax_.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        margin = 0.5 + 0.02 * len(r)
        self.ax_.set_xlim(1 - margin, len(r) + margin)
        return x, r

    def _draw_critical_r(self, draw):
        r = _critical_r(self.report["r"].to_numpy(), self.report["p"].to_numpy(), self.alpha)
        if r is not None and not self._calibrated:
            self._draw_level(draw, r, f"Pearson p = {self.alpha:g} (r = {r:.2f})", "-.")

    def _draw_level(self, draw, position, label, style):
        line = draw(position, color=GREY, ls=style, lw=0.8, label=label, zorder=0)
        if label is not None:
            self.levels_.append(line)

    def _size(self):
        """Return the area of a point, which decreases with the number of genes."""
        return float(np.clip(400 / np.sqrt(len(self.report)), 4, 28))

    def _draw_genes(self, x, y, underflow):
        significant = self.report["significant"].to_numpy(dtype=bool)
        filled, edges = (np.where(significant, _COLOR, other) for other in ("none", _HOLLOW))

        def scatter(group, size, label, marker="o"):
            shown = group & (underflow if marker == "^" else ~underflow)
            return self.ax_.scatter(
                x[shown],
                y[shown],
                s=size,
                c=filled[shown],
                edgecolor=edges[shown],
                lw=0.6,
                marker=marker,
                rasterized=len(x) > RASTERIZED,
                label=f"{label} ({_plural(group.sum())})" if shown.any() else None,
            )

        size = self._size()
        self.not_significant_ = scatter(~significant, 0.7 * size, "not significant")
        self.significant_ = scatter(significant, 1.4 * size, "significant")
        if underflow.any():
            self.ceiling_ = scatter(underflow, 36, "p below the range of floats", "^")

    def _label(self, x, y, marked, genes):
        """Write names in a column at the right of the axes, with lines to the genes."""
        ax = self.ax_
        low, high = ax.get_ylim()
        genes = genes[np.argsort(y[genes], kind="stable")]
        height = ax.get_window_extent().height * 72 / ax.figure.dpi
        # Many names are scaled down to the height of the axes.
        size = min(_LABEL_SIZE, height / (_LINE * max(1, len(genes))))
        heights = _spread((y[genes] - low) / (high - low), _LINE * size / height, 1.0)
        # From the left edge of a name, so that lines do not cross names.
        leader = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 1, "relpos": (0, 0.5)}
        self.labels_ = [
            ax.annotate(
                str(self.report.index[gene]),
                (x[gene], y[gene]),
                (1.03, height),
                textcoords="axes fraction",
                va="center",
                fontsize=size,
                fontweight="bold" if marked[gene] else "normal",
                color=_MARKED if marked[gene] else "black",
                arrowprops=leader,
            )
            for gene, height in zip(genes, heights, strict=True)
        ]
