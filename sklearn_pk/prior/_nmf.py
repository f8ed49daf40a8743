"""Non-negative matrix factorisation as pure functions on arrays."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings

import numpy as np
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning


def factorize(X, n_components, *, solver, init, tol, max_iter, random_state, verbose=0):
    """
    Factorise X into non-negative W and H, leaving out its empty rows and columns.

    Parameters
    ----------
    X : {ndarray, CSR array} of shape (n_rows, n_columns), float32 or float64
        Non-negative matrix.
    n_components : int
        Width of the factors. The rank is at most the number of non-empty rows or
        columns; components beyond it are zero.
    solver : {"cd", "mu"}
        Solver of :func:`sklearn.decomposition.non_negative_factorization`.
    init : str
        Initialisation of the same function.
    tol, max_iter, random_state, verbose
        As there.

    Returns
    -------
    W : ndarray of shape (n_rows, n_components)
        Zero in the empty rows of X.
    H : ndarray of shape (n_components, n_columns)
        Zero in the empty columns of X.
    n_iter : int
        Number of iterations.
    """
    rows, columns = nonempty(X)
    W = np.zeros((X.shape[0], n_components), dtype=X.dtype)
    H = np.zeros((n_components, X.shape[1]), dtype=X.dtype)
    if not rows.any():
        return W, H, 0
    # More components than rows or columns reconstruct no better: the rest stay zero.
    rank = min(n_components, np.count_nonzero(rows), np.count_nonzero(columns))
    with warnings.catch_warnings():
        # Reaching max_iter is the method's usual end; the caller has n_iter to tell.
        warnings.simplefilter("ignore", ConvergenceWarning)
        W[rows, :rank], H[:rank, columns], n_iter = non_negative_factorization(
            X[rows][:, columns],
            n_components=rank,
            solver=solver,
            init=init,
            tol=tol,
            max_iter=max_iter,
            random_state=random_state,
            verbose=verbose,
        )
    return W, H, n_iter


def nonempty(X):
    """
    Tell which rows and columns of a non-negative matrix hold anything.

    Parameters
    ----------
    X : {ndarray, CSR array} of shape (n_rows, n_columns)
        Non-negative matrix.

    Returns
    -------
    rows : ndarray of shape (n_rows,), bool
        Whether the row holds a positive entry.
    columns : ndarray of shape (n_columns,), bool
        The same for columns.
    """
    return tuple(np.asarray(X.sum(axis=axis)).ravel() > 0 for axis in (1, 0))


def project(X, H, *, tol=1e-6, max_iter=1000, block_size=256):
    """
    Solve min ||X - W H|| for non-negative W, each row by itself.

    Coordinate descent from zero. A row is done when its own largest step falls
    below `tol` times its own largest entry, so that its solution does not depend
    on the rows beside it.

    Parameters
    ----------
    X : {ndarray, CSR array} of shape (n_rows, n_columns)
        Non-negative matrix.
    H : ndarray of shape (n_components, n_columns)
        Non-negative factor.
    tol : float, default=1e-6
        Relative step at which a row is done.
    max_iter : int, default=1000
        Largest number of sweeps over the components.
    block_size : int, default=256
        Number of rows that are worked on together, few enough for the cache.

    Returns
    -------
    W : ndarray of shape (n_rows, n_components), float64
        Non-negative coefficients.
    """
    H = H.astype(np.float64, copy=False)
    gram = H @ H.T
    target = np.asarray(X @ H.T, dtype=np.float64)
    W = np.zeros_like(target)
    todo = np.flatnonzero(target.any(axis=1))
    for start in range(0, len(todo), block_size):
        rows = todo[start : start + block_size]
        W[rows] = _solve_rows(target[rows], gram, tol, max_iter)
    return W


def _solve_rows(target, gram, tol, max_iter):
    solved = np.zeros_like(target)
    active = np.arange(len(target))
    used = np.flatnonzero(gram.diagonal() > 0)
    for _ in range(max_iter):
        old = solved[active]
        new, goal = old.copy(), target[active]
        for j in used:
            step = (goal[:, j] - new @ gram[:, j]) / gram[j, j]
            new[:, j] = np.maximum(new[:, j] + step, 0.0)
        solved[active] = new
        moved = np.abs(new - old).max(axis=1) > tol * new.max(axis=1)
        active = active[moved]
        if not active.size:
            break
    return solved
