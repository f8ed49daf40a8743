"""Neighbourhood preservation against a plain loop over genes."""

# SPDX-License-Identifier: BSD-3-Clause

import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import sparse
from scipy.spatial.distance import cdist

from sklearn_pk.metrics import neighborhood_preservation


def random_graph(n_genes=80, density=0.1, weighted=True, seed=0):
    rng = np.random.default_rng(seed)
    graph = sparse.random_array((n_genes, n_genes), density=density, rng=rng).tocsr()
    graph = sparse.triu(graph + graph.T, k=1)
    graph = (graph + graph.T).tolil()
    graph[:, :5] = 0
    graph[:5] = 0
    graph = graph.tocsr()
    graph.eliminate_zeros()
    if not weighted:
        graph.data[:] = 1
    return graph


def plain_preservation(graph, embedding, k, metric, normalize):
    graph = graph.toarray()
    shares = []
    for gene in range(len(graph)):
        edges = [j for j in np.flatnonzero(graph[gene]) if j != gene]
        if not edges:
            continue
        edges = sorted(edges, key=lambda j: (-graph[gene, j], j))[:k]
        distances = cdist(embedding[[gene]], embedding, metric)[0]
        others = [j for j in range(len(graph)) if j != gene]
        nearest = sorted(others, key=lambda j: (distances[j], j))[:k]
        size = k if normalize == "k" else len(edges)
        shares.append(len(set(edges) & set(nearest)) / size)
    return np.mean(shares)


@pytest.mark.parametrize("normalize", ["k", "degree"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 20, 79, 200])
def test_equals_a_plain_loop(k, metric, normalize):
    graph = random_graph()
    embedding = np.random.default_rng(1).normal(size=(80, 6))
    expected = plain_preservation(graph, embedding, k, metric, normalize)
    score = neighborhood_preservation(graph, embedding, k=k, metric=metric, normalize=normalize)
    assert_allclose(score, expected)


def test_more_genes_than_one_block_and_ties():
    graph = random_graph(n_genes=700, density=0.02, weighted=False)
    embedding = np.random.default_rng(1).integers(0, 3, size=(700, 3)).astype(float)
    expected = plain_preservation(graph, embedding, 30, "cityblock", "k")
    score = neighborhood_preservation(graph, embedding, k=30, metric="manhattan")
    assert_allclose(score, expected)


def test_perfect_embedding_and_normalisation():
    blocks = np.kron(np.eye(5), np.ones((4, 4)))
    graph = sparse.csr_array(blocks)  # with self loops, which do not count
    embedding = np.repeat(np.eye(5), 4, axis=0)
    assert neighborhood_preservation(graph, embedding, k=3) == 1.0
    assert neighborhood_preservation(graph, embedding, k=12) == 0.25
    assert neighborhood_preservation(graph, embedding, k=12, normalize="degree") == 1.0


def test_zero_rows_are_nobodys_neighbours_under_cosine():
    graph = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    embedding = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert neighborhood_preservation(graph, embedding, k=2) == 0.0


def test_random_embedding_keeps_what_chance_keeps():
    graph = random_graph(n_genes=400, density=0.05, weighted=False)
    embedding = np.random.default_rng(1).normal(size=(400, 50)).astype(np.float32)
    score = neighborhood_preservation(graph, embedding, k=40, normalize="degree")
    assert_allclose(score, 40 / 399, atol=0.01)


def test_no_dense_matrix_of_genes_by_genes():
    n_genes = 6000
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, n_genes, size=(2, 3000))
    graph = sparse.csr_array((np.ones(3000), (i, j)), shape=(n_genes, n_genes))
    embedding = rng.normal(size=(n_genes, 4)).astype(np.float32)
    tracemalloc.start()
    neighborhood_preservation(graph, embedding, k=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * n_genes**2 / 2
    assert graph.nnz <= 3000


def test_bad_input():
    graph, embedding = random_graph(), np.ones((80, 3))
    with pytest.raises(ValueError, match=r"adjacency matrix.*\(80, 80\) and \(79"):
        neighborhood_preservation(graph, embedding[:79])
    with pytest.raises(ValueError, match="at least one edge"):
        neighborhood_preservation(0 * graph, embedding)
    with pytest.raises(ValueError, match="embedding contains NaN"):
        neighborhood_preservation(graph, embedding * np.nan)
    with pytest.raises(ValueError, match="'k' parameter"):
        neighborhood_preservation(graph, embedding, k=0)
    graph.data[0] = np.nan
    with pytest.raises(ValueError, match="finite weights"):
        neighborhood_preservation(graph, embedding)


def test_boolean_graph():
    rng = np.random.default_rng(0)
    graph = np.triu(rng.uniform(size=(30, 30)) > 0.8, 1)
    graph |= graph.T
    embedding = rng.normal(size=(30, 4))
    expected = neighborhood_preservation(graph.astype(float), embedding, k=5)
    for same in (graph, sparse.csr_array(graph)):
        assert neighborhood_preservation(same, embedding, k=5) == expected
