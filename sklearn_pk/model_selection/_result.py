"""The result of a cross-validation of significant genes."""

# SPDX-License-Identifier: BSD-3-Clause

import html
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from ..metrics import significance_report
from ..metrics._correlation import row_names
from ..metrics._scorer import predict_with_untrained
from ..utils import check_expression
from ..utils._files import written_whole
from ..utils._frames import freeze_frames, thaw_frames
from ..utils._gmt import read_gmt
from ..utils._validation import (
    check_sample_names,
    did_you_mean,
    name_some,
    same_sample,
    sample_names_of,
)
from ._final_model import FinalModel, fit_final
from ._gene_table import enrich, escape_formulas, gene_table, make_anndata


def as_table(prediction):
    """Return a prediction with one column per gene."""
    prediction = np.asarray(prediction)
    return prediction[:, np.newaxis] if prediction.ndim == 1 else prediction


def _one(X, row):
    """Return one sample as X of the same type."""
    return _safe_indexing(X, [row])


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
    sample_names : list of n_tested str or None, default=None
        Names of the samples of X: slides, or row labels.

    Attributes
    ----------
    n_significant : int
        Number of significant genes in `report`.
    median_r_fold : float
        Median over genes of the correlation within folds, ``r_fold``.
    median_r : float
        Median over genes of the correlation pooled over folds, ``r``, as published.
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
    sample_names: list | None = None

    def _remember(self, estimator, target_transformer, X, y, groups):
        """Keep what final_model needs; X and y are neither copied nor pickled."""
        self._recipe = clone(estimator), target_transformer
        self._data = X, y, groups

    def __getstate__(self):
        """Leave out X and y; tables are plain arrays, as skops needs them."""
        return freeze_frames({k: v for k, v in vars(self).items() if k != "_data"})

    def __setstate__(self, state):
        """Restore the tables."""
        vars(self).update(thaw_frames(state))

    @property
    def n_significant(self):
        """Number of significant genes."""
        return int(self.report["significant"].sum())

    @property
    def median_r_fold(self):
        """Median correlation within folds over genes."""
        return float(self.report["r_fold"].median())

    @property
    def median_r(self):
        """Median pooled correlation over genes."""
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

    @validate_params({"annotations": "no_validation"}, prefer_skip_nested_validation=True)
    def significant_genes(self, annotations=None):
        """
        List the significant genes, the best predicted first.

        Parameters
        ----------
        annotations : DataFrame, Series or dict, default=None
            What is known of the genes, indexed by gene, such as their names or locations.

        Returns
        -------
        genes : DataFrame, one row per significant gene
            ``gene``; the columns of `annotations`; ``r`` (within folds, ``r_fold`` of the
            report), ``r_low`` and ``r_high`` (its 95 % interval), ``r_pooled`` (over all folds,
            as published), ``p`` and ``fdr`` (of the test that decides, and corrected),
            ``fold_spread`` (standard deviation of r between folds), ``significant`` and
            ``reason``.

        Raises
        ------
        TypeError
            If `annotations` is of another type.
        ValueError
            If `annotations` has a gene twice, none of the genes, or a column named as one of the
            result.

        Notes
        -----
        Intervals are those of Fisher's z. With ``null="published"`` folds are taken as
        independent, and intervals are too narrow; other nulls have the measured width.
        """
        table = gene_table(self, annotations)
        return table[table["significant"]].reset_index(drop=True)

    def to_csv(self, path, annotations=None):
        """
        Write all genes as a table for spreadsheets.

        Parameters
        ----------
        path : str or path-like
            File to write. An existing one is replaced.
        annotations : DataFrame, Series or dict, default=None
            As in :meth:`significant_genes`.

        Raises
        ------
        OSError
            If the file cannot be written.
        TypeError, ValueError
            As :meth:`significant_genes`.

        Notes
        -----
        Text that a spreadsheet would run as a formula, such as ``=A1`` or ``-AS1``, has an
        apostrophe in front.
        """
        table = escape_formulas(gene_table(self, annotations))
        with written_whole(path) as temporary:
            table.to_csv(temporary, index=False)

    @validate_params(
        {
            "path": [str, os.PathLike],
            "title": [str],
            "audit": "no_validation",
            "units": [str, None],
            "annotations": "no_validation",
            "gene_sets": [str, os.PathLike, Mapping, None],
        },
        prefer_skip_nested_validation=True,
    )
    def to_html(
        self,
        path,
        *,
        title="Gene expression from H&E slides",
        audit=None,
        units=None,
        annotations=None,
        gene_sets=None,
    ):
        """
        Write a report in one HTML file, which needs neither a network nor other files.

        It has the verdict in words with the calibrated and the published number, figures, a table
        of all genes to sort and search, the folds, the audit of matching, what was transformed,
        settings and versions.

        Parameters
        ----------
        path : str or path-like
            File to write. An existing one is replaced.
        title : str, default="Gene expression from H&E slides"
            Title of the page.
        audit : Bunch or DataFrame, default=None
            What :func:`~sklearn_pk.io.match_samples` returned, or its audit. The page has the
            names of samples that were left out.
        units : str, default=None
            Scale of the expression, such as "log2(TPM + 1)".
        annotations : DataFrame, Series or dict, default=None
            As in :meth:`significant_genes`.
        gene_sets : str, path-like or dict of str to list of str, default=None
            As in :meth:`gene_sets`; the page then has a table of them.

        Raises
        ------
        OSError
            If the file cannot be written.
        TypeError, ValueError
            As :meth:`significant_genes` and :meth:`gene_sets`, or if `audit` is not an audit.
        """
        from ..io._report_page import write_page

        options = {"annotations": annotations, "gene_sets": gene_sets}
        write_page(self, path, title=title, audit=audit, units=units, **options)

    def to_anndata(self):
        """
        Return truth, predictions and baseline as AnnData.

        Returns
        -------
        adata : AnnData of shape (n_tested, n_genes)
            ``X`` is the prediction; layers are ``truth``, ``prediction`` and, if there is one,
            ``baseline``. ``obs`` has the fold and the patient of each sample, ``var`` the report,
            ``uns`` the criteria and the verdict.

        Raises
        ------
        ImportError
            If anndata is not installed.
        """
        return make_anndata(self)

    @validate_params(
        {
            "gmt": [str, os.PathLike, Mapping],
            "min_size": [Interval(Integral, 1, None, closed="left")],
        },
        prefer_skip_nested_validation=True,
    )
    def gene_sets(self, gmt, *, min_size=5):
        """
        Test which gene sets are enriched in well predicted genes, and how well they are predicted.

        Parameters
        ----------
        gmt : str, path-like or dict of str to list of str
            GMT file, or the genes of each set.
        min_size : int, default=5
            Smallest number of genes of a set among those of the result; smaller sets are omitted.

        Returns
        -------
        sets : DataFrame, one row per gene set
            ``gene_set``; ``n_in_set``, ``n_genes`` and ``n_significant`` (its genes, those of
            the result among them, and the significant ones); ``fold_enrichment`` (of significant
            genes, over that of all genes of the result), ``p`` (one-sided hypergeometric test)
            and ``fdr`` (corrected by Benjamini and Hochberg); ``r_score`` (correlation within
            folds of the mean of the standardised genes of the set, of truth and prediction),
            ``r_low`` and ``r_high`` (its 95 % interval), and ``median_r`` (of the genes of the
            set, within folds). Sorted by p.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If no set has `min_size` of the genes, or the file is not a GMT file.

        Notes
        -----
        The test takes genes as independent, which co-expressed genes of a set are not: a small p
        is a hint, ``r_score`` is a measurement. The scores of a set use genes that are not
        significant as well.
        """
        sets = gmt if isinstance(gmt, Mapping) else read_gmt(gmt)
        return enrich(self, sets, min_size)

    def final_model(self, X=None, y=None, *, groups=None):
        """
        Fit the model on all patients.

        Parameters
        ----------
        X, y : sequence or array, array-like or DataFrame, default=None
            Samples and expression of the cross-validation. None takes those it was called with,
            which a result that was pickled or saved does not have.
        groups : array-like of shape (n_samples,), default=None
            Patient of each sample, together with `X` and `y`.

        Returns
        -------
        model : FinalModel
            The estimator of the cross-validation, fitted on all samples, with the
            ``target_transformer``. A search or leave-one-out chooses its settings on all
            patients, as it did in each fold. Predictions are on the scale of `y`.

        Raises
        ------
        ValueError
            If only one of `X` and `y` is given, or the result has neither. Also if
            ``target_transformer`` has no ``inverse_transform``.
        """
        if (X is None) != (y is None) or (X is None and groups is not None):
            raise ValueError("Pass X and y of the cross-validation, with groups if there were any.")
        data = getattr(self, "_data", None) if X is None else (X, y, groups)
        if data is None or not hasattr(self, "_recipe"):
            raise ValueError(
                "This result was loaded from a file, which has no X and y. Pass those of the "
                "cross-validation: result.final_model(X, y, groups=patients)."
            )
        return fit_final(*self._recipe, *data)

    def predict_frame(self, X):
        """
        Predict expression as a table, each sample of the cohort with the model of its fold.

        Parameters
        ----------
        X : sequence or array of n_samples
            Samples with names: bags, paths, or a DataFrame.

        Returns
        -------
        prediction : DataFrame of shape (n_samples, n_genes)
            Prediction on the scale of the table of the cross-validation. Samples of patients of
            the cohort are predicted by the model that has not seen them, others with the mean
            of the models.

        Raises
        ------
        ValueError
            If the samples have no names, or ``target_transformer`` has no ``inverse_transform``.
        """
        models = self._models_of(X)
        rows = [
            np.mean([self._fold_model(fold).predict_frame(_one(X, row)) for fold in folds], axis=0)
            for row, folds in enumerate(models)
        ]
        names = sample_names_of(X)
        return pd.DataFrame(np.concatenate(rows), index=names, columns=self.report.index.to_numpy())

    def predict_tiles(self, X, *, genes=None, **options):
        """
        Predict the expression of tiles, each slide of the cohort with the model of its fold.

        Parameters
        ----------
        X : list of n_samples
            Slides with names.
        genes : list, default=None
            Names of the genes. None means all.
        **options : object
            ``window`` and ``stride`` of the regressor.

        Returns
        -------
        list of DataFrame of shape (tiles_i, n_genes)
            Expression of each tile, as :meth:`predict_frame` predicts slides.

        Raises
        ------
        TypeError
            If the regressor has no ``predict_tiles``.
        ValueError
            As :meth:`predict_frame`, or if a step of a Pipeline needs more of a slide than the
            mean of its tiles.
        """
        options["genes"] = genes
        tables = []
        for row, folds in enumerate(self._models_of(X)):
            parts = [
                self._fold_model(fold).predict_tiles(_one(X, row), **options)[0] for fold in folds
            ]
            attrs = parts[0].attrs
            tables.append(sum(parts[1:], parts[0]) / len(parts))
            tables[-1].attrs = attrs
        return tables

    def _fold_model(self, fold):
        return FinalModel(self.estimators[fold], self.target_transformers[fold])

    def _models_of(self, X):
        """Return the folds whose models predict each sample: its own, or all if it is new."""
        self._check_models()
        names = sample_names_of(X)
        if names is None:
            raise ValueError(
                "X must have the names of its samples, so that those of the cohort are predicted "
                "by the model that has not seen them: bags with a slide, paths, or a DataFrame "
                "whose index has names. For samples of other patients, predict needs none."
            )
        fold_of, everyone = {}, list(range(len(self.estimators)))
        for known in (self.sample_names, row_names(self.y_true)):
            pairs = () if known is None else zip(known, self.fold_of_sample, strict=True)
            for name, fold in pairs:
                fold_of.setdefault(str(name), set()).add(int(fold))
        return [sorted(self._folds_of(name, fold_of)) or everyone for name in names]

    def _folds_of(self, name, fold_of):
        if name in fold_of:
            folds = fold_of[name]
        else:
            alike = (folds for known, folds in fold_of.items() if same_sample(name, known))
            folds = set().union(*alike)
        if len(folds) > 1:
            raise ValueError(
                f"X: {name!r} is the name of samples in {len(folds)} folds, so no model is known "
                "that has not seen it. Pass its name as in the cross-validation."
            )
        return folds

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

    def _repr_html_(self):
        """Show the verdict and the best genes."""
        columns = ["r_fold", "r", "p_fdr", "null_fdr", "significant"]
        best = self.report.nlargest(5, "r_fold")
        best = best[[name for name in columns if name in best]].rename(
            columns={"r_fold": "r within folds", "r": "r pooled"}
        )
        return (
            f"<p><b>{html.escape(self.verdict)}</b><br>{len(self.report):,} genes, "
            f"{len(self.predictions):,} samples, {len(self.folds)} folds; median r "
            f"{self.median_r_fold:.3f} within folds, {self.median_r:.3f} pooled</p>"
            f"{best.to_html(float_format='{:.3g}'.format)}"
        )

    def __repr__(self):
        against = f"{self.mean_report['significant'].sum()} against the mean"
        if self.untrained_predictions is not None:
            against = f"{self.n_significant} against the untrained model, {against}"
        genes = "1 gene" if len(self.report) == 1 else f"{len(self.report)} genes"
        return (
            f"CrossValSignificance({genes}, significant: {against}; median r "
            f"{self.median_r_fold:.3f} within folds, {self.median_r:.3f} pooled; {self.verdict}; "
            f"{len(self.predictions)} samples, {len(self.folds)} folds)"
        )
