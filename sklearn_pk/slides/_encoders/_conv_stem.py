"""The patch embedding of CTransPath; imports torch, so it is imported only to build that model."""

# SPDX-License-Identifier: BSD-3-Clause

from torch import nn


class ConvStem(nn.Module):
    """Embed patches of 4 pixels by three convolutions instead of one."""

    def __init__(
        self, img_size=224, patch_size=4, in_chans=3, embed_dim=96, norm_layer=None, **kwargs
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size, self.patch_size = (height, width), (patch_size, patch_size)
        self.grid_size = (height // patch_size, width // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        layers = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, pixels):
        """Map (batch, in_chans, height, width) to (batch, height / 4, width / 4, embed_dim)."""
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))
