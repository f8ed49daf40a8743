"""Summary, figure and table of the recovery of planted genes."""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import t as student

from sklearn_pk.plotting._style import GREY, OKABE_ITO

_GRAPH, _INTERNAL, _EIGENGENES = OKABE_ITO[0], OKABE_ITO[5], OKABE_ITO[1]
_CONTROL = {"ls": "--", "mfc": "white"}
# Controls have the colour of their prior, dashed lines and open markers.
LOOKS = {
    "none": {"color": OKABE_ITO[6], "marker": "X"},
    "graph": {"color": _GRAPH, "marker": "o", "label": "true graph"},
    "internal": {"color": _INTERNAL, "marker": "s", "label": "internal graph"},
    "eigengenes": {"color": _EIGENGENES, "marker": "^"},
    "zero": {"color": GREY, "marker": "D"} | _CONTROL,
    "shuffled graph": {"color": _GRAPH, "marker": "o"} | _CONTROL,
    "shuffled eigengenes": {"color": _EIGENGENES, "marker": "^"} | _CONTROL,
    "ridge": {"color": OKABE_ITO[2], "marker": "v", "ls": ":", "label": "ridge on means of tiles"},
}
WITHOUT_LAMBDA = ("none", "ridge")
AXES = ["permuted", "n_slides", "prior", "lambda_"]
MEASURES = ["recall", "fdr", "n_false", "median_r", "recall_mean", "seconds"]
_DODGE = 0.012
HEAD = (
    "Slides",
    "Prior",
    "λ",
    "Seeds",
    "Recall (range of seeds)",
    "Over none",
    "Over zeros",
    "Over shuffled",
    "False genes",
    "False fraction",
    "Median r",
    "Median r over zeros",
    "Recall against the mean",
)


def summarize(rows):
    """Average over seeds, with the range of the seeds and the gains over none and controls."""
    table = pd.DataFrame(rows)
    table[MEASURES] = table[MEASURES].astype(float)
    cells = []
    for keys, group in table.groupby(AXES, sort=False):
        cell = dict(zip(AXES, keys, strict=True)) | {"n_seeds": len(group)}
        cell |= group[MEASURES].mean().to_dict()
        for name in ("recall", "median_r"):
            cell |= {f"{name}_low": group[name].min(), f"{name}_high": group[name].max()}
        peers = table[(table["permuted"] == keys[0]) & (table["n_slides"] == keys[1])]
        at_lambda = peers[peers["lambda_"] == cell["lambda_"]]
        others = {
            "none": peers[peers["prior"] == "none"],
            "zero": at_lambda[at_lambda["prior"] == "zero"],
            "shuffled": at_lambda[at_lambda["prior"] == f"shuffled {cell['prior']}"],
        }
        for name, other in others.items():
            other = other[other["prior"] != cell["prior"]]
            for measure in ("recall", "median_r"):
                cell |= gain_over(group, other, measure, f"{measure}_over_{name}")
        cells.append(cell)
    order = dict(zip(LOOKS, range(len(LOOKS)), strict=True))
    return pd.DataFrame(cells).sort_values(
        AXES, key=lambda column: column.map(order) if column.name == "prior" else column
    )


def gain_over(group, other, measure, name):
    """Return the mean gain over another setting, and half of its 95 % interval over seeds."""
    # The same seed has the same cohort and folds, so differences are taken within it.
    gains = (group.set_index("seed")[measure] - other.set_index("seed")[measure]).dropna()
    half = np.nan
    if len(gains) > 1:
        half = student.ppf(0.975, len(gains) - 1) * gains.std() / np.sqrt(len(gains))
    return {name: gains.mean(), f"{name}_half": half}


def best_slice(cells, along, across):
    """Return the value of one axis at which most of the other was run; the largest of these."""
    counts = cells.groupby(along)[across].nunique()
    return counts[counts == counts.max()].index.max()


def draw_lines(ax, cells, x, measure):
    """Draw the mean over seeds of each prior along an axis, with the range of the seeds."""
    shown = [name for name in LOOKS if name in set(cells["prior"])]
    places = sorted(cells[x].unique())
    # Neighbours on the axis are this far apart, as a ratio of sizes or as a difference.
    by_ratio = x == "n_slides"
    for number, name in enumerate(shown):
        path = cells[cells["prior"] == name].sort_values(x)
        look = {"label": name, "ms": 6, "lw": 1.6, "zorder": 3} | LOOKS[name]
        step = _DODGE * (number - (len(shown) - 1) / 2)
        shifted = path[x] * 2**step if by_ratio else path[x] + step * np.ptp(places)
        ax.plot(shifted, path[measure], **look)
        low, high = path[f"{measure}_low"], path[f"{measure}_high"]
        ax.vlines(shifted, low, high, color=look["color"], lw=1, alpha=0.45)
    if by_ratio:
        ax.set_xscale("log", base=2)
    ax.set_xticks(places, [f"{place:,g}" for place in places])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)


def draw(table, path):
    """Draw recall over n and over lambda, and the median correlation over n."""
    cells = table[~table["permuted"]]
    without = cells["prior"].isin(WITHOUT_LAMBDA)
    if without.all():
        return  # no line over lambda yet
    lambda_ = best_slice(cells[~without], "lambda_", "n_slides")
    n_slides = best_slice(cells[~without], "n_slides", "lambda_")
    over_n = cells[(cells["lambda_"] == lambda_) | without]
    at_n = cells[cells["n_slides"] == n_slides]
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.7), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    draw_lines(axes[0], over_n[over_n["recall"].notna()], "n_slides", "recall")
    draw_lines(axes[1], at_n[~at_n["prior"].isin(WITHOUT_LAMBDA)], "lambda_", "recall")
    draw_lines(axes[2], over_n, "n_slides", "median_r")
    for value in at_n.loc[at_n["prior"] == "none", "recall"]:
        axes[1].axhline(value, color=LOOKS["none"]["color"], lw=1.6)
    for ax in axes[:2]:
        ax.set_ylim(-0.02, 1.02)
        ax.set_ylabel("Fraction of the planted genes found")
    axes[2].axhline(0, color=GREY, lw=0.8)
    axes[2].set_ylabel("Median r of the planted genes")
    weight = r"Weight of the prior knowledge, $\lambda$"
    labels = ("Slides", weight, "Slides")
    titles = (rf"$\lambda$ = {lambda_:g}", f"{n_slides:,} slides", rf"$\lambda$ = {lambda_:g}")
    for ax, label, title in zip(axes, labels, titles, strict=True):
        ax.set_xlabel(label)
        ax.set_title(title, loc="left", fontsize="medium", pad=10)
    legend = dict(zip(*axes[2].get_legend_handles_labels()[::-1], strict=True))
    where = {"loc": "outside lower center", "ncols": len(legend), "columnspacing": 1.4}
    figure.legend(legend.values(), legend, frameon=False, **where)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def with_interval(cell, name, digits=2):
    """Write a difference with its interval; with one seed there is none."""
    mean, half = getattr(cell, name), getattr(cell, f"{name}_half")
    if np.isnan(mean):
        return ""
    mean, low, high = (f"{value:+.{digits}f}" for value in (mean, mean - half, mean + half))
    return mean if np.isnan(half) else f"{mean} ({low} to {high})"


def texts_of(cell):
    """Return one row of the table; missing values are left empty."""
    texts = [
        f"{cell.n_slides:,}" + (", permuted" if cell.permuted else ""),
        LOOKS[cell.prior].get("label", cell.prior),
        "" if cell.prior in WITHOUT_LAMBDA else f"{cell.lambda_:g}",
        f"{cell.n_seeds}",
        f"{cell.recall:.2f} ({cell.recall_low:.2f} to {cell.recall_high:.2f})",
        with_interval(cell, "recall_over_none"),
        with_interval(cell, "recall_over_zero"),
        with_interval(cell, "recall_over_shuffled"),
        f"{cell.n_false:.0f}",
        # With permuted patients all genes are false.
        "" if cell.permuted else f"{cell.fdr:.2f}",
        f"{cell.median_r:.3f}",
        with_interval(cell, "median_r_over_zero", digits=3),
        f"{cell.recall_mean:.2f}",
    ]
    return ["" if text.startswith("nan") else text for text in texts]


def write_table(table, path):
    """Write the means over seeds as a reST table."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [HEAD, *(texts_of(cell) for cell in table.itertuples())]:
        for column, text in enumerate(row):
            lines.append(f"   {'*' if column == 0 else ' '} - {text}".rstrip())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
