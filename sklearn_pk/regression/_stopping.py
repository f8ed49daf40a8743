"""When to stop training, and which weights to keep."""

# SPDX-License-Identifier: BSD-3-Clause

import math

import torch
from skorch.callbacks import Callback

from ..utils._reporting import progress


def mean_correlation(y_true, y_pred):
    """Average Pearson's r over genes."""
    if y_true.device.type != "mps":  # which has no float64
        y_true, y_pred = y_true.double(), y_pred.double()
    # Not by the variance: the mean of equal values may be off by rounding.
    varies = y_true.amax(dim=-2) > y_true.amin(dim=-2)
    told_apart = y_pred.amax(dim=-2) > y_pred.amin(dim=-2)
    y_true = y_true - y_true.mean(dim=-2, keepdim=True)
    y_pred = y_pred - y_pred.mean(dim=-2, keepdim=True)
    norms = (y_true.square().sum(dim=-2) * y_pred.square().sum(dim=-2)).sqrt()
    r = (y_true * y_pred).sum(dim=-2) / norms
    return torch.where(told_apart, r, 0.0).where(varies, torch.nan).nanmean(dim=-1)


# Correlations that differ by less are equal: they do not decide which epoch is the best.
_ROUNDING = 1e-6


class StoppingRule:
    """Choose the best epoch, and tell when to stop looking for a better one."""

    def __init__(self, criterion, patience, tolerance):
        self.criterion = criterion
        self.patience = patience
        self.tolerance = tolerance
        self.best_epoch, self.best_loss, self.best_score = 0, math.inf, -math.inf
        self.stopped = False
        self._lowest_loss = math.inf
        self._watches_score = False
        self._last_progress = self._n_outside = 0

    def update(self, epoch, loss, score=math.nan):
        """Look at one more epoch."""
        improved = self._is_better(loss, score)
        self._lowest_loss = min(self._lowest_loss, loss)
        if improved:
            self.best_epoch, self.best_loss = epoch, loss
            self.best_score = -math.inf if math.isnan(score) else score
            self._last_progress = epoch
        self._decide(epoch)
        return improved

    def _is_better(self, loss, score):
        if not self._watches_score:
            return loss < self.best_loss
        # A loss that is NaN is outside, too.
        inside = loss <= min(self._lowest_loss, loss) + self.tolerance
        self._n_outside += not inside
        return inside and score > self.best_score + _ROUNDING

    def _decide(self, epoch):
        if self.criterion is None:
            return
        exhausted = epoch - self._last_progress >= self.patience
        if self.criterion == "loss" or self._watches_score:
            self.stopped = exhausted or self._n_outside >= self.patience
        elif exhausted:
            self._watches_score = True
            self._last_progress = epoch


class BestWeights:
    """Copy of the learned state of a module, in memory: parallel searches share no file."""

    def __init__(self, module):
        self._module = module
        self._copies = None

    def keep(self):
        """Copy the weights as they are now."""
        now = self._module.learned_state()
        if self._copies is None:
            self._copies = {name: value.detach().clone() for name, value in now.items()}
        else:
            for name, value in now.items():
                self._copies[name].copy_(value)

    def restore(self):
        """Put the copies back, if there are any, and let go of them."""
        if self._copies is not None:
            self._module.load_state_dict(self._copies, strict=False)
        self._copies = None


class EarlyStopping(Callback):
    """Apply a stopping rule to the training of a net, and restore the weights of its best epoch."""

    def __init__(self, rule, verbose=0):
        self.rule = rule
        self.verbose = verbose

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Open the progress bar."""
        self.weights_ = BestWeights(net.module_)
        self.bar_ = progress(
            total=net.max_epochs, desc="training", verbose=self.verbose, unit="epoch"
        )

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Keep better weights."""
        row = net.history[-1]
        loss = row.get("valid_loss", row["train_loss"])
        if self.rule.update(row["epoch"], loss, row.get("valid_r", math.nan)):
            self.weights_.keep()
        shown = {key: f"{row[key]:.4g}" for key in SHOWN if key in row}
        self.bar_.set_postfix(shown | {"best": self.rule.best_epoch})
        self.bar_.update()

    def finish(self, net):
        """Put the best weights back and let go of the copies."""
        self.bar_.close()
        self.weights_.restore()
        self.weights_ = self.bar_ = None
        net.optimizer_.state.clear()
        net.optimizer_.zero_grad()


class EndOfTraining(Callback):
    """End the training where a rule says so; runs after all other callbacks."""

    def __init__(self, rule):
        self.rule = rule

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Stop."""
        if self.rule.stopped:
            raise KeyboardInterrupt  # skorch's way


# What an epoch is told by, in the progress bar.
SHOWN = ("train_loss", "valid_loss", "valid_r")
