"""Speed and memory of the co-expression graph and its factorisation."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from bench_prior import (
    THRESHOLD,
    cgn_graph,
    coordinate_descent,
    corrcoef_graph,
    drop_unconnected,
    planted_expression,
)

from sklearn_pk.prior import CoexpressionGraph
from sklearn_pk.prior._embedder import residual_norm
from sklearn_pk.prior._nmf import hals, initialize

from ._comparison import WAYS, Comparison


class Graph(Comparison):
    """The co-expression graph against a threshold on the whole matrix of numpy, by its edges."""

    step = "co-expression graph"
    n_genes, n_patients = 6000, 816
    # In float32, as the reference computes, a pair at the threshold may fall on either side.
    tolerance = 1e-4

    @property
    def size(self):
        """Genes and patients."""
        return f"{self.n_genes:,} genes x {self.n_patients:,} patients"

    def prepare(self):
        """Draw expression in modules of genes."""
        self.X = planted_expression(self.n_genes, self.n_patients)

    def ours(self):
        """Make the graph."""
        return CoexpressionGraph(threshold=THRESHOLD).fit(self.X).graph_

    def reference(self):
        """Find the pairs in the matrix of all correlations."""
        return corrcoef_graph(self.X, THRESHOLD)

    def difference(self, ours, reference):
        """Fraction of the edges that one of both lacks."""
        found = set(zip(*map(np.ndarray.tolist, ours.nonzero()), strict=True))
        expected = set(map(tuple, reference.tolist()))
        return len(found ^ expected) / len(expected)


class GraphMemory:
    """The largest memory while a graph is made; whether both agree, `Graph` says."""

    params = WAYS
    param_names = ["way"]
    suite = Graph

    def setup(self, way):
        """Make the data only, since asv counts what setting up takes as well."""
        self.graph = self.suite()
        self.graph.prepare()

    def peakmem_graph(self, way):
        """Build the graph with one method."""
        getattr(self.graph, way)()


class Factorization(Comparison):
    """Iterations of the factorisation against scikit-learn, by the residual."""

    step = "NMF iterations"
    # Half of the genes of the shipped collection, and a quarter of the components as published.
    n_genes, n_components, n_iter = 2500, 256, 3
    # The order of the updates of both is the same, but not that of their sums.
    tolerance = 1e-3

    @property
    def size(self):
        """Genes, components and iterations."""
        return f"{self.X.shape[0]:,} genes, d = {self.n_components:,}, {self.n_iter} iterations"

    def prepare(self):
        """Take a part of the graph of the shipped collection, and draw where both start."""
        self.X = drop_unconnected(cgn_graph()[: self.n_genes, : self.n_genes])
        random_state = np.random.RandomState(0)
        self.start = initialize(self.X, self.n_components, "random", random_state)

    def ours(self):
        """Update both factors with the library."""
        return hals(self.X, *self.start, tol=0, max_iter=self.n_iter)[:2]

    def reference(self):
        """Update them with scikit-learn."""
        return coordinate_descent(self.X, self.start, self.n_iter)[:2]

    def difference(self, ours, reference):
        """Relative increase of the residual."""
        return residual_norm(self.X, *ours) / residual_norm(self.X, *reference) - 1
