"""PriorKnowledgeRegressor: gene expression from bags of tile features."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from numbers import Integral, Real

import torch
from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ..utils._device import pick_device
from ._aggregators import is_own_aggregator
from ._fitting import (
    check_training_data,
    forget,
    warn_of_constant_genes,
)
from ._predictor import ExpressionPredictor
from ._training import train_on


class PriorKnowledgeRegressor(ExpressionPredictor, RegressorMixin, BaseEstimator):
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
        Where the gene embeddings come from. An estimator is cloned and gets the
        expression of the training patients with *genes as rows*, one column a
        patient; its ``fit_transform`` gives G, for example
        ``make_pipeline(CoexpressionGraph(), NMFGeneEmbedder())`` or
        ``TruncatedSVD(30)``. An array holds G itself, one row a gene of y; a
        DataFrame is matched by gene name, with zeros for genes that it lacks.
        None gives the plain linear layer.

    aggregator : {"mlp", "transformer", "summary_mixing", "topk"}, torch.nn.Module or class of \
            modules, default="mlp"
        How the tiles become one slide embedding. "mlp" is Linear - ReLU -
        Linear on each tile, then the mean; "transformer" and "summary_mixing" let tiles see
        each other. "topk" is HE2RNA: two hidden layers, then the last layer on each tile,
        of which each gene averages its k highest scores, with a random k of 1, 2, 5, 10, 20,
        50 and 100 for a batch and the mean over all k in predictions.
        A module maps (batch, tiles, d) to (batch, d); a class is called with d, an instance
        is copied and starts with the weights it has. If its ``forward`` has a parameter
        `mask`, that is (batch, tiles) and True where there is a tile, or None; otherwise bags
        with missing tiles are given to it one by one.

    lambda_ : float, default=0.5
        Weight of the gene embeddings, in [0, 1]. 0 is the plain linear layer (behind the
        projection to their width, where they are wider than the slide embedding).

    layer : {"published", "projected"}, default="published"
        What the gene embeddings do. "published" mixes them into the last layer, as above.
        "projected" trains the network as if there were none, and projects what it predicts onto
        the span of their columns, ``(1 - lambda_) * g + lambda_ * g @ Q @ Q.T`` for
        ``g = w @ A.T + b`` and an orthonormal basis Q of it: with
        :class:`~sklearn_pk.prior.EigengeneEmbedder`, onto how genes vary together in the training
        patients. Genes without an embedding are left as they are.

    depth : int, default=6
        Number of blocks of "transformer" and "summary_mixing".

    n_heads : int, default=16
        Number of heads in each of those blocks.

    head_dim : int, default=64
        Width of a head.

    embed_dim : int or None, default=None
        Width of the slide embedding. None keeps that of the tile features; another
        value puts a learned linear projection in front of the aggregator. Where
        the gene embeddings are wider, a second learned projection brings the slide
        embedding to their width; where they are narrower, they are padded with zeros.
        With ``layer="projected"`` they may have any width.

    scale_embeddings : bool, default=True
        Whether to bring the gene embeddings as a whole to the root mean square
        of freshly drawn learned weights, ``init_scale / sqrt(3 d)``. Otherwise their scale,
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

    lr : float, default=3e-4
        Learning rate of AdamW. 1e-3 is the published one.

    lr_schedule : {"constant", "cosine"}, default="constant"
        "cosine" lets the learning rate fall to 0 over `max_epochs`, as half a cosine.

    weight_decay : float, default=0.0
        Weight decay of AdamW.

    validation_fraction : float, default=0.1
        Share of the training patients, not slides, that is held out for early
        stopping. With 0 the training loss is watched.

    early_stopping : {"loss+corr", "loss"} or None, default="loss+corr"
        "loss" stops when the loss of the held-out patients has not improved for
        `patience` epochs. "loss+corr" then goes on for an epoch with a higher mean
        correlation per gene than that one, whose loss is within `loss_tolerance` of the
        lowest, until `patience` epochs have brought no higher one, or so many had
        a larger loss than that. With None all epochs are trained. Either way the weights
        of the best epoch are restored; with None, it is the one with the lowest loss.

    patience : int, default=20
        Epochs without a better one before training stops.

    loss_tolerance : float, default=0.5
        How far above the lowest loss an epoch may be chosen for its correlation, in the
        unit of y squared.

    dtype : {"float32", "bfloat16"}, default="float32"
        Precision of the products in training. "bfloat16" is meant for GPUs; weights, losses
        and predictions stay float32.

    compile : bool, default=False
        Whether to train with :func:`torch.compile`, which takes a minute to start with.

    device : str, default="auto"
        Torch device. "auto" takes the GPU if there is one.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache for fitted priors, so that a search over `lambda_` does not
        factorise the same graph again.

    positive : bool, default=False
        Whether predictions below 0, which log2(x + 1) cannot be, become 0.

    callbacks : list of skorch.callbacks.Callback or None, default=None
        Called while `net_` is trained.

    compat : {"sequoia"} or None, default=None
        "sequoia" trains the network as released with SEQUOIA: each tile gets a learned vector,
        drawn from N(0, 1), by its position in the bag, so that the order of tiles matters and
        no bag may be longer than those trained on; features and expression
        are taken as they are, without `standardize` and without the shift and scale of Notes.

    random_state : int, RandomState instance or None, default=None
        Seed of the weights, the order of the slides, the held-out patients, and of each
        step of `prior` whose own ``random_state`` is None.

    verbose : int, default=0
        Whether to show a progress bar with the losses and the mean correlation. It is shown on
        terminals only, and not in the workers of a parallel search.

    Attributes
    ----------
    net_ : skorch.NeuralNetRegressor
        The trained network, on the device that was used.

    prior_ : estimator or None
        The fitted clone of `prior`; None unless `prior` is an estimator.

    embeddings_ : ndarray of shape (n_genes, d), float32, or None
        The gene embeddings G, scaled; with ``layer="projected"``, the basis Q of their span.

    history_ : DataFrame
        One row an epoch: epoch, train_loss (mean while training), valid_loss and valid_r (if
        patients were held out; valid_r is the mean over genes of Pearson's r) and dur
        (seconds).

    best_epoch_ : int
        The epoch whose weights were kept, counted from 1.

    seed_ : int
        What was drawn from `random_state` for weights, order and prior.

    versions_ : dict of str to str
        Versions of the packages that trained it.

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
    PriorKnowledgeRegressorCV : The same with `lambda_` chosen by cross-validation.
    load_sequoia : One with published weights.
    sklearn_pk.prior.CoexpressionGraph : Co-expression graph as a prior.
    sklearn_pk.prior.NMFGeneEmbedder : Gene embeddings from that graph.
    sklearn_pk.metrics.significance_scorer : Counts significantly predicted genes.

    Notes
    -----
    A and b of the layer are drawn from U(-1/sqrt(d), 1/sqrt(d)), and multiplied by
    `init_scale`. The output of the layer is shifted by the mean expression of each gene in the
    training samples and scaled by one number, the root of the mean variance of all genes: the
    weight of a gene in the loss does not change, but training need not first find the level
    of each gene in tiny steps. A gene that is constant in
    training is predicted by its value, and named in a warning.

    The defaults of `lr` and `init_scale` were chosen on 884 real patients. The published
    training is ``PriorKnowledgeRegressor(lr=1e-3, init_scale=1.0, compat="sequoia")``.

    Slides are predicted one by one, so that a prediction does not depend on the
    slides beside it.

    Whether the patients reach :meth:`fit` depends on the caller. With
    ``sklearn.set_config(enable_metadata_routing=True)`` a pipeline or a search
    passes on ``groups`` as this regressor requests them by default. Without, say
    ``search.fit(X, y, groups=patients, priorknowledgeregressor__groups=patients)``.
    Without groups, samples whose expression is identical are taken as one patient,
    unless y is a single gene, which may be equal by chance.

    A fitted regressor is saved with skops, joblib or pickle, as arrays, and loads where there
    is no such device as it was trained on. Bags of :meth:`FeatureBag.from_file
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
            StrOptions({"mlp", "transformer", "summary_mixing", "topk"}),
            torch.nn.Module,
            type,
        ],
        "lambda_": [Interval(Real, 0, 1, closed="both")],
        "layer": [StrOptions({"published", "projected"})],
        "depth": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "head_dim": [Interval(Integral, 1, None, closed="left")],
        "embed_dim": [Interval(Integral, 1, None, closed="left"), None],
        "scale_embeddings": ["boolean"],
        "standardize": ["boolean"],
        "init_scale": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lr_schedule": [StrOptions({"constant", "cosine"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "early_stopping": [StrOptions({"loss+corr", "loss"}), None],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "loss_tolerance": [Interval(Real, 0, None, closed="left")],
        "dtype": [StrOptions({"float32", "bfloat16"})],
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
        depth=6,
        n_heads=16,
        head_dim=64,
        embed_dim=None,
        scale_embeddings=True,
        standardize=True,
        init_scale=0.1,
        max_epochs=200,
        batch_size=16,
        lr=3e-4,
        lr_schedule="constant",
        weight_decay=0.0,
        validation_fraction=0.1,
        early_stopping="loss+corr",
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
        self.depth = depth
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.embed_dim = embed_dim
        self.scale_embeddings = scale_embeddings
        self.standardize = standardize
        self.init_scale = init_scale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
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
            Tile features. A table is one tile a slide; missing tiles of an array
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
            If the memory of the device does not suffice for a step of `batch_size` slides. The
            largest half, quarter and so on of it that fits is found by trial and named.
        ValueError
            If lengths or the names of samples differ, if X or y contain NaN (other
            than missing tiles), if a bag is empty, if gene names repeat, if the
            prior does not match the genes, or if `device` is not there.
        """
        device = pick_device(self.device)
        forget(self)
        is_own_aggregator(self.aggregator)
        data = check_training_data(self, X, y, groups)
        warn_of_constant_genes(data)
        train_on(self, data, device)
        return self
