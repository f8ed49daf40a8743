"""
Significant genes where nothing can be predicted
================================================

The published tests take the predictions as given. In a cross-validation they are not: each
patient is a test patient once, and a training patient of all other folds. This example measures
what follows, with features that know nothing of expression.
"""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.regression import PriorKnowledgeRidge

n_patients, n_genes = 100, 1000
rng = np.random.default_rng(0)
X = rng.normal(size=(n_patients, 64))
y = rng.normal(size=(n_patients, n_genes))

# %%
# Ridge regression with the penalty that data with signal choose. 200 permutations of the patients
# reuse the eigendecompositions of the kernel.

model = PriorKnowledgeRidge(prior=None, alpha=100.0)
result = cross_val_significance(model, X, y, null="permutation", random_state=0)
print(result.verdict)

# %%
# If a correlation of n independent pairs is 0, its standard deviation is about
# :math:`1 / \sqrt{n}`. The observed ones scatter more widely, and so do those with permuted
# patients, on which the calibrated test is based.

grid = np.linspace(-0.5, 0.5, 300)
figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
bins = np.linspace(-0.5, 0.5, 51)
ax.hist(result.report["r_fold"], bins, density=True, color="0.8", label="genes")
ax.hist(
    result.null_r.ravel(),
    bins,
    density=True,
    histtype="step",
    color="#0072B2",
    lw=1.5,
    label="permuted patients",
)
ax.plot(grid, stats.norm.pdf(grid, scale=1 / np.sqrt(n_patients)), "k--", label="theory")
ax.plot(
    grid,
    stats.norm.pdf(grid, scale=np.sqrt(2 / n_patients)),
    color="#D55E00",
    label=r"theory, wider by $\sqrt{2}$",
)
ax.set_xlabel("Correlation of truth and prediction, no gene is predicted")
ax.set_ylabel("Density")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# The p-values of the two tests. Those of a calibrated test are uniform.

quantiles = (np.arange(n_genes) + 0.5) / n_genes
figure, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
r, freedom = result.report["r_fold"], n_patients - 2
theory = stats.t.sf(r * np.sqrt(freedom / (1 - r**2)), freedom)
for name, p in {"theory": theory, "permuted patients": result.report["null_p"]}.items():
    ax.loglog(quantiles, np.sort(p), label=name)
ax.loglog(quantiles, quantiles, "k--", lw=0.8)
ax.set_xlabel("Fraction of genes")
ax.set_ylabel("p-value")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()
