"""What a fit works on before any training: the prior, the scales, the network before training."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import os
import warnings
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_memory

from ..utils import check_expression, check_groups, validate_bags
from ..utils._patients import infer_groups
from ..utils._validation import check_sample_names, name_some
from ._data import split_groups, tile_statistics
from ._embeddings import (
    align_embeddings,
    check_embeddings,
    expression_by_patient,
    learn_embeddings,
    orthonormal_basis,
    seed_prior,
)
from ._module import ExpressionModule
from ._random import seeded

HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "valid_r", "dur")
_PACKAGES = ("sklearn_pk", "torch", "skorch", "scikit-learn", "numpy")


class TrainingData(NamedTuple):
    """Checked input of a fit."""

    bags: list
    values: np.ndarray
    gene_names: np.ndarray | None
    groups: np.ndarray
    rows: np.ndarray

    def take(self, rows):
        """Return some of the samples."""
        return self._replace(
            bags=[self.bags[row] for row in rows],
            values=self.values[rows],
            groups=self.groups[rows],
            rows=self.rows[rows],
        )


def check_training_data(model, X, y, groups):
    """Check the input of a fit, and note names and widths on the model."""
    values, gene_names, model._y_is_1d = check_expression(y, estimator_name="fit")
    bags = validate_bags(model, X, reset=True, lazy=True)
    check_sample_names(X, y)
    if groups is None:
        groups = infer_groups(values)
        _warn_of_repeats(len(groups) - groups.max() - 1)
    else:
        groups = check_groups(groups, y)
    if gene_names is not None:
        model.gene_names_out_ = gene_names
    return TrainingData(bags, values, gene_names, groups, np.arange(len(bags)))


def forget(model):
    """Drop what an earlier fit has left, so that a fit that fails leaves nothing half done."""
    for name in set(vars(model)) - set(model.get_params(deep=False)):
        if (name.endswith("_") and not name.startswith("_")) or name == "_module_params":
            delattr(model, name)


def _warn_of_repeats(n_repeats):
    if n_repeats:
        warnings.warn(
            f"{n_repeats} samples repeat the expression of an earlier one and are taken as "
            "slides of the same patient, inside this fit: for early stopping and the prior. "
            "Folds around it need groups of their own. Pass them: fit(X, y, groups=patients); "
            "inside a pipeline or a search the same, after "
            "sklearn.set_config(enable_metadata_routing=True).",
            UserWarning,
            stacklevel=5,
        )


def warn_of_constant_genes(data):
    """Say once which genes do not vary."""
    constant = np.flatnonzero(np.ptp(data.values, axis=0) == 0)
    n_samples, n_genes = data.values.shape
    if len(constant) and n_samples > 1:
        names = constant if data.gene_names is None else data.gene_names[constant]
        warnings.warn(
            f"{len(constant)} of {n_genes} genes have the same value in all {n_samples} training "
            f"samples, and are predicted by it: {name_some(names)}.",
            UserWarning,
            stacklevel=4,
        )


def prepare(model, data):
    """Fit the prior, describe the network and hold patients out."""
    random_state = check_random_state(model.random_state)
    model.seed_ = int(random_state.randint(np.iinfo(np.int32).max))
    model.prior_, model.embeddings_ = _fit_prior(model, data)
    train, model.validation_indices_ = split_groups(
        data.groups, model.validation_fraction, random_state
    )
    model._module_params = _describe_module(model, data)
    return train, model.validation_indices_


def _fit_prior(model, data):
    if model.prior is None:
        return None, None
    n_genes, fitted = data.values.shape[1], None
    if hasattr(model.prior, "fit_transform"):
        memory = model.memory
        memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
        learn = memory.cache(learn_embeddings)
        expression = expression_by_patient(data.values, data.groups, data.gene_names)
        fitted, embeddings = learn(seed_prior(model.prior, model.seed_), expression)
    else:
        embeddings = align_embeddings(model.prior, n_genes, data.gene_names)
    scale = model.init_scale if model.scale_embeddings else None
    embeddings = check_embeddings(embeddings, n_genes, scale=scale)
    if model.layer == "projected":
        embeddings = orthonormal_basis(embeddings)
    return fitted, embeddings


def _describe_module(model, data):
    n_features, n_genes = model.n_features_in_, data.values.shape[1]
    feature_mean, feature_scale = np.zeros(n_features), np.ones(n_features)
    target_mean, target_scale = np.zeros(n_genes), np.ones(n_genes)
    as_published = model.compat == "sequoia"
    if model.standardize and not as_published:
        feature_mean, feature_scale = tile_statistics(data.bags, data.rows)
    if not as_published:
        target_mean = data.values.mean(axis=0, dtype=np.float64)
        spread = np.sqrt(data.values.var(axis=0, dtype=np.float64).mean())
        target_scale = np.where(np.ptp(data.values, axis=0) > 0, spread, 0.0)
    return {
        "feature_mean": feature_mean.astype(np.float32),
        "feature_scale": feature_scale.astype(np.float32),
        "target_mean": target_mean.astype(np.float32),
        "target_scale": target_scale.astype(np.float32),
        "n_tiles": max(bag.shape[0] for bag in data.bags),
    } | describe_design(model)


def describe_design(model):
    """Note the parameters that shape the network, which may be set anew after a fit."""
    names = ("lambda_", "layer", "depth", "n_heads", "head_dim", "embed_dim", "init_scale")
    design = {name: getattr(model, name) for name in names}
    return design | {
        "aggregator": copy.deepcopy(model.aggregator),
        "use_positions": model.compat == "sequoia",
    }


def build_module(model):
    """Build the network of a model as it is before training."""
    parameters = {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in model._module_params.items()
    }
    # A copy: the user's module is trained, too.
    parameters["aggregator"] = copy.deepcopy(parameters["aggregator"])
    embeddings = None if model.embeddings_ is None else torch.from_numpy(model.embeddings_)
    with seeded(model.seed_):
        # In float32 whatever the default type of torch is.
        return ExpressionModule(embeddings=embeddings, **parameters).float()


def note_training(model, epochs, rule):
    """Keep what is worth knowing about a training."""
    columns = [name for name in HISTORY_COLUMNS if name in epochs[0]]
    if not rule.best_epoch:
        monitored = "valid_loss" if "valid_loss" in columns else "train_loss"
        raise ValueError(
            f"Training did not reach a finite {monitored} in any epoch. Look for huge values in "
            f"X or y, or use a smaller learning rate than lr={model.lr!r}."
        )
    model.history_ = pd.DataFrame({name: [row[name] for row in epochs] for name in columns})
    model.best_epoch_ = int(rule.best_epoch)
    model.versions_ = {name: version(name) for name in _PACKAGES}
