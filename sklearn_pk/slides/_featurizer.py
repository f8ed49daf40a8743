"""From tiles to the features of a foundation model."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from numbers import Integral
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..utils._device import pick_device, pick_dtype
from ._encoders._encoder import Encoder, measure_width
from ._encoders._registry import as_encoder
from ._encoders._weights import find_weights, hash_weights
from ._encoding import EncodingRun, SlideEncoder, label
from ._inputs import failures_frame, warn_failures
from ._tiler import TiledSlide

_EXPECTED = (
    "Expected a list of TiledSlide, as SlideTiler returns it, or of RGB tiles of shape (n_tiles, "
    "height, width, 3) and dtype uint8"
)


def check_tiled(X):
    """Check a list of tiled slides, and return it as a list."""
    if isinstance(X, str | TiledSlide) or not hasattr(X, "__len__"):
        raise TypeError(f"{_EXPECTED}, got {X!r}. Put a single slide into a list.")
    if not len(X):
        raise ValueError(f"{_EXPECTED}, got an empty list (n_samples=0, at least 1 is required).")
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


def _failures(slides, reasons):
    rows = [(label(slides[position], position), reasons[position]) for position in sorted(reasons)]
    return failures_frame(rows)


class FoundationFeaturizer(TransformerMixin, BaseEstimator):
    """
    Turn the tiles of slides into features of a pretrained encoder.

    Parameters
    ----------
    encoder : str, Encoder or torch.nn.Module, default="efficientnet-lite0"
        A name of :func:`list_encoders`, any model name of timm, "hf-hub:owner/name" or
        "local-dir:path/of/folder" as timm writes them, an :class:`Encoder`, or a module that
        maps (batch, 3, height, width) to (batch, n_features). The input of a module is
        prepared as its ``pretrained_cfg`` says; without one, tiles keep their size and are
        normalised by ImageNet's mean and standard deviation. The default is installed with
        its weights.

    weights : str, path-like or None, default=None
        File with the weights, or a folder with one such file: safetensors, or a torch file
        that holds tensors only. They have to fit exactly. None takes the files of the
        repository at Hugging Face from the local cache and downloads them if they are not
        there; the environment variable ``HF_HUB_OFFLINE=1`` forbids downloads.

    store : str, path-like or None, default=None
        Folder for the features, one HDF5 file per slide. Stored features are not computed
        again, and bags are backed by these files. Without a store, every call of
        :meth:`transform` computes all features and keeps them in memory: use one for a search,
        which transforms each slide many times.

    device : str, default="auto"
        Torch device. "auto" is a CUDA device if there is one, else the CPU.

    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of the model; features are always float32. "auto" is float32 on the CPU, and
        bfloat16 on a CUDA device, or float16 where that lacks bfloat16, by torch's autocast;
        weights of linear layers and convolutions are cast once.
        The store keeps the features of each precision apart.

    batch_size : int, default=32
        Number of tiles per batch. Batches do not cross slides, so the features of a slide
        do not depend on the others; another batch size changes them by rounding only. If the
        memory of the device does not suffice, it is halved with a warning.

    compile : bool, default=False
        Whether to compile the model by ``torch.compile``, which takes up to minutes and only
        pays for many tiles. Smaller batches are then filled up to `batch_size`. It changes
        features by rounding only.

    num_workers : int or None, default=None
        Number of processes that read tiles ahead of the model, across slides; 0 reads in a
        thread of this process. None is 0 for a model on the CPU, which uses all cores itself,
        and otherwise one process per core but one, up to 8 and to what shared memory holds, on
        Linux. Processes are not started for few tiles, nor within processes that may have no
        children, such as Dask's.

    errors : {"raise", "empty"}, default="raise"
        What to do about slides without tiles and slides that cannot be read. "raise" raises
        an error, which for slides without tiles names all of them before any tile is encoded.
        "empty" warns, returns a bag of shape (0, n_features) and records the reason in
        `failures_`.

    n_jobs : int, default=None
        Number of joblib workers that encode, each one slide at a time. Each loads the model
        and picks its own `device`. None is 1 unless in a ``joblib.parallel_config``, such as
        that of a Dask cluster; one that starts processes on this machine is ignored where they
        would have to share its GPU. 1 is always this process.

    verbose : int, default=0
        1 shows a progress bar, or lines in a log, with tiles per second and the bottleneck, and
        writes a line at the end to standard error; 2 also writes a line per slide.

    Attributes
    ----------
    encoder_ : Encoder
        Description of the encoder.

    dtype_ : str
        Precision of the model.

    weights_hash_ : str
        Hash of the weights.

    n_features_out_ : int
        Number of features.

    failures_ : DataFrame with the columns ``slide`` and ``reason``
        Slides without features in the last call of :meth:`fit` or :meth:`transform`.

    throughput_ : dict
        Figures of the last call of :meth:`transform`: n_slides, of which n_stored were found in
        the store and n_encoded were encoded, n_tiles encoded, n_jobs, num_workers, the
        batch_size that fitted into memory, seconds, seconds_model and seconds_waiting (for
        tiles) summed over all workers, tiles_per_second while encoding, and bottleneck:
        "reading" if more than a tenth of the time was spent waiting for tiles, else "model".

    See Also
    --------
    SlideTiler : Makes the tiles.
    SuperTileClusterer : Reduces the features of a slide to a few super-tiles.
    list_encoders : Lists the encoders known by name.
    read_features : Reads the files of the store.

    Notes
    -----
    Stored features are identified by the content of the slide, its tiles, the encoder, the
    hash of its weights, `dtype` and the version of the format, so features of a changed file
    or parameter are never reused. Files are written under a temporary name and renamed: two
    processes may share a store, and a killed run loses only the slide being processed.

    Weights are loaded once per process, and not at all if all features are stored.

    On Linux, the processes that read are forked, so a script needs no
    ``if __name__ == "__main__"``; elsewhere it needs one if `num_workers` is 1 or more.

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
        Check the encoder, its weights, the device and the tiles.

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
            If the file or folder given as `weights` does not exist.
        MemoryError
            If the weights do not fit into the memory of the device.
        TypeError
            If X is not a list of tiled slides.
        ValueError
            If the encoder is unknown, its weights cannot be found or downloaded or do not fit,
            the device does not exist, or slides have no tiles and `errors` is "raise".
        """
        slides = check_tiled(X)
        device = pick_device(self.device)
        if self.store is not None and Path(self.store).exists() and not Path(self.store).is_dir():
            raise ValueError(f"store must be a folder, got the file {str(self.store)!r}.")
        self.encoder_ = as_encoder(self.encoder, self.weights)
        path = find_weights(self.encoder_, self.weights)
        self.weights_hash_ = hash_weights(self.encoder_, path)
        self.n_features_out_ = measure_width(self.encoder_)
        self.dtype_ = pick_dtype(self.dtype, device)
        self.failures_ = _failures(slides, self._check_empty(slides))
        slide_encoder = self._make_slide_encoder()
        if self.store is None:
            # Weights that do not fit raise here; with a store they may never be needed.
            slide_encoder.load_model()
        else:
            # Raises if the encoder cannot be identified in a store.
            _ = slide_encoder.key
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
            One per slide, in order.

        Raises
        ------
        TypeError
            If X is not a list of tiled slides.
        ValueError
            If slides have no tiles or cannot be read and `errors` is "raise".
        OSError
            If the store cannot be written, or a slide cannot be found or opened and `errors` is
            "raise".
        MemoryError
            If not even a single tile fits into the memory of the device.
        RuntimeError
            If a process that reads tiles is killed, if a slide kills its worker on each attempt
            and `errors` is "raise", or if the model cannot be compiled.
        """
        check_is_fitted(self)
        slides = check_tiled(X)
        reasons = self._check_empty(slides)
        run = EncodingRun(
            self._make_slide_encoder(),
            list(enumerate(slides)),
            fail_fast=self.errors == "raise",
            verbose=self.verbose,
        )
        try:
            run.run(self.n_jobs)
        finally:
            self.throughput_ = run.throughput.summary()
        if run.errors and self.errors == "raise":
            raise run.errors[min(run.errors)]
        reasons |= {position: str(error) for position, error in run.errors.items()}
        self.failures_ = _failures(slides, reasons)
        warn_failures(self.failures_.to_numpy().tolist(), "features")
        empty = np.empty((0, self.n_features_out_), dtype=np.float32)
        return [
            run.bags[position]
            if position in run.bags
            else run.slide_encoder.make_bag(slide, position, empty, reasons[position])
            for position, slide in enumerate(slides)
        ]

    def _make_slide_encoder(self):
        return SlideEncoder(
            encoder=self.encoder_,
            weights=self.weights,
            weights_hash=self.weights_hash_,
            n_features=self.n_features_out_,
            store=self.store,
            device=self.device,
            dtype=self.dtype_,
            compile=self.compile,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

    def _check_empty(self, slides):
        """Return position -> reason for slides without tiles, or raise if `errors` says so."""
        reasons = {
            position: getattr(slide, "reason", "") or "It has no tiles."
            for position, slide in enumerate(slides)
            if not len(slide)
        }
        if reasons and self.errors == "raise":
            rows = _failures(slides, reasons).to_numpy().tolist()
            lines = "\n".join(f"- {slide!r}: {reason}" for slide, reason in rows)
            raise ValueError(
                f"{len(reasons)} of {len(slides)} slides have no tiles:\n{lines}\n"
                'Drop them together with their expression, or pass errors="empty".'
            )
        return reasons

    def __sklearn_tags__(self):
        """Declare that X is a list of slides."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags
