"""A training step of the network in plain torch, and straightforward versions of its layers."""

# SPDX-License-Identifier: BSD-3-Clause

import math

import torch
from torch.nn import functional as F

from sklearn_pk.regression._network import ExpressionModule


class HeadByHead(torch.nn.Module):
    """Summary mixing head by head, with the summary as a mean of projections."""

    def __init__(self, mixing):
        super().__init__()
        self.mixing = mixing

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to the same shape."""
        mixing = self.mixing
        heads, width = mixing.local_weight.shape
        layer_norm, gelu = F.layer_norm, F.gelu
        outputs = []
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            local = x @ mixing.local.weight[rows].T + mixing.local.bias[rows]
            summary = (x @ mixing.summary.weight[rows].T + mixing.summary.bias[rows]).mean(1, True)
            norms = (mixing.local_weight[head], mixing.local_bias[head])
            local = gelu(layer_norm(local, (width,), *norms))
            norms = (mixing.summary_weight[head], mixing.summary_bias[head])
            summary = gelu(layer_norm(summary, (width,), *norms)).expand_as(local)
            joined = torch.cat([local, summary], dim=-1)
            outputs.append(gelu(joined @ mixing.combine_weight[head] + mixing.combine_bias[head]))
        return mixing.projection(torch.cat(outputs, dim=-1))


class WrittenOutAttention(torch.nn.Module):
    """Self-attention from the scores of all pairs of tiles and their softmax."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, mask=None):
        """Map (batch, tiles, dim) to the same shape."""
        attention = self.attention
        q, k, v = (
            part.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for part in attention.to_qkv(attention.norm(x)).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return attention.to_out((weights @ v).transpose(1, 2).flatten(-2))


def make_network(aggregator, n_genes, *, dim=1024, depth=6, n_heads=16):
    """Build a network with random weights and embeddings, by default of the published size."""
    return ExpressionModule(
        aggregator=aggregator,
        feature_mean=torch.zeros(dim),
        feature_scale=torch.ones(dim),
        target_mean=torch.zeros(n_genes),
        target_scale=torch.ones(n_genes),
        embeddings=torch.randn(n_genes, dim) / dim**0.5,
        lambda_=0.5,
        depth=depth,
        n_heads=n_heads,
        head_dim=64,
        embed_dim=None,
        n_tiles=100,
        init_scale=1.0,
        use_positions=False,
    )


def replace_mixers(network, reference):
    """Replace the mixing layer of each block by a reference with the same weights."""
    for block in network.aggregator.layers:
        block[0] = reference(block[0])


def make_optimizer(network, *, fused):
    """Return the optimiser of the network; the default AdamW is not fused."""
    return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0, fused=fused)


def train_step(network, optimizer, X, y):
    """Do one step and return the predictions before it."""
    optimizer.zero_grad()
    predicted = network(X)
    F.mse_loss(predicted, y).backward()
    optimizer.step()
    return predicted.detach()
