"""Gene embeddings by NMF."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.optimize import nnls
from sklearn.decomposition import NMF

from sklearn_pk.datasets import load_brca_expression
from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.prior._nmf import project


@pytest.fixture(scope="module")
def graph():
    return CoexpressionGraph(threshold=0.75).fit_transform(load_brca_expression().expression.T)


def test_embedding(graph):
    embedder = NMFGeneEmbedder(8, random_state=0)
    G = embedder.fit_transform(graph)
    assert G.shape == (1000, 8)
    assert G.dtype == np.float32
    assert (G >= 0).all()
    isolated = np.asarray(graph.sum(axis=1)) == 0
    assert_array_equal(G[isolated], 0)
    residual = np.linalg.norm(graph.toarray() - G @ embedder.components_)
    assert_allclose(embedder.reconstruction_err_, residual, rtol=1e-4)


def test_no_worse_than_scikit_learn_on_the_whole_matrix(graph):
    ours = NMFGeneEmbedder(8, random_state=0).fit(graph)
    theirs = NMF(8, init="random", random_state=0, max_iter=500).fit(graph)
    assert ours.reconstruction_err_ <= 1.02 * theirs.reconstruction_err_


def test_seed_and_agreement_of_the_methods(graph):
    embedder = NMFGeneEmbedder(6, random_state=3)
    G = embedder.fit_transform(graph)
    assert_array_equal(G, embedder.transform(graph))
    assert_array_equal(G, NMFGeneEmbedder(6, random_state=3).fit_transform(graph))
    assert not np.array_equal(G, NMFGeneEmbedder(6, random_state=4).fit_transform(graph))
    assert_allclose(embedder.transform(graph[20:50]), G[20:50], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scaling", ["init", "columns", None])
def test_scaling_changes_the_scale_only(graph, scaling):
    plain = NMFGeneEmbedder(8, scaling=None, random_state=0).fit(graph)
    scaled = NMFGeneEmbedder(8, scaling=scaling, random_state=0).fit(graph)
    assert_allclose(scaled.reconstruction_err_, plain.reconstruction_err_, rtol=1e-3)
    connected = scaled.embedding_[scaled.embedding_.any(axis=1)]
    target = 1 / np.sqrt(3 * 8)
    if scaling == "init":
        assert_allclose(np.sqrt(np.mean(connected**2)), target, rtol=0.05)
    if scaling == "columns":
        assert_allclose(np.sqrt(np.mean(connected**2, axis=0)), target, rtol=0.2)


def test_project_solves_nnls(graph):
    H = NMFGeneEmbedder(6, random_state=0).fit(graph).components_.astype(np.float64)
    rows = np.flatnonzero(np.asarray(graph.sum(axis=1)))[:10]
    expected = [nnls(H.T, graph[[row]].toarray().ravel())[0] for row in rows]
    assert_allclose(project(graph[rows], H, tol=1e-10), expected, atol=1e-6)


def test_more_components_than_connected_genes():
    graph = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=float))
    embedder = NMFGeneEmbedder(5, random_state=0)
    G = embedder.fit_transform(graph)
    assert G.shape == (3, 5)
    assert_array_equal(G[2], 0)
    assert_array_equal(G[:, 2:], 0)
    assert_allclose(G @ embedder.components_, graph.toarray(), atol=1e-2)


def test_graph_without_edges_gives_zeros_and_says_so():
    with pytest.warns(UserWarning, match="the graph has no edges, so every gene embedding is zero"):
        G = NMFGeneEmbedder(3).fit_transform(sparse.csr_array((4, 4)))
    assert_array_equal(G, np.zeros((4, 3)))


def test_feature_names():
    embedder = NMFGeneEmbedder(2, random_state=0).set_output(transform="pandas")
    table = pd.DataFrame([[0.0, 1], [1, 0]], index=["A", "B"], columns=["A", "B"])
    G = embedder.fit_transform(table)
    assert list(G.columns) == ["nmfgeneembedder0", "nmfgeneembedder1"]
    assert list(G.index) == ["A", "B"]


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"Negative values .*NMFGeneEmbedder"):
        NMFGeneEmbedder(1).fit(np.array([[0, -1.0], [-1, 0]]))
