"""The linear layer that mixes learned weights with gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

# As measured: above, one product with a fused weight is faster than two without.
_FEWEST_ROWS_TO_FUSE = 128


def _check_wide_embeddings(embeddings, n_genes):
    if embeddings.ndim != 2 or len(embeddings) != n_genes:
        raise ValueError(
            f"embeddings must have shape (out_features, k) = ({n_genes}, k), got "
            f"{tuple(embeddings.shape)}."
        )


class PriorKnowledgeLinear(nn.Linear):
    """
    Mix the weights of a linear layer with fixed gene embeddings.

    For slide embeddings w of shape (batch, d) the output is
    ``(1 - lambda_) * w @ A.T + lambda_ * w @ G.T + b``, with learned A (`weight`)
    and b (`bias`) and fixed G (`embeddings`). For large batches it is computed as one product
    with the fused weight ``(1 - lambda_) * A + lambda_ * G``.

    With `learn_map`, a learned linear map M stands between w and G, which may then have any
    width k: ``(1 - lambda_) * w @ A.T + lambda_ * w @ M.T @ G.T + b``. At ``lambda_=1`` this is
    reduced-rank regression: k numbers a slide, turned into all genes by what is known.

    Parameters
    ----------
    in_features : int
        Width d of the slide embedding.
    out_features : int
        Number of genes.
    embeddings : Tensor or ndarray of shape (out_features, in_features), default=None
        Gene embeddings G, kept as a buffer and so saved with the model; of shape
        (out_features, k) with `learn_map`. None makes this a plain :class:`torch.nn.Linear`.
    lambda_ : float, default=0.5
        Weight of the embeddings, in [0, 1]. 0 is the plain linear layer.
    learn_map : bool, default=False
        Whether to learn M. False is the published layer.

    Attributes
    ----------
    map : torch.nn.Linear or None
        M, with the weight of shape (k, in_features).

    Raises
    ------
    TypeError
        If `lambda_` is no number.
    ValueError
        If `lambda_` is outside [0, 1] or `embeddings` has another shape.

    See Also
    --------
    PriorKnowledgeRegressor : The estimator around this layer.

    Notes
    -----
    A, b and M are drawn from U(-1/sqrt(d), 1/sqrt(d)).

    References
    ----------
    .. [1] "Prior knowledge injection into deep learning models predicting gene
       expression from whole slide images", AAAI 2025, equation of the output layer.

    Examples
    --------
    >>> import torch
    >>> from sklearn_pk.regression import PriorKnowledgeLinear
    >>> layer = PriorKnowledgeLinear(3, 2, embeddings=torch.ones(2, 3), lambda_=1.0)
    >>> layer(torch.ones(1, 3)) - layer.bias
    tensor([[3., 3.]], grad_fn=<SubBackward0>)
    """

    def __init__(self, in_features, out_features, embeddings=None, lambda_=0.5, *, learn_map=False):
        if not isinstance(lambda_, Real):
            raise TypeError(f"lambda_ must be a number in [0, 1], got {lambda_!r}.")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must lie in [0, 1], got {lambda_!r}.")
        super().__init__(in_features, out_features)
        self.lambda_ = lambda_
        if embeddings is not None:
            embeddings = torch.as_tensor(embeddings, dtype=self.weight.dtype).clone()
            if learn_map:
                _check_wide_embeddings(embeddings, out_features)
            elif embeddings.shape != self.weight.shape:
                raise ValueError(
                    f"embeddings must have shape (out_features, in_features) = "
                    f"{tuple(self.weight.shape)}, got {tuple(embeddings.shape)}."
                )
        self.register_buffer("embeddings", embeddings)
        self.map = None
        if learn_map and embeddings is not None:
            self.map = nn.Linear(in_features, embeddings.shape[1], bias=False)

    def forward(self, w):
        """
        Predict expression from slide embeddings.

        Parameters
        ----------
        w : Tensor of shape (batch, in_features)
            Slide embeddings.

        Returns
        -------
        Tensor of shape (batch, out_features)
            Predicted expression.
        """
        if self.embeddings is None or self.lambda_ == 0:
            return F.linear(w, self.weight, self.bias)
        if self.map is not None:
            return self._forward_mapped(w)
        if w[..., 0].numel() >= _FEWEST_ROWS_TO_FUSE:
            return F.linear(w, self.fused_weight(), self.bias)
        # For few slides, making the fused weight and its gradient costs more than a product.
        learned = F.linear((1 - self.lambda_) * w, self.weight, self.bias)
        return learned + F.linear(self.lambda_ * w, self.embeddings)

    def _forward_mapped(self, w):
        # Few components cost little, so they are never fused with the weights of all genes.
        known = F.linear(self.lambda_ * self.map(w), self.embeddings, self.bias)
        if self.lambda_ == 1:
            return known
        return known + F.linear((1 - self.lambda_) * w, self.weight)

    def fused_weight(self):
        """
        Compute ``(1 - lambda_) * A + lambda_ * G``, or with ``G @ M`` in place of G.

        Returns
        -------
        Tensor of shape (out_features, in_features)
            The weight that the product uses; A itself without embeddings.
        """
        if self.embeddings is None or self.lambda_ == 0:
            return self.weight
        known = self.embeddings if self.map is None else self.embeddings @ self.map.weight
        return torch.lerp(self.weight, known, self.lambda_)

    def extra_repr(self):
        """
        Describe the layer for printing.

        Returns
        -------
        str
            Sizes and `lambda_`.
        """
        prior = "no embeddings" if self.embeddings is None else f"lambda_={self.lambda_}"
        return f"{super().extra_repr()}, {prior}"
