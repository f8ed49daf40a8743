"""How much of a gene graph an embedding of its genes preserves."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral

import numpy as np
from scipy import sparse
from sklearn.metrics import pairwise_distances
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

# Query genes of one block times all genes: 256 x 25,761 float32 distances are 26 MB.
_QUERIES = 256


def _check_graph(graph, n_genes):
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


def _strongest_edges(graph, k):
    """Return rows and columns of at most k edges a gene, by weight, then by index."""
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    order = np.lexsort((graph.indices, -graph.data, rows))
    rank = np.arange(len(rows)) - graph.indptr[rows]
    kept = order[rank < k]
    return rows[kept], graph.indices[kept]


def _distances(embedding, queries, metric):
    """Return distances of some genes to all genes, infinite to the gene itself."""
    if metric == "cosine":
        # Rows are unit vectors or zero; a zero row has no direction and is near nothing.
        distances = -(embedding[queries] @ embedding.T)
        empty = ~embedding.any(axis=1)
        distances[:, empty] = np.inf
        distances[empty[queries]] = np.inf
    else:
        distances = pairwise_distances(embedding[queries], embedding, metric=metric)
    distances[np.arange(len(queries)), queries] = np.inf
    return distances


def _nearest(distances, k):
    """Mark the k nearest genes of each row; among equals the lower index comes first."""
    if k >= distances.shape[1]:
        return np.isfinite(distances)
    limit = np.partition(distances, k - 1, axis=1)[:, k - 1 : k]
    nearer, tied = distances < limit, distances == limit
    room = k - nearer.sum(axis=1, keepdims=True)
    return (nearer | (tied & (np.cumsum(tied, axis=1) <= room))) & np.isfinite(distances)


@validate_params(
    {
        "graph": ["sparse matrix", "array-like"],
        "embedding": ["array-like"],
        "k": [Interval(Integral, 1, None, closed="left")],
        "metric": [str],
        "normalize": [StrOptions({"k", "degree"})],
    },
    prefer_skip_nested_validation=True,
)
def neighborhood_preservation(graph, embedding, *, k=100, metric="cosine", normalize="k"):
    """
    Measure how many neighbours in a gene graph stay neighbours in an embedding.

    NP(k) is the mean over genes of the size of the intersection of the gene's k strongest
    edges and its k nearest genes in the embedding, divided by k.

    Parameters
    ----------
    graph : sparse array or array-like of shape (n_genes, n_genes)
        Adjacency, edge weights as values. A gene's neighbours are its edges, at most `k`,
        the heaviest first and among equal weights the lower index first. Self loops do not
        count.
    embedding : array-like of shape (n_genes, n_components)
        One row a gene, in the order of `graph`.
    k : int, default=100
        Size of a neighbourhood.
    metric : str, default="cosine"
        Distance in the embedding: "cosine" or a name known to
        :func:`sklearn.metrics.pairwise_distances`. Under "cosine" a zero row, such as a gene
        outside the prior gets, is nobody's neighbour and has none.
    normalize : {"k", "degree"}, default="k"
        "k" divides by k as published, so a gene with fewer edges than k cannot reach 1.
        "degree" divides by min(k, number of edges), so 1 means that all were kept.

    Returns
    -------
    score : float
        Mean over the genes that have an edge, in [0, 1].

    Raises
    ------
    ValueError
        If the shapes do not fit, `graph` has no edge, or a value is NaN or infinite.

    See Also
    --------
    sklearn_pk.prior.NMFGeneEmbedder : Embeds the genes of a graph.

    Notes
    -----
    Only genes with an edge are looked up, some hundred at a time, so no dense matrix of
    genes by genes is formed.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from sklearn_pk.metrics import neighborhood_preservation
    >>> graph = sparse.csr_array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    >>> embedding = np.array([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    >>> neighborhood_preservation(graph, embedding, k=1)
    1.0
    """
    embedding = check_array(embedding, dtype=[np.float64, np.float32], input_name="embedding")
    graph = _check_graph(graph, embedding.shape[0])
    genes = np.flatnonzero(np.diff(graph.indptr))
    if genes.size == 0:
        raise ValueError("graph must have at least one edge between two genes, got none.")
    if metric == "cosine":
        norms = np.linalg.norm(embedding, axis=1, keepdims=True)
        embedding = embedding / np.where(norms > 0, norms, 1)
    rows, neighbours = _strongest_edges(graph, k)
    kept = np.zeros(graph.shape[0])
    for start in range(0, genes.size, _QUERIES):
        queries = genes[start : start + _QUERIES]
        nearest = _nearest(_distances(embedding, queries, metric), k)
        edges = slice(*np.searchsorted(rows, [queries[0], queries[-1] + 1]))
        position = np.searchsorted(queries, rows[edges])
        hits = nearest[position, neighbours[edges]]
        kept += np.bincount(rows[edges], weights=hits, minlength=kept.size)
    size = k if normalize == "k" else np.minimum(k, np.bincount(rows, minlength=kept.size)[genes])
    return float(np.mean(kept[genes] / size))
