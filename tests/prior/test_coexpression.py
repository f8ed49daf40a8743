"""Co-expression graphs."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse

from sklearn_pk.datasets import load_brca_expression
from sklearn_pk.prior import CoexpressionGraph
from sklearn_pk.prior._coexpression import correlated_pairs, standardize_rows


@pytest.fixture(scope="module")
def genes():
    return load_brca_expression().expression.T


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


def test_same_edges_for_any_block_size_at_a_threshold_that_is_hit(genes):
    Z = standardize_rows(genes.to_numpy()[:200])
    threshold = float(Z[3] @ Z[70])
    pairs = [
        set(map(tuple, np.transpose(correlated_pairs(Z, Z, threshold, block_size=b)).tolist()))
        for b in (7, 64, 2048)
    ]
    assert pairs[0] == pairs[1] == pairs[2]
    exact = set(map(tuple, np.argwhere(Z @ Z.T > threshold).tolist()))
    assert len(pairs[0] ^ exact) <= 2, "only the pair that defines the threshold may differ"


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


def test_constant_genes_have_no_edges(genes):
    table = genes.copy()
    table.iloc[5] = 1e6 + 0.1
    graph = CoexpressionGraph(threshold=-1).fit(table).graph_
    assert graph[[5]].nnz == 0
    assert graph[[6]].nnz == len(table) - 2


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
    with pytest.raises(ValueError, match="at least min_samples=10 patients"):
        CoexpressionGraph(min_samples=10).fit(genes.iloc[:, :5])
    with pytest.raises(ValueError, match="'source' parameter of CoexpressionGraph"):
        CoexpressionGraph(source="both").fit(genes)
    with pytest.raises(ValueError, match="'threshold' parameter of CoexpressionGraph"):
        CoexpressionGraph(threshold=1.2).fit(genes)
