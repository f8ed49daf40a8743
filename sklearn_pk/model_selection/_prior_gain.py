"""The gain of a prior compared with the gain of controls."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from collections.abc import Mapping
from numbers import Integral

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, validate_params
from sklearn.utils.metaestimators import _BaseComposition

from ..metrics import compare_significance
from ..utils import check_expression, check_groups
from ..utils._annotation import warn_of_doubts
from ..utils._folds import make_folds
from ..utils._reporting import progress, without_warnings_of_data
from ..utils._validation import check_sample_names
from ._cross_val import check_parameters, cross_val_significance

CONTROLS = ("zero", "shuffled", "rewired")
_IN_WORDS = {
    "none": "no prior",
    "zero": "zeros",
    "shuffled": "shuffled genes",
    "rewired": "a rewired graph",
}
_GRIDS = ("param_grid", "param_distributions", "search_spaces")


def make_control_embeddings(embeddings, control, random_state):
    """Return embeddings without knowledge: zeros, or permuted over the genes."""
    if control == "zero":
        return np.zeros_like(embeddings)
    return embeddings[check_random_state(random_state).permutation(len(embeddings))]


class ControlledPrior(TransformerMixin, BaseEstimator):
    """Fit a prior and return control embeddings in place of its own."""

    def __init__(self, prior, control, random_state):
        self.prior = prior
        self.control = control
        self.random_state = random_state

    def fit_transform(self, X, y=None):
        """Fit the prior and return control embeddings."""
        self.prior_ = clone(self.prior)
        embeddings = np.asarray(self.prior_.fit_transform(X))
        return make_control_embeddings(embeddings, self.control, self.random_state)


def _owned(estimator, name):
    """Return the parameters of that name at any depth, without steps of that name."""
    params = estimator.get_params(deep=True)
    found = [key for key in params if key.rpartition("__")[2] == name]
    owners = {key: params[key.rpartition("__")[0]] if "__" in key else estimator for key in found}
    return sorted(key for key, owner in owners.items() if not isinstance(owner, _BaseComposition))


def _find_prior(estimator):
    """Return the checked names of the parameters for the prior and the seed."""
    params = estimator.get_params(deep=True)
    found = _owned(estimator, "prior")
    # The parameter of the regressor, not one of a step inside the prior.
    found = [name for name in found if not any(name.startswith(f"{other}__") for other in found)]
    if len(found) != 1:
        raise ValueError(
            f"estimator must have one parameter 'prior', as PriorKnowledgeRegressor or a Pipeline "
            f"that ends in one has, got {found}."
        )
    name = found[0]
    seed_name = name.removesuffix("prior") + "random_state"
    if seed_name not in params:
        raise ValueError(f"estimator must have the parameter {seed_name!r} for the seeds.")
    _check_searches(estimator, params, [name, seed_name])
    _check_prior(params[name], name)
    return name, seed_name


def _check_searches(estimator, params, names):
    """Check that no nested search sets the prior or the seed."""
    for grid_name in _GRIDS:
        for owned in _owned(estimator, grid_name):
            prefix = f"{owned.removesuffix(grid_name)}estimator__"
            grids = params[owned]
            for key in sorted({key for grid in _as_list(grids) for key in grid}):
                path = prefix + key
                if any(_within(path, name) or _within(name, path) for name in names):
                    raise ValueError(
                        f"The search sets {key!r} itself, so the prior and the seed cannot be "
                        "replaced. Search over other parameters, such as lambda_."
                    )


def _as_list(grids):
    return [grids] if isinstance(grids, Mapping) else list(grids)


def _within(inner, outer):
    return inner == outer or inner.startswith(f"{outer}__")


def _check_prior(prior, name):
    if prior is None:
        raise ValueError(f"estimator has no prior to compare: {name} is None.")
    is_estimator = hasattr(prior, "fit_transform") and hasattr(prior, "get_params")
    if isinstance(prior, type) or not (is_estimator or np.ndim(prior) == 2):
        raise TypeError(
            f"{name} must be an estimator with fit_transform, or embeddings of shape "
            f"(n_genes, d), got {prior!r}."
        )


def _control_array(prior, control, gene_names, seed):
    if not isinstance(prior, pd.DataFrame):
        return make_control_embeddings(np.asarray(prior), control, seed)
    # All genes of y are permuted, including those with zeros, as in a fitted prior.
    aligned = prior.reindex(gene_names, fill_value=0.0)
    values = make_control_embeddings(aligned.to_numpy(), control, seed)
    return pd.DataFrame(values, index=aligned.index, columns=aligned.columns)


def _make_prior(prior, setting, gene_names, seed):
    """Return the prior of a setting."""
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
    return _owned(prior, "rewire") if hasattr(prior, "get_params") else []


def _check_controls(controls, prior):
    """Return the checked controls; None selects those that the prior supports."""
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
            f"'rewire' such as CoexpressionGraph, but prior is {type(prior).__name__}. Remove it "
            "from controls."
        )
    return controls


class PriorGainTable(pd.DataFrame):
    """
    Table of :func:`prior_gain`, with a summary in words.

    Parameters
    ----------
    data : DataFrame or dict
        Columns ``setting``, ``seed`` and ``n_significant_mean``, and others.
    index, columns, dtype, copy : object
        As in :class:`pandas.DataFrame`.

    See Also
    --------
    prior_gain : Returns it.

    Examples
    --------
    >>> from sklearn_pk.model_selection import PriorGainTable
    >>> runs = {"setting": ["none", "none", "prior", "prior", "zero", "zero"], "seed": [1, 2] * 3}
    >>> genes = {"n_significant_mean": [100, 104, 150, 154, 101, 105]}
    >>> print(PriorGainTable(runs | genes).summary())
    prior over no prior: +50 genes [50, 50]
    prior over zeros: +49 genes [49, 49]
    The gain is knowledge: no control reaches it.
    95 % intervals over 2 seeds, for these patients; summary(results) includes other patients.
    """

    @property
    def _constructor(self):
        return pd.DataFrame

    def summary(self, results=None, *, n_boot=1000, random_state=0):
        """
        Say whether the prior gains, and whether the gain is knowledge.

        Parameters
        ----------
        results : dict of str to list of CrossValSignificance, default=None
            Those of ``return_results=True``. Intervals then include other test patients, from
            :func:`~sklearn_pk.metrics.compare_significance`; None has intervals over seeds only.
        n_boot : int, default=1000
            Draws of patients, with `results`.
        random_state : int, RandomState instance or None, default=0
            Seed of the draws.

        Returns
        -------
        summary : str
            A line for each other setting, with the difference in significant genes against the
            mean, and the verdict. The gain is called knowledge if the intervals of all
            differences, to no prior and to each control, are above 0.

        Raises
        ------
        ValueError
            If there are no controls, or a single seed and no `results`.
        """
        counts = self.pivot(index="seed", columns="setting", values="n_significant_mean")
        others = [name for name in _IN_WORDS if name in counts and name != "prior"]
        if others in ([], ["none"]):
            raise ValueError("Without controls, a gain cannot be told from one without knowledge.")
        if results is None and len(counts) < 2:
            raise ValueError("One seed has no interval. Use more seeds, or pass the results.")
        rows = {}
        for name in others:
            if results is None:
                rows[name] = _interval_over_seeds(counts["prior"] - counts[name])
            else:
                runs = {key: results[key] for key in (name, "prior")}
                options = {"baseline": "mean", "n_boot": n_boot, "random_state": random_state}
                found = compare_significance(runs, **options).iloc[0]
                rows[name] = found["difference"], found["ci_low"], found["ci_high"]
        lines = [
            f"prior over {_IN_WORDS[name]}: {gain:+,.0f} genes [{low:,.0f}, {high:,.0f}]"
            for name, (gain, low, high) in rows.items()
        ]
        lines.append(_conclude({name: low for name, (_, low, _) in rows.items()}))
        seeds = "1 seed" if len(counts) == 1 else f"{len(counts)} seeds"
        if results is None:
            seeds += ", for these patients; summary(results) includes other patients"
        else:
            seeds += " and test patients"
        lines.append(f"95 % intervals over {seeds}.")
        return "\n".join(lines)


def _interval_over_seeds(differences):
    mean, n = differences.mean(), len(differences)
    margin = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return mean, mean - margin, mean + margin


def _conclude(lows):
    reached = [_IN_WORDS[name] for name, low in lows.items() if name != "none" and low <= 0]
    if lows.get("none", 1) <= 0:
        return "No evidence of a gain over no prior."
    if reached:
        return f"No evidence that the gain is knowledge: {' and '.join(reached)} may reach it."
    return "The gain is knowledge: no control reaches it."


def _describe(setting, seed, result):
    has_untrained = result.untrained_predictions is not None
    return {
        "setting": setting,
        "seed": seed,
        "n_significant": result.n_significant if has_untrained else np.nan,
        "n_significant_mean": int(result.mean_report["significant"].sum()),
        "median_r": result.median_r,
        "median_r_fold": result.median_r_fold,
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
    Cross-validate a model with its prior, without a prior, and with uninformative controls.

    All settings have the same folds and the same seeds. The gain of a control over no prior does
    not come from knowledge: zero embeddings, for example, shrink the learned weights by
    1 - lambda.

    Parameters
    ----------
    estimator : estimator
        A :class:`~sklearn_pk.regression.PriorKnowledgeRegressor` with a prior, a Pipeline that
        ends in one, or a search over either, which then selects lambda for each setting.
    X, y : sequence or array, DataFrame
        Samples and expression, as in :func:`cross_val_significance`.
    groups : array-like of shape (n_samples,), default=None
        Patient of each sample.
    cv : int, splitter, iterable or None, default=None
        The folds, as in :func:`cross_val_significance`. They are drawn once.
    controls : list of {"zero", "shuffled", "rewired"}, default=None
        "zero" replaces the embeddings by zeros, "shuffled" permutes them over the genes, and
        "rewired" rewires the graph at constant degrees, for a prior with a step that has the
        parameter ``rewire``. None selects all that the prior supports.
    n_seeds : int, default=3
        Number of seeds for ``random_state`` of the regressor. Intervals of
        :func:`~sklearn_pk.metrics.compare_significance` need five or more.
    random_state : int, RandomState instance or None, default=None
        Generator of the seeds.
    return_results : bool, default=False
        Whether to return the results, too. They hold the predictions of the trained and the
        untrained models for each sample, gene and run, but not the fitted models.
    verbose : int, default=0
        Whether to show a progress bar, or lines in a log.
    **options : object
        Passed to :func:`cross_val_significance`: ``target_transformer``, ``alpha``, ``fdr``,
        ``compat``, ``null``, ``n_permutations`` and ``n_jobs``. All settings have the same
        permutations.

    Returns
    -------
    table : PriorGainTable, one row per setting and seed
        DataFrame with :meth:`PriorGainTable.summary`, which says whether the prior gains.
        ``setting`` ("none", "prior" or a control), ``seed``, ``n_significant`` (against the
        untrained model of the same setting; NaN if the estimator has none),
        ``n_significant_mean`` (against the mean, the same baseline for all), ``median_r``
        (pooled over folds), ``median_r_fold`` (within folds) and ``fit_time`` (s, all folds).
    results : dict of str to list of CrossValSignificance
        For each setting, the result of each seed, for
        :func:`~sklearn_pk.metrics.compare_significance`. Only with `return_results`.

    Raises
    ------
    ValueError
        Before any fit: if the estimator has no prior or a search sets it, or a control is
        unknown or not supported; and as :func:`cross_val_significance`.
    TypeError
        If the prior is neither an estimator nor a table of embeddings.

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
    name, seed_name = _find_prior(estimator)
    prior = estimator.get_params(deep=True)[name]
    controls = _check_controls(controls, prior)
    check_sample_names(X, y)
    values, gene_names, _ = check_expression(y, estimator_name="prior_gain")
    samples, is_scaled = y.index if hasattr(y, "iloc") else None, "target_transformer" in options
    warn_of_doubts(values, gene_names, samples, look_at_scale=not is_scaled)
    groups = None if groups is None else check_groups(groups, y, X)
    folds = make_folds(cv, X, y, groups)
    seeds = check_random_state(random_state).randint(2**31 - 1, size=n_seeds).tolist()
    settings = ["none", "prior", *controls]
    # The prior first: if it cannot be fitted, no other training was in vain.
    order = sorted(settings, key=lambda setting: setting != "prior")
    runs = [(setting, seed) for seed in seeds for setting in order]
    rows, results = [], {setting: [] for setting in settings}
    for setting, seed in progress(runs, desc="Runs", verbose=verbose):
        params = {name: _make_prior(prior, setting, gene_names, seed), seed_name: seed}
        model = clone(estimator).set_params(**params)
        with without_warnings_of_data(), warnings.catch_warnings():
            # Its differences are paired, and the table has the correlation within folds.
            warnings.filterwarnings("ignore", "The untrained baseline has a median r of")
            result = cross_val_significance(
                model, X, y, groups=groups, cv=folds, random_state=seed, **options
            )
        rows.append(_describe(setting, seed, result))
        if return_results:
            result.estimators = []
            # One copy of equal tables, which would take a third of the memory.
            truth = next((kept[0].y_true for kept in results.values() if kept), None)
            if truth is not None and truth.equals(result.y_true):
                result.y_true = truth
            results[setting].append(result)
    table = PriorGainTable(sorted(rows, key=lambda row: settings.index(row["setting"])))
    return (table, results) if return_results else table
