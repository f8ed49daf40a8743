"""The number of significant genes as a scorer."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import StrOptions, validate_params

from ..utils import check_expression
from ..utils._pipelines import last_estimator
from ..utils._validation import check_gene_order, check_sample_names
from ._significance import CRITERIA, significance_report


def predict_with_untrained(estimator, X):
    """Predict with a fitted model and its untrained baseline, transforming X only once."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    if isinstance(estimator, Pipeline):
        if len(estimator.steps) > 1:
            X = estimator[:-1].transform(X)
        return predict_with_untrained(estimator[-1], X)
    untrained = getattr(estimator, "predict_untrained", None)
    return estimator.predict(X), None if untrained is None else untrained(X)


# Estimators already warned about: the registry of `warnings` is reset by each change of its
# filters, so a search would repeat the warning for every candidate.
_warned = set()


def _warn_about_mean(name):
    if name in _warned:
        return
    warnings.warn(
        f"{name} has no predict_untrained, so the significance scorer compares its predictions "
        'with the mean of the scored samples. Use make_significance_scorer(baseline="mean") '
        "to make this explicit.",
        UserWarning,
        stacklevel=4,
    )
    _warned.add(name)


class _SignificanceScorer:
    """
    Count significantly predicted genes, as a scorer.

    Built by :func:`make_significance_scorer`, which describes its parameters;
    ``significance_scorer`` has the default ones. The parameters below are those of the call.

    Parameters
    ----------
    estimator : estimator
        A fitted regressor, or a Pipeline or search that ends in one.
    X : sequence or array
        Samples the estimator has not seen.
    y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
        Their true expression.

    Returns
    -------
    score : float
        Number of significant genes, or their fraction with ``normalize=True``.

    See Also
    --------
    make_significance_scorer : Scorers with other levels and baselines.

    Examples
    --------
    >>> from sklearn_pk.metrics import significance_scorer
    >>> significance_scorer
    make_significance_scorer(alpha=0.05, fdr=0.05, baseline='untrained', normalize=False)
    """

    def __init__(
        self,
        alpha=0.05,
        fdr=0.05,
        baseline="untrained",
        normalize=False,
        null="published",
        random_state=None,
    ):
        self.alpha = alpha
        self.fdr = fdr
        self.baseline = baseline
        self.normalize = normalize
        self.null = null
        self.random_state = random_state

    def __call__(self, estimator, X, y):
        """Score a fitted estimator; see the docstring of the class."""
        check_sample_names(X, y)
        _, gene_names, _ = check_expression(y, estimator_name="The significance scorer")
        check_gene_order(gene_names, getattr(last_estimator(estimator), "gene_names_out_", None))
        prediction, baseline = self._predict(estimator, X, y)
        report = significance_report(
            y,
            prediction,
            baseline,
            alpha=self.alpha,
            fdr=self.fdr,
            null=self.null,
            random_state=self.random_state,
        )
        significant = report["significant"]
        return float(significant.mean() if self.normalize else significant.sum())

    def _predict(self, estimator, X, y):
        if self.baseline == "untrained":
            prediction, baseline = predict_with_untrained(estimator, X)
            if baseline is None:
                _warn_about_mean(type(estimator).__name__)
            elif not np.ptp(baseline, axis=0).any():
                baseline = None  # the training mean, which correlates with nothing inside a fold
            return prediction, baseline
        prediction = estimator.predict(X)
        return prediction, None if self.baseline == "mean" else self.baseline(estimator, X, y)

    def __repr__(self):
        null = "" if self.null == "published" else f", null={self.null!r}"
        return (
            f"make_significance_scorer(alpha={self.alpha!r}, fdr={self.fdr!r}, "
            f"baseline={self.baseline!r}, normalize={self.normalize!r}{null})"
        )


@validate_params(
    {
        "alpha": CRITERIA["alpha"],
        "fdr": CRITERIA["fdr"][:1],
        "baseline": [StrOptions({"untrained", "mean"}), callable],
        "normalize": ["boolean"],
        "null": [StrOptions({"published", "permutation", "empirical"})],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_significance_scorer(
    *,
    alpha=0.05,
    fdr=0.05,
    baseline="untrained",
    normalize=False,
    null="published",
    random_state=None,
):
    """
    Make a scorer that counts significantly predicted genes.

    Parameters
    ----------
    alpha : float, default=0.05
        Level for the p-values of Pearson's r and of Steiger's test.
    fdr : float, default=0.05
        Level for the corrected p-values.
    baseline : {"untrained", "mean"} or callable, default="untrained"
        The baseline. "untrained" calls ``predict_untrained(X)`` of the regressor: the last step
        of a Pipeline, so that slides are featurised once, or the best estimator of a search. A
        regressor without this method is compared with "mean", with a warning. "mean" is the
        mean of the scored samples, for which :func:`significance_report` omits Steiger's test.
        A callable gets ``(estimator, X, y)`` and returns the predictions of the baseline; it
        must be picklable for searches in several processes.
    normalize : bool, default=False
        Whether to return the fraction of significant genes instead of their number.
    null : {"published", "permutation", "empirical"}, default="published"
        As in :func:`significance_report`, with the scored samples permuted. One model predicts
        all of them, so "published" is calibrated here, too, unless a patient has several slides.
    random_state : int, RandomState instance or None, default=None
        Seed of the permutations.

    Returns
    -------
    scorer : callable
        Callable as ``scorer(estimator, X, y)``, which returns a float; for ``scoring=`` of searches
        and of cross-validation.

    See Also
    --------
    significance_report : Defines significant genes.
    sklearn_pk.model_selection.cross_val_significance : The number to report, over all folds.

    Notes
    -----
    A search scores each fold separately, with the few samples of that fold, so that its mean score
    is lower than the number of significant genes over all folds. Each fold needs at least 4
    samples.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn_pk.metrics import make_significance_scorer
    >>> X, y = make_regression(n_samples=60, n_features=5, n_targets=3, random_state=0)
    >>> scorer = make_significance_scorer(baseline="mean")
    >>> cross_val_score(Ridge(), X, y, scoring=scorer, cv=3).tolist()
    [3.0, 3.0, 3.0]
    """
    return _SignificanceScorer(alpha, fdr, baseline, normalize, null, random_state)


significance_scorer = _SignificanceScorer()
