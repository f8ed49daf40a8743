"""The vision tower of CONCH; imports torch, so it is imported only to build it."""

# SPDX-License-Identifier: BSD-3-Clause

import torch
from torch import nn

_N_HEADS = 8


class AttentionPool(nn.Module):
    """Pool tokens by attention of a learned query."""

    def __init__(self, width, context):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(context)
        self.attn = nn.MultiheadAttention(
            width, _N_HEADS, kdim=context, vdim=context, batch_first=True
        )

    def forward(self, tokens):
        """Return one row per image."""
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        tokens = self.ln_k(tokens)
        return self.attn(queries, tokens, tokens, need_weights=False)[0][:, 0]


class PooledTower(nn.Module):
    """A vision transformer, attention pooling, and a normalisation; before any projection."""

    def __init__(self, trunk, width):
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(width, trunk.num_features)
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, pixels):
        """Return one row per image."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(pixels)))
