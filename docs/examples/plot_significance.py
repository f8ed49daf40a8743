"""
Significant genes, and what a prior adds
========================================

Which genes does a model predict, is the prior worth anything, and where on the slide does a gene
show? A count alone answers none of these. Here is one experiment from all sides.
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
# In these slides, expression shows in the colour of the tissue, so an encoder of a few lines will
# do. With slides of your own, name a foundation model.


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
# Which genes are predicted?
# --------------------------
# Each gene is tested once, on patients its model has not seen, against the same model before
# training and against the mean.

prior = make_pipeline(CoexpressionGraph(threshold=0.7), NMFGeneEmbedder(16, random_state=0))
model = PriorKnowledgeRegressor(
    prior=prior, embed_dim=16, lr=1e-3, max_epochs=60, patience=10, random_state=0
)
result = cross_val_significance(model, bags, y, groups=patients)
print(result)
result.report.nlargest(5, "r")[["r", "p_fdr", "rmse", "rmse_baseline", "steiger_fdr"]].round(3)

# %%
# Each gene is a point: its correlation, and how sure it is that the model beats its opponent. The
# column ``reason`` says what the others fail by.

SignificanceDisplay.from_report(result.report)
plt.show()
result.report["reason"].value_counts()

# %%
# The best gene by itself. Points far from the dashed line of a good correlation show a model that
# knows the order, but not the scale.

gene = result.report["r"].idxmax()
PredictionDisplay.from_predictions(
    result.y_true[gene], result.predictions[gene], gene=gene, units="log2"
)
plt.show()

# %%
# What does the prior add?
# ------------------------
# The same folds and seeds with the prior, without, and with three priors that know nothing. The
# intervals are those of a bootstrap over patients, with the variance over the seeds added.

table, results = prior_gain(
    model, bags, y, groups=patients, n_seeds=3, random_state=0, return_results=True
)
table.groupby("setting", sort=False)[["n_significant", "n_significant_mean", "median_r"]].mean()

# %%
# A prior has to beat its controls, not only the model without. Look where the interval lies: one
# that holds zero says that patients or seeds like these could have shown the opposite.

comparison = compare_significance(results, reference="zero", n_boot=500, random_state=0)
ComparisonDisplay.from_comparison(comparison, measure="median_r")
plt.show()
comparison[comparison["setting"] == "prior"].set_index("measure").iloc[:, 2:].round(3)

# %%
# The knowledge itself: the neighbours of that gene in the graph of the first fold's training
# patients, coloured by how well each is predicted.

GeneGraphDisplay.from_estimator(result.estimators[0], gene, values=result.report["r"])
plt.show()

# %%
# Where on the slide?
# -------------------
# The model of the fold that has not seen this slide shows the gene tile by tile. Nobody measured
# these values: bulk expression has one number a slide, so a map is a hypothesis.

held_out = int(result.test_indices[0][0])
SpatialExpressionDisplay.from_estimator(
    result.estimators[0], bags[held_out], gene=gene, slide=cohort.slides[held_out], window=2
)
plt.show()
