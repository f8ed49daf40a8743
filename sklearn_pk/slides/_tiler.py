"""From slide files to the places of their tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from collections import OrderedDict
from contextlib import closing
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
)
from sklearn.utils.validation import check_is_fitted, check_memory

from ..utils import check_expression
from ..utils._parallel import map_in_order, map_tasks
from ..utils._reporting import progress
from ..utils._validation import check_sample_names
from ._inputs import check_slide_list, failures_frame, raise_failures, warn_failures
from ._tile_memory import cache_key, outcome, tile_known
from ._tiled import TiledSlide
from ._tiling import check_row, inspect_row, split_tiled
from ._tissue._masks import absolute_tissue, check_tissue

_CACHE_SIZE = 4096
_cache = OrderedDict()


def _remember(key, tiled):
    if key is None or isinstance(tiled, Exception):
        return
    _cache[key] = tiled
    while len(_cache) > _CACHE_SIZE:
        _cache.popitem(last=False)


class SlideTiler(TransformerMixin, BaseEstimator):
    """
    Find the tiles of tissue on whole slide images.

    Tiles are asked for in um/px, read from the best level of the pyramid and resampled
    to exactly `tile_size` pixels. No tile leaves its slide unless `pad` says so.

    Parameters
    ----------
    tile_size : int, default=256
        Edge of a tile in pixels at `mpp`.

    mpp : float, default=0.5
        Resolution in um/px; 0.5 is what is often called 20x. A level within 1 % of it is
        read as it is; the edge that is really read is kept in `TiledSlide.tile_edge_um`.

    tissue : {"otsu", "saturation", "entropy"}, callable, array, path-like or None, default="otsu"
        What tells the tissue:

        - "otsu": Otsu's thresholds of colour and saturation, the published way;
        - "saturation": more saturated than the glass. For slides with ink or dark pigment, which
          take Otsu's thresholds away from pale tissue (the ink itself is tiled as well);
        - "entropy": texture, whatever its colour. For pale or grey tissue, and to leave out the
          inside of pen strokes; what is out of focus is lost;
        - a function from RGB pixels (height, width, 3) uint8 to a mask (height, width) bool. It
          must depend on its input alone, since results are remembered;
        - a mask (height, width) of bool or whole numbers over the whole slide, at any
          resolution;
        - the path of a mask image, or of a GeoJSON file with the areas drawn in QuPath, where
          the class ``Ignore*`` is cut out;
        - the path of a folder that holds such a file for each slide, named after it:
          ``S1.geojson`` or ``S1.png`` for ``S1.svs``;
        - None for no mask: all tiles are kept.

        Methods and functions work on an overview of at most 8 um/px. The column ``tissue`` of
        X, where there is one, says it for single slides.

    min_tissue_fraction : float, default=0.2
        A tile is kept if more than this share of it is tissue. Where tissue was found by a
        method or a function, flat tiles are left out too: those whose 1st and 99th percentile
        of luminance on the overview lie less than 5 % of the range apart. Of a mask that is
        given, they are kept.

    max_tiles : int or None, default=4000
        Largest number of tiles of a slide. More are drawn at random; which ones depends on
        `random_state` and the content of that slide alone.

    overlap : int, default=0
        Pixels at `mpp` that neighbours share.

    pad : bool, default=False
        Whether tiles may stick out at the right and the lower border, filled up with white,
        so that no strip of the slide is left over. Of `min_tissue_fraction`, the white counts as
        no tissue.

    reader : {"auto", "openslide", "tifffile"}, default="auto"
        Library that reads the slides. "auto" takes tifffile, which is faster, where it gives
        the same pixels as OpenSlide.

    errors : {"raise", "empty"}, default="raise"
        What to do with a slide that cannot be used: raise one error that names all of them,
        or warn, give a :class:`TiledSlide` without tiles and note the reason in `failures_`.

    memory : str, path-like, joblib.Memory or None, default=None
        Folder that keeps the tiles of each slide between runs, so that a run that was killed
        goes on where it was. Whoever can write there can run code here: the folder must be
        yours. What a function says of the tissue is not kept.

    n_jobs : int, default=None
        Number of slides to work on at once, as joblib takes it; 1 is this process, on a
        cluster too.

    random_state : int, RandomState instance or None, default=None
        Seed of the draw of tiles. Pass an int, so that the same tiles are drawn each time.

    verbose : int, default=0
        1 shows a progress bar on a terminal.

    Attributes
    ----------
    failures_ : DataFrame with the columns ``slide`` and ``reason``
        Slides of the last call of :meth:`fit` or :meth:`transform` without tiles.

    seed_ : int
        Seed drawn from `random_state`.

    See Also
    --------
    FoundationFeaturizer : Encodes the tiles.
    check_slides : Says of each slide whether it can be tiled, and into how many tiles.
    sklearn_pk.plotting.TissueMaskDisplay : Shows mask and tiles on a slide.

    Notes
    -----
    QuPath counts pixels from the corner of the scanned area, where a slide states one
    (``openslide.bounds-x``, MIRAX for example); this is taken into account.

    :meth:`fit` opens each slide and checks its um/px, which takes milliseconds a slide, so
    that bad slides are reported before any work starts. Results of :meth:`transform` are
    remembered in the process until the file or a parameter changes, since a search asks for
    the same slides many times.

    References
    ----------
    .. [1] M. Pizurica et al., "Digital profiling of gene expression from histology images
       with linearized attention", Nature Communications 15:9886, 2024.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.slides import SlideTiler
    >>> tiler = SlideTiler(tile_size=256, mpp=0.5, max_tiles=20, random_state=0)
    >>> [slide] = tiler.fit_transform([load_cmu_slide().path])
    >>> slide.coords.shape, round(slide.tile_edge_um, 1)
    ((20, 2), 127.7)
    """

    _parameter_constraints = {
        "tile_size": [Interval(Integral, 1, None, closed="left")],
        "mpp": [Interval(Real, 0, None, closed="neither")],
        "tissue": [str, os.PathLike, np.ndarray, callable, None],
        "min_tissue_fraction": [Interval(Real, 0, 1, closed="left")],
        "max_tiles": [Interval(Integral, 1, None, closed="left"), None],
        "overlap": [Interval(Integral, 0, None, closed="left")],
        "pad": ["boolean"],
        "reader": [StrOptions({"auto", "openslide", "tifffile"})],
        "errors": [StrOptions({"raise", "empty"})],
        "memory": [str, HasMethods(["cache"]), os.PathLike, None],
        "n_jobs": [None, Integral],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        tile_size=256,
        mpp=0.5,
        tissue="otsu",
        min_tissue_fraction=0.2,
        max_tiles=4000,
        overlap=0,
        pad=False,
        reader="auto",
        errors="raise",
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.tile_size = tile_size
        self.mpp = mpp
        self.tissue = tissue
        self.min_tissue_fraction = min_tissue_fraction
        self.max_tiles = max_tiles
        self.overlap = overlap
        self.pad = pad
        self.reader = reader
        self.errors = errors
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """
        Check that all slides open, state a plausible um/px and have their mask.

        Parameters
        ----------
        X : list of path-like, Series, or DataFrame with the column ``slide``
            Slides. The um/px in the optional column ``mpp`` replaces what the file says, and
            what tells the tissue in the optional column ``tissue`` replaces the parameter;
            NaN and None replace nothing.
        y : array-like or DataFrame of shape (n_slides,) or (n_slides, n_genes), default=None
            Expression. It is only checked, so that a pipeline refuses a table that does not
            belong to the slides before it encodes them.

        Returns
        -------
        self : SlideTiler
            The estimator.

        Raises
        ------
        TypeError
            If X is no list of paths.
        FileNotFoundError, PermissionError, ValueError
            If a slide cannot be used and `errors` is "raise"; all such slides are named. Also
            if y has other samples than X, NaN, or a gene twice.
        """
        slides = self._check_slides(X)
        if y is not None:
            check_expression(y, estimator_name=type(self).__name__)
            check_sample_names(X, y)
        params = self._tiling_params()
        outcomes = [outcome(check_row, row, params, self.reader) for row in slides]
        self._report(slides, outcomes)
        self.seed_ = self._draw_seed()
        return self

    def transform(self, X):
        """
        Find the tiles of each slide.

        Parameters
        ----------
        X : list of path-like, Series, or DataFrame with the column ``slide``
            Slides, as in :meth:`fit`.

        Returns
        -------
        tiled : list of TiledSlide
            One a slide, in order. A slide without tissue has no tiles and says why in
            `reason`.

        Raises
        ------
        TypeError
            If X is no list of paths.
        FileNotFoundError, PermissionError, ValueError
            If a slide cannot be used and `errors` is "raise"; all such slides are named.
        """
        check_is_fitted(self)
        slides, params = self._check_slides(X), self._tiling_params()
        keys = [cache_key(row, params, self.seed_, self.reader) for row in slides]
        found = [None if key is None else _cache.get(key) for key in keys]
        todo = [position for position, tiled in enumerate(found) if tiled is None]
        for position, tiled in self._tile(slides, params, todo):
            found[position] = tiled
            _remember(keys[position], tiled)
        self._report(slides, found)
        return [
            self._make_empty(row, tiled) if isinstance(tiled, Exception) else tiled
            for row, tiled in zip(slides, found, strict=True)
        ]

    def _tile(self, slides, params, positions):
        """Tile some of the slides, as they are done; a bad one gives its error."""
        memory = self.memory
        if memory is not None:
            is_path = isinstance(memory, str | os.PathLike)
            memory = check_memory(os.path.abspath(memory) if is_path else memory)
        tasks = [
            (*self._travelling(slides[at], params), self.seed_, self.reader, memory)
            for at in positions
        ]
        name = [slides[at].path for at in positions].__getitem__
        results = map_tasks(tile_known, tasks, n_jobs=self.n_jobs, name=name)
        options = {"total": len(tasks), "desc": "Tiling", "unit": "slide", "verbose": self.verbose}
        with closing(results):
            for number, tiled in progress(results, **options):
                position = positions[number]
                if isinstance(tiled, TiledSlide):
                    tiled = replace(tiled, path=slides[position].path)
                yield position, tiled

    def _travelling(self, row, params):
        """Name files so that a worker in another folder finds them."""
        path, tissue = os.path.abspath(row.path), absolute_tissue(row.tissue)
        params = params | {"tissue": absolute_tissue(params["tissue"])}
        return row._replace(path=path, tissue=tissue), params

    def inspect_slide(self, slide, *, size=1200):
        """
        Make a picture of one slide, with its tissue mask and its tiles.

        Parameters
        ----------
        slide : path-like, DataFrame of one row, or TiledSlide
            Slide, as a row of X in :meth:`fit`. A slide that was tiled keeps its tiles.
        size : int, default=1200
            Longer side of the picture in pixels; a smaller slide is not enlarged.

        Returns
        -------
        thumbnail : ndarray of shape (height, width, 3), uint8
            RGB pixels of the whole slide.
        mask : ndarray of shape (height, width), bool
            True on tissue.
        downsample : float
            Level-0 pixels per pixel of both.
        tiled : TiledSlide
            The slide with its tiles.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            If the slide cannot be used.
        """
        X = slide if isinstance(slide, pd.DataFrame) else [slide]
        if len(X) != 1:
            raise ValueError(f"slide must be one slide, got {len(X)}.")
        ((_, outcome),) = self._inspect(X, size)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def inspect_slides(self, X, *, size=300):
        """
        Make a picture of each slide, with its tissue mask and its tiles.

        Parameters
        ----------
        X : list of path-like, Series, DataFrame with the column ``slide``, or list of TiledSlide
            Slides, as in :meth:`fit`. Slides that were tiled keep their tiles.
        size : int, default=300
            Longer side of a picture in pixels; a smaller slide is not enlarged.

        Returns
        -------
        pictures : list of tuple
            Thumbnail, mask, downsample and tiled slide of each, as from :meth:`inspect_slide`.
            Of a slide that cannot be used, the first three are None, and `reason` of the last
            says why.

        Raises
        ------
        TypeError
            If X is no list of slides.
        ValueError
            If a parameter is wrong.
        """
        return [
            (None, None, None, self._make_empty(row, outcome))
            if isinstance(outcome, Exception)
            else outcome
            for row, outcome in self._inspect(X, size)
        ]

    def _inspect(self, X, size):
        """Return each slide with its picture, or with the error that says why there is none."""
        self._validate_params()
        frame, tiled = split_tiled(X)
        slides, params = self._check_slides(frame), self._tiling_params()
        seed = getattr(self, "seed_", None)
        seed = self._draw_seed() if seed is None else seed
        tasks = [
            (inspect_row, row, each, params, seed, self.reader, size)
            for row, each in zip(slides, tiled or [None] * len(slides), strict=True)
        ]
        results = map_in_order(outcome, tasks, n_jobs=self.n_jobs, name=lambda at: slides[at].path)
        bar = progress(
            results, total=len(slides), desc="Drawing", verbose=self.verbose, unit="slide"
        )
        return list(zip(slides, bar, strict=True))

    def _make_empty(self, row, error):
        tile_size, mpp = self.tile_size, float(self.mpp)
        return TiledSlide(
            row.path, tile_size=tile_size, mpp=mpp, reason=str(error), reader=self.reader
        )

    def _check_slides(self, X):
        """Check X, and the parameters that its slides or another parameter restrict."""
        slides = check_slide_list(X)
        check_tissue(self.tissue, slides)
        if self.overlap >= self.tile_size:
            raise InvalidParameterError(
                f"overlap must be smaller than tile_size={self.tile_size}, got {self.overlap}."
            )
        return slides

    def _tiling_params(self):
        names = ("tile_size", "mpp", "tissue", "min_tissue_fraction", "max_tiles", "overlap", "pad")
        return {name: getattr(self, name) for name in names}

    def _draw_seed(self):
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _report(self, slides, outcomes):
        """Raise or warn about bad slides, and note those without tiles."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if self.errors == "raise":
            raise_failures(errors)
        failures = [
            (row.path, str(outcome) if isinstance(outcome, Exception) else outcome.reason)
            for row, outcome in zip(slides, outcomes, strict=True)
            if isinstance(outcome, Exception) or (outcome is not None and not len(outcome))
        ]
        self.failures_ = failures_frame(failures)
        if self.errors == "empty":
            warn_failures(failures, "tiles")

    def __sklearn_tags__(self):
        """Tell scikit-learn that X is a list of files."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags
