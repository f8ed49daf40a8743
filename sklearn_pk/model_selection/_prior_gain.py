"""What a prior gains, beside what its controls gain."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Mapping
from numbers import Integral

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, validate_params

from ..utils import check_expression, check_groups, check_sample_names, progress
from ..utils._folds import make_folds
from ._cross_val import check_parameters, cross_val_significance

CONTROLS = ("zero", "shuffled", "rewired")


def _falsify(embeddings, control, random_state):
    """Return embeddings that hold no knowledge: zeros, or the rows of other genes."""
    if control == "zero":
        return np.zeros_like(embeddings)
    return embeddings[check_random_state(random_state).permutation(len(embeddings))]


class ControlledPrior(TransformerMixin, BaseEstimator):
    """
    Fit a prior and falsify its gene embeddings.

    Parameters
    ----------
    prior : estimator
        The prior, a transformer of (n_genes, n_patients) into (n_genes, d).
    control : {"zero", "shuffled"}
        Zeros in place of the embeddings, or each gene has the embedding of another.
    random_state : int or RandomState instance
        Seed of the permutation.
    """

    def __init__(self, prior, control, random_state):
        self.prior = prior
        self.control = control
        self.random_state = random_state

    def fit_transform(self, X, y=None):
        """
        Fit the prior and return false embeddings.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_genes, n_patients)
            Expression.
        y : None
            Ignored.

        Returns
        -------
        ndarray of shape (n_genes, d)
            Embeddings of the size of those of the prior.
        """
        self.prior_ = clone(self.prior)
        embeddings = np.asarray(self.prior_.fit_transform(X))
        return _falsify(embeddings, self.control, self.random_state)


def _owned(params, name):
    """Return the parameters, at any depth, of that name."""
    return sorted(key for key in params if key.rpartition("__")[2] == name)


def _find_prior(estimator):
    """Return the name of the parameter that holds the prior, checked."""
    params = estimator.get_params(deep=True)
    found = _owned(params, "prior")
    # The parameter of the regressor, not one of a step inside the prior.
    found = [name for name in found if not any(name.startswith(f"{other}__") for other in found)]
    if len(found) != 1:
        raise ValueError(
            f"estimator must have one parameter 'prior', as PriorKnowledgeRegressor or a Pipeline "
            f"that ends in one has, found {found}."
        )
    grids = [params[name] for grid in ("param_grid", "param_distributions")
             for name in _owned(params, grid)]  # fmt: skip
    grids = [one for grid in grids for one in ([grid] if isinstance(grid, Mapping) else grid)]
    searched = [key for grid in grids for key in grid if "prior" in key.split("__")]
    if searched:
        raise ValueError(
            f"The search sets {searched[0]!r} by itself, so the prior cannot be exchanged for its "
            "controls. Search over other parameters, such as lambda_."
        )
    if params[found[0]] is None:
        raise ValueError(f"estimator has no prior to test: {found[0]} is None.")
    return found[0]


def _control_array(prior, control, gene_names, seed):
    if not isinstance(prior, pd.DataFrame):
        return _falsify(np.asarray(prior), control, seed)
    # All genes of y take part, those that get zeros too, as in a prior that is fitted.
    aligned = prior.reindex(gene_names, fill_value=0.0)
    values = _falsify(aligned.to_numpy(), control, seed)
    return pd.DataFrame(values, index=aligned.index, columns=aligned.columns)


def _make_prior(prior, setting, gene_names, seed):
    """Return what stands in the place of the prior in a setting."""
    if setting == "none":
        return None
    if setting == "prior":
        return prior
    is_estimator = hasattr(prior, "fit_transform")
    if setting == "rewired":
        return clone(prior).set_params(**dict.fromkeys(_rewire_params(prior), 1.0))
    if is_estimator:
        return ControlledPrior(prior, setting, seed)
    return _control_array(prior, setting, gene_names, seed)


def _rewire_params(prior):
    return _owned(prior.get_params(deep=True), "rewire") if hasattr(prior, "get_params") else []


def _check_controls(controls, prior):
    """Return the controls; None leaves out what the prior cannot have."""
    can_rewire = bool(_rewire_params(prior))
    if controls is None:
        return [name for name in CONTROLS if name != "rewired" or can_rewire]
    controls = [controls] if isinstance(controls, str) else list(controls)
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown or len(set(controls)) < len(controls):
        raise ValueError(f"controls must be some of {CONTROLS}, got {controls}.")
    if "rewired" in controls and not can_rewire:
        raise ValueError(
            "controls: 'rewired' needs a prior with a graph, that is a step with a parameter "
            f"'rewire' such as CoexpressionGraph, but prior is {type(prior).__name__}. Leave it "
            "out of controls."
        )
    return controls


def _describe(setting, seed, result):
    return {
        "setting": setting,
        "seed": seed,
        "n_significant": result.n_significant,
        "n_significant_mean": int(result.mean_report["significant"].sum()),
        "median_r": result.median_r,
        "fit_time": result.folds["fit_time"].sum(),
    }


@validate_params(
    {
        "estimator": [HasMethods(["fit", "predict", "get_params"])],
        "X": "no_validation",
        "y": "no_validation",
        "groups": ["array-like", None],
        "cv": ["cv_object"],
        "controls": ["array-like", str, None],
        "n_seeds": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "return_results": ["boolean"],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=False,
)
def prior_gain(
    estimator,
    X,
    y,
    *,
    groups=None,
    cv=None,
    controls=None,
    n_seeds=3,
    random_state=None,
    return_results=False,
    verbose=0,
    **options,
):
    """
    Cross-validate a model with its prior, with none, and with controls that know nothing.

    All settings have the same folds and the same seeds. What a control gains over no prior is
    not knowledge: embeddings of zeros, for one, shrink the learned weights by 1 - lambda.

    Parameters
    ----------
    estimator : estimator
        A :class:`~sklearn_pk.regression.PriorKnowledgeRegressor` with a prior, a Pipeline that
        ends in one, or a search over either, which then chooses lambda for each setting.
    X, y : sequence or array, DataFrame
        Samples and expression, as in :func:`cross_val_significance`.
    groups : array-like of shape (n_samples,), default=None
        Patient of each sample.
    cv : int, splitter, iterable or None, default=None
        The folds, as in :func:`cross_val_significance`. They are drawn once.
    controls : list of {"zero", "shuffled", "rewired"}, default=None
        "zero" has zeros in place of the embeddings, "shuffled" gives each gene the embedding of
        another, "rewired" has a graph with the edges of each gene led elsewhere, for a prior
        with a step that has the parameter ``rewire``. None takes all that the prior can have.
    n_seeds : int, default=3
        Number of seeds, each of which is set as ``random_state`` of the regressor.
    random_state : int, RandomState instance or None, default=None
        Draws the seeds.
    return_results : bool, default=False
        Whether to return the results, too. They hold the predictions of all runs, two numbers a
        sample, gene and run, but not the fitted models.
    verbose : int, default=0
        Whether to show a progress bar on terminals.
    **options : object
        Passed to :func:`cross_val_significance`: ``target_transformer``, ``alpha``, ``fdr``,
        ``compat`` and ``n_jobs``.

    Returns
    -------
    table : DataFrame, one row a setting and seed
        ``setting`` ("none", "prior" or a control), ``seed``, ``n_significant`` (against the
        untrained model), ``n_significant_mean`` (against the mean), ``median_r`` and
        ``fit_time`` (s, all folds).
    results : dict of str to list of CrossValSignificance
        For each setting the result of each seed, for
        :func:`~sklearn_pk.metrics.compare_significance`. Only with `return_results`.

    Raises
    ------
    ValueError
        Before any fit: if the estimator has no prior or a search sets it, or a control is
        unknown or not possible; and what :func:`cross_val_significance` raises.

    See Also
    --------
    sklearn_pk.metrics.compare_significance : Intervals of the differences.
    cross_val_significance : One run.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.model_selection import prior_gain
    >>> from sklearn_pk.prior import EigengeneEmbedder
    >>> from sklearn_pk.regression import PriorKnowledgeRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 4))
    >>> y = X @ rng.normal(size=(4, 10)) + rng.normal(size=(40, 10))
    >>> model = PriorKnowledgeRegressor(prior=EigengeneEmbedder(2), max_epochs=5)
    >>> table = prior_gain(model, X, y, cv=2, n_seeds=1, random_state=0)
    >>> table["setting"].tolist()
    ['none', 'prior', 'zero', 'shuffled']
    """
    check_parameters(estimator)
    name = _find_prior(estimator)
    prior = estimator.get_params(deep=True)[name]
    controls = _check_controls(controls, prior)
    seed_name = name.removesuffix("prior") + "random_state"
    if seed_name not in estimator.get_params(deep=True):
        raise ValueError(f"estimator must have the parameter {seed_name!r} for the seeds.")
    check_sample_names(X, y)
    values, gene_names, _ = check_expression(y, estimator_name="prior_gain")
    groups = None if groups is None else check_groups(groups, y)
    folds = make_folds(cv, X, y, groups)
    seeds = check_random_state(random_state).randint(2**31 - 1, size=n_seeds).tolist()
    settings = ["none", "prior", *controls]
    # The prior comes first: if it cannot be fitted, nothing has been trained in vain.
    order = sorted(settings, key=lambda setting: setting != "prior")
    runs = [(setting, seed) for seed in seeds for setting in order]
    rows, results = [], {setting: [] for setting in settings}
    for setting, seed in progress(runs, desc="Runs", verbose=verbose):
        params = {name: _make_prior(prior, setting, gene_names, seed), seed_name: seed}
        model = clone(estimator).set_params(**params)
        result = cross_val_significance(model, X, y, groups=groups, cv=folds, **options)
        rows.append(_describe(setting, seed, result))
        if return_results:
            result.estimators = []
            results[setting].append(result)
    table = pd.DataFrame(sorted(rows, key=lambda row: settings.index(row["setting"])))
    return (table, results) if return_results else table
