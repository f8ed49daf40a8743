"""Colours, axes and checks of the displays."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..utils._validation import did_you_mean, name_some

# Okabe and Ito (2008), safe for colour-blind readers; without yellow, invisible in thin lines.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
# More marks than this are rasterised, which keeps vector files small.
RASTERIZED = 2000


def set_axes(display, ax, figsize):
    """Set `ax_` and `figure_` of a display to given axes, or to those of a new figure."""
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    display.ax_, display.figure_ = ax, ax.figure
    return ax


def check_table(table, name, columns, origin):
    """Check that a table is a DataFrame with the columns of its origin."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"{name} must be a DataFrame from {origin}, got an instance of {type(table).__name__}."
        )
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{name} lacks the columns {missing}. Pass a DataFrame from {origin}.")


def find_gene(gene, names, n_genes):
    """Return the column of a gene and its name."""
    if gene is None:
        if n_genes > 1:
            raise ValueError(f"The tables have {n_genes} genes. Select one with gene=.")
        return 0, None if names is None else names[0]
    if names is not None:
        position = np.flatnonzero(names == gene)
        if position.size == 0:
            raise ValueError(
                f"gene must be one of the {n_genes} columns, got {gene!r}; the first columns are "
                f"{names[:3].tolist()}.{did_you_mean([gene], names)}"
            )
        return position[0], gene
    if isinstance(gene, Integral) and -n_genes <= gene < n_genes:
        return gene, gene
    if isinstance(gene, str) and n_genes == 1:
        return 0, gene
    raise ValueError(
        f"The tables have no gene names, so gene must be the number of one of their {n_genes} "
        f"columns, got {gene!r}."
    )


def format_units(units):
    """Return units in parentheses, for a label."""
    return "" if units is None else f" ({units})"


def held_out(report, genes):
    """Return r, whether it is significant, and why not, of some genes of a report."""
    table = getattr(report, "report", report)  # of a result
    check_table(table, "report", ("r", "significant"), "significance_report")
    table = table.set_index("gene") if "gene" in table else table
    missing = [gene for gene in genes if gene not in table.index]
    if missing:
        raise ValueError(
            f"report lacks {len(missing)} of {len(genes)} genes of the map: {name_some(missing)}. "
            "Pass the report of the model."
        )
    table = table.loc[list(genes)]
    reasons = table["reason"].fillna("").astype(str) if "reason" in table else [""] * len(table)
    return [
        (float(r), bool(significant), reason)
        for r, significant, reason in zip(table["r"], table["significant"], reasons, strict=True)
    ]


def format_verdict(r, significant):
    """Write the held-out correlation of a gene and whether it is significant."""
    return f"r = {r:.2f}, {'' if significant else 'not '}significant"
