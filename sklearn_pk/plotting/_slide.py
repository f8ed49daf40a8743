"""What the pictures of slides have in common: mask, tiles and scale bar."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from ._colors import OKABE_ITO

TILE_COLOR = OKABE_ITO[0]
# A veil over the glass leaves the colours of the tissue as they are.
VEIL = (0.0, 0.0, 0.0, 0.35)


def scale_bar_length(width_um):
    """
    Choose a round length of about a fifth of the width.

    Parameters
    ----------
    width_um : float
        Width of the picture in um.

    Returns
    -------
    length : float
        1, 2 or 5 times a power of ten, in um.
    """
    target = width_um / 5
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9)))


def format_um(length):
    """
    Write a length with its unit.

    Parameters
    ----------
    length : float
        Length in um.

    Returns
    -------
    text : str
        In mm from 1,000 um on.
    """
    return f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"


def draw_veil(ax, mask, width, height):
    """
    Darken what is no tissue.

    Parameters
    ----------
    ax : matplotlib Axes
        Axes with the picture of the slide.
    mask : ndarray of shape (n_rows, n_columns), bool
        True on tissue, over the whole slide.
    width, height : int
        Size of the picture in its pixels.

    Returns
    -------
    veil : matplotlib AxesImage
        The veil.
    """
    veil = np.zeros((*mask.shape, 4), dtype=np.float32)
    veil[~mask] = VEIL
    return ax.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")


def draw_squares(ax, corners, edge, **style):
    """
    Outline tiles, the thinner the smaller they are.

    Parameters
    ----------
    ax : matplotlib Axes
        Axes with the picture of the slide, whose limits are set.
    corners : ndarray of shape (n, 2), float
        x and y of upper left corners, in px of the picture.
    edge : float
        Edge of a tile in px of the picture.
    **style : object
        Passed to ``matplotlib.collections.PatchCollection``.

    Returns
    -------
    squares : matplotlib PatchCollection
        The tiles.
    """
    box = ax.get_window_extent()
    spans = (np.ptp(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
    pixel = min(length / span for length, span in zip((box.width, box.height), spans, strict=True))
    width = float(np.clip(0.07 * edge * pixel * 72 / ax.figure.dpi, 0.15, 1.0))
    own = {"edgecolor": TILE_COLOR, "facecolor": "none", "linewidth": width}
    own |= normalize_kwargs(style, PatchCollection)
    squares = PatchCollection([Rectangle(corner, edge, edge) for corner in corners], **own)
    return ax.add_collection(squares)


def draw_scale_bar(ax, width, pixel_um, *, fontsize=None):
    """
    Draw a scale bar below the lower right corner, where it hides nothing.

    Parameters
    ----------
    ax : matplotlib Axes
        Axes with a picture.
    width : int
        Width of the picture in its pixels.
    pixel_um : float
        Edge of one of its pixels in um.
    fontsize : float, default=None
        Size of the text in points; None takes matplotlib's.
    """
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
    """
    Make coordinates whose x is that of the data and whose y is 0 a little below the axes.

    Parameters
    ----------
    ax : matplotlib Axes
        The axes.
    points : float
        Distance in points.

    Returns
    -------
    transform : matplotlib Transform
        The coordinates.
    """
    return offset_copy(ax.get_xaxis_transform(), fig=ax.figure, y=-points, units="points")
