"""Random graphs with the degrees of a given one."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np

# Each edge takes part in about this many attempted swaps, enough to forget where it was.
_ROUNDS = 20


def rewire_pairs(rows, columns, n_genes, share, random_state):
    """Rewire a share of the edges of a graph at random and keep the degree of every gene."""
    ends = np.sort(np.stack([rows, columns], axis=1).astype(np.int64), axis=1)
    chosen = random_state.permutation(len(ends))[: round(share * len(ends))]
    half = len(chosen) // 2
    for _ in range(_ROUNDS if half else 0):
        first, second = np.split(random_state.permutation(chosen)[: 2 * half], 2)
        a, b = ends[first].T
        c, d = np.where(random_state.randint(2, size=(half, 1)), ends[second], ends[second, ::-1]).T
        one, other = np.sort([a, d], axis=0), np.sort([c, b], axis=0)
        keys = np.stack([_key(one, n_genes), _key(other, n_genes)])
        _, number, times = np.unique(keys, return_inverse=True, return_counts=True)
        new = (times[number.reshape(keys.shape)] == 1) & ~np.isin(keys, _key(ends.T, n_genes))
        swap = new.all(axis=0) & (one[0] != one[1]) & (other[0] != other[1])
        ends[first[swap]], ends[second[swap]] = one.T[swap], other.T[swap]
    return ends[:, 0], ends[:, 1]


def _key(ends, n_genes):
    return ends[0] * n_genes + ends[1]
