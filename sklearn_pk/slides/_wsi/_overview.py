"""A whole slide at a low resolution, read in blocks that bound the memory."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from PIL import Image

_BLOCK = 2048


def to_rgb(image):
    """Put the RGBA picture that OpenSlide gives on white."""
    if image.getextrema()[3][0] == 255:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def read_reduced(read, level_size, downsample, factor):
    """Read a level of a pyramid block by block, each reduced before the next one is read."""
    width, height = level_size
    overview = np.empty((-(-height // factor), -(-width // factor), 3), dtype=np.uint8)
    step = max(1, _BLOCK // factor) * factor
    for top in range(0, height, step):
        for left in range(0, width, step):
            size = (min(step, width - left), min(step, height - top))
            corner = (round(left * downsample), round(top * downsample))
            block = np.asarray(read(*corner, size).reduce(factor))
            row, column = top // factor, left // factor
            overview[row : row + block.shape[0], column : column + block.shape[1]] = block
    return overview
