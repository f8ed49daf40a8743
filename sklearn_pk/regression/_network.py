"""The whole network: from a bag of tile features to the expression of all genes."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import threading
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ._aggregators import (
    KS,
    check_own_aggregator,
    is_own_aggregator,
    make_aggregator,
    masked_mean,
    top_k_mean,
)
from ._layer import PriorKnowledgeLinear


def smooth_over_genes(values, basis, lambda_):
    """Project values of all genes onto the span of a basis, in part."""
    known = basis.ne(0).any(dim=1, keepdim=True)
    return torch.lerp(values, basis @ (basis.mT @ values), lambda_ * known.to(values.dtype))


class ExpressionModule(nn.Module):
    """Aggregate tiles into a slide embedding and predict expression from it."""

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
        initial=None,
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
            self.aggregator, width = check_own_aggregator(aggregator, width, n_tiles)
        else:
            self.aggregator = make_aggregator(
                aggregator, width, depth=depth, n_heads=n_heads, head_dim=head_dim
            )
        self.per_tile = getattr(self.aggregator, "per_tile", False)
        self.slide_projection = nn.Identity()
        basis = None
        if layer != "published":
            embeddings, basis = None, embeddings
        self.lambda_ = lambda_
        self.predicts_scores = layer == "scores"
        self.register_buffer("basis", basis)
        if embeddings is not None:
            excess = embeddings.shape[1] - width
            if excess > 0:
                self.slide_projection = nn.Linear(width, width + excess)
                width += excess
            # Narrow embeddings are padded, so that the learned weights keep their width.
            embeddings = F.pad(embeddings, (0, max(0, -excess)))
        self.norm = nn.LayerNorm(width)
        n_outputs = basis.shape[1] if self.predicts_scores else n_genes
        self.layer = PriorKnowledgeLinear(width, n_outputs, embeddings, lambda_)
        with torch.no_grad():
            self.layer.weight.mul_(init_scale)
            self.layer.bias.mul_(init_scale)
            for name, value in (initial or {}).items():
                self.get_parameter(name).copy_(torch.as_tensor(value))

    def learned_state(self):
        """Return what training may change: no means, scales or gene embeddings."""
        given = {"feature_mean", "feature_scale", "target_mean", "target_scale"}
        given |= {"layer.embeddings", "basis"}
        return {name: value for name, value in self.state_dict().items() if name not in given}

    def prediction_layer(self, genes=None):
        """Compute the last layer of predictions, of all genes or of some by their positions."""
        weight, bias = self.layer.fused_weight(), self.layer.bias
        if self.predicts_scores:
            weight, bias = self.basis @ weight, self.basis @ bias
        elif self.basis is not None:
            weight, bias = (
                smooth_over_genes(values, self.basis, self.lambda_)
                for values in (weight, bias.unsqueeze(1))
            )
            bias = bias.squeeze(1)
        layer = {"weight": weight, "bias": bias}
        if genes is None:
            return layer
        genes = torch.as_tensor(genes, device=weight.device)
        target = self.target_mean[genes], self.target_scale[genes]
        return {name: values[genes] for name, values in layer.items()} | {"target": target}

    def embed(self, X, mask=None):
        """Compute the slide embeddings w."""
        x = self.tile_projection((X - self.feature_mean) / self.feature_scale)
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        return self.norm(self.slide_projection(self.aggregator(x, mask)))

    def embed_slide(self, X, mask=None):
        """Compute one vector per slide, the mean of its tile embeddings where genes pick tiles."""
        w = self.embed(X, mask)
        return masked_mean(w, mask) if self.per_tile else w

    def forward(self, X, mask=None, weight=None, bias=None, target=None, ks=KS):
        """Predict expression; where genes pick tiles, as the mean over several numbers of them."""
        w = self.embed(X, mask)
        is_training = bias is None
        bias = self.layer.bias if is_training else bias
        output = self.layer(w) if weight is None else F.linear(w, weight, bias)
        if is_training and self.predicts_scores:
            output = F.linear(output, self.basis)
        if self.per_tile:
            output = top_k_mean(output, mask, ks)
        mean, scale = (self.target_mean, self.target_scale) if target is None else target
        return mean + scale * output


def describe_network(estimator):
    """Return the parameters that shape the network, which may be set anew after a fit."""
    names = ("lambda_", "layer", "depth", "n_heads", "head_dim", "embed_dim", "init_scale")
    aggregator = copy.deepcopy(estimator.aggregator)
    if isinstance(aggregator, nn.Module):
        aggregator = aggregator.to("cpu")  # it is saved, and moved with the network
    return {name: getattr(estimator, name) for name in names} | {
        "aggregator": aggregator,
        "use_positions": estimator.compat == "sequoia",
    }


def initial_weights(network):
    """Return copies of the weights of a network, those of the last layer excepted."""
    return {
        name: value.detach().cpu().numpy().copy()
        for name, value in network.named_parameters()
        if not name.startswith("layer.")
    }


def build_network(params, embeddings, seed, device="cpu"):
    """Build the network as it is before training; on the meta device, its shapes only."""
    params = {
        name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
        for name, value in params.items()
    }
    # A copy: a module passed by the user must not be trained itself.
    params["aggregator"] = copy.deepcopy(params["aggregator"])
    embeddings = None if embeddings is None else torch.from_numpy(embeddings).to(device)
    # Whatever the default device of torch is.
    with seeded(seed), torch.device(device):
        # In float32 whatever the default type of torch is.
        return ExpressionModule(embeddings=embeddings, **params).float()


# Torch has one generator per process: other threads wait while one of them uses it.
_LOCK = threading.RLock()


@contextmanager
def seeded(seed):
    """Draw on the CPU from a seed, and leave the generator as it was."""
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class RandomStream:
    """Draw from a seed; each block continues where the one before ended."""

    def __init__(self, seed, device):
        self._devices = [device] if torch.device(device).type == "cuda" else []
        with _LOCK, torch.random.fork_rng(devices=self._devices):
            torch.default_generator.manual_seed(seed)
            if self._devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            self._state = self._get()

    def __enter__(self):
        """Put this stream into the generators of torch."""
        _LOCK.acquire()
        self._outside = self._get()
        self._set(self._state)

    def __exit__(self, *error):
        """Restore the generators."""
        self._state = self._get()
        self._set(self._outside)
        _LOCK.release()

    def _get(self):
        return torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in self._devices]

    def _set(self, state):
        torch.set_rng_state(state[0])
        for device, each in zip(self._devices, state[1], strict=True):
            torch.cuda.set_rng_state(each, device)
