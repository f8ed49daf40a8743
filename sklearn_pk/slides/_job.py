"""Many slides as one stream of batches, without batches that cross slides."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice

from ..utils._parallel import LostWorkerError, count_jobs, map_tasks, no_alarm_about_memory
from ._loading import (
    FEW_BATCHES,
    TileBatches,
    count_workers,
    explain_lost_worker,
    load_batches,
    read_ahead,
)
from ._throughput import Throughput
from ._tiler import TiledSlide

# Slides that are looked up in the store before their turn.
_LOOK_UPS_AHEAD = 8


def label(slide, position):
    """Name a slide."""
    return slide.path if isinstance(slide, TiledSlide) else f"slide {position}"


class EncodingJob:
    """Slides to be encoded: what is known of them, what is done, what failed."""

    def __init__(self, slides, *, look_up, keep, batch_size, fail_fast, verbose=0):
        self.slides = slides if isinstance(slides, dict) else dict(enumerate(slides))
        self.look_up = look_up
        self.keep = keep
        self.batch_size = batch_size
        self.fail_fast = fail_fast
        self.results, self.errors = {}, {}
        self.throughput = Throughput(len(slides), verbose)
        # The places in the store of what is to be encoded and not done yet.
        self._in_work = {}

    def run(self, load, *, transform, num_workers, device):
        """Encode what is not in the store, in order."""
        try:
            with explain_lost_worker(self._names_in_work), closing(self._cut()) as plan:
                batches = self._read(plan, transform, num_workers, device)
                with closing(batches):
                    self._take(self.throughput.watch(batches), load)
        finally:
            self.throughput.close()

    def spread(self, encode, shared, adopt, n_jobs):
        """Have slides looked up and encoded by workers of joblib, one a task."""
        try:
            positions = [position for position, slide in self.slides.items() if len(slide)]
            tasks = [self._task(shared, at) for at in positions]
            self.throughput.begin(count_jobs(n_jobs))
            name = [label(self.slides[at], at) for at in positions].__getitem__
            work = map_tasks(encode, tasks, n_jobs=n_jobs, name=name)
            with no_alarm_about_memory(), closing(work) as done:
                for number, outcome in done:
                    self._adopt(positions[number], outcome, adopt)
                    if self._stopped():
                        return
        finally:
            self.throughput.close()

    def _task(self, shared, position):
        slide = self.slides[position]
        if isinstance(slide, TiledSlide):
            # A worker may be in another folder.
            slide = replace(slide, path=os.path.abspath(slide.path))
        return (*shared, slide, position)

    def _adopt(self, position, outcome, adopt):
        """Take over what a worker has made of a slide."""
        if isinstance(outcome, LostWorkerError):
            self._fail(position, outcome)
            return
        result, figures = outcome
        self.throughput.add(figures)
        if isinstance(result, Exception):
            self._fail(position, result)
        else:
            adopted = adopt(self.slides[position], position, result)
            self._finish(position, adopted, stored=bool(figures["n_stored"]))

    def _names_in_work(self):
        return [label(self.slides[position], position) for position in sorted(self._in_work)]

    def _stopped(self):
        return self.fail_fast and bool(self.errors)

    def _try_look_up(self, position):
        try:
            return self.look_up(self.slides[position], position)
        except (OSError, ValueError) as error:
            return error

    def _missing(self):
        """Look slides up and yield those that have to be encoded."""
        positions = [position for position, slide in self.slides.items() if len(slide)]
        looked_up = self.throughput.plan(read_ahead(self._try_look_up, positions, _LOOK_UPS_AHEAD))
        for position, found in zip(positions, looked_up, strict=True):
            if isinstance(found, Exception):
                self._fail(position, found)
            elif found[1] is not None:
                self._finish(position, found[1], stored=True)
            else:
                self._in_work[position] = found[0]
                yield position
            if self._stopped():
                return

    def _cut(self):
        """Yield the batches of slides that have to be encoded."""
        for position in self._missing():
            n_tiles = len(self.slides[position])
            for start in range(0, n_tiles, self.batch_size):
                # The rest of a slide whose first batches could not be read is left out.
                if position in self.errors:
                    break
                yield position, start, min(start + self.batch_size, n_tiles)

    def _read(self, plan, transform, num_workers, device):
        """Read the batches of the plan ahead, by processes if they pay."""
        first = list(islice(plan, FEW_BATCHES))
        slides = self.slides.values()
        edges = [slide.tile_size for slide in slides if isinstance(slide, TiledSlide)]
        # Tiles in memory need no reading.
        if edges and len(first) == FEW_BATCHES:
            n_bytes = self.batch_size * max(edges) ** 2 * 3 * (1 if transform is None else 4)
            self.throughput.num_workers = count_workers(num_workers, device, n_bytes)
        return load_batches(
            TileBatches(self.slides, transform),
            chain(first, plan),
            num_workers=self.throughput.num_workers,
            pin_memory=device.startswith("cuda"),
        )

    def _take(self, batches, load):
        """Encode batches and put them together again to slides."""
        import torch

        encode, parts = None, []
        for position, start, tiles in batches:
            if position in self.errors:
                continue
            if isinstance(tiles, Exception):
                self._fail(position, tiles)
            else:
                encode = encode or load()
                with self.throughput.model(len(tiles)):
                    parts = [*(parts if start else []), encode(tiles)]
                self.throughput.batch_size = getattr(encode, "batch_size", None)
                if start + len(tiles) == len(self.slides[position]):
                    self._keep(position, torch.cat(parts).cpu().numpy())
            if position in self.errors and self.fail_fast:
                return

    def _keep(self, position, features):
        try:
            result = self.keep(self.slides[position], position, features, self._in_work[position])
        except ValueError as error:
            self._fail(position, error)
        else:
            self._finish(position, result)

    def _finish(self, position, result, *, stored=False):
        self.results[position] = result
        self._count(position, stored=stored)

    def _fail(self, position, error):
        self.errors[position] = error
        self._count(position, reason=str(error))

    def _count(self, position, **outcome):
        self._in_work.pop(position, None)
        slide = self.slides[position]
        self.throughput.finish(label(slide, position), len(slide), **outcome)
