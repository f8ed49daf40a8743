"""Count what is encoded, and tell whether tiles or the model are waited for."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from contextlib import contextmanager

from ..utils._reporting import progress, tell

# Share of the time from which waiting for tiles is called the bottleneck.
_WAITING = 0.1


class Throughput:
    """Count what is encoded, show it, and tell whether tiles or the model are waited for."""

    def __init__(self, n_slides, verbose=0):
        self.n_slides = n_slides
        self.verbose = verbose
        self.num_workers = 0
        self.n_jobs = 1
        self.batch_size = None
        self.n_stored = self.n_encoded = self.n_tiles = 0
        self.seconds_waiting = self.seconds_model = self.seconds_planning = 0.0
        self._begin = self._shown = time.perf_counter()
        self._spread = None
        self._bar = progress(total=n_slides, desc="Encoding", verbose=verbose, unit="slide")

    def begin(self, n_jobs):
        """Note that the encoding begins, by several processes."""
        self.n_jobs = n_jobs
        self._spread = time.perf_counter()

    def add(self, figures):
        """Add what a process has counted."""
        for name in ("n_tiles", "seconds_model", "seconds_waiting"):
            setattr(self, name, getattr(self, name) + figures[name])
        sizes = [size for size in (self.batch_size, figures["batch_size"]) if size is not None]
        self.batch_size = min(sizes, default=None)
        self._bar.set_postfix_str(self._rate())

    def watch(self, batches):
        """Measure the time spent waiting for batches."""
        first = True
        while True:
            begin, planning = time.perf_counter(), self.seconds_planning
            batch = next(batches, None)
            if batch is None:
                return
            # Planning looks into the store, which is no reading of tiles; and before the first
            # batch there is nothing that could have been read ahead.
            if not first:
                self.seconds_waiting += time.perf_counter() - begin
                self.seconds_waiting -= self.seconds_planning - planning
            first = False
            yield batch

    @contextmanager
    def model(self, n_tiles):
        """Measure the time of one batch in the model."""
        begin = time.perf_counter()
        yield
        now = time.perf_counter()
        self.seconds_model += now - begin
        self.n_tiles += n_tiles
        if now - self._shown > 1:
            self._shown = now
            self._bar.set_postfix_str(self._rate())

    def plan(self, found):
        """Measure the time of looking into the store."""
        while True:
            begin = time.perf_counter()
            item = next(found, None)
            self.seconds_planning += time.perf_counter() - begin
            if item is None:
                return
            yield item

    def finish(self, slide, n_tiles=0, *, stored=False, reason=""):
        """Count a slide."""
        self.n_stored += stored
        self.n_encoded += not stored and not reason
        self._bar.update()
        if self.verbose > 1:
            end = reason or f"{n_tiles} tiles{' from the store' if stored else ''}"
            tell(f"{slide}: {end}")

    def close(self):
        """Take the bar away and sum up."""
        self._bar.close()
        if self.verbose:
            figures = f", {self.n_tiles} tiles, {self._rate()}" if self.n_tiles else ""
            tell(
                f"Encoded {self.n_encoded} of {self.n_slides} slides ({self.n_stored} in the "
                f"store){figures}"
            )

    @property
    def _busy(self):
        return self.seconds_waiting + self.seconds_model

    @property
    def _passed(self):
        """Seconds in which tiles could be encoded."""
        return self._busy if self._spread is None else time.perf_counter() - self._spread

    @property
    def _share(self):
        return self.seconds_waiting / self._busy if self._busy else 0.0

    @property
    def tiles_per_second(self):
        """Tiles encoded a second, waiting for tiles included."""
        return self.n_tiles / self._passed if self.n_tiles else 0.0

    @property
    def bottleneck(self):
        """What limits this rate: "reading" or "model"; "" where no tile was encoded."""
        if not self.n_tiles:
            return ""
        return "reading" if self._share > _WAITING else "model"

    def _rate(self):
        return (
            f"tiles/s={self.tiles_per_second:.0f}, waiting for tiles {self._share:.0%}, "
            f"bottleneck={self.bottleneck}"
        )

    def summary(self):
        """Return all figures."""
        return {
            "n_slides": self.n_slides,
            "n_stored": self.n_stored,
            "n_encoded": self.n_encoded,
            "n_tiles": self.n_tiles,
            "n_jobs": self.n_jobs,
            "num_workers": self.num_workers,
            "batch_size": self.batch_size,
            "seconds": time.perf_counter() - self._begin,
            "seconds_model": self.seconds_model,
            "seconds_waiting": self.seconds_waiting,
            "tiles_per_second": self.tiles_per_second,
            "bottleneck": self.bottleneck,
        }
