"""The neighbourhood of one gene in a co-expression graph."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Mapping
from numbers import Integral

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from scipy import sparse
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.pipeline import Pipeline

from ..utils._validation import did_you_mean
from ._slide import color_limits, draw_color_bar, fit_title
from ._style import GREY, OKABE_ITO, set_axes

_NODE, _CENTRE, _EXTERNAL = OKABE_ITO[:3]
_NO_VALUE = "0.85"
_LINE = 1.3  # line spacing of names, in font heights
_STROKE = [withStroke(linewidth=3, foreground="white")]


class GeneGraphDisplay:
    """
    The neighbourhood of one gene in a co-expression graph.

    Build it with :meth:`from_estimator` or :meth:`from_graph`. The gene is in the centre and its
    neighbours on a circle around it, such that those with similar edges are adjacent.

    Parameters
    ----------
    genes : array-like of shape (n,)
        Names of the genes to show; the first one is in the centre.
    weights : array-like of shape (n, n)
        Weights of the edges between them: symmetric, non-negative, 0 without an edge. The names
        of genes without an edge to the first gene are grey.
    degree : int, default=None
        Number of neighbours of the first gene in the whole graph, for the title; None counts
        those in `weights`.
    values : array-like of shape (n,), default=None
        Value of each gene, for its colour, or NaN. None draws all genes in the same colour.
    value_name : str, default="value"
        Name of the values, for the colour bar.
    external : array-like of shape (n, n), bool, default=None
        Which of the edges come from an external source, such as gene sets. They are drawn in
        another colour than those that are found in expression only.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the graph.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    nodes_ : matplotlib PathCollection
        The genes, in the order of `genes`.
    edges_ : matplotlib LineCollection
        The edges, with those of the centre gene last.
    labels_ : list of matplotlib Text
        The names, in the order of `genes`.
    colorbar_ : matplotlib Colorbar or None
        The colour bar, if there are values.
    legend_ : matplotlib Legend or None
        Names of the sources of the edges, if `external` is given.

    See Also
    --------
    SignificanceDisplay : Shows all genes of a report.
    sklearn_pk.prior.CoexpressionGraph : Builds the graph.
    sklearn_pk.metrics.neighborhood_preservation : How well embeddings preserve a graph.

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

    def __init__(
        self, genes, weights, *, degree=None, values=None, value_name="value", external=None
    ):
        self.genes = genes
        self.weights = weights
        self.degree = degree
        self.values = values
        self.value_name = value_name
        self.external = external

    @classmethod
    def from_estimator(cls, estimator, gene, **options):
        """
        Draw the neighbourhood of a gene in the graph of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted CoexpressionGraph, a Pipeline that contains one, or a regressor or search with
            such a fitted prior.
        gene : str or int
            The gene: its name, or its position if the graph has no names.
        **options : object
            Passed to :meth:`from_graph`, such as the number of neighbours and the axes.

        Returns
        -------
        display : GeneGraphDisplay
            The plotted display.

        Raises
        ------
        TypeError
            If the estimator contains no fitted graph.
        ValueError
            If the gene is not in the graph.
        """
        found = _find_fitted(estimator)
        if found is None:
            raise TypeError(
                "estimator must be a fitted CoexpressionGraph, or contain one as a step of a "
                f"Pipeline or of its prior, got an instance of {type(estimator).__name__}. For a "
                "cross-validation result, pass one of its estimators."
            )
        names = getattr(found, "gene_names_in_", np.arange(found.graph_.shape[0]))
        external = getattr(found, "external_graph_", None)
        if external is not None and external.nnz < found.graph_.nnz:  # there are others, too
            options = {"external_graph": external} | options
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
        external_graph=None,
        ax=None,
        **style,
    ):
        """
        Draw the neighbourhood of a gene in a graph.

        Parameters
        ----------
        graph : sparse array or ndarray of shape (n_genes, n_genes)
            Symmetric adjacency matrix with edge weights as values. For negative weights, the
            absolute value is used; self loops are ignored.
        gene_names : array-like of shape (n_genes,)
            Names of the genes.
        gene : str or int
            The gene, one of `gene_names`.
        n_neighbors : int, default=20
            Maximum number of other genes to show: those with the heaviest edges and, among
            equal weights, those with the most common neighbours.
        hops : {1, 2}, default=1
            With 2, genes two edges away are added up to `n_neighbors`, those with the most common
            neighbours first. Their names are grey.
        values : Series or dict, default=None
            Value of each gene, for its colour, such as ``report["r"]`` of
            :func:`~sklearn_pk.metrics.significance_report`. Genes without a value are grey.
        value_name : str, default=None
            Name of the values, for the colour bar; None takes the name of the Series.
        external_graph : sparse array or ndarray of shape (n_genes, n_genes), default=None
            The edges of `graph` that come from an external source, to draw them in another
            colour.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.
        **style : object
            Passed to :meth:`plot`.

        Returns
        -------
        display : GeneGraphDisplay
            The plotted display.

        Raises
        ------
        TypeError
            If `values` is neither a Series nor a mapping.
        ValueError
            If the gene is not in the graph, shapes do not match, or a parameter is out of range.
        """
        graph, names = _check_graph(graph, gene_names)
        _check_counts(n_neighbors, hops)
        centre = _find_position(gene, names)
        neighbors, others = _neighborhood(graph, centre, n_neighbors, hops)
        members = np.concatenate([[centre], neighbors[:n_neighbors], others]).astype(int)
        weights = _rows(graph, members)[:, members].toarray()
        genes, external = names[members], None
        if external_graph is not None:
            external_graph, _ = _check_graph(external_graph, gene_names)
            external = _rows(external_graph, members)[:, members].toarray() > 0
        if values is not None:
            values, default = _values_of(values, genes)
            value_name = value_name or default
        display = cls(
            genes,
            np.maximum(weights, weights.T),
            degree=len(neighbors),
            values=values,
            value_name=value_name or "value",
            external=external,
        )
        return display.plot(ax, **style)

    def plot(self, ax=None, *, cmap="viridis", vmin=None, vmax=None, fontsize=9):
        """
        Draw genes, edges, names and colour bar.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.
        cmap : str or matplotlib Colormap, default="viridis"
            Colour map of the values.
        vmin, vmax : float, default=None
            Limits of the colour map; None takes the lowest and highest value shown.
        fontsize : float, default=9
            Maximum font size of the names in points; smaller if they would overlap.

        Returns
        -------
        display : GeneGraphDisplay
            The display itself.

        Raises
        ------
        ValueError
            If shapes do not match.
        """
        weights, values = self._check()
        ax = set_axes(self, ax, (6.6, 6))
        ax.set_axis_off()
        # The axes keep their extent, so that the layout accounts for the colour bar.
        ax.set_aspect("equal", adjustable="datalim")
        points = _circular_layout(weights)
        self.nodes_ = self._draw_nodes(ax, points, values, cmap, vmin, vmax)
        self.colorbar_ = None
        if values is not None and len(values) > 1:
            missing = " (grey: no value)" if np.isnan(values).any() else ""
            self.colorbar_ = draw_color_bar(ax, self.nodes_, f"{self.value_name}{missing}")
        size, gap, radius, half = self._fit_circle(ax, fontsize)
        ax.margins(0)
        ax.update_datalim([(-half / radius,) * 2, (half / radius,) * 2])
        ax.autoscale_view()
        scale = min(1.0, np.sqrt(radius / 140))
        self.nodes_.set_sizes((scale * np.array([15.0] + [9.0] * (len(points) - 1))) ** 2)
        external = None if self.external is None else np.asarray(self.external, dtype=bool)
        lines = _edge_lines(weights, points, scale, external)
        self.edges_ = ax.add_collection(lines, autolim=False)
        self.legend_ = None if external is None else _draw_sources(ax, weights, external)
        self.labels_ = self._draw_labels(ax, points, weights[0] > 0, size, gap)
        fit_title(ax, [str(self.genes[0]), self._title(weights)])
        return self

    def _check(self):
        weights, n_genes = np.asarray(self.weights, dtype=np.float64), len(self.genes)
        if weights.shape != (n_genes, n_genes):
            raise ValueError(
                f"weights must have the shape ({n_genes}, {n_genes}), one row and one column per "
                f"gene, got {weights.shape}."
            )
        if self.external is not None and np.shape(self.external) != weights.shape:
            raise ValueError(
                f"external must have the shape of weights, {weights.shape}, got "
                f"{np.shape(self.external)}."
            )
        if self.values is None:
            return weights, None
        values = np.asarray(self.values, dtype=np.float64)
        if values.shape != (n_genes,) or np.isnan(values).all():
            raise ValueError(f"values must have a number for each of the {n_genes} genes.")
        return weights, values

    def _fit_circle(self, ax, fontsize):
        """Return font size and distance of names, and radii of circle and axes, in points."""
        box = ax.get_window_extent()
        half = min(box.width, box.height) * 36 / ax.figure.dpi
        gap = min(8.0, half / 12)
        others = [str(gene) for gene in self.genes[1:]]
        if not others:
            return fontsize, gap, half, half
        # Radial names must fit side by side around the circle, which takes at least 40 % of the
        # radius. The length is in ems.
        length = max(TextPath((0, 0), name, size=100).get_extents().x1 for name in others) / 100
        beside = 2 * np.pi * half / (_LINE * len(others) + 2 * np.pi * length)
        size = min(fontsize, beside, (0.6 * half - gap) / length)
        return size, gap, half - 1.2 * gap - size * length, half

    def _draw_nodes(self, ax, points, values, cmap, vmin, vmax):
        style = {"edgecolor": "white", "linewidth": 0.8, "zorder": 3}
        if values is None:
            style["color"] = [_CENTRE] + [_NODE] * (len(points) - 1)
        else:
            limits = color_limits(values[np.isfinite(values)], vmin, vmax)
            style |= {"c": values, "norm": Normalize(*limits), "plotnonfinite": True}
            style["cmap"] = mpl.colormaps.get_cmap(cmap).with_extremes(bad=_NO_VALUE)
            style |= {"edgecolor": "black", "linewidth": [2.0] + [0.5] * (len(points) - 1)}
        return ax.scatter(*points.T, **style)

    def _draw_labels(self, ax, points, connected, size, gap):
        style = {"textcoords": "offset points", "fontsize": size, "zorder": 4}
        centre = ax.annotate(
            str(self.genes[0]),
            points[0],
            (0, -1.2 * gap),
            ha="center",
            va="top",
            weight="bold",
            path_effects=_STROKE,
            **style,
        )
        labels = [centre]
        style |= {"rotation_mode": "anchor", "va": "center"}
        for gene, point, near in zip(self.genes[1:], points[1:], connected[1:], strict=True):
            left = point[0] < -1e-9
            angle = np.degrees(np.arctan2(point[1], point[0])) + 180 * left
            labels.append(
                ax.annotate(
                    str(gene),
                    point,
                    point * gap,
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
    """Return the part of an estimator that has a graph, or None."""
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
            f"shape {graph.shape}."
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
            f"{names[:3].tolist()}, got {gene!r}.{did_you_mean([gene], names)}"
        )
    return names.get_loc(gene)


def _rows(graph, positions):
    """Return the absolute weights of some rows, without self loops."""
    rows = abs(sparse.csr_array(graph[positions], dtype=np.float64))
    if not np.isfinite(rows.data).all():
        raise ValueError("graph must have finite weights, got NaN or infinity.")
    owners = np.repeat(positions, np.diff(rows.indptr))
    rows.data[rows.indices == owners] = 0
    rows.eliminate_zeros()
    return rows


def _neighborhood(graph, centre, n_neighbors, hops):
    """Return all neighbours, the strongest first, and the genes two edges away to show."""
    row = _rows(graph, np.array([centre]))
    neighbors = row.indices
    paths = _rows(graph, neighbors) != 0
    # In a symmetric graph, paths of two edges count the common neighbours.
    common = np.asarray(paths.sum(axis=0)).ravel()
    order = np.lexsort((neighbors, -common[neighbors], -row.data))
    n_left = n_neighbors - len(neighbors)
    if hops == 1 or n_left <= 0:
        return neighbors[order], []
    common[neighbors] = common[centre] = 0
    further = np.argsort(-common, kind="stable")[:n_left]
    return neighbors[order], further[common[further] > 0]


def _values_of(values, genes):
    if not isinstance(values, pd.Series | Mapping):
        raise TypeError(
            "values must be a Series or a dict by gene, got an instance of "
            f"{type(values).__name__}."
        )
    series = pd.Series(values)
    if not series.index.is_unique:
        raise ValueError("values must have each gene once, but its index has duplicates.")
    chosen = series.reindex(genes).to_numpy(dtype=np.float64)
    if np.isnan(chosen).all():
        raise ValueError(
            f"values has no number for any gene shown, such as {genes[0]!r}; its genes are, for "
            f"example, {series.index[:3].tolist()}."
        )
    return chosen, series.name


def _circular_layout(weights):
    """Return points with the first gene in the centre, the others clustered on a circle."""
    points = np.zeros((len(weights), 2))
    others = weights[1:, 1:] / (weights.max() or 1)
    order = np.arange(len(others))
    if len(others) > 2:
        profiles = others + np.eye(len(others))
        order = leaves_list(linkage(profiles, "average", optimal_ordering=True))
    angles = np.empty(len(others))
    angles[order] = -2 * np.pi * np.arange(len(others)) / max(1, len(others))
    points[1:] = np.column_stack([np.cos(angles), np.sin(angles)])
    return points


def _draw_sources(ax, weights, external):
    """Draw a legend with the number of edges of each source."""
    edges = np.triu(weights, 1) > 0
    counts = {"internal only": edges & ~external, "external": edges & external}
    handles = [
        Line2D([], [], color=color, label=f"{name} ({np.count_nonzero(found)} edges)")
        for (name, found), color in zip(counts.items(), ("0.4", _EXTERNAL), strict=True)
    ]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 2}
    return ax.legend(handles=handles, frameon=False, fontsize="small", **below)


def _edge_lines(weights, points, scale, external):
    """Return edges as curves bent inwards; stronger edges are wider and darker."""
    first, second = np.nonzero(np.triu(weights, 1))
    order = np.argsort(first == 0, kind="stable")
    first, second = first[order], second[order]
    strength = weights[first, second]
    spread = np.ptp(strength) if len(strength) else 0
    strength = (strength - strength.min()) / spread if spread else np.ones(len(strength))
    spokes = first == 0
    t = np.linspace(0, 1, 24)[:, np.newaxis]
    starts, ends = points[first][:, np.newaxis], points[second][:, np.newaxis]
    bends = np.where(spokes[:, np.newaxis, np.newaxis], 0.5, 0.3) * (starts + ends)
    curves = (1 - t) ** 2 * starts + 2 * t * (1 - t) * bends + t**2 * ends
    # The more edges, the fainter and thinner, so that the spokes and the external ones stand out.
    density = min(1.0, 2 * len(weights) / max(1, np.count_nonzero(~spokes)))
    alpha = np.where(spokes, 0.9, 0.6 * density**0.75) * (0.25 + 0.75 * strength)
    widths = scale * (0.4 + 1.4 * strength) * np.where(spokes, 1.0, max(0.4, np.sqrt(density)))
    grey = np.where(spokes, 0.25, 0.55)
    colors = np.column_stack([grey, grey, grey, alpha])
    if external is not None:
        colors[external[first, second]] = to_rgba(_EXTERNAL, 0.9)
    return LineCollection(curves, colors=colors, linewidths=widths, zorder=1)
