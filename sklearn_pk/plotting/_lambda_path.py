"""Score of a search over the weight of the prior knowledge."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Real

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ._colors import MARKERS, OKABE_ITO

_SCORE_LABEL = "Significant genes per fold"
_LEGEND_INSIDE = 4
_TICKS = 8


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
    """Return the values of a parameter as short texts; objects by class, numbered if several."""
    objects = {id(value): value for value in values if not _is_simple(value)}
    names, seen = {}, {}
    for key, value in objects.items():
        name = type(value).__name__
        seen[name] = seen.get(name, 0) + 1
        names[key] = (name, seen[name])
    return [
        _text(value) if _is_simple(value) else _numbered(*names[id(value)], seen)
        for value in values
    ]


def _text(value):
    # In a search over several grids a candidate need not set every parameter.
    return "not set" if isinstance(value, Real) and np.isnan(value) else str(value)


def _numbered(name, number, seen):
    return name if seen[name] == 1 else f"{name} {number}"


def _label_lines(table, others):
    """Return one label a candidate, and what the labels tell, of the parameters that vary."""
    texts = pd.DataFrame(
        {name.removeprefix("param_"): _readable(list(table[name])) for name in others},
        index=table.index,
    )
    texts = texts.loc[:, texts.nunique() > 1]
    title = ", ".join(name.split("__")[-1] for name in texts)
    return [", ".join(row) for row in texts.itertuples(index=False)], title


def _fold_scores(table, metric):
    """Return the scores as an array of shape (n_candidates, n_folds)."""
    folds = [name for name in table if name.startswith("split") and name.endswith(metric)]
    if not folds:
        raise ValueError(
            f"cv_results has no columns 'split0_{metric}', ...; pass the cv_results_ of a fitted "
            "search, and the name of the metric where it has several."
        )
    return table[folds].to_numpy(dtype=float)


class LambdaPathDisplay:
    """
    Number of significant genes over the weight of the prior knowledge.

    One line for each combination of the other searched parameters: the mean over the folds,
    with a band of one standard deviation. Build it with :meth:`from_cv_results`.

    Parameters
    ----------
    paths : DataFrame
        Columns ``line`` (label of the line), ``lambda_``, ``mean`` and ``std`` over folds.
    score_name : str, default="Significant genes per fold"
        Label of the vertical axis.
    line_name : str, default=""
        What the labels of the lines tell, the title of the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the lines.
    figure_ : matplotlib Figure
        Figure that holds the axes.
    lines_ : list of matplotlib Line2D
        The lines.

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
    >>> display = LambdaPathDisplay.from_cv_results(cv_results)
    >>> display.paths["mean"].tolist()
    [505.0, 535.0, 522.5]
    """

    def __init__(self, paths, *, score_name=_SCORE_LABEL, line_name=""):
        self.paths = paths
        self.score_name = score_name
        self.line_name = line_name

    @classmethod
    def from_cv_results(
        cls, cv_results, *, lambda_param=None, metric="score", score_name=_SCORE_LABEL, ax=None
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
            Name of the metric, where the search has several.
        score_name : str, default="Significant genes per fold"
            Label of the vertical axis.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.

        Returns
        -------
        display : LambdaPathDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the results have no (or more than one) lambda, or no scores of folds.
        """
        table = pd.DataFrame(dict(cv_results))
        lambda_column = "param_" + _find_lambda(table.columns, lambda_param)
        others = [name for name in table if name.startswith("param_") and name != lambda_column]
        lines, line_name = _label_lines(table, others)
        scores = _fold_scores(table, f"test_{metric}")
        paths = pd.DataFrame(
            {
                "line": lines,
                "lambda_": table[lambda_column].astype(float),
                "mean": scores.mean(axis=1),
                "std": scores.std(axis=1),
            }
        )
        # Candidates without a prior have no lambda (masked in a search over several grids).
        paths = paths.dropna(subset=["lambda_"]).reset_index(drop=True)
        return cls(paths, score_name=score_name, line_name=line_name).plot(ax=ax)

    def plot(self, ax=None):
        """
        Draw the lines.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.

        Returns
        -------
        display : LambdaPathDisplay
            The display itself.
        """
        n_lines = self.paths["line"].nunique()
        if ax is None:
            figsize = (6.4, 4.8) if n_lines <= _LEGEND_INSIDE else (8.4, 4.8)
            _, ax = plt.subplots(figsize=figsize, layout="constrained")
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        lambdas = np.unique(self.paths["lambda_"])
        for number, (label, path) in enumerate(self.paths.groupby("line", sort=False)):
            path = path.sort_values("lambda_")
            # One lambda: points side by side, so that their spreads do not hide each other.
            shift = 0.01 * (number - (n_lines - 1) / 2) if len(lambdas) == 1 else 0.0
            self.lines_.append(_draw_line(ax, path, label, number, n_lines, shift))
        ax.set_xlabel(r"Weight of the prior knowledge, $\lambda$")
        ax.set_ylabel(f"{self.score_name}\n(mean and s.d. over folds)")
        ax.spines[["top", "right"]].set_visible(False)
        if len(lambdas) <= _TICKS:
            ax.set_xticks(lambdas)
        if len(lambdas) == 1:
            ax.set_xlim(lambdas[0] - 0.1, lambdas[0] + 0.1)
        if any(self.paths["line"] != ""):
            _draw_legend(ax, n_lines, self.line_name)
        return self


def _draw_line(ax, path, label, number, n_lines, shift):
    color = OKABE_ITO[number % len(OKABE_ITO)]
    style = ("-", "--", ":", "-.")[number // len(OKABE_ITO) % 4]
    marker = MARKERS[number % len(MARKERS)]
    x, mean, std = (path[name].to_numpy() for name in ("lambda_", "mean", "std"))
    x = x + shift
    if len(x) == 1:
        ax.errorbar(x, mean, std, color=color, capsize=4)
    else:
        alpha = 0.14 if n_lines <= _LEGEND_INSIDE else 0.05
        ax.fill_between(x, mean - std, mean + std, color=color, alpha=alpha, lw=0)
    (line,) = ax.plot(x, mean, color=color, ls=style, marker=marker, label=label or None)
    return line


def _draw_legend(ax, n_lines, title):
    """Keep a legend of many lines off the data."""
    if n_lines <= _LEGEND_INSIDE:
        ax.legend(frameon=False, title=title)
    else:
        ax.legend(
            frameon=False, title=title, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small"
        )
