"""Score of a search over the weight of the prior knowledge."""

# SPDX-License-Identifier: BSD-3-Clause

import re
import warnings
from collections.abc import Mapping
from itertools import product
from numbers import Real

import numpy as np
import pandas as pd
from sklearn.base import is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from ..metrics._scorer import _SignificanceScorer
from ._style import GREY, MARKERS, OKABE_ITO, set_axes

_COLUMNS = ("line", "lambda_", "mean", "std")
_STYLES = ("-", "--", ":", "-.")
_FILLS = ("full", "none", "bottom", "top")
# Ticks are at the lambdas if there are not more than this, nor closer (relative distance).
_TICKS = 8
_CLOSEST = 0.04
# Relative to the range of lambda: shift between lines, and position of error bars without lambda.
_STEP = 0.0125
_EDGE = 0.06


def _read_results(cv_results):
    """Return the results as a table that distinguishes None from NaN."""
    table = pd.DataFrame(dict(cv_results)).reset_index(drop=True)
    if "params" not in table:
        return table
    # pandas converts None among strings to NaN, like parameters that a candidate does not set.
    for name in [name for name in table if name.startswith("param_")]:
        key = name.removeprefix("param_")
        is_none = [
            isinstance(params, Mapping) and params.get(key, "") is None
            for params in table["params"]
        ]
        if any(is_none):
            values = np.where(is_none, None, table[name].astype(object))
            table[name] = pd.Series(values, dtype=object)
    return table


def _find_lambda(columns, lambda_param):
    candidates = [name.removeprefix("param_") for name in columns if name.startswith("param_")]
    if lambda_param is not None:
        if lambda_param not in candidates:
            raise ValueError(
                f"lambda_param must be a searched parameter, got {lambda_param!r}; the search "
                f"has {candidates}."
            )
        return lambda_param
    found = [name for name in candidates if name == "lambda_" or name.endswith("__lambda_")]
    if len(found) != 1:
        raise ValueError(
            f"Expected one searched parameter that ends in 'lambda_', found {found} among "
            f"{candidates}. Name it with lambda_param=."
        )
    return found[0]


def _is_simple(value):
    return value is None or isinstance(value, (str, Real, np.generic))


def _readable(values):
    """Return the values of a parameter as text; objects by class, numbered if there are several."""
    objects = {id(value): value for value in values if not _is_simple(value)}
    names, seen = {}, {}
    for key, value in objects.items():
        name = _class_name(value)
        seen[name] = seen.get(name, 0) + 1
        names[key] = (name, seen[name])
    return [
        _text(value) if _is_simple(value) else _numbered(*names[id(value)], seen)
        for value in values
    ]


def _class_name(value):
    if isinstance(value, Pipeline):
        return " + ".join(type(step).__name__ for _, step in value.steps)
    return type(value).__name__


def _text(value):
    # In a search over several grids, candidates may not set all parameters.
    return "not set" if isinstance(value, Real) and np.isnan(value) else str(value)


def _numbered(name, number, seen):
    return name if seen[name] == 1 else f"{name} {number}"


def _texts_of(table, names):
    """Return the varying parameters as text, and their short names."""
    texts = pd.DataFrame({name: _readable(list(table[name])) for name in names}, index=table.index)
    texts = texts.loc[:, texts.nunique() > 1]
    return texts, ", ".join(name.removeprefix("param_").split("__")[-1] for name in texts)


def _label_lines(texts, label):
    """Return the label of each candidate: that of the display and its parameters."""
    return [": ".join(filter(None, [label, ", ".join(row)])) for row in texts.to_numpy(dtype=str)]


def _fold_scores(table, metric):
    """Return the scores as an array of shape (n_candidates, n_folds)."""
    pattern = re.compile(rf"split\d+_test_{re.escape(metric)}")
    folds = [name for name in table if pattern.fullmatch(name)]
    if not folds:
        raise ValueError(
            f"cv_results has no columns 'split0_test_{metric}', ...; pass the cv_results_ of a "
            "fitted search, and the name of the metric if it has several."
        )
    return table[folds].to_numpy(dtype=float)


def _finite(table, scores):
    """Omit candidates with a failed fit or score."""
    finite = np.isfinite(scores).all(axis=1)
    if not finite.any():
        raise ValueError("cv_results has no candidate with finite scores in all folds.")
    if not finite.all():
        warnings.warn(
            f"{np.sum(~finite)} of {len(finite)} candidates have scores that are not finite; "
            "they are omitted.",
            UserWarning,
            stacklevel=3,
        )
    return table[finite].reset_index(drop=True), scores[finite]


def _lambdas_of(table, lambda_column):
    """Return the lambdas, NaN for candidates without a prior."""
    # Lambdas are masked in a search over several grids, and have no meaning without a prior.
    lambdas = table[lambda_column].astype(float)
    for name in table:
        if re.fullmatch(r"param_(.*__)?prior", name):
            lambdas = lambdas.mask([prior is None for prior in table[name]])
    return lambdas


def _name_of_score(search, metric):
    """Return the name of the score of a search, or "Score" if unknown."""
    scoring = getattr(search, "scoring", None)
    if metric != "score":
        scoring = scoring.get(metric) if isinstance(scoring, Mapping) else metric
    if isinstance(scoring, _SignificanceScorer):
        prefix = "Fraction of significant" if scoring.normalize else "Significant"
        return f"{prefix} genes per fold"
    if metric != "score":
        return metric
    if scoring is None and is_regressor(search):
        return "$R^2$"
    return scoring if isinstance(scoring, str) else "Score"


def _check_paths(paths):
    if not isinstance(paths, pd.DataFrame):
        raise TypeError(f"paths must be a DataFrame, got an instance of {type(paths).__name__}.")
    missing = [name for name in _COLUMNS if name not in paths]
    if missing:
        raise ValueError(f"paths lacks the columns {missing}; it needs {list(_COLUMNS)}.")
    if not paths["lambda_"].notna().any():
        raise ValueError("paths must have at least one row with a lambda, got none.")
    if not np.isfinite(paths[["mean", "std"]].to_numpy(dtype=float)).all():
        raise ValueError("paths must have finite means and standard deviations.")
    repeated = paths.duplicated(["line", "lambda_"])
    if repeated.any():
        line, lambda_ = paths.loc[repeated, ["line", "lambda_"]].iloc[0]
        raise ValueError(
            f"paths must have one row for each line and lambda, but has several for line "
            f"{line!r} and lambda {lambda_}. Add a column param_... to the results, such as "
            "param_prior, that distinguishes them."
        )


def _leave_one_out_path(path, label):
    """Return the best score of each lambda as the table that is drawn."""
    table = pd.DataFrame({"lambda_": path["lambda_"], "mean": path["loo_score"]})
    table = table.groupby("lambda_", as_index=False).max()
    table = table.assign(line="leave-one-out" if label is None else label, std=0.0)
    table.attrs["no_folds"] = True
    return table


class LambdaPathDisplay:
    """
    Score of a search over the weight of the prior knowledge.

    One line for each combination of the other searched parameters: the mean over the folds, with
    error bars of one standard deviation, slightly shifted to avoid overlap. Candidates without a
    prior are horizontal lines, with their error bars at the right. Several displays can be drawn
    on the same axes. Build it with :meth:`from_estimator` or :meth:`from_cv_results`.

    Parameters
    ----------
    paths : DataFrame
        Columns ``line`` (label of the line), ``lambda_`` (NaN without a prior), ``mean`` and
        ``std`` over folds. If there are two further columns ``param_...``, whose combinations are
        the lines, one is shown by colour and marker, the other by line style and fill style.
    score_name : str, default="Score"
        Label of the vertical axis.
    line_name : str, default=""
        Names of the parameters in the labels of the lines, the title of the legend.
    chosen : tuple of (str, float) or None, default=None
        Line and lambda that were chosen, with NaN for the choice of no prior. None marks none.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the lines.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    lines_ : list of matplotlib Line2D
        The lines.
    errorbars_ : list of matplotlib ErrorbarContainer
        Their error bars.
    chosen_ : matplotlib Line2D or None
        The circle around the chosen value.
    no_prior_ : matplotlib Line2D or None
        The score at lambda = 0, as a horizontal line, if there is one line only and no candidate
        without a prior.

    Raises
    ------
    TypeError
        If `paths` is not a DataFrame.
    ValueError
        If `paths` lacks columns or lambdas, has NaN elsewhere, or a lambda twice in a line.

    See Also
    --------
    sklearn_pk.metrics.significance_scorer : The score of the search.
    PredictionDisplay : Predicted against true expression of one gene.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from sklearn_pk.plotting import LambdaPathDisplay
    >>> cv_results = {
    ...     "param_lambda_": [0.1, 0.5, 0.9],
    ...     "split0_test_score": [510, 530, 520],
    ...     "split1_test_score": [500, 540, 525],
    ... }
    >>> display = LambdaPathDisplay.from_cv_results(cv_results, score_name="Significant genes")
    >>> display.paths["mean"].tolist()
    [505.0, 535.0, 522.5]
    """

    def __init__(self, paths, *, score_name="Score", line_name="", chosen=None):
        _check_paths(paths)
        self.paths = paths
        self.score_name = score_name
        self.line_name = line_name
        self.chosen = chosen

    @classmethod
    def from_estimator(
        cls, search, *, lambda_param=None, metric=None, score_name=None, label=None, ax=None
    ):
        """
        Draw the path of a fitted search.

        Parameters
        ----------
        search : estimator
            Fitted search with ``cv_results_``, such as GridSearchCV or
            :class:`~sklearn_pk.regression.PriorKnowledgeRegressorCV`, a
            :class:`~sklearn_pk.regression.PriorKnowledgeRidge` (the best `alpha` for each
            lambda), or a Pipeline that ends in one.
        lambda_param : str, default=None
            As in :meth:`from_cv_results`.
        metric : str, default=None
            Name of the metric, if the search has several. None takes that of its
            ``refit``.
        score_name : str, default=None
            Label of the vertical axis. None uses ``scoring`` of the search: "Significant genes
            per fold" for :data:`~sklearn_pk.metrics.significance_scorer`, the name of a named
            score, and "Score" otherwise.
        label, ax : object
            As in :meth:`from_cv_results`.

        Returns
        -------
        display : LambdaPathDisplay
            The plotted display.

        Raises
        ------
        NotFittedError
            If `search` has no ``cv_results_``.
        ValueError
            As :meth:`from_cv_results`.
        """
        while isinstance(search, Pipeline):
            search = search[-1]
        if getattr(search, "path_", None):
            name = "Leave-one-out R squared" if score_name is None else score_name
            paths = _leave_one_out_path(search.path_, label)
            chosen = paths["line"].iloc[0], search.lambda_best_
            return cls(paths, score_name=name, chosen=chosen).plot(ax=ax)
        if not hasattr(search, "cv_results_"):
            raise NotFittedError(
                "search must be a fitted search with cv_results_, such as GridSearchCV or "
                f"PriorKnowledgeRegressorCV, got an instance of {type(search).__name__}. Call "
                "its fit first."
            )
        if metric is None:
            refit = getattr(search, "refit", None)
            metric = refit if isinstance(refit, str) else "score"
        name = _name_of_score(search, metric) if score_name is None else score_name
        best = getattr(search, "best_index_", None)
        return cls._from_results(search.cv_results_, lambda_param, metric, name, label, best, ax)

    @classmethod
    def from_cv_results(
        cls,
        cv_results,
        *,
        lambda_param=None,
        metric="score",
        score_name=None,
        label=None,
        ax=None,
    ):
        """
        Draw the path from the results of a search.

        Parameters
        ----------
        cv_results : dict or DataFrame
            ``cv_results_`` of a fitted search such as GridSearchCV.
        lambda_param : str, default=None
            The searched parameter on the horizontal axis. None takes the one whose name
            ends in ``lambda_``.
        metric : str, default="score"
            Name of the metric, if the search has several.
        score_name : str, default=None
            Label of the vertical axis. None takes `metric`, or "Score" if the search has only
            one; :meth:`from_estimator` takes the name of the score from the search.
        label : str, default=None
            Name of the display in the legend, for several on the same axes.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : LambdaPathDisplay
            The plotted display.

        Raises
        ------
        TypeError
            If `cv_results` is neither dict nor DataFrame.
        ValueError
            If the results have no (or more than one) lambda, or no scores of folds.

        Notes
        -----
        The candidate with the highest mean is marked as the chosen one.

        A candidate has no prior if ``prior`` is None, whatever its lambda, or if its grid has no
        lambda. Such candidates that differ only by lambda are averaged. Candidates with scores
        that are not finite are omitted, with a warning.
        """
        if not isinstance(cv_results, (Mapping, pd.DataFrame)):
            raise TypeError(
                "cv_results must be the dict cv_results_ of a fitted search, or a DataFrame of it, "
                f"got an instance of {type(cv_results).__name__}. Pass a search itself to "
                "LambdaPathDisplay.from_estimator."
            )
        if score_name is None:
            score_name = "Score" if metric == "score" else metric
        return cls._from_results(cv_results, lambda_param, metric, score_name, label, None, ax)

    @classmethod
    def _from_results(cls, cv_results, lambda_param, metric, score_name, label, best, ax):
        table = _read_results(cv_results)
        table["position"] = range(len(table))
        lambda_column = "param_" + _find_lambda(table.columns, lambda_param)
        table, scores = _finite(table, _fold_scores(table, metric))
        others = [name for name in table if name.startswith("param_") and name != lambda_column]
        texts, line_name = _texts_of(table, others)
        lines, lambdas = _label_lines(texts, label), _lambdas_of(table, lambda_column)
        without = lambdas.isna().to_numpy()
        if without.any():
            of_line = pd.DataFrame(scores[without]).groupby(np.array(lines)[without])
            scores[without] = of_line.transform("mean")
        mean = scores.mean(axis=1)
        chosen = np.flatnonzero(table["position"] == best)
        row = chosen[0] if len(chosen) else mean.argmax()
        chosen = lines[row], float(lambdas.iloc[row])
        paths = pd.DataFrame(
            {"line": lines, "lambda_": lambdas, "mean": mean, "std": scores.std(axis=1)}
        ).join(texts)
        paths = paths[~(without & paths.duplicated(["line", "lambda_"]))].reset_index(drop=True)
        return cls(paths, score_name=score_name, line_name=line_name, chosen=chosen).plot(ax=ax)

    def plot(self, ax=None):
        """
        Draw the lines.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure. Existing lines of other displays keep
            their colours, and the legend includes them.

        Returns
        -------
        display : LambdaPathDisplay
            The display itself.
        """
        groups = [
            group
            for _, group in self.paths.groupby(["line", self.paths["lambda_"].isna()], sort=False)
        ]
        n_lines = len(groups)
        width = 6.4 if n_lines == 1 else 8.4  # with a legend
        ax = set_axes(self, ax, (width, 4.8))
        self.lines_, self.errorbars_ = [], []
        n_before = len(ax.containers)
        lambdas = np.unique(self.paths["lambda_"].dropna())
        span = np.ptp(lambdas) or 0.8
        step = min([_STEP * span, *0.7 * np.diff(lambdas) / n_lines])
        looks = _choose_looks([group.iloc[0] for group in groups], ax)
        for number, (group, look) in enumerate(zip(groups, looks, strict=True)):
            shift = step * (n_before + number - (n_lines - 1) / 2)
            line, errorbar = _draw_line(ax, group, look, shift, lambdas[-1] + _EDGE * span)
            self.lines_.append(line)
            self.errorbars_.append(errorbar)
        self.no_prior_ = self._draw_no_prior(ax) if n_lines == 1 and not n_before else None
        self.chosen_ = None if self.chosen is None else self._draw_chosen(ax, groups)
        ax.set_xlabel(r"Weight of the prior knowledge, $\lambda$")
        over_folds = "" if self.paths.attrs.get("no_folds") else "\n(mean and s.d. over folds)"
        ax.set_ylabel(self.score_name + over_folds)
        ax.spines[["top", "right"]].set_visible(False)
        _draw_ticks(ax, lambdas if n_before == 0 else np.union1d(lambdas, ax.get_xticks()))
        _draw_legend(ax, self.line_name)
        return self

    def _draw_no_prior(self, ax):
        without = self.paths.loc[self.paths["lambda_"] == 0, "mean"]
        if without.empty:
            return None
        style = {"color": GREY, "ls": "--", "lw": 1, "zorder": 0}
        return ax.axhline(without.iloc[0], label=r"no prior ($\lambda$ = 0)", **style)

    def _draw_chosen(self, ax, groups):
        """Draw a circle around the chosen value, where its line is."""
        name, lambda_ = self.chosen
        for group, line, errorbar in zip(groups, self.lines_, self.errorbars_, strict=True):
            at = group["lambda_"].isna() if pd.isna(lambda_) else group["lambda_"] == lambda_
            if group["line"].iloc[0] != name or not at.any():
                continue
            x = float(errorbar.lines[2][0].get_segments()[0][0, 0])
            if not pd.isna(lambda_):
                x = line.get_xdata()[np.sort(group["lambda_"]).searchsorted(lambda_)]
            text = "no prior" if pd.isna(lambda_) else f"{lambda_:g}"
            style = {"ls": "none", "marker": "o", "ms": 13, "mfc": "none", "mec": "black"}
            return ax.plot(x, group["mean"][at].iloc[0], label=f"chosen: {text}", **style)[0]
        return None


def _choose_looks(rows, ax):
    """Return unused indices of colour and line style for each line."""
    used = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    names = [name for name in rows[0].index if name.startswith("param_")]
    if len(names) == 2 and not used:
        codes = [pd.factorize(np.array([row[name] for row in rows]))[0] for name in names]
        colors, styles = sorted(codes, key=max, reverse=True)
        if max(colors) < len(OKABE_ITO) and max(styles) < len(_STYLES):
            return list(zip(colors, styles, strict=True))
    every = [(color, style) for style, color in product(range(len(_STYLES)), range(len(OKABE_ITO)))]
    free = [look for look in every if (OKABE_ITO[look[0]], _STYLES[look[1]]) not in used] or every
    return [free[number % len(free)] for number in range(len(rows))]


def _draw_line(ax, path, look, shift, edge):
    """Draw a line and its error bars, which are at the edge for candidates without a lambda."""
    color, stroke = OKABE_ITO[look[0]], _STYLES[look[1]]
    style = {"color": color, "ls": stroke, "label": path["line"].iloc[0] or None}
    path = path.sort_values("lambda_")
    x, mean, std = (path[name].to_numpy(dtype=float) for name in _COLUMNS[1:])
    if np.isnan(x).all():
        x = np.full(len(x), edge)
        line = ax.axhline(mean[0], **style)
    else:
        marker = {"marker": MARKERS[look[0]], "fillstyle": _FILLS[look[1]], "ms": 5.5}
        (line,) = ax.plot(x + shift, mean, **style, **marker)
    errorbar = ax.errorbar(
        x + shift, mean, std, fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.6
    )
    return line, errorbar


def _draw_ticks(ax, lambdas):
    if len(lambdas) == 1:
        ax.set_xlim(lambdas[0] - 0.1, lambdas[0] + 0.1)
    elif np.diff(lambdas).min() < _CLOSEST * np.ptp(lambdas):
        return
    if len(lambdas) <= _TICKS:
        ax.set_xticks(lambdas)


def _draw_legend(ax, title):
    """Draw a legend of all displays, beside the axes if the figure has a layout engine."""
    if not ax.get_legend_handles_labels()[1]:
        return
    if not title and ax.get_legend():
        title = ax.get_legend().get_title().get_text()
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend(
        frameon=False,
        title=title,
        fontsize="small",
        handlelength=3,
        **({"loc": "best"} if ax.figure.get_layout_engine() is None else beside),
    )
