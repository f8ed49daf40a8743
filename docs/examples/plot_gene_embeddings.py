"""
Comparison of gene embeddings
=============================

A prior is any transformer from expression, one row per gene, to one vector per gene. This example
compares several, from the same 250 breast tumours, by how well they preserve neighbours in the
graph.
"""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.random_projection import GaussianRandomProjection

from sklearn_pk.datasets import load_brca_expression
from sklearn_pk.metrics import neighborhood_preservation
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor

expression = load_brca_expression().expression
expression.shape

# %%
# The graph connects genes that correlate in these tumours or are neighbours in the collection of
# MSigDB. In ``sklearn_pk.prior`` rows are genes, hence the ``.T``.

coexpression = CoexpressionGraph(threshold=0.6, source="combined")
graph = coexpression.fit_transform(expression.T)
print(f"{coexpression.n_edges_:,} edges, {coexpression.n_connected_genes_} of 1,000 genes")

# %%
# The embeddings
# --------------
# Non-negative matrix factorisation (NMF) has two factors. The published embedding is the left
# one. Eigengenes need no graph. A random projection of the graph needs no training; self loops
# give similar rows to neighbours.


def add_self_loops(graph):
    """Make every gene its own neighbour."""
    return graph + sparse.eye_array(*graph.shape, format="csr")


def nmf(**parameters):
    """Embed by NMF with 100 components."""
    return NMFGeneEmbedder(100, random_state=0, **parameters)


# %%
# External embeddings are a DataFrame with genes as its index. Here, eigengenes of half of the
# tumours without every tenth gene stand in for a published table.

half = expression.iloc[::2]
elsewhere = pd.DataFrame(
    EigengeneEmbedder(30, random_state=0).fit_transform(half.T), index=expression.columns
).drop(index=expression.columns[::10])

priors = {
    "NMF, both factors": make_pipeline(coexpression, nmf()),
    "NMF, left factor": make_pipeline(coexpression, nmf(factors="left")),
    "NMF of the rewired graph": make_pipeline(
        CoexpressionGraph(threshold=0.6, source="combined", rewire=1.0, random_state=0), nmf()
    ),
    "random projection of A + I": make_pipeline(
        coexpression,
        FunctionTransformer(add_self_loops, accept_sparse=True),
        GaussianRandomProjection(100, random_state=0),
    ),
    "30 eigengenes": EigengeneEmbedder(30, random_state=0),
    "table from elsewhere": elsewhere,
}

# %%
# Preserved neighbourhoods
# ------------------------
# NP(k) is the fraction of a gene's neighbours in the graph that are among its k nearest
# neighbours in the embedding. Here it is normalised by the number of neighbours of the gene.

embeddings = {}
for name, prior in priors.items():
    if isinstance(prior, pd.DataFrame):
        embeddings[name] = prior.reindex(expression.columns, fill_value=0.0).to_numpy()
    else:
        embeddings[name] = prior.fit_transform(expression.T)

sizes = [5, 10, 20, 50, 100]
preserved = pd.DataFrame(
    {
        name: [neighborhood_preservation(graph, G, k=k, normalize="degree") for k in sizes]
        for name, G in embeddings.items()
    },
    index=pd.Index(sizes, name="k"),
)
preserved.round(2)

# %%
# Genes that share neighbours can also count as neighbours. The left factor of the NMF represents
# this: its rows are similar if the *neighbours* are similar. The rewired graph has the same
# degrees and no information; its embedding shows what degrees alone preserve.

two_hops = pd.Series(
    {
        name: neighborhood_preservation(graph, G, k=20, normalize="degree", hops=2)
        for name, G in embeddings.items()
    }
)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
colors = plt.get_cmap("tab10").colors
for (name, values), color, marker in zip(preserved.items(), colors, "osv^DP", strict=False):
    left.plot(sizes, values, marker=marker, color=color, label=name)
left.set(xscale="log", xlabel="size k of the neighbourhood", ylabel="neighbours preserved")
left.set_xticks(sizes, sizes)
left.minorticks_off()
left.set_ylim(0, 1)
left.legend(fontsize="small", frameon=False)
rows = np.arange(len(embeddings))[::-1]
right.barh(rows + 0.2, preserved.loc[20], 0.38, color="C0", label="with an edge")
right.barh(rows - 0.2, two_hops, 0.38, color="C1", label="or with shared neighbours")
right.set_yticks(rows, list(embeddings))
right.set(xlabel="neighbours preserved, k = 20", xlim=(0, 1))
right.legend(fontsize="small", frameon=False)
plt.show()

# %%
# Use in a regressor
# ------------------
# An embedding that represents the graph well need not be useful. All of these embeddings can be
# the ``prior`` of a regressor; an estimator is fitted on the training patients of each fold.
# :ref:`controls` explains how to distinguish knowledge from a change of scale.

features = np.random.default_rng(0).normal(size=(250, 64))  # stand in for features of slides
model = PriorKnowledgeRegressor(
    prior=priors["30 eigengenes"], lambda_=0.5, max_epochs=2, random_state=0
)
model.fit(features, expression).embeddings_.shape
