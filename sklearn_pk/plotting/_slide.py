"""Parts that displays share: overview, mask, tiles, scale bar, colour bar and title."""

# SPDX-License-Identifier: BSD-3-Clause

import os

import numpy as np
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PatchCollection
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy
from mpl_toolkits.axes_grid1 import make_axes_locatable

from ..slides._wsi import _reader
from ._style import OKABE_ITO

TILE_COLOR = OKABE_ITO[0]
# Darkens the background, so that the colours of the tissue stay as they are.
VEIL = (0.0, 0.0, 0.0, 0.35)


def read_overview(path, size):
    """Read a whole slide; return its pixels, level-0 pixels per pixel, and um/px of level 0."""
    try:
        with _reader.open_slide(path) as slide:
            # With 1 um/px, resolutions are level-0 pixels per pixel.
            info = _reader.slide_info(slide, os.fspath(path), mpp=1.0)
            resolution = max(1.0, max(info.size) / size)
            overview, downsample = _reader.read_overview(slide, info, resolution)
            return overview, downsample, float(np.mean(_reader.stated_mpp(slide.properties)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"slide: {error} Or pass thumbnail= and downsample=, which SlideTiler().inspect_slide "
            "returns."
        ) from error


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


def fit_title(ax, parts, *, fontsize=None):
    """Set a title on one line or, where that is wider than the axes, one part per line."""
    parts = [part for part in parts if part]
    title = ax.set_title(": ".join(parts), fontsize=fontsize)
    width = ax.get_window_extent().width
    if title.get_window_extent().width > width:
        title.set_text("\n".join(parts))
        title.set_fontsize(title.get_fontsize() * min(1.0, width / title.get_window_extent().width))
    return title
