"""The neighbourhood of one gene in a co-expression graph."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Mapping
from numbers import Integral

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from scipy import sparse
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.pipeline import Pipeline

from ._colors import GREY, OKABE_ITO
from ._slide import color_limits, draw_color_bar, fit_title

_NODE, _CENTRE = OKABE_ITO[:2]
_NO_VALUE = "0.85"
_LINE = 1.3  # room of a name, in heights of its letters
_STROKE = [withStroke(linewidth=3, foreground="white")]


class GeneGraphDisplay:
    """
    The neighbourhood of one gene in a co-expression graph.

    Build it with :meth:`from_estimator` or :meth:`from_graph`. The gene is in the middle, its
    neighbours are on a circle around it, those with the same edges side by side.

    Parameters
    ----------
    genes : array-like of shape (n,)
        Names of the genes to show; the first one is in the middle.
    weights : array-like of shape (n, n)
        Weights of the edges between them, at least 0; symmetric, 0 where there is none. Genes
        without an edge to the first one get grey names.
    degree : int, default=None
        Number of neighbours the first gene has in the whole graph, for the title; None counts
        those in `weights`.
    values : array-like of shape (n,), default=None
        A number for each gene, for its colour; NaN where it has none. None draws all alike.
    value_name : str, default="value"
        What the values are, for the colour bar.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the graph.
    figure_ : matplotlib Figure
        Figure that holds the axes.
    nodes_ : matplotlib PathCollection
        The genes, in the order of `genes`.
    edges_ : matplotlib LineCollection
        The edges, those of the gene in the middle last.
    labels_ : list of matplotlib Text
        The names, in the order of `genes`.
    colorbar_ : matplotlib Colorbar or None
        The colour bar, if there are values.

    See Also
    --------
    SignificanceDisplay : Shows all genes of a report.
    sklearn_pk.prior.CoexpressionGraph : Makes the graph.
    sklearn_pk.metrics.neighborhood_preservation : How much of a graph embeddings keep.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_pk.datasets import load_brca_expression
    >>> from sklearn_pk.plotting import GeneGraphDisplay
    >>> from sklearn_pk.prior import CoexpressionGraph
    >>> graph = CoexpressionGraph(threshold=0.85).fit(load_brca_expression().expression.T)
    >>> display = GeneGraphDisplay.from_estimator(graph, "PLIN1")
    >>> display.ax_.get_title()
    'PLIN1: 29 neighbours, 20 shown'
    """

    def __init__(self, genes, weights, *, degree=None, values=None, value_name="value"):
        self.genes = genes
        self.weights = weights
        self.degree = degree
        self.values = values
        self.value_name = value_name

    @classmethod
    def from_estimator(cls, estimator, gene, **options):
        """
        Draw the neighbourhood of a gene in the graph of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted CoexpressionGraph, a Pipeline that holds one, or a regressor or search whose
            fitted prior does.
        gene : str or int
            The gene: its name, or its position where the graph knows no names.
        **options : object
            Passed to :meth:`from_graph`: how many neighbours to show, the axes and so on.

        Returns
        -------
        display : GeneGraphDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If the estimator holds no fitted graph.
        ValueError
            If the gene is not in the graph.
        """
        found = _find_fitted(estimator)
        if found is None:
            raise TypeError(
                "estimator must be a fitted CoexpressionGraph, or hold one as a step of a "
                f"Pipeline or of its prior; an instance of {type(estimator).__name__} has none. Of "
                "a cross-validated result, pass one of its estimators."
            )
        names = getattr(found, "gene_names_in_", np.arange(found.graph_.shape[0]))
        return cls.from_graph(found.graph_, names, gene, **options)

    @classmethod
    def from_graph(
        cls,
        graph,
        gene_names,
        gene,
        *,
        n_neighbors=20,
        hops=1,
        values=None,
        value_name=None,
        ax=None,
        **style,
    ):
        """
        Draw the neighbourhood of a gene in a graph.

        Parameters
        ----------
        graph : sparse array or ndarray of shape (n_genes, n_genes)
            Symmetric adjacency, edge weights as values. Of negative weights the absolute value
            counts; self loops do not.
        gene_names : array-like of shape (n_genes,)
            Names of the genes.
        gene : str or int
            The gene, one of `gene_names`.
        n_neighbors : int, default=20
            Largest number of other genes to show: those with the heaviest edges and, among
            equal weights, those that share most neighbours with the gene.
        hops : {1, 2}, default=1
            With 2, genes two edges away fill up the places that neighbours leave, those that
            share most neighbours with the gene first. Their names are grey.
        values : Series or dict, default=None
            A number for each gene, for its colour, such as ``report["r"]`` of
            :func:`~sklearn_pk.metrics.significance_report`. Genes it does not have are grey.
        value_name : str, default=None
            What the values are, for the colour bar; None takes the name of the Series.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **style : object
            Passed to :meth:`plot`.

        Returns
        -------
        display : GeneGraphDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            If `values` is neither a Series nor a mapping.
        ValueError
            If the gene is not in the graph, shapes do not fit, or a parameter is out of range.
        """
        graph, names = _check_graph(graph, gene_names)
        _check_counts(n_neighbors, hops)
        centre = _find_position(gene, names)
        neighbors, others = _neighborhood(graph, centre, n_neighbors, hops)
        members = np.concatenate([[centre], neighbors[:n_neighbors], others]).astype(int)
        weights = _rows(graph, members)[:, members].toarray()
        genes = names[members]
        if values is not None:
            values, default = _values_of(values, genes)
            value_name = value_name or default
        display = cls(
            genes,
            np.maximum(weights, weights.T),
            degree=len(neighbors),
            values=values,
            value_name=value_name or "value",
        )
        return display.plot(ax, **style)

    def plot(self, ax=None, *, cmap="viridis", vmin=None, vmax=None, fontsize=9):
        """
        Draw genes, edges, names and colour bar.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        cmap : str or matplotlib Colormap, default="viridis"
            Colours from low to high values.
        vmin, vmax : float, default=None
            Values at both ends of the colours; None takes the lowest and highest one shown.
        fontsize : float, default=9
            Largest size of the names in points. They are smaller where they would overlap.

        Returns
        -------
        display : GeneGraphDisplay
            The display itself.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        weights, values = self._check()
        if ax is None:
            _, ax = plt.subplots(figsize=(6.6, 6), layout="constrained")
        ax.set_axis_off()
        # The axes keep their place, so that the layout knows where the colour bar ends.
        ax.set_aspect("equal", adjustable="datalim")
        places = _places(weights)
        self.nodes_ = self._draw_nodes(ax, places, values, cmap, vmin, vmax)
        self.colorbar_ = None
        if values is not None and len(values) > 1:
            missing = " (grey: no value)" if np.isnan(values).any() else ""
            self.colorbar_ = draw_color_bar(ax, self.nodes_, f"{self.value_name}{missing}")
        size, gap, radius, half = self._fit_circle(ax, fontsize)
        ax.margins(0)
        ax.update_datalim([(-half / radius,) * 2, (half / radius,) * 2])
        ax.autoscale_view()
        scale = min(1.0, np.sqrt(radius / 140))
        self.nodes_.set_sizes((scale * np.array([15.0] + [9.0] * (len(places) - 1))) ** 2)
        self.edges_ = ax.add_collection(_edge_lines(weights, places, scale), autolim=False)
        self.labels_ = self._draw_labels(ax, places, weights[0] > 0, size, gap)
        fit_title(ax, [str(self.genes[0]), self._title(weights)])
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _check(self):
        weights, n_genes = np.asarray(self.weights, dtype=np.float64), len(self.genes)
        if weights.shape != (n_genes, n_genes):
            raise ValueError(
                f"weights must have the shape ({n_genes}, {n_genes}), one row and one column a "
                f"gene, got {weights.shape}."
            )
        if self.values is None:
            return weights, None
        values = np.asarray(self.values, dtype=np.float64)
        if values.shape != (n_genes,) or np.isnan(values).all():
            raise ValueError(f"values must hold a number for each of the {n_genes} genes.")
        return weights, values

    def _fit_circle(self, ax, fontsize):
        """Return size and distance of names, radius of the circle and half the axes, in points."""
        box = ax.get_window_extent()
        half = min(box.width, box.height) * 36 / ax.figure.dpi
        gap = min(8.0, half / 12)
        others = [str(gene) for gene in self.genes[1:]]
        if not others:
            return fontsize, gap, half, half
        # Widths in ems. Names stick out of the circle like rays, and must fit side by side and
        # leave the inner 40 % to the circle.
        length = max(TextPath((0, 0), name, size=100).get_extents().x1 for name in others) / 100
        beside = 2 * np.pi * half / (_LINE * len(others) + 2 * np.pi * length)
        size = min(fontsize, beside, (0.6 * half - gap) / length)
        return size, gap, half - 1.2 * gap - size * length, half

    def _draw_nodes(self, ax, places, values, cmap, vmin, vmax):
        style = {"edgecolor": "white", "linewidth": 0.8, "zorder": 3}
        if values is None:
            style["color"] = [_CENTRE] + [_NODE] * (len(places) - 1)
        else:
            limits = color_limits(values[np.isfinite(values)], vmin, vmax)
            style |= {"c": values, "norm": Normalize(*limits), "plotnonfinite": True}
            style["cmap"] = mpl.colormaps.get_cmap(cmap).with_extremes(bad=_NO_VALUE)
            style |= {"edgecolor": "black", "linewidth": [2.0] + [0.5] * (len(places) - 1)}
        return ax.scatter(*places.T, **style)

    def _draw_labels(self, ax, places, connected, size, gap):
        style = {"textcoords": "offset points", "fontsize": size, "zorder": 4}
        centre = ax.annotate(
            str(self.genes[0]),
            places[0],
            (0, -1.2 * gap),
            ha="center",
            va="top",
            weight="bold",
            path_effects=_STROKE,
            **style,
        )
        labels = [centre]
        style |= {"rotation_mode": "anchor", "va": "center"}
        for gene, place, near in zip(self.genes[1:], places[1:], connected[1:], strict=True):
            left = place[0] < -1e-9
            angle = np.degrees(np.arctan2(place[1], place[0])) + 180 * left
            labels.append(
                ax.annotate(
                    str(gene),
                    place,
                    place * gap,
                    ha="right" if left else "left",
                    rotation=angle,
                    color="black" if near else GREY,
                    **style,
                )
            )
        return labels

    def _title(self, weights):
        shown = np.count_nonzero(weights[0])
        degree, further = self.degree or shown, len(weights) - 1 - shown
        if not degree:
            return "no edges"
        text = f"{degree} neighbour{'s' if degree > 1 else ''}"
        if shown < degree:
            text += f", {shown} shown"
        return f"{text}, {further} genes two edges away" if further else text


def _find_fitted(estimator):
    """Return the part of an estimator that has a graph, None where there is none."""
    if hasattr(estimator, "graph_"):
        return estimator
    parts = [getattr(estimator, name, None) for name in ("best_estimator_", "prior_")]
    if isinstance(estimator, Pipeline):
        parts += [step for _, step in estimator.steps]
    found = (_find_fitted(part) for part in parts if part is not None)
    return next((part for part in found if part is not None), None)


def _check_graph(graph, gene_names):
    graph = graph.tocsr() if sparse.issparse(graph) else np.asarray(graph)
    names = pd.Index(gene_names)
    if graph.shape != (len(names), len(names)):
        raise ValueError(
            f"graph must have one row and one column for each of the {len(names)} gene_names, got "
            f"the shape {graph.shape}."
        )
    if not names.is_unique:
        raise ValueError(
            f"gene_names must be unique, but {names[names.duplicated()][0]!r} appears more than "
            "once."
        )
    return graph, names


def _check_counts(n_neighbors, hops):
    if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, Integral) or n_neighbors < 1:
        raise ValueError(f"n_neighbors must be an int of at least 1, got {n_neighbors!r}.")
    if hops not in (1, 2):
        raise ValueError(f"hops must be 1 or 2, got {hops!r}.")


def _find_position(gene, names):
    if gene not in names:
        raise ValueError(
            f"gene must be one of the {len(names)} genes of the graph, such as "
            f"{names[:3].tolist()}; got {gene!r}."
        )
    return names.get_loc(gene)


def _rows(graph, positions):
    """Return absolute weights of a few rows without self loops; the rest is not touched."""
    rows = abs(sparse.csr_array(graph[positions], dtype=np.float64))
    if not np.isfinite(rows.data).all():
        raise ValueError("graph must hold finite weights, got NaN or infinity.")
    owners = np.repeat(positions, np.diff(rows.indptr))
    rows.data[rows.indices == owners] = 0
    rows.eliminate_zeros()
    return rows


def _neighborhood(graph, centre, n_neighbors, hops):
    """Return all neighbours, the strongest first, and the genes beyond them to be shown."""
    row = _rows(graph, np.array([centre]))
    neighbors = row.indices
    paths = _rows(graph, neighbors) != 0
    # In a symmetric graph, a gene shares as many neighbours as there are paths of two edges.
    shared = np.asarray(paths.sum(axis=0)).ravel()
    order = np.lexsort((neighbors, -shared[neighbors], -row.data))
    n_left = n_neighbors - len(neighbors)
    if hops == 1 or n_left <= 0:
        return neighbors[order], []
    shared[neighbors] = shared[centre] = 0
    further = np.argsort(-shared, kind="stable")[:n_left]
    return neighbors[order], further[shared[further] > 0]


def _values_of(values, genes):
    if not isinstance(values, pd.Series | Mapping):
        raise TypeError(
            "values must be a Series or a dict by gene, got an instance of "
            f"{type(values).__name__}."
        )
    series = pd.Series(values)
    if not series.index.is_unique:
        raise ValueError("values must name each gene once, but its index has duplicates.")
    chosen = series.reindex(genes).to_numpy(dtype=np.float64)
    if np.isnan(chosen).all():
        raise ValueError(
            f"values has no number for any gene shown, such as {genes[0]!r}; its genes are such "
            f"as {series.index[:3].tolist()}."
        )
    return chosen, series.name


def _places(weights):
    """Place the first gene in the middle, the others on a circle, alike ones side by side."""
    places = np.zeros((len(weights), 2))
    others = weights[1:, 1:] / (weights.max() or 1)
    order = np.arange(len(others))
    if len(others) > 2:
        profiles = others + np.eye(len(others))
        order = leaves_list(linkage(profiles, "average", optimal_ordering=True))
    angles = np.empty(len(others))
    angles[order] = -2 * np.pi * np.arange(len(others)) / max(1, len(others))
    places[1:] = np.column_stack([np.cos(angles), np.sin(angles)])
    return places


def _edge_lines(weights, places, scale):
    """Draw edges as curves that bend inwards, the stronger the wider and darker."""
    first, second = np.nonzero(np.triu(weights, 1))
    order = np.argsort(first == 0, kind="stable")
    first, second = first[order], second[order]
    strength = weights[first, second]
    spread = np.ptp(strength) if len(strength) else 0
    strength = (strength - strength.min()) / spread if spread else np.ones(len(strength))
    spokes = first == 0
    t = np.linspace(0, 1, 24)[:, np.newaxis]
    starts, ends = places[first][:, np.newaxis], places[second][:, np.newaxis]
    bends = np.where(spokes[:, np.newaxis, np.newaxis], 0.5, 0.3) * (starts + ends)
    curves = (1 - t) ** 2 * starts + 2 * t * (1 - t) * bends + t**2 * ends
    # Where there are many, each is fainter.
    density = min(1.0, 2 * len(weights) / max(1, np.count_nonzero(~spokes)))
    alpha = np.where(spokes, 0.9, 0.6 * np.sqrt(density)) * (0.25 + 0.75 * strength)
    grey = np.where(spokes, 0.25, 0.55)
    colors = np.column_stack([grey, grey, grey, alpha])
    return LineCollection(
        curves, colors=colors, linewidths=scale * (0.4 + 1.4 * strength), zorder=1
    )
