"""Analysis of the runs: the weight of each prior, gains with intervals, tables and figures."""

# SPDX-License-Identifier: BSD-3-Clause

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _runs import PROJECTED, Setting, controls_of, lambdas_of
from matplotlib.ticker import MaxNLocator

from sklearn_pk.metrics import compare_significance
from sklearn_pk.plotting import ComparisonDisplay
from sklearn_pk.plotting._style import GREY, MARKERS, OKABE_ITO

# The look of a kind of line, the same in all panels, and its place beside the others.
KINDS = ("the prior", "zeros", "shuffled", "rewired")
MEASURES = {"n_significant": "Significant genes", "median_r": "Median r"}


def collect(settings, seeds, store):
    """
    Gather the figures of all runs that are finished.

    Parameters
    ----------
    settings : list of Setting
        The settings.
    seeds : list of int
        The seeds.
    store : Store
        Where they are kept.

    Returns
    -------
    DataFrame
        One row per run.
    """
    rows = (store.row(setting, seed) for setting, seed in itertools.product(settings, seeds))
    return pd.DataFrame([row for row in rows if row is not None])


class Line:
    """
    The runs of one prior, or of one control, over lambda and seeds.

    Parameters
    ----------
    aggregator, prior, control : str
        Which.
    runs : DataFrame
        What :func:`collect` gives.
    store : Store
        Where predictions are kept.
    lambdas : list of float, default=None
        The weights to look at; None takes all.
    """

    def __init__(self, aggregator, prior, control, runs, store, lambdas=None):
        mine = (runs["aggregator"] == aggregator) & (runs["prior"] == prior)
        runs = runs[mine & (runs["control"] == control)]
        if lambdas is not None:
            runs = runs[runs["lambda_"].isin(lambdas)]
        self.runs, self.store = runs, store
        self.key = (aggregator, prior, control)

    @property
    def seeds(self):
        """Seeds that all weights have been run with."""
        of_lambda = self.runs.groupby("lambda_")["seed"].agg(set)
        return sorted(set.intersection(*of_lambda)) if len(of_lambda) else []

    def best_lambda(self):
        """Return the weight with the most significant genes, over all seeds."""
        return float(self.runs.groupby("lambda_")["n_significant"].mean().idxmax())

    def at(self, lambda_, column="n_significant"):
        """Return the results of one weight, one per seed."""
        return self.runs[self.runs["lambda_"] == lambda_].set_index("seed")[column]

    def by_held_out(self, seed):
        """Return for each fold the weight at which the held-out patients had the lowest loss."""
        runs = self.runs[self.runs["seed"] == seed].sort_values("lambda_")
        losses = np.array([[fold["held_out_loss"] for fold in folds] for folds in runs["folds"]])
        return runs["lambda_"].to_numpy()[losses.argmin(axis=0)]

    def results(self, folds, seeds):
        """
        Return predictions whose weight was chosen in each fold on the held-out patients.

        Parameters
        ----------
        folds : list of (ndarray, ndarray)
            The folds.
        seeds : list of int
            Seeds.

        Returns
        -------
        list of tuple
            Truth, prediction and that of the untrained model for each seed.
        """
        truth = np.asarray(self.store.truth())
        return [(truth, *self._compose(folds, seed, truth.shape)) for seed in seeds]

    def _compose(self, folds, seed, shape):
        composed = np.empty((2, *shape), dtype=np.float32)
        for (_, test), lambda_ in zip(folds, self.by_held_out(seed), strict=True):
            tables = self.store.tables(Setting(*self.key, lambda_), seed)
            for part, table in zip(composed, tables, strict=True):
                part[test] = table[test]
        return tuple(composed)


def label_of(prior, control=""):
    """Return the name of a setting in tables and figures."""
    name = prior.replace(PROJECTED, ", projected") if prior != "none" else "no prior"
    return f"{name}, {control}" if control else name


def lines_of(aggregator, prior, options, runs, store):
    """Return the lines to compare for a prior: none, itself, and its controls, by label."""
    lambdas = lambdas_of(prior, options.lambdas)
    wanted = {label_of("none"): ("none", ""), label_of(prior): (prior, "")}
    # Projected onto nothing, predictions are those without a prior.
    if "zero" in options.controls and not prior.endswith(PROJECTED):
        wanted["zeros"] = ("zero", "")
    for control in controls_of(prior, options.controls):
        wanted[label_of(prior, control)] = (prior, control)
    lines = {
        label: Line(aggregator, *key, runs, store, None if key[0] == "none" else lambdas)
        for label, key in wanted.items()
    }
    return {label: line for label, line in lines.items() if line.seeds}


def average(runs):
    """Return one run of several: the mean of their predictions, an ensemble."""
    truth = runs[0][0]
    # One after the other: several stacked tables of all genes would not fit.
    means = (sum(run[part].astype(np.float64) for run in runs) / len(runs) for part in (1, 2))
    return (truth, *means)


def compare(aggregator, prior, options, runs, store, cohort, folds):
    """
    Compare a prior with no prior and with its controls, each at the weight of its own choice.

    Parameters
    ----------
    aggregator, prior : str
        Which.
    options : Namespace
        Has `lambdas`, `controls` and `n_boot`.
    runs : DataFrame
        What :func:`collect` gives.
    store : Store
        Where predictions are kept.
    cohort : Cohort
        The samples.
    folds : list of (ndarray, ndarray)
        The folds.

    Returns
    -------
    list of dict
        What :func:`~sklearn_pk.metrics.compare_significance` finds, from the prior to each
        other line, and from no prior to all: for single networks, and for the ensembles of all
        seeds.
    """
    lines = lines_of(aggregator, prior, options, runs, store)
    if label_of(prior) not in lines:
        return []
    seeds = sorted(set.intersection(*(set(line.seeds) for line in lines.values())))
    results = {label: line.results(folds, seeds) for label, line in lines.items()}
    same = {"aggregator": aggregator, "prior": prior, "n_seeds": len(seeds)}
    arguments = {"groups": cohort.patients, "n_boot": options.n_boot}
    rows = _compare_all(results, label_of(prior), same | {"ensemble": False}, arguments)
    if len(seeds) > 1:
        ensembles = {label: average(each) for label, each in results.items()}
        rows += _compare_all(ensembles, label_of(prior), same | {"ensemble": True}, arguments)
    return rows


def _compare_all(results, own, columns, arguments):
    """Compare all with no prior, and the prior with each of the others."""
    none, rows = label_of("none"), []
    references = [label for label in results if label not in (none, own)]
    pairs = [(none, results)] if none in results else []
    pairs += [(each, {own: results[own], each: results[each]}) for each in references]
    for reference, some in pairs:
        options = {"fdr": 0.2, "random_state": 0} | arguments
        table = compare_significance(some, reference=reference, **options)
        rows += table.assign(**columns).to_dict("records")
    return rows


def _count(value):
    return f"{value:,.1f}".removesuffix(".0")


def _interval(row, measure):
    numbers = (row.difference, row.ci_low, row.ci_high)
    digits = 1 if measure == "n_significant" else 3
    numbers = [round(number, digits) + 0.0 for number in numbers]  # no negative zero
    return "{:+.{n}f} [{:.{n}f}, {:.{n}f}]".format(*numbers, n=digits)


def rst_table(header, rows):
    """Write a simple table of reStructuredText."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = " ".join("=" * width for width in widths)
    lines = [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def paper_table(options, runs, store, cohort="cv"):
    """
    Write the table of the paper: genes, and the weight with the most on the development cohort.

    Parameters
    ----------
    options : Namespace
        Has `aggregators`, `priors`, `lambdas` and `controls`.
    runs : DataFrame
        What :func:`collect` gives.
    store : Store
        Where predictions are kept.
    cohort : {"cv", "external"}, default="cv"
        Whose genes to count.

    Returns
    -------
    str
        The table.
    """

    def cell(line):
        if not line.seeds:
            return "--"
        lambda_ = line.best_lambda()
        if cohort == "cv":
            value = line.at(lambda_).mean()
        else:
            value = np.mean([each["n_significant"] for each in line.at(lambda_, "external")])
        return _count(value) + ("" if line.key[1] == "none" else f" ({lambda_:g})")

    columns = [*options.priors, *(["zero"] if "zero" in options.controls else [])]
    rows = [
        [aggregator, *(cell(Line(aggregator, each, "", runs, store)) for each in columns)]
        for aggregator in options.aggregators
    ]
    header = ["", *(("zeros" if each == "zero" else label_of(each)) for each in columns)]
    return rst_table(header, rows)


def gain_table(comparisons, aggregator, measure, *, ensemble=False):
    """Write what each prior gains over no prior and over its controls, with intervals."""
    table = pd.DataFrame(comparisons)
    table = table[(table["aggregator"] == aggregator) & (table["measure"] == measure)]
    table = table[table["ensemble"] == ensemble]
    kinds = ("no prior", "zeros", "shuffled", "rewired")
    rows = []
    for prior, of_prior in table.groupby("prior", sort=False):
        own = of_prior[of_prior["setting"] == label_of(prior)]
        value = own["value"].iloc[0]
        shown = _count(value) if measure == "n_significant" else f"{value:.3f}"
        gains = {}
        for row in own.itertuples():
            kind = next(kind for kind in kinds if row.reference.endswith(kind))
            gains[kind] = _interval(row, measure)
        rows.append([label_of(prior), shown, *(gains.get(kind, "--") for kind in kinds)])
    return rst_table(["Prior", MEASURES[measure], *(f"over {kind}" for kind in kinds)], rows)


def draw_paths(options, runs, store):
    """
    Draw the genes of each prior and of its controls over lambda.

    Parameters
    ----------
    options : Namespace
        Has `aggregators`, `priors`, `lambdas` and `controls`.
    runs : DataFrame
        What :func:`collect` gives.
    store : Store
        Where predictions are kept.

    Returns
    -------
    Figure or None
        One panel for each aggregator and prior; None where no prior was run.
    """
    priors = [prior for prior in options.priors if prior != "none"]
    panels = list(itertools.product(options.aggregators, priors))
    if not panels:
        return None
    n_columns = min(3, len(priors))
    n_rows = -(-len(panels) // n_columns)
    size = (3.6 * n_columns + 0.6, 2.9 * n_rows + 0.6)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=size, squeeze=False, layout="constrained"
    )
    handles, limits = {}, {}
    for (aggregator, prior), ax in zip(panels, axes.flat, strict=False):
        _draw_panel(ax, prior, lines_of(aggregator, prior, options, runs, store), handles)
        several = len(options.aggregators) > 1
        ax.set_title(f"{aggregator}\n{label_of(prior)}" if several else label_of(prior))
        # A projection onto wrong embeddings leaves few genes: such panels have their own scale.
        limits.setdefault((aggregator, prior.endswith(PROJECTED)), []).append(ax)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for same in limits.values():
        low, high = zip(*(ax.get_ylim() for ax in same), strict=True)
        for ax in same:
            ax.set_ylim(min(low), max(high))
    figure.supylabel(
        "Significant genes\n(mean and s.d. over seeds)", fontsize="medium", ma="center"
    )
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _draw_panel(ax, prior, lines, handles):
    """Draw a prior and its controls, and note a handle of each for the legend."""
    for label, line in lines.items():
        if label == label_of("none"):
            level = ax.axhline(line.runs["n_significant"].mean(), color=GREY, lw=1, ls="--")
            handles.setdefault(label, level)
            continue
        kind = "the prior" if label == label_of(prior) else label.rpartition(", ")[2]
        place = KINDS.index(kind)
        genes = line.runs.groupby("lambda_")["n_significant"]
        mean, spread = genes.mean(), genes.std(ddof=0)
        look = {"color": OKABE_ITO[place], "marker": MARKERS[place], "ms": 5, "capsize": 2}
        shifted = mean.index + 0.012 * (place - 1.5)
        handle = ax.errorbar(shifted, mean, spread, lw=1.4, elinewidth=0.8, **look)
        handles.setdefault(kind, handle)
        ax.set_xticks(mean.index)
    ax.set_xlabel(r"Weight of the prior knowledge, $\lambda$")
    steps = [1, 2, 2.5, 5, 10]
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=steps, min_n_ticks=1))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, high - 0.2), max(high, low + 0.2))  # not less, where there is one lambda
    ax.spines[["top", "right"]].set_visible(False)
    low, high = ax.get_ylim()
    ax.set_ylim(low, max(high, low + 1))


def draw_gains(comparisons, options):
    """
    Draw the difference of each prior and control from no prior.

    Parameters
    ----------
    comparisons : list of dict
        What :func:`compare` gives.
    options : Namespace
        Has `aggregators`.

    Returns
    -------
    Figure or None
        One panel for each aggregator; None where there is nothing to compare.
    """
    table = pd.DataFrame(comparisons)
    if table.empty:
        return None
    table = table[(table["reference"] == label_of("none")) & ~table["ensemble"]]
    table = table.drop_duplicates(["aggregator", "setting", "measure"])
    aggregators = [each for each in options.aggregators if each in set(table["aggregator"])]
    if not aggregators:
        return None
    n_rows = table.groupby("aggregator")["setting"].nunique().max()
    figure, axes = plt.subplots(
        len(aggregators),
        2,
        figsize=(11, (1.4 + 0.42 * n_rows) * len(aggregators)),
        squeeze=False,
        layout="constrained",
    )
    for row, aggregator in zip(axes, aggregators, strict=True):
        of_aggregator = table[table["aggregator"] == aggregator]
        for ax, measure in zip(row, MEASURES, strict=True):
            ComparisonDisplay.from_comparison(of_aggregator, measure=measure, ax=ax)
            if len(aggregators) > 1:
                ax.set_title(f"{aggregator}. {ax.get_title()}", fontsize="small")
    return figure
