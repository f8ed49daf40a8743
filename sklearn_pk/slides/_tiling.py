"""The tiles of one slide: overview, mask, grid, choice and draw."""

# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from PIL import Image

from ._grid import mask_resolution, share_inside, tile_geometry, tile_grid
from ._tiled import TiledSlide
from ._tissue._masks import choose_tissue, describe_source, draw_mask, is_drawn, sample_mask
from ._tissue._methods import compute_mask, low_contrast, tissue_fractions
from ._wsi._reader import SlideInfo, check_slide, fingerprint, open_slide, read_overview, slide_info


def edge_um(info, geometry):
    """Compute the edge of a tile that is really read."""
    level, read_size, _ = geometry
    return read_size * info.level_downsamples[level] * info.mpp


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found on one slide, before tiles are drawn."""

    info: SlideInfo
    geometry: tuple
    coords: np.ndarray
    reason: str
    source: object
    mask: np.ndarray
    overview: np.ndarray
    scale: float
    reader: str
    content: str

    @property
    def tile_edge_um(self):
        """Edge of a tile that is really read, in um."""
        return edge_um(self.info, self.geometry)

    @property
    def tissue_mm2(self):
        """Area of the mask."""
        if self.mask is None:
            return np.prod(np.array(self.info.size) * self.info.mpp) / 1e6
        return self.mask.sum() * (self.scale * self.info.mpp) ** 2 / 1e6


def check_row(row, params, reader):
    """Check that a slide can be tiled, without reading its tissue."""
    info = check_slide(row.path, row.mpp, reader)
    tile_geometry(info, params["tile_size"], float(params["mpp"]))
    source = choose_tissue(params["tissue"], row)
    if is_drawn(source):
        with open_slide(row.path, reader) as slide:
            draw_mask(source, slide, info, (1, 1), max(info.size))


def _find_mask(slide, info, source, mpp):
    """Return the mask, the overview it was found on, and their level-0 pixels per pixel."""
    if source is None:
        return None, None, 1.0
    if is_drawn(source):
        # The drawing needs no pixel of the slide.
        scale = max(1.0, mpp / info.mpp)
        width, height = (int(np.ceil(length / scale)) for length in info.size)
        return draw_mask(source, slide, info, (height, width), scale), None, scale
    overview, scale = read_overview(slide, info, mpp)
    return compute_mask(overview, source, info.path), overview, scale


def _select(survey, min_tissue_fraction):
    """Keep the tiles on tissue; return them with the reason why there are none."""
    coords, mask, scale = survey.coords, survey.mask, survey.scale
    if mask is None:
        return coords, ""
    if not mask.any():
        drawn = is_drawn(survey.source)
        return coords[:0], (
            "The tissue mask is empty." if drawn else "No tissue was found on the overview."
        )
    size_level0 = survey.geometry[2]
    edge = size_level0 / scale
    share = tissue_fractions(mask, coords / scale, edge)
    # What sticks out of the slide is no tissue.
    share *= share_inside(coords, size_level0, survey.info.size)
    coords = coords[share > min_tissue_fraction]
    if not len(coords):
        return coords, (
            f"No tile has more than min_tissue_fraction={min_tissue_fraction:g} tissue; "
            f"the fullest has {share.max():.3f}."
        )
    if survey.overview is None:
        return coords, ""
    coords = coords[~low_contrast(survey.overview, coords / scale, edge)]
    return coords, "" if len(coords) else "All tiles on tissue are flat (low contrast)."


def survey_slide(row, params, reader):
    """Find the tissue of one slide and all tiles on it."""
    source = choose_tissue(params["tissue"], row)
    tile_size, mpp = params["tile_size"], float(params["mpp"])
    with open_slide(row.path, reader) as slide:
        content = fingerprint(row.path)
        info = slide_info(slide, row.path, row.mpp)
        geometry = level, read_size, size_level0 = tile_geometry(info, tile_size, mpp)
        overview_mpp = mask_resolution(edge_um(info, geometry))
        mask, overview, scale = _find_mask(slide, info, source, overview_mpp)
    step = max(1, round((tile_size - params["overlap"]) * size_level0 / tile_size))
    coords = tile_grid(info, level, read_size, size_level0, step, pad=params["pad"])
    survey = Survey(info, geometry, coords, "", source, mask, overview, scale, slide.name, content)
    if len(coords):
        coords, reason = _select(survey, params["min_tissue_fraction"])
        return replace(survey, coords=coords, reason=reason)
    return replace(
        survey,
        reason=(
            f"The slide of {info.size[0]} x {info.size[1]} pixels is smaller than one tile of "
            f"{size_level0} pixels; pad=True would fill it up."
        ),
    )


def draw_tiles(survey, params, seed):
    """Draw `max_tiles` of the tiles that were found."""
    info, coords, limit = survey.info, survey.coords, params["max_tiles"]
    if limit is not None and len(coords) > limit:
        sequence = np.random.SeedSequence([seed, int(survey.content, 16)])
        kept = np.random.default_rng(sequence).choice(len(coords), limit, replace=False)
        coords = coords[np.sort(kept)]
    level, read_size, size_level0 = survey.geometry
    said = params | {"tissue": describe_source(survey.source), "seed": seed}
    return TiledSlide(
        path=info.path,
        coords=coords,
        tile_size=params["tile_size"],
        mpp=float(params["mpp"]),
        slide_mpp=info.mpp,
        slide_size=info.size,
        objective_power=info.objective_power,
        level=level,
        level_downsample=info.level_downsamples[level],
        read_size=read_size,
        size_level0=size_level0,
        tile_edge_um=survey.tile_edge_um,
        params=tuple(said.items()),
        reason=survey.reason,
        reader=survey.reader,
        content=survey.content,
    )


def tile_slide(row, params, seed, reader):
    """Tile one slide."""
    return draw_tiles(survey_slide(row, params, reader), params, seed)


def split_tiled(X):
    """Take the paths and um/px from slides that were tiled."""
    if isinstance(X, list | tuple) and X and all(isinstance(each, TiledSlide) for each in X):
        columns = {"slide": [each.path for each in X], "mpp": [each.slide_mpp for each in X]}
        return pd.DataFrame(columns), X
    return X, None


def inspect_row(row, tiled, params, seed, reader, size):
    """Make a picture of one slide, with its tissue mask and its tiles."""
    survey = survey_slide(row, params, reader)
    if tiled is None:
        tiled = draw_tiles(survey, params, seed)
    else:
        check_same_tissue(tiled, survey)
    return (*picture_slide(survey, size), tiled)


def check_same_tissue(tiled, survey):
    """Check that a slide was tiled by the mask that was found now."""
    params = dict(tiled.params)
    now = describe_source(survey.source)
    if params.get("tissue", now) != now:
        raise ValueError(
            f"Slide {tiled.path!r} was tiled with the tissue mask {params['tissue']!r}, this tiler "
            f"has {now!r}. Pass the row of X instead of the tiled slide."
        )


def picture_slide(survey, size):
    """Make a picture of a slide and put its mask on the same pixels."""
    info = survey.info
    overview, scale = survey.overview, survey.scale
    downsample = max(1.0, max(info.size) / size)
    if overview is None or scale > downsample:
        with open_slide(info.path, survey.reader) as slide:
            overview, scale = read_overview(slide, info, info.mpp * downsample)
    thumbnail = shrink(overview, scale, info.size, downsample)
    if survey.mask is None:
        return thumbnail, np.ones(thumbnail.shape[:2], dtype=bool), downsample
    step = downsample / survey.scale
    return thumbnail, sample_mask(survey.mask, thumbnail.shape[:2], (step, step)), downsample


def shrink(overview, scale, size, downsample):
    """Resample an overview to a coarser resolution."""
    shape = [max(1, round(length / downsample)) for length in size]
    # The last pixels of an overview may reach over the border of the slide.
    limits = overview.shape[1::-1]
    box = [min(side * downsample / scale, limit) for side, limit in zip(shape, limits, strict=True)]
    image = Image.fromarray(overview)
    return np.asarray(image.resize(shape, Image.Resampling.BICUBIC, box=(0, 0, *box)))
