"""Tables of genes that leave a result: the gene list, and gene sets."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from ..metrics._calibration import fisher_z
from ..metrics._significance import folds_of_rows, gene_rows, z_of_rows
from ..utils._linalg import blas_threads
from ..utils._patients import PatientAverager
from ..utils._validation import name_some

# Of a normal distribution, for 95 % intervals.
_WIDTH = 1.959964
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _within_folds(result):
    """Return the averager over patients, and the correlations within folds, of a result."""
    averager = None
    if result.groups is not None and result.criteria.get("compat") is None:
        averager = PatientAverager(result.groups.to_numpy())
    groups = None if averager is None else result.groups.to_numpy()
    return averager, folds_of_rows(result.fold_of_sample, groups, averager, len(result.y_true))


def correlations_of_folds(result):
    """Return the correlation of each gene in each fold, (n_genes, n_folds)."""
    averager, within = _within_folds(result)
    tables = [result.y_true.to_numpy(), result.predictions.to_numpy()]
    batches = [slice(start, start + 1024) for start in range(0, tables[0].shape[1], 1024)]

    def correlate(genes):
        return within.correlate(*(gene_rows(table, genes, averager) for table in tables))

    with blas_threads() as run:
        return np.concatenate(list(run(correlate, batches)))


def gene_table(result, annotations=None):
    """Return one row per gene, by falling correlation."""
    _, within = _within_folds(result)
    report = result.report
    z = fisher_z(report["r_fold"].to_numpy())
    std = within.std if result.null is None else result.null.std
    by_fold = correlations_of_folds(result)
    p, fdr = _tests_of(report)
    table = {
        "gene": report.index.to_numpy(),
        **_annotate(report.index, annotations),
        "r": np.tanh(z),
        "r_low": np.tanh(z - _WIDTH * std),
        "r_high": np.tanh(z + _WIDTH * std),
        "r_pooled": report["r"].to_numpy(),
        "p": p,
        "fdr": fdr,
        "fold_spread": by_fold.std(axis=1, ddof=1) if by_fold.shape[1] > 1 else np.nan,
        "significant": report["significant"].to_numpy(),
        "reason": report["reason"].to_numpy(),
    }
    table = pd.DataFrame(table)
    return table.sort_values("r", ascending=False, kind="stable", ignore_index=True)


def _tests_of(report):
    """Return the p-values that decide on significance, and the same corrected."""
    names = "p", "p_fdr"
    if "null_p" in report:
        names = "null_p", "null_fdr"
    elif report["steiger_p"].notna().any():
        names = "steiger_p", "steiger_fdr"
    return (report[name].to_numpy() for name in names)


def _annotate(genes, annotations):
    if annotations is None:
        return {}
    if isinstance(annotations, Mapping):
        annotations = pd.Series(annotations, dtype=object)
    if isinstance(annotations, pd.Series):
        annotations = annotations.to_frame(annotations.name or "annotation")
    if not isinstance(annotations, pd.DataFrame):
        raise TypeError(
            "annotations must be a DataFrame or Series indexed by gene, or a dict, got an instance "
            f"of {type(annotations).__name__}."
        )
    repeated = annotations.index[annotations.index.duplicated()].unique()
    if len(repeated):
        raise ValueError(f"annotations must have each gene once, got {name_some(repeated)} again.")
    if not genes.isin(annotations.index).any():
        raise ValueError(
            f"annotations has none of the {len(genes)} genes: its index has "
            f"{name_some(annotations.index[:1])}, the genes are named as {genes[0]!r}. Pass "
            "annotations indexed by the same names."
        )
    chosen = annotations.reindex(genes)
    taken = [name for name in chosen if name in _OWN_COLUMNS]
    if taken:
        raise ValueError(f"annotations has columns of the result: {name_some(taken)}. Rename them.")
    return {str(name): chosen[name].to_numpy() for name in chosen}


_OWN_COLUMNS = (
    *("gene", "r", "r_low", "r_high", "r_pooled", "p", "fdr", "fold_spread"),
    *("significant", "reason"),
)


def escape_formulas(table):
    """Return a table whose text no spreadsheet takes for a formula."""
    table = table.rename(columns=_escape)
    for name in table.columns[[not pd.api.types.is_numeric_dtype(each) for each in table.dtypes]]:
        table[name] = table[name].map(_escape)
    return table


def _escape(value):
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value


def make_anndata(result):
    """Return a result as AnnData."""
    try:
        from anndata import AnnData
    except ImportError as error:
        raise ImportError(
            "to_anndata needs the package anndata: pip install 'sklearn_pk[anndata]'."
        ) from error
    names = result.sample_names or result.y_true.index
    obs = pd.DataFrame({"fold": result.fold_of_sample}, index=pd.Index(map(str, names)))
    if result.groups is not None:
        obs["patient"] = result.groups.astype(str).to_numpy()
    layers = {"truth": result.y_true.to_numpy(), "prediction": result.predictions.to_numpy()}
    if result.untrained_predictions is not None:
        layers["baseline"] = result.untrained_predictions.to_numpy()
    var = result.report.set_axis(result.report.index.map(str)).rename_axis(None)
    adata = AnnData(result.predictions.to_numpy(), obs=obs, var=var, layers=layers)
    adata.uns["criteria"] = {k: v for k, v in result.criteria.items() if v is not None}
    adata.uns["verdict"] = result.verdict
    return adata


def enrich(result, gene_sets, min_size):
    """Return enrichment and held-out correlation of gene sets."""
    report = result.report
    position = {str(gene): number for number, gene in enumerate(report.index)}
    averager, within = _within_folds(result)
    significant, r_fold = report["significant"].to_numpy(), report["r_fold"].to_numpy()
    members = {name: {str(gene) for gene in genes} for name, genes in gene_sets.items()}
    found = {
        name: np.array(sorted(position[gene] for gene in genes if gene in position), dtype=int)
        for name, genes in members.items()
    }
    if not any(len(rows) for rows in found.values()):
        first = next((gene for genes in members.values() for gene in genes), None)
        raise ValueError(
            f"None of the {len(found)} gene sets has any of the {len(report)} genes: they have "
            f"genes such as {first!r}, the result has genes such as {report.index[0]!r}."
        )
    kept = {name: rows for name, rows in found.items() if len(rows) >= min_size}
    if not kept:
        raise ValueError(
            f"No gene set has {min_size} of the {len(report)} genes; the largest has "
            f"{max(map(len, found.values()))}. Pass a smaller min_size."
        )
    scores = [_mean_scores(table, kept) for table in (result.y_true, result.predictions)]
    z = z_of_rows(*scores, averager, within)
    sizes = np.array([len(rows) for rows in kept.values()])
    hits = np.array([significant[rows].sum() for rows in kept.values()])
    total, n = significant.sum(), len(report)
    p = hypergeom.sf(hits - 1, n, total, sizes)
    expected = sizes * total / n
    # One standard deviation for all sets: their null is not known.
    std = within.std if result.null is None else float(np.nanmedian(result.null.std))
    table = pd.DataFrame(
        {
            "gene_set": list(kept),
            "n_in_set": [len(members[name]) for name in kept],
            "n_genes": sizes,
            "n_significant": hits,
            "fold_enrichment": np.divide(
                hits, expected, out=np.full(len(hits), np.nan), where=expected > 0
            ),
            "p": p,
            "fdr": false_discovery_control(p),
            "r_score": np.tanh(z),
            "r_low": np.tanh(z - _WIDTH * std),
            "r_high": np.tanh(z + _WIDTH * std),
            "median_r": [np.median(r_fold[rows]) for rows in kept.values()],
        }
    )
    return table.sort_values(["p", "r_score"], ascending=[True, False], ignore_index=True)


def _mean_scores(table, sets):
    """Return the mean of the standardised genes of each set, (n_samples, n_sets)."""
    values = table.to_numpy(dtype=np.float64)
    std = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(std > 0, std, 1.0)
    return np.column_stack([values[:, rows].mean(axis=1) for rows in sets.values()])
