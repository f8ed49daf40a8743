"""Torch modules that turn the tiles of a slide into one slide embedding."""

# SPDX-License-Identifier: BSD-3-Clause

import inspect

import torch
from torch import nn
from torch.nn import functional as F

from ..utils._out_of_memory import is_out_of_memory

# Numbers of tiles over which HE2RNA averages the highest scores.
KS = (1, 2, 5, 10, 20, 50, 100)


def masked_mean(x, mask):
    """Average over tiles, leaving missing ones out."""
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


class AttentionPooling(nn.Module):
    """Linear - ReLU on every tile, then their mean weighted by gated attention."""

    def __init__(self, dim, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        self.value, self.gate = nn.Linear(dim, width), nn.Linear(dim, width)
        self.score = nn.Linear(width, 1)

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to (batch, dim)."""
        x = self.net(x)
        scores = self.score(self.value(x).tanh() * self.gate(x).sigmoid()).squeeze(-1).float()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.einsum("btd,bt->bd", x, scores.softmax(dim=-1).to(x.dtype))


class Attention(nn.Module):
    """Pre-norm multi-head self-attention without biases."""

    # False in a stack on the CPU, where torch has no batching rule for its fused product.
    fused = True

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
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            if keys is not None:
                scores = scores.masked_fill(~keys, -torch.inf)
            out = scores.softmax(dim=-1) @ v
        return self.to_out(out.transpose(1, 2).reshape(batch, tiles, -1))


class SummaryMixing(nn.Module):
    """Multi-head summary mixing: every tile sees itself and a mean over all tiles."""

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


class TopKAggregator(nn.Module):
    """The two hidden layers of HE2RNA, applied to each tile separately."""

    per_tile = True

    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to the same shape."""
        return self.net(x)


def top_k_mean(scores, mask, ks):
    """Average the k highest scores of each gene over tiles, then over all k."""
    n_tiles = scores.shape[1]
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    top = scores.topk(min(max(ks), n_tiles), dim=1).values
    counts = scores.new_full((len(scores), 1), n_tiles)
    if mask is not None:
        top = top.masked_fill(torch.isneginf(top), 0.0)
        counts = mask.sum(dim=1, keepdim=True).to(scores.dtype)
    sums = top.cumsum(dim=1)
    means = [sums[:, min(k, n_tiles) - 1] / counts.clamp(max=k) for k in ks]
    return torch.stack(means).mean(dim=0)


class BagByBag(nn.Module):
    """Call a module without a parameter `mask` on each bag, without its missing tiles."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to (batch, d)."""
        if mask is None:
            return self.module(x)
        return torch.cat([self.module(x[row, here].unsqueeze(0)) for row, here in enumerate(mask)])


def is_own_aggregator(aggregator):
    """Return whether an aggregator is a module, or a class of modules, and not a name."""
    if isinstance(aggregator, type) and not issubclass(aggregator, nn.Module):
        raise TypeError(
            "aggregator: expected a name, a torch.nn.Module or a subclass of it, got "
            f"{aggregator!r}."
        )
    return not isinstance(aggregator, str)


def check_own_aggregator(aggregator, dim, n_tiles):
    """Check a module of the user on a bag of zeros; return it and the width of its output."""
    module = aggregator(dim) if isinstance(aggregator, type) else aggregator
    name = type(module).__name__
    if "mask" not in inspect.signature(module.forward).parameters:
        module = BagByBag(module)
    module.eval()
    try:
        with torch.no_grad():
            w = module(torch.zeros(1, n_tiles, dim, device="cpu"))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"aggregator: {name} cannot take a bag of shape {(1, n_tiles, dim)}: {error}"
        ) from error
    if not isinstance(w, torch.Tensor) or w.ndim != 2 or len(w) != 1:
        raise ValueError(
            f"aggregator: expected a module that maps (batch, tiles, {dim}) to (batch, d), got "
            f"{tuple(w.shape) if isinstance(w, torch.Tensor) else type(w).__name__} for an input "
            f"of shape {(1, n_tiles, dim)}."
        )
    return module.train(), w.shape[1]


def make_aggregator(name, dim, *, depth, n_heads, head_dim):
    """Build an aggregator by name."""
    if name == "mlp":
        return MLPAggregator(dim)
    if name == "attention":
        return AttentionPooling(dim, head_dim)
    if name == "topk":
        return TopKAggregator(dim)
    kinds = {"transformer": TransformerAggregator, "summary_mixing": SummaryMixingAggregator}
    return kinds[name](dim, depth=depth, n_heads=n_heads, head_dim=head_dim)
