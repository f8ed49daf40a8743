"""Gene embeddings by the leading eigenvectors of co-expression."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import randomized_svd
from sklearn.utils.validation import check_is_fitted, validate_data

from ..utils._linalg import centre_rows

# Rows per block, which bounds the memory of float64 copies.
_ROWS = 1024


def normalize_genes(X, normalize):
    """Centre each gene over the patients and scale it."""
    n_patients = X.shape[1]
    Z = np.empty_like(X)
    for block in gen_batches(len(X), _ROWS):
        rows = X[block].astype(np.float64)
        varies = centre_rows(rows)[1] > 0
        if normalize == "rank":
            rows = ndtri((rankdata(rows, axis=1) - 0.5) / n_patients)
        centred, norms, _ = centre_rows(rows)
        centred[~varies] = 0.0
        if normalize is not None:
            centred /= (np.where(varies, norms, 1) / np.sqrt(n_patients))[:, np.newaxis]
        Z[block] = centred
    return Z


class EigengeneEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """
    Embed genes by the leading eigenvectors of their co-expression.

    The rows of X are *genes*, its columns patients: pass ``expression.T``. Neither a graph nor a
    threshold is needed. The inner product of two embeddings is the best low-rank approximation
    of the correlation of the two normalised genes or, with ``normalize=None``, of their
    covariance.

    Parameters
    ----------
    n_components : int, default=30
        Dimension of the embeddings. Components beyond the number of genes or of
        patients are zero.

    normalize : {"rank", "standard"} or None, default="rank"
        Normalisation of each gene. "rank" replaces its values by the normal scores of their
        ranks, so that neither scale nor outliers matter; "standard" divides by the standard
        deviation; None only centres.

    random_state : int, RandomState instance or None, default=None
        Seed of the randomised singular value decomposition.

    Attributes
    ----------
    embedding_ : ndarray of shape (n_genes, n_components)
        G for the genes of :meth:`fit`, in the dtype of X: left singular vectors times singular
        values divided by the square root of the number of patients.

    components_ : ndarray of shape (n_components, n_patients)
        The eigengenes: profiles over the patients, with unit norm.

    singular_values_ : ndarray of shape (n_components,)
        Singular values of the normalised expression.

    explained_variance_ratio_ : ndarray of shape (n_components,)
        Fraction of the variance of all genes that each eigengene explains.

    n_features_in_ : int
        Number of patients.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the patients. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    NMFGeneEmbedder : Embeds genes by their graph.
    sklearn.decomposition.TruncatedSVD : The decomposition alone.
    sklearn_pk.regression.PriorKnowledgeRegressor : Takes this as its `prior`.

    Notes
    -----
    The columns of G are the eigenvectors of the gene by gene correlation matrix, each times
    the square root of its eigenvalue. That matrix is never built. Constant genes get a
    row of zeros.

    References
    ----------
    .. [1] Alter, Brown and Botstein, "Singular value decomposition for genome-wide expression
       data processing and modeling", PNAS 97:10101 (2000), for the name.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_brca_expression
    >>> from sklearn_pk.prior import EigengeneEmbedder
    >>> expression = load_brca_expression().expression
    >>> embedder = EigengeneEmbedder(10, random_state=0)
    >>> embedder.fit_transform(expression.T).shape
    (1000, 10)
    >>> float(embedder.explained_variance_ratio_.sum().round(2))
    0.53
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "normalize": [StrOptions({"rank", "standard"}), None],
        "random_state": ["random_state"],
    }

    def __init__(self, n_components=30, *, normalize="rank", random_state=None):
        self.n_components = n_components
        self.normalize = normalize
        self.random_state = random_state

    def fit(self, X, y=None):
        """
        Compute the eigengenes.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_genes, n_patients)
            Expression on a log scale; one row per gene, one column per patient.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : object
            The fitted embedder.

        Raises
        ------
        ValueError
            If there are fewer than two patients, or a value is NaN or infinite.
        """
        self.fit_transform(X)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """
        Compute the eigengenes and return the gene embeddings.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_genes, n_patients)
            Expression on a log scale; one row per gene, one column per patient.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        G : ndarray of shape (n_genes, n_components)
            Gene embeddings.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_features=2)
        Z = normalize_genes(X, self.normalize)
        rank = min(self.n_components, *Z.shape)
        random_state = check_random_state(self.random_state)
        _, singular, components = randomized_svd(Z, rank, random_state=random_state)
        self.components_ = np.zeros((self.n_components, Z.shape[1]), dtype=Z.dtype)
        self.components_[:rank] = components
        self.singular_values_ = np.zeros(self.n_components, dtype=Z.dtype)
        self.singular_values_[:rank] = singular
        total = np.square(Z, dtype=np.float64).sum()
        self.explained_variance_ratio_ = np.square(self.singular_values_) / (total or 1)
        self.embedding_ = self._project(Z)
        return self.embedding_.copy()

    def transform(self, X):
        """
        Embed genes by their expression in the patients of :meth:`fit`.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_rows, n_patients)
            Expression of genes in the patients of :meth:`fit`.

        Returns
        -------
        G : ndarray of shape (n_rows, n_components)
            Gene embeddings.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._project(normalize_genes(X, self.normalize))

    def _project(self, Z):
        return (Z @ self.components_.T / np.sqrt(Z.shape[1])).astype(Z.dtype, copy=False)

    @property
    def _n_features_out(self):
        return self.components_.shape[0]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
