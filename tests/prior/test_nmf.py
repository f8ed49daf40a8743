"""The factorisation against scikit-learn, known solutions, and between its implementations."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.optimize import nnls
from sklearn.decomposition import non_negative_factorization
from threadpoolctl import threadpool_limits

from sklearn_pk.prior import CoexpressionGraph
from sklearn_pk.prior._embedder import residual_norm
from sklearn_pk.prior._nmf import _ROWS, factorize, hals, initialize, project


@pytest.fixture(scope="module")
def graph(genes):
    """Return the connected part of a real graph of about 400 genes."""
    graph = CoexpressionGraph(threshold=0.7).fit_transform(genes)
    connected = np.flatnonzero(np.diff(graph.indptr))
    return sparse.csr_array(graph[connected][:, connected]).astype(np.float64)


def start(graph, n_components, seed=0):
    return initialize(graph, n_components, "random", np.random.RandomState(seed))


@pytest.mark.parametrize("n_components", [3, 70, 150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_iterations_are_those_of_coordinate_descent(graph, n_components, dtype):
    X = graph.astype(dtype)
    W, H = start(X, n_components)
    expected = non_negative_factorization(
        X, W.copy(), H.copy(), n_components=n_components, init="custom", tol=0, max_iter=5
    )[:2]
    factors = hals(X, W, H, tol=0, max_iter=5)[:2]
    error, reference = residual_norm(X, *factors), residual_norm(X, *expected)
    assert_allclose(error, reference, rtol=1e-4 if dtype == np.float32 else 1e-7)
    if dtype == np.float64:
        for ours, theirs in zip(factors, expected, strict=True):
            assert_allclose(ours, theirs, atol=1e-5 * theirs.max())


def test_star_is_factorised_exactly():
    # The hub and the leaves have different neighbours: two components, no residual.
    star = np.zeros((6, 6))
    star[0, 1:] = star[1:, 0] = 1
    W, H, _ = hals(sparse.csr_array(star), *start(star, 2), tol=0, max_iter=200)
    assert_allclose(W @ H, star, atol=1e-6)
    hub, leaves = W[0], W[1:]
    assert_allclose(hub @ leaves.T, 0, atol=1e-6)
    assert_allclose(leaves, leaves[[0]].repeat(5, axis=0), rtol=1e-6)


def test_best_single_component_by_hand():
    # Two triangles: the best rank one factor is the leading eigenvector of one of them, with
    # eigenvalue 2, so 12 - 2 ** 2 of the squared norm remain.
    triangle = np.ones((3, 3)) - np.eye(3)
    X = np.kron(np.eye(2), triangle)
    W, H, _ = hals(sparse.csr_array(X), *start(X, 1, seed=1), tol=0, max_iter=500)
    assert_allclose(residual_norm(X, W, H) ** 2, 8, rtol=1e-6)


def test_objective_decreases(graph):
    W, H = start(graph, 20)
    errors = [
        residual_norm(graph, *hals(graph, W, H, tol=0, max_iter=number)[:2])
        for number in (1, 2, 3, 5, 8, 13, 21)
    ]
    assert (np.diff(errors) < 0).all()


def test_result_does_not_depend_on_threads(graph):
    # More rows than in one task.
    X = sparse.csr_array(sparse.block_diag([graph] * 7, format="csr"))
    assert X.shape[0] > 2 * _ROWS
    W, H = start(X, 70)
    with threadpool_limits(4, user_api="blas"):
        factors = hals(X, W, H, tol=0, max_iter=5)[:2]
    with threadpool_limits(1, user_api="blas"):
        sequential = hals(X, W, H, tol=0, max_iter=5)[:2]
    for ours, theirs in zip(factors, sequential, strict=True):
        assert_array_equal(ours, theirs)


def test_torch_agrees_with_numpy(graph):
    W, H = start(graph, 70)
    expected = hals(graph, W, H, tol=1e-4, max_iter=50)
    other = hals(graph, W, H, tol=1e-4, max_iter=50, device="cpu:0")
    assert other[2] == expected[2]
    for ours, theirs in zip(other[:2], expected[:2], strict=True):
        assert_allclose(ours, theirs, atol=1e-6 * theirs.max())


@pytest.mark.parametrize("n_calls", [0, 5])
def test_device_out_of_memory(graph, monkeypatch, n_calls):
    name = "where" if n_calls else "sparse_csr_tensor"
    calls, function = [], getattr(torch, name)

    def limited(*arguments, **keywords):
        calls.append(name)
        if len(calls) > n_calls:
            # Its location before torch 2.5.
            kind = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*arguments, **keywords)

    monkeypatch.setattr(torch, name, limited)
    with pytest.raises(
        MemoryError,
        match=rf"device='cpu:0': a graph of {graph.shape[0]} genes with {graph.nnz} entries, and "
        r"its 70 components, do not fit into the memory of cpu:0.*\. Pass device='cpu'",
    ) as caught:
        hals(graph, *start(graph, 70), tol=1e-4, max_iter=50, device="cpu:0")
    assert "CUDA out of memory" in str(caught.value.__cause__)
    assert len(calls) == n_calls + 1


def test_float32_against_float64(graph):
    single = hals(
        graph.astype(np.float32), *start(graph.astype(np.float32), 40), tol=0, max_iter=60
    )
    double = hals(graph, *start(graph, 40), tol=0, max_iter=60)
    assert single[0].dtype == np.float32
    errors = [residual_norm(graph, *each[:2]) for each in (single, double)]
    assert_allclose(*errors, rtol=1e-2)


def test_tolerance_stops_iterations(graph):
    W, H = start(graph, 20)
    loose, strict = (hals(graph, W, H, tol=tol, max_iter=400)[2] for tol in (1e-2, 1e-4))
    assert 10 <= loose < strict < 400
    assert loose % 10 == 0
    assert hals(graph, W, H, tol=0.0, max_iter=7)[2] == 7


def test_no_subnormal_numbers(graph):
    W, H, _ = hals(
        graph.astype(np.float32), *start(graph.astype(np.float32), 60), tol=0, max_iter=80
    )
    smallest = np.finfo(np.float32).tiny
    for factor in (W, H):
        assert not ((factor > 0) & (factor < smallest)).any()


def test_zero_component_becomes_positive(graph):
    W, H = start(graph, 5)
    W[:, 2], H[2] = 0, 0
    W, H, _ = hals(graph, W, H, tol=0, max_iter=30)
    assert np.isfinite(W).all()
    assert np.isfinite(H).all()
    assert W[:, 2].any()
    assert H[2].any()


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda", "nndsvdar"])
def test_initial_factors_are_those_of_scikit_learn(graph, init):
    # One step from the same initial factors gives the same result.
    W, H, _ = non_negative_factorization(
        graph, n_components=4, init=init, max_iter=1, tol=0, random_state=0
    )
    ours = factorize(
        graph,
        4,
        solver="cd",
        init=init,
        tol=0,
        max_iter=1,
        random_state=np.random.RandomState(0),
    )
    assert_allclose(ours[0], W, atol=2e-3 * W.max())
    assert_allclose(ours[1], H, atol=2e-3 * H.max())


def test_empty_rows_and_columns_are_left_out():
    X = np.zeros((6, 5))
    X[np.ix_([0, 3, 4], [1, 4])] = [[1, 2], [2, 4], [1, 0]]
    options = {"init": "random", "tol": 0, "max_iter": 500, "solver": "hals"}
    W, H, _ = factorize(sparse.csr_array(X), 4, random_state=np.random.RandomState(0), **options)
    assert_array_equal(W.any(axis=1), [True, False, False, True, True, False])
    assert_array_equal(H.any(axis=0), [False, True, False, False, True])
    assert not W[:, 2:].any(), "the rank is two"
    assert_allclose(W @ H, X, atol=1e-5)
    W, H, n_iter = factorize(
        sparse.csr_array((3, 3)), 2, random_state=np.random.RandomState(0), **options
    )
    assert not W.any()
    assert not H.any()
    assert n_iter == 0


def test_project_solves_nnls(graph):
    H = hals(graph, *start(graph, 6), tol=0, max_iter=50)[1]
    H = np.vstack([H, np.zeros(H.shape[1])])
    expected = [nnls(H.T, graph[[row]].toarray().ravel())[0] for row in range(10)]
    assert_allclose(project(graph[:10], H, tol=1e-10, max_iter=2000), expected, atol=1e-6)


def test_project_treats_rows_independently(graph):
    H = hals(graph, *start(graph, 20), tol=0, max_iter=20)[1]
    together = project(graph, H)
    for rows in (slice(7, 8), slice(30, 90)):
        assert_allclose(project(graph[rows], H), together[rows], rtol=1e-9, atol=1e-12)
