"""
Features of another tool
========================

Slides that another tool has tiled and encoded need not be encoded again. This example leads from a
folder of features and a table of expression to significant genes and to a map of one gene. It uses
the layout of TRIDENT; :doc:`/user_guide/folders` describes those of SEQUOIA, PRALINE, CLAM and
STAMP.
"""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path
from tempfile import mkdtemp

import h5py
import matplotlib.pyplot as plt
import torch
from sklearn.pipeline import make_pipeline
from torchvision.transforms.functional import to_tensor

from sklearn_pk.datasets import make_slide_cohort
from sklearn_pk.io import match_samples, read_expression
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.plotting import SignificanceDisplay, SpatialExpressionDisplay
from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler, read_features

# %%
# Output of the other tool
# ------------------------
# This cell stands in for the other tool. It writes one file per slide with the features of the
# tiles and their upper left corners in level-0 pixels. Skip it if you have such a folder.


class Colors(torch.nn.Module):
    """Describe a tile by the mean and spread of its optical density, in each channel."""

    def forward(self, x):
        density = -torch.log10(x.clamp(min=1 / 256)).flatten(2)
        return torch.cat([density.mean(-1), density.std(-1)], dim=1)


folder = Path(mkdtemp())
cohort = make_slide_cohort(
    80, out_dir=folder / "slides", slide_size=(1024, 1024), random_state=0, n_jobs=2
)
tool = make_pipeline(
    SlideTiler(tile_size=128, mpp=0.5, random_state=0),
    FoundationFeaturizer(Encoder("colors", Colors(), transform=to_tensor)),
)
job = folder / "trident_processed" / "20x_128px_0px_overlap" / "features_colors"
job.mkdir(parents=True)
for bag in tool.fit_transform(cohort.slides):
    with h5py.File(job / f"{bag.name}.h5", "w") as file:
        file["features"], file["coords"] = bag.features, bag.coords
        file["coords"].attrs.update(patch_size=128, patch_size_level0=bag.size_level0)

# %%
# This cell stands in for the laboratory: a table with one row per patient. Two patients were not
# sequenced, and one patient has no slide.

by_patient = cohort.expression.groupby(cohort.patients).first()
by_patient.loc["patient-900"] = by_patient.mean()
by_patient.drop(index=["patient-003", "patient-007"]).to_csv(folder / "expression.csv.gz")

# %%
# Read both
# ---------
# Only the headers of the files are read at first. Features are read batch by batch while
# training.

bags = read_features(job)
print(bags)
print(f"{bags.names[0]}: {bags[0].shape}, tiles of {bags[0].size_level0} level-0 pixels")

# %%
table = read_expression(folder / "expression.csv.gz")
table.expression.iloc[:3, :5]

# %%
# Match features and expression
# -----------------------------
# Rows and files are in different orders, and not all of them match. ``match_samples`` finds the
# row of each slide by name, by TCGA barcode, or, as here, by the prefix of its name. The audit
# states the rule of each match, or the reason why there is none.

matched = match_samples(bags, table.expression)
print(f"{len(matched.X)} slides of {len(set(matched.patients))} patients")
print("rows without a slide:", matched.unused_rows)
matched.audit["how"].value_counts()

# %%
matched.audit[matched.audit["row"].isna()]

# %%
# Significant genes
# -----------------
# The following code does not depend on the tool.

model = PriorKnowledgeRegressor(
    prior=EigengeneEmbedder(20, random_state=0),
    embed_dim=16,
    lr=1e-3,
    max_epochs=80,
    random_state=0,
)
result = cross_val_significance(model, matched.X, matched.expression, groups=matched.patients)
print(result)
SignificanceDisplay.from_report(result.report)
plt.show()

# %%
# A map
# -----
# The corners in the files are the positions of the tiles on the slide. Each slide is predicted by
# the model of the fold in which it was held out. The two slides are those with the lowest and the
# highest prediction of the best predicted gene, on the same scale. Bulk expression has one value
# per slide, so variation within a slide is a hypothesis.

gene = result.report["r"].idxmax()
slides = {Path(path).stem: path for path in cohort.slides}
order = result.predictions[gene].sort_values()
fold_of = {row: fold for fold, rows in enumerate(result.test_indices) for row in rows}

figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
for ax, name in zip(axes, [order.index[0], order.index[-1]], strict=True):
    row = matched.X.names.index(name)
    SpatialExpressionDisplay.from_estimator(
        result.estimators[fold_of[row]],
        matched.X[row],
        gene=gene,
        window=2,
        slide=slides[name],
        units="log2",
        vmin=order.iloc[0] - 1,
        vmax=order.iloc[-1] + 1,
        ax=ax,
    )
plt.show()
