"""Overlap of the neighbours of genes in a graph and in an embedding."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy import sparse
from sklearn.metrics import pairwise_distances

# Genes per block: 256 x 25,761 float32 distances are 26 MB.
_QUERIES = 256


def check_graph(graph, n_genes):
    """Check an adjacency matrix over the rows of an embedding."""
    graph = sparse.csr_array(graph, dtype=np.float64, copy=True)
    if graph.shape != (n_genes, n_genes):
        raise ValueError(
            "graph must be an (n_genes, n_genes) adjacency matrix over the rows of embedding, "
            f"got shapes {graph.shape} and ({n_genes}, ...)."
        )
    if not np.isfinite(graph.data).all():
        raise ValueError("graph must hold finite weights, got NaN or infinity.")
    graph.setdiag(0)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    return graph


def count_kept(graph, embedding, *, k, metric="cosine", queries=None, own=None, hops=1):
    """Count the neighbours of each gene in the graph that are also near in the embedding."""
    queries = embedding if queries is None else queries
    own = np.arange(graph.shape[0]) if own is None else own
    if metric == "cosine":
        embedding, queries = _unit_rows(embedding), _unit_rows(queries)
    kept, size = np.zeros(graph.shape[0]), np.zeros(graph.shape[0], dtype=int)
    genes = np.flatnonzero(np.diff(graph.indptr))
    for start in range(0, genes.size, _QUERIES):
        block = genes[start : start + _QUERIES]
        around = graph[block]
        if hops == 2:
            around = _with_second_hop(around, graph, block)
        rows, neighbours = _strongest_edges(around, k)
        distances = _distances(queries[block], embedding, metric)
        known = np.flatnonzero(own[block] >= 0)
        distances[known, own[block][known]] = np.inf
        hits = _nearest(distances, k)[rows, neighbours]
        kept[block] = np.bincount(rows, weights=hits, minlength=block.size)
        size[block] = np.bincount(rows, minlength=block.size)
    return kept, size


def _unit_rows(embedding):
    norms = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / np.where(norms > 0, norms, 1)


def _with_second_hop(around, graph, block):
    """Add genes that share neighbours, with less weight than any edge."""
    edges, step = (matrix.astype(bool).astype(np.float64) for matrix in (around, graph))
    shared = sparse.coo_array(edges @ step)
    others = shared.col != block[shared.row]
    weights = shared.data[others] / (shared.data.max(initial=0) + 1)
    where = (shared.row[others], shared.col[others])
    shared = sparse.csr_array((weights, where), shape=around.shape)
    # Weights of shared neighbours are below 1, so this lifts every edge to 1 or more.
    lift = 1 + 2 * np.abs(around.data).max()
    return sparse.csr_array(around + edges * lift + shared)


def _strongest_edges(graph, k):
    """Return rows and columns of the k strongest edges per gene; ties by index."""
    graph.eliminate_zeros()
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    order = np.lexsort((graph.indices, -graph.data, rows))
    rank = np.arange(len(rows)) - graph.indptr[rows]
    kept = order[rank < k]
    return rows[kept], graph.indices[kept]


def _distances(queries, embedding, metric):
    if metric != "cosine":
        return pairwise_distances(queries, embedding, metric=metric)
    # Rows are unit vectors or zero; a zero row has no direction and is near no other.
    # In a matrix product, equal rows differ by rounding errors that depend on their position;
    # rounding makes them ties.
    distances = np.round(-(queries @ embedding.T), 6 if embedding.dtype == np.float32 else 12)
    distances[:, ~embedding.any(axis=1)] = np.inf
    distances[~queries.any(axis=1)] = np.inf
    return distances


def _nearest(distances, k):
    """Return a mask of the k nearest genes of each row; ties by index."""
    if k >= distances.shape[1]:
        return np.isfinite(distances)
    limit = np.partition(distances, k - 1, axis=1)[:, k - 1 : k]
    nearer, tied = distances < limit, distances == limit
    room = k - nearer.sum(axis=1, keepdims=True)
    return (nearer | (tied & (np.cumsum(tied, axis=1) <= room))) & np.isfinite(distances)
