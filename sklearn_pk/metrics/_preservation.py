"""How well an embedding of genes preserves the neighbourhoods of their graph."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral

import numpy as np
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, Options, StrOptions, validate_params

from ..utils._neighborhood import check_graph, count_kept


@validate_params(
    {
        "graph": ["sparse matrix", "array-like"],
        "embedding": ["array-like"],
        "k": [Interval(Integral, 1, None, closed="left")],
        "metric": [str],
        "normalize": [StrOptions({"k", "degree"})],
        "hops": [Options(Integral, {1, 2})],
    },
    prefer_skip_nested_validation=True,
)
def neighborhood_preservation(graph, embedding, *, k=100, metric="cosine", normalize="k", hops=1):
    """
    Measure how many neighbours in a gene graph are neighbours in an embedding.

    NP(k) is the mean over genes of the size of the intersection of the gene's k strongest
    edges and its k nearest genes in the embedding, divided by k.

    Parameters
    ----------
    graph : sparse array or array-like of shape (n_genes, n_genes)
        Adjacency, edge weights as values. A gene's neighbours are its edges, at most `k`,
        the heaviest first and among equal weights the lower index first. Self loops do not
        count.
    embedding : array-like of shape (n_genes, n_components)
        One row per gene, in the order of `graph`.
    k : int, default=100
        Size of a neighbourhood.
    metric : str, default="cosine"
        Distance in the embedding: "cosine", "euclidean" or another name accepted by
        :func:`sklearn.metrics.pairwise_distances`. With "cosine", a zero row, as for genes
        outside the prior, has no neighbours and is not a neighbour of any gene.
    normalize : {"k", "degree"}, default="k"
        "k" divides by k, as published, so that genes with fewer than k edges cannot reach 1.
        "degree" divides by min(k, number of neighbours), so that 1 means all are preserved.
    hops : {1, 2}, default=1
        With 2, the neighbours of neighbours are included, ranked after the direct neighbours by
        their number of common neighbours. The neighbourhoods in sparse graphs, such as stars
        around a centre, are otherwise much smaller than 100.

    Returns
    -------
    score : float
        Mean over the genes with at least one edge, in [0, 1].

    Raises
    ------
    ValueError
        If the shapes do not match, `graph` has no edge, or a value is NaN or infinite.

    See Also
    --------
    sklearn_pk.prior.NMFGeneEmbedder : Embeds the genes of a graph.

    Notes
    -----
    Only genes with an edge are processed, in blocks of some hundred, so that no dense matrix of
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
    graph = check_graph(graph, embedding.shape[0])
    if not graph.nnz:
        raise ValueError("graph must have at least one edge between two genes, got none.")
    kept, size = count_kept(graph, embedding, k=k, metric=metric, hops=hops)
    connected = size > 0
    return float(np.mean(kept[connected] / (k if normalize == "k" else size[connected])))
