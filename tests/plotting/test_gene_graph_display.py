"""GeneGraphDisplay draws the right genes and edges, with names that never overlap."""

# SPDX-License-Identifier: BSD-3-Clause

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

from sklearn_pk.plotting import GeneGraphDisplay
from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor


@pytest.fixture(scope="module")
def graph(brca_expression):
    return CoexpressionGraph(threshold=0.85).fit(brca_expression.T)


@pytest.fixture(scope="module")
def correlations(brca_expression):
    """Weighted graph of 1,000 genes, in which some edges are negative."""
    weights = brca_expression.corr().to_numpy().copy()
    weights[np.abs(weights) < 0.5] = 0
    return weights


def names_of(display):
    return [label.get_text() for label in display.labels_]


def edges_of(display):
    """Return pairs of genes by the ends of the lines."""
    points = display.nodes_.get_offsets()
    pairs = set()
    for line in display.edges_.get_segments():
        ends = [int(np.abs(points - end).sum(axis=1).argmin()) for end in (line[0], line[-1])]
        assert_allclose(points[ends], line[[0, -1]], atol=1e-9)
        pairs.add(frozenset(display.genes[end] for end in ends))
    return pairs


def boxes_of(display):
    """Return the corners of the rotated names in a drawn figure."""
    boxes = []
    for label in display.labels_:
        angle = label.get_rotation()
        anchor = label.get_transform().transform(label.get_position())
        turn = np.array([[np.cos(a := np.radians(angle)), -np.sin(a)], [np.sin(a), np.cos(a)]])
        label.set_rotation(0)
        box = label.get_window_extent()
        corners = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)])
        label.set_rotation(angle)
        boxes.append((corners - anchor) @ turn.T + anchor)
    return boxes


def overlapping(boxes):
    """Return the overlapping pairs of rectangles, by the separating axis theorem."""
    boxes = np.asarray(boxes)
    edges = boxes[:, 1:3] - boxes[:, :2]
    # Projections of all corners (b, c) on the two edges e of each rectangle n.
    projected = np.einsum("bcx,nex->nebc", boxes, edges)
    low, high = projected.min(axis=-1), projected.max(axis=-1)
    own = np.arange(len(boxes))
    own_low, own_high = (limit[own, :, own][:, :, np.newaxis] for limit in (low, high))
    apart = ((high <= own_low) | (own_high <= low)).any(axis=1)
    return np.argwhere(np.triu(~(apart | apart.T), 1)).tolist()


def check_no_overlap(display, draw=True):
    if draw:
        display.figure_.draw_without_rendering()
    boxes = boxes_of(display)
    assert overlapping(boxes) == []
    nodes = display.ax_.transData.transform(display.nodes_.get_offsets())
    title = display.ax_.title.get_window_extent()
    for label, box in zip(display.labels_, boxes, strict=True):
        hit = ((nodes >= box.min(axis=0)) & (nodes <= box.max(axis=0))).all(axis=1)
        assert not hit[1:].any() or label.get_rotation() % 90
        assert box[:, 1].max() <= title.y0
        assert (box >= 0).all()
        assert (box <= display.figure_.bbox.size).all()


def test_overlap_is_detected():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    assert overlapping([square, square + 0.5]) == [[0, 1]]
    assert overlapping([square, square + [1.1, 0]]) == []
    diamond = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)]) + [1.8, 1.8]
    assert overlapping([square, diamond]) == []


def test_edges_are_those_of_the_graph(graph):
    display = GeneGraphDisplay.from_estimator(graph, "PLIN1")
    names = graph.gene_names_in_.tolist()
    row = graph.graph_[[names.index("PLIN1")]]
    assert display.ax_.get_title() == f"PLIN1: {row.nnz} neighbours, 20 shown"
    assert names_of(display)[0] == "PLIN1"
    assert len(names_of(display)) == 21
    assert set(names_of(display)[1:]) <= {names[column] for column in row.indices}
    positions = [names.index(name) for name in names_of(display)]
    part = graph.graph_[positions][:, positions].toarray()
    expected = {
        frozenset((names[positions[i]], names[positions[j]])) for i, j in np.argwhere(part) if i < j
    }
    assert edges_of(display) == expected
    assert len(display.edges_.get_segments()) == len(expected)
    points = np.asarray(display.nodes_.get_offsets())
    assert_allclose(points[0], 0)
    assert_allclose(np.linalg.norm(points[1:], axis=1), 1)
    assert display.colorbar_ is None
    colors = display.nodes_.get_facecolors()
    assert len(np.unique(colors[1:], axis=0)) == 1
    assert not np.array_equal(colors[0], colors[1])


def test_strongest_edges_are_shown_and_widest(correlations, brca_expression):
    names = brca_expression.columns
    display = GeneGraphDisplay.from_graph(correlations, names, "CLCA4", n_neighbors=7)
    row = np.abs(correlations[names.get_loc("CLCA4")])
    row[names.get_loc("CLCA4")] = 0
    best = np.argsort(-row)[:7]
    assert names_of(display) == ["CLCA4", *names[best]]
    assert display.ax_.get_title() == f"CLCA4: {np.count_nonzero(row)} neighbours, 7 shown"
    widths = display.edges_.get_linewidths()[-7:]  # edges of the centre gene are last
    assert (np.diff(widths) < 0).all()
    assert (np.diff(display.edges_.get_colors()[-7:, 3]) < 0).all()
    as_sparse = GeneGraphDisplay.from_graph(
        sparse.csc_array(correlations), names, "CLCA4", n_neighbors=7
    )
    assert names_of(as_sparse) == names_of(display)
    assert_allclose(as_sparse.nodes_.get_offsets(), display.nodes_.get_offsets())


def test_ties_are_resolved_by_common_neighbours():
    weights = np.zeros((6, 6))
    for i, j in [(0, 1), (0, 2), (0, 3), (0, 4), (3, 4), (3, 5)]:
        weights[i, j] = weights[j, i] = 1
    np.fill_diagonal(weights, 1)
    display = GeneGraphDisplay.from_graph(weights, list("ABCDEF"), "A", n_neighbors=3)
    assert names_of(display) == ["A", "D", "E", "B"]
    assert display.degree == 4
    assert edges_of(display) == {frozenset(pair) for pair in ("AD", "AE", "AB", "DE")}
    assert_allclose(display.edges_.get_linewidths(), display.edges_.get_linewidths()[0])


def test_similar_genes_are_adjacent():
    weights = np.zeros((9, 9))
    weights[0, 1:] = 1
    for clique in ([1, 3, 5, 7], [2, 4, 6, 8]):
        weights[np.ix_(clique, clique)] = 1
    weights = np.maximum(weights, weights.T)
    np.fill_diagonal(weights, 0)
    display = GeneGraphDisplay.from_graph(weights, range(9), 0)
    points = np.asarray(display.nodes_.get_offsets())[1:]
    order = 1 + np.argsort(np.arctan2(points[:, 1], points[:, 0]))
    assert np.count_nonzero(np.diff(np.append(order, order[0]) % 2)) == 2


def test_genes_two_edges_away():
    weights = np.zeros((7, 7))
    for i, j in [(0, 1), (0, 2), (1, 3), (1, 4), (2, 4), (4, 5), (1, 2)]:
        weights[i, j] = weights[j, i] = 2
    names = list("ABCDEFG")
    display = GeneGraphDisplay.from_graph(weights, names, "A", hops=2)
    assert names_of(display) == ["A", "B", "C", "E", "D"]
    assert display.ax_.get_title() == "A: 2 neighbours, 2 genes two edges away"
    colors = [label.get_color() for label in display.labels_]
    assert colors[:3] == ["black"] * 3
    assert colors[3:] == ["#666666"] * 2
    assert edges_of(display) == {frozenset(p) for p in ("AB", "AC", "BD", "BE", "CE", "BC")}
    three = GeneGraphDisplay.from_graph(weights, names, "A", hops=2, n_neighbors=3)
    assert names_of(three) == ["A", "B", "C", "E"]
    assert names_of(GeneGraphDisplay.from_graph(weights, names, "A")) == ["A", "B", "C"]


def test_gene_without_edges(graph):
    for hops in (1, 2):
        display = GeneGraphDisplay.from_estimator(graph, "CLEC3A", hops=hops)
        assert display.ax_.get_title() == "CLEC3A: no edges"
        assert names_of(display) == ["CLEC3A"]
        assert len(display.edges_.get_segments()) == 0
        check_no_overlap(display)


def test_gene_with_one_edge(graph):
    display = GeneGraphDisplay.from_estimator(graph, "SCGB2A2")
    assert display.ax_.get_title() == "SCGB2A2: 1 neighbour"
    assert edges_of(display) == {frozenset(("SCGB2A2", "SCGB1D2"))}
    check_no_overlap(display)


def test_values_color_the_genes(graph):
    plain = GeneGraphDisplay.from_estimator(graph, "PLIN1")
    genes = names_of(plain)
    r = pd.Series(np.linspace(-0.2, 0.7, 20), index=genes[:20], name="r").sample(
        frac=1, random_state=0
    )
    display = GeneGraphDisplay.from_estimator(graph, "PLIN1", values=r)
    assert display.nodes_.get_clim() == pytest.approx((-0.2, 0.7))
    display.figure_.canvas.draw()
    colors = display.nodes_.get_facecolors()
    assert_allclose(colors[:20], plt.get_cmap("viridis")(display.nodes_.norm(r[genes[:20]])))
    assert_allclose(colors[20], (0.85, 0.85, 0.85, 1))
    assert display.colorbar_.ax.get_ylabel() == "r (grey: no value)"
    display.plot(vmin=-1, vmax=1, cmap="cividis")
    assert display.nodes_.get_clim() == (-1, 1)
    assert display.nodes_.get_cmap().name == "cividis"
    all_known = dict.fromkeys(genes, 1.0)
    display = GeneGraphDisplay.from_estimator(graph, "PLIN1", values=all_known, value_name="fold")
    assert display.colorbar_.ax.get_ylabel() == "fold"
    low, high = display.nodes_.get_clim()
    assert low < 1 < high
    with pytest.raises(ValueError, match="no number for any gene shown, such as 'PLIN1'.*'TP53'"):
        GeneGraphDisplay.from_estimator(graph, "PLIN1", values={"TP53": 1.0})
    with pytest.raises(ValueError, match="each gene once"):
        GeneGraphDisplay.from_estimator(graph, "PLIN1", values=pd.concat([r, r]))
    with pytest.raises(TypeError, match="Series or a dict by gene, got an instance of list"):
        GeneGraphDisplay.from_estimator(graph, "PLIN1", values=[1.0])


@pytest.mark.parametrize("layout", ["constrained", None])
@pytest.mark.parametrize(("n_neighbors", "colored"), [(20, True), (20, False), (50, True)])
def test_names_never_overlap(correlations, brca_expression, layout, n_neighbors, colored):
    names = brca_expression.columns
    values = pd.Series(np.arange(len(names)), index=names) if colored else None
    options = {"n_neighbors": n_neighbors, "values": values}
    figure, ax = plt.subplots(figsize=(6, 6), layout=layout)
    check_no_overlap(GeneGraphDisplay.from_graph(correlations, names, "CLCA4", ax=ax, **options))
    figure, axes = plt.subplots(2, 2, figsize=(8, 7), layout=layout)
    displays = [
        GeneGraphDisplay.from_graph(correlations, names, gene, ax=ax, **options)
        for ax, gene in zip(axes.ravel(), ["CLCA4", "PAK5"] * 2, strict=True)
    ]
    points = []
    figure.draw_without_rendering()
    for display in displays:
        check_no_overlap(display, draw=False)
        corners = np.concatenate(boxes_of(display))
        low, high = corners.min(axis=0), corners.max(axis=0)
        if colored:
            bar = display.colorbar_.ax.get_tightbbox()
            assert high[0] <= bar.x0
            high = np.maximum(high, bar.max)
        assert high[0] <= figure.bbox.x1
        for other_low, other_high in points:
            assert (low >= other_high).any() or (other_low >= high).any()
        points.append((low, high))


def test_long_names_fit():
    names = [f"ENSG00000141510.{number}" for number in range(31)]
    star = np.zeros((31, 31))
    star[0, 1:] = star[1:, 0] = 1
    display = GeneGraphDisplay.from_graph(star, names, names[0], n_neighbors=30)
    check_no_overlap(display)
    assert display.labels_[1].get_fontsize() > 5


def test_graph_is_found_in_pipelines_and_regressors(brca_expression, graph):
    expected = names_of(GeneGraphDisplay.from_estimator(graph, "PLIN1"))
    prior = make_pipeline(
        CoexpressionGraph(threshold=0.85), NMFGeneEmbedder(n_components=2, max_iter=2)
    )
    expression = brca_expression.iloc[:, :60]
    genes = CoexpressionGraph(threshold=0.6).fit(expression.T)
    gene = genes.gene_names_in_[np.diff(genes.graph_.indptr).argmax()]
    pipeline = make_pipeline(CoexpressionGraph(threshold=0.85), "passthrough")
    assert names_of(GeneGraphDisplay.from_estimator(pipeline.fit(brca_expression.T), "PLIN1")) == (
        expected
    )
    prior.set_params(coexpressiongraph__threshold=0.6)
    X = np.random.default_rng(0).normal(size=(len(expression), 4))
    model = PriorKnowledgeRegressor(
        prior=prior, max_epochs=1, early_stopping=None, device="cpu", random_state=0
    )
    model.fit(X, expression)
    found = GeneGraphDisplay.from_estimator(make_pipeline("passthrough", model), gene)
    assert names_of(found) == names_of(GeneGraphDisplay.from_estimator(genes, gene))
    with pytest.raises(TypeError, match="contain one as a step.*instance of BaseEstimator"):
        GeneGraphDisplay.from_estimator(BaseEstimator(), gene)
    with pytest.raises(TypeError, match="instance of CoexpressionGraph"):
        GeneGraphDisplay.from_estimator(CoexpressionGraph(), gene)


def test_genes_without_names_are_numbers(brca_expression):
    graph = CoexpressionGraph().fit(brca_expression.to_numpy().T)
    position = int(np.diff(graph.graph_.indptr).argmax())
    display = GeneGraphDisplay.from_estimator(graph, position)
    assert names_of(display)[0] == str(position)


def test_invalid_input(graph):
    names, matrix = graph.gene_names_in_, graph.graph_
    with pytest.raises(ValueError, match=f"1000 genes of the graph, such as .*'{names[0]}'.*'FOO'"):
        GeneGraphDisplay.from_estimator(graph, "FOO")
    for options in ({"n_neighbors": 0}, {"n_neighbors": 2.5}, {"hops": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            GeneGraphDisplay.from_estimator(graph, "PLIN1", **options)
    with pytest.raises(ValueError, match=r"each of the 999 gene_names.*\(1000, 1000\)"):
        GeneGraphDisplay.from_graph(matrix, names[:999], "PLIN1")
    with pytest.raises(ValueError, match="'B' appears more than once"):
        GeneGraphDisplay.from_graph(np.eye(3), ["A", "B", "B"], "A")
    with pytest.raises(ValueError, match="finite weights"):
        GeneGraphDisplay.from_graph(np.full((2, 2), np.nan), ["A", "B"], "A")
    with pytest.raises(ValueError, match=r"weights must have the shape \(2, 2\)"):
        GeneGraphDisplay(["A", "B"], np.eye(3)).plot()
    with pytest.raises(ValueError, match="values must have a number for each of the 2 genes"):
        GeneGraphDisplay(["A", "B"], np.ones((2, 2)), values=[1.0]).plot()


def test_graph_is_never_dense_nor_changed():
    n_genes = 25_000
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, n_genes, size=(2, 200_000))
    graph = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(n_genes,) * 2).tocsr()
    graph = (graph + graph.T).tocsr()
    before = graph.copy()
    tracemalloc.start()
    GeneGraphDisplay.from_graph(graph, np.arange(n_genes), 7, hops=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # the dense matrix is 5 GB
    np.testing.assert_array_equal(graph.data, before.data)
    np.testing.assert_array_equal(graph.indices, before.indices)


def test_single_gene_has_no_colour_bar():
    display = GeneGraphDisplay.from_graph(np.zeros((3, 3)), list("abc"), "b", values={"b": 0.3})
    assert display.colorbar_ is None


def test_external_edges_are_drawn_apart(brca_expression, graph):
    names = list(brca_expression.columns)
    centre = names[int(np.diff(graph.graph_.indptr).argmax())]
    known = GeneGraphDisplay.from_estimator(graph, centre, n_neighbors=5)
    added = [name for name in names if name not in known.genes][:3]
    edges = pd.DataFrame({"gene_a": centre, "gene_b": [*added, known.genes[1]]})
    both = CoexpressionGraph(source="combined", external=edges, threshold=0.85)
    display = GeneGraphDisplay.from_estimator(both.fit(brca_expression.T), centre, n_neighbors=50)
    external = both.external_graph_
    assert external.nnz == 8
    shown = [text.get_text() for text in display.legend_.get_texts()]
    n_edges = len(display.edges_.get_segments())
    assert shown == [f"internal only ({n_edges - 4} edges)", "external (4 edges)"]
    colors = display.edges_.get_colors()
    assert sum(color[0] != color[1] for color in colors) == 4
    assert known.legend_ is None
    assert CoexpressionGraph(threshold=0.85).fit(brca_expression.T).external_graph_ is None
    alone = CoexpressionGraph(source="external", external=edges).fit(brca_expression.T)
    assert GeneGraphDisplay.from_estimator(alone, centre).legend_ is None
    with pytest.raises(ValueError, match=r"external must have the shape of weights, \(2, 2\)"):
        GeneGraphDisplay(["A", "B"], np.ones((2, 2)), external=[True]).plot()
