"""Encode slides: look them up in the store, read tiles, run the model, keep the features."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, islice

import numpy as np

from ..utils._device import pick_device, use_device
from ..utils._parallel import (
    LostWorkerError,
    cloudpickle,
    count_jobs,
    is_dask,
    map_tasks,
    no_alarm_about_memory,
)
from ..utils._reporting import progress, tell, warn_user
from ._encoders._encoder import Encoder
from ._encoders._inference import TileEncoder
from ._encoders._weights import find_weights, hash_weights, load_encoder
from ._features._feature_bag import FeatureBag, FileBag
from ._features._store import check_store, open_stored, store_key, store_path, write_features
from ._loading import (
    TileBatches,
    count_workers,
    explain_lost_worker,
    load_batches,
    plain_error,
    read_ahead,
)
from ._tiler import TiledSlide

# Below this, starting a process takes longer than reading.
FEW_BATCHES = 4
# Slides that are looked up in the store before their turn.
_LOOK_UPS_AHEAD = 8
# Fraction of the time from which waiting for tiles is called the bottleneck.
_WAITING = 0.1


def label(slide, position):
    """Return the name of a slide."""
    return slide.path if isinstance(slide, TiledSlide) else f"slide {position}"


@dataclass(eq=False)
class SlideEncoder:
    """How slides are encoded and where features are kept; it is sent to workers."""

    encoder: Encoder
    weights: object
    weights_hash: str
    n_features: int
    store: object
    device: str
    dtype: str
    compile: bool
    batch_size: int
    num_workers: object
    _model: object = field(default=None, init=False)

    @property
    def key(self):
        """What identifies the encoder in the store, as text."""
        # Weights that are cast once may round differently in modules that use them otherwise.
        dtype = self.dtype if self.dtype == "float32" else f"{self.dtype}, weights cast once"
        return repr((self.encoder.key, self.weights_hash, dtype))

    def make_bag(self, slide, position, features, reason=""):
        """Return the features of a slide as a bag in memory."""
        origin = {"encoder": self.encoder.name, "weights_hash": self.weights_hash, "reason": reason}
        if not isinstance(slide, TiledSlide):
            return FeatureBag(features, slide=label(slide, position), **origin)
        return FeatureBag(
            features,
            None if slide.coords is None else slide.coords[: len(features)],
            slide.path,
            slide.size_level0,
            slide.tile_edge_um,
            mpp=slide.mpp,
            **origin,
        )

    def load_model(self):
        """Return the model as a function from tiles to features, loaded once."""
        if self._model is None:
            path = find_weights(self.encoder, self.weights)
            if hash_weights(self.encoder, path) != self.weights_hash:
                raise ValueError(
                    f"The weights of the encoder {self.encoder.name!r} have changed since fit. "
                    "Call fit again."
                )
            device = pick_device(self.device)
            self._model = TileEncoder(
                load_encoder(self.encoder, path, device, products=self.dtype),
                self.encoder,
                device=device,
                dtype=self.dtype,
                compile=self.compile,
                batch_size=self.batch_size,
            )
        return self._model

    def has_files(self, slides):
        """Return whether the store has a file for each slide, valid or not."""
        if self.store is None:
            return False
        try:
            return all(self._locate(slide)[0].exists() for slide in slides if len(slide))
        except OSError:
            return False

    def _locate(self, slide):
        key = store_key(slide, self.key)
        return store_path(self.store, slide, key), key

    def look_up(self, slide, position):
        """Return the location (path, key) of a slide in the store, and its bag; None without."""
        if isinstance(slide, TiledSlide):
            slide.check_content()
        if self.store is None:
            return None, None
        path, key = self._locate(slide)
        bag = open_stored(path, key, (len(slide), self.n_features), label(slide, position))
        if bag is None:
            check_store(path)
        return (path, key), bag

    def keep(self, slide, position, features, location):
        """Check the features of a slide, write them to the store and return them as a bag."""
        n_bad = len(features) - int(np.isfinite(features).all(axis=1).sum())
        if n_bad:
            raise ValueError(
                f"{label(slide, position)}: the encoder {self.encoder.name!r} returned features "
                f"that are not finite for {n_bad} of {len(features)} tiles, in {self.dtype}. Check "
                'the weights, or pass dtype="float32".'
            )
        if isinstance(slide, TiledSlide) and not self._is_unchanged(slide, location):
            raise ValueError(
                f"Slide {slide.path!r} changed while it was read. Tile it again when it is "
                "completely written."
            )
        bag = None
        if location is not None:
            path, key = location
            write_features(path, slide, features, key, self.encoder.name, self.weights_hash)
            # Backed by the file, because many slides would not fit into memory.
            bag = open_stored(path, key, features.shape, label(slide, position))
        return self.make_bag(slide, position, features) if bag is None else bag

    def _is_unchanged(self, slide, location):
        try:
            slide.check_content()
            return location is None or store_key(slide, self.key) == location[1]
        except (OSError, ValueError):
            return False

    def count_encoders(self, n_jobs):
        """Return the number of workers that encode."""
        if n_jobs is None and pick_device(self.device) != "cpu" and not is_dask():
            return 1
        return count_jobs(n_jobs)

    def pack(self):
        """Return this as bytes in an array, which joblib sends to each worker once."""
        paths = {
            name: value if value is None else os.path.abspath(value)
            for name, value in (("weights", self.weights), ("store", self.store))
        }
        return np.frombuffer(cloudpickle.dumps(replace(self, **paths)), dtype=np.uint8)


class EncodingRun:
    """One pass over slides: bags, errors and figures, by position."""

    def __init__(self, slide_encoder, slides, *, fail_fast, verbose=0):
        self.slide_encoder = slide_encoder
        self.slides = {position: slide for position, slide in slides if len(slide)}
        self.fail_fast = fail_fast
        self.bags, self.errors = {}, {}
        self.throughput = Throughput(len(slides), verbose)
        # Position -> location in the store, of slides that are being processed.
        self._unfinished = {}

    def run(self, n_jobs=1):
        """Encode all slides, in this process or in workers of joblib."""
        try:
            if n_jobs == 1 or (
                self.slide_encoder.has_files(self.slides.values())
                or self.slide_encoder.count_encoders(n_jobs) == 1
            ):
                self._run_here()
            else:
                self._run_in_workers(n_jobs)
        finally:
            self.throughput.close()

    def _run_here(self):
        names = self._unfinished_names
        # The memory that a GPU fetches from belongs to the current device, too.
        with use_device(pick_device(self.slide_encoder.device)), explain_lost_worker(names):
            with closing(self._plan()) as plan, closing(self._load(plan)) as batches:
                self._encode(self.throughput.watch(batches))

    def _unfinished_names(self):
        return [label(self.slides[position], position) for position in sorted(self._unfinished)]

    def _stopped(self):
        return self.fail_fast and bool(self.errors)

    def _plan(self):
        """Look slides up, and yield the batches (position, start, stop) of those not stored."""
        found = read_ahead(self._look_up, self.slides, _LOOK_UPS_AHEAD)
        batch_size = self.slide_encoder.batch_size
        for position, slide in self.slides.items():
            with self.throughput.measure("seconds_looking_up"):
                location, bag, error = next(found)
            if error is not None or bag is not None:
                self._finish(position, bag, error, stored=error is None)
            else:
                self._unfinished[position] = location
                for start in range(0, len(slide), batch_size):
                    # The rest of a slide that cannot be read is left out.
                    if position in self.errors:
                        break
                    yield position, start, min(start + batch_size, len(slide))
            if self._stopped():
                return

    def _look_up(self, position):
        try:
            return *self.slide_encoder.look_up(self.slides[position], position), None
        except (OSError, ValueError) as error:
            return None, None, error

    def _load(self, plan):
        """Return the batches of the plan, read ahead; by processes if that pays."""
        transform = self.slide_encoder.encoder.transform
        device = pick_device(self.slide_encoder.device)
        first = list(islice(plan, FEW_BATCHES))
        edges = [each.tile_size for each in self.slides.values() if isinstance(each, TiledSlide)]
        num_workers = 0
        # Tiles in memory need no reading.
        if edges and len(first) == FEW_BATCHES:
            tile_bytes = max(edges) ** 2 * 3 * (1 if transform is None else 4)
            num_workers = count_workers(
                self.slide_encoder.num_workers, device, self.slide_encoder.batch_size * tile_bytes
            )
        self.throughput.figures["num_workers"] = num_workers
        return load_batches(
            TileBatches(self.slides, transform),
            chain(first, plan),
            num_workers=num_workers,
            pin_memory=device if device.startswith("cuda") else None,
        )

    def _encode(self, batches):
        """Encode batches and concatenate them to slides."""
        import torch

        parts = []
        for position, start, tiles in batches:
            if position in self.errors:
                continue
            if isinstance(tiles, Exception):
                self._finish(position, error=tiles)
            else:
                model = self.slide_encoder.load_model()
                with self.throughput.measure("seconds_model"):
                    parts = [*(parts if start else []), model(tiles)]
                self.throughput.count(len(tiles), model.batch_size)
                if start + len(tiles) == len(self.slides[position]):
                    self._keep(position, torch.cat(parts).cpu().numpy())
            # Slides before one that cannot be looked up are still encoded.
            if position in self.errors and self.fail_fast:
                return

    def _keep(self, position, features):
        slide, location = self.slides[position], self._unfinished[position]
        try:
            bag = self.slide_encoder.keep(slide, position, features, location)
        except ValueError as error:
            self._finish(position, error=error)
        else:
            self._finish(position, bag)

    def _finish(self, position, bag=None, error=None, *, stored=False):
        """Record the bag or the error of a slide."""
        if error is None:
            self.bags[position] = bag
        else:
            self.errors[position] = error
        self._unfinished.pop(position, None)
        slide, reason = self.slides[position], "" if error is None else str(error)
        self.throughput.finish(label(slide, position), len(slide), stored=stored, reason=reason)

    def _run_in_workers(self, n_jobs):
        """Have workers of joblib encode, one slide per task."""
        packed = self.slide_encoder.pack()
        digest = blake2b(packed).hexdigest()
        positions = list(self.slides)
        tasks = []
        for position, slide in self.slides.items():
            if isinstance(slide, TiledSlide):
                # A worker may run in another folder.
                slide = replace(slide, path=os.path.abspath(slide.path))
            tasks.append((packed, digest, slide, position))
        self.throughput.start_workers(count_jobs(n_jobs))
        name = [label(slide, position) for position, slide in self.slides.items()].__getitem__
        results = map_tasks(_encode_slide, tasks, n_jobs=n_jobs, name=name)
        with no_alarm_about_memory(), closing(results):
            for number, result in results:
                self._receive(positions[number], result)
                if self._stopped():
                    return
        used, requested = self.throughput.figures["batch_size"], self.slide_encoder.batch_size
        if used is not None and used < requested:
            warn_user(
                f"batch_size={requested} did not fit into the memory of a worker, which continued "
                f"with {used} tiles at once. That changes features by rounding only. Pass "
                f"batch_size={used} to start with it."
            )

    def _receive(self, position, result):
        """Record what a worker returned for a slide."""
        if isinstance(result, LostWorkerError):
            self._finish(position, error=result)
            return
        bag, error, figures = result
        self.throughput.add(figures)
        if error is None:
            # The worker knows the slide by its absolute path.
            slide = self.slides[position]
            if bag.path is None:
                bag = self.slide_encoder.make_bag(slide, position, bag.features)
            else:
                bag = FileBag(bag.file, label(slide, position))
        self._finish(position, bag, error, stored=bool(figures["n_stored"]))


# The last SlideEncoder of each thread with its model; one only, because it may fill a device.
_worker = threading.local()


def _encode_slide(packed, digest, slide, position):
    """Encode a slide in a worker; return its bag, its error and the figures."""
    if getattr(_worker, "digest", None) != digest:
        _worker.digest = _worker.slide_encoder = None
        _worker.slide_encoder = pickle.loads(packed)
        _worker.digest = digest
    run = EncodingRun(_worker.slide_encoder, [(position, slide)], fail_fast=True)
    run.run()
    error = plain_error(run.errors[position]) if run.errors else None
    return run.bags.get(position), error, run.throughput.summary()


class Throughput:
    """Figures of a run, its progress bar and its lines on standard error."""

    def __init__(self, n_slides, verbose=0):
        self.figures = dict.fromkeys(("n_stored", "n_encoded", "n_tiles", "num_workers"), 0)
        self.figures |= {"n_slides": n_slides, "n_jobs": 1, "batch_size": None}
        self.figures |= {"seconds_model": 0.0, "seconds_waiting": 0.0, "seconds_looking_up": 0.0}
        self.verbose = verbose
        self._start = self._shown = time.perf_counter()
        self._start_of_workers = None
        self._bar = progress(total=n_slides, desc="Encoding", verbose=verbose, unit="slide")

    @contextmanager
    def measure(self, name):
        """Add the duration of a block to a figure."""
        start = time.perf_counter()
        yield
        self.figures[name] += time.perf_counter() - start

    def watch(self, batches):
        """Yield batches and measure the time of waiting for them."""
        # Before the first batch there is nothing that could have been read ahead.
        yield from islice(batches, 1)
        while True:
            looking_up = self.figures["seconds_looking_up"]
            with self.measure("seconds_waiting"):
                batch = next(batches, None)
            # The store is looked into in between, which is not reading.
            self.figures["seconds_waiting"] -= self.figures["seconds_looking_up"] - looking_up
            if batch is None:
                return
            yield batch

    def count(self, n_tiles, batch_size):
        """Count the tiles of a batch."""
        self.figures["n_tiles"] += n_tiles
        self.figures["batch_size"] = batch_size
        if time.perf_counter() - self._shown > 1:
            self._shown = time.perf_counter()
            self._bar.set_postfix_str(self._rate())

    def start_workers(self, n_jobs):
        """Note that workers start to encode."""
        self.figures["n_jobs"] = n_jobs
        self._start_of_workers = time.perf_counter()

    def add(self, figures):
        """Add the figures of a worker."""
        for name in ("n_tiles", "seconds_model", "seconds_waiting"):
            self.figures[name] += figures[name]
        sizes = {self.figures["batch_size"], figures["batch_size"]} - {None}
        self.figures["batch_size"] = min(sizes, default=None)
        self._bar.set_postfix_str(self._rate())

    def finish(self, slide, n_tiles, *, stored=False, reason=""):
        """Count a slide."""
        self.figures["n_stored"] += stored
        self.figures["n_encoded"] += not stored and not reason
        self._bar.update()
        if self.verbose > 1:
            tell(f"{slide}: {reason or f'{n_tiles} tiles' + ' from the store' * stored}")

    def close(self):
        """Remove the bar and write a summary."""
        self._bar.close()
        if self.verbose:
            n_tiles = self.figures["n_tiles"]
            rate = f", {n_tiles} tiles, {self._rate()}" if n_tiles else ""
            tell(
                "Encoded {n_encoded} of {n_slides} slides ({n_stored} in the store)".format(
                    **self.figures
                )
                + rate
            )

    def _rate(self):
        figures = self.summary()
        busy = figures["seconds_waiting"] + figures["seconds_model"]
        return (
            f"tiles/s={figures['tiles_per_second']:.0f}, waiting for tiles "
            f"{figures['seconds_waiting'] / (busy or 1):.0%}, bottleneck={figures['bottleneck']}"
        )

    def summary(self):
        """Return all figures."""
        now, figures = time.perf_counter(), dict(self.figures)
        del figures["seconds_looking_up"]
        busy = figures["seconds_waiting"] + figures["seconds_model"]
        encoding = busy if self._start_of_workers is None else now - self._start_of_workers
        limit = "reading" if figures["seconds_waiting"] > _WAITING * busy else "model"
        n_tiles = figures["n_tiles"]
        return figures | {
            "seconds": now - self._start,
            "tiles_per_second": n_tiles / encoding if n_tiles else 0.0,
            "bottleneck": limit if n_tiles else "",
        }
