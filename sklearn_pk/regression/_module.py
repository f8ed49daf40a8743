"""The whole network: from a bag of tile features to the expression of all genes."""

# SPDX-License-Identifier: BSD-3-Clause

import torch
from torch import nn
from torch.nn import functional as F

from ._aggregators import (
    KS,
    adopt_aggregator,
    is_own_aggregator,
    make_aggregator,
    masked_mean,
    top_k_mean,
)
from ._layer import PriorKnowledgeLinear


def smooth_over_genes(values, basis, lambda_):
    """
    Project values of all genes onto the span of a basis, in part.

    Parameters
    ----------
    values : Tensor of shape (n_genes, n)
        What to smooth, one row a gene.
    basis : Tensor of shape (n_genes, k)
        Orthonormal columns.
    lambda_ : float
        Share of the projection. Rows that are zero in the basis are left as they are.

    Returns
    -------
    Tensor of shape (n_genes, n)
        ``(1 - lambda_) * values + lambda_ * basis @ basis.T @ values``.
    """
    known = basis.ne(0).any(dim=1, keepdim=True)
    return torch.lerp(values, basis @ (basis.mT @ values), lambda_ * known.to(values.dtype))


class ExpressionModule(nn.Module):
    """
    Aggregate tiles into a slide embedding and predict expression from it.

    Parameters
    ----------
    aggregator : {"mlp", "transformer", "summary_mixing", "topk"}, torch.nn.Module or class
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
    n_tiles : int
        Tiles in the longest bag.
    init_scale : float
        Factor of the learned weights of the layer.
    use_positions : bool
        Whether to add a learned vector to each tile, by its position in the bag.
    layer : {"published", "projected"}, default="published"
        The last layer: gene embeddings as weights, or as a basis predictions are projected to.
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
        n_tiles,
        init_scale,
        use_positions,
        layer="published",
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
        self.positions = nn.Parameter(torch.randn(n_tiles, width)) if use_positions else None
        if is_own_aggregator(aggregator):
            self.aggregator, width = adopt_aggregator(aggregator, width, n_tiles)
        else:
            self.aggregator = make_aggregator(
                aggregator, width, depth=depth, n_heads=n_heads, head_dim=head_dim
            )
        self.per_tile = getattr(self.aggregator, "per_tile", False)
        self.slide_projection = nn.Identity()
        basis = None
        if layer == "projected":
            embeddings, basis = None, embeddings
        self.lambda_ = lambda_
        self.register_buffer("basis", basis)
        if embeddings is not None:
            excess = embeddings.shape[1] - width
            if excess > 0:
                self.slide_projection = nn.Linear(width, width + excess)
                width += excess
            # Narrow embeddings are padded: a prior takes no width from the learned weights.
            embeddings = F.pad(embeddings, (0, max(0, -excess)))
        self.norm = nn.LayerNorm(width)
        self.layer = PriorKnowledgeLinear(width, n_genes, embeddings, lambda_)
        with torch.no_grad():
            self.layer.weight.mul_(init_scale)
            self.layer.bias.mul_(init_scale)

    def learned_state(self):
        """
        Return what training may change, and nothing that was given.

        Returns
        -------
        dict of str to Tensor
            The parameters, and the buffers of the aggregator.
        """
        given = {"feature_mean", "feature_scale", "target_mean", "target_scale"}
        given |= {"layer.embeddings", "basis"}
        return {name: value for name, value in self.state_dict().items() if name not in given}

    def prediction_layer(self):
        """
        Compute the last layer of predictions.

        Returns
        -------
        dict of str to Tensor
            ``weight`` of shape (n_genes, d) and ``bias`` of shape (n_genes,): the fused weight
            and the bias; with a basis, both are projected onto its span.
        """
        weight, bias = self.layer.fused_weight(), self.layer.bias
        if self.basis is not None:
            weight, bias = (
                smooth_over_genes(values, self.basis, self.lambda_)
                for values in (weight, bias.unsqueeze(1))
            )
            bias = bias.squeeze(1)
        return {"weight": weight, "bias": bias}

    def embed(self, X, mask=None):
        """
        Compute the slide embeddings w.

        Parameters
        ----------
        X : Tensor of shape (batch, tiles, n_features)
            Tile features; missing tiles hold anything that is finite.
        mask : Tensor of shape (batch, tiles), bool, or None
            True where there is a tile; None if none is missing.

        Returns
        -------
        Tensor of shape (batch, d), or (batch, tiles, d) where genes pick their tiles
            Slide embeddings, or tile embeddings.
        """
        x = self.tile_projection((X - self.feature_mean) / self.feature_scale)
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        return self.norm(self.slide_projection(self.aggregator(x, mask)))

    def embed_slide(self, X, mask=None):
        """
        Compute one vector a slide, the mean of its tile embeddings where genes pick tiles.

        Parameters
        ----------
        X, mask : Tensor
            As in :meth:`embed`.

        Returns
        -------
        Tensor of shape (batch, d)
            Slide embeddings.
        """
        w = self.embed(X, mask)
        return masked_mean(w, mask) if self.per_tile else w

    def forward(self, X, mask=None, weight=None, bias=None):
        """
        Predict expression.

        Parameters
        ----------
        X, mask : Tensor
            As in :meth:`embed`.
        weight : Tensor of shape (n_genes, d), default=None
            Weight of the last layer. None takes that of training.
        bias : Tensor of shape (n_genes,), default=None
            Bias beside `weight`. None takes that of training.

        Returns
        -------
        Tensor of shape (batch, n_genes)
            Predicted expression.
        """
        w = self.embed(X, mask)
        bias = self.layer.bias if bias is None else bias
        output = self.layer(w) if weight is None else F.linear(w, weight, bias)
        if self.per_tile:
            ks = KS
            if self.training:
                ks = [KS[int(torch.randint(len(KS), ()))]]
            output = top_k_mean(output, mask, ks)
        return self.target_mean + self.target_scale * output
