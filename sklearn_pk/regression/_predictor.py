"""What a trained network can be asked."""

# SPDX-License-Identifier: BSD-3-Clause

from functools import partial
from numbers import Integral

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted

from ..utils import check_expression, validate_bags
from ..utils._bags import is_bag_input, label_of_bag
from ..utils._device import pick_device
from ..utils._frames import freeze_frames, thaw_frames
from ..utils._out_of_memory import Halving, describe_memory, explain_out_of_memory
from ..utils._reporting import warn_user
from ..utils._validation import (
    check_gene_order,
    check_sample_names,
    name_of_item,
    name_some,
    sample_names_of,
)
from ._data import pad_bags, present_tiles
from ._fitting import build_module
from ._net import few_threads, make_net, to_device
from ._spatial import BATCH, check_window, tile_expression


class ExpressionPredictor:
    """Mixin: predictions of a regressor with `net_`, and how it is saved."""

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
        self._check_fitted()
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
        self._check_fitted()
        return self._predict(build_module(self).to(self.net_.device), X)

    def predict_frame(self, X):
        """
        Predict expression as a table with the names of slides and genes.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`fit`.

        Returns
        -------
        DataFrame of shape (n, n_genes)
            Predicted expression. The rows have the names of X: the index of a DataFrame, the
            slides of feature bags; the columns are the genes of :meth:`fit`.
        """
        predicted = self.predict(X)
        return pd.DataFrame(
            predicted.reshape(len(predicted), -1),
            index=sample_names_of(X),
            columns=getattr(self, "gene_names_out_", None),
        )

    def predict_tiles(self, X, *, genes=None, window=None, stride=1):
        """
        Predict the expression of parts of slides, for maps.

        A network that was trained on whole slides is shown a single tile, or the tiles inside
        a square window, as if they were a slide. The window moves over the slide, and a tile
        gets the mean over all windows it lies in.

        Parameters
        ----------
        X : list of array-like or FeatureBag of shape (tiles_i, n_features)
            Features of all tiles of each slide, with coordinates if there is a window.
        genes : list, default=None
            Names of the genes, or their positions where they have none. None takes all: with
            4,000 tiles and 25,761 genes, 400 MB a slide.
        window : int, default=None
            Edge of the window, in tiles. None takes each tile by itself.
        stride : int, default=1
            Step of the window, in tiles; at most `window`.

        Returns
        -------
        list of DataFrame of shape (tiles_i, n_genes), float32
            Expression of each tile, one table a slide. The rows are indexed by the upper left
            corner of the tile, ``x`` and ``y`` in level-0 pixels, or by ``tile``, its number,
            where coordinates are not known. ``attrs`` has ``slide`` and ``size_level0``.

        Raises
        ------
        KeyError
            If a gene is not among those of :meth:`fit`.
        MemoryError
            If the memory of the device does not suffice for a window.
        ValueError
            If a window is asked for and a slide has no coordinates, or is no grid of tiles.
        """
        self._check_fitted()
        check_window(window, stride)
        bags = validate_bags(self, X, reset=False, lazy=True)
        # Bags as they came know their coordinates.
        sources = list(X) if is_bag_input(X) else bags
        slides = sample_names_of(X) or [name_of_item(source) or "" for source in sources]
        names = getattr(self, "gene_names_out_", None)
        chosen = _positions_of_genes(genes, names, len(self._module_params["target_mean"]))
        columns = chosen if names is None else names[chosen]

        def predict_bags(features, mask):
            if module.positions is not None and features.shape[1] > len(module.positions):
                raise ValueError(
                    f"window={window!r} holds up to {features.shape[1]} tiles, but with "
                    f"compat='sequoia' there are {len(module.positions)} positions. Use a "
                    "smaller window."
                )
            moved = to_device((features, mask), self.net_.device)
            predicted = module(*moved, **layer)[:, chosen].float().cpu().numpy()
            return self._postprocess(predicted)

        module = self.net_.module_.eval()
        options = {"batches": Halving(BATCH, self.net_.device)}
        with torch.inference_mode():
            layer = module.prediction_layer()
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
            Slide embeddings. With the aggregator "topk", in which each gene picks its own
            tiles, the mean of the tile embeddings.
        """
        self._check_fitted()
        return self._by_slide(X, self.net_.module_, self.net_.module_.embed_slide)

    def score(self, X, y, sample_weight=None):
        """
        Compute R squared: the share of the variance of all genes that is predicted.

        Genes are weighted by their variance, as in the loss. A mean over genes, as other
        regressors return it, would be that of the one gene that hardly varies in these samples.

        Parameters
        ----------
        X : array-like of shape (n, n_features) or (n, tiles, n_features), or list
            Tile features, as in :meth:`fit`.
        y : array-like or DataFrame of shape (n,) or (n, n_genes)
            Expression. Names of samples and genes have to be those of X and :meth:`fit`.
        sample_weight : array-like of shape (n,), default=None
            Weights of the samples.

        Returns
        -------
        float
            R squared, at most 1.
        """
        values, gene_names, _ = check_expression(y, estimator_name="score")
        check_sample_names(X, y)
        check_gene_order(gene_names, getattr(self, "gene_names_out_", None))
        predicted = self.predict(X).reshape(len(values), -1)
        weights = {"sample_weight": sample_weight, "multioutput": "variance_weighted"}
        return float(r2_score(values, predicted, **weights))

    def _check_fitted(self):
        if hasattr(self, "lambda_best_") and not hasattr(self, "net_"):
            raise NotFittedError(
                f"This {type(self).__name__} was fitted with refit=False, which chooses lambda_ "
                "and keeps no network. Use refit=True for predictions."
            )
        check_is_fitted(self)

    def _predict(self, module, X):
        with torch.inference_mode():
            layer = module.prediction_layer()
        predicted = self._by_slide(X, module, lambda *bags: module(*bags, **layer))
        predicted = self._postprocess(predicted)
        return predicted[:, 0] if self._y_is_1d else predicted

    def _by_slide(self, X, module, function):
        bags = validate_bags(self, X, reset=False, lazy=True)
        module.eval()
        rows = []
        with torch.inference_mode(), few_threads(self, self.net_.device):
            # One slide at a time: no padding, and no other slide, has any part in its sums.
            for position, bag in enumerate(bags):
                tiles = present_tiles(bag, position)
                if module.positions is not None and len(tiles) > len(module.positions):
                    raise ValueError(
                        f"{label_of_bag(bag, position)} has {len(tiles)} tiles, but with "
                        f"compat='sequoia' there are {len(module.positions)} positions. Make "
                        f"super-tiles: SuperTileClusterer(n_clusters={len(module.positions)})."
                    )
                explain = partial(_explain_slide, label_of_bag(bag, position), len(tiles))
                with explain_out_of_memory(self.net_.device, explain):
                    batch = to_device(pad_bags([tiles]), self.net_.device)
                    rows.append(function(*batch).float().cpu().numpy())
        return np.concatenate(rows).astype(np.float64)

    def _postprocess(self, predicted):
        return np.maximum(predicted, 0) if self.positive else predicted

    def __getstate__(self):
        state = dict(super().__getstate__())  # not the attributes themselves
        if not hasattr(self, "net_"):
            return freeze_frames(state)
        # Arrays only, so that it loads without pickle, and where there is no such device.
        state["net_"] = {
            "device": str(self.net_.device),
            "weights": {
                name: value.detach().cpu().numpy()
                for name, value in self.net_.module_.learned_state().items()
            },
        }
        return freeze_frames(state)

    def __setstate__(self, state):
        saved = state.get("net_")
        super().__setstate__(thaw_frames({k: v for k, v in state.items() if k != "net_"}))
        if saved is not None:
            device = _device_or_cpu(saved["device"])
            weights = {name: torch.tensor(value) for name, value in saved["weights"].items()}
            self._adopt_weights(weights, device)

    def _adopt_weights(self, weights, device, module=None):
        module = build_module(self) if module is None else module
        module.load_state_dict(module.state_dict() | weights)
        module.zero_grad()
        self.net_ = make_net(module, self, seed=self.seed_, device=device)

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
            f"{describe_memory(batches.device)}. Went on with {batches.size}, which changes the "
            "expression by rounding only. Smaller windows need less memory."
        )


def _device_or_cpu(device):
    try:
        return pick_device(device)
    except ValueError:  # saved on a machine with a GPU, loaded on one without
        return "cpu"


def _positions_of_genes(genes, names, n_genes):
    if genes is None:
        return np.arange(n_genes)
    genes = [genes] if isinstance(genes, str | Integral) else list(genes)
    known = np.arange(n_genes) if names is None else names
    positions = pd.Index(known).get_indexer(genes)
    unknown = [gene for gene, position in zip(genes, positions, strict=True) if position < 0]
    if unknown:
        raise KeyError(
            f"genes: {name_some(unknown)} not found among the {n_genes} genes of fit, such as "
            f"{name_some(known[:1])}."
        )
    return positions
