"""Training one network through skorch."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

from ..utils._out_of_memory import attempt
from ._data import BagDataset
from ._fitting import build_module, note_training, prepare
from ._memory import explain_training
from ._net import few_threads, make_net, random_stream
from ._stopping import EarlyStopping, EndOfTraining, StoppingRule


def train_alone(model, train, valid, device):
    """Train the network of a model."""
    _, failure = attempt(_train, model, train, valid, device, device=device)
    if failure is not None:
        raise explain_training(model, train, valid, device) from failure


def _train(model, train, valid, device):
    watch = EarlyStopping(
        StoppingRule(model.early_stopping, model.patience, model.loss_tolerance), model.verbose
    )
    # First of all, so that the rule sees the epoch in which a callback ends the training.
    callbacks = [watch, *(model.callbacks or ()), EndOfTraining(watch.rule)]
    net = make_net(
        build_module(model),
        model,
        seed=model.seed_,
        device=device,
        train_split=valid if len(valid) else None,
        callbacks=callbacks,
    )
    net.random_stream = random_stream(model, device)
    try:
        with few_threads(model, device):
            net.partial_fit(train, y=None)
    finally:
        watch.finish(net)
    # The duration is noted at the end of an epoch.
    epochs = [row for row in net.history if "dur" in row]
    ended = watch.rule.stopped or net.ended_by_callback_
    if len(epochs) < model.max_epochs and not ended:
        raise KeyboardInterrupt  # skorch swallowed the user's Ctrl-C
    net.set_params(train_split=None)
    note_training(model, epochs, watch.rule)
    model.net_ = net


def train_on(model, data, device):
    """Fit the prior of a model, then train its network."""
    parts = prepare(model, data)
    targets = data.values.astype(np.float32, copy=False)
    train, valid = (BagDataset(data.bags, targets, rows) for rows in parts)
    train_alone(model, train, valid, device)
