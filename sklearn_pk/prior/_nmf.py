"""Non-negative matrix factorisation of a graph, as functions on arrays."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from contextlib import closing
from functools import partial

import numpy as np
from scipy import sparse
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches, gen_even_slices
from sklearn.utils.extmath import randomized_svd

from ..utils._device import full_precision, use_device
from ..utils._linalg import blas_threads
from ..utils._out_of_memory import explain_out_of_memory
from ..utils._reporting import progress

# Maximum rows per task: they fit into the cache, and are enough to hide the overhead of Python.
# Independent of the number of threads, which must not change the result.
_ROWS = 1536
# Components updated between two large matrix products, and between two small ones.
_COMPONENTS = 256
_FEW = 32
# Iterations between two evaluations of the stopping criterion.
_PERIOD = 10
# Lower bound of all entries during HALS, relative to the scale of a random start. It prevents
# dead components, and subnormal numbers, which are a hundred times slower.
_FLOOR = 1e-8


def factorize(
    X, n_components, *, solver, init, tol, max_iter, random_state, device="cpu", verbose=0
):
    """Factorise X into non-negative W and H, without its empty rows and columns."""
    rows, columns = nonempty(X)
    W = np.zeros((X.shape[0], n_components), dtype=X.dtype)
    H = np.zeros((n_components, X.shape[1]), dtype=X.dtype)
    if not rows.any():
        return W, H, 0
    # Components beyond the number of rows or columns do not improve the fit: they stay zero.
    rank = min(n_components, np.count_nonzero(rows), np.count_nonzero(columns))
    X = X[rows][:, columns]
    start = initialize(X, rank, init, random_state)
    if solver == "hals":
        options = {"device": device, "verbose": verbose}
        solution = hals(sparse.csr_array(X), *start, tol=tol, max_iter=max_iter, **options)
    else:
        with warnings.catch_warnings():
            # Stopping at max_iter is normal here, and visible in n_iter.
            warnings.simplefilter("ignore", ConvergenceWarning)
            solution = non_negative_factorization(
                X,
                *start,
                n_components=rank,
                init="custom",
                solver=solver,
                tol=tol,
                max_iter=max_iter,
                verbose=verbose,
            )
    W[rows, :rank], H[:rank, columns], n_iter = solution
    return W, H, n_iter


def nonempty(X):
    """Return which rows and columns of a non-negative matrix have a positive entry."""
    return tuple(np.asarray(X.sum(axis=axis)).ravel() > 0 for axis in (1, 0))


def initialize(X, n_components, init, random_state):
    """Compute the initial factors."""
    mean = X.sum(dtype=np.float64) / np.prod(X.shape, dtype=np.float64)
    if init == "random":
        scale = np.sqrt(mean / n_components)
        shapes = (n_components, X.shape[1]), (X.shape[0], n_components)
        H, W = (np.abs(scale * random_state.standard_normal(size=shape)) for shape in shapes)
        return W.astype(X.dtype), H.astype(X.dtype)
    U, singular, Vt = randomized_svd(X, n_components, random_state=random_state)
    halves = []
    for sign in (1, -1):
        left, right = np.maximum(sign * U, 0).T, np.maximum(sign * Vt, 0)
        norms = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
        halves.append((left, right, *norms, norms[0] * norms[1]))
    (left, right, a, b, weight), (other_left, other_right, c, d, other_weight) = halves
    other = other_weight > weight
    left[other], right[other] = other_left[other], other_right[other]
    a[other], b[other] = c[other], d[other]
    size = np.sqrt(singular * np.maximum(weight, other_weight))[:, np.newaxis]
    W = (left / np.maximum(a, np.finfo(a.dtype).tiny)[:, np.newaxis] * size).T
    H = right / np.maximum(b, np.finfo(b.dtype).tiny)[:, np.newaxis] * size
    for factor in (W, H):
        empty = factor < 1e-6
        fill = {"nndsvd": 0.0, "nndsvda": mean}.get(init)
        if fill is None:
            fill = np.abs(mean / 100 * random_state.standard_normal(np.count_nonzero(empty)))
        factor[empty] = fill
    return np.ascontiguousarray(W, dtype=X.dtype), np.ascontiguousarray(H, dtype=X.dtype)


def hals(X, W, H, *, tol, max_iter, device="cpu", verbose=0):
    """Factorise a sparse matrix by hierarchical alternating least squares."""
    norm = float(np.sqrt(np.square(X.data, dtype=np.float64).sum()))
    mean = X.sum(dtype=np.float64) / np.prod(X.shape, dtype=np.float64)
    floor = float(_FLOOR * np.sqrt(mean / W.shape[1]))
    left, right = np.maximum(W, floor), np.maximum(np.ascontiguousarray(H.T), floor)
    iterate = _iterate_numpy if device == "cpu" else partial(_iterate_torch, device=device)
    errors, n_iter = [norm], 0
    with (
        progress(total=max_iter, desc="NMF", unit="iteration", verbose=verbose) as bar,
        closing(iterate(X, left, right, floor)) as steps,
    ):
        for products in steps:
            n_iter += 1
            bar.update()
            if n_iter % _PERIOD == 0:
                cross, product = products
                errors.append(np.sqrt(max(norm**2 - 2 * cross + product, 0.0)))
                bar.set_postfix_str(f"residual {errors[-1]:.4g} of {norm:.4g}", refresh=False)
            if n_iter >= max_iter or (
                not n_iter % _PERIOD and errors[-2] - errors[-1] < tol * norm
            ):
                break
    # Entries at the floor represent zeros.
    left, right = (np.where(factor > floor, factor, 0) for factor in (left, right))
    return left, np.ascontiguousarray(right.T), n_iter


def sweep(W, target, gram, clip):
    """Replace each component once, in place, by its exact minimiser."""
    for outer in gen_batches(len(W), _COMPONENTS):
        rows, within = W[outer], gram[outer, outer]
        residual = target[outer] - gram[outer] @ W
        moved = residual + 0
        for inner in gen_batches(len(rows), _FEW):
            first = inner.start
            steps = residual[inner]
            if first:
                steps -= within[inner, :first] @ moved[:first]
            for component in range(first, min(inner.stop, len(rows))):
                row, new = rows[component], steps[component - first]
                if component > first:
                    new -= within[component, first:component] @ moved[first:component]
                new += row
                clip(new)
                moved[component] = new - row
                row[:] = new


def sweep_device(W, target, gram, floor):
    """Do the same as :func:`sweep` in torch, with few operations, each of which is a launch."""
    import torch

    for outer in gen_batches(len(W), _COMPONENTS):
        rows, within = W[outer], gram[outer, outer]
        # What remains of a component is the part of those before it, which are new by then.
        base = target[outer] - gram[outer] @ W + rows + within.tril(-1) @ rows
        for inner in gen_batches(len(rows), _FEW):
            first = inner.start
            if first:
                base[inner] -= within[inner, :first] @ rows[:first]
            for component in range(first, min(inner.stop, len(rows))):
                row = base[component]
                if component > first:
                    before = slice(first, component)
                    row = torch.addmv(row, rows[before].T, within[component, before], alpha=-1)
                torch.clamp(row, min=floor, out=rows[component])


def _inverse_diagonal(gram):
    """Return the inverse diagonal as a column, with 1 for components that are zero."""
    diagonal = gram.diagonal()
    return (1 / np.where(diagonal > 0, diagonal, 1))[:, np.newaxis]


def _row_blocks(n_rows):
    """Split rows evenly, depending on their number only."""
    n_blocks = -(-n_rows // _ROWS)
    # An even number balances two threads.
    return list(gen_even_slices(n_rows, n_blocks + n_blocks % 2 if n_blocks > 1 else 1))


class _Factor:
    """A factor, its transposed blocks, and its Gram matrix."""

    def __init__(self, values, run):
        self.values, self.run = values, run
        self.blocks = _row_blocks(len(values))
        self.columns = [np.ascontiguousarray(values[block].T) for block in self.blocks]
        self.gram = sum(run(lambda block: block @ block.T, self.columns))

    def update(self, X_blocks, other, clip):
        """Update all rows in place, and return the inner product of X and both factors."""
        scale = _inverse_diagonal(other.gram)
        gram = other.gram * scale

        def update_rows(task):
            rows, X, columns = task
            product = np.ascontiguousarray((X @ other.values).T)
            sweep(columns, product * scale, gram, clip)
            self.values[rows] = columns.T
            return columns @ columns.T, float(np.vdot(product, columns))

        tasks = zip(self.blocks, X_blocks, self.columns, strict=True)
        grams, products = zip(*self.run(update_rows, tasks), strict=True)
        # Summed in the order of blocks, so that the result is deterministic.
        self.gram = sum(grams)
        return sum(products)


def _iterate_numpy(X, left, right, floor):
    """Update both factors in place; yield <X, W H> and ||W H||^2 after each iteration."""
    clip = partial(_clip_numpy, floor=X.dtype.type(floor))
    transposed = X.T.tocsr()
    with blas_threads() as run:
        W, V = _Factor(left, run), _Factor(right, run)
        rows, columns = [X[block] for block in W.blocks], [transposed[block] for block in V.blocks]
        while True:
            W.update(rows, V, clip)
            product = V.update(columns, W, clip)
            yield product, float(np.vdot(W.gram, V.gram))


def _clip_numpy(values, floor):
    np.maximum(values, floor, out=values)


def _iterate_torch(X, left, right, floor, device):
    """Do the same on another device; the factors are copied back at the end."""

    def explain(memory):
        return (
            f"device={device!r}: a graph of {len(left)} genes with {X.nnz} entries, and its "
            f"{left.shape[1]} components, do not fit into the memory of {memory}. Pass "
            "device='cpu' or a smaller n_components, or stop other processes that use the device."
        )

    with explain_out_of_memory(device, explain), use_device(device):
        yield from _iterate_device(X, left, right, floor, device)


def _iterate_device(X, left, right, floor, device):
    import torch

    def to_device(matrix):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            parts = (matrix.indptr, matrix.indices, matrix.data)
            parts = [torch.from_numpy(part.copy()).to(device) for part in parts]
            return torch.sparse_csr_tensor(
                *parts, size=matrix.shape, device=device, check_invariants=True
            )

    def update(matrix, factor, other, gram):
        product = (matrix @ other).T.contiguous()
        scale = (1 / torch.where(gram.diagonal() > 0, gram.diagonal(), 1))[:, None]
        sweep_device(factor, product * scale, gram * scale, floor)
        return product

    rows, columns = to_device(X), to_device(X.T.tocsr())
    # Components are rows, as sweep requires.
    W, H = (torch.from_numpy(factor.T.copy()).to(device) for factor in (left, right))
    try:
        with full_precision():
            gram_of_h, n_iter = H @ H.T, 0
            while True:
                n_iter += 1
                update(rows, W, H.T, gram_of_h)
                gram = W @ W.T
                product = update(columns, H, W.T, gram)
                gram_of_h = H @ H.T
                # The host waits for these numbers.
                yield n_iter % _PERIOD or tuple(
                    float((one * other).sum(dtype=torch.float64))
                    for one, other in ((product, H), (gram, gram_of_h))
                )
    finally:
        left[:], right[:] = W.T.cpu().numpy(), H.T.cpu().numpy()


def project(X, H, *, tol=1e-5, max_iter=200):
    """Solve min ||X - W H|| for non-negative W, independently for each row."""
    H = H.astype(np.float64, copy=False)
    W = np.zeros((X.shape[0], len(H)))
    todo = np.flatnonzero(nonempty(X)[0])
    if not todo.size:
        return W
    tasks = [todo[block] for block in _row_blocks(len(todo))]
    with blas_threads() as run:
        gram = H @ H.T
        scale = _inverse_diagonal(gram)

        def solve(rows):
            target = np.asarray(X[rows] @ H.T, dtype=np.float64).T * scale
            W[rows] = _solve(np.ascontiguousarray(target), gram * scale, tol, max_iter).T

        for _ in run(solve, tasks):
            pass
    return W


def _solve(target, gram, tol, max_iter):
    clip = partial(_clip_numpy, floor=0.0)
    solved = np.zeros_like(target)
    active, W = np.arange(target.shape[1]), np.zeros_like(target)
    for number in range(1, max_iter + 1):
        old = W.copy()
        sweep(W, target, gram, clip)
        if number % 5 and number < max_iter:
            continue
        moving = np.abs(W - old).max(axis=0) > tol * W.max(axis=0)
        solved[:, active] = W
        active, W, target = active[moving], W[:, moving], target[:, moving]
        if not active.size:
            break
    return solved
