"""From tiles to the features of a foundation model."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from functools import partial
from hashlib import blake2b
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..utils._device import pick_device, pick_dtype
from ..utils._reporting import warn_user
from ._encoders._inference import TileEncoder
from ._encoders._lookup import Encoder, as_encoder, measure_width
from ._encoders._weights import find_weights, identify_weights, load_encoder
from ._features._feature_bag import FeatureBag, FileBag
from ._features._store import open_stored, store_key, store_path, write_features
from ._inputs import failures_frame, warn_failures
from ._job import EncodingJob, label
from ._spread import count_encoders, encode_slide, pack
from ._tiled import TiledSlide

_EXPECTED = (
    "Expected a list of TiledSlide, as SlideTiler gives it, or of RGB tiles of shape (n_tiles, "
    "height, width, 3) and dtype uint8"
)


def check_tiled(X):
    """Check a list of tiled slides."""
    if isinstance(X, str | TiledSlide) or not hasattr(X, "__len__"):
        raise TypeError(f"{_EXPECTED}, got {X!r}. Put a single slide into a list.")
    if not len(X):
        raise ValueError(f"{_EXPECTED}, got no slide (n_samples=0, at least 1 is required).")
    slides = []
    for position, slide in enumerate(X):
        if not isinstance(slide, TiledSlide):
            if isinstance(slide, str | os.PathLike):
                raise TypeError(
                    f"{_EXPECTED}, got the path {slide!r} at position {position}. Put a SlideTiler "
                    "in front: make_pipeline(SlideTiler(), FoundationFeaturizer())."
                )
            slide = np.asarray(slide)
            if slide.ndim != 4 or slide.shape[-1] != 3 or slide.dtype != np.uint8:
                raise TypeError(
                    f"{_EXPECTED}, got an array of shape {slide.shape} and dtype {slide.dtype} at "
                    f"position {position}."
                )
        slides.append(slide)
    return slides


def _reason(slide):
    return getattr(slide, "reason", "") or "It has no tiles."


def _failures(slides, reasons):
    rows = [(label(slides[position], position), reasons[position]) for position in sorted(reasons)]
    return failures_frame(rows)


def _make_bag(slide, position, features, reason=""):
    if not isinstance(slide, TiledSlide):
        return FeatureBag(features, slide=label(slide, position), reason=reason)
    return FeatureBag(
        features,
        slide.coords[: len(features)],
        slide.path,
        slide.size_level0,
        slide.tile_edge_um,
        reason,
    )


def _adopt(slide, position, bag):
    """Take a bag over from a worker, which knows the slide by its absolute path."""
    if bag.path is None:
        return _make_bag(slide, position, bag.features)
    return FileBag(bag.file, label(slide, position))


class FoundationFeaturizer(TransformerMixin, BaseEstimator):
    """
    Turn the tiles of slides into features of a pretrained encoder.

    Parameters
    ----------
    encoder : str, Encoder or torch.nn.Module, default="efficientnet-lite0"
        A name of :func:`list_encoders`, any model name of timm, an :class:`Encoder` that
        describes one, or a module that maps (batch, 3, height, width) to (batch, n_features).
        A module is fed as its ``pretrained_cfg`` says, or else with tiles as they are,
        normalised by ImageNet's mean and standard deviation. The default comes with pretrained
        weights.

    weights : str, path-like or None, default=None
        File with the weights, or a folder with one such file: safetensors, or a torch file
        that holds tensors only. They have to fit exactly. Nothing is ever downloaded.

    store : str, path-like or None, default=None
        Folder that keeps the features, one HDF5 file a slide. What is there is not computed
        again, and bags are backed by these files. Without one, every call of :meth:`transform`
        computes all and keeps it in memory: a search, which transforms each slide many times,
        wants a store.

    device : str, default="auto"
        Torch device. "auto" takes a CUDA device if there is one.

    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision the model computes in; features are float32 always. "auto" is float32 on the
        CPU, and on a CUDA device bfloat16 or, where it lacks that, float16, by torch's autocast.
        It is part of what the store knows features by.

    batch_size : int, default=32
        Number of tiles in a batch. Batches do not cross slides, so the features of a slide
        do not depend on the others; another batch size changes them by rounding only. Where the
        memory of the device does not suffice it is halved, with a warning.

    compile : bool, default=False
        Whether to compile the model by ``torch.compile``, which takes up to minutes and pays
        for many tiles only. Smaller batches are filled up to `batch_size` then. It changes
        features by rounding only.

    num_workers : int or None, default=None
        Number of processes that read tiles ahead of the model, across slides; 0 reads in a
        thread of this process. None is 0 for a model on the CPU, which has use for all cores
        itself, and else one process a core, up to 8. Processes are not started for few tiles,
        nor within processes that may have no children, such as Dask's.

    errors : {"raise", "empty"}, default="raise"
        What to do about slides without tiles: "raise" names all of them before any tile is
        encoded; "empty" warns, gives a bag of shape (0, n_features) and notes the reason in
        `failures_`, for slides that cannot be read as well.

    n_jobs : int, default=None
        Number of workers that encode, one slide each at a time, as joblib takes it. Each loads
        the model and picks its own `device`. None is 1, unless in a
        ``joblib.parallel_config``, such as that of a Dask cluster; one that starts processes of
        this machine is not followed where they would have to share its GPU. 1 is this process
        always.

    verbose : int, default=0
        1 shows a progress bar on a terminal, with tiles a second and what limits them, and
        writes a line at the end to standard error; 2 writes a line a slide too.

    Attributes
    ----------
    encoder_ : Encoder
        What is known about the encoder.

    dtype_ : str
        Precision the model computes in.

    weights_hash_ : str
        Hash of its weights.

    n_features_out_ : int
        Number of features.

    failures_ : DataFrame with the columns ``slide`` and ``reason``
        Slides of the last call of :meth:`fit` or :meth:`transform` without features.

    throughput_ : dict
        Figures of the last call of :meth:`transform`: n_slides, of them n_stored (found in the
        store) and n_encoded, n_tiles that were encoded, n_jobs, num_workers, batch_size that
        fitted into memory, seconds, seconds_model and seconds_waiting (for tiles) of all workers
        together, tiles_per_second while encoding, and bottleneck: "reading" if more than a
        tenth of the time was spent waiting for tiles, else "model".

    See Also
    --------
    SlideTiler : Makes the tiles.
    SuperTileClusterer : Reduces the features of a slide to a few super-tiles.
    list_encoders : The encoders known by name.
    read_features : Reads the files of the store.

    Notes
    -----
    The store knows features again by the content of the slide, its tiles, the encoder, the
    hash of its weights, `dtype` and the version of the format, so a changed file or parameter
    is never served stale. Files are written under a temporary name and renamed: two processes
    may share a store, and a killed run loses no more than the slide in work.

    Weights are loaded once in a process, and not at all if the store has all features.

    On Linux, the processes that read are forked, so a script needs no
    ``if __name__ == "__main__"``; elsewhere it does where `num_workers` is 1 or more.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.slides import FoundationFeaturizer, SlideTiler
    >>> model = make_pipeline(SlideTiler(max_tiles=4, random_state=0), FoundationFeaturizer())
    >>> [bag] = model.fit_transform([load_cmu_slide().path])
    >>> bag.shape
    (4, 1280)
    """

    _parameter_constraints = {
        "encoder": [str, Encoder, HasMethods(["state_dict", "forward"])],
        "weights": [str, os.PathLike, None],
        "store": [str, os.PathLike, None],
        "device": [str],
        "dtype": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "compile": ["boolean"],
        "num_workers": [Interval(Integral, 0, None, closed="left"), None],
        "errors": [StrOptions({"raise", "empty"})],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        encoder="efficientnet-lite0",
        *,
        weights=None,
        store=None,
        device="auto",
        dtype="auto",
        batch_size=32,
        compile=False,
        num_workers=None,
        errors="raise",
        n_jobs=None,
        verbose=0,
    ):
        self.encoder = encoder
        self.weights = weights
        self.store = store
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.compile = compile
        self.num_workers = num_workers
        self.errors = errors
        self.n_jobs = n_jobs
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """
        Check that the encoder, its weights, the device and the tiles are there.

        Parameters
        ----------
        X : list of TiledSlide, or list of ndarray of shape (n_tiles, height, width, 3)
            Tiled slides, or the RGB tiles of each slide as uint8.
        y : None
            Ignored.

        Returns
        -------
        self : FoundationFeaturizer
            The estimator.

        Raises
        ------
        FileNotFoundError
            If the weights do not exist.
        MemoryError
            If they do not fit into the memory of the device.
        TypeError
            If X is no list of tiled slides.
        ValueError
            If the encoder is unknown, its weights are missing or do not fit, the device is not
            there, or slides have no tiles and `errors` is "raise".
        """
        slides = check_tiled(X)
        device = pick_device(self.device)
        if self.store is not None and Path(self.store).exists() and not Path(self.store).is_dir():
            raise ValueError(f"store must be a folder, got the file {str(self.store)!r}.")
        self.encoder_ = as_encoder(self.encoder, self.weights)
        self.weights_hash_ = identify_weights(self.encoder_, self.weights)
        self.n_features_out_ = measure_width(self.encoder_)
        self.dtype_ = pick_dtype(self.dtype, device)
        reasons = self._check_empty(slides)
        self.failures_ = _failures(slides, reasons)
        if self.store is None:
            # Weights that do not fit show here; with a store they may never be needed.
            self._load_model(device)
        else:
            self._encoder_key()
        return self

    def transform(self, X):
        """
        Encode the tiles of each slide.

        Parameters
        ----------
        X : list of TiledSlide, or list of ndarray of shape (n_tiles, height, width, 3)
            Tiled slides, or the RGB tiles of each slide as uint8.

        Returns
        -------
        bags : list of FeatureBag
            One a slide, in order.

        Raises
        ------
        TypeError
            If X is no list of tiled slides.
        ValueError
            If slides have no tiles or cannot be read and `errors` is "raise".
        OSError
            If the store cannot be written, or a slide cannot be found or opened and `errors` is
            "raise".
        MemoryError
            If not even a single tile fits into the memory of the device.
        RuntimeError
            If a process that reads tiles is killed, a worker is killed by each attempt at a slide
            and `errors` is "raise", or the model cannot be compiled.
        """
        check_is_fitted(self)
        slides = check_tiled(X)
        reasons = self._check_empty(slides)
        job = EncodingJob(
            slides,
            look_up=self._look_up,
            keep=self._keep,
            batch_size=self.batch_size,
            fail_fast=self.errors == "raise",
            verbose=self.verbose,
        )
        try:
            self._encode(job)
        finally:
            self.throughput_ = job.throughput.summary()
        if job.errors and self.errors == "raise":
            raise job.errors[min(job.errors)]
        reasons |= {position: str(error) for position, error in job.errors.items()}
        self.failures_ = _failures(slides, reasons)
        warn_failures(self.failures_.to_numpy().tolist(), "features")
        nothing = np.empty((0, self.n_features_out_), dtype=np.float32)
        return [
            job.results[position]
            if position in job.results
            else _make_bag(slide, position, nothing, reasons[position])
            for position, slide in enumerate(slides)
        ]

    def _encode(self, job):
        """Encode in this process, or in several where there are."""
        device = self._pick_device()
        if self._is_all_stored(job.slides) or count_encoders(self.n_jobs, device) == 1:
            job.run(
                partial(self._load_model, device),
                transform=self.encoder_.transform,
                num_workers=self.num_workers,
                device=device,
            )
            return
        packed = pack(self)
        job.spread(encode_slide, (packed, blake2b(packed).hexdigest()), _adopt, self.n_jobs)
        used = job.throughput.batch_size
        if used is not None and used < self.batch_size:
            warn_user(
                f"batch_size={self.batch_size} did not fit into the memory of a worker, which went "
                f"on with {used} at once. That changes features by rounding only. Pass "
                f"batch_size={used} to start with that."
            )

    def _is_all_stored(self, slides):
        """Whether each slide has a file in the store, good or not; workers have no part then."""
        if self.store is None:
            return False
        try:
            return all(self._place(slide)[0].exists() for slide in slides.values() if len(slide))
        except OSError:
            return False

    def _place(self, slide):
        key = store_key(slide, self._encoder_key())
        return store_path(self.store, slide, key), key

    def _pick_device(self):
        return pick_device(self.device)

    def _check_empty(self, slides):
        """Refuse slides without tiles, or return position -> reason."""
        reasons = {
            position: _reason(slide) for position, slide in enumerate(slides) if not len(slide)
        }
        if reasons and self.errors == "raise":
            rows = _failures(slides, reasons).to_numpy().tolist()
            lines = "\n".join(f"- {slide!r}: {reason}" for slide, reason in rows)
            raise ValueError(
                f"{len(reasons)} of {len(slides)} slides have no tiles:\n{lines}\n"
                'Drop them together with their expression, or pass errors="empty".'
            )
        return reasons

    def _look_up(self, slide, position):
        """Return path and key of a slide in the store, and its bag, or None for either."""
        if isinstance(slide, TiledSlide):
            slide.check_content()
        if self.store is None:
            return None, None
        path, key = self._place(slide)
        shape = (len(slide), self.n_features_out_)
        return (path, key), open_stored(path, key, shape, label(slide, position))

    def _keep(self, slide, position, features, place):
        """Put features into the store and a bag, or say why the slide is bad."""
        n_bad = len(features) - int(np.isfinite(features).all(axis=1).sum())
        if n_bad:
            raise ValueError(
                f"{label(slide, position)}: the encoder {self.encoder_.name!r} gave features that "
                f"are not finite for {n_bad} of {len(features)} tiles, in {self.dtype_}. Check "
                'the weights, or pass dtype="float32".'
            )
        bag = None
        if isinstance(slide, TiledSlide) and not self._is_unchanged(slide, place):
            raise ValueError(
                f"Slide {slide.path!r} changed while it was read. Tile it again, once it is "
                "written to its end."
            )
        if place is not None:
            path, key = place
            write_features(path, slide, features, key, self.encoder_.name, self.weights_hash_)
            # Backed by the file, or the memory for many slides would not suffice.
            bag = open_stored(path, key, features.shape, label(slide, position))
        return _make_bag(slide, position, features) if bag is None else bag

    def _is_unchanged(self, slide, place):
        try:
            slide.check_content()
            return place is None or store_key(slide, self._encoder_key()) == place[1]
        except (OSError, ValueError):
            return False

    def _encoder_key(self):
        return repr((self.encoder_.key, self.weights_hash_, self.dtype_))

    def _load_model(self, device):
        if identify_weights(self.encoder_, self.weights) != self.weights_hash_:
            raise ValueError(
                f"The weights of the encoder {self.encoder_.name!r} have changed since fit. Call "
                "fit again."
            )
        path = find_weights(self.encoder_, self.weights)
        return TileEncoder(
            load_encoder(self.encoder_, path, device),
            self.encoder_,
            device=device,
            dtype=self.dtype_,
            compile=self.compile,
            batch_size=self.batch_size,
        )

    def __sklearn_tags__(self):
        """Tell scikit-learn that X is a list of slides."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags
