"""The skorch net around the network."""

# SPDX-License-Identifier: BSD-3-Clause

import math
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback, LRScheduler
from skorch.helper import predefined_split

from ._aggregators import is_own_aggregator
from ._data import Batches
from ._fitting import build_module
from ._random import RandomStream
from ._stopping import EarlyStopping, EndOfTraining, mean_correlation

# Asking all callbacks after each step would take as long as a small network does.
PER_BATCH = ("on_batch_begin", "on_grad_computed", "on_batch_end")


class ExpressionNet(NeuralNetRegressor):
    """Train an :class:`ExpressionModule` on batches of bags."""

    def __init__(self, module, *args, seed=0, dtype="float32", compiled=False, **kwargs):
        super().__init__(module, *args, **kwargs)
        self.seed = seed
        self.dtype = dtype
        self.ended_by_callback_ = False
        self.random_stream = None
        self._heard = set(PER_BATCH)
        self.compiled = compiled

    def get_iterator(self, dataset, training=False):
        """Return the batches of a data set, shuffled for training."""
        generator = torch.Generator().manual_seed(self.seed) if training else None
        return Batches(dataset, self.batch_size, generator)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Go through all batches once, and record the mean loss and correlation."""
        if iterator is None:
            return
        total, n_slides, predicted = 0.0, 0, []
        self._set_training(training)
        self._heard = {name for name in PER_BATCH if self._is_heard(name)}
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            # Not .item(), which would wait for the device after each step.
            total = total + step["loss"].detach() * len(batch[1])
            n_slides += len(batch[1])
            if not training:
                predicted.append(step["y_pred"])
            self.notify("on_batch_end", batch=batch, training=training, **step)
        self.history.record(f"{prefix}_loss", float(total) / n_slides)
        if not training:
            truth = torch.from_numpy(iterator.dataset.targets[iterator.dataset.indices])
            r = mean_correlation(truth.to(self.device), torch.cat(predicted))
            self.history.record(f"{prefix}_r", float(r))

    def train_step(self, batch, **fit_params):
        """Make one step; :meth:`run_single_epoch` has put the network into its training mode."""
        self.optimizer_.zero_grad()
        with self.random_stream or nullcontext():
            step = self._evaluate(batch, **fit_params)
            step["loss"].backward()
        self.notify(
            "on_grad_computed",
            named_parameters=self.module_.named_parameters(),
            batch=batch,
            training=True,
        )
        self.optimizer_.step()
        return step

    def validation_step(self, batch, **fit_params):
        """Predict held-out slides."""
        with torch.no_grad():
            return self._evaluate(batch, **fit_params)

    def _evaluate(self, batch, **fit_params):
        bags, y = batch
        y_pred = self.infer(bags, **fit_params)
        return {"loss": self.criterion_(y_pred, y.to(self.device)), "y_pred": y_pred}

    def notify(self, method_name, **cb_kwargs):
        """Call the callbacks, and note when one of them ends the training."""
        if method_name in PER_BATCH and method_name not in self._heard:
            return
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                # In ours, it is the user's Ctrl-C.
                is_own = isinstance(callback, EarlyStopping | EndOfTraining)
                self.ended_by_callback_ = method_name == "on_epoch_end" and not is_own
                raise

    def _is_heard(self, method_name):
        nobody = getattr(Callback, method_name)
        return any(getattr(type(each), method_name) is not nobody for _, each in self.callbacks_)

    def infer(self, x, **fit_params):
        """Predict a batch."""
        network = self._compiled_module() if self.compiled else self.module_
        with autocast(self, self.device):
            return network(*to_device(x, self.device), **fit_params)

    def _compiled_module(self):
        # Beside the module, which is saved and predicts, as it is.
        if self.__dict__.get("_compiled_for") is not self.module_:
            self.__dict__["_compiled_for"] = self.module_
            self.__dict__["_compiled"] = torch.compile(self.module_)
        return self.__dict__["_compiled"]


def to_device(bags, device):
    """Move a batch of bags."""
    features, mask = bags
    return features.to(device), None if mask is None else mask.to(device)


class NetworkSize(NamedTuple):
    """How much a training step has to compute."""

    n_weights: int
    layer: int
    output: int

    @property
    def is_small(self):
        """Whether a step is mostly overhead, on the CPU, as measured."""
        return self.layer <= 2**17 and self.n_weights <= 2**20

    @property
    def needs_one_thread(self):
        """Whether more threads would wait for each other rather than compute."""
        return self.layer <= 2**15 and self.n_weights <= 2**18


def network_size(model):
    """Look at the network of a model, without making it if it is ours."""
    # The user's module may have weights already, which are not on the meta device.
    own = is_own_aggregator(model._module_params["aggregator"])
    with nullcontext() if own else torch.device("meta"):
        module = build_module(model)
    return NetworkSize(
        n_weights=sum(weight.numel() for weight in module.parameters()),
        layer=model.batch_size * model._module_params["n_tiles"] * module.norm.normalized_shape[0],
        output=model.batch_size * len(module.layer.weight),
    )


@contextmanager
def few_threads(model, device):
    """Train a small network on one thread, where more would wait for each other."""
    n_threads = torch.get_num_threads()
    on_cpu = torch.device(device).type == "cpu"
    own = is_own_aggregator(model._module_params["aggregator"])
    if n_threads > 1 and on_cpu and not own and network_size(model).needs_one_thread:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def autocast(model, device):
    """Compute products in the precision that was asked for."""
    if model.dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def new_optimizer(parameters, model):
    """Make the optimizer that :func:`make_net` asks skorch for."""
    return torch.optim.AdamW(parameters, lr=model.lr, weight_decay=model.weight_decay, fused=True)


def learning_rate_factor(model, epoch):
    """Return what the learning rate of an epoch is multiplied by."""
    if model.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(epoch / model.max_epochs, 1)))


def schedule_callbacks(model):
    """Return the callbacks that change the learning rate after each epoch."""
    if model.lr_schedule == "constant":
        return []
    factor = partial(learning_rate_factor, model)
    return [LRScheduler(torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor)]


def random_stream(model, device):
    """Return where a network draws numbers while it is trained, or None if it draws none."""
    aggregator = model._module_params["aggregator"]
    draws = is_own_aggregator(aggregator) or aggregator == "topk"
    return RandomStream(model.seed_, device) if draws else None


def make_net(module, model, *, seed, device, train_split=None, callbacks=()):
    """Wrap a module with the settings of a regressor, ready to train or to predict."""
    net = ExpressionNet(
        module,
        criterion=torch.nn.MSELoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=model.weight_decay,
        optimizer__fused=True,
        lr=model.lr,
        max_epochs=model.max_epochs,
        batch_size=model.batch_size,
        train_split=None if train_split is None else predefined_split(train_split),
        callbacks=[*schedule_callbacks(model), *callbacks],
        callbacks__print_log=None,
        callbacks__train_loss=None,
        callbacks__valid_loss=None,
        seed=seed,
        dtype=model.dtype,
        compiled=model.compile,
        device=device,
        verbose=0,
    )
    return net.initialize()
