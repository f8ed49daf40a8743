"""Pairs of correlated rows, exact at the threshold, without the matrix of all pairs."""

# SPDX-License-Identifier: BSD-3-Clause

import threading
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.utils import gen_batches

from ..utils._device import full_precision
from ..utils._linalg import blas_threads, centre_rows
from ..utils._out_of_memory import Halving, describe_memory, explain_out_of_memory
from ..utils._reporting import progress, warn_user

# Rows of either side of one product: 1,024 x 1,024 float32 are 4 MB, near to the processor.
_BLOCK = 1024
# Values of either side of the pairs that are correlated in float64 together: 8 MB.
_VALUES = 2**20
# Beyond this, making the graph takes some 5 GB, and it tells hardly any gene from another.
MAX_PAIRS = 50_000_000


class Rows(NamedTuple):
    """Rows that are ready to be correlated."""

    values: np.ndarray
    means: np.ndarray
    norms: np.ndarray
    unit: np.ndarray


def prepare_rows(values, *, method="pearson"):
    """Centre and scale rows so that their inner products are correlations."""
    n_rows = len(values)
    if method == "spearman":
        # Ranks are multiples of one half, which float32 holds exactly up to 8 million.
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
    # One rounding a factor, a product and a sum (Higham, Accuracy and Stability of Numerical
    # Algorithms, section 3.1), with room for the unit vectors' own length.
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
    # The whole of a block is one product, as long as it fits.
    halving = Halving(None, device)
    with _multiplier(rows.unit, columns.unit, absolute, halving) as (run, multiply):
        blocks = run(partial(find, multiply=multiply), tasks)
        for pairs in progress(blocks, total=len(tasks), desc="co-expression", verbose=verbose):
            found.append(pairs)
            n_pairs += len(pairs[0])
            if n_pairs > max_pairs:
                raise ValueError(
                    f"threshold={threshold!r} connects more than {max_pairs:,} pairs of "
                    f"{len(rows.unit):,} genes, a graph of no use and too large for memory. Raise "
                    "the threshold."
                )
    if halving.size is not None:
        warn_user(
            f"device={device!r}: a block of {block_size} rows does not fit into the memory of "
            f"{describe_memory(device)}. Went on with {halving.size} at once, which takes longer "
            "and gives the same graph. End other processes that use the device, or pass "
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
    """Yield how blocks are run, and a product that returns its entries above a limit."""
    device = halving.device
    if device == "cpu":
        # Memory of a block that is used again: the system takes long to find some for each.
        memory = threading.local()

        def multiply(a, b, limit):
            shape = (a.stop - a.start, b.stop - b.start)
            size = shape[0] * shape[1]
            if getattr(memory, "size", 0) < size:
                memory.size, memory.r = size, np.empty(size, dtype=np.float32)
                memory.above = np.empty(size, dtype=bool)
            r, above = memory.r[:size], memory.above[:size]
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
            f"not fit into the memory of {memory}. Pass device='cpu', or end other processes "
            "that use the device."
        )

    with explain_out_of_memory(device, explain):
        left, right = (torch.as_tensor(each, device=device) for each in (rows, columns))

    def multiply(a, b, limit):
        def product(first, last):
            r = left[a][first:last] @ right[b].T
            r = (r.abs() if absolute else r).ravel()
            at = torch.nonzero(r > limit).ravel()
            # Counted from the first row of the block.
            return (at + first * (b.stop - b.start)).cpu().numpy(), r[at].cpu().numpy()

        # Rows in order, so that their parts have the pairs in the order of the whole.
        at, r = zip(*halving(product, a.stop - a.start, explain), strict=True)
        return np.concatenate(at), np.concatenate(r)

    # TensorFloat-32 and bfloat16 would break the bound on the rounding error.
    with full_precision():
        yield map, multiply
