"""Epochs of several networks at once, each with its own end."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from contextlib import closing

import torch
from torch.nn import functional as F

from ..utils._reporting import progress
from ._data import Batches
from ._net import learning_rate_factor, to_device
from ._stopping import mean_correlation


def train_engine(engine, runs, device, verbose):
    """Train all networks of an engine until each has ended."""
    model, best = runs[0].model, {}
    folds = {run.fold: run for run in runs}
    batches = {
        fold: Batches(run.train, model.batch_size, torch.Generator().manual_seed(run.model.seed_))
        for fold, run in folds.items()
    }
    held_out = {
        fold: Batches(run.valid, model.batch_size) for fold, run in folds.items() if len(run.valid)
    }
    bar = progress(total=model.max_epochs, desc="training", verbose=verbose, unit="epoch")
    with closing(bar):
        for epoch in range(1, model.max_epochs + 1):
            started = time.perf_counter()
            engine.set_learning_rate(model.lr * learning_rate_factor(model, epoch - 1))
            here = {run.fold for run in engine.runs}
            totals = torch.zeros(len(engine.runs), device=device)
            for part in _in_step({fold: batches[fold] for fold in here}, device):
                sizes = [len(part[run.fold][1]) if run.fold in part else 0 for run in engine.runs]
                totals += engine.step(part) * torch.tensor(sizes, device=device)
            rows = [
                {"train_loss": total / len(run.train)}
                for run, total in zip(engine.runs, totals.tolist(), strict=True)
            ]
            _validate(engine, {f: held_out[f] for f in here if f in held_out}, rows, device)
            seconds = (time.perf_counter() - started) / len(engine.runs)
            for run, row in zip(engine.runs, rows, strict=True):
                run.history.append({"epoch": epoch} | row | {"dur": seconds})
                loss = row.get("valid_loss", row["train_loss"])
                if run.rule.update(epoch, loss, row.get("valid_r", torch.nan)):
                    _keep(best, run, engine.weights(run))
            bar.update()
            finished = [run for run in engine.runs if run.rule.stopped]
            if finished:
                engine.drop(finished)
            if not engine.runs:
                break
    return best


def _keep(best, run, weights):
    if run not in best:
        best[run] = {name: value.clone() for name, value in weights.items()}
        return
    for name, value in weights.items():
        best[run][name].copy_(value)


def _in_step(batches, device):
    """Yield the next batch of each fold, until the last has none left."""
    iterators = {fold: iter(each) for fold, each in batches.items()}
    while iterators:
        part = {}
        for fold, iterator in list(iterators.items()):
            batch = next(iterator, None)
            if batch is None:
                del iterators[fold]
            else:
                part[fold] = to_device(batch[0], device), batch[1].to(device)
        if part:
            yield part


def _validate(engine, batches, rows, device):
    if not batches:
        return
    predicted = [[] for _ in engine.runs]
    truth = {fold: [] for fold in batches}
    totals = [0.0] * len(engine.runs)
    for part in _in_step(batches, device):
        for fold, (_, y) in part.items():
            truth[fold].append(y)
        for number, values in enumerate(engine.predict(part)):
            if values is not None:
                y = part[engine.runs[number].fold][1]
                totals[number] = totals[number] + F.mse_loss(values, y) * len(y)
                predicted[number].append(values)
    truth = {fold: torch.cat(parts) for fold, parts in truth.items()}
    for run, row, total, parts in zip(engine.runs, rows, totals, predicted, strict=True):
        if parts:
            row["valid_loss"] = float(total) / len(run.valid)
            row["valid_r"] = float(mean_correlation(truth[run.fold], torch.cat(parts)))
