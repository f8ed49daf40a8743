"""Training one network through skorch."""

# SPDX-License-Identifier: BSD-3-Clause

import torch

from ._fitting import build_module, note_training
from ._net import few_threads, make_net
from ._stopping import EarlyStopping, EndOfTraining, StoppingRule


def train_alone(model, train, valid, device):
    """
    Train the network of a model.

    Parameters
    ----------
    model : PriorKnowledgeRegressor
        After :func:`prepare`. Gets `net_` and what :func:`note_training` notes.
    train, valid : BagDataset
        The samples to train on, and those held out for early stopping.
    device : str
        Torch device.
    """
    watch = EarlyStopping(
        StoppingRule(model.early_stopping, model.patience, model.loss_tolerance), model.verbose
    )
    # First of all, so that the rule sees the epoch in which a callback ends the training.
    callbacks = [watch, *(model.callbacks or ()), EndOfTraining(watch.rule)]
    model.net_ = make_net(
        build_module(model),
        model,
        seed=model.seed_,
        device=device,
        train_split=valid if len(valid) else None,
        callbacks=callbacks,
    )
    devices = [device] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), few_threads(model, device):
            torch.manual_seed(model.seed_)
            model.net_.partial_fit(train, y=None)
    finally:
        watch.finish(model.net_)
    epochs = model.net_.history
    ended = watch.rule.stopped or (model.callbacks and model.net_.ended_by_callback_)
    if len(epochs) < model.max_epochs and not ended:
        raise KeyboardInterrupt  # skorch swallowed the user's Ctrl-C
    model.net_.set_params(train_split=None)
    note_training(model, epochs, watch.rule)
