"""PriorKnowledgeRegressorCV: the weight of the prior chosen by cross-validation."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from functools import wraps
from numbers import Integral, Real

import numpy as np
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
from sklearn.exceptions import NotFittedError
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..utils._device import pick_device
from ..utils._folds import make_folds
from ..utils._reporting import warn_user
from ._aggregators import is_own_aggregator
from ._regressor import (
    PriorKnowledgeRegressor,
    check_training_data,
    clear_fit,
    make_runs,
    prepare,
)
from ._training import train_networks


def check_lambdas(lambdas):
    """Check the weights to try."""
    values = np.asarray(lambdas)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "fiu":
        raise ValueError(f"lambdas must list at least one number in [0, 1], got {lambdas!r}.")
    outside = values[~((values >= 0) & (values <= 1))]
    if outside.size:
        raise ValueError(f"lambdas must lie in [0, 1], got {float(outside[0])!r}.")
    return [float(value) for value in values]


def format_results(lambdas, scores, fit_times, score_times):
    """Format scores and times, (n_lambdas, n_folds), as cv_results_ of a GridSearchCV."""
    results = {}
    for name, times in (("fit", fit_times), ("score", score_times)):
        results[f"mean_{name}_time"] = times.mean(axis=1)
        results[f"std_{name}_time"] = times.std(axis=1)
    results["param_lambda_"] = np.ma.MaskedArray(lambdas, mask=np.zeros(len(lambdas), dtype=bool))
    results["params"] = [{"lambda_": lambda_} for lambda_ in lambdas]
    for fold in range(scores.shape[1]):
        results[f"split{fold}_test_score"] = scores[:, fold]
    mean = scores.mean(axis=1)
    results["mean_test_score"] = mean
    results["std_test_score"] = scores.std(axis=1)
    # A score of NaN is worse than all others.
    ranks = rankdata(-np.where(np.isnan(mean), -np.inf, mean), method="min")
    results["rank_test_score"] = ranks.astype(np.int32)
    return results


def _rows_of(values):
    """Return samples that can be taken by position."""
    known = hasattr(values, "iloc") or isinstance(values, list | tuple | np.ndarray)
    return values if known else np.asarray(values)


def _make_runs(estimator, seed, lambdas, folds, data):
    """Fit the prior of each fold; return {run: (row, fold, number)} for all networks."""
    parameters = estimator.get_params(deep=False)
    parameters |= {"random_state": seed, "callbacks": None, "compile": False}
    runs = {}
    for fold, (train, _) in enumerate(folds):
        start = prepare(type(estimator)(**parameters), data.take(train))
        for row, lambda_ in enumerate(lambdas):
            # Prior, scales and held-out patients do not depend on lambda.
            regressor = type(estimator)(**(parameters | {"lambda_": lambda_}))
            params = start.module_params | {"lambda_": lambda_}
            start = start._replace(module_params=params)
            networks = make_runs(regressor, data, start, fold, train)
            runs |= {run: (row, fold, number) for number, run in enumerate(networks)}
    return runs


def _score_folds(estimator, seed, lambdas, folds, data, device, scorer, X, y):
    """Train and score all networks; return scores and times, (3, n_lambdas, n_folds)."""
    results = np.full((3, len(lambdas), len(folds)), np.nan)
    runs = _make_runs(estimator, seed, lambdas, folds, data)
    waiting = {}
    for run, trained in train_networks(list(runs), device, estimator.verbose):
        row, fold, number = runs[run]
        networks = waiting.setdefault((row, fold), {})
        networks[number] = run, trained
        if len(networks) < estimator.n_networks:
            continue
        networks = [waiting[row, fold][each] for each in sorted(networks)]
        del waiting[row, fold]
        (run, _), test = networks[0], folds[fold][1]
        started = time.perf_counter()
        fitted = run.estimator._set_fitted(data, run.start, [each for _, each in networks])
        score = scorer(fitted, _safe_indexing(X, test), _safe_indexing(y, test))
        if not isinstance(score, Real):
            raise TypeError(f"scoring must return a number, got {score!r} from {scorer!r}.")
        seconds = sum(each.seconds for _, each in networks)
        results[:, row, fold] = score, seconds, time.perf_counter() - started
        del fitted.net_, fitted.nets_, trained, networks
    return results


def _warn_of_scores(scores, means):
    n_bad = np.sum(~np.isfinite(scores))
    if n_bad:
        warn_user(
            f"{n_bad} of {scores.size} scores are not finite: {means}. Lambdas with such a score "
            "are never chosen if others have none."
        )


def _delegate(name):
    """Make a method that calls that of the best estimator."""

    @wraps(getattr(PriorKnowledgeRegressor, name))
    def method(self, *args, **kwargs):
        return getattr(self._fitted_best(), name)(*args, **kwargs)

    return method


def _delegate_attribute(name):
    return property(lambda self: getattr(self._fitted_best(), name))


class PriorKnowledgeRegressorCV(RegressorMixin, BaseEstimator):
    """
    :class:`PriorKnowledgeRegressor` with the weight of the prior chosen by cross-validation.

    The prior is fitted once per fold, on its training patients, and the networks of all
    `lambdas` are trained on the same batches. Small networks are trained in one stack, all folds
    included as memory permits; large ones take turns on each batch. Each stops by its own
    early stopping. The choice is that of a grid search over ``lambda_``.

    Parameters
    ----------
    estimator : PriorKnowledgeRegressor or None, default=None
        The regressor, whose own `lambda_` is not used. None is one with the default
        parameters. Its `compile` and `callbacks` are used in the last fit only.

    lambdas : array-like of float, default=(0.1, 0.2, 0.5, 0.8, 0.9)
        Weights of the gene embeddings to try, in [0, 1]. The default is that of the paper.

    cv : int, splitter, iterable of (train, test) or None, default=None
        Folds. A number, and None for 5, means so many folds of patients
        (:class:`~sklearn.model_selection.GroupKFold`), or of samples
        (:class:`~sklearn.model_selection.KFold`) where no two have the same expression and
        `groups` are not given.

    scoring : str, callable or None, default=None
        Score to maximise, as in :class:`~sklearn.model_selection.GridSearchCV`; None is R squared.
        :data:`~sklearn_pk.metrics.significance_scorer` counts significant genes.

    refit : bool, default=True
        Whether to fit once more, on all samples with the best `lambda_`. Predictions need it.

    Attributes
    ----------
    best_estimator_ : PriorKnowledgeRegressor
        The regressor fitted on all samples with the best `lambda_`, if `refit`.

    lambda_best_ : float
        The best of `lambdas`.

    best_params_ : dict
        ``{"lambda_": lambda_best_}``.

    best_score_ : float
        Its mean score over the folds.

    best_index_ : int
        Its position in `lambdas`.

    cv_results_ : dict of ndarray
        Scores of all, as in :class:`~sklearn.model_selection.GridSearchCV`, for
        :class:`~sklearn_pk.plotting.LambdaPathDisplay`. The time of a fit is that of its
        stack, divided evenly.

    scorer_ : callable
        The scorer of `scoring`.

    n_splits_ : int
        Number of folds.

    refit_time_ : float
        Seconds of the last fit, if `refit`.

    lambda_, net_, nets_, prior_, embeddings_, history_, best_epoch_, seed_, versions_, \
            validation_indices_ : object
        Those of `best_estimator_`.

    gene_names_out_ : ndarray of shape (n_genes,), object
        Names of the genes. Defined only when y is a DataFrame with gene names.

    n_features_in_ : int
        Width of the tile features.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    PriorKnowledgeRegressor : One weight of the prior.

    Notes
    -----
    Every network is that of ``PriorKnowledgeRegressor(lambda_=...,
    random_state=...)`` fitted on the training part of a fold, with the same weights before
    training, batches and held-out patients, so results differ by rounding only. Rounding may
    decide between two epochs that are equally good, which is likely where few patients are held
    out for early stopping.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import TruncatedSVD
    >>> from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 5, 8))
    >>> y = X.mean(axis=1) @ rng.normal(size=(8, 20))
    >>> regressor = PriorKnowledgeRegressor(
    ...     prior=TruncatedSVD(4), max_epochs=20, random_state=0
    ... )
    >>> search = PriorKnowledgeRegressorCV(regressor, lambdas=[0.1, 0.9], cv=2).fit(X, y)
    >>> search.best_params_["lambda_"] in [0.1, 0.9]
    True
    >>> search.predict(X).shape
    (40, 20)
    """

    __metadata_request__fit = {"groups": True}

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "predict", "get_params"]), None],
        "lambdas": ["array-like"],
        "cv": ["cv_object"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "refit": ["boolean"],
    }

    def __init__(
        self,
        estimator=None,
        lambdas=(0.1, 0.2, 0.5, 0.8, 0.9),
        *,
        cv=None,
        scoring=None,
        refit=True,
    ):
        self.estimator = estimator
        self.lambdas = lambdas
        self.cv = cv
        self.scoring = scoring
        self.refit = refit

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, groups=None):
        """
        Choose the weight of the prior, then fit with it.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`PriorKnowledgeRegressor.fit`.
        y : array-like or DataFrame of shape (n,) or (n, n_genes)
            Expression.
        groups : array-like of shape (n,), default=None
            Patient of each sample. The folds, and the early stopping inside each, keep the
            slides of a patient together. Without, samples with the same expression are taken
            as one patient.

        Returns
        -------
        self : object
            The fitted search.

        Raises
        ------
        MemoryError
            If the memory of the device does not suffice for a single network, as
            :meth:`PriorKnowledgeRegressor.fit`. Where it does not for several at once, they
            are trained one by one, with a warning.
        TypeError
            If `estimator` is not a PriorKnowledgeRegressor, or `scoring` does not return a number.
        ValueError
            If `lambdas` is empty or leaves [0, 1], if there are fewer patients than folds, or
            as :meth:`PriorKnowledgeRegressor.fit`.
        """
        lambdas = check_lambdas(self.lambdas)
        estimator = self._check_estimator()
        device = pick_device(estimator.device)
        clear_fit(self)
        data = check_training_data(self, X, y, groups)
        all_differ = groups is None and len(np.unique(data.groups)) == len(data.groups)
        patients = None if all_differ else data.groups
        folds = make_folds(self.cv, data.bags, data.values, patients, pooled=False)
        # One seed for all networks.
        if not isinstance(seed := estimator.random_state, Integral):
            seed = int(check_random_state(seed).randint(np.iinfo(np.int32).max))
        # Without a prior its weight changes nothing, so one network stands for all.
        has_no_effect = estimator.prior is None or estimator.layer == "scores"
        tried = lambdas[:1] if has_no_effect else lambdas
        scorer = check_scoring(estimator, scoring=self.scoring)
        results = _score_folds(
            estimator, seed, tried, folds, data, device, scorer, _rows_of(X), _rows_of(y)
        )
        scores, *times = np.repeat(results, len(lambdas) // len(tried), axis=1)
        self.cv_results_ = format_results(lambdas, scores, *times)
        _warn_of_scores(scores, self.cv_results_["mean_test_score"])
        self.best_index_ = int(self.cv_results_["rank_test_score"].argmin())
        self.best_score_ = float(self.cv_results_["mean_test_score"][self.best_index_])
        self.best_params_ = self.cv_results_["params"][self.best_index_]
        self.lambda_best_ = lambdas[self.best_index_]
        self.n_splits_ = len(folds)
        if data.gene_names is not None:
            self.gene_names_out_ = data.gene_names
        if self.refit:
            # Not a clone: callbacks have a state that they may not take as parameters.
            parameters = estimator.get_params(deep=False)
            parameters |= {"lambda_": self.lambda_best_, "random_state": seed}
            best = type(estimator)(**parameters)
            started = time.perf_counter()
            self.best_estimator_ = best._fit(data, device)
            self.refit_time_ = time.perf_counter() - started
        return self

    predict = _delegate("predict")
    predict_untrained = _delegate("predict_untrained")
    predict_frame = _delegate("predict_frame")
    predict_tiles = _delegate("predict_tiles")
    embed = _delegate("embed")
    score = _delegate("score")
    lambda_ = _delegate_attribute("lambda_")
    net_ = _delegate_attribute("net_")
    nets_ = _delegate_attribute("nets_")
    prior_ = _delegate_attribute("prior_")
    embeddings_ = _delegate_attribute("embeddings_")
    history_ = _delegate_attribute("history_")
    best_epoch_ = _delegate_attribute("best_epoch_")
    seed_ = _delegate_attribute("seed_")
    versions_ = _delegate_attribute("versions_")
    validation_indices_ = _delegate_attribute("validation_indices_")

    @property
    def scorer_(self):
        # Not stored: skops would ask for trust in a private class of scikit-learn.
        check_is_fitted(self, "cv_results_")
        return check_scoring(self, scoring=self.scoring)

    def _check_estimator(self):
        if self.estimator is None:
            return PriorKnowledgeRegressor()
        if not isinstance(self.estimator, PriorKnowledgeRegressor):
            raise TypeError(
                f"estimator must be a PriorKnowledgeRegressor, got {self.estimator!r}. Other "
                "estimators, also a Pipeline that ends with one, are searched by GridSearchCV; "
                "this search can be the last step of a Pipeline."
            )
        self.estimator._validate_params()
        is_own_aggregator(self.estimator.aggregator)
        return self.estimator

    def _fitted_best(self):
        if hasattr(self, "cv_results_") and not hasattr(self, "best_estimator_"):
            raise NotFittedError(
                f"This {type(self).__name__} was fitted with refit=False, which chooses lambda_ "
                "and keeps no network. Use refit=True for predictions."
            )
        check_is_fitted(self)
        return self.best_estimator_

    def __sklearn_is_fitted__(self):
        return hasattr(self, "best_estimator_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.multi_output = True
        return tags
