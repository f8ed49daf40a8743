"""Gene embeddings by non-negative factorisation of a gene-gene graph."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import warnings
from numbers import Integral, Real

import numpy as np
from scipy import sparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import squared_norm
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from ..utils._device import pick_device
from ..utils._linalg import unit_scale
from ..utils._neighborhood import check_graph, count_kept
from ._nmf import factorize, nonempty, project

# Value for genes whose edges no component covers, relative to the scale of the embedding.
_TRACE = 1e-6


def residual_norm(X, W, H):
    """Compute the Frobenius norm of X - W H without building the difference."""
    cross = np.sum(np.asarray(X @ H.T) * W, dtype=np.float64)
    product = np.sum((W.T @ W) * (H @ H.T), dtype=np.float64)
    norm = squared_norm(X.data if sparse.issparse(X) else X)
    return float(np.sqrt(max(norm - 2 * cross + product, 0.0)))


def canonical(X):
    """Copy a matrix to CSR with sorted, unique columns and no explicit zeros."""
    X = sparse.csr_array(X, copy=True)
    X.sum_duplicates()
    X.eliminate_zeros()
    return X


def edge_keys(X):
    """Hash the edges and weights of each row of a graph."""
    X = canonical(X)
    indices, data = X.indices.astype(np.int64), X.data.astype(np.float32)
    rows = map(slice, X.indptr[:-1], X.indptr[1:])
    edges = [indices[row].tobytes() + data[row].tobytes() for row in rows]
    return [hashlib.blake2b(edge, digest_size=16).hexdigest() for edge in edges]


def _without_loops(X, own):
    X = X.tocoo()
    others = X.col != own[X.row]
    return sparse.csr_array((X.data[others], (X.row[others], X.col[others])), shape=X.shape)


def _inverse_norms(factor):
    norms = np.linalg.norm(factor, axis=0)
    return 1 / np.where(norms > 0, norms, 1)


def _average_equal_rows(X, *factors):
    """Replace the embeddings of genes with the same edges by their mean, in place."""
    codes = np.unique(edge_keys(X), return_inverse=True)[1]
    counts = np.bincount(codes)
    repeated = np.flatnonzero(counts[codes] > 1)
    if not repeated.size:
        return
    where = (codes[repeated], np.arange(repeated.size))
    weights = (1 / counts[codes[repeated]]).astype(factors[0].dtype)
    mean = sparse.csr_array((weights, where), shape=(len(counts), repeated.size))
    for factor in factors:
        factor[repeated] = (mean @ factor[repeated])[codes[repeated]]


class NMFGeneEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """
    Embed genes by non-negative matrix factorisation of their graph.

    The adjacency matrix M of a gene-gene graph is factorised as
    ``M ~ G @ components_`` with non-negative factors; the rows of G are the gene
    embeddings [1]_. Genes without edges get a row of zeros, so that a model which
    uses G falls back to its learned weights for them.

    Parameters
    ----------
    n_components : int, default=1024
        Dimension of the embeddings. Components beyond the number of connected genes
        are zero.

    factors : {"left", "both"}, default="both"
        Which factors of M ~ W H form the embedding. "left" uses W, as published. "both" sums W
        and the transpose of H, after scaling their components to unit norm: genes with an edge
        then are close to each other, whereas W alone brings only genes with the same neighbours
        close to each other. Requires a symmetric graph.

    solver : {"hals", "cd", "mu"}, default="hals"
        "hals" is hierarchical alternating least squares by matrix products; "cd" and
        "mu" are the solvers of :func:`sklearn.decomposition.non_negative_factorization`. All run
        on the connected part of the graph. "hals" and "cd" perform the same updates.

    init : {"random", "nndsvd", "nndsvda", "nndsvdar"}, default="random"
        Initial factors, as in :class:`sklearn.decomposition.NMF`. "nndsvd" cannot be used with
        "mu", which keeps zeros at zero.

    tol : float, default=1e-4
        "hals" stops when ten iterations decrease the residual norm by less than `tol` times
        the norm of the graph. For the others see scikit-learn.

    max_iter : int, default=500
        Maximum number of iterations.

    scaling : {"init", "columns"} or None, default="init"
        The scale of NMF factors is arbitrary, yet it determines the effect of a given
        lambda. "init" scales G as a whole to the root mean square of a freshly initialised
        linear layer of the same width, ``1 / sqrt(3 * n_components)``, "columns" does so
        for each component, and None keeps the factors of the solver.

    n_neighbors : int, default=100
        Size of the neighbourhoods in :meth:`score` and ``explained_neighbors_``.

    compute_neighbors : bool, default=False
        Whether to compute ``explained_neighbors_``.

    device : str, default="cpu"
        Device of "hals": "cpu", "cuda" or another torch device, or "auto" for a GPU if there
        is one. Results of devices agree up to rounding.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial factors.

    verbose : int, default=0
        Whether to show progress.

    Attributes
    ----------
    embedding_ : ndarray of shape (n_genes, n_components)
        G for the genes of :meth:`fit`, in the dtype of X.

    components_ : ndarray of shape (n_components, n_genes)
        The other factor: ``embedding_ @ components_`` approximates the graph. With
        ``factors="both"``, this holds for the part of the embedding that comes from W.

    reconstruction_err_ : float
        Frobenius norm of the graph minus the product of its factors.

    n_iter_ : int
        Number of iterations. It equals `max_iter` if `tol` was not reached, which causes no
        warning, since embeddings are useful long before convergence.

    n_uncovered_genes_ : int
        Number of genes with edges that no component covers.

    explained_neighbors_ : ndarray of shape (n_genes,)
        Fraction of a gene's neighbours in the graph, at most `n_neighbors`, that are among its
        `n_neighbors` nearest in the embedding by cosine; NaN for genes without edges. Defined
        only with ``compute_neighbors=True``.

    n_features_in_ : int
        Number of genes.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of X. Defined only when X is a DataFrame with strings
        as its columns.

    See Also
    --------
    CoexpressionGraph : Builds the graph.
    EigengeneEmbedder : Gene embeddings from expression without a graph.
    sklearn_pk.metrics.neighborhood_preservation : How well G preserves the graph.

    Notes
    -----
    A row of G is zero exactly if the gene has no edges. With few components, some genes have
    edges that no component covers; such a gene gets the same tiny value, 1e-6 of the scale of
    the embedding, in each component.

    Genes with the same edges get the same embedding. :meth:`transform` recognises the genes of
    :meth:`fit` by their edges, so that it agrees with :meth:`fit_transform`; for each other row
    it solves a non-negative least squares problem.

    In a search with cross-validation, *genes* are held out: the graph of the other genes is
    factorised, and :meth:`score` measures whether held-out genes, embedded by their edges to
    these, are close to their neighbours.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.
    .. [2] Cichocki and Phan, "Fast local algorithms for large scale nonnegative matrix and
       tensor factorizations", IEICE Transactions E92-A:708 (2009), for "hals".

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_pk.datasets import load_brca_expression
    >>> from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
    >>> expression = load_brca_expression().expression
    >>> prior = make_pipeline(
    ...     CoexpressionGraph(threshold=0.7), NMFGeneEmbedder(16, random_state=0)
    ... )
    >>> prior.fit_transform(expression.T).shape
    (1000, 16)
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "factors": [StrOptions({"left", "both"})],
        "solver": [StrOptions({"hals", "cd", "mu"})],
        "init": [StrOptions({"random", "nndsvd", "nndsvda", "nndsvdar"})],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "scaling": [StrOptions({"init", "columns"}), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "compute_neighbors": ["boolean"],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components=1024,
        *,
        factors="both",
        solver="hals",
        init="random",
        tol=1e-4,
        max_iter=500,
        scaling="init",
        n_neighbors=100,
        compute_neighbors=False,
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.factors = factors
        self.solver = solver
        self.init = init
        self.tol = tol
        self.max_iter = max_iter
        self.scaling = scaling
        self.n_neighbors = n_neighbors
        self.compute_neighbors = compute_neighbors
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """
        Factorise a graph.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_genes, n_genes)
            Non-negative weights of the edges.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : object
            The fitted embedder.

        Raises
        ------
        MemoryError
            If `device` runs out of memory.
        ValueError
            If X has negative entries, is not square, or, with ``factors="both"``, is not
            symmetric, or if `device` is not available or is MPS.
        """
        self.fit_transform(X)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """
        Factorise a graph and return the gene embeddings.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_genes, n_genes)
            Non-negative weights of the edges.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        G : ndarray of shape (n_genes, n_components)
            Gene embeddings; zero rows for genes without edges.
        """
        X = self._validate(X, reset=True)
        self._check_graph(X)
        device = pick_device(self.device)
        if device.startswith("mps"):
            raise ValueError(
                f"device={device!r}: PyTorch has neither sparse matrices nor float64 on MPS, which "
                "the solver 'hals' needs. Use device='cpu'."
            )
        W, H, self.n_iter_ = factorize(
            X,
            self.n_components,
            solver=self.solver,
            init=self.init,
            tol=self.tol,
            max_iter=self.max_iter,
            random_state=check_random_state(self.random_state),
            device=device,
            verbose=self.verbose,
        )
        self.reconstruction_err_ = residual_norm(X, W, H)
        self._set_embedding(X, W, H)
        if hasattr(self, "explained_neighbors_"):
            del self.explained_neighbors_
        if self.compute_neighbors:
            graph = check_graph(X, X.shape[0])
            kept, size = count_kept(graph, self.embedding_, k=self.n_neighbors)
            self.explained_neighbors_ = kept / np.where(size > 0, size, np.nan)
        return self.embedding_.copy()

    def _check_graph(self, X):
        if X.shape[0] != X.shape[1]:
            raise ValueError(
                "NMFGeneEmbedder is fitted on a graph, a square matrix with one row and one column "
                f"per gene, got shape {X.shape}. CoexpressionGraph builds one from expression."
            )
        if self.solver == "mu" and self.init == "nndsvd":
            raise ValueError(
                "init='nndsvd' contains zeros, which solver='mu' never changes. Use "
                "init='nndsvda' or solver='hals'."
            )
        if self.factors == "both" and abs(X - X.T).max() > 1e-6 * X.max():
            raise ValueError(
                "factors='both' needs a symmetric graph, but X differs from its transpose. Use "
                "(X + X.T) / 2 or factors='left'."
            )
        if not X.sum():
            warnings.warn(
                "NMFGeneEmbedder: the graph has no edges, so every gene embedding is zero. Lower "
                "the threshold of the graph or use another source.",
                UserWarning,
                stacklevel=4,
            )

    def _set_embedding(self, X, W, H):
        """Set the embedding, and the factors that embed new rows in the same way."""
        both = self.factors == "both"
        factors = [factor.astype(X.dtype) for factor in ((W, H.T) if both else (W,))]
        weights = [_inverse_norms(factor) if both else 1 for factor in factors]
        _average_equal_rows(X, *factors)
        embedding = sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
        covered = embedding[embedding.any(axis=1)]
        size = np.sqrt(np.mean(np.square(covered, dtype=np.float64))) if len(covered) else 1.0
        self._trace = np.full(W.shape[1], _TRACE * size)
        self.n_uncovered_genes_ = self._fill_uncovered(X, embedding)
        scale = np.ones(W.shape[1])
        if self.scaling is not None:
            scale = unit_scale(embedding, columns=self.scaling == "columns")
        embedding *= scale
        self._trace *= scale
        # Since X ~ W H is also X ~ (W s) (H / s), solving rows for H / s gives W s.
        self.components_ = (H / (scale * weights[0])[:, np.newaxis]).astype(X.dtype)
        self._other_components = None
        if both:
            self._other_components = (factors[0] / (scale * weights[1])).T.astype(X.dtype)
        self.embedding_ = embedding
        keys = edge_keys(X)
        self._known = {key: position for position, key in enumerate(keys)}
        self._own_positions = np.array([self._known[key] for key in keys], dtype=np.intp)

    def _fill_uncovered(self, X, embedding):
        uncovered = nonempty(X)[0] & (embedding < self._trace).all(axis=1)
        embedding[uncovered] = self._trace
        return int(np.count_nonzero(uncovered))

    def transform(self, X):
        """
        Embed genes by their edges to the genes of :meth:`fit`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_genes)
            Non-negative weights of the edges; one row per gene.

        Returns
        -------
        G : ndarray of shape (n_rows, n_components)
            Gene embeddings; zero rows for genes without edges.
        """
        check_is_fitted(self, "embedding_")
        X = self._validate(X, reset=False)
        return self._embed(X, self._positions(X))

    def score(self, X, y=None):
        """
        Measure how many graph neighbours of genes are neighbours in the embedding.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_genes)
            Non-negative weights of edges to the genes of :meth:`fit`: the graph of :meth:`fit`, or
            rows of new genes.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        score : float
            NP(`n_neighbors`) by cosine, see
            :func:`~sklearn_pk.metrics.neighborhood_preservation`; the neighbours are
            genes of :meth:`fit`.

        Raises
        ------
        ValueError
            If X has no edges.
        """
        check_is_fitted(self, "embedding_")
        X = self._validate(X, reset=False)
        positions = self._positions(X)
        # For the rows of fit in their order, each gene is its own position.
        if np.array_equal(positions, self._own_positions):
            positions = np.arange(len(positions))
        graph = _without_loops(canonical(X), positions)
        if not graph.nnz:
            raise ValueError("X must have at least one edge to a gene of fit, got none.")
        queries = self._embed(X, positions)
        kept, size = count_kept(
            graph, self.embedding_, k=self.n_neighbors, queries=queries, own=positions
        )
        return float(np.mean(kept[size > 0]) / self.n_neighbors)

    def _positions(self, X):
        """Return the position of each row of X among those of fit, or -1."""
        keys = edge_keys(X)
        return np.array([self._known.get(key, -1) for key in keys], dtype=np.intp)

    def _embed(self, X, positions):
        embedding = np.empty((X.shape[0], self.components_.shape[0]), dtype=X.dtype)
        known, new = positions >= 0, positions < 0
        embedding[known] = self.embedding_[positions[known]]
        if new.any():
            rows = project(X[new], self.components_)
            if self._other_components is not None:
                rows += project(X[new], self._other_components)
            self._fill_uncovered(X[new], rows)
            embedding[new] = rows
        return embedding

    def _validate(self, X, *, reset):
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=reset)
        check_non_negative(X, "NMFGeneEmbedder (input X)")
        return X

    @property
    def _n_features_out(self):
        return self.components_.shape[0]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.pairwise = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
