"""Pairs of correlated rows against float64 on every pair."""

# SPDX-License-Identifier: BSD-3-Clause

import tracemalloc

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from sklearn_pk.prior import CoexpressionGraph
from sklearn_pk.prior._pearson_graph import (
    correlated_pairs,
    exact_correlations,
    prepare_rows,
    rounding_bound,
)


def expression(n_genes=300, n_patients=40, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    modules = rng.normal(size=(n_genes // 10, n_patients)).repeat(10, axis=0)
    return (modules + rng.normal(size=(n_genes, n_patients))).astype(dtype)


def exact_pairs(X, threshold, absolute=False):
    r = np.corrcoef(X.astype(np.float64))
    r = np.abs(r) if absolute else r
    return set(map(tuple, np.argwhere(np.triu(r > threshold, 1)).tolist()))


def pairs(*arguments, **keywords):
    i, j = correlated_pairs(*arguments, **keywords)
    found = list(zip(i.tolist(), j.tolist(), strict=True))
    assert len(found) == len(set(found)), "a pair was found twice"
    return set(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("threshold", "absolute"), [(0.6, False), (0.3, True), (-0.2, False)])
def test_pairs_are_those_of_float64(dtype, threshold, absolute):
    X = expression(dtype=dtype)
    found = pairs(prepare_rows(X), threshold=threshold, absolute=absolute, block_size=64)
    assert found == exact_pairs(X, threshold, absolute)


@pytest.mark.parametrize("offset", [0.0, 2e4])
def test_pairs_at_the_threshold_are_exact(offset):
    # Rows have only two values, the second for a third of the patients, so that each correlation
    # occurs in many pairs and thousands of pairs lie within the rounding error of float32.
    rng = np.random.default_rng(0)
    X = (rng.permuted(np.tile(np.arange(36) < 12, (400, 1)), axis=1) + offset).astype(np.float64)
    r = np.corrcoef(X - offset)
    threshold = float(np.unique(np.round(r, 9))[-4])
    near = np.abs(r[np.triu_indices(400, 1)] - threshold) < 1e-7
    assert near.sum() > 100
    rows = prepare_rows(X)
    # Slightly below and above: all of these pairs, or none of them.
    for shift in (-1e-9, 1e-9):
        expected = exact_pairs(X - offset, threshold + shift)
        for block_size in (7, 64, 1024):
            assert pairs(rows, threshold=threshold + shift, block_size=block_size) == expected
        for device in ("cpu", "cpu:0"):  # numpy and torch
            assert pairs(rows, threshold=threshold + shift, device=device) == expected
    assert len(exact_pairs(X - offset, threshold - 1e-9)) > len(expected)


def test_pairs_do_not_depend_on_threads_or_torch_precision():
    X = expression()
    rows = prepare_rows(X)
    expected = exact_pairs(X, 0.4)
    for n_threads in (1, 4):
        with threadpool_limits(n_threads, user_api="blas"):
            assert pairs(rows, threshold=0.4, block_size=32) == expected
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert pairs(rows, threshold=0.4, device="cpu:0") == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("n_columns", [3, 100, 5000])
def test_rounding_bound(n_columns):
    rng = np.random.default_rng(0)
    X = rng.lognormal(sigma=2, size=(200, n_columns)) + 100
    rows = prepare_rows(X)
    i, j = np.triu_indices(200, 1)
    error = np.abs((rows.unit @ rows.unit.T)[i, j] - exact_correlations(rows, i, rows, j))
    assert error.max() < rounding_bound(n_columns)


def test_two_sets_of_rows():
    X = expression()
    found = pairs(prepare_rows(X[:50]), prepare_rows(X[50:]), threshold=0.3, block_size=16)
    expected = {(i, j - 50) for i, j in exact_pairs(X, 0.3) if i < 50 <= j}
    assert found == expected
    assert pairs(prepare_rows(X[:50]), prepare_rows(X[:50]), threshold=0.3) >= {(3, 3)}


def test_constant_rows_have_no_pairs():
    X = expression()
    X[4] = 7.1
    rows = prepare_rows(X)
    assert np.flatnonzero(rows.norms == 0).tolist() == [4]
    assert np.isfinite(rows.unit).all()
    assert {i for pair in pairs(rows, threshold=-1.0) for i in pair} == set(range(300)) - {4}


def test_equal_rows_do_not_correlate_by_more_than_one():
    X = np.random.default_rng(0).normal(size=(50, 33)).repeat(2, axis=0)
    assert not pairs(prepare_rows(X), threshold=1.0)
    assert len(pairs(prepare_rows(X), threshold=1 - 1e-12)) == 50


def test_too_many_pairs():
    with pytest.raises(ValueError, match="-1 connects more than 1,000 pairs of 300 genes"):
        correlated_pairs(prepare_rows(expression()), threshold=-1, max_pairs=1000, block_size=32)


def test_memory_stays_below_the_matrix_of_all_pairs():
    X = expression(n_genes=6000, n_patients=20, dtype=np.float32)
    tracemalloc.start()
    i, _ = correlated_pairs(prepare_rows(X), threshold=0.95, block_size=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(i)
    assert peak < 6000 * 6000 * 4 / 4


# Its location before torch 2.5.
OutOfMemoryError = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError


def limit_products(monkeypatch, most):
    """Make larger products run out of memory; return the list of product sizes."""
    sizes, nonzero = [], torch.nonzero

    def limited(above):
        sizes.append(above.numel())
        if above.numel() > most:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return nonzero(above)

    monkeypatch.setattr(torch, "nonzero", limited)
    return sizes


@pytest.mark.parametrize("absolute", [False, True])
def test_blocks_are_halved_when_memory_is_short(monkeypatch, absolute):
    rows = prepare_rows(expression(n_genes=250))
    options = {"threshold": 0.4, "absolute": absolute, "block_size": 100, "device": "cpu:0"}
    expected = correlated_pairs(rows, **options)
    sizes = limit_products(monkeypatch, 30 * 100)
    with pytest.warns(UserWarning, match="block of 100 rows .*cpu:0.* Continued with 25 rows"):
        found = correlated_pairs(rows, **options)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # A size that did not fit is not tried again.
    assert sizes[:2] == [100 * 100, 50 * 100]
    assert max(sizes[2:]) == 25 * 100
    assert len(found[0]) > 0


def test_graph_warns_when_memory_is_short(monkeypatch):
    X = expression(n_genes=30)
    expected = CoexpressionGraph(threshold=0.4, device="cpu:0").fit(X).graph_
    limit_products(monkeypatch, 500)
    with pytest.warns(UserWarning, match="Continued with 15 rows") as caught:
        graph = CoexpressionGraph(threshold=0.4, device="cpu:0").fit(X).graph_
    assert caught[0].filename == __file__
    assert (graph != expected).nnz == 0
    limit_products(monkeypatch, 0)
    with pytest.raises(
        MemoryError,
        match=r"device='cpu:0': the products of 30 genes in 40 samples do not fit into the memory "
        r"of cpu:0.*\. Pass device='cpu'",
    ):
        CoexpressionGraph(threshold=0.4, device="cpu:0").fit(X)
