"""PriorKnowledgeRegressorCV: the weight of the prior chosen by cross-validation."""

# SPDX-License-Identifier: BSD-3-Clause

import time
import warnings
from numbers import Integral, Real

import numpy as np
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._param_validation import StrOptions

from ..utils._device import pick_device
from ..utils._folds import make_folds
from ._aggregators import is_own_aggregator
from ._data import BagDataset
from ._fitting import check_training_data, forget, prepare, warn_of_constant_genes
from ._predictor import ExpressionPredictor
from ._regressor import PriorKnowledgeRegressor
from ._stack import Run, train_together
from ._training import train_on


def check_lambdas(lambdas):
    """Check the weights to try."""
    values = np.asarray(lambdas)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "fiu":
        raise ValueError(f"lambdas must list at least one number in [0, 1], got {lambdas!r}.")
    outside = values[~((values >= 0) & (values <= 1))]
    if outside.size:
        raise ValueError(f"lambdas must lie in [0, 1], got {float(outside[0])!r}.")
    return [float(value) for value in values]


def shape_results(lambdas, scores, fit_times, score_times):
    """Tell of all folds as :class:`~sklearn.model_selection.GridSearchCV` does."""
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
    # A score that is no number is worse than all others.
    ranks = rankdata(-np.where(np.isnan(mean), -np.inf, mean), method="min")
    results["rank_test_score"] = ranks.astype(np.int32)
    return results


def _rows_of(values):
    """Return what rows can be taken from."""
    known = hasattr(values, "iloc") or isinstance(values, list | tuple | np.ndarray)
    return values if known else np.asarray(values)


class PriorKnowledgeRegressorCV(ExpressionPredictor, RegressorMixin, BaseEstimator):
    """
    :class:`PriorKnowledgeRegressor` with the weight of the prior chosen by cross-validation.

    The prior is fitted once a fold, on its training patients, and the networks of all
    `lambdas` see the same batches. Small networks are trained in one stack, all folds
    included as memory permits; large ones take turns on each batch. Each ends by its own
    early stopping. The choice is that of a grid search over ``lambda_``.

    Parameters
    ----------
    lambdas : array-like of float, default=(0.1, 0.2, 0.5, 0.8, 0.9)
        Weights of the gene embeddings to try, in [0, 1]. The default is that of the paper.

    cv : int, splitter, iterable of (train, test) or None, default=None
        Folds. A number, and None for 5, means so many folds of patients
        (:class:`~sklearn.model_selection.GroupKFold`), or of samples
        (:class:`~sklearn.model_selection.KFold`) where no two have the same expression and
        `groups` are not given.

    scoring : str, callable or None, default=None
        What is best, as in :class:`~sklearn.model_selection.GridSearchCV`; None is R squared.
        :data:`~sklearn_pk.metrics.significance_scorer` counts significant genes.

    refit : bool, default=True
        Whether to fit once more, on all samples with the best `lambda_`. It takes this for
        predictions.

    prior : estimator, ndarray, DataFrame or None, default=None
        Where the gene embeddings come from. An estimator is fitted once a fold.

    aggregator, layer, depth, n_heads, head_dim, embed_dim : object
        The network, as in :class:`PriorKnowledgeRegressor`.

    scale_embeddings, standardize, init_scale : object
        What is scaled, as in :class:`PriorKnowledgeRegressor`.

    max_epochs, batch_size, lr, lr_schedule, weight_decay, validation_fraction : object
        The training, as in :class:`PriorKnowledgeRegressor`.

    early_stopping, patience, loss_tolerance, dtype : object
        The training, as in :class:`PriorKnowledgeRegressor`.

    compile : bool, default=False
        Whether to use :func:`torch.compile`, in the last fit alone.

    device, memory, positive : object
        As in :class:`PriorKnowledgeRegressor`.

    callbacks : list of skorch.callbacks.Callback or None, default=None
        Called in the last fit alone.

    compat, random_state, verbose : object
        As in :class:`PriorKnowledgeRegressor`.

    Attributes
    ----------
    lambda_best_ : float
        The best of `lambdas`.

    best_score_ : float
        Its mean score over the folds.

    best_index_ : int
        Its position in `lambdas`.

    cv_results_ : dict of ndarray
        Scores of all, as in :class:`~sklearn.model_selection.GridSearchCV`, for
        :class:`~sklearn_pk.plotting.LambdaPathDisplay`. The time of a fit is that of its
        stack, shared evenly.

    n_splits_ : int
        Number of folds.

    lambda_ : float
        `lambda_best_`, if `refit`.

    net_, prior_, embeddings_, history_, best_epoch_, seed_, versions_, validation_indices_ : object
        As in :class:`PriorKnowledgeRegressor`, of the last fit, if `refit`.

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
    >>> from sklearn_pk.regression import PriorKnowledgeRegressorCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 5, 8))
    >>> y = X.mean(axis=1) @ rng.normal(size=(8, 20))
    >>> model = PriorKnowledgeRegressorCV(
    ...     lambdas=[0.1, 0.9], cv=2, prior=TruncatedSVD(4), max_epochs=20, random_state=0
    ... )
    >>> model.fit(X, y).lambda_best_ in [0.1, 0.9]
    True
    >>> model.predict(X).shape
    (40, 20)
    """

    __metadata_request__fit = {"groups": True}

    _parameter_constraints: dict = {
        name: constraint
        for name, constraint in PriorKnowledgeRegressor._parameter_constraints.items()
        if name != "lambda_"
    } | {
        "lambdas": ["array-like"],
        "cv": ["cv_object"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "refit": ["boolean"],
    }

    def __init__(
        self,
        lambdas=(0.1, 0.2, 0.5, 0.8, 0.9),
        *,
        cv=None,
        scoring=None,
        refit=True,
        prior=None,
        aggregator="mlp",
        layer="published",
        depth=6,
        n_heads=16,
        head_dim=64,
        embed_dim=None,
        scale_embeddings=True,
        standardize=True,
        init_scale=0.1,
        max_epochs=200,
        batch_size=16,
        lr=3e-4,
        lr_schedule="constant",
        weight_decay=0.0,
        validation_fraction=0.1,
        early_stopping="loss+corr",
        patience=20,
        loss_tolerance=0.5,
        dtype="float32",
        compile=False,
        device="auto",
        memory=None,
        positive=False,
        callbacks=None,
        compat=None,
        random_state=None,
        verbose=0,
    ):
        self.lambdas = lambdas
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.prior = prior
        self.aggregator = aggregator
        self.layer = layer
        self.depth = depth
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.embed_dim = embed_dim
        self.scale_embeddings = scale_embeddings
        self.standardize = standardize
        self.init_scale = init_scale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.loss_tolerance = loss_tolerance
        self.dtype = dtype
        self.compile = compile
        self.device = device
        self.memory = memory
        self.positive = positive
        self.callbacks = callbacks
        self.compat = compat
        self.random_state = random_state
        self.verbose = verbose

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
            The fitted regressor.

        Raises
        ------
        MemoryError
            If the memory of the device does not suffice for a single network, as
            :meth:`PriorKnowledgeRegressor.fit`. Where it does not for several at once, fewer
            are trained at once, with a warning.
        ValueError
            If `lambdas` is empty or leaves [0, 1], if there are fewer patients than folds, or
            as :meth:`PriorKnowledgeRegressor.fit`.
        """
        lambdas = check_lambdas(self.lambdas)
        device = pick_device(self.device)
        forget(self)
        is_own_aggregator(self.aggregator)
        data = check_training_data(self, X, y, groups)
        warn_of_constant_genes(data)
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = int(check_random_state(seed).randint(np.iinfo(np.int32).max))
        targets = data.values.astype(np.float32, copy=False)
        all_differ = groups is None and len(np.unique(data.groups)) == len(data.groups)
        patients = None if all_differ else data.groups
        folds = make_folds(self.cv, data.bags, data.values, patients, pooled=False)
        self.n_splits_ = len(folds)
        # Without a prior its weight changes nothing, so one network stands for all.
        tried = lambdas if self.prior is not None else lambdas[:1]
        runs = [
            run
            for number, (train, _) in enumerate(folds)
            for run in self._prepare_fold(number, train, data, targets, tried, seed)
        ]
        scores, times = self._train_and_score(runs, folds, tried, _rows_of(X), _rows_of(y), device)
        n_equal = len(lambdas) // len(tried)
        self.cv_results_ = shape_results(
            lambdas, np.repeat(scores, n_equal, axis=0), *np.repeat(times, n_equal, axis=1)
        )
        if not np.isfinite(scores).all():
            warnings.warn(
                f"{np.sum(~np.isfinite(scores))} of {scores.size} scores are not finite: "
                f"{self.cv_results_['mean_test_score']}. Lambdas with such a score are never "
                "chosen if others have none.",
                UserWarning,
                stacklevel=3,
            )
        self.best_index_ = int(self.cv_results_["rank_test_score"].argmin())
        self.best_score_ = float(self.cv_results_["mean_test_score"][self.best_index_])
        self.lambda_best_ = lambdas[self.best_index_]
        if self.refit:
            best = self._single(self.lambda_best_, seed)
            del runs  # and all their networks
            train_on(best, data, device)
            given = best.get_params(deep=False)
            fitted = {name: value for name, value in vars(best).items() if name not in given}
            vars(self).update(fitted, lambda_=self.lambda_best_)
        return self

    def _single(self, lambda_, seed):
        parameters = self.get_params(deep=False)
        for name in ("lambdas", "cv", "scoring", "refit"):
            del parameters[name]
        parameters["random_state"] = seed
        model = PriorKnowledgeRegressor(lambda_=lambda_, **parameters)
        for name in ("n_features_in_", "feature_names_in_", "gene_names_out_", "_y_is_1d"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model

    def _prepare_fold(self, number, train, data, targets, lambdas, seed):
        first = self._single(lambdas[0], seed)
        parts = prepare(first, data.take(train))
        # The samples themselves are not copied, only pointed at.
        datasets = [BagDataset(data.bags, targets, train[part]) for part in parts]
        runs = []
        for lambda_ in lambdas:
            # Prior, scales and held-out patients do not depend on lambda.
            model = self._single(lambda_, seed)
            vars(model).update({k: v for k, v in vars(first).items() if k != "lambda_"})
            model._module_params = first._module_params | {"lambda_": lambda_}
            runs.append(Run(model, number, *datasets))
        return runs

    def _train_and_score(self, runs, folds, lambdas, X, y, device):
        scores = np.full((len(lambdas), len(folds)), np.nan)
        fit_times, score_times = times = np.array([scores, scores])
        position = {id(run): divmod(number, len(lambdas)) for number, run in enumerate(runs)}
        for run in train_together(runs, device, verbose=self.verbose):
            fold, which = position[id(run)]
            test = folds[fold][1]
            started = time.perf_counter()
            scorer = check_scoring(run.model, scoring=self.scoring)
            score = scorer(run.model, _safe_indexing(X, test), _safe_indexing(y, test))
            if not isinstance(score, Real):
                raise TypeError(
                    f"scoring must return a number, got {score!r} from {self.scoring!r}."
                )
            scores[which, fold] = score
            score_times[which, fold] = time.perf_counter() - started
            fit_times[which, fold] = run.seconds
            del run.model.net_
        return scores, times
