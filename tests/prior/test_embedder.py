"""Gene embeddings by NMF."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.decomposition import NMF
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_pk.metrics import neighborhood_preservation
from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder, _embedder


@pytest.fixture(scope="module")
def graph(genes):
    return CoexpressionGraph(threshold=0.75).fit_transform(genes)


def embedder(n_components=8, **parameters):
    return NMFGeneEmbedder(n_components, random_state=0, **parameters)


def test_embedding_times_components_approximates_the_graph(graph):
    fitted = embedder(factors="left")
    G = fitted.fit_transform(graph)
    assert G.shape == (1000, 8)
    assert G.dtype == fitted.components_.dtype == np.float32
    assert (G >= 0).all()
    residual = np.linalg.norm(graph.toarray() - G @ fitted.components_)
    assert_allclose(fitted.reconstruction_err_, residual, rtol=1e-4)


@pytest.mark.parametrize("factors", ["left", "both"])
@pytest.mark.parametrize("solver", ["hals", "cd", "mu"])
@pytest.mark.parametrize("n_components", [2, 60])
def test_rows_are_zero_exactly_for_genes_without_edges(graph, factors, solver, n_components):
    fitted = embedder(n_components, factors=factors, solver=solver, max_iter=40)
    G = fitted.fit_transform(graph)
    assert_array_equal(G.any(axis=1), np.diff(graph.indptr) > 0)
    uncovered = (G > 0).all(axis=1) & (np.ptp(G, axis=1) < 1e-5 * np.sqrt(np.mean(G**2)))
    assert fitted.n_uncovered_genes_ == uncovered.sum()


@pytest.mark.parametrize("solver", ["hals", "cd", "mu"])
def test_error_is_not_above_that_of_scikit_learn(graph, solver):
    theirs = NMF(8, init="random", random_state=0, max_iter=500).fit(graph)
    ours = embedder(solver=solver).fit(graph)
    assert ours.reconstruction_err_ <= 1.02 * theirs.reconstruction_err_


@pytest.mark.parametrize("factors", ["left", "both"])
def test_seed_and_consistency_of_methods(graph, factors):
    fitted = embedder(6, factors=factors)
    G = fitted.fit_transform(graph)
    assert_array_equal(G, fitted.transform(graph))
    assert_array_equal(G, embedder(6, factors=factors).fit_transform(graph))
    other = NMFGeneEmbedder(6, factors=factors, random_state=4)
    assert not np.array_equal(G, other.fit_transform(graph))
    assert_array_equal(fitted.transform(graph[20:50]), G[20:50])
    assert_array_equal(fitted.transform(graph[20:50].toarray()), G[20:50])


@pytest.mark.parametrize("factors", ["left", "both"])
def test_new_rows_are_embedded_like_those_of_fit(graph, factors):
    # Scaled edges are not a row of fit, and the embedding scales with the edges.
    fitted = embedder(factors=factors, tol=0, max_iter=2000, solver="hals")
    G = fitted.fit_transform(graph)
    new = fitted.transform(2 * graph[:200])
    covered = G[:200].max(axis=1) > 1e-3 * G.max()
    assert covered.sum() > 20
    assert_allclose(new[covered], 2 * G[:200][covered], atol=0.02 * G.max())
    isolated = np.diff(graph.indptr)[:200] == 0
    assert_array_equal(new.any(axis=1), ~isolated)


@pytest.mark.parametrize("scaling", ["init", "columns", None])
@pytest.mark.parametrize("factors", ["left", "both"])
def test_scaling_changes_the_scale_only(graph, scaling, factors):
    plain = embedder(60, scaling=None, factors=factors, max_iter=50).fit(graph)
    scaled = embedder(60, scaling=scaling, factors=factors, max_iter=50).fit(graph)
    ratio = scaled.embedding_.max(axis=0) / plain.embedding_.max(axis=0)
    assert_allclose(scaled.embedding_, plain.embedding_ * ratio, rtol=1e-4)
    if factors == "left":
        product = plain.embedding_ @ plain.components_
        assert_allclose(scaled.embedding_ @ scaled.components_, product, atol=1e-4)
    connected = scaled.embedding_[np.diff(graph.indptr) > 0]
    target = 1 / np.sqrt(3 * 60)
    if scaling == "init":
        assert np.ptp(ratio) < 1e-5 * ratio[0]
        assert_allclose(np.sqrt(np.mean(connected**2)), target, rtol=1e-4)
    if scaling == "columns":
        assert_allclose(np.sqrt(np.mean(connected**2, axis=0)), target, rtol=1e-4)


def test_only_both_factors_embed_neighbours_alike():
    # All leaves of a star have the hub as their only neighbour.
    star = np.zeros((6, 6))
    star[0, 1:] = star[1:, 0] = 1
    left, both = (
        cosine_similarity(embedder(2, factors=factors, tol=0, max_iter=200).fit_transform(star))
        for factors in ("left", "both")
    )
    assert_allclose(left[1:, 1:], 1, atol=1e-5)
    assert_allclose(left[0, 1:], 0, atol=1e-5)
    assert_allclose(both, 1, atol=1e-5)


def test_genes_with_the_same_edges_are_embedded_alike():
    graph = np.kron([[0, 1], [1, 0]], np.ones((3, 3)))  # complete bipartite
    G = embedder(4, max_iter=3).fit_transform(graph)
    assert_array_equal(G, G[[0, 0, 0, 3, 3, 3]])
    assert not np.allclose(G[0], G[3])


def test_permuting_genes_permutes_the_embedding(graph):
    order = np.random.default_rng(0).permutation(graph.shape[0])
    # Initial singular vectors, unlike random ones, are permuted with the genes.
    fitted = embedder(6, init="nndsvda")
    G = fitted.fit_transform(graph.astype(np.float64))
    permuted = fitted.fit_transform(graph[order][:, order].astype(np.float64))
    assert_allclose(permuted, G[order], atol=1e-3 * G.max())


@pytest.mark.parametrize("factors", ["left", "both"])
def test_single_edge_and_more_components_than_genes(factors):
    graph = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=float))
    fitted = embedder(5, factors=factors)
    G = fitted.fit_transform(graph)
    assert G.shape == (3, 5)
    assert_array_equal(G.any(axis=1), [True, True, False])
    assert_array_equal(G[:, 2:], 0)
    if factors == "left":
        assert_allclose(G @ fitted.components_, graph.toarray(), atol=1e-2)
    assert fitted.reconstruction_err_ < 1e-2


def test_graph_without_edges_gives_zeros_and_warns():
    fitted = NMFGeneEmbedder(3)
    for compute in (False, True):
        fitted.set_params(compute_neighbors=compute)
        with pytest.warns(UserWarning, match="no edges, so every gene embedding is zero"):
            G = fitted.fit_transform(sparse.csr_array((4, 4)))
        assert_array_equal(G, np.zeros((4, 3)))
    assert np.isnan(fitted.explained_neighbors_).all()


def test_score_is_neighbourhood_preservation(graph):
    fitted = embedder(20, n_neighbors=15, compute_neighbors=True).fit(graph)
    expected = neighborhood_preservation(graph, fitted.embedding_, k=15)
    assert_allclose(fitted.score(graph), expected)
    by_degree = neighborhood_preservation(graph, fitted.embedding_, k=15, normalize="degree")
    assert_allclose(np.nanmean(fitted.explained_neighbors_), by_degree)
    isolated = np.diff(graph.indptr) == 0
    assert_array_equal(np.isnan(fitted.explained_neighbors_), isolated)
    assert not hasattr(embedder(2, max_iter=1).fit(graph), "explained_neighbors_")
    with pytest.raises(ValueError, match="at least one edge to a gene of fit"):
        fitted.score(graph[isolated])


def test_score_of_some_rows_of_fit(graph):
    connected = np.flatnonzero(np.diff(graph.indptr))
    graph = graph[connected][:, connected]
    fitted = embedder(40, n_neighbors=5, compute_neighbors=True).fit(graph)
    kept = fitted.explained_neighbors_ * np.minimum(np.diff(graph.indptr), 5)
    for rows in (slice(0, 50), slice(None, None, -1)):
        # Genes with the same edges are exchangeable, hence the tolerance.
        assert_allclose(fitted.score(graph[rows]), kept[rows].mean() / 5, atol=0.02)
    messy = sparse.csr_array(graph.astype(float))
    messy = sparse.csr_array(
        (np.repeat(messy.data / 2, 2), np.repeat(messy.indices, 2), 2 * messy.indptr),
        shape=messy.shape,
    )
    assert_allclose(fitted.score(messy), fitted.score(graph))
    messy.data[:] = 0
    with pytest.raises(ValueError, match="at least one edge"):
        fitted.score(messy)
    fitted.set_params(compute_neighbors=False).fit(graph)
    assert not hasattr(fitted, "explained_neighbors_")


def test_components_are_searched_over_held_out_genes(genes, graph):
    connected = np.flatnonzero(np.diff(graph.indptr))
    components = {"n_components": [1, 40]}
    estimator = embedder(n_neighbors=10, max_iter=30)
    search = GridSearchCV(estimator, components, cv=3, error_score="raise")
    search.fit(graph[connected][:, connected])
    assert search.best_params_ == {"n_components": 40}
    pipeline = make_pipeline(CoexpressionGraph(threshold=0.75), estimator)
    components = {f"nmfgeneembedder__{name}": values for name, values in components.items()}
    whole = GridSearchCV(pipeline, components, cv=3, error_score="raise").fit(genes.iloc[connected])
    assert_allclose(
        whole.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"], rtol=1e-6
    )


def test_number_of_held_out_genes_may_equal_that_of_fit():
    # A square matrix is not necessarily the graph of fit: here, rows are held-out genes.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(5), 8)
    graph = ((groups[:, None] == groups) & (rng.uniform(size=(40, 40)) < 0.9)).astype(float)
    graph = np.triu(graph, 1) + np.triu(graph, 1).T
    fit, held_out = np.arange(0, 40, 2), np.arange(1, 40, 2)
    fitted = embedder(5, n_neighbors=4).fit(graph[np.ix_(fit, fit)])
    assert fitted.score(graph[np.ix_(held_out, fit)]) > 0.8


def test_feature_names():
    fitted = embedder(2).set_output(transform="pandas")
    table = pd.DataFrame([[0.0, 1], [1, 0]], index=["A", "B"], columns=["A", "B"])
    G = fitted.fit_transform(table)
    assert list(G.columns) == ["nmfgeneembedder0", "nmfgeneembedder1"]
    assert list(G.index) == ["A", "B"]


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match=r"Negative values .*NMFGeneEmbedder"):
        NMFGeneEmbedder(1).fit(np.array([[0, -1.0], [-1, 0]]))
    with pytest.raises(ValueError, match=r"a square matrix .* got shape \(2, 3\)"):
        NMFGeneEmbedder(1).fit(np.ones((2, 3)))
    directed = np.array([[0, 1.0], [0, 0]])
    with pytest.raises(ValueError, match="factors='both' needs a symmetric graph"):
        NMFGeneEmbedder(1).fit(directed)
    NMFGeneEmbedder(1, factors="left").fit(directed)
    with pytest.raises(ValueError, match="init='nndsvd' contains zeros"):
        NMFGeneEmbedder(1, solver="mu", init="nndsvd").fit(np.ones((2, 2)))
    with pytest.raises(ValueError, match="device='cuda:77' is not available"):
        NMFGeneEmbedder(1, device="cuda:77").fit(np.ones((2, 2)))
    monkeypatch.setattr(_embedder, "pick_device", lambda device: device)
    with pytest.raises(ValueError, match="device='mps': PyTorch has neither sparse matrices"):
        NMFGeneEmbedder(1, device="mps").fit(np.ones((2, 2)))
    with pytest.raises(ValueError, match="'solver' parameter of NMFGeneEmbedder"):
        NMFGeneEmbedder(1, solver="als").fit(np.ones((2, 2)))
