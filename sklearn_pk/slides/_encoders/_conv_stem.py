"""The patch embedding of CTransPath; imports torch, so it is imported only to build that model."""

# SPDX-License-Identifier: BSD-3-Clause

from timm.layers import PatchEmbed
from torch import nn


class ConvStem(PatchEmbed):
    """Embed patches of 4 pixels by three convolutions instead of one."""

    def __init__(self, img_size=224, in_chans=3, embed_dim=96, **kwargs):
        super().__init__(img_size=img_size, in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        layers, widths = [], (in_chans, embed_dim // 8, embed_dim // 4)
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
