"""Find pairs of correlated rows, exactly at the threshold, without the full matrix."""

# SPDX-License-Identifier: BSD-3-Clause

import threading
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.utils import gen_batches

from ..utils._device import full_precision, use_device
from ..utils._linalg import blas_threads, centre_rows
from ..utils._out_of_memory import Halving, describe_memory, explain_out_of_memory
from ..utils._reporting import progress, warn_user

# Rows per block: a product of 1,024 x 1,024 float32 takes 4 MB, which fits into the cache.
_BLOCK = 1024
# Values per side of the pairs that are correlated in float64 at a time: 8 MB.
_VALUES = 2**20
# A larger graph needs more than 5 GB and hardly distinguishes any genes.
MAX_PAIRS = 50_000_000


class Rows(NamedTuple):
    """Rows prepared for correlation."""

    values: np.ndarray
    means: np.ndarray
    norms: np.ndarray
    unit: np.ndarray


def prepare_rows(values, *, method="pearson"):
    """Centre and scale rows so that their inner products are correlations."""
    n_rows = len(values)
    if method == "spearman":
        # Ranks are multiples of one half, which are exact in float32 up to 8 million.
        ranks = np.empty(values.shape, dtype=np.float32)
        for block in gen_batches(n_rows, _BLOCK):
            ranks[block] = rankdata(values[block], axis=1)
        values = ranks
    means, norms = np.empty(n_rows), np.empty(n_rows)
    unit = np.empty(values.shape, dtype=np.float32)
    for block in gen_batches(n_rows, 256):
        rows = values[block].astype(np.float64)
        centred, norms[block], means[block] = centre_rows(rows)
        varies = norms[block] > 0
        centred[~varies] = 0.0
        unit[block] = centred / np.where(varies, norms[block], 1.0)[:, np.newaxis]
    return Rows(values, means, norms, unit)


def rounding_bound(n_columns):
    """Bound the error of a float32 inner product of two rounded unit vectors."""
    # One rounding per factor, product and sum (Higham, Accuracy and Stability of Numerical
    # Algorithms, section 3.1), and a margin for the norm of the unit vectors.
    unit_roundoff = 2.0**-24
    return (n_columns + 4) * unit_roundoff / (1 - (n_columns + 4) * unit_roundoff)


def correlated_pairs(
    rows,
    columns=None,
    *,
    threshold,
    absolute=False,
    block_size=_BLOCK,
    device="cpu",
    max_pairs=MAX_PAIRS,
    verbose=0,
):
    """Find all pairs of rows that correlate above a threshold."""
    same = columns is None
    columns = rows if same else columns
    margin = rounding_bound(rows.unit.shape[1])
    find = partial(
        _pairs_of_block,
        rows=rows,
        columns=columns,
        same=same,
        limits=(threshold - margin, threshold + margin),
        threshold=threshold,
        absolute=absolute,
    )
    tasks = [
        (a, b)
        for a in gen_batches(len(rows.unit), block_size)
        for b in gen_batches(len(columns.unit), block_size)
        if not same or a.start <= b.start
    ]
    empty = np.empty(0, np.int32)
    found, n_pairs = [(empty, empty)], 0
    # A block is one product, as long as it fits into memory.
    halving = Halving(None, device)
    with _multiplier(rows.unit, columns.unit, absolute, halving) as (run, multiply):
        blocks = run(partial(find, multiply=multiply), tasks)
        for pairs in progress(blocks, total=len(tasks), desc="co-expression", verbose=verbose):
            found.append(pairs)
            n_pairs += len(pairs[0])
            if n_pairs > max_pairs:
                raise ValueError(
                    f"threshold={threshold!r} connects more than {max_pairs:,} pairs of "
                    f"{len(rows.unit):,} genes, a graph too dense to be useful or to fit into "
                    "memory. Raise the threshold."
                )
    if halving.size is not None:
        warn_user(
            f"device={device!r}: a block of {block_size} rows does not fit into the memory of "
            f"{describe_memory(device)}. Continued with {halving.size} rows, which takes longer "
            "and gives the same graph. Stop other processes that use the device, or pass "
            "device='cpu'."
        )
    i, j = zip(*found, strict=True)
    return np.concatenate(i), np.concatenate(j)


def _pairs_of_block(task, *, rows, columns, same, limits, threshold, absolute, multiply):
    a, b = task
    at, r = multiply(a, b, limits[0])
    i, j = np.divmod(at, b.stop - b.start)
    i, j = i + a.start, j + b.start
    keep = (rows.norms[i] > 0) & (columns.norms[j] > 0)
    if same and a.start == b.start:
        keep &= i < j
    near = keep & (r < limits[1])
    exact = exact_correlations(rows, i[near], columns, j[near])
    keep[near] = (np.abs(exact) if absolute else exact) > threshold
    return i[keep].astype(np.int32), j[keep].astype(np.int32)


def exact_correlations(rows, i, columns, j):
    """Correlate pairs of rows in float64."""
    r = np.empty(len(i))
    if not len(i):
        return r
    for block in gen_batches(len(i), max(1, _VALUES // rows.unit.shape[1])):
        left = _unit64(rows, i[block])
        right = _unit64(columns, j[block])
        r[block] = np.einsum("ij,ij->i", left, right)
    return np.clip(r, -1, 1, out=r)


def _unit64(rows, index):
    centred = rows.values[index].astype(np.float64) - rows.means[index, np.newaxis]
    return centred / rows.norms[index, np.newaxis]


@contextmanager
def _multiplier(rows, columns, absolute, halving):
    """Yield a parallel map, and a product that returns its entries above a limit."""
    device = halving.device
    if device == "cpu":
        # One buffer per thread, since allocating one per block is slow.
        buffer = threading.local()

        def multiply(a, b, limit):
            shape = (a.stop - a.start, b.stop - b.start)
            size = shape[0] * shape[1]
            if getattr(buffer, "size", 0) < size:
                buffer.size, buffer.r = size, np.empty(size, dtype=np.float32)
                buffer.above = np.empty(size, dtype=bool)
            r, above = buffer.r[:size], buffer.above[:size]
            np.matmul(rows[a], columns[b].T, out=r.reshape(shape))
            if absolute:
                np.abs(r, out=r)
            at = np.flatnonzero(np.greater(r, limit, out=above))
            return at, r[at]

        with blas_threads() as run:
            yield run, multiply
        return

    import torch

    def explain(memory):
        return (
            f"device={device!r}: the products of {len(rows)} genes in {rows.shape[1]} samples do "
            f"not fit into the memory of {memory}. Pass device='cpu', or stop other processes "
            "that use the device."
        )

    with explain_out_of_memory(device, explain):
        left, right = (torch.as_tensor(each, device=device) for each in (rows, columns))

    def multiply(a, b, limit):
        def product(first, last):
            r = left[a][first:last] @ right[b].T
            r = (r.abs() if absolute else r).ravel()
            at = torch.nonzero(r > limit).ravel()
            # Positions relative to the block.
            return (at + first * (b.stop - b.start)).cpu().numpy(), r[at].cpu().numpy()

        # In the order of rows, so that the order of pairs does not depend on the split.
        at, r = zip(*halving(product, a.stop - a.start, explain), strict=True)
        return np.concatenate(at), np.concatenate(r)

    # TensorFloat-32 and bfloat16 would violate the bound on the rounding error.
    with full_precision(), use_device(device):
        yield map, multiply
