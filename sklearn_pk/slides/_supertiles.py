"""SuperTileClusterer: from all tiles of a slide to a few super-tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import warnings
from functools import cache
from numbers import Integral

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import ThreadpoolController

from ..utils import progress, validate_bags


@cache
def _threads():
    return ThreadpoolController()


def cluster_means(features, n_clusters, seed):
    """
    Reduce the tiles of one slide to the means of k-means clusters.

    Parameters
    ----------
    features : ndarray of shape (n_tiles, n_features)
        Tiles, none of them missing.
    n_clusters : int
        Number of clusters.
    seed : int
        Mixed with the content of `features` to seed the clustering.

    Returns
    -------
    means : ndarray of shape (n_clusters, n_features), float32
        Cluster means, the largest cluster first. With no more tiles than clusters, the
        tiles themselves. What is left over is NaN.
    """
    means = np.full((n_clusters, features.shape[1]), np.nan, dtype=np.float32)
    if len(features) <= n_clusters:
        means[: len(features)] = features
        return means
    content = hashlib.blake2b(np.ascontiguousarray(features).tobytes(), digest_size=4).digest()
    seed = (seed + int.from_bytes(content, "big")) % 2**32
    # One thread, so that sums are the same however many slides are worked on at a time.
    with warnings.catch_warnings(), _threads().limit(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct tiles than clusters
        labels = KMeans(n_clusters, n_init=1, random_state=seed).fit_predict(features)
    counts = np.bincount(labels, minlength=n_clusters)
    # Membership as a sparse matrix sums each cluster in float64 without a loop.
    ones, columns = np.ones(len(labels)), np.arange(len(labels))
    membership = sparse.csr_array((ones, (labels, columns)), shape=(n_clusters, len(labels)))
    sums = membership @ features.astype(np.float64)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    means[: len(order)] = sums[order] / counts[order, np.newaxis]
    return means


class SuperTileClusterer(TransformerMixin, BaseEstimator):
    """
    Reduce the tiles of each slide to the means of clusters in feature space.

    k-means runs on each slide by itself. The result has one shape for all slides:
    where a slide has fewer tiles than clusters, it keeps its tiles and the rest are rows
    of NaN, which stand for missing tiles.

    Parameters
    ----------
    n_clusters : int, default=100
        Number of super-tiles of a slide.

    random_state : int, RandomState instance or None, default=None
        Seed of k-means, mixed with the content of each slide, so that neither the order nor
        the company of the slides matters.

    n_jobs : int, default=None
        Number of slides worked on at a time.

    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    n_features_in_ : int
        Width of the tile features.

    seed_ : int
        Seed drawn from `random_state`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    FoundationFeaturizer : Makes the tile features.
    sklearn_pk.regression.PriorKnowledgeRegressor : Takes the super-tiles.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.slides import SuperTileClusterer
    >>> rng = np.random.default_rng(0)
    >>> bags = [rng.normal(size=(50, 8)), rng.normal(size=(3, 8))]
    >>> X = SuperTileClusterer(n_clusters=4, random_state=0).fit_transform(bags)
    >>> X.shape, np.isnan(X[1, :, 0]).tolist()
    ((2, 4, 8), [False, False, False, True])
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(self, *, n_clusters=100, random_state=None, n_jobs=None, verbose=0):
        self.n_clusters = n_clusters
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """
        Check the bags and remember their width.

        Parameters
        ----------
        X : list of array-like of shape (tiles_i, n_features), or array-like
            Bags. An array has shape (n, tiles, n_features), with NaN for missing tiles, or
            (n, n_features), which is one tile a slide.
        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : object
            The fitted clusterer.

        Raises
        ------
        ValueError
            If the width differs between slides, or a tile is partly NaN or holds infinity.
        """
        validate_bags(self, X, reset=True, allow_empty=True)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self

    def transform(self, X):
        """
        Cluster the tiles of each slide.

        Parameters
        ----------
        X : list of array-like of shape (tiles_i, n_features), or array-like
            Bags, as in :meth:`fit`.

        Returns
        -------
        supertiles : ndarray of shape (n, n_clusters, n_features), float32
            Cluster means; rows of NaN where there are fewer.
        """
        check_is_fitted(self)
        bags = validate_bags(self, X, reset=False, allow_empty=True)
        bar = progress(bags, desc="clustering", verbose=self.verbose, unit="slide")
        return np.stack(
            Parallel(n_jobs=self.n_jobs)(
                delayed(cluster_means)(bag, self.n_clusters, self.seed_) for bag in bar
            )
        )

    def __sklearn_tags__(self):
        """Tell scikit-learn that X may have three dimensions."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
