"""Co-expression graphs."""

# SPDX-License-Identifier: BSD-3-Clause

import threading
from collections import Counter

import networkx
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_info, threadpool_limits

from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.prior._coexpression import rewire_pairs
from sklearn_pk.utils._linalg import blas_threads
from sklearn_pk.utils._patients import PatientAverager


def edge_frame(*pairs):
    return pd.DataFrame(pairs, columns=["gene_a", "gene_b"])


@pytest.mark.parametrize(("absolute", "threshold"), [(False, 0.85), (True, 0.5), (False, -0.2)])
def test_edges_equal_those_of_corrcoef(genes, absolute, threshold):
    r = np.corrcoef(genes.to_numpy())
    expected = (np.abs(r) if absolute else r) > threshold
    np.fill_diagonal(expected, False)
    graph = CoexpressionGraph(threshold=threshold, absolute=absolute).fit(genes)
    assert_array_equal(graph.graph_.toarray() > 0, expected)
    assert graph.n_edges_ == expected.sum() // 2
    assert graph.n_connected_genes_ == expected.any(axis=1).sum()


def test_graph_format(genes):
    graph = CoexpressionGraph(threshold=0.7).fit_transform(genes)
    assert sparse.issparse(graph)
    assert graph.format == "csr"
    assert graph.dtype == np.float32
    assert (graph != graph.T).nnz == 0
    assert not graph.diagonal().any()
    assert set(graph.data) == {1.0}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("source", ["internal", "external", "combined"])
def test_transform_agrees_with_fit_transform(genes, named, source):
    X = genes if named else genes.to_numpy()
    graph = CoexpressionGraph(threshold=0.7, source=source)
    if not named and source != "internal":
        with pytest.raises(ValueError, match="X has no gene names"):
            graph.fit(X)
        return
    full = graph.fit_transform(X)
    assert (graph.transform(X) != full).nnz == 0
    part = X.iloc[10:40] if named else X[10:40]
    assert (graph.transform(part) != full[10:40]).nnz == 0


def test_sources(genes):
    edges = edge_frame(("CLEC3A", "TFF1"), ("TFF1", "ESR9"))
    fit = {
        source: CoexpressionGraph(source=source, external=edges).fit(genes)
        for source in ("internal", "external", "combined")
    }
    assert fit["external"].n_edges_ == 1
    assert fit["external"].unmatched_genes_.tolist() == ["ESR9"]
    assert fit["internal"].unmatched_genes_.tolist() == []
    assert fit["combined"].n_edges_ == fit["internal"].n_edges_ + 1
    union = fit["internal"].graph_.maximum(fit["external"].graph_)
    assert (fit["combined"].graph_ != union).nnz == 0


def test_shipped_collection_is_the_default(genes):
    graph = CoexpressionGraph(source="external").fit(genes)
    assert graph.n_edges_ == 43
    assert len(graph.unmatched_genes_) > 4_000


def test_constant_genes_have_no_edges_and_are_named(genes):
    table = genes.copy()
    table.iloc[5] = 1e6 + 0.1
    fitted = CoexpressionGraph(threshold=-1).fit(table)
    assert fitted.graph_[[5]].nnz == 0
    assert fitted.graph_[[6]].nnz == len(table) - 2
    assert fitted.constant_genes_.tolist() == [table.index[5]]
    assert CoexpressionGraph().fit(table.to_numpy()).constant_genes_.tolist() == [5]


def test_permuting_genes_permutes_the_graph(genes):
    order = np.random.default_rng(0).permutation(len(genes))
    graph = CoexpressionGraph(source="combined", threshold=0.6)
    full = graph.fit_transform(genes)
    assert (graph.fit_transform(genes.iloc[order]) != full[order][:, order]).nnz == 0


def test_bad_input(genes):
    repeated = pd.concat([genes, genes.iloc[:2]])
    with pytest.raises(ValueError, match=r"2 appear more than once: \['CLEC3A', 'DSCAM-AS1'\]"):
        CoexpressionGraph().fit(repeated)
    with pytest.raises(ValueError, match=r"none of its genes \(such as 'x'\) is among"):
        CoexpressionGraph(source="external", external=edge_frame(("x", "y"))).fit(genes)
    weak = edge_frame(("CLEC3A", "TFF1")).assign(r=0.5)
    with pytest.raises(ValueError, match=r"no edges, or none with an r above threshold=0.85"):
        CoexpressionGraph(source="external", external=weak).fit(genes)
    half = edge_frame(("CLEC3A", "TFF1"), ("TFF1", "ESR1")).assign(r=[0.9, np.nan])
    with pytest.raises(ValueError, match="1 of 2 edges have no numeric r, first .'TFF1', 'ESR1'."):
        CoexpressionGraph(source="external", external=half).fit(genes)
    with pytest.raises(FileNotFoundError, match="file not found: 'cgm'"):
        CoexpressionGraph(source="external", external="cgm").fit(genes)
    with_nan = genes.copy()
    with_nan.iloc[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*1 of 1000 genes \('DSCAM-AS1'\) and 1 of 250"):
        CoexpressionGraph().fit(with_nan)
    with pytest.raises(ValueError, match="at least min_samples=10 patients"):
        CoexpressionGraph(min_samples=10).fit(genes.iloc[:, :5])
    with pytest.raises(ValueError, match="'source' parameter of CoexpressionGraph"):
        CoexpressionGraph(source="both").fit(genes)
    with pytest.raises(ValueError, match="'threshold' parameter of CoexpressionGraph"):
        CoexpressionGraph(threshold=1.2).fit(genes)


def test_spearman_is_pearson_of_ranks(genes):
    genes = genes[:400]
    expected = np.argwhere(np.triu(spearmanr(genes.to_numpy(), axis=1).statistic > 0.8, 1))
    fitted = CoexpressionGraph(method="spearman", threshold=0.8).fit(genes)
    assert_array_equal(np.argwhere(np.triu(fitted.graph_.toarray(), 1)), expected)
    ties = genes.round()
    expected = np.triu(spearmanr(ties.to_numpy(), axis=1).statistic > 0.8, 1)
    assert CoexpressionGraph(method="spearman", threshold=0.8).fit(ties).n_edges_ == expected.sum()


def test_groups_count_a_patient_once(genes):
    # The 20 slides of patient 0 would connect genes that differ in this patient only.
    columns = np.concatenate([np.zeros(20, int), np.arange(genes.shape[1])])
    slides = genes.iloc[:, columns]
    slides.columns = [f"S{number}" for number in range(len(columns))]
    expected = CoexpressionGraph(threshold=0.7).fit(genes)
    with pytest.warns(UserWarning, match="20 of 270 columns of X repeat"):
        repeated = CoexpressionGraph(threshold=0.7).fit(slides)
    assert (repeated.graph_ != expected.graph_).nnz
    grouped = CoexpressionGraph(threshold=0.7).fit(slides, groups=columns)
    assert (grouped.graph_ != expected.graph_).nnz == 0
    assert grouped.n_features_in_ == 270
    assert (grouped.transform(slides.iloc[30:60]) != expected.graph_[30:60]).nnz == 0
    with pytest.raises(ValueError, match="patient of each of the 270 samples"):
        CoexpressionGraph().fit(slides, groups=columns[:-1])
    with pytest.raises(ValueError, match="min_samples=2 patients"):
        CoexpressionGraph().fit(slides, groups=np.zeros(270))


@pytest.mark.parametrize("named", [True, False])
def test_new_genes_are_connected(genes, named):
    X = genes if named else genes.to_numpy()
    whole = CoexpressionGraph(threshold=0.7, source="combined" if named else "internal").fit(X)
    part = clone(whole).fit(X[:600])
    mixed = np.r_[900:590:-1]
    rows = part.transform(X.iloc[mixed] if named else X[mixed])
    assert rows.shape == (310, 600)
    assert (rows != whole.graph_[mixed][:, :600]).nnz == 0


def test_equal_rows_without_names_are_neighbours(genes):
    X = genes.to_numpy()[:50]
    X = np.concatenate([X, X[[3, 3]]])
    fitted = CoexpressionGraph().fit(X)
    assert set(fitted.graph_[[3]].indices) >= {50, 51}
    assert (fitted.transform(X) != fitted.graph_).nnz == 0


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_rewiring_keeps_degrees(genes, fraction):
    plain = CoexpressionGraph(threshold=0.6).fit(genes)
    graph = CoexpressionGraph(threshold=0.6, rewire=fraction, random_state=0)
    rewired = graph.fit_transform(genes)
    assert_array_equal(rewired.sum(axis=0), plain.graph_.sum(axis=0))
    assert (rewired != rewired.T).nnz == 0
    assert not rewired.diagonal().any()
    assert set(rewired.data) == {1.0}
    moved = plain.n_edges_ - int(rewired.multiply(plain.graph_).sum()) // 2
    assert graph.n_rewired_edges_ == moved
    # Some rewired edges between genes of high degree existed before, by chance.
    assert 0.75 * fraction * plain.n_edges_ <= moved <= fraction * plain.n_edges_
    assert (graph.transform(genes) != rewired).nnz == 0
    assert (clone(graph).fit_transform(genes) != rewired).nnz == 0


def test_rewiring_is_uniform_over_graphs_with_these_degrees():
    # Two disjoint edges on four genes: three equally probable perfect matchings.
    drawn = Counter()
    for seed in range(120):
        rng = np.random.RandomState(seed)
        rows, columns = rewire_pairs(np.array([0, 2]), np.array([1, 3]), 4, 1.0, rng)
        drawn[frozenset(zip(rows.tolist(), columns.tolist(), strict=True))] += 1
    assert len(drawn) == 3
    assert min(drawn.values()) > 30


def test_star_cannot_be_rewired():
    edges = edge_frame(*[("HUB", f"G{number}") for number in range(9)])
    names = ["HUB", *(f"G{number}" for number in range(9))]
    X = pd.DataFrame(np.eye(10), index=names)
    fitted = CoexpressionGraph(source="external", external=edges, rewire=1.0).fit(X)
    assert (fitted.n_edges_, fitted.n_rewired_edges_) == (9, 0)


def test_external_in_every_form(genes):
    names = list(genes.index[:4])
    edges = edge_frame((names[0], names[1]), (names[1], names[2]), (names[3], names[3]))
    matrix = sparse.coo_array(([1.0, 1.0, 5.0], ([0, 1, 3], [1, 2, 3])), shape=(4, 4))
    network = networkx.Graph()
    network.add_edges_from(edges.itertuples(index=False))
    weighted = networkx.Graph()
    weighted.add_edge(names[0], names[1], r=0.9)
    weighted.add_edge(names[1], names[2], r=-0.9)
    expected = CoexpressionGraph(source="external", external=edges).fit(genes).graph_
    assert expected.nnz == 4
    signed = edges.iloc[:2].assign(r=[0.9, -0.9])
    for external, absolute in [
        ((matrix, names), False),
        ((matrix.tocsr(), np.array(names)), False),
        (network, False),
        (weighted, True),
        (signed, True),
    ]:
        graph = CoexpressionGraph(source="external", external=external, absolute=absolute)
        assert (clone(graph).fit(genes).graph_ != expected).nnz == 0
    for external in (weighted, signed):
        assert CoexpressionGraph(source="external", external=external).fit(genes).n_edges_ == 1
    for wrong in ((matrix, names[:3]), (matrix.toarray(), names)):
        with pytest.raises(ValueError, match=r"tuple of a sparse adjacency matrix"):
            CoexpressionGraph(source="external", external=wrong).fit(genes)


def test_gene_sets_without_centres_require_edges_clique(genes, tmp_path):
    path = tmp_path / "pathways.gmt"
    lines = [["P1", "-", *genes.index[:5]], ["P2", "-", *genes.index[3:6], "XX"]]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    graph = CoexpressionGraph(source="external", external=path)
    # 10 pairs of five genes and 6 of four; the pair of genes 3 and 4 is in both.
    with pytest.raises(ValueError, match=r"0 of 2 gene sets.*edges='clique'.*15 distinct edges"):
        graph.fit(genes)
    fitted = graph.set_params(edges="clique").fit(genes)
    assert fitted.n_edges_ == 12
    assert fitted.unmatched_genes_.tolist() == ["XX"]
    assert fitted.graph_[[0], :].nonzero()[1].tolist() == [1, 2, 3, 4]
    path.write_text("")
    with pytest.raises(ValueError, match="has no gene sets"):
        graph.fit(genes)


def test_float32_and_float64_give_the_same_edges(genes):
    single = genes.astype(np.float32)
    a = CoexpressionGraph(threshold=0.5).fit(single)
    b = CoexpressionGraph(threshold=0.5).fit(single.astype(np.float64))
    assert a.n_edges_ > 10_000
    assert (a.graph_ != b.graph_).nnz == 0


def test_no_names_after_names(genes):
    graph = CoexpressionGraph().fit(genes)
    graph.fit(genes.to_numpy())
    assert not hasattr(graph, "gene_names_in_")


def test_device(genes):
    with pytest.raises(ValueError, match="device='cuda:77' is not available"):
        CoexpressionGraph(device="cuda:77").fit(genes)
    here = CoexpressionGraph(threshold=0.6, device="auto").fit(genes)
    assert here.n_edges_ == CoexpressionGraph(threshold=0.6).fit(genes).n_edges_


def test_overlapping_fits_use_one_thread_limit():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(3, user_api="blas"):
        before = threads()
        first, second = blas_threads(), blas_threads()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert threads() == before


def test_number_of_threads_is_that_of_blas():
    with threadpool_limits(1, user_api="blas"), blas_threads() as run:
        names = set(run(lambda _: threading.current_thread().name, range(20)))
    assert len(names) == 1


def test_averaging_slides_of_a_patient_keeps_ties():
    # Ties at a non-zero floor: the mean of 3 or 7 equal values has rounding errors.
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(120), rng.choice([1, 2, 3, 7], 120))
    X = rng.normal(size=(40, 120)) + 8
    X[rng.uniform(size=X.shape) < 0.9] = -3.32
    X[3] = -3.32
    graph = CoexpressionGraph(method="spearman", threshold=0.2)
    expected = graph.fit(X).graph_
    assert graph.constant_genes_.tolist() == [3]
    slides = graph.fit(X[:, patients], groups=patients)
    assert (slides.graph_ != expected).nnz == 0
    assert slides.constant_genes_.tolist() == [3]
    assert_array_equal(PatientAverager(patients) @ X.T[patients], X.T)


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(10), 2)])
def test_genes_without_names_are_recognised_by_value(groups):
    X = np.random.default_rng(0).normal(size=(30, 20))
    kept = X.copy()
    graph = CoexpressionGraph(threshold=0.3).fit(X, groups=groups)
    X -= 1  # changing the input has no effect on the fitted graph
    for same in (kept, kept.astype(np.float32), np.asfortranarray(kept)):
        assert (graph.transform(same) != graph.graph_).nnz == 0


def test_parameters_set_after_fit_do_not_affect_transform(genes):
    graph = CoexpressionGraph(threshold=0.7).fit(genes[:600])
    expected = graph.transform(genes)
    graph.set_params(threshold=-1, method="spearman", source="external", min_samples=1000)
    assert (graph.transform(genes) != expected).nnz == 0


def test_invalid_external_knowledge(genes):
    names = list(genes.index[:3])
    for data in ([1.0, np.nan], [1.0, -0.9]):
        matrix = sparse.coo_array((data, ([0, 1], [1, 2])), shape=(3, 3))
        with pytest.raises(ValueError, match="must not have negative values or NaN"):
            CoexpressionGraph(source="external", external=(matrix, names)).fit(genes)
    with pytest.raises(ValueError, match="got 3 items"):
        CoexpressionGraph(source="external", external=(matrix, names, 1)).fit(genes)
    edges = edge_frame((names[0], names[1]), (names[2], np.nan))
    with pytest.raises(ValueError, match="1 of 2 edges lack a gene name"):
        CoexpressionGraph(source="external", external=edges).fit(genes)
    text = edges[:1].assign(r=["high"])
    with pytest.raises(ValueError, match="1 of 1 edges have no numeric r"):
        CoexpressionGraph(source="external", external=text).fit(genes)
    empty = networkx.Graph()
    with pytest.raises(ValueError, match="external has no edges, or none with an r above"):
        CoexpressionGraph(source="external", external=empty).fit(genes)


def test_groups_in_another_order_raise(genes):
    patients = pd.Series(np.arange(250), index=genes.columns)
    CoexpressionGraph().fit(genes, groups=patients)
    with pytest.raises(ValueError, match=r"Reorder with groups.loc\[X.columns\]"):
        CoexpressionGraph().fit(genes, groups=patients[::-1])


def test_feature_names_and_pandas_output(genes):
    pipeline = make_pipeline(CoexpressionGraph(), NMFGeneEmbedder(2, max_iter=5))
    G = pipeline.set_output(transform="pandas").fit_transform(genes)
    assert list(G.columns) == list(pipeline.get_feature_names_out())
    assert list(pipeline[0].get_feature_names_out()) == list(genes.index)
    assert CoexpressionGraph().fit(genes.to_numpy()).get_feature_names_out()[1].endswith("graph1")
