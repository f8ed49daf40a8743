"""The result of a cross-validation of significant genes."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.utils._param_validation import StrOptions, validate_params

from ..metrics import significance_report
from ..metrics._correlation import row_names
from ..metrics._scorer import predict_with_untrained
from ..utils import check_expression
from ..utils._validation import check_sample_names, did_you_mean, name_some


def as_table(prediction):
    """Return a prediction with one column per gene."""
    prediction = np.asarray(prediction)
    return prediction[:, np.newaxis] if prediction.ndim == 1 else prediction


def _mean(tables):
    """Return the float64 mean of an iterable of tables, with one in memory at a time."""
    total = count = 0
    for table in tables:
        total, count = total + np.asarray(table, dtype=np.float64), count + 1
    return total / count


@dataclass(repr=False, eq=False)
class CrossValSignificance:
    """
    Result of :func:`cross_val_significance`.

    Parameters
    ----------
    report : DataFrame of n_genes rows
        :func:`~sklearn_pk.metrics.significance_report` of all held-out samples pooled, one row
        per patient, each gene tested once, against the untrained models (or the mean, if the
        estimator has no ``predict_untrained``).
    mean_report : DataFrame of n_genes rows
        The same report against the mean of the held-out patients.
    predictions : DataFrame of shape (n_tested, n_genes)
        Predictions for the held-out samples, in the order of `y`.
    untrained_predictions : DataFrame of shape (n_tested, n_genes) or None
        Predictions of the models before training, if available.
    y_true : DataFrame of shape (n_tested, n_genes)
        The truth, on the scale of the predictions.
    folds : DataFrame of n_folds rows
        ``fold``, ``n_train``, ``n_test``, ``n_train_patients``, ``n_test_patients`` (samples
        if there are no groups), ``n_significant`` and ``median_r`` (of this fold
        only, NaN below 4 test samples), ``fit_time`` and ``score_time`` (s; prediction only).
    estimators : list of n_folds estimators
        The fitted model of each fold.
    target_transformers : list of n_folds transformers or of None
        The transformer of `y` fitted in each fold.
    test_indices : list of n_folds ndarrays
        Rows of `y` held out in each fold.
    groups : Series of shape (n_tested,) or None, default=None
        Patient of each row of `y_true`.
    criteria : dict, default={}
        ``alpha``, ``fdr``, ``compat`` and ``null`` of the reports.
    n_published : int or None, default=None
        Number of significant genes by the published test, for comparison with papers: against
        the same baseline, at ``alpha=0.05``, ``fdr=0.2`` and ``compat="sequoia"``, one row per
        slide.
    null : object or None, default=None
        The null distribution of ``r_fold``; None with ``null="published"``.
    null_r : ndarray of shape (n_permutations, n_genes) or None, default=None
        ``r_fold`` of each gene in the permuted runs, float32.
    null_counts : ndarray of shape (n_permutations,) or None, default=None
        `n_published` of the permuted runs, in which no gene can be predicted.

    Attributes
    ----------
    n_significant : int
        Number of significant genes in `report`.
    median_r : float
        Median over genes of the correlation in `report`.
    fold_of_sample : ndarray of shape (n_tested,)
        Fold in which each row of `y_true` was held out.
    verdict : str
        The number of significant genes in words, with that of the published test.

    See Also
    --------
    cross_val_significance : Returns this result.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_pk.model_selection import cross_val_significance
    >>> X, y = make_regression(n_samples=60, n_features=5, n_targets=3, random_state=0)
    >>> result = cross_val_significance(Ridge(), X, y)
    >>> result.n_significant, round(result.median_r, 3)
    (3, 1.0)
    >>> result.predict(X).shape
    (60, 3)
    >>> result.evaluate(X, y, baseline="mean")["significant"].tolist()
    [True, True, True]
    """

    report: pd.DataFrame
    mean_report: pd.DataFrame
    predictions: pd.DataFrame
    untrained_predictions: pd.DataFrame | None
    y_true: pd.DataFrame
    folds: pd.DataFrame
    estimators: list
    target_transformers: list
    test_indices: list
    groups: pd.Series | None = None
    criteria: dict = field(default_factory=dict)
    n_published: int | None = None
    null: object = None
    null_r: np.ndarray | None = None
    null_counts: np.ndarray | None = None

    @property
    def n_significant(self):
        """Number of significant genes."""
        return int(self.report["significant"].sum())

    @property
    def median_r(self):
        """Median correlation over genes."""
        return float(self.report["r"].median())

    @property
    def fold_of_sample(self):
        """Fold in which each row was held out."""
        rows = np.concatenate(self.test_indices)
        fold = np.repeat(np.arange(len(self.test_indices)), [len(t) for t in self.test_indices])
        return fold[np.argsort(rows, kind="stable")]

    @property
    def verdict(self):
        """The number of significant genes in words."""
        null, level = self.criteria.get("null", "published"), self.criteria.get("fdr", 0.05)
        published = "not known by the published test"
        if self.n_published is not None:
            published = f"{self.n_published:,} by the published test"
        if self.null_counts is not None:
            most = np.percentile(self.null_counts, 95)
            published += (
                f" (with permuted patients {self.null_counts.mean():,.0f}, 95th percentile "
                f"{most:,.0f})"
            )
        if null == "published":
            return f"{published}, which is not calibrated for folds (see null)"
        means = {"permutation": "by permutation", "empirical": "by an empirical null"}
        how = means.get(null, "by an analytic null")
        return (
            f"{published}; {self.n_significant:,} with false discoveries controlled at "
            f"{100 * level:g} % {how}"
        )

    def predict(self, X):
        """
        Predict new samples with the mean of the fold models.

        Parameters
        ----------
        X : sequence or array of n_samples
            Samples of the same type as in training, usually from another cohort.

        Returns
        -------
        prediction : ndarray of shape (n_samples,) or (n_samples, n_genes), float64
            Mean prediction, on the scale of `y_true`.
        """
        self._check_models()
        return _mean(estimator.predict(X) for estimator in self.estimators)

    @validate_params(
        {
            "X": "no_validation",
            "y": "no_validation",
            "groups": ["array-like", None],
            "baseline": [StrOptions({"untrained", "mean"})],
            "return_tables": ["boolean"],
        },
        prefer_skip_nested_validation=True,
    )
    def evaluate(self, X, y, *, groups=None, baseline="untrained", return_tables=False):
        """
        Report on samples of another cohort, predicted with the mean of the fold models.

        Parameters
        ----------
        X : sequence or array of n_samples
            Samples of the same type as in training that no model has seen.
        y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
            Their expression, in the units of the training y. Genes of a DataFrame are matched by
            name in any order; genes that are not in `report` are ignored. An array must have the
            genes of `report` in their order.
        groups : array-like of shape (n_samples,), default=None
            Patient of each sample. If given, samples are averaged to one row per patient; see
            :func:`~sklearn_pk.metrics.significance_report`.
        baseline : {"untrained", "mean"}, default="untrained"
            The mean prediction of the models before training, or the mean of `y`. The
            latter is also used if the estimator has no ``predict_untrained``.
        return_tables : bool, default=False
            Whether to return the tables of the report, too.

        Returns
        -------
        report : DataFrame, one row per gene
            :func:`~sklearn_pk.metrics.significance_report` with the criteria of the
            cross-validation. With a `target_transformer`, `y` is first transformed to the mean
            of the scales of the folds.
        tables : tuple of DataFrame
            Truth, prediction and baseline (None for the mean), one row per sample, for
            :func:`~sklearn_pk.metrics.compare_significance`. Only with `return_tables`.

        Raises
        ------
        ValueError
            If `y` has none of the genes, a gene twice or NaN, or the names or
            numbers of samples of `X` and `y` do not agree.

        Warns
        -----
        UserWarning
            If genes of the models are missing from `y`, or sample names of `y` are among
            those of the cross-validation.
        """
        self._check_models()
        check_sample_names(X, y)
        values, gene_names, is_1d = check_expression(y, estimator_name="evaluate")
        genes = self.report.index
        if is_1d and len(genes) == 1:
            gene_names = None  # the name of a Series often describes its content
        common = self._common_genes(gene_names, values.shape[1])
        self._warn_about_seen(y)
        columns = genes if gene_names is None else gene_names
        rows = y.index if isinstance(y, pd.DataFrame | pd.Series) else None
        frame = pd.DataFrame(values, index=rows, columns=columns)
        truth = self._rescale(frame.reindex(columns=genes))[common]
        prediction, untrained = (
            None
            if table is None
            else pd.DataFrame(table, index=frame.index, columns=genes, copy=False)[common]
            for table in self._predict_with_untrained(X)
        )
        tables = truth, prediction, None if baseline == "mean" else untrained
        report = significance_report(*tables, groups=groups, **self._levels())
        return (report, tables) if return_tables else report

    def report_by_slide(self, *, baseline="untrained"):
        """
        Report on slides, as published: n of the tests is the number of samples.

        Slides of a patient are not independent, so this is for comparison with published numbers.

        Parameters
        ----------
        baseline : {"untrained", "mean"}, default="untrained"
            As in :meth:`evaluate`.

        Returns
        -------
        report : DataFrame, one row per gene
            :func:`~sklearn_pk.metrics.significance_report` of the held-out samples, with the
            levels of `criteria` and ``null="published"``.

        Raises
        ------
        ValueError
            If `baseline` is unknown.
        """
        if baseline not in ("untrained", "mean"):
            raise ValueError(f"baseline must be 'untrained' or 'mean', got {baseline!r}.")
        y_baseline = None if baseline == "mean" else self.untrained_predictions
        return significance_report(self.y_true, self.predictions, y_baseline, **self._levels())

    def _levels(self):
        return {name: value for name, value in self.criteria.items() if name != "null"}

    def _check_models(self):
        if not self.estimators:
            raise ValueError("This result has no fitted models, as all results of prior_gain.")

    def _predict_with_untrained(self, X):
        predictions, baseline = 0.0, 0.0
        for estimator in self.estimators:
            prediction, untrained = predict_with_untrained(estimator, X)
            predictions = predictions + as_table(prediction).astype(np.float64, copy=False)
            if untrained is None or baseline is None:
                baseline = None
            else:
                baseline = baseline + as_table(untrained).astype(np.float64, copy=False)
        n = len(self.estimators)
        return predictions / n, None if baseline is None else baseline / n

    def _warn_about_seen(self, y):
        names, seen = row_names(y), row_names(self.y_true)
        if names is None or seen is None:
            return
        known = [name for name in names if name in set(seen)]
        if known:
            warnings.warn(
                f"{len(known)} of {len(names)} samples are among those of the cross-validation, "
                f"on which most of its models were trained: {name_some(known)}.",
                UserWarning,
                stacklevel=4,
            )

    def _common_genes(self, gene_names, n_genes):
        genes = self.report.index
        if gene_names is None:
            if n_genes != len(genes):
                raise ValueError(
                    f"y has {n_genes} genes without names, but the models have {len(genes)}. "
                    "Pass a DataFrame with gene names, or the same genes."
                )
            return genes
        missing = genes[~genes.isin(gene_names)]
        if len(missing) == len(genes):
            raise ValueError(
                f"y has none of the {len(genes)} genes of the models: it has genes such as "
                f"{gene_names[0]!r}, the models have genes such as {genes[0]!r}."
                f"{did_you_mean(genes, gene_names)}"
            )
        if len(missing):
            warnings.warn(
                f"y lacks {len(missing)} of the {len(genes)} genes of the models, which the "
                f"report omits: {name_some(missing)}.",
                UserWarning,
                stacklevel=4,
            )
        return genes.drop(missing)

    def _rescale(self, truth):
        """Transform the truth to the scale of the predictions; missing genes are NaN."""
        if self.target_transformers[0] is None:
            return truth
        try:
            scaled = _mean(t.transform(truth.to_numpy()) for t in self.target_transformers)
        except ValueError as error:
            if not truth.isna().any(axis=None):
                raise
            raise ValueError(
                "y lacks genes of the models, and the target_transformer of the cross-validation "
                "does not accept NaN in their place. Pass a y with all genes."
            ) from error
        return pd.DataFrame(scaled, index=truth.index, columns=truth.columns)

    def __repr__(self):
        against = f"{self.mean_report['significant'].sum()} against the mean"
        if self.untrained_predictions is not None:
            against = f"{self.n_significant} against the untrained model, {against}"
        genes = "1 gene" if len(self.report) == 1 else f"{len(self.report)} genes"
        return (
            f"CrossValSignificance({genes}, significant: {against}; median r "
            f"{self.median_r:.3f}; {self.verdict}; {len(self.predictions)} samples, "
            f"{len(self.folds)} folds)"
        )
