"""Gene embeddings by non-negative factorisation of a gene-gene graph."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from numbers import Integral, Real

import numpy as np
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

from ._nmf import factorize, project


def embedding_scale(W, scaling):
    """
    Compute the factors that bring an embedding to a defined scale.

    Parameters
    ----------
    W : ndarray of shape (n_genes, n_components)
        Embedding; rows that are all zero do not count.
    scaling : {"init", "columns"} or None
        "init" gives the root mean square of a freshly drawn linear layer,
        ``1 / sqrt(3 * n_components)``, to the whole embedding, "columns" to each
        component; None changes nothing.

    Returns
    -------
    scale : ndarray of shape (n_components,)
        Factor for each column of `W`.
    """
    n_components = W.shape[1]
    scale = np.ones(n_components, dtype=W.dtype)
    connected = W[W.any(axis=1)]
    if scaling is None or not len(connected):
        return scale
    mean_square = np.mean(np.square(connected, dtype=np.float64), axis=0)
    if scaling == "init":
        mean_square[:] = mean_square.mean()
    used = mean_square > 0
    scale[used] = 1 / np.sqrt(3 * n_components * mean_square[used])
    return scale


def _residual(X, W, H):
    """Frobenius norm of X - W H without building it."""
    cross = np.sum(np.asarray(X @ H.T) * W, dtype=np.float64)
    product = np.sum((W.T @ W) * (H @ H.T), dtype=np.float64)
    norm = squared_norm(X.data if hasattr(X, "data") and not isinstance(X, np.ndarray) else X)
    return float(np.sqrt(max(norm - 2 * cross + product, 0.0)))


class NMFGeneEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """
    Embed genes by non-negative matrix factorisation of their graph.

    The adjacency matrix M of a gene-gene graph is factorised as
    ``M ~ G @ components_`` with non-negative factors; the rows of G are the gene
    embeddings. Genes without edges get a row of zeros, so that a model which
    uses G falls back to what it learned by itself for them.

    Parameters
    ----------
    n_components : int, default=1024
        Width of the embeddings. Components beyond the number of connected genes
        are zero.

    solver : {"cd", "mu"}, default="cd"
        Solver of :func:`sklearn.decomposition.non_negative_factorization`, which
        is run on the connected part of the graph.

    init : {"random", "nndsvd", "nndsvda", "nndsvdar"}, default="random"
        Initialisation of the factors.

    tol : float, default=1e-4
        Tolerance of the stopping condition.

    max_iter : int, default=500
        Largest number of iterations.

    scaling : {"init", "columns"} or None, default="init"
        The scale of NMF factors is arbitrary, yet it decides how much a given
        lambda weighs the embeddings. "init" brings G as a whole to the root mean
        square of a freshly drawn linear layer of the same width,
        ``1 / sqrt(3 * n_components)``, "columns" does so for each component, and
        None leaves the factors as the solver gives them.

    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation.

    verbose : int, default=0
        Verbosity of the solver.

    Attributes
    ----------
    embedding_ : ndarray of shape (n_genes, n_components)
        G for the genes of :meth:`fit`, in the dtype of X.

    components_ : ndarray of shape (n_components, n_neighbors)
        The other factor.

    reconstruction_err_ : float
        Frobenius norm of ``M - embedding_ @ components_``.

    n_iter_ : int
        Number of iterations. `max_iter` means that `tol` was not reached, which for
        graphs is the rule and no cause for a warning.

    n_features_in_ : int
        Number of columns of X.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns of X. Defined only when X is a DataFrame with strings
        as its columns.

    See Also
    --------
    CoexpressionGraph : Makes the graph.
    sklearn_pk.metrics.neighborhood_preservation : How well G keeps the graph.
    sklearn.decomposition.TruncatedSVD : Another way from genes to embeddings.

    Notes
    -----
    :meth:`transform` solves a non-negative least squares problem for each row, and
    :meth:`fit_transform` returns the same solution for the rows it was given, so
    the two agree to the tolerance of that solver and the embedding of a gene
    depends on its own edges and `components_` alone. With few components, a gene
    whose neighbours none of them covers gets a row of zeros, too.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.

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
        "solver": [StrOptions({"cd", "mu"})],
        "init": [StrOptions({"random", "nndsvd", "nndsvda", "nndsvdar"})],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "scaling": [StrOptions({"init", "columns"}), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components=1024,
        *,
        solver="cd",
        init="random",
        tol=1e-4,
        max_iter=500,
        scaling="init",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.solver = solver
        self.init = init
        self.tol = tol
        self.max_iter = max_iter
        self.scaling = scaling
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        """
        Factorise a graph.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_genes, n_neighbors)
            Non-negative weights of the edges; one row a gene.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : object
            The fitted embedder.

        Raises
        ------
        ValueError
            If X has negative entries.
        """
        self.fit_transform(X)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """
        Factorise a graph and return the gene embeddings.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_genes, n_neighbors)
            Non-negative weights of the edges; one row a gene.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        G : ndarray of shape (n_genes, n_components)
            Gene embeddings; zero rows for genes without edges.
        """
        X = self._validate(X, reset=True)
        if not X.sum():
            warnings.warn(
                "NMFGeneEmbedder: the graph has no edges, so every gene embedding is zero. Lower "
                "the threshold of the graph or use another source.",
                UserWarning,
                stacklevel=2,
            )
        W, H, self.n_iter_ = factorize(
            X,
            self.n_components,
            solver=self.solver,
            init=self.init,
            tol=self.tol,
            max_iter=self.max_iter,
            random_state=check_random_state(self.random_state),
            verbose=self.verbose,
        )
        scale = embedding_scale(W, self.scaling)
        self.components_ = H / scale[:, np.newaxis]
        self.embedding_ = project(X, self.components_).astype(X.dtype, copy=False)
        self.reconstruction_err_ = _residual(X, self.embedding_, self.components_)
        return self.embedding_.copy()

    def transform(self, X):
        """
        Embed genes by their edges to the genes of :meth:`fit`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_rows, n_neighbors)
            Non-negative weights of the edges; one row a gene.

        Returns
        -------
        G : ndarray of shape (n_rows, n_components)
            Gene embeddings; zero rows for genes without edges.
        """
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        return project(X, self.components_).astype(X.dtype, copy=False)

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
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
