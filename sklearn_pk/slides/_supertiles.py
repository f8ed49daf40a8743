"""From all tiles of a slide to a few super-tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
import zlib
from functools import cache
from numbers import Integral, Real

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context, clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.extmath import randomized_svd
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import ThreadpoolController

from ..utils import validate_bags
from ..utils._bags import label_of_bag, read_bag
from ..utils._parallel import map_in_order
from ..utils._reporting import progress
from ..utils._validation import check_sample_names

# With fewer components, or fewer tiles per cluster, the inertia of k-means in the space of the
# leading components was more than half a percent higher on data without any structure.
_N_COMPONENTS = 64
_COMPONENTS_PER_CLUSTER = 1 / 4
_MIN_TILES_PER_CLUSTER = 4


@cache
def _threads():
    return ThreadpoolController()


def find_distinct(features):
    """Return the positions of the distinct tiles, the most frequent first."""
    features = np.ascontiguousarray(features)
    # Rows compared as bytes: np.unique(axis=0) compares number by number, which takes seconds.
    rows = features.view(np.dtype((np.void, features.itemsize * features.shape[1])))[:, 0]
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    return first[np.lexsort((first, -counts))]


def project_tiles(features, n_clusters, seed):
    """Project tiles on their leading principal components, where k-means is faster."""
    n_tiles, n_features = features.shape
    n_components = max(_N_COMPONENTS, int(n_clusters * _COMPONENTS_PER_CLUSTER))
    if n_features <= 2 * n_components or n_tiles <= _MIN_TILES_PER_CLUSTER * n_clusters:
        return features
    centered = features - features.mean(axis=0)
    u, s, _ = randomized_svd(centered, n_components, n_iter=2, random_state=seed)
    return u * s


def cluster_labels(features, n_clusters, seed):
    """Assign the tiles of one slide to k-means clusters."""
    seed = (seed + zlib.crc32(np.ascontiguousarray(features))) % 2**32
    # One thread, so that sums do not depend on the number of slides processed at a time.
    with warnings.catch_warnings(), _threads().limit(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct tiles than clusters
        projected = project_tiles(features, n_clusters, seed)
        return KMeans(n_clusters, n_init=1, random_state=seed).fit_predict(projected)


def cluster_means(features, n_clusters, seed):
    """Reduce the tiles of one slide to the means of k-means clusters."""
    means = np.full((n_clusters, features.shape[1]), np.nan, dtype=np.float32)
    if len(features) <= n_clusters:
        means[: len(features)] = features
        return means
    # There are at least as many distinct rows as values in one column, which is fast to check.
    if len(np.unique(features[:, 0])) <= n_clusters:
        distinct = find_distinct(features)
        if len(distinct) <= n_clusters:
            means[: len(distinct)] = features[distinct]
            return means
    labels = cluster_labels(features, n_clusters, seed)
    counts = np.bincount(labels, minlength=n_clusters)
    # The product with a sparse membership matrix sums each cluster in float64 without a loop.
    ones, columns = np.ones(len(labels)), np.arange(len(labels))
    membership = sparse.csr_array((ones, (labels, columns)), shape=(n_clusters, len(labels)))
    sums = membership @ features.astype(np.float64)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    means[: len(order)] = sums[order] / counts[order, np.newaxis]
    return means


def _reduce_bag(bag, position, n_features, n_clusters, seed):
    features = read_bag(bag, position=position, n_features=n_features, allow_empty=True)
    return cluster_means(features, n_clusters, seed)


class SuperTileClusterer(TransformerMixin, BaseEstimator):
    """
    Reduce the tiles of each slide to the means of clusters in feature space.

    k-means runs on each slide separately. The result has the same shape for all slides: a slide
    with fewer tiles than clusters keeps its tiles, and the other rows are NaN, which stands for
    missing tiles. Bags stored in files are read one by one, in the process that clusters them,
    so a cohort may be larger than memory.

    Parameters
    ----------
    n_clusters : int, default=100
        Number of super-tiles per slide.

    random_state : int, RandomState instance or None, default=None
        Seed of k-means, combined with the content of each slide, so that the result of a slide
        does not depend on the other slides or their order.

    n_jobs : int, default=None
        Number of slides processed at the same time, as in joblib; 1 is this process, also on a
        cluster.

    verbose : int, default=0
        1 shows a progress bar, or lines in a log.

    Attributes
    ----------
    n_features_in_ : int
        Number of features per tile.

    seed_ : int
        Seed drawn from `random_state`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    FoundationFeaturizer : Computes the tile features.
    sklearn_pk.regression.PriorKnowledgeRegressor : Is fitted on the super-tiles.

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

    _reduces_slides = True
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
        Check the bags and the number of their features.

        Parameters
        ----------
        X : list of array-like of shape (tiles_i, n_features), or array-like
            Bags. An array has shape (n, tiles, n_features), with NaN for missing tiles, or
            (n, n_features), which is one tile per slide.
        y : array-like or DataFrame of n samples, default=None
            Expression. Only the names of its rows are compared with those of the slides, which
            are lost in the result.

        Returns
        -------
        self : object
            The fitted clusterer.

        Raises
        ------
        TypeError
            If X holds slides or anything else that is not numeric.
        ValueError
            If the number of features differs between slides, if a tile is partly NaN or holds
            infinity (in bags stored in files, :meth:`transform` checks this), or if y has other
            samples than X.
        """
        validate_bags(self, X, reset=True, allow_empty=True, lazy=True)
        if y is not None:
            check_sample_names(X, y)
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self

    def transform(self, X):
        """
        Cluster the tiles of each slide.

        Nothing is learned from other slides, so :meth:`fit` is not needed before.

        Parameters
        ----------
        X : list of array-like of shape (tiles_i, n_features), or array-like
            Bags, as in :meth:`fit`.

        Returns
        -------
        supertiles : ndarray of shape (n, n_clusters, n_features), float32
            Cluster means; rows of NaN if there are fewer.

        Raises
        ------
        FileNotFoundError
            If the file of a bag does not exist any more.
        TypeError, ValueError
            As in :meth:`fit`, or if the file of a bag is damaged or has changed.
        RuntimeError
            If each attempt to process a slide killed its worker.
        """
        if not hasattr(self, "seed_"):
            return clone(self).fit_transform(X)
        bags = validate_bags(self, X, reset=False, allow_empty=True, lazy=True)
        tasks = [
            (bag, position, self.n_features_in_, self.n_clusters, self.seed_)
            for position, bag in enumerate(bags)
        ]
        results = map_in_order(
            _reduce_bag, tasks, n_jobs=self.n_jobs, name=lambda at: label_of_bag(bags[at], at)
        )
        bar = progress(
            results, total=len(bags), desc="Clustering", verbose=self.verbose, unit="slide"
        )
        supertiles = np.empty((len(bags), self.n_clusters, self.n_features_in_), dtype=np.float32)
        for row, means in zip(supertiles, bar, strict=True):
            row[:] = means
        return supertiles

    def __sklearn_tags__(self):
        """Declare that X may have three dimensions."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


_POOLS = {"mean": np.mean, "std": np.std, "max": np.max, "min": np.min, "median": np.median}


class BagPooler(TransformerMixin, BaseEstimator):
    """
    Reduce the tiles of each slide to statistics of their features.

    Missing tiles do not count. Bags stored in files are read one by one, so a cohort may be
    larger than memory.

    Parameters
    ----------
    statistics : tuple or list of {"mean", "std", "max", "min", "median"} or float, \
            default=("mean", "std")
        Statistics of each feature over the tiles of a slide; a number in [0, 1] is a quantile.

    Attributes
    ----------
    n_features_in_ : int
        Number of features per tile.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Defined only when X is a DataFrame with strings as its columns.

    See Also
    --------
    SuperTileClusterer : Keeps several tiles per slide.
    sklearn_pk.regression.PriorKnowledgeRidge : Is fitted on one row per slide.

    Notes
    -----
    The standard deviation is that of the tiles present, not an estimate for others; for a single
    tile it is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.slides import BagPooler
    >>> bags = [np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[5.0, 7.0]])]
    >>> BagPooler().fit_transform(bags)
    array([[2., 2., 1., 0.],
           [5., 7., 0., 0.]])
    >>> BagPooler(statistics=["max", 0.25]).fit_transform(bags)
    array([[3. , 2. , 1.5, 2. ],
           [5. , 7. , 5. , 7. ]])
    """

    _parameter_constraints: dict = {"statistics": [tuple, list]}
    _reduces_slides = True

    def __init__(self, *, statistics=("mean", "std")):
        self.statistics = statistics

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """
        Check the bags and the number of their features.

        Parameters
        ----------
        X : list of array-like of shape (tiles_i, n_features), or array-like
            Bags. An array has shape (n, tiles, n_features), with NaN for missing tiles, or
            (n, n_features), which is one tile per slide.
        y : array-like or DataFrame of n samples, default=None
            Expression. Only the names of its rows are compared with those of the slides, which
            are lost in the result.

        Returns
        -------
        self : object
            The fitted pooler.

        Raises
        ------
        TypeError
            If X holds slides or anything else that is not numeric.
        ValueError
            If a statistic is not known, a slide has no tiles, the number of features differs
            between slides, or y has other samples than X.
        """
        for statistic in self.statistics:
            is_quantile = isinstance(statistic, Real) and 0 <= statistic <= 1
            if not is_quantile and statistic not in _POOLS:
                raise ValueError(
                    f"statistics: {statistic!r} is not one of {', '.join(map(repr, _POOLS))}, nor "
                    "a quantile in [0, 1]."
                )
        if not self.statistics:
            raise ValueError("statistics must hold at least one statistic, got none.")
        validate_bags(self, X, reset=True, lazy=True)
        if y is not None:
            check_sample_names(X, y)
        return self

    def transform(self, X):
        """
        Compute the statistics of each slide.

        Parameters
        ----------
        X : list of array-like of shape (tiles_i, n_features), or array-like
            Bags, as in :meth:`fit`.

        Returns
        -------
        pooled : ndarray of shape (n, n_statistics * n_features), float64
            All features of the first statistic, then those of the next.
        """
        check_is_fitted(self)
        bags = validate_bags(self, X, reset=False, lazy=True)
        return np.array([self._pool(bag, position) for position, bag in enumerate(bags)])

    def _pool(self, bag, position):
        tiles = read_bag(bag, position=position, n_features=self.n_features_in_)
        tiles = tiles.astype(np.float64)
        return np.concatenate(
            [
                _POOLS[each](tiles, axis=0)
                if isinstance(each, str)
                else np.quantile(tiles, each, 0)
                for each in self.statistics
            ]
        )

    def get_feature_names_out(self, input_features=None):
        """
        Return names such as "mean_3", or "mean_nuclei" where the features have names.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the features. None takes those of :meth:`fit`.

        Returns
        -------
        names : ndarray of shape (n_statistics * n_features,), object
            One name per column.
        """
        check_is_fitted(self, "n_features_in_")
        if input_features is None:
            input_features = getattr(self, "feature_names_in_", range(self.n_features_in_))
        names = [f"{each}_{name}" for each in self.statistics for name in input_features]
        return np.array(names, dtype=object)

    def __sklearn_tags__(self):
        """Declare that X may have three dimensions."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags
