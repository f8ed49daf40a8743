"""
Aggregators, built-in and your own
==================================

An aggregator maps the tiles of a slide to one slide embedding. The best choice depends on where
the signal is: in all of the tissue, or in a single tile. In this example both are planted, so it
is known which genes each aggregator should find. The last part adds gene embeddings to another
network.
"""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.base import clone

from sklearn_pk.metrics import compare_significance, significance_report
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.plotting import ComparisonDisplay
from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor, inject_prior_knowledge
from sklearn_pk.slides import FeatureBag

# %%
# The cohort
# ----------
# 160 patients with one slide of 10 to 30 tiles each, and 16 features. Four features of all tiles
# are shifted by the patient's value "everywhere". A single random tile carries the "hot spot".
# Half of the genes depend on the first, half on the second, each with noise.

rng = np.random.default_rng(0)
n_patients, n_genes = 160, 60
everywhere = rng.normal(size=(n_patients, 4))
hot_spot = rng.normal(size=(n_patients, 3))
bags = []
for number in range(n_patients):
    tiles = rng.normal(size=(rng.integers(10, 31), 16))
    tiles[:, :4] += 0.4 * everywhere[number]
    tiles[rng.integers(len(tiles)), 8:11] += 4 + 2 * hot_spot[number]
    bags.append(FeatureBag(tiles, slide=f"patient-{number:03d}"))

signal = np.hstack(
    [everywhere @ rng.normal(size=(4, n_genes)), hot_spot @ rng.normal(size=(3, n_genes))]
)
kinds = ("everywhere", "hot spot")
expression = pd.DataFrame(
    signal + 1.5 * rng.normal(size=signal.shape),
    index=[bag.name for bag in bags],
    columns=[f"{kind}-{number}" for kind in kinds for number in range(n_genes)],
)
kind_of = expression.columns.str.rsplit("-", n=1).str[0]

# %%
# Your own aggregator
# -------------------
# Any module that maps (batch, tiles, d) to (batch, d) is an aggregator. A class is called with d.
# ``mask`` is True for existing tiles, and None if no bag of the batch has missing tiles. This
# example is gated attention: each tile gets a weight.


class GatedAttention(torch.nn.Module):
    """Average the tiles with learned weights."""

    def __init__(self, dim):
        super().__init__()
        self.value = torch.nn.Linear(dim, dim)
        self.gate = torch.nn.Linear(dim, dim)
        self.score = torch.nn.Linear(dim, 1)

    def forward(self, x, mask=None):
        scores = self.score(self.value(x).tanh() * self.gate(x).sigmoid())
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        return (scores.softmax(dim=1) * x).sum(dim=1)


# %%
# The comparison
# --------------
# All aggregators use the same folds and seeds. Three seeds are few; use five or more for real
# results.

model = PriorKnowledgeRegressor(
    prior=EigengeneEmbedder(7, random_state=0),
    embed_dim=32,
    depth=1,
    n_heads=4,
    head_dim=8,
    lr=3e-3,
    max_epochs=60,
    patience=10,
)
aggregators = {
    "mlp": "mlp",
    "summary mixing": "summary_mixing",
    "topk": "topk",
    "own attention": GatedAttention,
}
patients = np.arange(n_patients)
results = {
    name: [
        cross_val_significance(
            clone(model).set_params(aggregator=aggregator, random_state=seed),
            bags,
            expression,
            groups=patients,
            cv=3,
        )
        for seed in range(3)
    ]
    for name, aggregator in aggregators.items()
}
found = pd.DataFrame(
    {
        name: sum(run.report["significant"].groupby(kind_of).sum() for run in runs) / len(runs)
        for name, runs in results.items()
    }
).T
found.round(1)

# %%
# All aggregators find the signal that is everywhere. A mean over all tiles dilutes the signal of
# a single tile, which attention learns to find. The number over all genes would not show this
# difference. It also depends on the amount of data: with 400 patients, mlp, topk and attention
# find nearly all hot spots.

figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
rows = np.arange(len(found))[::-1]
for offset, color, kind in zip((0.2, -0.2), ("C0", "C1"), found.columns, strict=True):
    bars = ax.barh(rows + offset, found[kind], 0.38, color=color, label=kind)
    ax.bar_label(bars, fmt="%.0f", padding=3)
ax.set_yticks(rows, found.index)
ax.set(xlim=(0, n_genes), xlabel=f"significant genes of {n_genes} planted, mean of 3 seeds")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %%
# Differences from the mlp, with intervals over patients and seeds.

comparison = compare_significance(results, reference="mlp", n_boot=500, random_state=0)
ComparisonDisplay.from_comparison(comparison, measure="n_significant")
plt.show()

# %%
# Another network
# ---------------
# ``inject_prior_knowledge`` adds gene embeddings to the last linear layer of any torch model. The
# training is up to you. Here, a small network on the mean of the tiles is trained on 120
# patients, with 7 eigengenes of these patients and without. The function does not scale
# embeddings, so they are scaled to the size of the weights first.

X = torch.tensor(np.stack([bag.features.mean(axis=0) for bag in bags]))
train, test = np.arange(120), np.arange(120, n_patients)
y = torch.tensor(expression.to_numpy(), dtype=torch.float32)
G = EigengeneEmbedder(7, random_state=0).fit_transform(expression.iloc[train].T)


def train_network(embeddings=None):
    """Return predictions of the test patients, after training and before."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2 * n_genes)
    )
    if embeddings is not None:
        scale = network[-1].weight.std().item() / embeddings.std()
        inject_prior_knowledge(network, embeddings * scale, lambda_=0.5)
    print(network[-1])
    untrained = network(X[test]).detach().numpy()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(X[train]), y[train])
        loss.backward()
        optimizer.step()
    return network(X[test]).detach().numpy(), untrained


reports = {
    name: significance_report(expression.iloc[test], *train_network(embeddings))
    for name, embeddings in {"without": None, "with eigengenes": G}.items()
}
pd.DataFrame(
    {
        name: {"significant": report["significant"].sum(), "median r": report["r"].median()}
        for name, report in reports.items()
    }
).T.round(2)

# %%
# One split and one seed are not conclusive. In a regressor of this library, the prior is a
# parameter, ``prior=``, and :func:`~sklearn_pk.model_selection.prior_gain` runs the controls.
