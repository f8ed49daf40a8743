"""Where the tissue is on an overview of a slide."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy import ndimage

# Background differs from tissue by more than this share of the range of saturation.
_MIN_SATURATION_GAP = 0.05


def otsu_threshold(values):
    """
    Compute Otsu's threshold of 8-bit values.

    Parameters
    ----------
    values : ndarray, uint8
        Any shape.

    Returns
    -------
    int
        The threshold t that separates values <= t from values > t with the largest variance
        between the two classes.

    References
    ----------
    .. [1] Otsu, "A threshold selection method from gray-level histograms", IEEE
       Transactions on Systems, Man, and Cybernetics 9:62 (1979).
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(256))
    valid = (below > 0) & (above > 0)
    if not valid.any():
        return int(values.flat[0])
    mean_below = sums[valid] / below[valid]
    mean_above = (sums[-1] - sums[valid]) / above[valid]
    between = below[valid] * above[valid] * np.square(mean_below - mean_above)
    return int(np.flatnonzero(valid)[between.argmax()])


def saturation(rgb):
    """
    Compute the saturation of HSV as 8-bit values.

    Parameters
    ----------
    rgb : ndarray of shape (height, width, 3), uint8
        RGB pixels.

    Returns
    -------
    ndarray of shape (height, width), uint8
        255 for pure colours, 0 for greys.
    """
    largest = rgb.max(axis=2).astype(np.uint16)
    spread = 255 * (largest - rgb.min(axis=2))
    return (spread // np.maximum(largest, 1)).astype(np.uint8)


def otsu_mask(rgb):
    """
    Find tissue by Otsu's thresholds of colour and saturation.

    Tissue is what is not bright in all of R, G and B, is saturated, and is not
    nearly black (pen, folds), with small gaps closed by three iterations. An
    overview whose two classes of saturation hardly differ has no tissue.

    Parameters
    ----------
    rgb : ndarray of shape (height, width, 3), uint8
        Overview of the slide.

    Returns
    -------
    ndarray of shape (height, width), bool
        True on tissue.

    References
    ----------
    .. [1] M. Pizurica et al., "Digital profiling of gene expression from histology images
       with linearized attention", Nature Communications 15:9886, 2024.
    """
    saturated = saturation(rgb)
    cut = otsu_threshold(saturated)
    upper = saturated > cut
    if not upper.any():
        return upper
    # Otsu parts noise as readily as tissue. The gap between the two classes, unlike a
    # percentile, does not depend on how little of the slide a biopsy covers.
    if saturated[upper].mean() - saturated[~upper].mean() < _MIN_SATURATION_GAP * 255:
        return np.zeros(rgb.shape[:2], dtype=bool)
    thresholds = np.array([otsu_threshold(rgb[..., channel]) for channel in range(3)])
    bright = (rgb > thresholds).all(axis=2)
    mask = ~bright & upper & (rgb > 50).all(axis=2)
    # Pad, or closing would erode what touches the border.
    return ndimage.binary_closing(np.pad(mask, 3), iterations=3)[3:-3, 3:-3]


def compute_mask(rgb, tissue, slide):
    """
    Mask the tissue of an overview by the method asked for.

    Parameters
    ----------
    rgb : ndarray of shape (height, width, 3), uint8
        Overview of the slide.
    tissue : {"otsu"}, callable or None
        Method, function of the overview, or None for a mask that is True all over.
    slide : str
        Path of the slide, for the text of errors.

    Returns
    -------
    ndarray of shape (height, width), bool
        True on tissue.

    Raises
    ------
    ValueError
        If a callable returns an array of another shape.
    """
    if tissue is None:
        return np.ones(rgb.shape[:2], dtype=bool)
    if not callable(tissue):
        return otsu_mask(rgb)
    mask = np.asarray(tissue(rgb))
    if mask.shape != rgb.shape[:2]:
        raise ValueError(
            f"tissue must return a mask of shape {rgb.shape[:2]}, got {mask.shape} for slide "
            f"{slide!r}."
        )
    return mask.astype(bool)


def tissue_fractions(mask, corners, edge):
    """
    Compute the share of tissue in square windows.

    Parameters
    ----------
    mask : ndarray of shape (height, width), bool
        True on tissue.
    corners : ndarray of shape (n, 2), float
        x and y of the upper left corner of each window, in px of the mask.
    edge : float
        Width and height of the windows, in px of the mask.

    Returns
    -------
    ndarray of shape (n,)
        Shares between 0 and 1.
    """
    sums = np.pad(np.cumsum(np.cumsum(mask, axis=0), axis=1), ((1, 0), (1, 0)))
    limits = np.array(mask.shape[::-1])
    start = np.minimum(np.round(corners).astype(int), limits - 1)
    stop = np.clip(np.round(corners + edge).astype(int), start + 1, limits)
    inside = (
        sums[stop[:, 1], stop[:, 0]]
        - sums[start[:, 1], stop[:, 0]]
        - sums[stop[:, 1], start[:, 0]]
        + sums[start[:, 1], start[:, 0]]
    )
    return inside / np.prod(stop - start, axis=1)


def low_contrast(rgb, corners, edge, *, share=0.05):
    """
    Find windows in which hardly anything varies.

    Parameters
    ----------
    rgb : ndarray of shape (height, width, 3), uint8
        Overview of the slide.
    corners : ndarray of shape (n, 2), float
        x and y of the upper left corner of each window, in px of the overview.
    edge : float
        Width and height of the windows, in px of the overview.
    share : float, default=0.05
        Smallest distance between the 1st and the 99th percentile of luminance, as a share of
        its range, that is contrast.

    Returns
    -------
    ndarray of shape (n,), bool
        True where there is no contrast.
    """
    gray = (rgb @ np.array([0.2125, 0.7154, 0.0721])).astype(np.float32)
    offsets = np.arange(max(1, int(edge)))
    flat = np.empty(len(corners), dtype=bool)
    for first in range(0, len(corners), 4096):
        start = np.round(corners[first : first + 4096]).astype(int)
        rows = np.minimum(start[:, 1:] + offsets, gray.shape[0] - 1)
        columns = np.minimum(start[:, :1] + offsets, gray.shape[1] - 1)
        windows = gray[rows[:, :, np.newaxis], columns[:, np.newaxis, :]]
        low, high = np.percentile(windows.reshape(len(start), -1), (1, 99), axis=1)
        flat[first : first + 4096] = (high - low) / 255 < share
    return flat
