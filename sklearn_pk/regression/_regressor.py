"""PriorKnowledgeRegressor: gene expression from bags of tile features."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import warnings
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, check_memory
from skorch import NeuralNetRegressor
from skorch.helper import predefined_split

from ..utils import (
    check_expression,
    check_groups,
    check_sample_names,
    pick_device,
    validate_bags,
)
from ..utils._patients import infer_groups
from ._module import ExpressionModule
from ._prior import (
    align_embeddings,
    check_embeddings,
    expression_by_patient,
    learn_embeddings,
    seed_prior,
)
from ._training import (
    BagDataset,
    KeepBestWeights,
    identity,
    pad_bags,
    split_groups,
    tile_statistics,
)


class PriorKnowledgeRegressor(RegressorMixin, BaseEstimator):
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

    aggregator : {"mlp", "transformer", "summary_mixing"}, default="mlp"
        How the tiles become one slide embedding. "mlp" is Linear - ReLU -
        Linear on each tile, then the mean; the other two let tiles see each other.

    lambda_ : float, default=0.5
        Weight of the gene embeddings, in [0, 1]. 0 is the plain linear layer.

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

    scale_embeddings : bool, default=True
        Whether to bring the gene embeddings as a whole to the root mean square
        of freshly drawn learned weights, ``1 / sqrt(3 d)``. Otherwise their scale,
        which is arbitrary for most priors, decides what a given `lambda_` means.

    standardize : bool, default=True
        Whether to centre and scale every feature by its mean and standard deviation
        over the training tiles.

    max_epochs : int, default=200
        Largest number of epochs.

    batch_size : int, default=16
        Number of slides in a training step.

    lr : float, default=1e-3
        Learning rate of AdamW.

    weight_decay : float, default=0.0
        Weight decay of AdamW.

    validation_fraction : float, default=0.1
        Share of the training patients, not slides, that is held out for early
        stopping. With 0 the training loss is watched.

    early_stopping : {"loss"} or None, default="loss"
        "loss" stops when the loss of the held-out patients has not improved for
        `patience` epochs. With None all epochs are trained. Either way the weights
        of the best epoch are restored.

    patience : int, default=20
        Epochs without a lower loss before training stops.

    device : str, default="auto"
        Torch device. "auto" takes the GPU if there is one.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache for fitted priors, so that a search over `lambda_` does not
        factorise the same graph again.

    random_state : int, RandomState instance or None, default=None
        Seed of the weights, the order of the slides, the held-out patients, and of each
        step of `prior` whose own ``random_state`` is None.

    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    net_ : skorch.NeuralNetRegressor
        The trained network, on the device that was used.

    prior_ : estimator or None
        The fitted clone of `prior`; None unless `prior` is an estimator.

    embeddings_ : ndarray of shape (n_genes, d), float32, or None
        The gene embeddings G, scaled.

    history_ : DataFrame
        Epoch, train_loss, valid_loss (if patients were held out) and dur (seconds).

    best_epoch_ : int
        The epoch whose weights were kept, counted from 1.

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
    sklearn_pk.prior.CoexpressionGraph : Co-expression graph as a prior.
    sklearn_pk.prior.NMFGeneEmbedder : Gene embeddings from that graph.
    sklearn_pk.metrics.significance_scorer : Counts significantly predicted genes.

    Notes
    -----
    A and b of the layer are drawn from U(-1/sqrt(d), 1/sqrt(d)). The output of the
    layer is shifted by the mean expression of each gene in the training samples and
    scaled by one number, the root of the mean variance of all genes: the weight
    of a gene in the loss does not change, but training need not
    first find the level of each gene in tiny steps. A gene that is constant in
    training is predicted by its value.

    Slides are predicted one by one, so that a prediction does not depend on the
    slides beside it.

    Whether the patients reach :meth:`fit` depends on the caller. With
    ``sklearn.set_config(enable_metadata_routing=True)`` a pipeline or a search
    passes on ``groups`` as this regressor requests them by default. Without, say
    ``search.fit(X, y, groups=patients, priorknowledgeregressor__groups=patients)``.
    Without groups, samples whose expression is identical are taken as one patient,
    unless y is a single gene, which may be equal by chance.

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
        "aggregator": [StrOptions({"mlp", "transformer", "summary_mixing"})],
        "lambda_": [Interval(Real, 0, 1, closed="both")],
        "depth": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "head_dim": [Interval(Integral, 1, None, closed="left")],
        "embed_dim": [Interval(Integral, 1, None, closed="left"), None],
        "scale_embeddings": ["boolean"],
        "standardize": ["boolean"],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "early_stopping": [StrOptions({"loss"}), None],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "memory": [str, HasMethods(["cache"]), os.PathLike, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        prior=None,
        aggregator="mlp",
        lambda_=0.5,
        depth=6,
        n_heads=16,
        head_dim=64,
        embed_dim=None,
        scale_embeddings=True,
        standardize=True,
        max_epochs=200,
        batch_size=16,
        lr=1e-3,
        weight_decay=0.0,
        validation_fraction=0.1,
        early_stopping="loss",
        patience=20,
        device="auto",
        memory=None,
        random_state=None,
        verbose=0,
    ):
        self.prior = prior
        self.aggregator = aggregator
        self.lambda_ = lambda_
        self.depth = depth
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.embed_dim = embed_dim
        self.scale_embeddings = scale_embeddings
        self.standardize = standardize
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.device = device
        self.memory = memory
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
            (tiles_i, n_features) for each slide.
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
        ValueError
            If lengths or the names of samples differ, if X or y contain NaN (other
            than missing tiles), if a bag is empty, if gene names repeat, if the
            prior does not match the genes, or if `device` is not there.
        """
        device = pick_device(self.device)
        values, gene_names, self._y_is_1d = check_expression(y, estimator_name="fit")
        bags = validate_bags(self, X, reset=True)
        check_sample_names(X, y)
        groups = self._check_groups(groups, y, values)
        if gene_names is not None:
            self.gene_names_out_ = gene_names
        elif hasattr(self, "gene_names_out_"):
            del self.gene_names_out_
        random_state = check_random_state(self.random_state)
        self._seed = int(random_state.randint(np.iinfo(np.int32).max))
        self.embeddings_ = self._fit_prior(values, gene_names, groups)
        self._module_params = self._describe_module(bags, values)
        train, self.validation_indices_ = split_groups(
            groups, self.validation_fraction, random_state
        )
        self._train(
            BagDataset(bags, values, train),
            BagDataset(bags, values, self.validation_indices_),
            device,
        )
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
        """
        check_is_fitted(self)
        return self._predict(self.net_.module_, X)

    def predict_untrained(self, X):
        """
        Predict expression with the network as it was before training.

        The untrained twin has the same architecture, gene embeddings, lambda and
        initial weights; significance tests compare against it.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,) or (n, n_genes), float64
            Predictions of the untrained twin.
        """
        check_is_fitted(self)
        return self._predict(self._build_module().to(self.net_.device), X)

    def _check_groups(self, groups, y, values):
        if groups is not None:
            return check_groups(groups, y)
        groups = infer_groups(values)
        n_repeats = len(groups) - groups.max() - 1
        if n_repeats:
            warnings.warn(
                f"{n_repeats} samples repeat the expression of an earlier one and are taken as "
                "slides of the same patient, inside this fit: for early stopping and the prior. "
                "Folds around it need groups of their own. Pass them: fit(X, y, groups=patients), "
                "or through a pipeline fit(X, y, priorknowledgeregressor__groups=patients).",
                UserWarning,
                stacklevel=3,
            )
        return groups

    def _fit_prior(self, values, gene_names, groups):
        self.prior_ = None
        if self.prior is None:
            return None
        n_genes = values.shape[1]
        if hasattr(self.prior, "fit_transform"):
            memory = self.memory
            memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
            learn = memory.cache(learn_embeddings)
            expression = expression_by_patient(values, groups, gene_names)
            self.prior_, embeddings = learn(seed_prior(self.prior, self._seed), expression)
        else:
            embeddings = align_embeddings(self.prior, n_genes, gene_names)
        return check_embeddings(embeddings, n_genes, scale=self.scale_embeddings)

    def _describe_module(self, bags, values):
        mean, scale = np.zeros(self.n_features_in_), np.ones(self.n_features_in_)
        if self.standardize:
            mean, scale = tile_statistics(bags)
        variances = values.var(axis=0, dtype=np.float64)
        target_scale = np.where(np.ptp(values, axis=0) > 0, np.sqrt(variances.mean()), 0.0)
        return {
            "feature_mean": torch.as_tensor(mean, dtype=torch.float32),
            "feature_scale": torch.as_tensor(scale, dtype=torch.float32),
            "target_mean": torch.as_tensor(values.mean(axis=0), dtype=torch.float32),
            "target_scale": torch.as_tensor(target_scale, dtype=torch.float32),
            "lambda_": self.lambda_,
            "aggregator": self.aggregator,
            "depth": self.depth,
            "n_heads": self.n_heads,
            "head_dim": self.head_dim,
            "embed_dim": self.embed_dim,
        }

    def _build_module(self):
        embeddings = None if self.embeddings_ is None else torch.from_numpy(self.embeddings_)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return ExpressionModule(embeddings=embeddings, **self._module_params)

    def _train(self, train, valid, device):
        keeper = KeepBestWeights(
            monitor="valid_loss" if len(valid) else "train_loss",
            patience=self.patience if self.early_stopping == "loss" else None,
            max_epochs=self.max_epochs,
            verbose=self.verbose,
        )
        self.net_ = NeuralNetRegressor(
            self._build_module(),
            criterion=torch.nn.MSELoss,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=self.weight_decay,
            optimizer__fused=True,
            lr=self.lr,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            iterator_train__shuffle=True,
            iterator_train__generator=torch.Generator().manual_seed(self._seed),
            iterator_train__collate_fn=identity,
            iterator_valid__collate_fn=identity,
            iterator_valid__generator=torch.Generator(),
            train_split=predefined_split(valid) if len(valid) else None,
            callbacks=[("keeper", keeper)],
            callbacks__print_log=None,
            device=device,
            verbose=0,
        )
        try:
            self.net_.fit(train, y=None)
        finally:
            keeper.finish(self.net_)
        epochs = self.net_.history
        if len(epochs) < self.max_epochs and not keeper.stopped_:
            raise KeyboardInterrupt  # skorch swallowed the user's Ctrl-C
        if not keeper.best_epoch_:
            raise ValueError(
                f"Training did not reach a finite {keeper.monitor} in any epoch. Look for huge "
                f"values in X or y, or use a smaller learning rate than lr={self.lr!r}."
            )
        self.net_.set_params(train_split=None)
        columns = ["epoch", "train_loss", *(["valid_loss"] if len(valid) else []), "dur"]
        self.history_ = pd.DataFrame([[row[key] for key in columns] for row in epochs])
        self.history_.columns = columns
        self.best_epoch_ = int(keeper.best_epoch_)

    def _predict(self, module, X):
        bags = validate_bags(self, X, reset=False)
        module.eval()
        with torch.inference_mode():
            # One slide at a time: no padding, and no other slide, has any part in its sums.
            predicted = [module(pad_bags([bag]).to(self.net_.device)).cpu() for bag in bags]
        predicted = torch.cat(predicted).numpy().astype(np.float64)
        return predicted[:, 0] if self._y_is_1d else predicted

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.multi_output = True
        return tags
