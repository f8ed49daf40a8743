"""Find the ink of pens on an overview: colours that haematoxylin and eosin do not make."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from PIL import Image
from scipy import ndimage

# Pixels are averaged to this, so that ink is not sought in single nuclei, which can be blue.
_MPP = 4.0
# Smaller areas are debris, nuclei or pigment.
_MIN_UM2 = 2000
_NEIGHBORS = np.ones((3, 3), dtype=bool)


# How much of a channel is absorbed (natural logarithm).
_ABSORBANCE = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
_BACKGROUND = 0.2


def has_ink_color(rgb):
    """Find pixels with the colour of ink, and those that can be ink mixed with background."""
    channels = np.moveaxis(rgb, 2, 0)
    # The rest of an overview is background, which would take most of the time.
    dark = np.logical_or.reduce([_ABSORBANCE[each] > _BACKGROUND for each in channels])
    found = np.zeros((2, *dark.shape), dtype=bool)
    found[:, dark] = _classify(*(_ABSORBANCE[each[dark]] for each in channels))
    return found


def _classify(red, green, blue):
    largest = np.maximum(np.maximum(red, green), blue)
    smallest = np.minimum(np.minimum(red, green), blue)
    # Of less, the hue is not certain. Both stains absorb green most; haematoxylin absorbs red up
    # to as much, and neither absorbs blue as much.
    blue_or_green = (largest > 0.35) & (red > 1.1 * green)
    yellow = (largest > 0.5) & (blue > 1.3 * green)
    black = (smallest > 0.5) & (smallest > 0.75 * largest)
    # Stained tissue is not as dark, unless single nuclei are seen.
    black |= (red > 1.8) & (green > 1.8)
    # Dense eosin and blood absorb at least a sixth as much of red as of green.
    pure_red = (blue > 0.6 * green) & (red < green / 6)
    neutral_red = (blue > 0.82 * green) & (red < 0.3 * green)
    ink = blue_or_green | yellow | black | ((green > 1.4) & (pure_red | neutral_red))
    mixed = (red > green) | (blue > 0.8 * green) | (smallest > 0.6 * largest)
    return ink, mixed


def ink_mask(rgb, mpp):
    """Find ink on an overview of `mpp` um/px."""
    factor = max(1, round(_MPP / mpp))
    small = np.asarray(Image.fromarray(rgb).reduce(factor))
    ink, mixed = has_ink_color(small)
    labels, _ = ndimage.label(ink, structure=_NEIGHBORS)
    is_large = np.bincount(labels.ravel()) * (factor * mpp) ** 2 >= _MIN_UM2
    is_large[0] = False
    ink = is_large[labels]
    if not ink.any():
        return np.zeros(rgb.shape[:2], dtype=bool)
    ink |= ndimage.binary_closing(ink, structure=_NEIGHBORS)
    # The border of a stroke is a mixture with what is beside it.
    near = ndimage.binary_dilation(ink, structure=_NEIGHBORS)
    ink, near = (_enlarge(each, factor, rgb.shape) for each in (ink | (near & mixed), near))
    return ink if factor == 1 else ink | (near & has_ink_color(rgb)[0])


def _enlarge(mask, factor, shape):
    return mask.repeat(factor, axis=0).repeat(factor, axis=1)[: shape[0], : shape[1]]
