"""When training runs out of memory: the batch size that would fit."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

from ..utils._out_of_memory import attempt, describe_memory
from ._fitting import build_module
from ._net import make_net
from ._random import RandomStream


def explain_training(model, train, valid, device):
    """Make the error of a training that ran out of memory, once nothing of it is left there."""
    problem = (
        f"batch_size={model.batch_size} does not fit into the memory of {describe_memory(device)}"
    )
    fitting = fitting_batch_size(model, train, valid, device)
    if fitting:
        return MemoryError(
            f"{problem}; batch_size={fitting} does. Pass it; it is not taken unasked, because "
            "another batch size changes what is learned."
        )
    longest = max(data.bags[row].shape[0] for data in (train, valid) for row in data.indices)
    return MemoryError(
        f"{problem}; not even one slide fits, the longest of which has {longest} tiles. Make "
        "super-tiles (SuperTileClusterer), use a smaller network or another device, or end other "
        "processes that use this one."
    )


def fitting_batch_size(model, train, valid, device):
    """Find a batch size that can be trained with, by trial."""
    # Other sizes would be the one batch that did not fit.
    n_slides = max(len(train), len(valid))
    batch_size = model.batch_size // 2
    while batch_size:
        if batch_size < n_slides:
            arguments = model, train, valid, device, batch_size
            _, failure = attempt(_try_steps, *arguments, device=device)
            if failure is None:
                return batch_size
        batch_size //= 2
    return 0


def _try_steps(model, train, valid, device, batch_size):
    """Train another network on the longest bags, as far as memory grows."""
    # Dropout of the user's module draws from the generators, which are as before in the end.
    with RandomStream(model.seed_, device):
        net = make_net(build_module(model), model, seed=model.seed_, device=device)
        net.compiled = False
        net.module_.train()
        # Kept as in training, where the second step finds the batch before, the state of the
        # optimizer and the best weights in memory.
        kept = [train.batch(_longest(train, batch_size))]
        net.train_step(kept[0])
        kept += [value.detach().clone() for value in net.module_.learned_state().values()]
        net.train_step(train.batch(_longest(train, batch_size)))
        if len(valid):
            net.module_.eval()
            net.validation_step(valid.batch(_longest(valid, batch_size)))


def _longest(dataset, n_slides):
    lengths = [dataset.bags[row].shape[0] for row in dataset.indices]
    return np.argsort(lengths, kind="stable")[::-1][:n_slides]
