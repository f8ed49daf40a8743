"""PriorKnowledgeRegressor: gene expression from bags of tile features."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from functools import partial
from importlib.metadata import version
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, RegressorMixin, _clone_parametrized, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..utils import check_expression, check_groups, validate_bags
from ..utils._annotation import warn_of_doubts
from ..utils._bags import is_bag_input, label_of_bag
from ..utils._device import pick_device, use_device
from ..utils._frames import freeze_frames, thaw_frames
from ..utils._out_of_memory import Halving, describe_memory, explain_out_of_memory
from ..utils._patients import infer_groups, warn_of_equal
from ..utils._reporting import warn_user
from ..utils._validation import (
    check_sample_names,
    name_of_item,
    name_some,
    sample_names_of,
)
from ._aggregators import is_own_aggregator
from ._embeddings import fit_prior, refuse_known_patients
from ._expression_mixin import ExpressionMixin, positions_of_genes
from ._network import build_network, describe_network, initial_weights
from ._spatial import BATCH, check_window, tile_expression
from ._training import (
    BagDataset,
    Run,
    few_threads,
    load_weights,
    make_net,
    pad_bags,
    present_tiles,
    to_device,
    train_networks,
)

# Of targets, as a fraction of the range of a gene.
_PRECISION = 1e-5
_PACKAGES = ("sklearn_pk", "torch", "skorch", "scikit-learn", "numpy")


class TrainingData(NamedTuple):
    """Checked input of a fit."""

    bags: list
    values: np.ndarray
    targets: np.ndarray  # values - offset in float32
    offset: np.ndarray  # by gene, 0 where float32 is precise enough
    groups: np.ndarray
    rows: np.ndarray  # positions in X, for errors
    gene_names: np.ndarray | None
    feature_names: np.ndarray | None
    y_is_1d: bool

    def take(self, rows):
        """Return some of the samples."""
        return self._replace(
            bags=[self.bags[row] for row in rows],
            values=self.values[rows],
            targets=self.targets[rows],
            groups=self.groups[rows],
            rows=self.rows[rows],
        )


class Start(NamedTuple):
    """What training starts from: the prior, parameters of the network and held-out patients."""

    seed: int
    prior: object
    embeddings: np.ndarray | None
    module_params: dict
    variance: float  # of a gene, in the mean
    train: np.ndarray  # rows
    valid: np.ndarray


def check_training_data(estimator, X, y, groups):
    """Check the input of a fit."""
    values, gene_names, y_is_1d = check_expression(y, estimator_name="fit")
    bags = validate_bags(estimator, X, reset=True, lazy=True)
    check_sample_names(X, y)
    if groups is None:
        groups = infer_groups(values)
        _warn_of_repeats(len(groups) - groups.max() - 1)
    else:
        groups = check_groups(groups, y, X)
        warn_of_equal(values, groups)
    _warn_of_constant_genes(values, gene_names)
    warn_of_doubts(values, gene_names, y.index if hasattr(y, "iloc") else None)
    offset = _find_offset(values)
    return TrainingData(
        bags=bags,
        values=values,
        targets=(values - offset if offset.any() else values).astype(np.float32, copy=False),
        offset=offset,
        groups=groups,
        rows=np.arange(len(bags)),
        gene_names=gene_names,
        feature_names=getattr(estimator, "feature_names_in_", None),
        y_is_1d=y_is_1d,
    )


def _find_offset(values):
    """Return the mean of genes that vary too little around it for float32, 0 for others."""
    mean, spread = values.mean(axis=0, dtype=np.float64), np.ptp(values, axis=0)
    is_coarse = np.spacing(np.abs(mean), dtype=np.float32) > _PRECISION * spread
    return np.where(is_coarse & (spread > 0), mean, 0.0)


def _warn_of_repeats(n_repeats):
    if n_repeats:
        warn_user(
            f"{n_repeats} samples repeat the expression of an earlier one and are taken as "
            "slides of the same patient, inside this fit: for early stopping and the prior. "
            "Folds around it need groups of their own. Pass them: fit(X, y, groups=patients); "
            "inside a pipeline or a search the same, after "
            "sklearn.set_config(enable_metadata_routing=True)."
        )


def _warn_of_constant_genes(values, gene_names):
    constant = np.flatnonzero(np.ptp(values, axis=0) == 0)
    n_samples, n_genes = values.shape
    if len(constant) and n_samples > 1:
        names = constant if gene_names is None else gene_names[constant]
        warn_user(
            f"{len(constant)} of {n_genes} genes have the same value in all {n_samples} training "
            f"samples, and are predicted by it: {name_some(names)}."
        )


def prepare(estimator, data):
    """Fit the prior, describe the network and hold patients out."""
    random_state = check_random_state(estimator.random_state)
    seed = int(random_state.randint(np.iinfo(np.int32).max))
    prior, embeddings = fit_prior(estimator, data, seed)
    params = _scales(estimator, data) | describe_network(estimator)
    if estimator.init is not None:
        params |= _start_from(estimator, params, embeddings)
    variance = float(data.values.var(axis=0, dtype=np.float64).mean())
    parts = split_groups(data.groups, estimator.validation_fraction, random_state)
    return Start(seed, prior, embeddings, params, variance, *parts)


def _start_from(estimator, params, embeddings):
    """Return what a network takes from another: its scales of features, and its weights."""
    source = getattr(estimator.init, "best_estimator_", estimator.init)
    if not hasattr(source, "net_"):
        raise ValueError(f"init must be a fitted PriorKnowledgeRegressor, got {source!r}.")
    theirs = source._module_params
    if estimator.compat != source.compat:
        raise ValueError(
            f"init was trained with compat={source.compat!r}, which is not "
            f"compat={estimator.compat!r} of this regressor."
        )
    widths = len(theirs["feature_mean"]), len(params["feature_mean"])
    if widths[0] != widths[1]:
        raise ValueError(f"init was trained on {widths[0]} features, but X has {widths[1]}.")
    taken = {name: theirs[name] for name in ("feature_mean", "feature_scale")}
    if estimator.compat is not None:
        if params["n_tiles"] > theirs["n_tiles"]:
            raise ValueError(
                f"init has {theirs['n_tiles']} positions, but a bag of X has {params['n_tiles']} "
                f"tiles. Make super-tiles: SuperTileClusterer(n_clusters={theirs['n_tiles']})."
            )
        taken["n_tiles"] = theirs["n_tiles"]
    initial = initial_weights(source.net_.module_)
    own = initial_weights(build_network(params | taken, embeddings, seed=0))
    for name in initial | own:
        shapes = [each[name].shape if name in each else None for each in (initial, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"init does not fit: in its network, {name} has shape {shapes[0]}, in this one "
                f"{shapes[1]}. Use the same features, aggregator, depth, n_heads, head_dim and "
                "embed_dim, and gene embeddings that are not wider."
            )
    return taken | {"initial": initial}


def network_seeds(seed, n_networks):
    """Return the seed of each of several networks; the first is that of a single one."""
    others = np.random.RandomState(seed).randint(np.iinfo(np.int32).max, size=n_networks - 1)
    return [seed, *map(int, others)]


def split_groups(groups, fraction, random_state):
    """Hold out a fraction of the patients; return the rows of both parts."""
    patients, codes = np.unique(groups, return_inverse=True)
    n_valid = 0
    if fraction > 0 and len(patients) > 1:
        n_valid = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    held_out = random_state.permutation(len(patients))[:n_valid]
    is_valid = np.isin(codes, held_out)
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def _scales(estimator, data):
    """Compute the means and scales of features and genes, and the largest number of tiles."""
    n_features, n_genes = data.bags[0].shape[1], data.values.shape[1]
    feature_mean, feature_scale = np.zeros(n_features), np.ones(n_features)
    target_mean, target_scale = np.zeros(n_genes), np.ones(n_genes)
    as_published = estimator.compat == "sequoia"
    longest = max(bag.shape[0] for bag in data.bags)
    if estimator.standardize and not as_published:
        feature_mean, feature_scale = tile_statistics(data.bags, data.rows)
    if not as_published:
        target_mean = data.values.mean(axis=0, dtype=np.float64) - data.offset
        spread = np.sqrt(data.values.var(axis=0, dtype=np.float64).mean())
        target_scale = np.where(np.ptp(data.values, axis=0) > 0, spread, 0.0)
    return {
        "feature_mean": feature_mean.astype(np.float32),
        "feature_scale": feature_scale.astype(np.float32),
        "target_mean": target_mean.astype(np.float32),
        "target_scale": target_scale.astype(np.float32),
        "n_tiles": min(longest, estimator.n_tiles or longest),
    }


def tile_statistics(bags, rows):
    """Compute the mean and standard deviation of each feature over all tiles."""
    n_tiles, mean, squares = 0, 0.0, 0.0
    for position, bag in zip(rows, bags, strict=True):
        tiles = present_tiles(bag, position).astype(np.float64)
        # Chan's update: one pass is enough, whatever the offset of a feature is.
        bag_mean = tiles.mean(axis=0)
        tiles -= bag_mean
        shift, total = bag_mean - mean, n_tiles + len(tiles)
        squares = (
            squares
            + np.einsum("td,td->d", tiles, tiles)
            + shift**2 * (n_tiles * len(tiles) / total)
        )
        mean = mean + shift * (len(tiles) / total)
        n_tiles = total
    deviation = np.sqrt(squares / n_tiles)
    constant = deviation <= np.finfo(np.float32).eps * np.maximum(np.abs(mean), 1e-12)
    return mean, np.where(constant, 1.0, deviation)


def make_runs(estimator, data, start, fold=0, rows=None):
    """Describe the networks to train on some of the samples, None for all."""
    rows = data.rows if rows is None else rows
    train, valid = (
        BagDataset(data.bags, data.targets, rows[part]) for part in (start.train, start.valid)
    )
    return [
        Run(estimator, start._replace(seed=seed), fold, train, valid)
        for seed in network_seeds(start.seed, estimator.n_networks)
    ]


def clear_fit(estimator):
    """Remove what an earlier fit has set, so that a fit that fails leaves no mixture."""
    for name in set(vars(estimator)) - set(estimator.get_params(deep=False)):
        if name == "_module_params" or (name.endswith("_") and not name.startswith("_")):
            delattr(estimator, name)


class PriorKnowledgeRegressor(ExpressionMixin, RegressorMixin, BaseEstimator):
    """
    Predict the expression of all genes from the tiles of a slide, with prior knowledge.

    An aggregator turns the tile features of a slide into one slide embedding w,
    and one linear layer turns it into the expression of all genes::

        (1 - lambda_) * w @ A.T + lambda_ * w @ G.T + b

    A and b are learned, G holds fixed gene embeddings that carry what is known
    about the co-expression of genes. The prior which makes G is fitted inside
    :meth:`fit`, on the patients passed there and on no others.

    Parameters
    ----------
    prior : estimator, ndarray, DataFrame or None, default=None
        Source of the gene embeddings. An estimator is cloned and fitted on the
        expression of the training patients with *genes as rows*, one column per
        patient; its ``fit_transform`` returns G, for example
        ``make_pipeline(CoexpressionGraph(), NMFGeneEmbedder())`` or
        ``TruncatedSVD(30)``. An array is G itself, one row per gene of y; a
        DataFrame is matched by gene name, with zeros for genes that it lacks.
        With None the last layer is a plain linear layer.

    aggregator : {"mlp", "attention", "transformer", "summary_mixing", "topk"}, torch.nn.Module or \
            class of modules, default="mlp"
        How the tiles become one slide embedding. "mlp" is Linear - ReLU -
        Linear on each tile, then the mean; "attention" is Linear - ReLU on each tile, then their
        mean weighted by gated attention [4]_; "transformer" and "summary_mixing" combine
        information across tiles. "topk" is HE2RNA: two hidden layers, then the last layer on
        each tile, of which each gene averages its k highest scores, with a random k of 1, 2, 5,
        10, 20, 50 and 100 per batch and the mean over all k in predictions.
        A module maps (batch, tiles, d) to (batch, d); a class is called with d, an instance
        is copied and starts with the weights it has. If its ``forward`` has a parameter
        `mask`, that is (batch, tiles) and True where there is a tile, or None; otherwise bags
        with missing tiles are passed to it one by one.

    lambda_ : float, default=0.5
        Weight of the gene embeddings, in [0, 1]. 0 is the plain linear layer (behind the
        projection to their width, where they are wider than the slide embedding).

    layer : {"published", "projected", "scores"}, default="published"
        How the gene embeddings are used. "published" mixes them into the last layer, as above.
        "projected" trains the network as if there were none, and projects what it predicts onto
        the span of their columns, ``(1 - lambda_) * g + lambda_ * g @ Q @ Q.T`` for
        ``g = w @ A.T + b`` and an orthonormal basis Q of it: with
        :class:`~sklearn_pk.prior.EigengeneEmbedder`, onto how genes vary together in the training
        patients. Genes without an embedding are left as they are.
        "scores" predicts one score per column of Q, the basis of the span of the embeddings of
        genes in the unit of y, and maps the scores to genes by Q: with
        ``EigengeneEmbedder(50)``, the network predicts 50 eigengenes in place of all genes.
        `lambda_` has no effect then, and genes without an embedding are predicted by their mean.

    n_networks : int, default=1
        Number of networks, which differ in their random weights only. Predictions are means over
        them, which are better than those of one. They are trained together, on the same
        batches.

    init : PriorKnowledgeRegressor or None, default=None
        Fitted regressor whose network, except for its last layer, is what training starts from:
        fitted on another cohort or other genes, or loaded by :func:`load_sequoia`. Features are
        scaled as there. Features, aggregator and widths have to be the same.

    depth : int, default=6
        Number of blocks of "transformer" and "summary_mixing".

    n_heads : int, default=16
        Number of heads in each of those blocks.

    head_dim : int, default=64
        Width of a head, and of the gates of "attention".

    embed_dim : int or None, default=None
        Width of the slide embedding. None keeps that of the tile features; another
        value puts a learned linear projection in front of the aggregator. Where
        the gene embeddings are wider, a second learned projection brings the slide
        embedding to their width; where they are narrower, they are padded with zeros.
        With ``layer="projected"`` they may have any width.

    scale_embeddings : bool, default=True
        Whether to bring the gene embeddings as a whole to the root mean square
        of newly drawn learned weights, ``init_scale / sqrt(3 d)``. Otherwise their scale,
        which is arbitrary for most priors, decides what a given `lambda_` means.

    standardize : bool, default=True
        Whether to centre and scale every feature by its mean and standard deviation
        over the training tiles.

    init_scale : float, default=0.1
        Factor of the learned weights of the last layer before training. With less than 1,
        as published, training starts closer to the mean of each gene.

    max_epochs : int, default=200
        Largest number of epochs.

    batch_size : int, default=16
        Number of slides in a training step.

    n_tiles : int or None, default=None
        Number of tiles that training draws of each bag, anew in each epoch; None takes all.
        Slides held out for early stopping have as many, evenly spaced. Predictions take all tiles,
        in chunks of about as many, and average the chunks, weighted by their tiles. It bounds
        memory and time where bags have thousands of tiles. Not with ``compat="sequoia"``.

    lr : float, default=3e-4
        Learning rate of AdamW. 1e-3 is the published one.

    lr_schedule : {"constant", "cosine"}, default="constant"
        "cosine" lowers the learning rate to 0 over `max_epochs`, along half a cosine.

    weight_decay : float, default=0.0
        Weight decay of AdamW.

    validation_fraction : float, default=0.1
        Fraction of the training patients, not slides, that is held out for early
        stopping. With 0 the training loss is monitored.

    early_stopping : {"loss", "loss+corr"} or None, default="loss"
        "loss" stops when the loss of the held-out patients has not improved for
        `patience` epochs. "loss+corr", as published, then continues in search of an epoch with a
        higher mean correlation per gene, whose loss is within `loss_tolerance` of the lowest,
        until none of `patience` epochs has a higher one, or as many had a larger loss than that.
        With None all epochs are trained. Either way the weights of the best epoch are restored;
        with None, it is the one with the lowest loss.

    patience : int, default=20
        Number of epochs without improvement before training stops.

    loss_tolerance : float, default=0.5
        How far above the lowest loss "loss+corr" may choose an epoch for its correlation, as a
        fraction of the mean variance of the genes. The default is the published one for genes of
        variance 1, and keeps overfitted epochs in small cohorts.

    dtype : {"float32", "bfloat16", "auto"}, default="float32"
        Precision of the products in training. "bfloat16" is meant for GPUs; weights, losses
        and predictions stay float32. "auto" is "bfloat16" on CUDA devices that compute in it
        (compute capability 8.0 or higher), and "float32" elsewhere.

    compile : bool, default=False
        Whether to train with :func:`torch.compile`, whose start takes about a minute.

    device : str, default="auto"
        Torch device. "auto" is a CUDA device if there is one, else the CPU; each worker process
        takes one that no other worker uses, as long as there is any.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache for fitted priors, so that a search over `lambda_` does not
        factorise the same graph again.

    positive : bool, default=False
        Whether to set predictions below 0 to 0: log2(x + 1) is never negative.

    callbacks : list of skorch.callbacks.Callback or None, default=None
        Called while `net_` is trained.

    compat : {"sequoia"} or None, default=None
        "sequoia" trains the network as released with SEQUOIA: a learned vector, drawn from N(0, 1),
        is added to each tile by its position in the bag, so that the order of tiles matters and
        no bag may be longer than those trained on; features and expression
        are taken as they are, without `standardize` and without the shift and scale of Notes.

    random_state : int, RandomState instance or None, default=None
        Seed of the weights, the order of the slides, the held-out patients, and of each
        step of `prior` whose own ``random_state`` is None.

    verbose : int, default=0
        Whether to show a progress bar, or lines in a log, with the losses and the mean
        correlation. They are not shown in the workers of a parallel search.

    Attributes
    ----------
    net_ : skorch.NeuralNetRegressor
        The trained network, on the device that was used; the first of `nets_`.

    nets_ : list of skorch.NeuralNetRegressor
        All `n_networks` networks.

    prior_ : estimator or None
        The fitted clone of `prior`; None unless `prior` is an estimator.

    embeddings_ : ndarray of shape (n_genes, d), float32, or None
        The gene embeddings G, scaled; otherwise than with ``layer="published"``, the basis Q of
        their span.

    history_ : DataFrame
        One row per epoch: epoch, train_loss (mean while training), valid_loss and valid_r (if
        patients were held out; valid_r is the mean over genes of Pearson's r) and dur
        (seconds). With several networks, the first column is network.

    best_epoch_ : int or ndarray of shape (n_networks,)
        The epoch whose weights were kept, counted from 1; of each network, if there are several.

    seed_ : int
        Seed of weights, order and prior, drawn from `random_state`.

    versions_ : dict of str to str
        Versions of the packages used in training.

    validation_indices_ : ndarray of int
        Positions of the samples that were held out for early stopping.

    gene_names_out_ : ndarray of shape (n_genes,), object
        Names of the genes. Defined only when y is a DataFrame with gene names.

    n_features_in_ : int
        Width of the tile features.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Defined only when X is a DataFrame with strings as
        its columns.

    See Also
    --------
    PriorKnowledgeRegressorCV : Chooses `lambda_` by cross-validation.
    load_sequoia : Loads published weights.
    sklearn_pk.prior.CoexpressionGraph : Co-expression graph as a prior.
    sklearn_pk.prior.NMFGeneEmbedder : Gene embeddings from that graph.
    sklearn_pk.metrics.significance_scorer : Counts significantly predicted genes.

    Notes
    -----
    A and b of the layer are drawn from U(-1/sqrt(d), 1/sqrt(d)), and multiplied by
    `init_scale`. The output of the layer is shifted by the mean expression of each gene in the
    training samples and scaled by one number, the root of the mean variance of all genes: the
    weight of a gene in the loss does not change, but training does not spend its first epochs
    on the level of each gene. Gradients are those of the loss divided by that variance, so
    that the unit of y has no influence on training, and genes with a level that is large for
    float32 are shifted before. A gene that is constant in training is predicted by its value,
    and named in a warning.

    The defaults of `lr` and `init_scale` were chosen on 884 real patients. The published
    training is ``PriorKnowledgeRegressor(lr=1e-3, init_scale=1.0, early_stopping="loss+corr",
    compat="sequoia")``.

    Slides are predicted one by one, so that a prediction does not depend on other slides.

    Whether the patients reach :meth:`fit` depends on the caller. With
    ``sklearn.set_config(enable_metadata_routing=True)`` a pipeline or a search
    passes on ``groups`` as this regressor requests them by default. Without, say
    ``search.fit(X, y, groups=patients, priorknowledgeregressor__groups=patients)``.
    Without groups, samples with identical expression are taken as one patient,
    unless y is a single gene, which may be equal by chance.

    A fitted regressor is saved with skops, joblib or pickle, as arrays, and can be loaded where the
    device of the training is missing. Bags of :meth:`FeatureBag.from_file
    <sklearn_pk.slides.FeatureBag.from_file>` are read batch by batch, one batch ahead, so
    that a cohort may be larger than memory.

    The patients held out for early stopping choose the epoch alone: the prior, the means
    and the scales are computed from all patients passed to :meth:`fit`, as published.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.
    .. [2] "Digital profiling of gene expression from histology images with
       linearized attention", Nature Communications 15:9886 (2024).
    .. [3] Parcollet et al., "SummaryMixing: a linear-complexity alternative to
       self-attention for speech recognition and understanding", arXiv 2307.07421.
    .. [4] Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, equation 9.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import TruncatedSVD
    >>> from sklearn_pk.regression import PriorKnowledgeRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 5, 8))  # 40 slides of 5 tiles with 8 features
    >>> X[0, 3:] = np.nan  # the first slide has 3 tiles only
    >>> y = np.nanmean(X, axis=1) @ rng.normal(size=(8, 20))
    >>> model = PriorKnowledgeRegressor(
    ...     prior=TruncatedSVD(4), lambda_=0.2, max_epochs=20, random_state=0
    ... )
    >>> model.fit(X, y).predict(X).shape
    (40, 20)
    """

    __metadata_request__fit = {"groups": True}

    _parameter_constraints: dict = {
        "prior": [HasMethods(["fit_transform", "get_params"]), "array-like", None],
        "aggregator": [
            StrOptions({"mlp", "attention", "transformer", "summary_mixing", "topk"}),
            torch.nn.Module,
            type,
        ],
        "lambda_": [Interval(Real, 0, 1, closed="both")],
        "layer": [StrOptions({"published", "projected", "scores"})],
        "n_networks": [Interval(Integral, 1, None, closed="left")],
        "init": [HasMethods(["fit", "predict"]), None],
        "depth": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "head_dim": [Interval(Integral, 1, None, closed="left")],
        "embed_dim": [Interval(Integral, 1, None, closed="left"), None],
        "scale_embeddings": ["boolean"],
        "standardize": ["boolean"],
        "init_scale": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "n_tiles": [Interval(Integral, 1, None, closed="left"), None],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lr_schedule": [StrOptions({"constant", "cosine"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "early_stopping": [StrOptions({"loss+corr", "loss"}), None],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "loss_tolerance": [Interval(Real, 0, None, closed="left")],
        "dtype": [StrOptions({"float32", "bfloat16", "auto"})],
        "compile": ["boolean"],
        "device": [str],
        "memory": [str, HasMethods(["cache"]), os.PathLike, None],
        "positive": ["boolean"],
        "callbacks": [list, tuple, None],
        "compat": [StrOptions({"sequoia"}), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        prior=None,
        aggregator="mlp",
        lambda_=0.5,
        layer="published",
        n_networks=1,
        init=None,
        depth=6,
        n_heads=16,
        head_dim=64,
        embed_dim=None,
        scale_embeddings=True,
        standardize=True,
        init_scale=0.1,
        max_epochs=200,
        batch_size=16,
        n_tiles=None,
        lr=3e-4,
        lr_schedule="constant",
        weight_decay=0.0,
        validation_fraction=0.1,
        early_stopping="loss",
        patience=20,
        loss_tolerance=0.5,
        dtype="float32",
        compile=False,
        device="auto",
        memory=None,
        positive=False,
        callbacks=None,
        compat=None,
        random_state=None,
        verbose=0,
    ):
        self.prior = prior
        self.aggregator = aggregator
        self.lambda_ = lambda_
        self.layer = layer
        self.n_networks = n_networks
        self.init = init
        self.depth = depth
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.embed_dim = embed_dim
        self.scale_embeddings = scale_embeddings
        self.standardize = standardize
        self.init_scale = init_scale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.n_tiles = n_tiles
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.loss_tolerance = loss_tolerance
        self.dtype = dtype
        self.compile = compile
        self.device = device
        self.memory = memory
        self.positive = positive
        self.callbacks = callbacks
        self.compat = compat
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, groups=None):
        """
        Fit the prior, then train the network.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features. A table is one tile per slide; missing tiles of an array
            are rows of NaN; a list holds an array or feature bag of shape
            (tiles_i, n_features) for each slide. Bags in files are read while training.
        y : array-like or DataFrame of shape (n,) or (n, n_genes)
            Expression, usually log2(x + 1). The columns of a DataFrame are genes.
        groups : array-like of shape (n,), default=None
            Patient of each sample. Patients, not slides, are held out for early
            stopping, and a patient counts once in the prior.

        Returns
        -------
        self : object
            The fitted regressor.

        Raises
        ------
        MemoryError
            If the memory of the device does not suffice for a step of `batch_size` slides.
        ValueError
            If lengths or the names of samples differ, if X or y contain NaN (other
            than missing tiles), if a bag is empty, if gene names repeat, if the
            prior does not match the genes, or if `device` is not available.
        """
        device = pick_device(self.device)
        clear_fit(self)
        is_own_aggregator(self.aggregator)
        return self._fit(check_training_data(self, X, y, groups), device)

    def _fit(self, data, device):
        if self.layer == "scores" and self.prior is None:
            raise ValueError(
                "layer='scores' predicts scores of a prior, but prior is None. Pass one, such as "
                "EigengeneEmbedder(50)."
            )
        if self.n_tiles is not None and self.compat is not None:
            raise ValueError(
                f"n_tiles={self.n_tiles!r} draws tiles, but with compat={self.compat!r} their "
                "positions matter. Use n_tiles=None."
            )
        start = prepare(self, data)
        runs = make_runs(self, data, start)
        # Callbacks follow one network at a time.
        sets = [[run] for run in runs] if self.callbacks else [runs]
        trained = dict(pair for each in sets for pair in train_networks(each, device, self.verbose))
        return self._set_fitted(data, start, [trained[run] for run in runs])

    def _set_fitted(self, data, start, trained):
        self.n_features_in_ = data.bags[0].shape[1]
        if data.feature_names is not None:
            self.feature_names_in_ = data.feature_names
        if data.gene_names is not None:
            self.gene_names_out_ = data.gene_names
        self._y_is_1d, self._offset, self._n_tiles = data.y_is_1d, data.offset, self.n_tiles
        self.seed_ = start.seed
        self.prior_, self.embeddings_ = start.prior, start.embeddings
        self.validation_indices_ = start.valid
        self._module_params = start.module_params
        self.nets_ = [each.net for each in trained]
        self.net_ = self.nets_[0]
        self.history_, self.best_epoch_ = trained[0].history, trained[0].best_epoch
        if len(trained) > 1:
            self.best_epoch_ = np.array([each.best_epoch for each in trained])
            histories = {number: each.history for number, each in enumerate(trained)}
            self.history_ = pd.concat(histories, names=["network"]).reset_index("network")
            self.history_ = self.history_.reset_index(drop=True)
        self.versions_ = {name: version(name) for name in _PACKAGES}
        return self

    def predict(self, X):
        """
        Predict expression.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,) or (n, n_genes), float64
            Predicted expression, in the unit of the y of :meth:`fit`.

        Raises
        ------
        MemoryError
            If the memory of the device does not suffice for a slide, which is named.
        """
        check_is_fitted(self)
        refuse_known_patients(self.prior_, X)
        return self._predict([net.module_ for net in self.nets_], X)

    def predict_untrained(self, X):
        """
        Predict expression with the network as it was before training.

        The untrained baseline has the same architecture, gene embeddings, lambda and
        initial weights; significance tests compare against it.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,) or (n, n_genes), float64
            Predictions of the untrained baseline.
        """
        check_is_fitted(self)
        return self._predict([each.to(self.net_.device) for each in self._build_networks()], X)

    def predict_tiles(self, X, *, genes=None, window=None, stride=1):
        """
        Predict the expression of parts of slides, for maps.

        The network, which was trained on whole slides, is applied to a single tile, or to the
        tiles inside a square window, as if they were a slide. The window moves over the slide,
        and the prediction of a tile is the mean over all windows that contain it.

        Parameters
        ----------
        X : list of array-like or FeatureBag of shape (tiles_i, n_features)
            Features of all tiles of each slide, with coordinates if there is a window.
        genes : list, default=None
            Names of the genes, or their positions if they have no names. None means all: with
            4,000 tiles and 25,761 genes, 400 MB per slide.
        window : int, default=None
            Edge of the window, in tiles. None predicts each tile by itself.
        stride : int, default=1
            Step of the window, in tiles; at most `window`.

        Returns
        -------
        list of DataFrame of shape (tiles_i, n_genes), float32
            Expression of each tile, one table per slide. The rows are indexed by the upper left
            corner of the tile, ``x`` and ``y`` in level-0 pixels, or by ``tile``, its number,
            if coordinates are missing. ``attrs`` has ``slide``, ``size_level0``, and ``mpp``, the
            um/px of level 0 (None if it is not known).

        Raises
        ------
        KeyError
            If a gene is not among those of :meth:`fit`.
        MemoryError
            If the memory of the device does not suffice for a window.
        ValueError
            If `window` is not None and the tiles of a slide have no coordinates or do not lie on
            a grid.
        """
        check_is_fitted(self)
        check_window(window, stride)
        bags = validate_bags(self, X, reset=False, lazy=True)
        # Validated bags may lack the coordinates.
        sources = list(X) if is_bag_input(X) else bags
        slides = sample_names_of(X) or [name_of_item(source) or "" for source in sources]
        names = getattr(self, "gene_names_out_", None)
        chosen = positions_of_genes(genes, names, len(self._module_params["target_mean"]))
        columns = chosen if names is None else names[chosen]

        def predict_bags(features, mask):
            positions = modules[0].positions
            if positions is not None and features.shape[1] > len(positions):
                raise ValueError(
                    f"window={window!r} holds up to {features.shape[1]} tiles, but with "
                    f"compat='sequoia' there are {len(positions)} positions. Use a smaller window."
                )
            moved = to_device((features, mask), self.net_.device)
            predicted = sum(
                module(*moved, **layer).float().cpu().numpy()
                for module, layer in zip(modules, layers, strict=True)
            )
            return self._postprocess(predicted / len(modules), chosen)

        modules = [net.module_.eval() for net in self.nets_]
        options = {"batches": Halving(BATCH, self.net_.device)}
        with torch.inference_mode(), use_device(self.net_.device):
            layers = [module.prediction_layer(chosen) for module in modules]
            frames = [
                tile_expression(
                    source, position, predict_bags, columns, window, stride, slide=slide, **options
                )
                for position, (source, slide) in enumerate(zip(sources, slides, strict=True))
            ]
        _warn_of_small_batches(options["batches"])
        return frames

    def embed(self, X):
        """
        Compute the slide embeddings w, which the last layer turns into expression.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n, d), float64
            Slide embeddings, those of several networks side by side. With the aggregator "topk",
            in which tiles are chosen per gene, the mean of the tile embeddings.
        """
        check_is_fitted(self)
        modules = [net.module_ for net in self.nets_]
        embedded = self._by_slide(X, modules, [module.embed_slide for module in modules])
        return np.concatenate(list(embedded), axis=1)

    def _predict(self, modules, X):
        with torch.inference_mode():
            functions = [partial(module, **module.prediction_layer()) for module in modules]
        predicted = self._by_slide(X, modules, functions).mean(axis=0)
        predicted = self._postprocess(predicted)
        return predicted[:, 0] if self._y_is_1d else predicted

    def _by_slide(self, X, modules, functions):
        """Return the result of each function, (n_functions, n_slides, ...)."""
        bags = validate_bags(self, X, reset=False, lazy=True)
        for module in modules:
            module.eval()
        positions, device, rows = modules[0].positions, self.net_.device, []
        threads = few_threads(self._module_params, self.embeddings_, self.batch_size, device)
        with torch.inference_mode(), threads, use_device(device):
            # One slide at a time: neither padding nor other slides change its sums.
            for position, bag in enumerate(bags):
                tiles = present_tiles(bag, position)
                if positions is not None and len(tiles) > len(positions):
                    raise ValueError(
                        f"{label_of_bag(bag, position)} has {len(tiles)} tiles, but with "
                        f"compat='sequoia' there are {len(positions)} positions. Make "
                        f"super-tiles: SuperTileClusterer(n_clusters={len(positions)})."
                    )
                explain = partial(_explain_slide, label_of_bag(bag, position), len(tiles))
                with explain_out_of_memory(device, explain):
                    rows.append(self._mean_over_chunks(tiles, functions))
        return np.stack(rows, axis=1).astype(np.float64)

    def _mean_over_chunks(self, tiles, functions):
        """Return the result of each function for a slide, or its mean over chunks of tiles."""
        # Regressors saved by earlier versions lack it.
        n_chunks = -(-len(tiles) // (getattr(self, "_n_tiles", None) or len(tiles)))
        means = 0.0
        for first in range(n_chunks):
            # Not neighbours, which look alike.
            chunk = tiles[first::n_chunks]
            batch = to_device(pad_bags([chunk]), self.net_.device)
            found = torch.stack([each(*batch)[0].float() for each in functions])
            means = means + found * (len(chunk) / len(tiles))
        return means.cpu().numpy()

    def _postprocess(self, predicted, genes=slice(None)):
        if self._offset.any():
            predicted = predicted + self._offset[genes]
        return np.maximum(predicted, 0) if self.positive else predicted

    def __getstate__(self):
        state = dict(super().__getstate__())  # not the attributes themselves
        if not hasattr(self, "net_"):
            return freeze_frames(state)
        # Arrays only: loading needs neither pickle nor the device.
        state["net_"] = {
            "device": str(self.net_.device),
            "weights": [
                {
                    name: value.detach().cpu().numpy()
                    for name, value in net.module_.learned_state().items()
                }
                for net in state.pop("nets_")
            ],
        }
        return freeze_frames(state)

    def __setstate__(self, state):
        saved = state.get("net_")
        super().__setstate__(thaw_frames({k: v for k, v in state.items() if k != "net_"}))
        if saved is None:
            return
        self.nets_ = []
        for network, weights in zip(
            self._build_networks(len(saved["weights"])), saved["weights"], strict=True
        ):
            load_weights(network, {name: torch.tensor(each) for name, each in weights.items()})
            self.nets_.append(make_net(network, self, _device_or_cpu(saved["device"])))
        self.net_ = self.nets_[0]

    def _build_networks(self, n_networks=None):
        """Build the networks as they were before training."""
        seeds = network_seeds(self.seed_, n_networks or len(self.nets_))
        return [build_network(self._module_params, self.embeddings_, seed) for seed in seeds]

    def __sklearn_clone__(self):
        clone = _clone_parametrized(self)
        clone.init = self.init  # of which a clone would not be fitted
        return clone

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.multi_output = True
        return tags


def _explain_slide(label, n_tiles, memory):
    return (
        f"{label} has {n_tiles} tiles, which the network cannot predict in the memory of {memory}. "
        "Make super-tiles for training and prediction (SuperTileClusterer), end other processes "
        "that use the device, or predict on the CPU: "
        "model.net_.set_params(device='cpu').module_.to('cpu')."
    )


def _warn_of_small_batches(batches):
    if batches.size < BATCH:
        warn_user(
            f"predict_tiles: {BATCH} windows at once do not fit into the memory of "
            f"{describe_memory(batches.device)}. Continued with {batches.size}, which changes the "
            "expression by rounding only. Smaller windows need less memory."
        )


def _device_or_cpu(device):
    try:
        return pick_device(device)
    except ValueError:  # saved on a machine with a GPU, loaded on one without
        return "cpu"
