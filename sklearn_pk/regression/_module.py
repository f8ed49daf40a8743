"""The whole network: from a bag of tile features to the expression of all genes."""

# SPDX-License-Identifier: BSD-3-Clause

import torch
from torch import nn
from torch.nn import functional as F

from ._aggregators import make_aggregator
from ._layer import PriorKnowledgeLinear


class ExpressionModule(nn.Module):
    """
    Aggregate tiles into a slide embedding and predict expression from it.

    Parameters
    ----------
    aggregator : {"mlp", "transformer", "summary_mixing"}
        How tiles become one slide embedding.
    feature_mean, feature_scale : Tensor of shape (n_features,)
        What is subtracted from tile features, and what they are divided by.
    target_mean : Tensor of shape (n_genes,)
        What is added to the output.
    target_scale : Tensor of shape (n_genes,)
        What the output is multiplied by; 0 for genes that are constant.
    embeddings : Tensor of shape (n_genes, d) or None
        Gene embeddings.
    lambda_ : float
        Weight of the gene embeddings.
    depth, n_heads, head_dim : int
        Sizes of the aggregator.
    embed_dim : int or None
        Width tile features are projected to in front of the aggregator.
    """

    def __init__(
        self,
        *,
        aggregator,
        feature_mean,
        feature_scale,
        target_mean,
        target_scale,
        embeddings,
        lambda_,
        depth,
        n_heads,
        head_dim,
        embed_dim,
    ):
        super().__init__()
        self.register_buffer("feature_mean", feature_mean)
        self.register_buffer("feature_scale", feature_scale)
        self.register_buffer("target_mean", target_mean)
        self.register_buffer("target_scale", target_scale)
        width, n_genes = len(feature_mean), len(target_mean)
        self.tile_projection = nn.Identity()
        if embed_dim is not None:
            self.tile_projection = nn.Linear(width, embed_dim)
            width = embed_dim
        self.aggregator = make_aggregator(
            aggregator, width, depth=depth, n_heads=n_heads, head_dim=head_dim
        )
        self.slide_projection = nn.Identity()
        if embeddings is not None:
            excess = embeddings.shape[1] - width
            if excess > 0:
                self.slide_projection = nn.Linear(width, width + excess)
                width += excess
            # Narrow embeddings are padded: a prior takes no width from the learned weights.
            embeddings = F.pad(embeddings, (0, max(0, -excess)))
        self.norm = nn.LayerNorm(width)
        self.layer = PriorKnowledgeLinear(width, n_genes, embeddings, lambda_)

    def embed(self, X):
        """
        Compute the slide embeddings w.

        Parameters
        ----------
        X : Tensor of shape (batch, tiles, n_features)
            Tile features; missing tiles are rows of NaN.

        Returns
        -------
        Tensor of shape (batch, d)
            Slide embeddings.
        """
        mask = ~torch.isnan(X[..., 0])
        X = (X - self.feature_mean) / self.feature_scale
        if mask.all():
            mask = None
        else:
            X = X.masked_fill(~mask.unsqueeze(-1), 0.0)
        w = self.aggregator(self.tile_projection(X), mask)
        return self.norm(self.slide_projection(w))

    def forward(self, X):
        """
        Predict expression.

        Parameters
        ----------
        X : Tensor of shape (batch, tiles, n_features)
            Tile features; missing tiles are rows of NaN.

        Returns
        -------
        Tensor of shape (batch, n_genes)
            Predicted expression.
        """
        return self.target_mean + self.target_scale * self.layer(self.embed(X))
