"""From slide files to the coordinates of their tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
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
from ..utils._reporting import progress, warn_user
from ..utils._validation import check_sample_names
from ._grid import fraction_inside, mask_resolution, tile_geometry, tile_grid
from ._inputs import (
    CANNOT_WRITE,
    check_coords,
    check_slide_list,
    describe_space,
    failures_frame,
    raise_failures,
    warn_failures,
)
from ._tissue._ink import ink_mask
from ._tissue._masks import (
    absolute_tissue,
    check_tissue,
    choose_tissue,
    describe_source,
    draw_mask,
    is_given,
    sample_mask,
)
from ._tissue._methods import compute_mask, low_contrast, tissue_fractions
from ._wsi._image import ImageReader
from ._wsi._reader import (
    READERS,
    SAME_RESOLUTION,
    SlideInfo,
    check_slide,
    file_version,
    fingerprint,
    open_slide,
    read_overview,
    read_tile,
    resolve_mpp,
    slide_info,
)
from ._wsi._slide_files import is_tile_folder, slide_files, slide_state
from ._wsi._tile_folder import read_tile_folder

_CACHE_SIZE = 4096
_cache = OrderedDict()


@dataclass(frozen=True, eq=False, repr=False)
class TiledSlide:
    """
    A slide file and the coordinates of its tiles.

    It holds no pixels: :meth:`iter_tiles` opens the file and reads them. The object is
    therefore small and can be pickled.

    Parameters
    ----------
    path : str
        Path of the slide file, or of the folder of tile images.
    coords : ndarray of shape (n, 2), int64, or None, default=()
        Upper left corner (x, y) of each tile, in level-0 pixels; None for tile images whose
        coordinates are not known.
    tile_size : int, default=0
        Edge in pixels of the tiles that :meth:`iter_tiles` yields.
    mpp : float, default=nan
        Requested resolution in um/px.
    slide_mpp : float, default=nan
        Resolution of level 0, in um/px.
    slide_size : tuple of int, default=(0, 0)
        Width and height of level 0 in pixels.
    objective_power : float, default=nan
        Magnification of level 0 that the file states, NaN if it states none. It is only
        passed on to the feature store; nothing is computed from it.
    level : int, default=0
        Pyramid level that is read.
    level_downsample : float, default=1.0
        Level-0 pixels per pixel of that level.
    read_size : int, default=0
        Edge in pixels that is read at that level, then resampled to `tile_size`.
    size_level0 : int, default=0
        Edge of a tile in level-0 pixels.
    tile_edge_um : float, default=nan
        Edge of the region that is read for a tile, in um.
    params : tuple, default=()
        Pairs of name and value that describe how the slide was tiled.
    reason : str, default=""
        Why there are no tiles; empty if there are tiles.
    reader : {"auto", "openslide", "tifffile", "pillow", "pylibCZIrw"}, default="auto"
        Library that reads the slide. SlideTiler sets the one that it used.
    content : str, default=""
        Fingerprint of the files of the slide that was tiled. If it is not empty,
        :meth:`check_content` refuses other files under the same name.
    files : tuple of str, default=()
        Names of the tile images in the folder `path`, one per tile; empty for a slide file.
    version : str, default=""
        What tells apart files of the same fingerprint: inode and times, or a hash of all bytes.
        Empty for files of at most 8 MiB, whose fingerprint is of all bytes.

    See Also
    --------
    SlideTiler : Makes tiled slides.
    FeatureBag : The features of its tiles.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.slides import SlideTiler
    >>> [slide] = SlideTiler().fit_transform([load_cmu_slide().path])
    >>> slide.name, next(slide.iter_tiles()).shape
    ('cmu_small_region', (256, 256, 3))
    """

    path: str
    coords: np.ndarray = ()
    tile_size: int = 0
    mpp: float = np.nan
    slide_mpp: float = np.nan
    slide_size: tuple = (0, 0)
    objective_power: float = np.nan
    level: int = 0
    level_downsample: float = 1.0
    read_size: int = 0
    size_level0: int = 0
    tile_edge_um: float = np.nan
    params: tuple = ()
    reason: str = ""
    reader: str = "auto"
    content: str = ""
    files: tuple = ()
    version: str = ""

    def __post_init__(self):
        """Check the coordinates."""
        object.__setattr__(self, "path", str(self.path))
        if self.coords is None and self.files:
            return
        object.__setattr__(self, "coords", check_coords(self.coords, self.path))
        if self.files and len(self.files) != len(self.coords):
            raise ValueError(
                f"{self.path}: got {len(self.files)} files but {len(self.coords)} coords; each "
                "tile image needs one of both."
            )

    @property
    def name(self):
        """Name of the slide: its file name without the extension, or its folder name."""
        path = Path(self.path)
        return path.name if path.is_dir() else path.stem

    def __len__(self):
        """Return the number of tiles."""
        return len(self.files or self.coords)

    def __repr__(self):
        """Show the slide and the number of its tiles."""
        known = [f"path={self.path!r}", f"n_tiles={len(self)}"]
        known += [f"{name}={getattr(self, name)!r}" for name in ("tile_size", "mpp")]
        known += [f"reason={self.reason!r}"] if self.reason else []
        return f"TiledSlide({', '.join(known)})"

    def check_content(self):
        """
        Check that the file is still the one that was tiled.

        Raises
        ------
        FileNotFoundError, PermissionError
            If the file cannot be opened.
        ValueError
            If its content has changed.
        """
        change = ""
        if self.content and fingerprint(self.path) != self.content:
            change = "its content has changed"
        elif self.version:
            full = self.version.startswith("sha256")
            if file_version(self.path, full) != self.version:
                change = "its content has changed" if full else "it was changed or replaced"
        if change:
            raise ValueError(
                f"Slide {self.path!r} is not the file that was tiled: {change}. Tile it again."
            )

    def iter_tiles(self):
        """
        Read the tiles one by one.

        Yields
        ------
        tile : ndarray of shape (tile_size, tile_size, 3), uint8
            RGB pixels, with transparent pixels on white.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            If the slide cannot be read; the error names it.
        """
        if not len(self):
            return
        with self.open_tiles() as read:
            for position in range(len(self)):
                yield read(position, position + 1)[0]

    @contextmanager
    def open_tiles(self):
        """
        Open the slide for reading some of its tiles.

        Yields
        ------
        read : callable
            Function of (start, stop) that returns the tiles at these positions as an array of
            shape (stop - start, tile_size, tile_size, 3), uint8.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            If the slide cannot be opened, or, within the block, read; the error names it.
        """
        if self.files:
            yield lambda start, stop: read_tile_images(self, self.files[start:stop])
            return
        with open_slide(self.path, self.reader) as slide:

            def read(start, stop):
                corners = self.coords[start:stop].tolist()
                tiles = np.empty((len(corners), self.tile_size, self.tile_size, 3), dtype=np.uint8)
                for tile, (x, y) in zip(tiles, corners, strict=True):
                    tile[:] = read_tile(slide, x, y, self.level, self.read_size, self.tile_size)
                return tiles

            yield read


def read_tile_images(tiled, files):
    """Read tile images of a folder."""
    edge = tiled.tile_size
    tiles = np.empty((len(files), edge, edge, 3), dtype=np.uint8)
    for tile, name in zip(tiles, files, strict=True):
        with ImageReader(os.path.join(tiled.path, name)) as image:
            if image.size != (edge, edge):
                raise ValueError(
                    f"Tile image {name!r} of the folder {tiled.path!r} has changed: it had "
                    f"{edge} x {edge} pixels, and has {image.size[0]} x {image.size[1]}."
                )
            tile[:] = image.read(0, 0, 0, edge, edge)
    return tiles


@dataclass(frozen=True, eq=False)
class Survey:
    """All tiles on the tissue of one slide, and how they were found."""

    tiled: TiledSlide
    info: SlideInfo  # None for a folder of tile images
    source: object
    mask: np.ndarray  # None: all of the slide is tiled
    overview: np.ndarray  # None where the mask is given
    scale: float  # level-0 pixels per pixel of mask and overview
    ink: np.ndarray = None  # None where the mask is given

    @property
    def tissue_mm2(self):
        """Area of the mask."""
        if self.info is None:
            return len(self.tiled) * self.tiled.tile_edge_um**2 / 1e6
        if self.mask is None:
            return np.prod(np.array(self.info.size) * self.info.mpp) / 1e6
        return self.mask.sum() * (self.scale * self.info.mpp) ** 2 / 1e6

    @property
    def ink_mm2(self):
        """Area that has the colour of a pen, NaN where no overview was read."""
        if self.ink is None:
            return np.nan
        return self.ink.sum() * (self.scale * self.info.mpp) ** 2 / 1e6


def check_row(row, params, reader):
    """Check that a slide can be tiled, without searching for its tissue."""
    if is_tile_folder(row.path):
        survey_tile_folder(row, params)
        return
    info = check_slide(row.path, row.mpp, reader)
    tile_geometry(info, params["tile_size"], float(params["mpp"]))
    source = choose_tissue(params["tissue"], row)
    if is_given(source):
        with open_slide(row.path, reader) as slide:
            draw_mask(source, slide, info, (1, 1), max(info.size))


def _find_mask(slide, info, source, mpp):
    """Return the mask, the overview, level-0 pixels per pixel of both, and where ink is."""
    if source is None:
        return None, None, 1.0, None
    if is_given(source):
        scale = max(1.0, mpp / info.mpp)
        width, height = (int(np.ceil(length / scale)) for length in info.size)
        return draw_mask(source, slide, info, (height, width), scale), None, scale, None
    overview, scale = read_overview(slide, info, mpp)
    ink = ink_mask(overview, scale * info.mpp)
    return compute_mask(overview, source, info.path, ink), overview, scale, ink


def _select_tiles(survey, min_tissue_fraction):
    """Return the coordinates of tiles on tissue, and the reason if there are none."""
    tiled, mask, scale = survey.tiled, survey.mask, survey.scale
    coords, size = tiled.coords, tiled.size_level0
    if not len(coords):
        return coords, (
            f"The slide of {tiled.slide_size[0]} x {tiled.slide_size[1]} pixels is smaller than "
            f"one tile of {size} pixels; pad=True would fill it up."
        )
    if mask is None:
        return coords, ""
    if not mask.any():
        given = is_given(survey.source)
        return coords[:0], (
            "The tissue mask is empty." if given else "No tissue was found on the overview."
        )
    fractions = tissue_fractions(mask, coords / scale, size / scale)
    # Padding is not tissue.
    fractions *= fraction_inside(coords, size, tiled.slide_size)
    coords = coords[fractions > min_tissue_fraction]
    if not len(coords):
        return coords, (
            f"No tile has more than min_tissue_fraction={min_tissue_fraction:g} tissue; "
            f"the largest fraction is {fractions.max():.3f}."
        )
    if survey.overview is None:
        return coords, ""
    if not callable(survey.source):
        coords = coords[tissue_fractions(survey.ink, coords / scale, size / scale) <= 0.5]
        if not len(coords):
            return coords, "All tiles on tissue are mostly ink of a pen."
    coords = coords[~low_contrast(survey.overview, coords / scale, size / scale)]
    return coords, "" if len(coords) else "All tiles on tissue are flat (low contrast)."


def survey_tile_folder(row, params):
    """Take the images of a folder for the tiles of one slide."""
    folder, tile_size = read_tile_folder(row.path), params["tile_size"]
    if row.tissue is not None:
        raise ValueError(
            f"Slide {row.path!r} is a folder of tile images, which are all taken. Leave the "
            "column 'tissue' empty for it."
        )
    if folder.edge != tile_size:
        raise ValueError(
            f"Slide {row.path!r}: expected tile images of tile_size={tile_size} pixels, got "
            f"{folder.edge}. Pass tile_size={folder.edge}; the encoder resizes them to its input."
        )
    mpp = np.nan if row.mpp is None else resolve_mpp(row.path, {}, row.mpp)
    if abs(mpp - params["mpp"]) > SAME_RESOLUTION * params["mpp"]:
        raise ValueError(
            f"Slide {row.path!r}: expected tile images of mpp={params['mpp']:g} um/px, got "
            f"{mpp:g} in the column 'mpp'. Pass mpp={mpp:g}, or make the tiles again."
        )
    return Survey(
        TiledSlide(
            path=row.path,
            coords=folder.coords,
            tile_size=tile_size,
            mpp=mpp,
            slide_mpp=mpp * folder.edge / folder.size_level0,
            level_downsample=folder.size_level0 / folder.edge,
            read_size=tile_size,
            size_level0=folder.size_level0,
            tile_edge_um=folder.edge * mpp,
            content=fingerprint(row.path),
            files=folder.names,
            version=file_version(row.path, params["full_hash"]),
        ),
        info=None,
        source=None,
        mask=None,
        overview=None,
        scale=1.0,
    )


def survey_slide(row, params, reader):
    """Find all tiles on the tissue of one slide."""
    if is_tile_folder(row.path):
        return survey_tile_folder(row, params)
    source = choose_tissue(params["tissue"], row)
    tile_size, mpp = params["tile_size"], float(params["mpp"])
    with open_slide(row.path, reader) as slide:
        content, reader = fingerprint(row.path), slide.library
        version = file_version(row.path, params["full_hash"])
        info = slide_info(slide, row.path, row.mpp)
        level, read_size, size_level0 = tile_geometry(info, tile_size, mpp)
        edge_um = read_size * info.level_downsamples[level] * info.mpp
        found = _find_mask(slide, info, source, mask_resolution(edge_um))
    step = max(1, round((tile_size - params["overlap"]) * size_level0 / tile_size))
    tiled = TiledSlide(
        path=info.path,
        coords=tile_grid(info, level, read_size, size_level0, step, pad=params["pad"]),
        tile_size=tile_size,
        mpp=mpp,
        slide_mpp=info.mpp,
        slide_size=info.size,
        objective_power=info.objective_power,
        level=level,
        level_downsample=info.level_downsamples[level],
        read_size=read_size,
        size_level0=size_level0,
        tile_edge_um=edge_um,
        reader=reader,
        content=content,
        version=version,
    )
    survey = Survey(tiled, info, source, *found)
    coords, reason = _select_tiles(survey, params["min_tissue_fraction"])
    return replace(survey, tiled=replace(tiled, coords=coords, reason=reason))


def draw_tiles(survey, params, seed):
    """Draw at most `max_tiles` of the tiles on tissue."""
    tiled, limit = survey.tiled, params["max_tiles"]
    coords, files = tiled.coords, tiled.files
    if limit is not None and len(tiled) > limit:
        sequence = np.random.SeedSequence([seed, int(tiled.content, 16)])
        kept = np.random.default_rng(sequence).choice(len(tiled), limit, replace=False)
        kept.sort()
        coords = None if coords is None else coords[kept]
        files = files and tuple(files[position] for position in kept)
    params = params | {"tissue": describe_source(survey.source), "seed": seed}
    return replace(tiled, coords=coords, files=files, params=tuple(params.items()))


def tile_slide(row, params, seed, reader):
    """Tile one slide."""
    return draw_tiles(survey_slide(row, params, reader), params, seed)


def warn_repeated(slides):
    """Warn where several rows of X are files of the same slide."""
    found = {}
    for row in slides:
        with suppress(OSError, ValueError):
            files = slide_files(row.path)
            if len(files) > 1:
                found.setdefault(frozenset(map(os.path.realpath, files)), set()).add(row.path)
    repeated = [sorted(paths) for paths in found.values() if len(paths) > 1]
    if repeated:
        warn_user(
            f"{len(repeated)} slides are passed several times, as different files of one DICOM "
            f"series; the first is {repeated[0][:3]!r}. Pass one of the files, or their folder."
        )


def result_or_error(function, *args):
    """Return the result of a function, or the error that a bad slide causes."""
    try:
        return function(*args)
    except (OSError, ValueError) as error:
        return error


def _cache_key(row, params, seed, reader):
    """Return what identifies the tiles of one slide, None where they must not be cached."""
    try:
        source = choose_tissue(params["tissue"], row)
        mask = source if callable(source) else describe_source(source)
        state = slide_state(row.path)
    except (OSError, ValueError):
        return None
    params = params | {"tissue": mask}
    key = (state, row.path, row.mpp, *params.values(), seed, reader)
    return key if all(isinstance(value, Hashable) for value in key) else None


@cache
def _versions():
    names = ("sklearn_pk", "openslide-bin", "openslide-python", "tifffile", "imagecodecs", "pillow")
    return tuple(map(version, names))


class _BadSlideError(Exception):
    """Separates the error of a slide from errors of the cache."""


def _tile_for_cache(state, row, params, seed, reader):
    """Tile a slide; `state` is only an additional part of joblib's key."""
    try:
        return tile_slide(row, params, seed, reader)
    except (OSError, ValueError) as error:
        raise _BadSlideError(error) from error


def tile_or_load(row, params, seed, reader, memory):
    """Tile a slide, or load its tiles from the cache of an earlier run."""
    key = None if memory is None else _cache_key(row, params, seed, reader)
    # joblib identifies a function by its name, so a changed one would get old results.
    if key is None or callable(params["tissue"]) or callable(row.tissue):
        return result_or_error(tile_slide, row, params, seed, reader)
    try:
        full = file_version(row.path, params["full_hash"])
        state = (_versions(), fingerprint(row.path), full, key)
        return memory.cache(_tile_for_cache)(state, row, params, seed, reader)
    except _BadSlideError as error:
        return error.args[0]
    except OSError as error:
        folder = getattr(memory, "location", None) or "."
        raise OSError(
            f"Tiles of slide {row.path!r} cannot be kept in memory={str(folder)!r} "
            f"({error}){describe_space(folder)}. {CANNOT_WRITE}, or choose another folder."
        ) from error


def _inspect_row(row, tiled, params, seed, reader, size):
    """Make a thumbnail of one slide, with its tissue mask and its tiles."""
    survey = survey_slide(row, params, reader)
    if survey.info is None:
        raise ValueError(
            f"Slide {row.path!r} is a folder of tile images: there is no overview to draw."
        )
    if tiled is None:
        return *_make_thumbnail(survey, size), draw_tiles(survey, params, seed)
    current = describe_source(survey.source)
    former = dict(tiled.params).get("tissue", current)
    if former != current:
        raise ValueError(
            f"Slide {tiled.path!r} was tiled with the tissue mask {former!r}, this tiler has "
            f"{current!r}. Pass the row of X instead of the tiled slide."
        )
    return *_make_thumbnail(survey, size), tiled


def _make_thumbnail(survey, size):
    """Return a thumbnail, the mask on the same pixels, and level-0 pixels per pixel."""
    info, overview, scale = survey.info, survey.overview, survey.scale
    downsample = max(1.0, max(info.size) / size)
    if overview is None or scale > downsample:
        with open_slide(info.path, survey.tiled.reader) as slide:
            overview, scale = read_overview(slide, info, info.mpp * downsample)
    shape = [max(1, round(length / downsample)) for length in info.size]
    # The last pixels of an overview may extend beyond the slide.
    limits = overview.shape[1::-1]
    box = [min(side * downsample / scale, limit) for side, limit in zip(shape, limits, strict=True)]
    image = Image.fromarray(overview)
    thumbnail = np.asarray(image.resize(shape, Image.Resampling.BICUBIC, box=(0, 0, *box)))
    if survey.mask is None:
        return thumbnail, np.ones(thumbnail.shape[:2], dtype=bool), downsample
    step = downsample / survey.scale
    return thumbnail, sample_mask(survey.mask, thumbnail.shape[:2], (step, step)), downsample


class SlideTiler(TransformerMixin, BaseEstimator):
    """
    Find the tiles of tissue on whole slide images.

    Tiles are read from the best level of the pyramid and resampled to exactly `tile_size`
    pixels at `mpp`. Unless `pad` is True, no tile extends beyond its slide.

    Parameters
    ----------
    tile_size : int, default=256
        Edge of a tile in pixels at `mpp`.

    mpp : float, default=0.5
        Resolution in um/px; 0.5 is often called 20x. A level within 1 % of it is read without
        resampling; `TiledSlide.tile_edge_um` is the exact edge of the tiles.

    tissue : {"otsu", "saturation", "entropy"}, callable, array, path-like or None, default="otsu"
        How tissue is found:

        - "otsu": Otsu's thresholds of colour and saturation, as published [1]_;
        - "saturation": more saturated than the background. For slides with dark pigment, which
          shifts Otsu's thresholds so that pale tissue is lost;
        - "entropy": texture of any colour. For pale or grey tissue. Regions out of focus are
          lost;
        - a function from RGB pixels (height, width, 3), uint8, to a mask (height, width), bool.
          It must depend only on its input, since results are cached;
        - a mask (height, width) of bool or whole numbers over the whole slide, at any
          resolution;
        - the path of a mask image, or of a GeoJSON file with the areas drawn in QuPath. Areas of
          the class ``Ignore*`` are cut out;
        - the path of a folder with one such file per slide, named after it: ``S1.geojson`` or
          ``S1.png`` for ``S1.svs``;
        - None for no mask: all tiles are kept.

        Methods and functions work on an overview of 8 um/px or finer. The methods leave out the
        ink of pens: areas of at least 2000 um² with a colour that haematoxylin and eosin do not
        have, such as black, blue, green, yellow, brown or bright red. Purple and pink ink is not
        recognised. The optional column ``tissue`` of X replaces this parameter for single
        slides.

    min_tissue_fraction : float, default=0.2
        A tile is kept if more than this fraction of it is tissue. If tissue is found by a
        method or a function, flat tiles are left out too: those whose 1st and 99th percentiles
        of luminance on the overview differ by less than 5 % of the range. With a given mask,
        they are kept. Tiles on tissue that is found by a method are at most half ink.

    max_tiles : int or None, default=4000
        Largest number of tiles per slide. If there are more, this many are drawn at random. The
        draw depends only on `random_state` and the content of that slide.

    overlap : int, default=0
        Pixels at `mpp` by which neighbouring tiles overlap.

    pad : bool, default=False
        Whether tiles may extend beyond the right and the lower border, padded with white, so
        that they cover the whole slide. For `min_tissue_fraction`, padding is not tissue.

    full_hash : bool, default=False
        How slides larger than 8 MiB are recognised in a feature store. False samples 5 MiB of
        them and adds inode, size and times of the file: a slide that was changed, copied or moved
        is encoded again. Not noticed is a change that keeps all of them, such as one within the
        resolution of the clock of the file system (milliseconds). True reads all bytes once per
        process: nothing but the content counts.

    reader : {"auto", "openslide", "tifffile", "pillow", "pylibCZIrw"}, default="auto"
        Library that reads the slides. "auto" takes tifffile for TIFF files of which it returns
        the same pixels as OpenSlide, since it is faster, and for those that OpenSlide does not
        read; Pillow for PNG, JPEG, BMP and WebP; pylibCZIrw for CZI; and OpenSlide for all
        others.

    errors : {"raise", "empty"}, default="raise"
        What to do with slides that cannot be used: raise one error that names all of them, or
        warn, return a :class:`TiledSlide` without tiles and list the reason in `failures_`.

    memory : str, path-like, joblib.Memory or None, default=None
        Folder, or joblib cache, that stores the tile coordinates of each slide, so that a run
        that was killed continues where it stopped. Its files are pickles: use a folder that only
        you can write to. Tiles on tissue that is found by a function are not stored.

    n_jobs : int, default=None
        Number of slides processed at the same time, as in joblib; 1 is this process, also on a
        cluster.

    random_state : int, RandomState instance or None, default=None
        Seed of the draw of tiles. Pass an int for reproducible results.

    verbose : int, default=0
        1 shows a progress bar, or lines in a log.

    Attributes
    ----------
    failures_ : DataFrame with the columns ``slide`` and ``reason``
        Slides of the last call of :meth:`fit` or :meth:`transform` without tiles.

    seed_ : int
        Seed drawn from `random_state`.

    See Also
    --------
    FoundationFeaturizer : Encodes the tiles.
    check_slides : Reports for each slide whether it can be tiled, and into how many tiles.
    sklearn_pk.plotting.TissueMaskDisplay : Shows mask and tiles on a slide.

    Notes
    -----
    QuPath counts pixels from the corner of the scanned area if a slide states one
    (``openslide.bounds-x``, for example MIRAX); this is taken into account.

    :meth:`fit` opens each slide and checks its um/px, which takes milliseconds per slide, so
    that bad slides are reported before any work starts. Results of :meth:`transform` are
    cached in the process until the file or a parameter changes, since a search transforms the
    same slides many times.

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
        "full_hash": ["boolean"],
        "reader": [StrOptions({"auto", *READERS})],
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
        full_hash=False,
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
        self.full_hash = full_hash
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
            Slides: files, folders of one DICOM series, or folders of tile images; the user guide
            lists :ref:`the kinds <slide_files>`. The optional column ``mpp`` (um/px) replaces
            what the file states, and the optional column ``tissue`` replaces the parameter; NaN
            and None replace nothing.
        y : array-like or DataFrame of shape (n_slides,) or (n_slides, n_genes), default=None
            Expression. It is only checked, so that a pipeline refuses a table that does not
            match the slides before it encodes them.

        Returns
        -------
        self : SlideTiler
            The estimator.

        Raises
        ------
        TypeError
            If X is not a list of paths.
        FileNotFoundError, PermissionError, ValueError
            If a slide cannot be used and `errors` is "raise"; all such slides are named. Also
            if y has other samples than X, NaN, or a gene twice.
        """
        slides = self._check_slides(X)
        if y is not None:
            check_expression(y, estimator_name=type(self).__name__)
            check_sample_names(X, y)
        warn_repeated(slides)
        params = self._tiling_params()
        results = [result_or_error(check_row, row, params, self.reader) for row in slides]
        self._report(slides, results)
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
            One per slide, in order. A slide without tissue has no tiles and states why in
            `reason`.

        Raises
        ------
        TypeError
            If X is not a list of paths.
        FileNotFoundError, PermissionError, ValueError
            If a slide cannot be used and `errors` is "raise"; all such slides are named.
        """
        check_is_fitted(self)
        slides, params = self._check_slides(X), self._tiling_params()
        keys = [_cache_key(row, params, self.seed_, self.reader) for row in slides]
        found = [None if key is None else _cache.get(key) for key in keys]
        todo = [position for position, tiled in enumerate(found) if tiled is None]
        for position, tiled in self._tile(slides, params, todo):
            found[position] = tiled
            if keys[position] is not None and isinstance(tiled, TiledSlide):
                _cache[keys[position]] = tiled
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
        self._report(slides, found)
        return [
            self._make_empty(row, tiled) if isinstance(tiled, Exception) else tiled
            for row, tiled in zip(slides, found, strict=True)
        ]

    def _tile(self, slides, params, positions):
        """Yield the position of each slide as it is done, with its tiles or its error."""
        memory = self.memory
        if memory is not None:
            is_path = isinstance(memory, str | os.PathLike)
            memory = check_memory(os.path.abspath(memory) if is_path else memory)
        tasks = [
            (*self._make_absolute(slides[at], params), self.seed_, self.reader, memory)
            for at in positions
        ]
        name = [slides[at].path for at in positions].__getitem__
        results = map_tasks(tile_or_load, tasks, n_jobs=self.n_jobs, name=name)
        options = {"total": len(tasks), "desc": "Tiling", "unit": "slide", "verbose": self.verbose}
        with closing(results):
            for number, tiled in progress(results, **options):
                position = positions[number]
                if isinstance(tiled, TiledSlide):
                    tiled = replace(tiled, path=slides[position].path)
                yield position, tiled

    def _make_absolute(self, row, params):
        """Make paths absolute, so that a worker in another folder finds the files."""
        path, tissue = os.path.abspath(row.path), absolute_tissue(row.tissue)
        params = params | {"tissue": absolute_tissue(params["tissue"])}
        return row._replace(path=path, tissue=tissue), params

    def inspect_slide(self, slide, *, size=1200):
        """
        Make a thumbnail of one slide, with its tissue mask and its tiles.

        Parameters
        ----------
        slide : path-like, DataFrame of one row, or TiledSlide
            Slide, as a row of X in :meth:`fit`. A TiledSlide keeps its tiles.
        size : int, default=1200
            Longer side of the thumbnail in pixels; a smaller slide is not enlarged.

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
        [(_, found)] = self._inspect(X, size)
        if isinstance(found, Exception):
            raise found
        return found

    def inspect_slides(self, X, *, size=300):
        """
        Make a thumbnail of each slide, with its tissue mask and its tiles.

        Parameters
        ----------
        X : list of path-like, Series, DataFrame with the column ``slide``, or list of TiledSlide
            Slides, as in :meth:`fit`. TiledSlides keep their tiles.
        size : int, default=300
            Longer side of a thumbnail in pixels; a smaller slide is not enlarged.

        Returns
        -------
        inspected : list of tuple
            Thumbnail, mask, downsample and TiledSlide of each, as from :meth:`inspect_slide`.
            For a slide that cannot be used, the first three are None, and `reason` of the last
            states why.

        Raises
        ------
        TypeError
            If X is not a list of slides.
        ValueError
            If a parameter is wrong.
        """
        return [
            (None, None, None, self._make_empty(row, found))
            if isinstance(found, Exception)
            else found
            for row, found in self._inspect(X, size)
        ]

    def _inspect(self, X, size):
        """Return each slide with its thumbnail, mask and tiles, or with its error."""
        self._validate_params()
        tiled = None
        if isinstance(X, list | tuple) and X and all(isinstance(each, TiledSlide) for each in X):
            tiled = X
            columns = {"slide": [each.path for each in X], "mpp": [each.slide_mpp for each in X]}
            X = pd.DataFrame(columns)
        slides, params = self._check_slides(X), self._tiling_params()
        seed = getattr(self, "seed_", None)
        seed = self._draw_seed() if seed is None else seed
        tasks = [
            (_inspect_row, row, each, params, seed, self.reader, size)
            for row, each in zip(slides, tiled or [None] * len(slides), strict=True)
        ]
        name = [row.path for row in slides].__getitem__
        results = map_in_order(result_or_error, tasks, n_jobs=self.n_jobs, name=name)
        options = {"total": len(slides), "desc": "Drawing", "unit": "slide"}
        return list(zip(slides, progress(results, verbose=self.verbose, **options), strict=True))

    def _make_empty(self, row, error):
        tile_size, mpp = self.tile_size, float(self.mpp)
        return TiledSlide(
            row.path, tile_size=tile_size, mpp=mpp, reason=str(error), reader=self.reader
        )

    def _check_slides(self, X):
        """Check X, and the parameters that depend on X or on another parameter."""
        slides = check_slide_list(X)
        check_tissue(self.tissue, slides)
        if self.overlap >= self.tile_size:
            raise InvalidParameterError(
                f"overlap must be smaller than tile_size={self.tile_size}, got {self.overlap}."
            )
        return slides

    def _tiling_params(self):
        names = ["tile_size", "mpp", "tissue", "min_tissue_fraction", "max_tiles", "overlap"]
        names += ["pad", "full_hash"]
        return {name: getattr(self, name) for name in names}

    def _draw_seed(self):
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _report(self, slides, results):
        """Raise or warn about bad slides, and list slides without tiles in `failures_`."""
        if self.errors == "raise":
            raise_failures([result for result in results if isinstance(result, Exception)])
        failures = [
            (row.path, str(result) if isinstance(result, Exception) else result.reason)
            for row, result in zip(slides, results, strict=True)
            if isinstance(result, Exception) or (result is not None and not len(result))
        ]
        self.failures_ = failures_frame(failures)
        if self.errors == "empty":
            warn_failures(failures, "tiles")

    def __sklearn_tags__(self):
        """Declare that X is a list of files."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags
