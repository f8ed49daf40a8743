"""Gene embeddings of a prior: fitted, or given and aligned with the genes of y."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from pathlib import PurePath

import numpy as np
import pandas as pd
from scipy import linalg, sparse
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_memory

from ..utils._linalg import unit_scale
from ..utils._patients import PatientAverager, patient_key
from ..utils._reporting import warn_user, without_warnings_of_data
from ..utils._validation import did_you_mean, name_some, sample_names_of

# Below this fraction of the genes, a prior is warned about: it is hardly more than zeros.
_FEW_KNOWN = 0.1


def fit_prior(estimator, data, seed):
    """Return the fitted prior, if it is an estimator, and the gene embeddings of the network."""
    fitted, embeddings = learn_prior(
        estimator.prior, data.values, data.groups, data.gene_names, seed, estimator.memory
    )
    if embeddings is None:
        return None, None
    if estimator.layer == "scores":
        # Priors know how standardised genes vary together.
        embeddings = embeddings * data.values.std(axis=0, dtype=np.float64)[:, np.newaxis]
    embeddings = embeddings.astype(np.float32)
    if estimator.layer != "published":
        return fitted, orthonormal_basis(embeddings)
    if estimator.scale_embeddings:
        embeddings *= estimator.init_scale * unit_scale(embeddings)
    return fitted, embeddings


def learn_prior(prior, values, groups, gene_names, seed, memory=None):
    """Return the fitted prior, if it is an estimator, and gene embeddings of any form of prior."""
    if prior is None:
        return None, None
    fitted, n_genes = None, values.shape[1]
    if hasattr(prior, "fit_transform"):
        memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
        expression = expression_by_patient(values, groups, gene_names)
        fitted, embeddings = memory.cache(learn_embeddings)(seed_prior(prior, seed), expression)
    else:
        embeddings = align_embeddings(prior, n_genes, gene_names)
    return fitted, check_embeddings(embeddings, n_genes)


def expression_by_patient(values, groups, gene_names=None):
    """Average expression over the slides of each patient; return it with genes as rows."""
    averager = PatientAverager(groups)
    collapsed = averager @ values
    if gene_names is None:
        return collapsed.T
    return pd.DataFrame(
        collapsed.T, index=gene_names, columns=[str(name) for name in averager.patients]
    )


def seed_prior(prior, seed):
    """Clone a prior and give a seed to each step that has none."""
    prior = clone(prior)
    random_state = check_random_state(seed)
    unset = sorted(
        name
        for name, value in prior.get_params(deep=True).items()
        if name.rpartition("__")[2] == "random_state" and value is None
    )
    return prior.set_params(**{name: random_state.randint(2**31 - 1) for name in unset})


def learn_embeddings(prior, expression):
    """Fit a clone of a prior on expression and return its gene embeddings."""
    fitted = clone(prior)
    with without_warnings_of_data():  # the same as of y
        embeddings = fitted.fit_transform(expression)
    if sparse.issparse(embeddings):
        raise TypeError(
            f"prior: {prior!r} returned a sparse matrix of shape {embeddings.shape}, that is a "
            "graph and not gene embeddings. Add an embedder, such as "
            "make_pipeline(CoexpressionGraph(), NMFGeneEmbedder())."
        )
    return fitted, np.asarray(embeddings)


def align_embeddings(prior, n_genes, gene_names):
    """Bring given embeddings into the order of the genes."""
    if not isinstance(prior, pd.DataFrame):
        embeddings = np.asarray(prior)
        if embeddings.ndim != 2 or len(embeddings) != n_genes:
            raise ValueError(
                f"prior: an array of embeddings needs one row for each of the {n_genes} genes of "
                f"y, got shape {embeddings.shape}. A DataFrame is matched by gene name instead."
            )
        return embeddings
    if gene_names is None:
        raise ValueError(
            "prior: a DataFrame of embeddings is matched by gene name, but y has none. Pass y as "
            "a DataFrame whose columns are genes."
        )
    repeated = prior.index[prior.index.duplicated()].unique()
    if len(repeated):
        raise ValueError(f"prior: duplicate gene names in its index: {list(repeated[:5])!r}.")
    n_known = int(prior.index.isin(gene_names).sum())
    if not n_known:
        raise ValueError(
            f"prior: none of its genes (such as {prior.index[0]!r}) is among those of y (such "
            f"as {gene_names[0]!r}).{did_you_mean(prior.index, gene_names)}"
        )
    if n_known < _FEW_KNOWN * n_genes:
        warn_user(
            f"prior: only {n_known} of the {n_genes} genes of y (such as {gene_names[0]!r}) have "
            f"an embedding (such as {prior.index[0]!r}); all others get zeros."
        )
    return prior.reindex(gene_names, fill_value=0.0).to_numpy(dtype=np.float64)


def check_embeddings(embeddings, n_genes):
    """Check the shape and the values of gene embeddings."""
    if embeddings.ndim != 2 or len(embeddings) != n_genes:
        raise ValueError(
            f"prior: expected embeddings of shape ({n_genes}, d), one row per gene, got "
            f"{embeddings.shape}. A prior must keep the rows of the (genes, patients) matrix."
        )
    if not np.isfinite(embeddings).all():
        raise ValueError("prior: the gene embeddings contain NaN or infinity.")
    return embeddings


def refuse_known_patients(prior, X):
    """Raise an error if the expression given to a prior has patients who are predicted."""
    tables = {
        name: value
        for name, value in (prior.get_params() if hasattr(prior, "get_params") else {}).items()
        if name.rpartition("__")[2] == "expression"
        and isinstance(value, pd.DataFrame)
        and not isinstance(value.index, pd.RangeIndex)
    }
    names = sample_names_of(X) if tables else None
    if names is None:
        return
    keys = [patient_key(PurePath(name).name) for name in names]
    for parameter, table in tables.items():
        known = pd.Index(keys).isin([patient_key(name) for name in table.index])
        if known.any():
            raise ValueError(
                f"prior: {parameter} contains the expression of {known.sum()} of the {len(keys)} "
                f"patients to predict: {name_some(np.array(keys)[known])}. A prediction of these "
                f"would not be a test. Fit again without them: {parameter}.drop(index=[...])."
            )


def orthonormal_basis(embeddings):
    """Compute orthonormal columns that span those of the embeddings."""
    known = embeddings.any(axis=1)
    basis = np.zeros((len(embeddings), 1), dtype=np.float32)
    if known.any():
        # Directions that come from rounding in float32 do not count.
        spanned = linalg.orth(embeddings[known].astype(np.float64), rcond=1e-6)
        basis = np.zeros((len(embeddings), spanned.shape[1]), dtype=np.float32)
        basis[known] = spanned
    return basis
