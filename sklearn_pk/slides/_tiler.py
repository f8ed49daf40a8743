"""From slide files to the places of their tiles."""

# SPDX-License-Identifier: BSD-3-Clause

from collections import OrderedDict
from collections.abc import Hashable
from numbers import Integral, Real

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from ..utils import check_expression, check_sample_names, progress
from ._grid import mask_resolution, tile_geometry, tile_grid
from ._inputs import check_slide_list, failures_frame, raise_failures, warn_failures
from ._reader import (
    check_slide,
    file_state,
    fingerprint,
    open_slide,
    read_overview,
    slide_info,
)
from ._tiled import TiledSlide
from ._tissue import compute_mask, low_contrast, tissue_fractions

_CACHE_SIZE = 4096
_cache = OrderedDict()


def _select(coords, overview, scale, size_level0, params, path):
    """Keep the tiles on tissue; return them with the reason why there are none."""
    mask = compute_mask(overview, params["tissue"], path)
    if not mask.any():
        return coords[:0], "No tissue was found on the overview."
    edge = size_level0 / scale
    share = tissue_fractions(mask, coords / scale, edge)
    coords = coords[share > params["min_tissue_fraction"]]
    if not len(coords):
        return coords, (
            f"No tile has more than min_tissue_fraction={params['min_tissue_fraction']:g} tissue; "
            f"the fullest has {share.max():.3f}."
        )
    if params["tissue"] is None:
        return coords, ""
    coords = coords[~low_contrast(overview, coords / scale, edge)]
    return coords, "" if len(coords) else "All tiles on tissue are flat (low contrast)."


def tile_slide(path, mpp_override, params, seed):
    """
    Tile one slide.

    Parameters
    ----------
    path : str
        Path of the slide file.
    mpp_override : float or None
        Resolution in um/px that replaces the one in the file.
    params : dict
        Parameters of SlideTiler that decide about tiles.
    seed : int
        Seed; together with the content of the slide it decides which tiles are drawn.

    Returns
    -------
    tiled : TiledSlide
        The slide with its tiles.

    Raises
    ------
    FileNotFoundError, PermissionError, ValueError
        If the slide cannot be read or used; it is named.
    """
    tile_size, mpp = params["tile_size"], float(params["mpp"])
    with open_slide(path) as slide:
        info = slide_info(slide, path, mpp_override)
        level, read_size, size_level0 = tile_geometry(info, tile_size, mpp)
        downsample = info.level_downsamples[level]
        edge_um = read_size * downsample * info.mpp
        step = max(1, round((tile_size - params["overlap"]) * size_level0 / tile_size))
        coords = tile_grid(info, level, read_size, size_level0, step)
        if len(coords):
            overview, scale = read_overview(slide, info, mask_resolution(edge_um))
            coords, reason = _select(coords, overview, scale, size_level0, params, path)
        else:
            reason = (
                f"The slide of {info.size[0]} x {info.size[1]} pixels is smaller than one tile of "
                f"{size_level0} pixels."
            )
    limit = params["max_tiles"]
    if limit is not None and len(coords) > limit:
        sequence = np.random.SeedSequence([seed, int(fingerprint(path), 16)])
        kept = np.random.default_rng(sequence).choice(len(coords), limit, replace=False)
        coords = coords[np.sort(kept)]
    return TiledSlide(
        path=path,
        coords=coords,
        tile_size=tile_size,
        mpp=mpp,
        slide_mpp=info.mpp,
        slide_size=info.size,
        objective_power=info.objective_power,
        level=level,
        level_downsample=downsample,
        read_size=read_size,
        size_level0=size_level0,
        tile_edge_um=edge_um,
        params=(*((name, _describe(value)) for name, value in params.items()), ("seed", seed)),
        reason=reason,
    )


def _describe(value):
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def _outcome(function, *args):
    """Return the result, or the error that speaks of a bad slide."""
    try:
        return function(*args)
    except (OSError, ValueError) as error:
        return error


def _cache_key(path, mpp, params, seed):
    """Key of a result that is worth remembering, None where there is none."""
    values = (path, mpp, *params.values(), seed)
    if not all(isinstance(value, Hashable) for value in values):
        return None
    try:
        return (file_state(path), *values)
    except OSError:
        return None


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
    to exactly `tile_size` pixels. No tile leaves its slide.

    Parameters
    ----------
    tile_size : int, default=256
        Edge of a tile in pixels at `mpp`.

    mpp : float, default=0.5
        Resolution in um/px; 0.5 is what is often called 20x. A level within 1 % of it is
        read as it is; the edge that is really read is kept in `TiledSlide.tile_edge_um`.

    tissue : {"otsu"}, callable or None, default="otsu"
        How tissue is found, on an overview of at most 8 um/px: by Otsu's thresholds, by a
        function from RGB pixels (height, width, 3) uint8 to a mask (height, width) bool, or
        not at all (None keeps all tiles). The function must depend on its input alone, since
        results are remembered.

    min_tissue_fraction : float, default=0.2
        A tile is kept if more than this share of it is tissue. Flat tiles are left out too:
        those whose 1st and 99th percentile of luminance on the overview lie less than 5 % of
        the range apart.

    max_tiles : int or None, default=4000
        Largest number of tiles of a slide. More are drawn at random; which ones depends on
        `random_state` and the content of that slide alone.

    overlap : int, default=0
        Pixels at `mpp` that neighbours share.

    errors : {"raise", "empty"}, default="raise"
        What to do with a slide that cannot be used: raise one error that names all of them,
        or warn, give a :class:`TiledSlide` without tiles and note the reason in `failures_`.

    n_jobs : int, default=None
        Number of slides to work on at once, as joblib takes it.

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
    sklearn_pk.plotting.TissueMaskDisplay : Shows mask and tiles on a slide.

    Notes
    -----
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
        "tissue": [StrOptions({"otsu"}), callable, None],
        "min_tissue_fraction": [Interval(Real, 0, 1, closed="left")],
        "max_tiles": [Interval(Integral, 1, None, closed="left"), None],
        "overlap": [Interval(Integral, 0, None, closed="left")],
        "errors": [StrOptions({"raise", "empty"})],
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
        errors="raise",
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
        self.errors = errors
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """
        Check that all slides open and state a plausible um/px.

        Parameters
        ----------
        X : list of path-like, Series, or DataFrame with the columns ``slide`` and ``mpp``
            Slides. The um/px in the optional column ``mpp`` replaces what the file says;
            NaN replaces nothing.
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
        slides = check_slide_list(X)
        if y is not None:
            check_expression(y, estimator_name=type(self).__name__)
            check_sample_names(X, y)
        if self.overlap >= self.tile_size:
            raise ValueError(
                f"overlap must be smaller than tile_size={self.tile_size}, got {self.overlap}."
            )
        outcomes = [_outcome(self._check_one, path, mpp) for path, mpp in slides]
        self._report(slides, outcomes)
        self.seed_ = self._draw_seed()
        return self

    def transform(self, X):
        """
        Find the tiles of each slide.

        Parameters
        ----------
        X : list of path-like, Series, or DataFrame with the columns ``slide`` and ``mpp``
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
        slides = check_slide_list(X)
        params = self._tiling_params()
        keys = [_cache_key(path, mpp, params, self.seed_) for path, mpp in slides]
        found = [None if key is None else _cache.get(key) for key in keys]
        todo = [position for position, tiled in enumerate(found) if tiled is None]
        if todo:
            results = Parallel(n_jobs=self.n_jobs, return_as="generator")(
                delayed(_outcome)(tile_slide, *slides[position], params, self.seed_)
                for position in todo
            )
            bar = progress(
                results, total=len(todo), desc="Tiling", verbose=self.verbose, unit="slide"
            )
            for position, tiled in zip(todo, bar, strict=True):
                found[position] = tiled
                _remember(keys[position], tiled)
        self._report(slides, found)
        return [
            TiledSlide(path, tile_size=self.tile_size, mpp=float(self.mpp), reason=str(tiled))
            if isinstance(tiled, Exception)
            else tiled
            for (path, _), tiled in zip(slides, found, strict=True)
        ]

    def inspect_slide(self, slide):
        """
        Compute the overview of one slide, its tissue mask and its tiles.

        Parameters
        ----------
        slide : path-like, or DataFrame of one row
            Slide, as a row of X in :meth:`fit`.

        Returns
        -------
        overview : ndarray of shape (height, width, 3), uint8
            RGB pixels of the whole slide at no more than 8 um/px.
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
        self._validate_params()
        X = slide if isinstance(slide, pd.DataFrame) else [slide]
        slides = check_slide_list(X)
        if len(slides) != 1:
            raise ValueError(f"slide must be one slide, got {len(slides)}.")
        path, mpp = slides[0]
        seed = getattr(self, "seed_", None)
        seed = self._draw_seed() if seed is None else seed
        tiled = tile_slide(path, mpp, self._tiling_params(), seed)
        with open_slide(path) as opened:
            info = slide_info(opened, path, mpp)
            overview, downsample = read_overview(opened, info, mask_resolution(tiled.tile_edge_um))
        return overview, compute_mask(overview, self.tissue, path), downsample, tiled

    def _tiling_params(self):
        names = ("tile_size", "mpp", "tissue", "min_tissue_fraction", "max_tiles", "overlap")
        return {name: getattr(self, name) for name in names}

    def _draw_seed(self):
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _check_one(self, path, mpp):
        tile_geometry(check_slide(path, mpp), self.tile_size, self.mpp)

    def _report(self, slides, outcomes):
        """Raise or warn about bad slides, and note those without tiles."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if self.errors == "raise":
            raise_failures(errors)
        failures = [
            (path, str(outcome) if isinstance(outcome, Exception) else outcome.reason)
            for (path, _), outcome in zip(slides, outcomes, strict=True)
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
