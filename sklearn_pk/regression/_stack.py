"""Several networks in one program: the same batches, stacked weights, each with its own end."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from ..utils._out_of_memory import attempt, describe_memory, free_device_memory
from ..utils._reporting import warn_user
from ._aggregators import Attention
from ._data import BagDataset
from ._epochs import train_engine
from ._fitting import build_module, note_training
from ._memory import explain_training
from ._net import autocast, few_threads, network_size, new_optimizer, random_stream
from ._stopping import StoppingRule

# Modules that draw numbers or are the user's are trained side by side instead.
STACKABLE = ("mlp", "transformer", "summary_mixing")

# Bytes for networks that are trained at once on the CPU: for a stack, which gains time for small
# ones only, and for larger ones side by side.
_STACK_BUDGET, _SIDE_BUDGET = 2**30, 2**33


@dataclass(eq=False)
class Run:
    """One network to train."""

    model: object
    fold: int
    train: BagDataset
    valid: BagDataset
    seconds: float = 0.0

    def __post_init__(self):
        """Start without any epoch."""
        self.reset()

    def reset(self):
        """Forget all that a training has left."""
        model = self.model
        self.rule = StoppingRule(model.early_stopping, model.patience, model.loss_tolerance)
        self.history, self.module = [], None


class SideBySide:
    """Train the runs one after the other on each batch."""

    def __init__(self, runs, device):
        self.runs = list(runs)
        for run in runs:
            run.module = build_module(run.model).to(device)
        self._modules = [run.module for run in runs]
        self._optimizers = [
            new_optimizer(module.parameters(), run.model)
            for run, module in zip(runs, self._modules, strict=True)
        ]
        self._streams = [random_stream(run.model, device) for run in runs]
        self._device = device

    def set_learning_rate(self, lr):
        """Set the learning rate of all."""
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = lr

    def step(self, batches):
        """Make one step with the batch of each fold; return the loss of each run, (n_runs,)."""
        losses = []
        for number, run in enumerate(self.runs):
            if run.fold not in batches:
                losses.append(torch.zeros((), device=self._device))
                continue
            bags, y = batches[run.fold]
            module, optimizer = self._modules[number].train(), self._optimizers[number]
            optimizer.zero_grad()
            with self._streams[number] or nullcontext():
                loss = F.mse_loss(_predict(module, run.model, bags, self._device), y)
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def predict(self, batches):
        """Predict the batch of each fold; return (batch, n_genes) for each run, or None."""
        with torch.no_grad():
            return [
                _predict(module.eval(), run.model, batches[run.fold][0], self._device)
                if run.fold in batches
                else None
                for run, module in zip(self.runs, self._modules, strict=True)
            ]

    def weights(self, run):
        """Return what a run has learned, by name."""
        return self._modules[self.runs.index(run)].learned_state()

    def drop(self, finished):
        """Let go of runs that have ended."""
        kept = [number for number, run in enumerate(self.runs) if run not in finished]
        for name in ("runs", "_modules", "_optimizers", "_streams"):
            setattr(self, name, [getattr(self, name)[number] for number in kept])


class Stack:
    """Train the runs with one product for all of them, over weights of shape (n_runs, ...)."""

    def __init__(self, runs, device):
        self.runs = list(runs)
        self._device = device
        modules = [build_module(run.model).to(device) for run in runs]
        self._module = modules[0]
        for part in self._module.modules():
            if isinstance(part, Attention):
                part.fused = False  # torch has no batching rule for it
        names = [name for name, _ in self._module.named_parameters()]
        self._weights = {
            name: torch.stack([module.get_parameter(name).detach() for module in modules])
            for name in names
        }
        buffers = [dict(module.named_buffers()) for module in modules]
        self._embeddings = [each.pop("layer.embeddings", None) for each in buffers]
        for each in buffers:
            each.pop("basis", None)  # of predictions alone
        self._buffers = {name: torch.stack([each[name] for each in buffers]) for name in buffers[0]}
        self._lambdas = torch.tensor([run.model.lambda_ for run in runs], device=device)
        self._lr = runs[0].model.lr
        self._arrange({})

    def _arrange(self, states):
        """Make one optimizer a fold, over slices of the stack: folds differ in their steps."""
        self._weights = {
            name: value.detach().requires_grad_() for name, value in self._weights.items()
        }
        self._slices, self._optimizers = {}, {}
        folds = [run.fold for run in self.runs]
        for fold in dict.fromkeys(folds):
            rows = slice(folds.index(fold), folds.index(fold) + folds.count(fold))
            parts = {name: value.detach()[rows] for name, value in self._weights.items()}
            optimizer = new_optimizer([p.requires_grad_() for p in parts.values()], self._model)
            optimizer.param_groups[0]["lr"] = self._lr
            for name, part in parts.items():
                if fold in states:
                    optimizer.state[part] = states[fold][name]
            self._slices[fold], self._optimizers[fold] = rows, (optimizer, parts)
        # The embeddings are those of the fold, and the same for each lambda.
        shared = len(self._slices) == 1
        given = self._embeddings[:1] if shared else self._embeddings
        self._stacked_embeddings = None if given[0] is None else torch.stack(given)

    @property
    def _model(self):
        return self.runs[0].model

    def set_learning_rate(self, lr):
        """Set the learning rate of all."""
        self._lr = lr
        for optimizer, _ in self._optimizers.values():
            optimizer.param_groups[0]["lr"] = lr

    def _forward(self, batches):
        """Return predictions (n, batch, n_genes) of the runs that have a batch, and which."""
        folds = [fold for fold in self._slices if fold in batches]
        if len(folds) == len(self._slices):
            rows, weights, buffers = slice(None), self._weights, self._buffers
        else:
            rows = [n for n, run in enumerate(self.runs) if run.fold in batches]
            weights = {name: value[rows] for name, value in self._weights.items()}
            buffers = {name: value[rows] for name, value in self._buffers.items()}
        fused = weights["layer.weight"]
        if self._stacked_embeddings is not None:
            embeddings = self._stacked_embeddings
            embeddings = embeddings if len(embeddings) == 1 else embeddings[rows]
            fused = torch.lerp(fused, embeddings, self._lambdas[rows, None, None])
        runs = self.runs if isinstance(rows, slice) else [self.runs[row] for row in rows]
        if len(folds) == 1:
            (X, mask), along = batches[folds[0]][0], None
        else:
            X, mask = _stack_bags([batches[run.fold][0] for run in runs])
            along = 0

        def one(weights, buffers, fused, X, mask):
            return functional_call(self._module, (weights, buffers), (X, mask), {"weight": fused})

        mask_along = None if mask is None else along
        with autocast(self._model, self._device):
            predicted = vmap(one, in_dims=(0, 0, 0, along, mask_along))(
                weights, buffers, fused, X, mask
            )
        return predicted, runs

    def step(self, batches):
        """Make one step with the batch of each fold; return the loss of each run, (n_runs,)."""
        self._module.train()
        predicted, runs = self._forward(batches)
        losses = [
            F.mse_loss(part[: len(batches[run.fold][1])], batches[run.fold][1])
            for run, part in zip(runs, predicted, strict=True)
        ]
        losses = torch.stack(losses)
        losses.sum().backward()
        for fold in self._slices:
            if fold not in batches:
                continue
            optimizer, parts = self._optimizers[fold]
            for name, part in parts.items():
                part.grad = self._weights[name].grad[self._slices[fold]]
            optimizer.step()
        for value in self._weights.values():
            value.grad = None
        found = torch.zeros(len(self.runs), device=self._device)
        found[[self.runs.index(run) for run in runs]] = losses.detach()
        return found

    def predict(self, batches):
        """Predict the batch of each fold; return (batch, n_genes) for each run, or None."""
        self._module.eval()
        with torch.no_grad():
            predicted, runs = self._forward(batches)
        found = {
            run: part[: len(batches[run.fold][1])]
            for run, part in zip(runs, predicted, strict=True)
        }
        return [found.get(run) for run in self.runs]

    def weights(self, run):
        """Return what a run has learned, by name."""
        row = self.runs.index(run)
        return {name: value.detach()[row] for name, value in self._weights.items()}

    def drop(self, finished):
        """Let go of runs that have ended."""
        kept = [number for number, run in enumerate(self.runs) if run not in finished]
        if not kept:
            self.runs = []
            return
        states = {}
        for fold, (optimizer, parts) in self._optimizers.items():
            first = self._slices[fold].start
            rows = [n - first for n in kept if self.runs[n].fold == fold]
            states[fold] = {
                name: {
                    key: value if key == "step" else value[rows]
                    for key, value in optimizer.state[part].items()
                }
                for name, part in parts.items()
            }
        self.runs = [self.runs[number] for number in kept]
        self._embeddings = [self._embeddings[number] for number in kept]
        self._weights = {name: value.detach()[kept] for name, value in self._weights.items()}
        self._buffers = {name: value[kept] for name, value in self._buffers.items()}
        self._lambdas = self._lambdas[kept]
        self._arrange(states)


def _predict(module, model, bags, device):
    with autocast(model, device):
        return module(*bags)


def _stack_bags(bags):
    """Pad batches of several folds to the same number of slides and tiles."""
    n_slides = max(len(X) for X, _ in bags)
    n_tiles = max(X.shape[1] for X, _ in bags)
    # Slides that fill up a batch have tiles, so that nothing is divided by zero; their
    # predictions are cut off.
    stacked = bags[0][0].new_zeros(len(bags), n_slides, n_tiles, bags[0][0].shape[2])
    mask = torch.ones(stacked.shape[:3], dtype=torch.bool, device=stacked.device)
    for row, (X, here) in enumerate(bags):
        stacked[row, : len(X), : X.shape[1]] = X
        mask[row, : len(X), X.shape[1] :] = False
        if here is not None:
            mask[row, : len(X), : X.shape[1]] = here
    return stacked, None if bool(mask.all()) else mask


def plan_stacks(runs, device):
    """Decide which runs are trained in one stack."""
    folds = {}
    for run in runs:
        folds.setdefault(run.fold, []).append(run)
    folds = list(folds.values())
    model = runs[0].model
    size = network_size(model)
    n_bytes = _bytes_of_run(model, size)
    n_folds = 0
    if model.aggregator in STACKABLE:
        budget = _budget(device, _STACK_BUDGET if size.is_small else 0)
        n_folds = int(budget / (len(folds[0]) * n_bytes))
        if len({_shapes(run.model) for run in runs}) > 1:
            n_folds = min(n_folds, 1)
    if n_folds:
        return [
            (Stack, [run for fold in folds[first : first + n_folds] for run in fold])
            for first in range(0, len(folds), n_folds)
        ]
    n_runs = 1
    if _shares_batches(runs, device):
        n_runs = max(1, int(_budget(device, _SIDE_BUDGET) / n_bytes))
    return [
        (SideBySide, fold[first : first + n_runs])
        for fold in folds
        for first in range(0, len(fold), n_runs)
    ]


def _shares_batches(runs, device):
    """Tell whether a batch is worth sharing: if it has to be read, or brought to a device."""
    return any(run.train.reads_files for run in runs) or torch.device(device).type != "cpu"


def _budget(device, on_cpu):
    """Return the bytes that networks may take at once."""
    if torch.device(device).type == "cuda":
        return 0.6 * torch.cuda.mem_get_info(device)[0]
    return on_cpu


def _shapes(model):
    """Return what makes networks of one design differ in shape, from fold to fold."""
    n_positions = model._module_params["n_tiles"] if model.compat == "sequoia" else None
    return n_positions, None if model.embeddings_ is None else model.embeddings_.shape


def _bytes_of_run(model, size):
    n_layers = 4 if model.aggregator == "mlp" else 16 * model.depth
    # Weights, gradients, two moments, the best ones, the fused weight, its gradient, and slack.
    return 4 * (8 * size.n_weights + n_layers * size.layer + 4 * size.output)


def train_together(runs, device, *, verbose=0):
    """Train several networks, and yield each run with its best weights."""
    plans, has_warned = deque(plan_stacks(runs, device)), False
    while plans:
        engine_class, together = plans.popleft()
        started = time.perf_counter()
        with few_threads(together[0].model, device):
            arguments = engine_class, together, device, verbose
            best, failure = attempt(_train_all, *arguments, device=device)
        if failure is not None:
            for run in together:
                run.reset()
            free_device_memory(device)
            plans = _plan_fewer(plans, engine_class, together, device, failure)
            if len(together) > 1 and not has_warned:
                has_warned = True
                _warn_of_fewer(together, plans, device)
            continue
        seconds = (time.perf_counter() - started) / len(together)
        for run in together:
            note_training(run.model, run.history, run.rule)
            run.model._adopt_weights(best.pop(run), device, run.module)
            run.module, run.seconds = None, seconds
            yield run


def _train_all(engine_class, together, device, verbose):
    return train_engine(engine_class(together, device), together, device, verbose)


def _plan_fewer(plans, engine_class, together, device, failure):
    """Plan with half of the runs at once, for all that are left."""
    if len(together) == 1 and engine_class is SideBySide:
        [run] = together
        raise explain_training(run.model, run.train, run.valid, device) from failure
    # Without a stack, a single network takes less.
    fewer_class = engine_class if len(together) > 1 else SideBySide
    most = -(-len(together) // 2)
    waiting = [runs for _, runs in [(engine_class, together), *plans]]
    return deque((fewer_class, part) for runs in waiting for part in _cut(runs, most))


def _cut(runs, most):
    """Cut runs in halves until there are few enough, between folds as long as there are two."""
    if len(runs) <= most:
        return [runs]
    folds = list(dict.fromkeys(run.fold for run in runs))
    first = folds[: len(folds) // 2]
    middle = sum(run.fold in first for run in runs) or len(runs) // 2
    return _cut(runs[:middle], most) + _cut(runs[middle:], most)


def _warn_of_fewer(together, plans, device):
    fewer = max(len(runs) for _, runs in plans)
    way = "in a stack" if plans[0][0] is Stack else "side by side"
    warn_user(
        f"{len(together)} networks at once do not fit into the memory of "
        f"{describe_memory(device)}. The search goes on with {fewer} at once, {way}, which "
        "takes longer and changes results by rounding only. End other processes that use the "
        "device to train more at once."
    )
