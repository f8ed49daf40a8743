"""Prior knowledge for any torch model, in its last linear layer."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ._layer import PriorKnowledgeLinear


def inject_prior_knowledge(module, embeddings, lambda_=0.5, *, layer=None):
    """
    Replace the last linear layer of a torch model by one with gene embeddings.

    Learned weights are kept: the new layer shares them, and its output is
    ``(1 - lambda_) * w @ A.T + lambda_ * w @ G.T + b`` with these A and b.

    Parameters
    ----------
    module : torch.nn.Module
        Any model whose last linear layer predicts genes. It is changed in place.
    embeddings : array-like or Tensor of shape (n_genes, d)
        Gene embeddings G in the order of the outputs. Narrower ones than the layer are padded
        with zeros.
    lambda_ : float, default=0.5
        Weight of the embeddings, in [0, 1].
    layer : str, default=None
        Name of the layer, as in ``module.named_modules()``. None takes the
        :class:`torch.nn.Linear` that was registered last.

    Returns
    -------
    torch.nn.Module
        The model; the new layer itself if `module` is a linear layer.

    Raises
    ------
    TypeError
        If `module` is not a torch module, or `layer` is not linear.
    ValueError
        If there is no linear layer, or `lambda_` or the shape of `embeddings` does not fit it.

    See Also
    --------
    PriorKnowledgeLinear : The layer.
    PriorKnowledgeRegressor : The estimator, whose `aggregator` may be any module.

    Notes
    -----
    Linear layers of other classes, such as the output projection inside
    :class:`torch.nn.MultiheadAttention`, are not replaced. Do not inject into the
    network of a fitted :class:`PriorKnowledgeRegressor`, where it would not be saved; set its
    `prior` instead.

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_pk.regression import inject_prior_knowledge
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> inject_prior_knowledge(model, torch.ones(3, 4), lambda_=0.2)[-1]
    PriorKnowledgeLinear(in_features=4, out_features=3, bias=True, lambda_=0.2)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}.")
    name, linear = _find_linear(module, layer)
    mixing = _mix(linear, embeddings, lambda_, f"layer {name!r}" if name else "the layer")
    if not name:
        return mixing
    for parent in list(module.modules()):
        for child, part in list(parent._modules.items()):
            if part is linear:  # under each of its names
                setattr(parent, child, mixing)
    return module


def _is_linear(part):
    # Subclasses compute more than a product, or are not called by their parents.
    return type(part) in (nn.Linear, PriorKnowledgeLinear)


def _find_linear(module, name):
    if name is not None:
        linear = dict(module.named_modules()).get(name)
        if not _is_linear(linear):
            raise TypeError(
                f"layer: expected the name of a torch.nn.Linear, got {name!r}, which is "
                f"{'not in the model' if linear is None else type(linear).__name__}."
            )
        return name, linear
    found = [(n, part) for n, part in module.named_modules() if _is_linear(part)]
    if not found:
        raise ValueError(f"{type(module).__name__} has no torch.nn.Linear to replace.")
    return found[-1]


def _mix(linear, embeddings, lambda_, label):
    if not isinstance(embeddings, torch.Tensor):
        embeddings = torch.from_numpy(np.array(embeddings, dtype=np.float64))
    embeddings = embeddings.detach().clone()
    n_genes, width = linear.weight.shape
    if embeddings.ndim != 2 or len(embeddings) != n_genes or embeddings.shape[1] > width:
        raise ValueError(
            f"embeddings: {label} predicts {n_genes} genes from {width} values, so it needs "
            f"embeddings of shape ({n_genes}, d) with d <= {width}, one row per gene, got "
            f"{tuple(embeddings.shape)}."
        )
    if not torch.isfinite(embeddings).all():
        raise ValueError("embeddings contain NaN or infinity.")
    with torch.device("meta"):
        mixing = PriorKnowledgeLinear(width, n_genes, lambda_=lambda_)
    # The same parameters, so that optimizers and tied weights keep working.
    mixing.weight, mixing.bias = linear.weight, linear.bias
    mixing.embeddings = F.pad(embeddings.to(linear.weight), (0, width - embeddings.shape[1]))
    return mixing.train(linear.training)
