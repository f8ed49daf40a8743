"""What pictures have in common: overview, mask, tiles, scale bar, colour bar and title."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import openslide
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PatchCollection
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy
from mpl_toolkits.axes_grid1 import make_axes_locatable

from ..slides._wsi._overview import read_reduced, to_rgb
from ._style import OKABE_ITO

TILE_COLOR = OKABE_ITO[0]
# A veil over the glass leaves the colours of the tissue as they are.
VEIL = (0.0, 0.0, 0.0, 0.35)


def read_overview(path, size):
    """Read a whole slide with OpenSlide, in blocks that bound the memory."""
    try:
        with openslide.OpenSlide(path) as slide:
            wanted = max(1.0, max(slide.dimensions) / size)
            level = slide.get_best_level_for_downsample(wanted)
            downsample = slide.level_downsamples[level]
            factor = max(1, int(wanted / downsample))
            mpp = float(slide.properties.get(openslide.PROPERTY_NAME_MPP_X, "nan"))

            def read(x, y, extent):
                return to_rgb(slide.read_region((x, y), level, extent))

            overview = read_reduced(read, slide.level_dimensions[level], downsample, factor)
            return overview, factor * downsample, mpp
    except openslide.OpenSlideError as error:
        raise ValueError(
            f"slide: OpenSlide cannot read {str(path)!r} ({error}). Check the path, or pass "
            "thumbnail= and downsample=, which SlideTiler().inspect_slide returns."
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
    """Darken what is no tissue."""
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
    # float32 values that differ by rounding alone are no pattern.
    if high - low <= 1e-6 * np.abs(values).max():
        middle, margin = (low + high) / 2, max(0.01 * abs(high), 0.01)
        low, high = middle - margin, middle + margin
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        raise ValueError(f"vmin must be smaller than vmax, got {low:g} and {high:g}.")
    return float(low), float(high)


def draw_color_bar(ax, artist, label, *, extend="neither", fontsize=None):
    """Draw a colour bar that is as high as the picture beside it."""
    if isinstance(ax.figure.get_layout_engine(), ConstrainedLayoutEngine):
        place = ax.inset_axes((1.03, 0, 0.05, 1))  # the layout makes room for it
    else:
        divider = make_axes_locatable(ax)
        place = divider.append_axes("right", size=0.13, pad=0.08)
        divider.append_axes("right", size=0.5, pad=0).set_visible(False)  # room for the text
        ax.apply_aspect(ax.get_axes_locator()(ax, None))
    bar = ax.figure.colorbar(artist, cax=place, extend=extend)
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
