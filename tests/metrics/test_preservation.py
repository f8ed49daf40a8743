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
    ratios = []
    for gene in range(len(graph)):
        edges = [j for j in np.flatnonzero(graph[gene]) if j != gene]
        if not edges:
            continue
        edges = sorted(edges, key=lambda j: (-graph[gene, j], j))[:k]
        distances = cdist(embedding[[gene]], embedding, metric)[0]
        others = [j for j in range(len(graph)) if j != gene]
        nearest = sorted(others, key=lambda j: (distances[j], j))[:k]
        size = k if normalize == "k" else len(edges)
        ratios.append(len(set(edges) & set(nearest)) / size)
    return np.mean(ratios)


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


def test_zero_rows_have_no_neighbours_by_cosine():
    graph = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    embedding = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert neighborhood_preservation(graph, embedding, k=2) == 0.0


def test_random_embedding_preserves_the_expected_number():
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_do_not_depend_on_the_block(monkeypatch, dtype):
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(10, 64)).astype(dtype).repeat(51, axis=0)
    graph = np.kron(np.eye(10), np.ones((51, 51))) * (rng.uniform(size=(510, 510)) < 0.4)
    scores = set()
    for queries in (256, 100, 17, 1):
        monkeypatch.setattr("sklearn_pk.utils._neighborhood._QUERIES", queries)
        scores.add(neighborhood_preservation(graph, embedding, k=20))
    assert len(scores) == 1


def test_directed_graph_over_two_hops():
    graph = np.triu(np.eye(4)[::-1], 1)  # edges from gene 0 to 3 and from 1 to 2
    embedding = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    # The nearest of gene 0 is 3, those of gene 1 are 2 and 3.
    assert neighborhood_preservation(graph, embedding, k=1, hops=2) == 1.0
    assert neighborhood_preservation(graph, embedding, k=2, hops=2) == 0.5
    assert neighborhood_preservation(graph, embedding[[0, 1, 3, 2]], k=1, hops=2) == 0.0


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


@pytest.mark.parametrize("k", [3, 30])
def test_second_hop_against_a_plain_loop(k):
    graph = random_graph(n_genes=60, density=0.03)
    adjacency = graph.toarray() > 0
    common = adjacency.astype(int) @ adjacency.astype(int)
    embedding = np.random.default_rng(1).normal(size=(60, 5))
    ratios, sizes = [], []
    for gene in np.flatnonzero(adjacency.any(axis=1)):
        weight = np.where(adjacency[gene], 1e6 + graph.toarray()[gene], common[gene])
        weight[gene] = 0
        around = sorted(np.flatnonzero(weight), key=lambda other: (-weight[other], other))[:k]
        distances = cdist(embedding[[gene]], embedding)[0]
        distances[gene] = np.inf
        ratios.append(len(set(around) & set(np.argsort(distances)[:k])))
        sizes.append(len(around))
    arguments = {"k": k, "hops": 2, "metric": "euclidean"}
    assert_allclose(neighborhood_preservation(graph, embedding, **arguments), np.mean(ratios) / k)
    assert_allclose(
        neighborhood_preservation(graph, embedding, normalize="degree", **arguments),
        np.mean(np.divide(ratios, sizes)),
    )
    with pytest.raises(ValueError, match="'hops' parameter"):
        neighborhood_preservation(graph, embedding, hops=3)
