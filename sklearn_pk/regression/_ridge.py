"""PriorKnowledgeRidge: the layer with prior knowledge, solved exactly."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.interpolate import PchipInterpolator
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, _fit_context
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ..utils import check_expression, check_groups
from ..utils._annotation import warn_of_doubts
from ..utils._bags import as_array, label_of_bag
from ..utils._linalg import principal_axes
from ..utils._out_of_memory import Halving
from ..utils._patients import PatientAverager, infer_groups, warn_of_equal
from ..utils._reporting import warn_user
from ..utils._validation import check_sample_names, name_of_item, sample_names_of
from ._aggregators import masked_mean
from ._embeddings import learn_prior, refuse_known_patients
from ._expression_mixin import ExpressionMixin, positions_of_genes
from ._spatial import BATCH, check_window, tile_expression

LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
N_EIGENGENES = 150
# Penalties that are compared, in units of the mean eigenvalue of the kernel.
ALPHAS = np.logspace(-2, 4, 25)
# Width of the smoothing of free penalties, in the logarithm of the rank of an eigengene.
SMOOTHING = 0.1
# Genes in one product, which bounds temporary arrays.
_BLOCK = 4096
# Penalties, in units of the mean eigenvalue of the kernel, at which errors are computed; those in
# between are interpolated. Beyond the largest, predictions are the mean.
_PENALTIES = np.logspace(-4, 8, 73)


class Spectrum(NamedTuple):
    """Eigendecomposition of the centred kernel, and the samples of each patient."""

    values: np.ndarray  # (n,)
    vectors: np.ndarray  # (n, n)
    repeated: list  # samples of the patients who have several

    def filter(self, penalty):
        """Return w / (w + penalty), (n, ...) for a penalty of any shape."""
        values = self.values.reshape(-1, *[1] * np.ndim(penalty))
        total = values + penalty
        return np.divide(values, total, out=np.zeros(total.shape), where=values > 0)

    def leverage(self, kept):
        """Return the diagonal of the hat matrix, intercept included."""
        return 1 / len(self.values) + np.square(self.vectors) @ kept

    def inverse(self, penalty):
        """Return 1 / (w + penalty), (n, ...), and 0 where the kernel and the penalty are 0."""
        total = self.values.reshape(-1, *[1] * np.ndim(penalty)) + penalty
        return np.divide(1.0, total, out=np.zeros(total.shape), where=total > 0)


def decompose(kernel, groups):
    """Decompose a centred kernel; eigenvalues that rounding made negative become 0."""
    values, vectors = linalg.eigh(kernel, overwrite_a=True, check_finite=False)
    values[values < len(values) * np.finfo(np.float64).eps * values[-1]] = 0.0
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    repeated = [np.flatnonzero(codes == code) for code in np.flatnonzero(counts > 1)]
    return Spectrum(values, vectors, repeated)


def leave_out(spectrum, targets, projected, penalty):
    """
    Compute the residuals of targets (n, k) when the patient of each sample is left out.

    `projected` is U^T targets, `penalty` one number or one per target. Targets are centred; the
    intercept is not penalised.
    """
    n_samples, U = len(targets), spectrum.vectors
    kept = spectrum.filter(penalty)
    residual = targets - U @ (kept.reshape(n_samples, -1) * projected)
    left = np.maximum(1 - spectrum.leverage(kept), np.finfo(np.float64).eps)
    errors = residual / left.reshape(n_samples, -1)
    for rows in spectrum.repeated:
        for columns, hat in _hat_blocks(U[rows], kept, n_samples):
            errors[rows, columns] = np.linalg.solve(
                np.eye(len(rows)) - hat, residual[rows, columns]
            )
    return errors


def _hat_blocks(vectors, kept, n_samples):
    """Yield the block of the hat matrix of one patient, for each penalty, with its columns."""
    if kept.ndim == 1:
        yield slice(None), 1 / n_samples + (vectors * kept) @ vectors.T
        return
    for column in range(kept.shape[1]):
        hat = 1 / n_samples + (vectors * kept[:, column]) @ vectors.T
        yield slice(column, column + 1), hat


def total_errors(spectrum, gram, penalties):
    """Sum the squared leave-one-out residuals of all genes; gram is Z @ Z.T in the eigenbasis."""
    n_samples, U = len(gram), spectrum.vectors
    totals = np.empty(len(penalties))
    for position, penalty in enumerate(penalties):
        kept = spectrum.filter(penalty)
        left = U * (1 - kept)
        half = left @ gram
        squares = np.einsum("ij,ij->i", half, left)
        squares /= np.square(np.maximum(1 - spectrum.leverage(kept), np.finfo(np.float64).eps))
        for rows in spectrum.repeated:
            hat = 1 / n_samples + (U[rows] * kept) @ U[rows].T
            solved = np.linalg.solve(np.eye(len(rows)) - hat, np.eye(len(rows)))
            squares[rows] = np.diag(solved @ (half[rows] @ left[rows].T) @ solved.T)
        totals[position] = squares.sum()
    return totals


def eigengene_errors(spectrum, scores, penalties):
    """Sum the squared leave-one-out residuals of each score, (n_penalties, k)."""
    projected = spectrum.vectors.T @ scores
    errors = [
        np.square(leave_out(spectrum, scores, projected, penalty)).sum(axis=0)
        for penalty in penalties
    ]
    return np.array(errors).reshape(len(penalties), scores.shape[1])


def penalties_of(alpha, lambda_, eigenvalues):
    """Return the penalty of each eigengene, and of what they do not span."""
    inside = (1 - lambda_) ** 2 + lambda_**2 * eigenvalues
    inside = np.divide(alpha, inside, out=np.full(len(inside), np.inf), where=inside > 0)
    return inside, (alpha / (1 - lambda_) ** 2 if lambda_ < 1 else np.inf)


def interpolate(penalties, errors, at):
    """Interpolate errors (n_penalties, k) in the logarithm of the penalty, each at its own (k,)."""
    if not errors.shape[1]:
        return np.zeros(0)
    log = np.log(penalties)
    curves = PchipInterpolator(log, errors, axis=0)
    at = np.clip(np.log(np.maximum(at, penalties[0])), log[0], log[-1])
    interval = np.clip(np.searchsorted(log, at) - 1, 0, len(log) - 2)
    step, own = at - log[interval], curves.c[:, interval, np.arange(len(at))]
    return ((own[0] * step + own[1]) * step + own[2]) * step + own[3]


def basis_of(embeddings):
    """Return the eigenvectors (n_genes, k) and eigenvalues of G G^T."""
    if not embeddings.any():
        return np.zeros((len(embeddings), 0)), np.zeros(0)
    vectors, singular, _ = linalg.svd(embeddings, full_matrices=False, check_finite=False)
    rank = np.count_nonzero(singular > 1e-6 * singular[0])
    return vectors[:, :rank], np.square(singular[:rank])


class Choice(NamedTuple):
    """The chosen penalties, and their leave-one-out error."""

    error: float  # squared, summed over standardised genes
    inside: np.ndarray  # penalty of each eigengene
    outside: float
    lambda_: float | None
    alpha: float
    path: dict


def choose(penalties, inside, outside, alphas, lambdas, eigenvalues):
    """Compare all pairs of lambda and alpha by their leave-one-out errors."""
    pairs = [(lambda_, alpha) for lambda_ in lambdas for alpha in alphas]
    errors = np.empty(len(pairs))
    for number, (lambda_, alpha) in enumerate(pairs):
        own, rest = penalties_of(alpha, lambda_, eigenvalues)
        errors[number] = interpolate(penalties, inside, own).sum()
        errors[number] += interpolate(penalties, outside[:, np.newaxis], np.array([rest]))[0]
    # Where both do equally well, the first: the least weight of the prior.
    best = int(np.argmin(errors))
    lambda_, alpha = map(float, pairs[best])
    path = {"lambda_": np.array(pairs)[:, 0], "alpha": np.array(pairs)[:, 1], "loo_score": errors}
    own, rest = penalties_of(alpha, lambda_, eigenvalues)
    return Choice(errors[best], own, rest, lambda_, alpha, path)


def choose_free(penalties, inside, outside, scores):
    """Choose the penalty of each eigengene by itself, and that of what they do not span."""
    chosen = smooth_penalties(inside, np.square(scores).sum(axis=0), penalties)
    rest = penalties[np.argmin(outside) if outside.any() else -1]
    error = interpolate(penalties, inside, chosen).sum() + outside.min()
    return Choice(float(error), chosen, float(rest), None, float(rest), {})


def keep_leading(vectors, eigenvalues, n_components):
    """Keep the leading components; their eigenvalues sum to the number of genes."""
    vectors, eigenvalues = vectors[:, :n_components], eigenvalues[:n_components]
    return vectors, eigenvalues * (len(vectors) / (eigenvalues.sum() or 1.0))


def _scale_of(X):
    """Return the standard deviations of columns, and 1 for constant ones."""
    constant = np.ptp(X, axis=0) == 0
    return np.where(constant, 1.0, X.std(axis=0, dtype=np.float64))


def _r_squared(errors, sizes):
    return 1 - np.divide(errors, sizes, out=np.ones(len(sizes)), where=sizes > 0)


def smooth_penalties(errors, sizes, penalties):
    """Choose a penalty per eigengene by the mean relative error of those of similar rank."""
    log_rank = np.log(np.arange(1, len(sizes) + 1))
    relative = errors / np.where(sizes > 0, sizes, 1.0)
    chosen = np.empty(len(sizes))
    for block in gen_batches(len(sizes), 512):
        weights = np.exp(-0.5 * np.square((log_rank[block, None] - log_rank) / SMOOTHING))
        mean = relative @ (weights / weights.sum(axis=1, keepdims=True)).T
        chosen[block] = penalties[np.argmin(mean, axis=0)]
    return chosen


def _is_list_of_priors(prior):
    """Return whether a prior is a list of priors, not the rows of one array."""
    return isinstance(prior, list | tuple) and any(
        each is None
        or isinstance(each, str)
        or hasattr(each, "fit_transform")
        or np.ndim(each) == 2
        for each in prior
    )


class PriorKnowledgeRidge(ExpressionMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """
    Predict the expression of all genes by ridge regression with prior knowledge.

    The last layer of :class:`PriorKnowledgeRegressor`, ``(1 - lambda) w A^T + lambda w G^T``,
    solved exactly: both A and the weights of the gene embeddings G are learned with a ridge
    penalty. That is a Gaussian prior in which genes covary as
    ``(1 - lambda)^2 I + lambda^2 G G^T``, and amounts to one penalty per eigengene. Lambda and
    the penalty are chosen by leave-one-patient-out cross-validation in closed form.

    Parameters
    ----------
    prior : "eigengenes", estimator, array-like, DataFrame, list of these or None, \
            default="eigengenes"
        Gene embeddings G, as in :class:`PriorKnowledgeRegressor`. "eigengenes" are the exact
        principal axes of the standardised expression of the training patients, times their
        singular values. An estimator is cloned and fitted on the expression of the training
        patients with *genes as rows*; an array has one row per gene of y; a DataFrame is matched
        by gene name. None is ridge regression. Several in a list are compared by leave-one-out,
        for example ``[EigengeneEmbedder(expression=others, weight=w) for w in (0.1, 0.3, 1)]``.

    lambda_ : float, array-like of float, "free" or None, default=None
        Weight of the gene embeddings, in [0, 1]. Several values are compared by leave-one-out;
        None compares 13 from 0 to 1. "free" chooses the penalty of each eigengene by itself,
        smoothed over eigengenes of similar rank; of the prior only the eigenvectors of
        ``G G^T`` count then.

    alpha : float, array-like of float or None, default=None
        Ridge penalty. Several values are compared by leave-one-out; None compares 25, from 0.01
        to 10,000 times the mean eigenvalue of the kernel.

    kernel : {"rbf", "linear", "precomputed"} or callable, default="rbf"
        Kernel between slides, computed on standardised features; a callable maps
        (n, p) and (m, p) to (n, m). Other kernels than "precomputed" are centred and scaled to
        the trace of the linear one, so that `alpha` has one unit.

    gamma : float or None, default=None
        Width of the RBF kernel ``exp(-gamma * |x - x'|^2)``. None is 0.3 divided by the number
        of features.

    n_components : int or None, default=None
        Number of leading eigenvectors of ``G G^T`` that are used, the eigengenes. None is 150, or
        all of them with ``lambda_="free"``.

    random_state : int, RandomState instance or None, default=None
        Seed of each step of `prior` whose own ``random_state`` is None.

    Attributes
    ----------
    lambda_best_ : float or None
        The chosen lambda; None with ``lambda_="free"``.

    alpha_ : float
        The chosen ridge penalty; with ``lambda_="free"``, that of what no eigengene spans.

    eigengene_alpha_ : ndarray of shape (n_eigengenes,)
        Penalty of each eigengene.

    eigengenes_ : ndarray of shape (n_genes, n_eigengenes)
        Orthonormal eigenvectors of ``G G^T``, the largest eigenvalue first.

    eigenvalues_ : ndarray of shape (n_eigengenes,)
        Eigenvalues of ``G G^T``, scaled to sum to the number of genes.

    loo_score_ : ndarray of shape (n_genes,)
        R squared of each gene when the patient of each sample is left out of the regression (not
        of the prior and the scales); 0 for constant genes.

    eigengene_loo_score_ : ndarray of shape (n_eigengenes,)
        The same for the score of the patients on each eigengene.

    noise_scale_ : ndarray of shape (n_genes,)
        Standard deviation of the leave-one-out residuals of standardised expression, with those
        of atypical samples weighted down; the unit of the uncertainty of predictions.

    path_ : dict of str to ndarray
        ``lambda_`` and ``alpha``, one entry per combination compared, and ``loo_score``, the R
        squared of all standardised genes, with the chosen prior. Empty with ``lambda_="free"``.

    prior_index_ : int
        Position of the chosen prior in a list of them; otherwise 0.

    prior_scores_ : ndarray of shape (n_priors,)
        Leave-one-out R squared of all standardised genes with each prior.

    dual_coef_ : ndarray of shape (n_samples, n_genes)
        Weights of the training samples in the kernel expansion, for standardised expression.

    prior_ : estimator or None
        The fitted clone of `prior`; None unless `prior` is an estimator.

    X_fit_ : ndarray of shape (n_samples, n_features)
        Standardised training features. Not defined for a precomputed kernel.

    gene_names_out_ : ndarray of shape (n_genes,), object
        Names of the genes. Defined only when y is a DataFrame with gene names.

    n_features_in_ : int
        Number of features.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Defined only when X is a DataFrame with strings as its columns.

    See Also
    --------
    PriorKnowledgeRegressor : The same layer on top of a network.
    sklearn_pk.prior.EigengeneEmbedder : The default prior.
    sklearn.linear_model.RidgeCV : Ridge regression with one penalty.

    Notes
    -----
    Features and genes are standardised by their mean and standard deviation over the training
    samples. Constant genes are predicted by their value.

    With q_k and gamma_k the eigenvectors and eigenvalues of ``G G^T``, the penalty is
    ``alpha / ((1 - lambda)^2 + lambda^2 gamma_k)`` for the score on q_k, and
    ``alpha / (1 - lambda)^2`` for what they do not span; lambda = 0, or a prior of zeros, is
    ridge regression. The leave-one-out residuals follow from one eigendecomposition of the kernel
    of the training samples [1]_, those of patients with several samples by blocks. Scales,
    kernel and prior are not computed anew for each patient left out.

    References
    ----------
    .. [1] Rifkin and Lippert, "Notes on regularized least squares", MIT-CSAIL-TR-2007-025.
    .. [2] "Prior knowledge injection into deep learning models predicting gene expression from
       whole slide images", AAAI 2025, for the layer.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.regression import PriorKnowledgeRidge
    >>> rng = np.random.default_rng(0)
    >>> programs = rng.normal(size=(60, 3))  # of 60 patients
    >>> X = programs @ rng.normal(size=(3, 20)) + rng.normal(size=(60, 20))
    >>> y = programs @ rng.normal(size=(3, 200)) + 3 * rng.normal(size=(60, 200))
    >>> model = PriorKnowledgeRidge().fit(X[:40], y[:40])
    >>> model.predict(X[40:]).shape
    (20, 200)
    >>> model.lambda_best_ > 0.5
    True
    >>> ridge = PriorKnowledgeRidge(prior=None).fit(X[:40], y[:40])
    >>> bool(model.score(X[40:], y[40:]) > ridge.score(X[40:], y[40:]))
    True
    """

    __metadata_request__fit = {"groups": True}

    _parameter_constraints: dict = {
        "prior": [
            StrOptions({"eigengenes"}),
            HasMethods(["fit_transform", "get_params"]),
            "array-like",
            None,
        ],
        "lambda_": [Interval(Real, 0, 1, closed="both"), "array-like", StrOptions({"free"}), None],
        "alpha": [Interval(Real, 0, None, closed="left"), "array-like", None],
        "kernel": [StrOptions({"rbf", "linear", "precomputed"}), callable],
        "gamma": [Interval(Real, 0, None, closed="neither"), None],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        prior="eigengenes",
        lambda_=None,
        alpha=None,
        kernel="rbf",
        gamma=None,
        n_components=None,
        random_state=None,
    ):
        self.prior = prior
        self.lambda_ = lambda_
        self.alpha = alpha
        self.kernel = kernel
        self.gamma = gamma
        self.n_components = n_components
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, groups=None):
        """
        Fit the prior and the regression, and choose lambda and the penalty.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            One row of features per slide, such as the means of its tile features; with
            ``kernel="precomputed"``, the kernel of shape (n_samples, n_samples).
        y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
            Expression, on a log scale. Columns of a DataFrame are genes.
        groups : array-like of shape (n_samples,), default=None
            Patient of each sample, left out together. None takes samples of identical
            expression as one patient.

        Returns
        -------
        self : object
            The fitted regressor.

        Raises
        ------
        ValueError
            If there are fewer than three patients, or a value is NaN or infinite.
        """
        values, gene_names, self._y_is_1d = check_expression(y, estimator_name="fit")
        warn_of_doubts(values, gene_names, y.index if hasattr(y, "iloc") else None)
        check_sample_names(X, y)
        if groups is None:
            groups = infer_groups(values)
        else:
            groups = check_groups(groups, y, X)
            warn_of_equal(values, groups)
        X = validate_data(self, as_array(X), dtype=np.float64, ensure_min_samples=2)
        if len(np.unique(groups)) < 3:
            raise ValueError(
                f"PriorKnowledgeRidge leaves each patient out once, which needs at least 3 "
                f"patients, got n_samples={len(X)} of {len(np.unique(groups))}."
            )
        if gene_names is not None:
            self.gene_names_out_ = gene_names
        elif hasattr(self, "gene_names_out_"):
            del self.gene_names_out_
        alphas, lambdas = self._grids()
        spectrum = decompose(self._fit_kernel(X), groups)
        Z = self._standardize(values)
        projected = spectrum.vectors.T @ Z
        unit = spectrum.values.mean() or 1.0
        penalties = unit * _PENALTIES
        total = total_errors(spectrum, projected @ projected.T, penalties)
        # One seed, so that priors in a list differ in nothing else.
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        priors = self.prior if _is_list_of_priors(self.prior) else [self.prior]
        fits = []
        for prior in priors:
            fitted, *eigengenes = self._learn_eigengenes(prior, Z, values, groups, gene_names, seed)
            n_components = self.n_components or (None if lambdas is None else N_EIGENGENES)
            vectors, eigenvalues = keep_leading(*eigengenes, n_components)
            scores = Z @ vectors
            inside = eigengene_errors(spectrum, scores, penalties)
            outside = np.maximum(total - inside.sum(axis=1), 0.0)
            if lambdas is None:
                # What is left of the genes may be nothing but rounding.
                outside[outside < 1e-10 * total] = 0.0
                choice = choose_free(penalties, inside, outside, scores)
            else:
                grid = unit * ALPHAS if alphas is None else alphas
                # Without eigengenes lambda would only scale alpha.
                tried = lambdas if len(eigenvalues) or len(lambdas) == 1 else np.zeros(1)
                choice = choose(penalties, inside, outside, grid, tried, eigenvalues)
            fits.append((choice, fitted, vectors, eigenvalues, scores))
        size = np.square(Z).sum() or 1.0
        self.prior_scores_ = np.array([1 - choice.error / size for choice, *_ in fits])
        self.prior_index_ = int(np.argmax(self.prior_scores_))
        choice, self.prior_, self.eigengenes_, self.eigenvalues_, scores = fits[self.prior_index_]
        self.lambda_best_, self.alpha_ = choice.lambda_, choice.alpha
        self.eigengene_alpha_, self._outside = choice.inside, choice.outside
        self.path_ = {
            name: 1 - values / size if name == "loo_score" else values
            for name, values in choice.path.items()
        }
        self._solve(spectrum, Z, projected, scores, penalties[np.argmin(total)])
        return self

    def _grids(self):
        """Return the penalties and lambdas to compare; None for the default or free ones."""
        alphas = None if self.alpha is None else np.atleast_1d(np.asarray(self.alpha, float))
        if isinstance(self.lambda_, str):
            return alphas, None
        lambdas = LAMBDAS if self.lambda_ is None else self.lambda_
        lambdas = np.atleast_1d(np.asarray(lambdas, float))
        for name, grid, most in (("lambda_", lambdas, 1), ("alpha", alphas, np.inf)):
            if grid is None:
                continue
            wrong = grid[~((grid >= 0) & (grid <= most) & np.isfinite(grid))]
            if grid.ndim != 1 or not grid.size or wrong.size:
                raise ValueError(
                    f"{name} must hold one or more numbers in [0, {most:g}], got "
                    f"{getattr(self, name)!r}."
                )
        return alphas, lambdas

    def _fit_kernel(self, X):
        """Return the centred and scaled kernel of the training samples."""
        if self.kernel == "precomputed":
            kernel, trace = X, None
            if X.shape[0] != X.shape[1]:
                raise ValueError(
                    "kernel='precomputed': X must be the square kernel of the training samples, "
                    f"got shape {X.shape}."
                )
        else:
            self.X_mean_ = X.mean(axis=0)
            self.X_scale_ = _scale_of(X)
            self.X_fit_ = (X - self.X_mean_) / self.X_scale_
            kernel, trace = self._kernel(self.X_fit_), np.square(self.X_fit_).sum()
        self._kernel_mean, self._kernel_scale = kernel.mean(axis=0), 1.0
        kernel = kernel - self._kernel_mean - self._kernel_mean[:, np.newaxis]
        kernel += self._kernel_mean.mean()
        if trace is not None and np.trace(kernel) > 0:
            self._kernel_scale = trace / np.trace(kernel)
        return kernel * self._kernel_scale

    def _kernel(self, X):
        if callable(self.kernel):
            return np.asarray(self.kernel(X, self.X_fit_), dtype=np.float64)
        gamma = 0.3 / self.n_features_in_ if self.gamma is None else self.gamma
        return pairwise_kernels(X, self.X_fit_, self.kernel, filter_params=True, gamma=gamma)

    def _standardize(self, values):
        self.y_mean_ = values.mean(axis=0, dtype=np.float64)
        self.y_scale_ = _scale_of(values)
        constant = np.ptp(values, axis=0) == 0
        self.y_mean_[constant] = values[0, constant]
        return (values - self.y_mean_) / self.y_scale_

    def _learn_eigengenes(self, prior, Z, values, groups, gene_names, seed):
        """Return the fitted prior, if any, and the eigenvectors and eigenvalues of G G^T."""
        if isinstance(prior, str):
            axes, singular = principal_axes(PatientAverager(groups) @ Z)
            return None, axes.T, np.square(singular)
        fitted, embeddings = learn_prior(prior, values, groups, gene_names, seed)
        if embeddings is None:
            return None, np.zeros((values.shape[1], 0)), np.zeros(0)
        if not embeddings.any():
            warn_user(
                "prior: all gene embeddings are zero, so lambda_ has no effect and this is ridge "
                "regression."
            )
        return fitted, *basis_of(embeddings.astype(np.float64))

    def _solve(self, spectrum, Z, projected, scores, ridge_penalty):
        """Set the dual coefficients, the leave-one-out scores and what the uncertainty needs."""
        U, own, rest = spectrum.vectors, self.eigengene_alpha_, self._outside
        of_scores = U.T @ scores
        gain = of_scores * (spectrum.inverse(own) - spectrum.inverse(rest)[:, np.newaxis])
        left = leave_out(spectrum, scores, of_scores, own)
        change = left - leave_out(spectrum, scores, of_scores, rest)
        # Residuals of a Gaussian process with one penalty have the variance 1 / (1 - leverage).
        weight = 1 - spectrum.leverage(spectrum.filter(ridge_penalty))
        self._ridge_penalty = float(ridge_penalty)
        self._inverse_root = U * np.sqrt(spectrum.inverse(ridge_penalty))
        self.dual_coef_ = np.empty(Z.shape)
        errors, self.noise_scale_ = np.empty(Z.shape[1]), np.empty(Z.shape[1])
        for genes in gen_batches(Z.shape[1], _BLOCK):
            basis = self.eigengenes_[genes].T
            inner = gain @ basis + projected[:, genes] * spectrum.inverse(rest)[:, np.newaxis]
            self.dual_coef_[:, genes] = U @ inner
            residual = leave_out(spectrum, Z[:, genes], projected[:, genes], rest) + change @ basis
            errors[genes] = np.square(residual).sum(axis=0)
            self.noise_scale_[genes] = np.sqrt(weight @ np.square(residual) / len(Z))
        self.loo_score_ = _r_squared(errors, np.square(Z).sum(axis=0))
        self.eigengene_loo_score_ = _r_squared(
            np.square(left).sum(axis=0), np.square(scores).sum(axis=0)
        )

    def predict(self, X, return_std=False):
        """
        Predict expression.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n, n_features)
            Features as in :meth:`fit`; with ``kernel="precomputed"``, the kernel between these
            and the training samples, of shape (n, n_samples).
        return_std : bool, default=False
            Whether to return standard deviations, too.

        Returns
        -------
        predicted : ndarray of shape (n,) or (n, n_genes), float64
            Predicted expression, in the unit of the y of :meth:`fit`.
        std : ndarray of shape (n,) or (n, n_genes), float64
            Standard deviation of a new measurement around its prediction, only with
            `return_std`. Its dependence on the slide is that of a Gaussian process without a
            prior, its size that of the leave-one-out residuals of each gene.
        """
        check_is_fitted(self)
        refuse_known_patients(self.prior_, X)
        X = validate_data(self, as_array(X), dtype=np.float64, reset=False)
        precomputed = self.kernel == "precomputed"
        if precomputed and return_std:
            raise ValueError("return_std needs the kernel itself, got kernel='precomputed'.")
        X = X if precomputed else self._scale(X)
        kernel = X if precomputed else self._kernel(X)
        centred = self._centre(kernel)
        predicted = self._predict_kernel(centred)
        predicted = predicted[:, 0] if self._y_is_1d else predicted
        if not return_std:
            return predicted
        own = self._kernel_of_itself(X) - 2 * kernel.mean(axis=1) + self._kernel_mean.mean()
        own = own * self._kernel_scale - np.square(centred @ self._inverse_root).sum(axis=1)
        spread = np.sqrt(1 + 1 / len(self.dual_coef_) + np.maximum(own, 0) / self._ridge_penalty)
        std = np.multiply.outer(spread, self.noise_scale_ * self.y_scale_)
        return predicted, std[:, 0] if self._y_is_1d else std

    def _scale(self, X):
        return (X - self.X_mean_) / self.X_scale_

    def _centre(self, kernel):
        """Centre the kernel between other samples and those of fit."""
        centred = kernel - self._kernel_mean - kernel.mean(axis=1, keepdims=True)
        return (centred + self._kernel_mean.mean()) * self._kernel_scale

    def _predict_kernel(self, centred, genes=slice(None)):
        scaled = centred @ self.dual_coef_[:, genes]
        return scaled * self.y_scale_[genes] + self.y_mean_[genes]

    def _kernel_of_itself(self, X):
        """Return k(x, x) for each sample."""
        if self.kernel == "rbf":
            return np.ones(len(X))
        if self.kernel == "linear":
            return np.square(X).sum(axis=1)
        return np.array([np.asarray(self.kernel(x, x)).item() for x in X[:, np.newaxis]])

    def predict_untrained(self, X):
        """
        Predict the mean of each gene over the training samples.

        Significance tests compare predictions against it.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
            Features as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,) or (n, n_genes), float64
            One row per sample, all alike.
        """
        check_is_fitted(self)
        X = validate_data(self, as_array(X), dtype=np.float64, reset=False)
        predicted = np.tile(self.y_mean_, (len(X), 1))
        return predicted[:, 0] if self._y_is_1d else predicted

    def predict_tiles(self, X, *, genes=None, window=None, stride=1):
        """
        Predict the expression of parts of slides, for maps.

        The features of a single tile, or the means over the tiles inside a square window, take
        the place of those of a slide. So the regressor has to be fitted on means: on the result
        of ``BagPooler(statistics=["mean"])``. The window moves over the slide, and the
        prediction of a tile is the mean over all windows that contain it.

        Parameters
        ----------
        X : list of array-like or FeatureBag of shape (tiles_i, n_features)
            Features of all tiles of each slide, with coordinates if there is a window.
        genes : list, default=None
            Names of the genes, or their positions if they have no names. None means all.
        window : int, default=None
            Edge of the window, in tiles. None predicts each tile by itself.
        stride : int, default=1
            Step of the window, in tiles; at most `window`.

        Returns
        -------
        list of DataFrame of shape (tiles_i, n_genes), float32
            Expression of each tile, one table per slide, as
            :meth:`PriorKnowledgeRegressor.predict_tiles` returns it.

        Raises
        ------
        KeyError
            If a gene is not among those of :meth:`fit`.
        ValueError
            If the number of features is not that of :meth:`fit`, the kernel is precomputed, or
            `window` is not None and the tiles of a slide have no coordinates or do not lie on a
            grid.
        """
        check_is_fitted(self)
        if self.kernel == "precomputed":
            raise ValueError("predict_tiles needs the kernel itself, got kernel='precomputed'.")
        check_window(window, stride)
        names = getattr(self, "gene_names_out_", None)
        chosen = positions_of_genes(genes, names, len(self.y_mean_))
        columns = chosen if names is None else names[chosen]

        def predict_bags(features, mask):
            pooled = masked_mean(features, mask).numpy()
            return self._predict_kernel(self._centre(self._kernel(self._scale(pooled))), chosen)

        frames = []
        slides = sample_names_of(X) or [name_of_item(bag) or "" for bag in X]
        for position, (bag, slide) in enumerate(zip(X, slides, strict=True)):
            width = np.shape(bag)[-1]
            if width != self.n_features_in_:
                raise ValueError(
                    f"{label_of_bag(bag, position)} has {width} features per tile, but the "
                    f"regressor was fitted on {self.n_features_in_} per slide. Maps need means: "
                    "BagPooler(statistics=['mean'])."
                )
            options = {"slide": slide, "batches": Halving(BATCH, "cpu")}
            frames.append(
                tile_expression(bag, position, predict_bags, columns, window, stride, **options)
            )
        return frames

    def _held_out_smoother(self, X, groups):
        """Return what predicts X from other expression of the training samples, if possible."""
        from ._smoother import RidgeSmoother, is_smoother  # which imports this module

        return RidgeSmoother(self, X, groups) if is_smoother(self) else None

    def _chosen_settings(self):
        """Return the parameters that leave-one-out chose."""
        prior = self.prior[self.prior_index_] if _is_list_of_priors(self.prior) else self.prior
        if self.lambda_best_ is None:
            return {"prior": prior}
        return {"prior": prior, "lambda_": self.lambda_best_, "alpha": self.alpha_}

    def __sklearn_is_fitted__(self):
        return hasattr(self, "dual_coef_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags
