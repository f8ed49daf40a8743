"""
Significant genes and the effect of a prior
===========================================

Which genes does a model predict, does the prior help, and where on the slide is a gene predicted?
The number of significant genes alone answers none of these questions. This example examines one
experiment.
"""

# SPDX-License-Identifier: BSD-3-Clause

from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from sklearn.pipeline import make_pipeline
from torchvision.transforms.functional import to_tensor

from sklearn_pk.datasets import make_slide_cohort
from sklearn_pk.metrics import compare_significance
from sklearn_pk.model_selection import cross_val_significance, prior_gain
from sklearn_pk.plotting import (
    ComparisonDisplay,
    GeneGraphDisplay,
    PredictionDisplay,
    SignificanceDisplay,
    SpatialExpressionDisplay,
)
from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler

cohort = make_slide_cohort(80, out_dir=mkdtemp(), slide_size=(768, 768), random_state=0, n_jobs=2)
y, patients = cohort.expression, cohort.patients
print(f"{len(y)} slides of {len(set(patients))} patients, {y.shape[1]} genes")

# %%
# Features
# --------
# In these slides, expression determines the colour of the tissue, so a simple encoder is
# sufficient. For your own slides, use a foundation model.


class Colors(torch.nn.Module):
    """Describe a tile by the mean and spread of its optical density, in each channel."""

    def forward(self, x):
        density = -torch.log10(x.clamp(min=1 / 256)).flatten(2)
        return torch.cat([density.mean(-1), density.std(-1)], dim=1)


tiler = SlideTiler(tile_size=128, mpp=0.5, random_state=0)
encoder = Encoder("colors", Colors(), transform=to_tensor)
bags = make_pipeline(tiler, FoundationFeaturizer(encoder)).fit_transform(cohort.slides)
print(bags[0])

# %%
# Significant genes
# -----------------
# Each gene is tested once, on held-out patients, against two baselines: the same model before
# training, and the mean.

prior = make_pipeline(CoexpressionGraph(threshold=0.7), NMFGeneEmbedder(16, random_state=0))
model = PriorKnowledgeRegressor(
    prior=prior, embed_dim=16, lr=1e-3, max_epochs=60, patience=10, random_state=0
)
result = cross_val_significance(model, bags, y, groups=patients)
print(result)
result.report.nlargest(5, "r")[["r", "p_fdr", "rmse", "rmse_baseline", "steiger_fdr"]].round(3)

# %%
# Each point is a gene, with its correlation and the p-value of the comparison with the baseline.
# The column ``reason`` states which condition the other genes fail.

SignificanceDisplay.from_report(result.report)
plt.show()
result.report["reason"].value_counts()

# %%
# The best gene. If points are far from the dashed line despite a good correlation, the model
# predicts the order but not the scale.

gene = result.report["r"].idxmax()
PredictionDisplay.from_predictions(
    result.y_true[gene], result.predictions[gene], gene=gene, units="log2"
)
plt.show()

# %%
# The effect of the prior
# -----------------------
# The same folds and seeds, with the prior, without a prior, and with three uninformative
# controls. The intervals are from a bootstrap over patients, with the variance over seeds added.

table, results = prior_gain(
    model, bags, y, groups=patients, n_seeds=3, random_state=0, return_results=True
)
table.groupby("setting", sort=False)[["n_significant", "n_significant_mean", "median_r"]].mean()

# %%
# A prior must exceed its controls, not only the model without a prior. If an interval contains
# zero, other patients or seeds could have shown the opposite.

comparison = compare_significance(results, reference="zero", n_boot=500, random_state=0)
ComparisonDisplay.from_comparison(comparison, measure="median_r")
plt.show()
comparison[comparison["setting"] == "prior"].set_index("measure").iloc[:, 2:].round(3)

# %%
# The prior knowledge itself: the neighbours of that gene in the graph of the training patients of
# the first fold, coloured by how well each gene is predicted.

GeneGraphDisplay.from_estimator(result.estimators[0], gene, values=result.report["r"])
plt.show()

# %%
# A map of the gene
# -----------------
# The model of the fold in which this slide was held out predicts the gene for each tile. There
# are no measurements for these values: bulk expression has one value per slide, so a map is a
# hypothesis.

held_out = int(result.test_indices[0][0])
SpatialExpressionDisplay.from_estimator(
    result.estimators[0], bags[held_out], gene=gene, slide=cohort.slides[held_out], window=2
)
plt.show()
