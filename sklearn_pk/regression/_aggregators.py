"""Torch modules that turn the tiles of a slide into one slide embedding."""

# SPDX-License-Identifier: BSD-3-Clause

import torch
from torch import nn
from torch.nn import functional as F


def masked_mean(x, mask):
    """
    Average over tiles, leaving missing ones out.

    Parameters
    ----------
    x : Tensor of shape (batch, tiles, d)
        Tiles; whatever missing ones hold must be finite.
    mask : Tensor of shape (batch, tiles), bool, or None
        True where there is a tile; None if none is missing.

    Returns
    -------
    Tensor of shape (batch, d)
        Means.
    """
    if mask is None:
        return x.mean(dim=1)
    weights = mask.to(x.dtype)
    return torch.einsum("btd,bt->bd", x, weights) / weights.sum(dim=1, keepdim=True)


class FeedForward(nn.Sequential):
    """LayerNorm - Linear - GELU - Linear, all of one width."""

    def __init__(self, dim):
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))


class MLPAggregator(nn.Module):
    """Linear - ReLU - Linear on every tile, then the mean over tiles."""

    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to (batch, dim)."""
        return masked_mean(self.net(x), mask)


class Attention(nn.Module):
    """Pre-norm multi-head self-attention without biases."""

    def __init__(self, dim, n_heads, head_dim):
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * n_heads * head_dim, bias=False)
        self.to_out = nn.Linear(n_heads * head_dim, dim, bias=False)

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to the same shape."""
        batch, tiles, _ = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(batch, tiles, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.to_out(out.transpose(1, 2).reshape(batch, tiles, -1))


class SummaryMixing(nn.Module):
    """
    Multi-head summary mixing: every tile sees itself and a mean over all tiles.

    The heads share one product with the tiles, and the summary branch projects
    the mean instead of averaging projections, which is the same because it is
    linear.
    """

    def __init__(self, dim, n_heads, head_dim):
        super().__init__()
        shape = (n_heads, head_dim)
        self.local = nn.Linear(dim, n_heads * head_dim)
        self.summary = nn.Linear(dim, n_heads * head_dim)
        self.local_weight = nn.Parameter(torch.ones(shape))
        self.local_bias = nn.Parameter(torch.zeros(shape))
        self.summary_weight = nn.Parameter(torch.ones(shape))
        self.summary_bias = nn.Parameter(torch.zeros(shape))
        bound = (2 * head_dim) ** -0.5
        self.combine_weight = nn.Parameter(
            torch.empty(n_heads, 2 * head_dim, head_dim).uniform_(-bound, bound)
        )
        self.combine_bias = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.projection = nn.Linear(n_heads * head_dim, dim)

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to the same shape."""
        heads, width = self.local_weight.shape
        local = self.local(x).unflatten(-1, (heads, width))
        local = F.layer_norm(local, (width,)) * self.local_weight + self.local_bias
        summary = self.summary(masked_mean(x, mask)).unflatten(-1, (heads, width))
        summary = F.layer_norm(summary, (width,)) * self.summary_weight + self.summary_bias
        for_local, for_summary = self.combine_weight.split(width, dim=1)
        mixed = torch.einsum("bthi,hio->btho", F.gelu(local), for_local)
        mixed = mixed + torch.einsum("bhi,hio->bho", F.gelu(summary), for_summary).unsqueeze(1)
        return self.projection(F.gelu(mixed + self.combine_bias).flatten(-2))


class ResidualAggregator(nn.Module):
    """Residual blocks of a mixing layer and a feed-forward layer, then the mean over tiles."""

    mixer = None

    def __init__(self, dim, *, depth, n_heads, head_dim):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([self.mixer(dim, n_heads, head_dim), FeedForward(dim)])
            for _ in range(depth)
        )

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to (batch, dim)."""
        for mix, feed_forward in self.layers:
            x = x + mix(x, mask)
            x = x + feed_forward(x)
        return masked_mean(x, mask)


class TransformerAggregator(ResidualAggregator):
    """Transformer encoder over tiles, without positions."""

    mixer = Attention


class SummaryMixingAggregator(ResidualAggregator):
    """Summary mixing encoder over tiles, without positions."""

    mixer = SummaryMixing


def make_aggregator(name, dim, *, depth, n_heads, head_dim):
    """
    Build an aggregator by name.

    Parameters
    ----------
    name : {"mlp", "transformer", "summary_mixing"}
        Which one.
    dim : int
        Width of the tiles and of the slide embedding.
    depth, n_heads, head_dim : int
        Number of blocks, heads and width of a head; not used by "mlp".

    Returns
    -------
    torch.nn.Module
        Maps (batch, tiles, dim) and a mask (batch, tiles) to (batch, dim).
    """
    if name == "mlp":
        return MLPAggregator(dim)
    kinds = {"transformer": TransformerAggregator, "summary_mixing": SummaryMixingAggregator}
    return kinds[name](dim, depth=depth, n_heads=n_heads, head_dim=head_dim)
