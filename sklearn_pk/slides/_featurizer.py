"""From tiles to the features of a foundation model."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..utils import pick_device, progress
from ._bags import FeatureBag
from ._encoders import Encoder, describe_module, find_encoder, measure_width
from ._inputs import failures_frame, warn_failures
from ._store import read_stored, store_key, store_path, write_features
from ._tiled import TiledSlide
from ._weights import copy_module, find_weights, hash_module, hash_weights, load_encoder

_EXPECTED = (
    "Expected a list of TiledSlide, as SlideTiler gives it, or of RGB tiles of shape (n_tiles, "
    "height, width, 3) and dtype uint8"
)


def read_ahead(batches):
    """
    Read the next batch in a thread while the last one is worked on.

    Parameters
    ----------
    batches : iterator
        Batches; None ends them.

    Yields
    ------
    batch : object
        The same batches, in order.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def encode_tiles(model, tiles, encoder, *, batch_size, device):
    """
    Encode the tiles of one slide, batch by batch.

    Parameters
    ----------
    model : torch.nn.Module
        Encoder on `device`.
    tiles : iterator of ndarray of shape (height, width, 3), uint8
        RGB tiles.
    encoder : Encoder
        Input size, normalisation and pooling.
    batch_size : int
        Number of tiles in a batch.
    device : str
        Torch device.

    Returns
    -------
    ndarray of shape (n_tiles, n_features), float32
        Features.
    """
    import torch
    from torch.nn.functional import interpolate

    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (encoder.mean, encoder.std)
    )
    size = encoder.input_size
    batches = iter(lambda: list(islice(tiles, batch_size)) or None, None)
    features = []
    with torch.inference_mode():
        for batch in read_ahead(batches):
            pixels = torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2) / 255
            height, width = pixels.shape[-2:]
            if size and (max(height, width) > size or (encoder.fixed_size and height != size)):
                pixels = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
            features.append(encoder.pool(model((pixels - mean) / std)).float().cpu().numpy())
    return np.concatenate(features)


def check_tiled(X):
    """
    Check a list of tiled slides.

    Parameters
    ----------
    X : list of TiledSlide or of array of shape (n_tiles, height, width, 3)
        Slides.

    Returns
    -------
    slides : list of TiledSlide or ndarray
        The same slides.

    Raises
    ------
    TypeError
        If X is something else; a hint says what is missing.
    ValueError
        If X is empty.
    """
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


def _label(slide, position):
    return slide.path if isinstance(slide, TiledSlide) else f"slide {position}"


def _reason(slide):
    return getattr(slide, "reason", "") or "It has no tiles."


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
        again. Without one, every call of :meth:`transform` computes all: a search, which
        transforms each slide many times, wants a store.

    device : str, default="auto"
        Torch device. "auto" takes a CUDA device if there is one.

    batch_size : int, default=32
        Number of tiles in a batch. Batches do not cross slides, so the features of a slide
        do not depend on the others; another batch size changes them by rounding only.

    errors : {"raise", "empty"}, default="raise"
        What to do about slides without tiles: "raise" names all of them before any tile is
        encoded; "empty" warns, gives a bag of shape (0, n_features) and notes the reason in
        `failures_`, for slides that cannot be read as well.

    verbose : int, default=0
        1 shows a progress bar on a terminal.

    Attributes
    ----------
    encoder_ : Encoder
        What is known about the encoder.

    weights_hash_ : str
        Hash of its weights.

    n_features_out_ : int
        Number of features.

    failures_ : DataFrame with the columns ``slide`` and ``reason``
        Slides of the last call of :meth:`fit` or :meth:`transform` without features.

    See Also
    --------
    SlideTiler : Makes the tiles.
    SuperTileClusterer : Reduces the features of a slide to a few super-tiles.
    list_encoders : The encoders known by name.
    read_features : Reads the files of the store.

    Notes
    -----
    The store knows features again by the content of the slide, its tiles, the encoder, the
    hash of its weights and the version of the format, so a changed file or parameter is
    never served stale. Files are written under a temporary name and renamed: two processes
    may share a store, and a killed run leaves no half-written file that looks whole.

    Weights are loaded once in a process, and not at all if the store has all features.

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
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "errors": [StrOptions({"raise", "empty"})],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        encoder="efficientnet-lite0",
        *,
        weights=None,
        store=None,
        device="auto",
        batch_size=32,
        errors="raise",
        verbose=0,
    ):
        self.encoder = encoder
        self.weights = weights
        self.store = store
        self.device = device
        self.batch_size = batch_size
        self.errors = errors
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
        TypeError
            If X is no list of tiled slides.
        ValueError
            If the encoder is unknown, its weights are missing or do not fit, the device is not
            there, or slides have no tiles and `errors` is "raise".
        """
        slides = check_tiled(X)
        pick_device(self.device)
        if self.store is not None and Path(self.store).exists() and not Path(self.store).is_dir():
            raise ValueError(f"store must be a folder, got the file {str(self.store)!r}.")
        module = None if isinstance(self.encoder, str | Encoder) else self.encoder
        if module is None:
            known = isinstance(self.encoder, Encoder)
            self.encoder_ = self.encoder if known else find_encoder(self.encoder)
            self.weights_hash_ = hash_weights(find_weights(self.encoder_, self.weights))
        elif self.weights is not None:
            raise ValueError(
                f"weights must be None where encoder is a module, got {self.weights!r}. Load them "
                "into the module."
            )
        else:
            self.encoder_ = describe_module(module)
            self.weights_hash_ = hash_module(module)
        self.n_features_out_ = measure_width(self.encoder_, module)
        self._handle_empty(slides)
        if self.store is None:
            # Weights that do not fit show here; with a store they may never be needed.
            self._load_model()
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
            If the store cannot be written.
        """
        check_is_fitted(self)
        slides = check_tiled(X)
        failures = self._handle_empty(slides)
        load = cache(self._load_model)
        bags, n_tiles = [], 0
        bar = progress(slides, desc="Encoding", verbose=self.verbose, unit="slide")
        for position, slide in enumerate(bar):
            features, reason = self._features(slide, load)
            if reason and len(slide):
                failures.append((_label(slide, position), reason))
            bags.append(self._make_bag(slide, position, features, reason))
            n_tiles += len(features)
            bar.set_postfix(tiles=n_tiles)
        self.failures_ = failures_frame(failures)
        if self.errors == "empty":
            warn_failures(failures, "features")
        return bags

    def _handle_empty(self, slides):
        """Refuse slides without tiles, or note them in `failures_`."""
        failures = [
            (_label(slide, position), _reason(slide))
            for position, slide in enumerate(slides)
            if not len(slide)
        ]
        if failures and self.errors == "raise":
            lines = "\n".join(f"- {slide!r}: {reason}" for slide, reason in failures)
            raise ValueError(
                f"{len(failures)} of {len(slides)} slides have no tiles:\n{lines}\n"
                'Drop them together with their expression, or pass errors="empty".'
            )
        self.failures_ = failures_frame(failures)
        return failures

    def _features(self, slide, load):
        """Return the features of one slide, and why there are none."""
        if not len(slide):
            return self._nothing(), _reason(slide)
        try:
            path, key, features = self._look_up(slide)
        except (OSError, ValueError) as error:
            return self._give_up(error)
        if features is None:
            model, device = load()
            try:
                features = self._encode(slide, model, device)
            except (OSError, ValueError) as error:
                return self._give_up(error)
            if path is not None:
                name = self.encoder_.name
                write_features(path, slide, features, key, name, self.weights_hash_)
        return features, ""

    def _look_up(self, slide):
        """Return the place of a slide in the store, its key, and its features if they are there."""
        if self.store is None:
            return None, None, None
        key = store_key(slide, self._encoder_key())
        path = store_path(self.store, slide, key)
        return path, key, read_stored(path, key, (len(slide), self.n_features_out_))

    def _give_up(self, error):
        if self.errors == "raise":
            raise error
        return self._nothing(), str(error)

    def _encode(self, slide, model, device):
        tiles = slide.iter_tiles() if isinstance(slide, TiledSlide) else iter(slide)
        return encode_tiles(model, tiles, self.encoder_, batch_size=self.batch_size, device=device)

    def _make_bag(self, slide, position, features, reason):
        if not isinstance(slide, TiledSlide):
            return FeatureBag(features, slide=_label(slide, position), reason=reason)
        return FeatureBag(
            features,
            slide.coords[: len(features)],
            slide.path,
            slide.size_level0,
            slide.tile_edge_um,
            reason,
        )

    def _nothing(self):
        return np.empty((0, self.n_features_out_), dtype=np.float32)

    def _encoder_key(self):
        encoder = self.encoder_
        parts = (encoder.name, encoder.architecture, encoder.input_size, encoder.fixed_size)
        return repr((*parts, encoder.mean, encoder.std, encoder.pooling, self.weights_hash_))

    def _load_model(self):
        device = pick_device(self.device)
        if isinstance(self.encoder, str | Encoder):
            path = find_weights(self.encoder_, self.weights)
            return load_encoder(self.encoder_, path, device), device
        return copy_module(self.encoder, device), device

    def __sklearn_tags__(self):
        """Tell scikit-learn that X is a list of slides."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags
