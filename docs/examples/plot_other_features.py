"""
Features of another tool
========================

Slides that another tool has tiled and encoded need not be encoded again. From a folder of its files
and a table of expression to significant genes, and to a map of one gene. The layout here is
TRIDENT's; :doc:`/user_guide/folders` has those of SEQUOIA, PRALINE, CLAM and STAMP.
"""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path
from tempfile import mkdtemp

import h5py
import matplotlib.pyplot as plt
import torch
from sklearn.pipeline import make_pipeline
from torchvision.transforms.functional import to_tensor

from sklearn_pk.datasets import make_slide_cohort, match_samples, read_expression
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.plotting import SignificanceDisplay, SpatialExpressionDisplay
from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler, read_features

# %%
# What the other tool has left
# ----------------------------
# This cell plays the other tool: it writes a file a slide with the features of its tiles and their
# upper left corners in level-0 pixels. Skip it if you have such a folder.


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
# And this one the laboratory: a table with one row a patient. Two patients were never sequenced,
# and one has no slide.

by_patient = cohort.expression.groupby(cohort.patients).first()
by_patient.loc["patient-900"] = by_patient.mean()
by_patient.drop(index=["patient-003", "patient-007"]).to_csv(folder / "expression.csv.gz")

# %%
# Read both
# ---------
# Only the headers of the files are read here. Their features are read when they are needed, batch
# by batch while training.

bags = read_features(job)
print(bags)
print(f"{bags.names[0]}: {bags[0].shape}, tiles of {bags[0].size_level0} level-0 pixels")

# %%
table = read_expression(folder / "expression.csv.gz")
table.expression.iloc[:3, :5]

# %%
# Bring them together
# -------------------
# Rows and files are in another order, and not all have a partner. ``match_samples`` finds the row
# of each slide by name, by TCGA barcode, or by the start of its name, as here. The audit says how
# each was found, and why not.

matched = match_samples(bags, table.expression)
print(f"{len(matched.X)} slides of {len(set(matched.patients))} patients")
print("rows without a slide:", matched.unused_rows)
matched.audit["how"].value_counts()

# %%
matched.audit[matched.audit["row"].isna()]

# %%
# Which genes are predicted?
# --------------------------
# From here on nothing depends on the tool.

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
# The corners in the files say where on the slide a tile lies. Each slide is predicted by the model
# of the fold that has not seen it. Two slides, the ones with the lowest and the highest prediction
# for the gene that is predicted best, on one scale. Bulk expression has one number a slide, so what
# differs within a slide is a hypothesis.

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
