"""Co-expression graphs from training expression, from gene sets, or from both."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
from numbers import Integral, Real

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ._gene_sets import edges_to_graph, load_edges, pairs_to_graph

# A float32 product of unit vectors is off by about 1e-6: pairs this near to the threshold are
# computed again in float64, so that the edges do not depend on the size of the blocks or the number
# of threads.
_MARGIN = 1e-5


def standardize_rows(X):
    """
    Centre every row and scale it to unit length; constant rows become zero.

    Parameters
    ----------
    X : ndarray of shape (n_genes, n_patients)
        Expression.

    Returns
    -------
    Z : ndarray of shape (n_genes, n_patients), float64
        Rows whose inner products are Pearson correlations.
    """
    Z = X - X.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(Z, axis=1, keepdims=True)
    # A constant row leaves only the rounding error of its mean, relative to its size.
    constant = norms <= 1e-12 * np.sqrt(X.shape[1]) * np.abs(X).max(axis=1, keepdims=True)
    return np.where(constant, 0.0, Z / np.where(constant, 1.0, norms))


def correlated_pairs(Z_rows, Z_columns, threshold, *, absolute=False, block_size=2048):
    """
    Find all pairs of rows that correlate above a threshold.

    Parameters
    ----------
    Z_rows : ndarray of shape (n_rows, n_patients), float64
        Standardised rows.
    Z_columns : ndarray of shape (n_columns, n_patients), float64
        Standardised rows.
    threshold : float
        Pairs with r > `threshold` are kept.
    absolute : bool, default=False
        Whether abs(r) counts instead of r.
    block_size : int, default=2048
        Rows of either side in one product, which bounds the memory.

    Returns
    -------
    rows, columns : ndarray of intp
        Indices into `Z_rows` and `Z_columns`. Rows of zeros, which stand for constant
        genes, have no part in any pair.
    """
    found = [(np.empty(0, np.intp), np.empty(0, np.intp))]
    varying_rows, varying_columns = Z_rows.any(axis=1), Z_columns.any(axis=1)
    columns32 = Z_columns.astype(np.float32)
    for start in range(0, len(Z_rows), block_size):
        rows32 = Z_rows[start : start + block_size].astype(np.float32)
        for offset in range(0, len(Z_columns), block_size):
            r = rows32 @ columns32[offset : offset + block_size].T
            if absolute:
                np.abs(r, out=r)
            i, j = np.nonzero(r > threshold - _MARGIN)
            near = r[i, j] < threshold + _MARGIN
            i, j = i + start, j + offset
            exact = np.einsum("ij,ij->i", Z_rows[i[near]], Z_columns[j[near]])
            keep = varying_rows[i] & varying_columns[j]
            keep[near] &= (np.abs(exact) if absolute else exact) > threshold
            found.append((i[keep], j[keep]))
    rows, columns = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(columns)


def _row_digests(X):
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in X + 0.0]
    return np.array(digests, dtype=object)


class CoexpressionGraph(TransformerMixin, BaseEstimator):
    """
    Connect genes whose expression correlates.

    The rows of X are *genes*, its columns patients: pass ``expression.T``. As
    with :class:`~sklearn.neighbors.KNeighborsTransformer`, the result is a
    sparse matrix over genes. Edges are undirected and unweighted, and a gene is
    never its own neighbour.

    Parameters
    ----------
    threshold : float, default=0.85
        Two genes are connected if their Pearson correlation over the patients
        is larger than this. Not used by ``source="external"``.

    source : {"internal", "external", "combined"}, default="internal"
        Where the edges come from: the correlations in X, the pairs in
        `external`, or the union of both.

    external : {"cgn"}, str, path-like or DataFrame, default="cgn"
        External knowledge: the shipped Cancer Gene Neighborhoods of MSigDB, the
        path of a GMT file whose sets are named after their centre gene
        (``PREFIX_GENE``; each set is read as centre-member edges), or a DataFrame
        with the columns gene_a and gene_b. Genes are matched by name, so X has
        to be a DataFrame with gene names as its index.

    absolute : bool, default=False
        Whether strong negative correlations connect genes as well.

    min_samples : int, default=2
        Smallest number of patients that correlations are computed from. Two are
        the least that have one; below some twenty they are mostly chance.

    Attributes
    ----------
    graph_ : CSR array of shape (n_genes, n_genes), float32
        Adjacency matrix: symmetric, ones, zero diagonal.

    gene_names_in_ : ndarray of shape (n_genes,), object
        Index of X. Defined only when X is a DataFrame with strings as its index.

    n_edges_ : int
        Number of undirected edges.

    n_connected_genes_ : int
        Number of genes with at least one edge.

    unmatched_genes_ : ndarray of str
        Genes of the external source that are not in X; empty without one.

    n_features_in_ : int
        Number of patients.

    feature_names_in_ : ndarray of shape (n_patients,)
        Names of the patients. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    NMFGeneEmbedder : Turns the graph into gene embeddings.
    sklearn_pk.regression.PriorKnowledgeRegressor : Fits both on training patients.

    Notes
    -----
    Correlations are computed in blocks, first in float32; pairs within 1e-5 of
    the threshold are computed again in float64. The gene by gene matrix is never
    built. Genes that are constant over the patients have no correlation and so
    no internal edge.

    ``fit_transform(X)`` equals ``fit(X).transform(X)``: :meth:`transform` gives
    the edges between the rows it is passed and the genes of :meth:`fit`, and knows
    a gene again by its name or, where X carries no names, by identical values.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_brca_expression
    >>> from sklearn_pk.prior import CoexpressionGraph
    >>> expression = load_brca_expression().expression
    >>> graph = CoexpressionGraph(threshold=0.85).fit(expression.T)
    >>> graph.n_edges_, graph.n_connected_genes_
    (483, 164)
    >>> graph.graph_.shape
    (1000, 1000)
    """

    _parameter_constraints: dict = {
        "threshold": [Interval(Real, -1, 1, closed="both")],
        "source": [StrOptions({"internal", "external", "combined"})],
        "external": [str, "array-like", pd.DataFrame],
        "absolute": ["boolean"],
        "min_samples": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(
        self, *, threshold=0.85, source="internal", external="cgn", absolute=False, min_samples=2
    ):
        self.threshold = threshold
        self.source = source
        self.external = external
        self.absolute = absolute
        self.min_samples = min_samples

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """
        Find the edges between the genes of X.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_genes, n_patients)
            Expression on a log scale; one row a gene, one column a patient.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : object
            The fitted graph.

        Raises
        ------
        ValueError
            If gene names repeat, if names are needed and missing, if no external
            gene is in X, or if there are fewer patients than `min_samples`.
        """
        names = self._gene_names(X)
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        if names is None:
            if hasattr(self, "gene_names_in_"):
                del self.gene_names_in_
        else:
            self.gene_names_in_ = names
        self._rows, self._keys = self._standardize(X, names)
        self._edges = None
        self.unmatched_genes_ = np.empty(0, dtype=str)
        if self.source != "internal":
            self._edges = load_edges(self.external)
            _, self.unmatched_genes_ = edges_to_graph(self._edges, names)
            if not pd.Index(names).isin(pd.unique(self._edges.to_numpy().ravel())).any():
                raise ValueError(
                    f"external: none of its genes (such as {self._edges['gene_a'].iloc[0]!r}) is "
                    f"among the {len(names)} genes of X (such as {names[0]!r}). Both need "
                    "the same kind of identifiers, for the shipped collection HGNC symbols."
                )
        self.graph_ = self._connect(self._rows, self._keys)
        degrees = np.diff(self.graph_.indptr)
        self.n_edges_ = int(degrees.sum()) // 2
        self.n_connected_genes_ = int(np.count_nonzero(degrees))
        return self

    def fit_transform(self, X, y=None):
        """
        Find the edges between the genes of X and return them.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_genes, n_patients)
            Expression on a log scale; one row a gene, one column a patient.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        graph : CSR array of shape (n_genes, n_genes), float32
            Adjacency matrix: symmetric, ones, zero diagonal.
        """
        return self.fit(X).graph_.copy()

    def transform(self, X):
        """
        Connect the genes of X to the genes of :meth:`fit`.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_rows, n_patients)
            Expression of genes in the same patients as in :meth:`fit`.

        Returns
        -------
        graph : CSR array of shape (n_rows, n_genes), float32
            One where a gene of X and a gene of :meth:`fit` are connected.
        """
        check_is_fitted(self)
        names = self._gene_names(X) if hasattr(self, "gene_names_in_") else None
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._connect(*self._standardize(X, names))

    def _gene_names(self, X):
        names = None
        if isinstance(X, pd.DataFrame):
            index = X.index
            if not isinstance(index, pd.RangeIndex):
                names = index.to_numpy(dtype=object)
                repeated = index[index.duplicated()].unique()
                if len(repeated):
                    raise ValueError(
                        f"X: gene names must be unique, but {len(repeated)} appear more than once: "
                        f"{list(repeated[:5])!r}. Rows of X are genes; sum or drop repeated ones."
                    )
        if names is None and self.source != "internal":
            raise ValueError(
                f"source={self.source!r} matches genes by name, but X has no gene names. Pass "
                "a DataFrame whose index holds them, such as expression.T."
            )
        return names

    def _standardize(self, X, names):
        n_patients = X.shape[1]
        if self.source != "external" and n_patients < self.min_samples:
            raise ValueError(
                f"CoexpressionGraph needs at least min_samples={self.min_samples} patients "
                f"(columns of X) to correlate genes, got n_features={n_patients}, "
                f"that is {n_patients} feature(s)."
            )
        X = np.ascontiguousarray(X, dtype=np.float64)
        return standardize_rows(X), _row_digests(X) if names is None else names

    def _connect(self, rows, keys):
        same_genes = rows is self._rows
        if self.source == "external":
            i = j = np.empty(0, np.intp)
        else:
            i, j = correlated_pairs(rows, self._rows, self.threshold, absolute=self.absolute)
        if self._edges is not None:
            names = keys if same_genes else np.concatenate([self.gene_names_in_, keys])
            unique = pd.unique(names)
            graph, _ = edges_to_graph(self._edges, unique)
            position = pd.Index(unique)
            external = sparse.coo_array(
                graph[position.get_indexer(keys)][:, position.get_indexer(self.gene_names_in_)]
            )
            i, j = np.concatenate([i, external.row]), np.concatenate([j, external.col])
        other = keys[i] != self._keys[j]
        i, j = i[other], j[other]
        if same_genes:
            return pairs_to_graph(i, j, len(keys))
        graph = sparse.csr_array(
            (np.ones(len(i), np.float32), (i, j)), shape=(len(keys), len(self._keys))
        )
        graph.sum_duplicates()
        graph.data[:] = 1.0
        return graph

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
