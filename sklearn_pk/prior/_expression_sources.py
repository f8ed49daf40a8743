"""Expression of patients without slides, beside that of the training patients."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.utils import gen_batches

from ..utils import check_expression
from ..utils._linalg import centre_rows
from ..utils._patients import patient_key
from ..utils._reporting import warn_user
from ..utils._validation import did_you_mean, name_some

# Rows per block, which bounds the memory of float64 copies.
_ROWS = 1024
# Below this fraction of the genes, a source is warned about: it is hardly more than zeros.
_FEW_KNOWN = 0.1
# Two samples with fewer distinct values may have the same order of genes by chance.
_FEWEST_VALUES = 10


def normalize_genes(X, normalize):
    """Centre each gene over the patients and scale it."""
    n_patients = X.shape[1]
    Z = np.empty_like(X)
    for block in gen_batches(len(X), _ROWS):
        rows = X[block].astype(np.float64)
        varies = centre_rows(rows)[1] > 0
        if normalize == "rank":
            rows = ndtri((rankdata(rows, axis=1) - 0.5) / n_patients)
        centred, norms, _ = centre_rows(rows)
        centred[~varies] = 0.0
        if normalize is not None:
            centred /= (np.where(varies, norms, 1) / np.sqrt(n_patients))[:, np.newaxis]
        Z[block] = centred
    return Z


def normalize_sources(X, gene_names, patients, source, normalize):
    """
    Return genes of all patients, normalised within each table, and the sum of their weights.

    `source` has the parameters expression, use and weight. Patients of X come first.
    """
    if source.expression is None:
        return normalize_genes(X, normalize), X.shape[1]
    other, known = align_expression(source.expression, X, gene_names, patients)
    other[known] = normalize_genes(other[known], normalize)
    parts = [(other, source.weight)]
    if source.use == "add":
        parts.insert(0, (normalize_genes(X, normalize), 1.0))
    total = sum(weight * part.shape[1] for part, weight in parts)
    Z = np.concatenate([part * np.sqrt(weight).astype(part.dtype) for part, weight in parts], 1)
    if normalize is not None:
        # A gene that one table lacks, or in which it is constant, varies as much as others.
        counted = sum(weight * part.shape[1] * part.any(axis=1) for part, weight in parts)
        factors = np.sqrt(total / np.where(counted > 0, counted, total))
        Z *= factors[:, np.newaxis].astype(Z.dtype)
    return Z, total


def align_expression(expression, X, gene_names, patients):
    """
    Return expression as genes x patients in the order of gene_names, and which genes it has.

    Genes that it lacks are rows of zeros. A patient who is in X as well is refused.
    """
    if not isinstance(expression, pd.DataFrame):
        raise TypeError(
            "expression must be a DataFrame with one row per patient and one column per gene, got "
            f"{type(expression).__name__}."
        )
    if gene_names is None:
        raise ValueError(
            "expression is matched by gene name, but X has no gene names. Pass a DataFrame with "
            "gene names as its index, or as the columns of y in a regressor."
        )
    values, names, _ = check_expression(expression, input_name="expression")
    names = expression.columns if names is None else pd.Index(names)
    columns = names.get_indexer(gene_names)
    known = columns >= 0
    if not known.any():
        transposed = expression.index.isin(gene_names).any()
        raise ValueError(
            f"expression: none of its {len(names)} columns (such as {names[0]!r}) is among the "
            f"{len(gene_names)} genes of X (such as {gene_names[0]!r}). "
            + (
                "Its index has genes: pass expression.T."
                if transposed
                else "Both need the same kind of gene identifiers."
            )
            + did_you_mean(gene_names, names)
        )
    if len(values) < 3:
        raise ValueError(f"expression needs at least 3 patients, got {len(values)}.")
    if known.sum() < _FEW_KNOWN * len(known):
        warn_user(
            f"expression: only {known.sum()} of the {len(known)} genes of X are among its columns."
        )
    aligned = np.zeros((len(known), len(values)), dtype=X.dtype)
    aligned[known] = values[:, columns[known]].T
    _refuse_shared_patients(aligned, known, expression.index, X, patients)
    return aligned, known


def _refuse_shared_patients(aligned, known, labels, X, patients):
    """Raise an error if a patient of X is among those of expression, by name or by values."""
    rows = np.zeros(len(labels), dtype=bool)
    if patients is not None and not isinstance(labels, pd.RangeIndex):
        keys = {patient_key(name) for name in patients}
        rows |= [patient_key(name) in keys for name in labels]
    own = set(_orders_of_genes(X[known])) - {None}
    rows |= [order in own for order in _orders_of_genes(aligned[known])]
    if rows.any():
        raise ValueError(
            f"expression contains {rows.sum()} of the patients in X, by name or by equal values: "
            f"{name_some(labels[rows])}. Patients with slides are trained on in one fold and "
            "tested in another, so their expression must not be known beforehand. Drop them: "
            "expression.drop(index=[...])."
        )


def _orders_of_genes(values):
    """Return the ranks of the genes of each patient as bytes, or None if most are tied."""
    for column in values.T:
        ranks = rankdata(column.astype(np.float32), method="dense").astype(np.int32)
        yield ranks.tobytes() if ranks.max() >= _FEWEST_VALUES else None
