"""Held-out predictions of PriorKnowledgeRidge for many permutations of the patients."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy import linalg

from ..utils._patients import PatientAverager
from ._ridge import N_EIGENGENES, decompose, keep_leading, penalties_of


def is_smoother(model):
    """Return whether the predictions of a ridge with these parameters can be recomputed."""
    given = isinstance(model.prior, np.ndarray) or hasattr(model.prior, "reindex")
    known = model.prior is None or isinstance(model.prior, str) or given
    return known and model.kernel != "precomputed"


class RidgeSmoother:
    """
    Predict held-out samples by a fitted ridge, from other expression of its training samples.

    Kernel, penalties and lambda remain those of the model; eigengenes are computed from the given
    expression. One eigendecomposition of the kernel serves all of them.
    """

    def __init__(self, model, X_test, groups=None):
        kernel, cross = _kernels(model, X_test)
        n = len(kernel)
        groups = np.arange(n) if groups is None else groups
        self._model, self._averager = model, PatientAverager(groups)
        _, self._codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
        self._of_patient = 1 / counts[self._codes, np.newaxis]
        spectrum = decompose(kernel, np.arange(n))
        self._spectrum, self._cross = spectrum, cross @ spectrum.vectors
        # S 1 = 0, since the kernel is centred, so that centring y changes the mean only.
        self.ridge = self._solve(model._outside) + 1 / n
        has_prior = model.eigengenes_.shape[1] > 0 and model.lambda_best_ != 0
        self._learned = has_prior and isinstance(model.prior, str)
        self._given = has_prior and not self._learned
        # Otherwise, predictions of a gene depend on other genes, too.
        self.is_fixed = not has_prior

    def _solve(self, penalty, targets=None):
        """Return the smoothing matrix of one penalty, or the smoothed targets of one each."""
        U, inverse = self._spectrum.vectors, self._spectrum.inverse(penalty)
        if targets is None:
            return (self._cross * inverse) @ U.T
        return self._cross @ (inverse * (U.T @ targets))

    def _gain(self, scores, penalties):
        """Return what eigengenes with penalties of their own add to the predicted scores."""
        rest = np.full(len(penalties), self._model._outside)
        return self._solve(penalties, scores) - self._solve(rest, scores)

    def predict(self, Z, gram):
        """
        Predict the held-out samples from the standardised expression of the training samples.

        `gram` is Z @ Z.T.
        """
        predicted = self._weights(gram).astype(Z.dtype) @ Z
        if self._given:
            basis = self._model.eigengenes_.astype(Z.dtype)
            scores = (Z @ basis).astype(np.float64)
            added = self._gain(scores - scores.mean(axis=0), self._model.eigengene_alpha_)
            predicted += added.astype(Z.dtype) @ basis.T
        return predicted

    def _weights(self, gram):
        """Return the weights (n_test, n_train) with which expression is averaged."""
        model = self._model
        if not self._learned:
            return self.ridge
        gram = gram - gram.mean(axis=0)
        gram -= gram.mean(axis=1, keepdims=True)
        by_patient = self._averager @ gram  # (n_patients, n_train)
        inner = self._averager @ by_patient.T
        most = model.n_components or (len(inner) if model.lambda_best_ is None else N_EIGENGENES)
        first = max(0, len(inner) - most)
        eigenvalues, vectors = linalg.eigh(
            inner, subset_by_index=[first, len(inner) - 1], check_finite=False
        )
        kept = eigenvalues > 1e-10 * max(eigenvalues[-1], 1e-300)
        eigenvalues, vectors = eigenvalues[kept][::-1], vectors[:, kept][:, ::-1]
        singular = np.sqrt(eigenvalues)
        axes = by_patient.T @ vectors / singular  # the scores Z Q
        if model.lambda_best_ is None:
            own = model.eigengene_alpha_[: len(singular)]
            axes, vectors, singular = (each[..., : len(own)] for each in (axes, vectors, singular))
        else:
            _, scaled = keep_leading(model.eigengenes_, eigenvalues, len(eigenvalues))
            own, _ = penalties_of(model.alpha_, model.lambda_best_, scaled)
        back = (vectors / singular)[self._codes] * self._of_patient
        return self.ridge + self._gain(axes, own) @ (back - back.mean(axis=0)).T


def _kernels(model, X_test):
    """Return the centred kernel of the training samples, and that of test with training."""
    X_test = (np.asarray(X_test, dtype=np.float64) - model.X_mean_) / model.X_scale_
    kernel, cross = model._kernel(model.X_fit_), model._kernel(X_test)
    mean = model._kernel_mean
    cross = cross - mean - cross.mean(axis=1, keepdims=True) + mean.mean()
    kernel = kernel - mean - mean[:, np.newaxis] + mean.mean()
    return kernel * model._kernel_scale, cross * model._kernel_scale
