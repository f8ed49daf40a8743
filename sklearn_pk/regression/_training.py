"""What training needs besides the network: bags as batches, folds inside a fold, stopping."""

# SPDX-License-Identifier: BSD-3-Clause

import copy

import numpy as np
import torch
from skorch.callbacks import Callback

from ..utils import progress


class BagDataset(torch.utils.data.Dataset):
    """
    Serve whole batches of bags, padded with missing tiles to the longest of them.

    Parameters
    ----------
    bags : list of ndarray of shape (tiles_i, n_features)
        Tile features of each slide.
    targets : ndarray of shape (n_slides, n_genes)
        Expression.
    indices : ndarray of int
        The slides that belong to this data set.
    """

    def __init__(self, bags, targets, indices):
        self.bags = bags
        self.targets = targets
        self.indices = indices

    def __len__(self):
        """Count the slides."""
        return len(self.indices)

    def __getitem__(self, position):
        """Return one slide as a batch."""
        return self.__getitems__([position])

    def __getitems__(self, positions):
        """Return one padded batch: features (batch, tiles, d) and expression (batch, genes)."""
        rows = self.indices[np.asarray(positions)]
        targets = torch.from_numpy(self.targets[rows].astype(np.float32))
        return pad_bags([self.bags[row] for row in rows]), targets


def pad_bags(bags):
    """
    Stack bags of any length.

    Parameters
    ----------
    bags : list of ndarray of shape (tiles_i, n_features)
        Tile features.

    Returns
    -------
    Tensor of shape (len(bags), max(tiles_i), n_features), float32
        Missing tiles are NaN.
    """
    shape = (len(bags), max(len(bag) for bag in bags), bags[0].shape[1])
    padded = np.full(shape, np.nan, dtype=np.float32)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
    return torch.from_numpy(padded)


def identity(batch):
    """Return a batch as it is: data sets of this module collate by themselves."""
    return batch


def tile_statistics(bags):
    """
    Compute the mean and standard deviation of each feature over all tiles.

    Parameters
    ----------
    bags : list of ndarray of shape (tiles_i, n_features)
        Tile features without missing tiles.

    Returns
    -------
    mean, scale : ndarray of shape (n_features,), float64
        A feature that does not vary has scale 1.
    """
    n_tiles = sum(map(len, bags))
    mean = sum(bag.sum(axis=0, dtype=np.float64) for bag in bags) / n_tiles
    variance = sum(np.square(bag - mean).sum(axis=0) for bag in bags) / n_tiles
    constant = np.sqrt(variance) <= 1e-6 * np.maximum(np.abs(mean), 1e-12)
    return mean, np.where(constant, 1.0, np.sqrt(variance))


def split_groups(groups, fraction, random_state):
    """
    Hold out a share of the patients.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Patient of each sample.
    fraction : float
        Share of the patients that is held out: at least one, and never all.
    random_state : RandomState instance
        Draws them.

    Returns
    -------
    train, valid : ndarray of int
        Positions of the samples. `valid` is empty if there is only one patient or
        `fraction` is 0.
    """
    patients, codes = np.unique(groups, return_inverse=True)
    n_valid = 0
    if fraction > 0 and len(patients) > 1:
        n_valid = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    held_out = random_state.permutation(len(patients))[:n_valid]
    is_valid = np.isin(codes, held_out)
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


class KeepBestWeights(Callback):
    """
    Restore the weights of the epoch with the lowest loss, and stop when it stalls.

    The weights are held in memory, so parallel searches share no file.

    Parameters
    ----------
    monitor : {"valid_loss", "train_loss"}
        The loss that counts.
    patience : int or None
        Epochs without a lower loss after which training stops; None never stops.
    max_epochs : int, default=None
        Length of the progress bar.
    verbose : int, default=0
        Whether to show a progress bar.
    """

    def __init__(self, monitor, patience, max_epochs=None, verbose=0):
        self.monitor = monitor
        self.patience = patience
        self.max_epochs = max_epochs
        self.verbose = verbose

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Forget earlier runs."""
        self.best_loss_, self.best_epoch_, self.best_state_ = np.inf, 0, None
        self.stopped_ = False
        self.bar_ = progress(
            total=self.max_epochs, desc="training", verbose=self.verbose, unit="epoch"
        )

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Keep better weights; stop after too many epochs without."""
        epoch, loss = net.history[-1, ("epoch", self.monitor)]
        self.bar_.set_postfix({self.monitor: f"{loss:.4g}", "best": f"{self.best_loss_:.4g}"})
        self.bar_.update()
        if loss < self.best_loss_:
            self.best_loss_, self.best_epoch_ = loss, epoch
            self.best_state_ = copy.deepcopy(net.module_.state_dict())
        elif self.patience is not None and epoch - self.best_epoch_ >= self.patience:
            self.stopped_ = True
            raise KeyboardInterrupt  # skorch's way to end training

    def finish(self, net):
        """
        Put the best weights back and let go of the copies.

        Parameters
        ----------
        net : skorch.NeuralNet
            The net that was trained.
        """
        self.bar_.close()
        if self.best_state_ is not None:
            net.module_.load_state_dict(self.best_state_)
        self.best_state_ = self.bar_ = None
        net.optimizer_.state.clear()
