"""The linear layer that mixes learned weights with gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

# As measured: above, one product with a fused weight is faster than two without.
_FEWEST_ROWS_TO_FUSE = 128


def smooth_over_genes(values, basis, lambda_):
    """
    Project values of all genes onto the span of a basis, in part.

    Parameters
    ----------
    values : Tensor of shape (..., n_genes, n)
        What to smooth, one row a gene.
    basis : Tensor of shape (..., n_genes, k)
        Orthonormal columns.
    lambda_ : float or Tensor
        Share of the projection. Rows that are zero in the basis are left as they are.

    Returns
    -------
    Tensor of shape (..., n_genes, n)
        ``(1 - lambda_) * values + lambda_ * basis @ basis.T @ values``.
    """
    known = basis.ne(0).any(dim=-1, keepdim=True)
    return torch.lerp(values, basis @ (basis.mT @ values), lambda_ * known.to(values.dtype))


def _check_basis(embeddings, n_genes):
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

    With ``kind="projected"``, A is trained as if there was no prior, and what it predicts is
    smoothed over genes: ``(1 - lambda_) * w @ A.T + lambda_ * w @ A.T @ Q @ Q.T + b``, where the
    columns of Q (`embeddings`) are orthonormal. Genes whose row in Q is zero are left as they are.

    Parameters
    ----------
    in_features : int
        Width d of the slide embedding.
    out_features : int
        Number of genes.
    embeddings : Tensor or ndarray of shape (out_features, in_features), default=None
        Gene embeddings G, kept as a buffer and so saved with the model. None makes this a
        plain :class:`torch.nn.Linear`. With ``kind="projected"`` Q, of shape (out_features, k).
    lambda_ : float, default=0.5
        Weight of the embeddings, in [0, 1]. 0 is the plain linear layer.
    kind : {"published", "projected"}, default="published"
        Whether the embeddings are mixed into the weights, or what is predicted is projected onto
        their span, which happens in evaluation only.

    Raises
    ------
    TypeError
        If `lambda_` is no number.
    ValueError
        If `lambda_` is outside [0, 1], `kind` is unknown or `embeddings` has another shape.

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

    def __init__(
        self, in_features, out_features, embeddings=None, lambda_=0.5, *, kind="published"
    ):
        if not isinstance(lambda_, Real):
            raise TypeError(f"lambda_ must be a number in [0, 1], got {lambda_!r}.")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must lie in [0, 1], got {lambda_!r}.")
        if kind not in ("published", "projected"):
            raise ValueError(f"kind must be 'published' or 'projected', got {kind!r}.")
        super().__init__(in_features, out_features)
        self.lambda_ = lambda_
        if embeddings is not None:
            embeddings = torch.as_tensor(embeddings, dtype=self.weight.dtype).clone()
            if kind == "projected":
                _check_basis(embeddings, out_features)
            elif embeddings.shape != self.weight.shape:
                raise ValueError(
                    f"embeddings must have shape (out_features, in_features) = "
                    f"{tuple(self.weight.shape)}, got {tuple(embeddings.shape)}."
                )
        self.register_buffer("embeddings", embeddings)
        self.kind = kind

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
        if self.kind == "projected":
            return self._forward_projected(w)
        if w[..., 0].numel() >= _FEWEST_ROWS_TO_FUSE:
            return F.linear(w, self.fused_weight(), self.bias)
        # For few slides, making the fused weight and its gradient costs more than a product.
        learned = F.linear((1 - self.lambda_) * w, self.weight, self.bias)
        return learned + F.linear(self.lambda_ * w, self.embeddings)

    def _forward_projected(self, w):
        if self.training:
            return F.linear(w, self.weight, self.bias)
        output = F.linear(w, self.weight)
        return smooth_over_genes(output.mT, self.embeddings, self.lambda_).mT + self.bias

    def fused_weight(self):
        """
        Compute ``(1 - lambda_) * A + lambda_ * G``, or the projected A.

        Returns
        -------
        Tensor of shape (out_features, in_features)
            The weight that the product uses; A itself without embeddings.
        """
        if self.embeddings is None or self.lambda_ == 0:
            return self.weight
        if self.kind == "projected":
            return smooth_over_genes(self.weight, self.embeddings, self.lambda_)
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
