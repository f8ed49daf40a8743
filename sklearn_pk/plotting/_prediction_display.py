"""Predicted against true expression of one gene."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PathCollection
from scipy import stats

from ..metrics import pearson_by_gene
from ..metrics._correlation import check_same_tables
from ..utils import check_groups
from ..utils._patients import PatientAverager
from ..utils._pipelines import last_estimator
from ._style import GREY, OKABE_ITO, RASTERIZED, find_gene, format_units, set_axes


class PredictionDisplay:
    """
    Predicted against true expression of one gene.

    Build it with :meth:`from_predictions` or :meth:`from_estimator`.

    Parameters
    ----------
    y_true : ndarray of shape (n_samples,)
        True expression of the gene.
    y_pred : ndarray of shape (n_samples,)
        Its prediction.
    gene : str or int, default=None
        Name of the gene, for the title.
    units : str, default=None
        Units of the expression, such as "log2 TPM", for both axes; None shows none.
    of_patients : bool, default=False
        Whether the samples are patients, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the points.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    scatter_ : matplotlib PathCollection
        The points, one per sample.
    line_ : matplotlib Line2D
        The identity line.
    r_ : float
        Pearson correlation, as in the title.
    interval_ : tuple of float
        Its 95 % confidence interval (Fisher's transformation), NaN below 4 samples or if r is
        not defined.

    See Also
    --------
    LambdaPathDisplay : Significant genes over the weight of the prior.
    sklearn_pk.metrics.significance_report : Which genes are predicted significantly.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_pk.plotting import PredictionDisplay
    >>> display = PredictionDisplay.from_predictions([5.0, 6.0, 9.0], [5.5, 6.0, 8.0])
    >>> round(display.r_, 3)
    0.999
    """

    def __init__(self, y_true, y_pred, *, gene=None, units=None, of_patients=False):
        self.y_true = y_true
        self.y_pred = y_pred
        self.gene = gene
        self.units = units
        self.of_patients = of_patients

    @classmethod
    def from_predictions(cls, y_true, y_pred, *, gene=None, units=None, groups=None, ax=None):
        """
        Draw one gene from true and predicted expression.

        Parameters
        ----------
        y_true : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
            True expression.
        y_pred : array-like or DataFrame of the same shape
            Predicted expression.
        gene : str or int, default=None
            The gene to draw: its column name, or its number if there are no names. Required
            if the tables have several genes.
        units : str, default=None
            Units of the expression, such as "log2 TPM", for both axes; None shows none.
        groups : array-like of shape (n_samples,), default=None
            Patient of each sample. If given, the samples of each patient are averaged to one
            point, and n is the number of patients. Slides of one patient are not independent, so
            without `groups` the interval is too narrow if patients have several.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : PredictionDisplay
            The plotted display.

        Raises
        ------
        ValueError
            If the gene is missing, or shapes, gene names or row names differ.
        """
        (true, pred), names = check_same_tables(y_true=y_true, y_pred=y_pred)
        column, name = find_gene(gene, names, true.shape[1])
        pair = _average(true[:, column], pred[:, column], groups, y_true)
        display = cls(*pair, gene=name, units=units, of_patients=groups is not None)
        return display.plot(ax=ax)

    @classmethod
    def from_estimator(cls, estimator, X, y, *, gene=None, units=None, groups=None, ax=None):
        """
        Draw one gene from a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted regressor, or a Pipeline that ends in one.
        X : sequence or array of n_samples
            Samples the estimator has not seen.
        y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
            Their true expression: of all genes the estimator predicts, or of the one to draw.
        gene : str or int, default=None
            The gene to draw: its column name in `y` or, if `y` has none, its name in
            ``gene_names_out_`` of the estimator, or its number if there are no names. None takes
            the name of `y` if that is a Series.
        units : str, default=None
            Units of the expression, such as "log2 TPM", for both axes; None shows none.
        groups : array-like of shape (n_samples,), default=None
            Patient of each sample. If given, the samples of each patient are averaged to one
            point, and n is the number of patients. Slides of one patient are not independent, so
            without `groups` the interval is too narrow if patients have several.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : PredictionDisplay
            The plotted display.

        Raises
        ------
        ValueError
            If the gene is missing, or shapes, gene names or row names differ.
        """
        prediction = np.asarray(estimator.predict(X))
        names = getattr(last_estimator(estimator), "gene_names_out_", None)
        if np.ndim(y) == 1 and prediction.ndim == 2:
            gene = getattr(y, "name", None) if gene is None else gene
            column, gene = find_gene(gene, names, prediction.shape[1])
            (true, pred), _ = check_same_tables(y=y, prediction=prediction[:, column])
            pair = _average(true[:, 0], pred[:, 0], groups, y)
            display = cls(*pair, gene=gene, units=units, of_patients=groups is not None)
            return display.plot(ax=ax)
        if names is not None and prediction.ndim == 2:
            prediction = pd.DataFrame(prediction, columns=names)
        return cls.from_predictions(y, prediction, gene=gene, units=units, groups=groups, ax=ax)

    def plot(self, ax=None, *, scatter_kwargs=None):
        """
        Draw the points and the identity line.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.
        scatter_kwargs : dict, default=None
            Passed to ``Axes.scatter``.

        Returns
        -------
        display : PredictionDisplay
            The display itself.
        """
        ax = set_axes(self, ax, (4.8, 4.8))
        own = normalize_kwargs(scatter_kwargs or {}, PathCollection)
        style = {"alpha": 0.6, "s": 22, "linewidth": 0, "rasterized": len(self.y_true) > RASTERIZED}
        if not {"c", "facecolor"} & own.keys():
            style["color"] = OKABE_ITO[0]
        # Each axis has its own range: predictions vary less than the truth.
        limits = [_range_of(values) for values in (self.y_true, self.y_pred)]
        ends = np.min(limits), np.max(limits)
        (self.line_,) = ax.plot(ends, ends, color=GREY, ls="--", lw=1, label="identity")
        self.scatter_ = ax.scatter(self.y_true, self.y_pred, **(style | own))
        self.r_ = float(pearson_by_gene(self.y_true, self.y_pred)[0])
        varies = np.ptp(self.y_true) > 0 and np.ptp(self.y_pred) > 0
        self.interval_ = _interval_of(self.r_, len(self.y_true) if varies else 0)
        interval = (
            "" if np.isnan(self.interval_[0]) else " [{:.2f}, {:.2f}]".format(*self.interval_)
        )
        n = f"{len(self.y_true)} patients" if self.of_patients else f"{len(self.y_true)}"
        name = "" if self.gene is None else f"{self.gene}: "
        units = format_units(self.units)
        ax.set(
            xlim=limits[0],
            ylim=limits[1],
            xlabel=f"True expression{units}",
            ylabel=f"Predicted expression{units}",
            title=f"{name}r = {self.r_:.2f}{interval}, n = {n}",
        )
        ax.spines[["top", "right"]].set_visible(False)
        return self


def _average(true, pred, groups, y):
    """Return both, averaged to one value per patient if the patients are given."""
    pair = np.column_stack([true, pred])
    return (pair if groups is None else PatientAverager(check_groups(groups, y)) @ pair).T


def _range_of(values):
    low, high = np.min(values), np.max(values)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _interval_of(r, n):
    """Return the 95 % confidence interval of a correlation by Fisher's transformation."""
    if n < 4 or not abs(r) < 1:
        return (np.nan, np.nan)
    half = stats.norm.ppf(0.975) / np.sqrt(n - 3)
    return tuple(float(end) for end in np.tanh(np.arctanh(r) + np.array([-half, half])))
