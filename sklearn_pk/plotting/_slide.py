"""Parts that displays share: overview, mask, tiles, scale bar, colour bar and title."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PatchCollection
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy
from mpl_toolkits.axes_grid1 import make_axes_locatable
from scipy.spatial import cKDTree

from ..slides._wsi import _reader
from ..utils._reporting import warn_user
from ..utils._validation import did_you_mean, same_sample
from ._style import OKABE_ITO

TILE_COLOR = OKABE_ITO[0]
# Limits of the colours of a map.
MAP_LIMITS = {"percentiles": (1, 99)}
# Darkens the background, so that the colours of the tissue stay as they are.
VEIL = (0.0, 0.0, 0.0, 0.35)


def load_overview(path, size):
    """
    Read a whole slide.

    Return its pixels, level-0 pixels per pixel, um/px of level 0, and the properties of the file.
    """
    with _reader.open_slide(path) as slide:
        # With 1 um/px, resolutions are level-0 pixels per pixel.
        info = _reader.slide_info(slide, os.fspath(path), mpp=1.0)
        resolution = max(1.0, max(info.size) / size)
        overview, downsample = _reader.read_overview(slide, info, resolution)
        mpp = float(np.mean(_reader.stated_mpp(slide.properties)))
        return overview, downsample, mpp, dict(slide.properties)


def read_overview(path, size):
    """Read a whole slide for a display; return its pixels, level-0 pixels per pixel, and um/px."""
    try:
        return load_overview(path, size)[:3]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"slide: {error} Or pass thumbnail= and downsample=, which SlideTiler().inspect_slide "
            "returns."
        ) from error


def check_tile_table(tiles, name="tiles"):
    """Check that a table holds the tiles of one slide."""
    if not isinstance(tiles, pd.DataFrame):
        raise TypeError(
            f"{name} must be the DataFrame of one slide, such as predict_tiles([bag])[0], got an "
            f"instance of {type(tiles).__name__}."
        )
    if list(tiles.index.names) != ["x", "y"]:
        raise ValueError(
            f"{name} must be indexed by x and y, the corners of the tiles in level-0 pixels, but "
            f"the index is {list(tiles.index.names)}. predict_tiles returns such a table for "
            "FeatureBag(features, coords=...); arrays and super-tiles have no coordinates."
        )


def name_of_slide(tiles):
    """Return the slide of a table; for a path, the name of the file without suffix."""
    name = str(tiles.attrs.get("slide") or "")
    return Path(name).stem if Path(name).name != name else name


def warn_if_other_slide(name, path):
    """Warn if the tiles are of another slide than the image."""
    if name and not same_sample(str(name), str(path)):
        warn_user(f"The tiles are from the slide {name!r}, but the image is from {str(path)!r}.")


def edges_of_tiles(corners, tile_size):
    """Return the edge of a tile, and of its part that does not overlap other tiles."""
    if len(corners) == 1:
        if tile_size is None:
            raise ValueError("tile_size cannot be inferred from one tile; pass it.")
        return tile_size, tile_size
    distances = cKDTree(corners).query(corners, k=2, p=np.inf)[0][:, 1]
    if not distances.all():
        repeated = corners[distances.argmin()].tolist()
        raise ValueError(f"corners must be unique, but several tiles start at {repeated}.")
    # Not the minimum: some tools use one grid per piece of tissue, which may touch another.
    step = np.quantile(distances, 0.05, method="lower")
    edge = step if tile_size is None else tile_size
    return edge, min(edge, step)


def common_limits(tables, gene):
    """Return the 1st and the 99th percentile of a gene over the tiles of several slides."""
    tables = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    for table in tables:
        check_tile_table(table, "each table of reference")
        if gene not in table.columns:
            raise ValueError(
                f"reference: the table of the slide {name_of_slide(table)!r} lacks the gene "
                f"{gene!r}.{did_you_mean([gene], table.columns)}"
            )
    return color_limits(np.concatenate([table[gene] for table in tables]), None, None, **MAP_LIMITS)


def scale_bar_length(width_um):
    """Choose a round length of about a fifth of the width."""
    target = width_um / 5
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def format_um(length):
    """Write a length with its unit."""
    return f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"


def draw_veil(ax, mask, width, height):
    """Darken the background."""
    veil = np.zeros((*mask.shape, 4), dtype=np.float32)
    veil[~mask] = VEIL
    return ax.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")


def draw_squares(ax, corners, edge, **style):
    """Outline tiles, the thinner the smaller they are."""
    box = ax.get_window_extent()
    spans = (np.ptp(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
    pixel = min(length / span for length, span in zip((box.width, box.height), spans, strict=True))
    width = float(np.clip(0.07 * edge * pixel * 72 / ax.figure.dpi, 0.15, 1.0))
    own = {"edgecolor": TILE_COLOR, "facecolor": "none", "linewidth": width}
    own |= normalize_kwargs(style, PatchCollection)
    squares = PatchCollection([Rectangle(corner, edge, edge) for corner in corners], **own)
    return ax.add_collection(squares)


def draw_scale_bar(ax, width, pixel_um, *, fontsize=None):
    """Draw a scale bar below the lower right corner, where it hides nothing."""
    length = scale_bar_length(width * pixel_um)
    start = width - length / pixel_um
    below = below_axes(ax, 8)
    bar = {"color": "black", "lw": 3, "solid_capstyle": "butt", "clip_on": False}
    ax.plot([start, width], [0, 0], transform=below, **bar)
    ax.annotate(
        format_um(length),
        (start, 0),
        xycoords=below,
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=fontsize,
    )


def below_axes(ax, points):
    """Make coordinates whose x is that of the data and whose y is 0 a little below the axes."""
    return offset_copy(ax.get_xaxis_transform(), fig=ax.figure, y=-points, units="points")


def color_limits(values, vmin, vmax, *, percentiles=(0, 100)):
    """Choose what both ends of the colours stand for."""
    low, high = np.percentile(values, percentiles)
    # float32 values that differ only by rounding would look like a pattern.
    if high - low <= 1e-6 * np.abs(values).max():
        middle, margin = (low + high) / 2, max(0.01 * abs(high), 0.01)
        low, high = middle - margin, middle + margin
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        raise ValueError(f"vmin must be smaller than vmax, got {low:g} and {high:g}.")
    return float(low), float(high)


def draw_color_bar(ax, artist, label, *, extend="neither", fontsize=None):
    """Draw a colour bar as high as the image next to it."""
    if isinstance(ax.figure.get_layout_engine(), ConstrainedLayoutEngine):
        bar_ax = ax.inset_axes((1.03, 0, 0.05, 1))  # the layout makes room for it
    else:
        divider = make_axes_locatable(ax)
        bar_ax = divider.append_axes("right", size=0.13, pad=0.08)
        divider.append_axes("right", size=0.5, pad=0).set_visible(False)  # room for the text
        ax.apply_aspect(ax.get_axes_locator()(ax, None))
    bar = ax.figure.colorbar(artist, cax=bar_ax, extend=extend)
    bar.set_label(label, fontsize=fontsize)
    bar.ax.tick_params(labelsize=fontsize)
    return bar


def fit_title(ax, parts, *, fontsize=None, below=None):
    """Set a title on one line or, where that is wider than the axes, one part per line."""
    parts, last = [part for part in parts if part], f"\n{below}" if below else ""
    title = ax.set_title(": ".join(parts) + last, fontsize=fontsize)
    width = ax.get_window_extent().width
    if title.get_window_extent().width > width:
        title.set_text("\n".join(parts) + last)
        title.set_fontsize(title.get_fontsize() * min(1.0, width / title.get_window_extent().width))
    return title
