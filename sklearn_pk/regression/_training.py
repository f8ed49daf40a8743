"""Training: batches, the stopping rule, and one loop over the epochs of a set of networks."""

# SPDX-License-Identifier: BSD-3-Clause

import math
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from torch.func import functional_call, vmap
from torch.nn import functional as F

from ..utils._bags import read_bag
from ..utils._device import count_processes, free_memory, occupy, pick_dtype, use_device
from ..utils._out_of_memory import attempt, describe_memory
from ..utils._reporting import progress, warn_user
from ._aggregators import KS, Attention, is_own_aggregator
from ._network import RandomStream, build_network

HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "valid_r", "dur")

# Other aggregators draw numbers or belong to the user, and are trained side by side instead.
STACKABLE = ("mlp", "transformer", "summary_mixing", "attention")

# Bytes of the networks that are trained at once on the CPU, in a stack (which saves time with small
# networks only) and side by side.
_STACK_BUDGET, _SIDE_BUDGET = 2**30, 2**33

# Bags of at least so many tiles are not padded to the longest of the batch but grouped by length.
_LONG_BAG = 512

# Tiles of the batches in which slides are validated on a GPU.
_VALIDATED_TILES = 2**16

# Fraction of the free memory of a GPU for features and expression.
_RESIDENT = 0.3

# Correlations that differ by less are equal: they do not decide which epoch is the best.
_ROUNDING = 1e-6


class BagDataset(torch.utils.data.Dataset):
    """Batches of bags, padded to the longest of them."""

    def __init__(self, bags, targets, indices):
        self.bags = bags
        self.targets = targets
        self.indices = indices
        self.reads_files = not all(isinstance(bags[row], np.ndarray) for row in indices)

    def __len__(self):
        """Count the slides."""
        return len(self.indices)

    def __getitem__(self, position):
        """Return one slide as a batch."""
        return self.batch([position])

    def batch(self, positions, draw=None):
        """Return several slides: (features, mask or None), targets."""
        rows = self.indices[np.asarray(positions)]
        bags = [present_tiles(self.bags[row], row) for row in rows]
        if draw is not None:
            bags = [bag[draw(len(bag))] for bag in bags]
        order, groups = group_by_length([len(bag) for bag in bags])
        padded = [pad_bags([bags[row] for row in group]) for group in groups]
        targets = torch.from_numpy(self.targets[rows[order]])
        return padded[0] if len(padded) == 1 else padded, targets


class ResidentSlides:
    """Slides on a GPU, where batches are made by index without waiting for the host."""

    def __init__(self, bags, targets, rows, device):
        self.device = device
        self._lengths = np.zeros(len(bags), dtype=np.int64)
        self._lengths[rows] = [len(bags[row]) for row in rows]
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._n_tiles = int(self._lengths.sum())
        # The last row stands for tiles that fill up a bag.
        self._tiles = torch.zeros(self._n_tiles + 1, bags[rows[0]].shape[1], device=device)
        for row in rows:
            tiles = np.ascontiguousarray(bags[row], dtype=np.float32)
            self._tiles[self._starts[row] :][: len(tiles)].copy_(torch.from_numpy(tiles))
        self._targets = torch.from_numpy(targets[rows]).to(device)
        self._positions = np.zeros(len(bags), dtype=np.int64)
        self._positions[rows] = np.arange(len(rows))

    def batch(self, rows, draw=None):
        """Return several slides as :meth:`BagDataset.batch`, on the device."""
        drawn = [
            np.arange(length) if draw is None else draw(length) for length in self._lengths[rows]
        ]
        order, groups = group_by_length(list(map(len, drawn)))
        padded = [
            self._gather([self._starts[rows[each]] + drawn[each] for each in group])
            for group in groups
        ]
        targets = self._targets[upload(self._positions[rows[order]], self.device)]
        return padded[0] if len(padded) == 1 else padded, targets

    def _gather(self, tiles):
        longest = max(map(len, tiles))
        index = np.full((len(tiles), longest), self._n_tiles)
        for row, of_bag in zip(index, tiles, strict=True):
            row[: len(of_bag)] = of_bag
        is_even = min(map(len, tiles)) == longest
        index = upload(index, self.device)
        return self._tiles[index], None if is_even else index < self._n_tiles


def upload(array, device):
    """Copy numbers to the device; to CUDA without waiting until they are there."""
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    if tensor.device.type == "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def group_by_length(lengths):
    """Return the order of bags, and groups of them that are padded to the longest of each."""
    # Split, padding costs less than the further passes of the network.
    if max(lengths) < _LONG_BAG or len(lengths) * max(lengths) < 2 * sum(lengths):
        order = np.arange(len(lengths))
        return order, [order]
    order, groups, longest = np.argsort(lengths, kind="stable")[::-1], [], math.inf
    for row in order:
        if lengths[row] < longest / 2:
            longest = lengths[row]
            groups.append([])
        groups[-1].append(row)
    return order, groups


def draw_tiles(n_tiles, generator, length):
    """Draw tiles of a bag without replacement; without a generator, take them evenly spaced."""
    if length <= n_tiles:
        return np.arange(length)
    if generator is None:
        return np.linspace(0, length - 1, n_tiles).astype(np.int64)
    drawn = torch.randperm(length, generator=generator, device="cpu")[:n_tiles]
    return np.sort(drawn.numpy())


class Batches:
    """Iterate over a data set in batches; bags in files are read one batch ahead."""

    def __init__(self, dataset, batch_size, generator=None, *, n_tiles=None, resident=None):
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.resident = resident
        self._draw = None if n_tiles is None else partial(draw_tiles, n_tiles, generator)

    def __len__(self):
        """Count the batches."""
        return -(-len(self.dataset) // self.batch_size)

    def _make(self, positions):
        if self.resident is not None:
            return self.resident.batch(self.dataset.indices[positions], self._draw)
        return self.dataset.batch(positions, self._draw)

    def __iter__(self):
        """Yield batches as :meth:`BagDataset.batch` returns them."""
        n_slides = len(self.dataset)
        if self.generator is None:
            order = np.arange(n_slides)
        else:
            order = torch.randperm(n_slides, generator=self.generator, device="cpu").numpy()
        chunks = [
            order[start : start + self.batch_size] for start in range(0, n_slides, self.batch_size)
        ]
        if not self.dataset.reads_files:
            yield from map(self._make, chunks)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._make, chunks[0])
            for chunk in chunks[1:]:
                batch, coming = coming.result(), reader.submit(self._make, chunk)
                yield batch
            yield coming.result()


def present_tiles(bag, position):
    """Return the features of a slide, read and checked if they are in a file."""
    if isinstance(bag, np.ndarray):
        return bag
    return read_bag(bag, position=position, n_features=bag.shape[1])


def pad_bags(bags):
    """Stack bags of any length."""
    lengths = [len(bag) for bag in bags]
    longest = max(lengths)
    if min(lengths) == longest:
        stacked = np.concatenate(bags).astype(np.float32, copy=False)
        return torch.from_numpy(stacked.reshape(len(bags), longest, -1)), None
    padded = np.empty((len(bags), longest, bags[0].shape[1]), dtype=np.float32)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
        row[len(bag) :] = 0
    mask = torch.from_numpy(np.arange(longest) < np.array(lengths)[:, np.newaxis])
    return torch.from_numpy(padded), mask


def to_device(bags, device):
    """Move a batch of bags."""
    if isinstance(bags, list):
        return [to_device(each, device) for each in bags]
    features, mask = bags
    return upload(features, device), None if mask is None else upload(mask, device)


def mean_correlation(y_true, y_pred):
    """Average Pearson's r over genes."""
    if y_true.device.type != "mps":  # which has no float64
        y_true, y_pred = y_true.double(), y_pred.double()
    # Not by the variance: the mean of equal values may be off by rounding.
    truth_varies = y_true.amax(dim=-2) > y_true.amin(dim=-2)
    prediction_varies = y_pred.amax(dim=-2) > y_pred.amin(dim=-2)
    y_true = y_true - y_true.mean(dim=-2, keepdim=True)
    y_pred = y_pred - y_pred.mean(dim=-2, keepdim=True)
    norms = (y_true.square().sum(dim=-2) * y_pred.square().sum(dim=-2)).sqrt()
    r = (y_true * y_pred).sum(dim=-2) / norms
    return torch.where(prediction_varies, r, 0.0).where(truth_varies, torch.nan).nanmean(dim=-1)


class StoppingRule:
    """Choose the best epoch, and decide when to stop looking for a better one."""

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
        """Return whether an epoch is the best so far."""
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
        # A loss of NaN is outside the tolerance, too.
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


class Log:
    """Epochs of one network, its stopping rule, and its weights after the best epoch."""

    def __init__(self, estimator, variance):
        tolerance = estimator.loss_tolerance * variance
        self.rule = StoppingRule(estimator.early_stopping, estimator.patience, tolerance)
        self.rows = []
        self.best_weights = None

    def add(self, row, weights):
        """Add an epoch; `weights` returns those after it."""
        self.rows.append(row)
        loss = row.get("valid_loss", row["train_loss"])
        if not self.rule.update(row["epoch"], loss, row.get("valid_r", math.nan)):
            return
        if self.best_weights is None:
            self.best_weights = {name: value.detach().clone() for name, value in weights().items()}
        else:
            for name, value in weights().items():
                self.best_weights[name].copy_(value)

    def show(self, bar):
        """Show the last epoch in a progress bar."""
        shown = ("train_loss", "valid_loss", "valid_r")
        row = {name: f"{value:.4g}" for name, value in self.rows[-1].items() if name in shown}
        bar.set_postfix(row | {"best": self.rule.best_epoch})

    def history(self):
        """Return a table with one row per epoch."""
        columns = [name for name in HISTORY_COLUMNS if name in self.rows[0]]
        return pd.DataFrame({name: [row[name] for row in self.rows] for name in columns})


class ExpressionNet(NeuralNetRegressor):
    """The skorch net around a network, which takes batches of bags or arrays."""

    def __init__(self, module, *args, dtype="float32", compiled=False, **kwargs):
        super().__init__(module, *args, **kwargs)
        self.dtype = dtype
        self.compiled = compiled

    def get_iterator(self, dataset, training=False):
        """Return the batches of a data set."""
        if isinstance(dataset, BagDataset):
            generator = torch.Generator("cpu") if training else None
            return Batches(dataset, self.batch_size, generator)
        return super().get_iterator(dataset, training=training)

    def infer(self, x, **fit_params):
        """Predict a batch."""
        network = self._compiled_module() if self.compiled else self.module_
        # Bags of very different lengths come in several groups.
        groups = x if isinstance(x, list) else [x if isinstance(x, tuple) else (x, None)]
        with autocast(self.dtype, self.device):
            predicted = [network(*to_device(bags, self.device), **fit_params) for bags in groups]
        return predicted[0] if len(predicted) == 1 else torch.cat(predicted)

    def _compiled_module(self):
        # Beside the module, which is saved and predicts uncompiled.
        if self.__dict__.get("_compiled_for") is not self.module_:
            self.__dict__["_compiled_for"] = self.module_
            self.__dict__["_compiled"] = torch.compile(self.module_)
        return self.__dict__["_compiled"]


def make_net(network, estimator, device, callbacks=()):
    """Wrap a network in skorch, with the parameters of a regressor."""
    return ExpressionNet(
        network,
        criterion=torch.nn.MSELoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=estimator.weight_decay,
        optimizer__fused=True,
        lr=estimator.lr,
        max_epochs=estimator.max_epochs,
        batch_size=estimator.batch_size,
        train_split=None,
        callbacks=list(callbacks),
        callbacks__epoch_timer=None,
        callbacks__print_log=None,
        callbacks__train_loss=None,
        callbacks__valid_loss=None,
        dtype=estimator.dtype,
        compiled=estimator.compile,
        device=device,
        verbose=0,
    ).initialize()


def load_weights(network, weights):
    """Load what training has changed."""
    network.load_state_dict(network.state_dict() | weights)


def autocast(dtype, device):
    """Compute products in the given precision."""
    if dtype == "auto":
        dtype = pick_dtype(dtype, device)
        # float16 would need gradients to be scaled.
        dtype = "float32" if dtype == "float16" else dtype
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def learning_rate(estimator, epoch):
    """Return the learning rate of an epoch, counted from 1."""
    if estimator.lr_schedule == "constant":
        return estimator.lr
    return estimator.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / estimator.max_epochs))


@dataclass(eq=False)
class Run:
    """A network to train: a regressor for its parameters, its start, and its slides."""

    estimator: object
    start: object  # what prepare() returns
    fold: int
    train: BagDataset
    valid: BagDataset

    @property
    def loss_scale(self):
        """Return the factor that makes gradients independent of the unit of y."""
        # Not as published; and the epsilon of Adam is meant for gradients around 1.
        is_published = self.estimator.compat == "sequoia" or not self.start.variance
        return 1.0 if is_published else 1 / self.start.variance

    def build(self, device="cpu"):
        """Build the network as it is before training."""
        start = self.start
        return build_network(start.module_params, start.embeddings, start.seed, device)


class Trained(NamedTuple):
    """Result of training a network."""

    net: ExpressionNet
    history: pd.DataFrame
    best_epoch: int
    seconds: float


class Single:
    """One network during training, in the skorch net whose callbacks are called."""

    def __init__(self, run, device):
        self.runs = self._trained = [run]
        self.net = make_net(run.build(), run.estimator, device, run.estimator.callbacks or ())
        aggregator = run.start.module_params["aggregator"]
        draws = is_own_aggregator(aggregator)
        self.stream = RandomStream(run.start.seed, device) if draws else nullcontext()
        # Drawn here, since a compiled network would keep the first number.
        self._draws_k = aggregator == "topk"
        self._generator = torch.Generator("cpu").manual_seed(run.start.seed)
        # Calling all callbacks after each step takes as long as a step of a small network.
        self._per_batch = {
            name
            for name in ("on_batch_begin", "on_grad_computed", "on_batch_end")
            if any(
                getattr(type(callback), name) is not getattr(Callback, name)
                for _, callback in self.net.callbacks_
            )
        }

    def given(self, run):
        """Return the net into which the best weights are put."""
        return self.net

    def notify(self, name, batches=None, results=None, **kwargs):
        """Call the callbacks with the arguments that skorch passes."""
        [run] = self._trained
        if name.startswith("on_train"):
            self.net.notify(name, X=run.train, y=None)
        elif name.startswith("on_epoch"):
            valid = run.valid if len(run.valid) else None
            self.net.notify(name, dataset_train=run.train, dataset_valid=valid)
        elif name in self._per_batch:
            [batch] = batches.values()
            if results is not None:
                [(_, losses, predicted)] = results
                kwargs["loss"], kwargs["y_pred"] = losses[0], predicted[0]
            self.net.notify(name, batch=batch, **kwargs)

    def record(self, row):
        """Write an epoch into the history of skorch."""
        for name, value in row.items():
            self.net.history.record(name, value)

    def set_learning_rate(self, lr):
        """Set the learning rate of an epoch."""
        # A constant one may have been changed by a callback.
        if self.runs[0].estimator.lr_schedule != "constant":
            self.net.optimizer_.param_groups[0]["lr"] = lr

    def set_mode(self, training):
        """Switch between training and evaluation."""
        self.net.module_.train(training)

    def evaluate(self, batches):
        """Return [(runs, losses of them, predictions of them)] for the batch of each fold."""
        [(_, y)] = batches.values()
        predicted = self._predict(batches)
        return [(self.runs, F.mse_loss(predicted, y)[None], predicted[None])]

    def _predict(self, batches):
        [(bags, _)] = batches.values()
        options = {}
        if self._draws_k and self.net.module_.training:
            drawn = torch.randint(len(KS), (), generator=self._generator, device="cpu")
            options["ks"] = (KS[int(drawn)],)
        return self.net.infer(bags, **options)

    def zero_grad(self):
        """Drop the gradients."""
        self.net.optimizer_.zero_grad()

    def update(self, batches):
        """Change the weights by the gradients."""
        named = self.net.module_.named_parameters()
        self.notify("on_grad_computed", batches, named_parameters=named, training=True)
        self.net.optimizer_.step()

    def weights(self, run):
        """Return what a run has learned, by name."""
        return self.net.module_.learned_state()

    def drop(self, finished):
        """Remove runs that have stopped."""
        self.runs = [run for run in self.runs if run not in finished]
        if not self.runs:
            _free_optimizer(self.net)


class Stack:
    """Networks during training whose weights are stacked, (n_runs, ...): one product for all."""

    stream = nullcontext()

    def __init__(self, runs, device):
        self.runs = list(runs)
        self._device = device
        networks = [run.build().to(device) for run in runs]
        self._network = networks[0]
        for part in self._network.modules():
            if isinstance(part, Attention):
                part.fused = _has_batched_attention(device)
        self._weights = {
            name: torch.stack([network.get_parameter(name).detach() for network in networks])
            for name, _ in self._network.named_parameters()
        }
        buffers, by_fold = [dict(network.named_buffers()) for network in networks], {}
        # One copy for each fold.
        self._given = {
            run: by_fold.setdefault(run.fold, dict(each))
            for run, each in zip(self.runs, buffers, strict=True)
        }
        for each in buffers:
            each.pop("layer.embeddings", None)
        self._embeddings = [self._given[run].get("layer.embeddings") for run in self.runs]
        if not self._network.predicts_scores:
            for each in buffers:
                each.pop("basis", None)  # for predictions only
        self._buffers = {name: torch.stack([each[name] for each in buffers]) for name in buffers[0]}
        lambdas = [run.start.module_params["lambda_"] for run in runs]
        self._lambdas = torch.tensor(lambdas, device=device)
        self._lr = runs[0].estimator.lr
        self._arrange({})

    def _arrange(self, states):
        """Make an optimizer for each fold over a slice: folds differ in their number of steps."""
        self._weights = {
            name: value.detach().requires_grad_() for name, value in self._weights.items()
        }
        self._slices, self._optimizers = {}, {}
        folds = [run.fold for run in self.runs]
        weight_decay = self.runs[0].estimator.weight_decay
        for fold in dict.fromkeys(folds):
            rows = slice(folds.index(fold), folds.index(fold) + folds.count(fold))
            parts = {
                name: value.detach()[rows].requires_grad_() for name, value in self._weights.items()
            }
            optimizer = torch.optim.AdamW(
                parts.values(), lr=self._lr, weight_decay=weight_decay, fused=True
            )
            for name, state in states.get(fold, {}).items():
                optimizer.state[parts[name]] = state
            self._slices[fold], self._optimizers[fold] = rows, (optimizer, parts)
        # Gene embeddings are those of the fold, and the same for each lambda.
        given = self._embeddings[:1] if len(self._slices) == 1 else self._embeddings
        self._stacked_embeddings = None if given[0] is None else torch.stack(given)

    def given(self, run):
        """Return the buffers of a run, which are not learned."""
        return self._given[run]

    def notify(self, name, *arguments, **kwargs):
        """Do nothing: stacked networks have no callbacks."""

    def record(self, row):
        """Do nothing: stacked networks have no skorch net."""

    def set_learning_rate(self, lr):
        """Set the learning rate of an epoch."""
        self._lr = lr
        for optimizer, _ in self._optimizers.values():
            optimizer.param_groups[0]["lr"] = lr

    def set_mode(self, training):
        """Switch between training and evaluation."""
        self._network.train(training)

    def evaluate(self, batches):
        """Return [(runs, losses of them, predictions of them)] for the batch of each fold."""
        predicted, results, first = self._predict(batches), [], 0
        for fold, rows in self._slices.items():
            if fold not in batches:
                continue
            y = batches[fold][1]
            # Without the slides that fill up the batch of a fold.
            values = predicted[first : first + rows.stop - rows.start, : len(y)]
            losses = F.mse_loss(values, y.expand_as(values), reduction="none").mean(dim=(1, 2))
            results.append((self.runs[rows], losses, values))
            first += rows.stop - rows.start
        return results

    def _predict(self, batches):
        """Predict the slides of each fold that has a batch, (n_runs, n_slides, n_genes)."""
        kept = {fold: rows for fold, rows in self._slices.items() if fold in batches}

        def take(values):
            if len(kept) == len(self._slices):
                return values
            return torch.cat([values[rows] for rows in kept.values()])

        weights = {name: take(value) for name, value in self._weights.items()}
        buffers = {name: take(value) for name, value in self._buffers.items()}
        fused = weights["layer.weight"]
        if self._stacked_embeddings is not None:
            embeddings = self._stacked_embeddings
            embeddings = embeddings if len(embeddings) == 1 else take(embeddings)
            fused = torch.lerp(fused, embeddings, take(self._lambdas)[:, None, None])
        bags = [_whole(batches[fold][0]) for fold in kept]
        if len(kept) == 1:
            [(X, mask)], along = bags, None
        else:
            sizes = [rows.stop - rows.start for rows in kept.values()]
            (X, mask), along = _stack_bags(bags, sizes), 0

        def one(weights, buffers, fused, X, mask):
            return functional_call(self._network, (weights, buffers), (X, mask), {"weight": fused})

        mask_along = None if mask is None else along
        with autocast(self.runs[0].estimator.dtype, self._device):
            return vmap(one, in_dims=(0, 0, 0, along, mask_along))(weights, buffers, fused, X, mask)

    def zero_grad(self):
        """Drop the gradients."""
        for value in self._weights.values():
            value.grad = None

    def update(self, batches):
        """Change the weights of the folds that have a batch by the gradients."""
        for fold in batches:
            optimizer, parts = self._optimizers[fold]
            for name, part in parts.items():
                part.grad = self._weights[name].grad[self._slices[fold]]
            optimizer.step()

    def weights(self, run):
        """Return what a run has learned, by name."""
        row = self.runs.index(run)
        return {name: value.detach()[row] for name, value in self._weights.items()}

    def drop(self, finished):
        """Remove runs that have stopped."""
        kept = [row for row, run in enumerate(self.runs) if run not in finished]
        states = {}
        for fold, (optimizer, parts) in self._optimizers.items():
            rows = [row - self._slices[fold].start for row in kept if self.runs[row].fold == fold]
            states[fold] = {
                name: {
                    key: value if key == "step" else value[rows]
                    for key, value in optimizer.state[part].items()
                }
                for name, part in parts.items()
            }
        self.runs = [self.runs[row] for row in kept]
        if not self.runs:
            return
        self._embeddings = [self._embeddings[row] for row in kept]
        self._weights = {name: value.detach()[kept] for name, value in self._weights.items()}
        self._buffers = {name: value[kept] for name, value in self._buffers.items()}
        self._lambdas = self._lambdas[kept]
        self._arrange(states)


def _has_batched_attention(device):
    """Return whether a stack may use the fused product of attention."""
    return torch.device(device).type == "cuda"


def _whole(bags):
    """Join the groups of a batch, which a stack cannot pass one by one."""
    if not isinstance(bags, list):
        return bags
    return _pad([X for X, _ in bags], [mask for _, mask in bags], torch.cat)


def _stack_bags(bags, sizes):
    """Pad batches of several folds to the same number of slides and tiles, and repeat each."""
    X, mask = _pad([X for X, _ in bags], [mask for _, mask in bags], torch.stack)
    if max(sizes) > 1:
        X, mask = (each if each is None else _repeat(each, sizes) for each in (X, mask))
    return X, mask


def _repeat(values, sizes):
    """Repeat each row so many times, without an index that the device would wait for."""
    return torch.cat(
        [row.expand(size, *row.shape[1:]) for row, size in zip(values.split(1), sizes, strict=True)]
    )


def _pad(features, masks, join):
    """Pad to the most slides and tiles, and join batches; the mask is None if none is needed."""
    n_slides = max(map(len, features))
    n_tiles = max(X.shape[1] for X in features)
    is_even = all(mask is None for mask in masks) and {X.shape[1] for X in features} == {n_tiles}
    padded, present = [], []
    for X, mask in zip(features, masks, strict=True):
        slides = n_slides - len(X) if join is torch.stack else 0
        tiles = n_tiles - X.shape[1]
        padded.append(F.pad(X, (0, 0, 0, tiles, 0, slides)) if slides or tiles else X)
        if not is_even:
            mask = X.new_ones(X.shape[:2], dtype=torch.bool) if mask is None else mask
            # Slides that fill up a batch have tiles, so that nothing is divided by zero.
            present.append(F.pad(F.pad(mask, (0, tiles)), (0, 0, 0, slides), value=True))
    return join(padded), None if is_even else join(present)


def train_set(runs, stacked, device, verbose):
    """Train networks on shared batches, each until its rule stops it; return {run: (Log, net)}."""
    estimator = runs[0].estimator  # all have the same parameters of training
    units = [Stack(runs, device)] if stacked else [Single(run, device) for run in runs]
    nets = {run: unit.given(run) for unit in units for run in unit.runs}
    logs = {run: Log(estimator, run.start.variance) for run in runs}
    batches, held_out = _make_batches(runs, device)
    n_epochs = estimator.max_epochs
    bar = progress(total=n_epochs, desc="training", verbose=verbose, unit="epoch")
    with closing(bar), _notify_of_training(units):
        for epoch in range(1, n_epochs + 1):
            started = time.perf_counter()
            for unit in units:
                unit.set_learning_rate(learning_rate(estimator, epoch))
                unit.notify("on_epoch_begin")
            rows = _run_epoch(units, batches, device, training=True)
            for run, row in _run_epoch(units, held_out, device, training=False).items():
                rows[run] |= row
            seconds = (time.perf_counter() - started) / len(rows)
            for unit in units:
                for run in unit.runs:
                    row = {"epoch": epoch} | rows[run] | {"dur": seconds}
                    logs[run].add(row, partial(unit.weights, run))
                    unit.record(row)
                _end_epoch(unit, logs)
            if len(runs) == 1:
                logs[runs[0]].show(bar)
            bar.update()
            units = [unit for unit in units if unit.runs]
            if not units:
                break
    for net in nets.values():
        if isinstance(net, ExpressionNet):
            _free_optimizer(net)
    return {run: (logs[run], nets[run]) for run in runs}


def _free_optimizer(net):
    """Free what only training needs, as large as the weights several times over."""
    net.optimizer_.state.clear()
    net.optimizer_.zero_grad()


def _make_batches(runs, device):
    """Return the batches of each fold for training, shuffled, and for validation."""
    train, valid, resident = {}, {}, _put_on_device(runs, device)
    for run in runs:
        if run.fold not in train:
            estimator = run.estimator
            generator = torch.Generator("cpu").manual_seed(run.start.seed)
            options = {"n_tiles": estimator.n_tiles, "resident": resident}
            train[run.fold] = Batches(run.train, estimator.batch_size, generator, **options)
            batch_size = estimator.batch_size
            if resident is not None:
                longest = run.start.module_params["n_tiles"]
                batch_size = max(batch_size, _VALIDATED_TILES // longest)
            if len(run.valid):
                valid[run.fold] = Batches(run.valid, batch_size, **options)
    return train, valid


def _put_on_device(runs, device):
    """Return the slides of all runs on the device, None where they stay on the host."""
    if torch.device(device).type != "cuda" or any(
        data.reads_files for run in runs for data in (run.train, run.valid)
    ):
        return None
    data = [data for run in runs for data in (run.train, run.valid)]
    rows = np.unique(np.concatenate([each.indices for each in data]))
    bags, targets = data[0].bags, data[0].targets
    n_bytes = 4 * sum(bags[row].size for row in rows) + targets[rows].nbytes
    if n_bytes > _RESIDENT * free_memory(device):
        return None
    return ResidentSlides(bags, targets, rows, device)


@contextmanager
def _notify_of_training(units):
    """Call the callbacks before and after training; after Ctrl-C too, as skorch does."""
    interrupt = None
    for unit in units:
        unit.notify("on_train_begin")
    try:
        yield
    except KeyboardInterrupt as error:
        interrupt = error
    for unit in units:
        unit.notify("on_train_end")
    if interrupt is not None:
        raise interrupt


def _run_epoch(units, batches, device, training):
    """Go once through the batches of each fold; return the loss of each run, {run: dict}."""
    folds = {run.fold for unit in units for run in unit.runs}
    totals, found = defaultdict(float), defaultdict(list)
    for unit in units:
        unit.set_mode(training)
    for part in _next_batches({f: each for f, each in batches.items() if f in folds}, device):
        for unit in units:
            for runs, losses, predicted in _step(unit, part, training):
                runs, y = tuple(runs), part[runs[0].fold][1]
                # Not .item(), which would wait for the device after each step.
                totals[runs] = totals[runs] + losses.detach() * len(y)
                if not training:
                    found[runs].append((y, predicted))
    rows = {}
    for runs, total in totals.items():
        columns = {"train_loss": total / len(runs[0].train)}
        if not training:
            y, predicted = zip(*found[runs], strict=True)
            y, predicted = torch.cat(y), torch.cat(predicted, dim=1)
            columns = {
                "valid_loss": total / len(runs[0].valid),
                "valid_r": torch.stack([mean_correlation(y, each) for each in predicted]),
            }
        columns = {name: values.tolist() for name, values in columns.items()}
        for number, run in enumerate(runs):
            rows[run] = {name: values[number] for name, values in columns.items()}
    return rows


def _step(unit, part, training):
    """Evaluate a batch per fold; in training, change the weights. Return what it evaluates."""
    unit.notify("on_batch_begin", part, training=training)
    if training:
        unit.zero_grad()
    with unit.stream if training else nullcontext(), torch.set_grad_enabled(training):
        results = unit.evaluate(part)
        if training:
            # The loss of a network depends on its own weights only, so one sum serves all.
            first, *others = [losses.sum() * runs[0].loss_scale for runs, losses, _ in results]
            sum(others, first).backward()
    if training:
        unit.update(part)
    unit.notify("on_batch_end", part, results, training=training)
    return results


def _end_epoch(unit, logs):
    """Call the callbacks, and remove the networks that have stopped."""
    try:
        unit.notify("on_epoch_end")
    except KeyboardInterrupt:  # how callbacks of skorch end the training
        unit.drop(unit.runs)
    finished = [run for run in unit.runs if logs[run].rule.stopped]
    if finished:
        unit.drop(finished)


def _next_batches(batches, device):
    """Yield the next batch of each fold, until the last has none left."""
    iterators = {fold: iter(each) for fold, each in batches.items()}
    while iterators:
        part = {}
        for fold, iterator in list(iterators.items()):
            batch = next(iterator, None)
            if batch is None:
                del iterators[fold]
            else:
                bags, y = batch
                part[fold] = to_device(bags, device), upload(y, device)
        if part:
            yield part


class NetworkSize(NamedTuple):
    """How much a training step has to compute."""

    n_weights: int
    layer: int  # numbers in the output of a layer, for one batch
    output: int
    scores: int  # of attention, tile by tile, for one batch


def network_size(module_params, embeddings, batch_size):
    """Measure a network, without memory for its weights if it is not the user's."""
    # The module of the user may have weights already, which are not on the meta device.
    own = is_own_aggregator(module_params["aggregator"])
    network = build_network(module_params, embeddings, seed=0, device="cpu" if own else "meta")
    attends = not own and module_params["aggregator"] == "transformer"
    return NetworkSize(
        n_weights=sum(weight.numel() for weight in network.parameters()),
        layer=batch_size * module_params["n_tiles"] * network.norm.normalized_shape[0],
        output=batch_size * len(network.layer.weight),
        scores=batch_size * module_params["n_heads"] * module_params["n_tiles"] ** 2 * attends,
    )


@contextmanager
def few_threads(module_params, embeddings, batch_size, device):
    """Compute a small network on one thread, where more would wait for each other."""
    n_threads = torch.get_num_threads()
    on_cpu = torch.device(device).type == "cpu"
    own = is_own_aggregator(module_params["aggregator"])
    if n_threads > 1 and on_cpu and not own:
        size = network_size(module_params, embeddings, batch_size)
        if size.layer <= 2**15 and size.n_weights <= 2**18:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def train_networks(runs, device, verbose=0):
    """Train networks, as many at once as memory permits; yield each run with its result."""
    with occupy(device):
        pending = plan_sets(runs, device)
        while pending:
            stacked, together = pending.pop(0)
            started = time.perf_counter()
            with few_threads(*_shape_of_run(together[0]), device), use_device(device):
                arguments = together, stacked, device, verbose
                trained, failure = attempt(train_set, *arguments, device=device)
            if failure is not None:
                if len(together) == 1:
                    raise _explain_out_of_memory(together[0], device) from failure
                _warn_of_memory(len(together), device)
                waiting = [together, *(others for _, others in pending)]
                pending = [(False, [run]) for others in waiting for run in others]
                continue
            seconds = (time.perf_counter() - started) / len(together)
            for run in together:
                with use_device(device):
                    result = _finish(run, *trained.pop(run), device, seconds)
                yield run, result


def _shape_of_run(run):
    return run.start.module_params, run.start.embeddings, run.estimator.batch_size


def _finish(run, log, net, device, seconds):
    """Put the best weights into the network."""
    if log.best_weights is None:
        monitored = "valid_loss" if len(run.valid) else "train_loss"
        raise ValueError(
            f"Training did not reach a finite {monitored} in any epoch. Look for huge values in "
            f"X or y, or use a smaller learning rate than lr={run.estimator.lr!r}."
        )
    if isinstance(net, ExpressionNet):
        load_weights(net.module_, log.best_weights)
    else:
        # A stack keeps what is not learned; nothing is drawn, nor copied through the host.
        network = run.build("meta")
        network.load_state_dict(log.best_weights | net, assign=True)
        net = make_net(network, run.estimator, device)
    return Trained(net, log.history(), int(log.rule.best_epoch), seconds)


def plan_sets(runs, device):
    """Decide which runs are trained at once, and whether in a stack: [(stacked, runs), ...]."""
    if len(runs) == 1:
        return [(False, runs)]
    folds = {}
    for run in runs:
        folds.setdefault(run.fold, []).append(run)
    folds = list(folds.values())
    first = runs[0]
    size = network_size(*_shape_of_run(first))
    n_bytes = _bytes_of_run(first.estimator, size, _has_batched_attention(device))
    n_folds = 0
    if first.estimator.aggregator in STACKABLE:
        # On the CPU, as measured, only a step of a small network is mostly overhead.
        is_small = size.layer <= 2**17 and size.n_weights <= 2**20
        budget = _budget(device, _STACK_BUDGET if is_small else 0)
        n_folds = int(budget / (len(folds[0]) * n_bytes))
        if len({_shapes(run) for run in runs}) > 1:
            n_folds = min(n_folds, 1)
    if n_folds:
        sets = [
            [run for fold in folds[number : number + n_folds] for run in fold]
            for number in range(0, len(folds), n_folds)
        ]
        return [(len(together) > 1, together) for together in sets]
    # Side by side, if a batch is worth sharing: if it is read from files or copied to a device.
    n_runs = 1
    if _shares_batches(runs, device):
        n_runs = max(1, int(_budget(device, _SIDE_BUDGET) / n_bytes))
    return [
        (False, fold[number : number + n_runs])
        for fold in folds
        for number in range(0, len(fold), n_runs)
    ]


def _shares_batches(runs, device):
    return any(run.train.reads_files for run in runs) or torch.device(device).type != "cpu"


def _budget(device, on_cpu):
    """Return the bytes that networks may take at once."""
    if torch.device(device).type == "cuda":
        return 0.6 * free_memory(device) / max(1, count_processes(device))
    return on_cpu


def _shapes(run):
    """Return what makes networks of one design differ in shape, from fold to fold."""
    params, embeddings = run.start.module_params, run.start.embeddings
    n_positions = params["n_tiles"] if params["use_positions"] else None
    return n_positions, None if embeddings is None else embeddings.shape


def _bytes_of_run(estimator, size, fused=False):
    n_layers = {"mlp": 4, "attention": 8}.get(estimator.aggregator, 16 * estimator.depth)
    # Attention keeps its scores before and after the softmax, and needs the gradient of one layer.
    n_scores = 0 if fused else 2 * estimator.depth + 1
    # Weights, gradients, two moments, the best ones, the fused weight, its gradient, and slack.
    per_step = n_layers * size.layer + 4 * size.output + n_scores * size.scores
    return 4 * (8 * size.n_weights + per_step)


def _warn_of_memory(n_networks, device):
    warn_user(
        f"{n_networks} networks at once do not fit into the memory of {describe_memory(device)}. "
        "The search continues with one at a time, which takes longer and changes results by "
        "rounding only. End other processes that use the device to train more at once."
    )


def _explain_out_of_memory(run, device):
    batch_size = run.estimator.batch_size
    longest = max(
        data.bags[row].shape[0] for data in (run.train, run.valid) for row in data.indices
    )
    return MemoryError(
        f"batch_size={batch_size} does not fit into the memory of {describe_memory(device)}; the "
        f"longest slide has {longest} tiles. Use a smaller batch_size, which changes what is "
        "learned, or make super-tiles (SuperTileClusterer). A smaller network, another device, or "
        "ending other processes that use this one may help, too."
    )
