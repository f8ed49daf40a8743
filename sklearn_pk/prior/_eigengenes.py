"""Gene embeddings by the leading eigenvectors of co-expression."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral, Real

import numpy as np
import pandas as pd
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import randomized_svd
from sklearn.utils.validation import check_is_fitted, validate_data

from ..utils._annotation import check_samples
from ..utils._frames import freeze_frames, thaw_frames
from ..utils._linalg import principal_axes
from ._expression_sources import normalize_sources

# Genes and patients above which only the leading eigengenes are computed, by random projection.
_EXACT = 5000


class EigengeneEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """
    Embed genes by the leading eigenvectors of their co-expression.

    The rows of X are *genes*, its columns patients: pass ``expression.T``. Neither a graph nor a
    threshold is needed. The inner product of two embeddings is the best low-rank approximation
    of the correlation of the two normalised genes or, with ``normalize=None``, of their
    covariance.

    Parameters
    ----------
    n_components : int, default=150
        Dimension of the embeddings. If the expression has fewer independent components, there
        are that many.

    normalize : {"rank", "standard"} or None, default="rank"
        Normalisation of each gene. "rank" replaces its values by the normal scores of their
        ranks, so that neither scale nor outliers matter; "standard" divides by the standard
        deviation; None only centres.

    expression : DataFrame of shape (n_other_patients, n_genes) or None, default=None
        Expression of patients without slides, on a log scale: one row per patient, columns
        matched with the genes of X by name, so X has to be a DataFrame with gene names as its
        index. Each gene is normalised within this table, whose platform and unit may differ.
        Genes that the table lacks are known from X only. It must not contain patients who are
        trained on or tested; those found by name, TCGA barcode or equal values are refused.

    use : {"add", "instead"}, default="add"
        Whether the eigengenes are those of X and `expression` together or of `expression` alone.

    weight : float, default=1.0
        Weight of a patient of `expression`, with ``use="add"``, relative to a patient of X.
        :class:`~sklearn_pk.regression.PriorKnowledgeRidge` chooses among several by
        leave-one-out: pass it a list of embedders.

    random_state : int, RandomState instance or None, default=None
        Seed of the randomised singular value decomposition, which is used if there are more
        than 5,000 genes and more than 5,000 patients. Otherwise the decomposition is exact.

    Attributes
    ----------
    embedding_ : ndarray of shape (n_genes, k)
        G for the genes of :meth:`fit`, in the dtype of X: left singular vectors times singular
        values divided by the square root of the number of patients. k is `n_components` or the
        number of components there are.

    components_ : ndarray of shape (k, n_patients)
        The eigengenes: profiles over the patients, with unit norm. Patients of X come first,
        then those of `expression`.

    singular_values_ : ndarray of shape (k,)
        Singular values of the normalised expression.

    explained_variance_ratio_ : ndarray of shape (k,)
        Fraction of the variance of all genes that each eigengene explains.

    n_features_in_ : int
        Number of patients of X.

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
    >>> embedder = EigengeneEmbedder(10)
    >>> embedder.fit_transform(expression.T).shape
    (1000, 10)
    >>> float(embedder.explained_variance_ratio_.sum().round(2))
    0.53

    With half of the patients as a cohort without slides:

    >>> slides, others = expression.iloc[:125], expression.iloc[125:]
    >>> EigengeneEmbedder(10, expression=others).fit(slides.T).components_.shape
    (10, 250)
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "normalize": [StrOptions({"rank", "standard"}), None],
        "expression": [pd.DataFrame, None],
        "use": [StrOptions({"add", "instead"})],
        "weight": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components=150,
        *,
        normalize="rank",
        expression=None,
        use="add",
        weight=1.0,
        random_state=None,
    ):
        self.n_components = n_components
        self.normalize = normalize
        self.expression = expression
        self.use = use
        self.weight = weight
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
            If there are fewer than two patients, a value is NaN or infinite, or `expression`
            shares no gene or a patient with X.
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
        Z, self._total = self._prepare(X, reset=True)
        if min(Z.shape) <= _EXACT:
            components, singular = principal_axes(Z)
        else:
            random_state = check_random_state(self.random_state)
            rank = min(self.n_components, *Z.shape)
            _, singular, components = randomized_svd(Z, rank, random_state=random_state)
        # One component of zeros stands for none.
        rank = max(1, min(self.n_components, len(singular)))
        self.components_ = np.zeros((rank, Z.shape[1]), dtype=Z.dtype)
        self.components_[: len(singular)] = components[:rank]
        self.singular_values_ = np.zeros(rank, dtype=Z.dtype)
        self.singular_values_[: len(singular)] = singular[:rank]
        variance = np.square(Z, dtype=np.float64).sum()
        self.explained_variance_ratio_ = np.square(self.singular_values_) / (variance or 1)
        self.embedding_ = self._project(Z)
        # The sign is arbitrary: the gene with the largest absolute value is positive.
        largest = np.abs(self.embedding_).argmax(axis=0)
        signs = np.where(self.embedding_[largest, np.arange(rank)] < 0, -1, 1).astype(Z.dtype)
        self.components_ *= signs[:, np.newaxis]
        self.embedding_ *= signs
        return self.embedding_.copy()

    def transform(self, X):
        """
        Embed genes by their expression in the patients of :meth:`fit`.

        Parameters
        ----------
        X : {array-like, DataFrame} of shape (n_rows, n_patients)
            Expression of genes in the patients of :meth:`fit`; they are looked up by name in
            `expression`.

        Returns
        -------
        G : ndarray of shape (n_rows, n_components)
            Gene embeddings.
        """
        check_is_fitted(self)
        return self._project(self._prepare(X, reset=False)[0])

    def _prepare(self, X, *, reset):
        """Return normalised expression of all patients, and the sum of their weights."""
        names = X.index if isinstance(X, pd.DataFrame) else None
        patients = X.columns if isinstance(X, pd.DataFrame) else None
        X = validate_data(
            self, X, dtype=[np.float64, np.float32], ensure_min_features=1 + reset, reset=reset
        )
        if reset:
            check_samples(X, names, patients)
        return normalize_sources(X, names, patients, self, self.normalize)

    def _project(self, Z):
        return (Z @ self.components_.T / np.sqrt(self._total)).astype(Z.dtype, copy=False)

    def __getstate__(self):
        return freeze_frames(super().__getstate__())

    def __setstate__(self, state):
        super().__setstate__(thaw_frames(state))

    @property
    def _n_features_out(self):
        return self.components_.shape[0]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
