"""The linear layer that mixes learned weights with gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

# As measured: above, one product with a fused weight is faster than two without.
_FEWEST_ROWS_TO_FUSE = 128


class PriorKnowledgeLinear(nn.Linear):
    """
    Mix the weights of a linear layer with fixed gene embeddings.

    For slide embeddings w of shape (batch, d) the output is
    ``(1 - lambda_) * w @ A.T + lambda_ * w @ G.T + b``, with learned A (`weight`)
    and b (`bias`) and fixed G (`embeddings`). For large batches it is computed as one product
    with the fused weight ``(1 - lambda_) * A + lambda_ * G``.

    Parameters
    ----------
    in_features : int
        Width d of the slide embedding.
    out_features : int
        Number of genes.
    embeddings : Tensor or ndarray of shape (out_features, in_features), default=None
        Gene embeddings G, kept as a buffer and so saved with the model. With None
        this is a plain :class:`torch.nn.Linear`.
    lambda_ : float, default=0.5
        Weight of the embeddings, in [0, 1]. 0 is the plain linear layer.

    Raises
    ------
    TypeError
        If `lambda_` is not a number.
    ValueError
        If `lambda_` is outside [0, 1] or `embeddings` has another shape.

    See Also
    --------
    PriorKnowledgeRegressor : The estimator around this layer.

    Notes
    -----
    A and b are drawn from U(-1/sqrt(d), 1/sqrt(d)).

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

    def __init__(self, in_features, out_features, embeddings=None, lambda_=0.5):
        if not isinstance(lambda_, Real):
            raise TypeError(f"lambda_ must be a number in [0, 1], got {lambda_!r}.")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must lie in [0, 1], got {lambda_!r}.")
        super().__init__(in_features, out_features)
        self.lambda_ = lambda_
        if embeddings is not None:
            embeddings = torch.as_tensor(embeddings, dtype=self.weight.dtype).clone()
            if embeddings.shape != self.weight.shape:
                raise ValueError(
                    f"embeddings must have shape (out_features, in_features) = "
                    f"{tuple(self.weight.shape)}, got {tuple(embeddings.shape)}."
                )
        self.register_buffer("embeddings", embeddings)

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
        if w[..., 0].numel() >= _FEWEST_ROWS_TO_FUSE:
            return F.linear(w, self.fused_weight(), self.bias)
        # For few slides, making the fused weight and its gradient costs more than a product.
        learned = F.linear((1 - self.lambda_) * w, self.weight, self.bias)
        return learned + F.linear(self.lambda_ * w, self.embeddings)

    def fused_weight(self):
        """
        Compute ``(1 - lambda_) * A + lambda_ * G``.

        Returns
        -------
        Tensor of shape (out_features, in_features)
            The weight that the product uses; A itself without embeddings.
        """
        if self.embeddings is None or self.lambda_ == 0:
            return self.weight
        return torch.lerp(self.weight, self.embeddings, self.lambda_)

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
