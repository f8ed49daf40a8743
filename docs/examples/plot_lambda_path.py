"""
The weight of the prior, and its control
========================================

``PriorKnowledgeRegressorCV`` compares several weights of the prior, lambda. A path over lambda
means little on its own: embeddings of zeros carry no information, but also shrink the learned
weights by ``1 - lambda_``. Therefore both paths are drawn, on the same folds.
"""

# SPDX-License-Identifier: BSD-3-Clause

from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from torchvision.transforms.functional import to_tensor

from sklearn_pk.datasets import make_slide_cohort
from sklearn_pk.metrics import significance_scorer
from sklearn_pk.plotting import LambdaPathDisplay
from sklearn_pk.prior import EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV
from sklearn_pk.slides import Encoder, FoundationFeaturizer, SlideTiler

cohort = make_slide_cohort(80, out_dir=mkdtemp(), slide_size=(768, 768), random_state=0, n_jobs=2)
print(f"{len(cohort.slides)} slides of {len(set(cohort.patients))} patients")

# %%
# Features
# --------
# In these slides, expression determines the colour of the tissue. A simple encoder is therefore
# sufficient, in place of a foundation model: optical density and its variation in each channel.


class Colors(torch.nn.Module):
    """Describe a tile by the optical density of blocks of 16 x 16 pixels."""

    def forward(self, x):
        density = -torch.log10(x.clamp(min=1 / 256))
        blocks = torch.nn.functional.avg_pool2d(density, 16).flatten(2)
        parts = [blocks.mean(-1), blocks.std(-1), blocks.amin(-1), blocks.amax(-1)]
        return torch.cat(parts, dim=1)


featurize = make_pipeline(
    SlideTiler(tile_size=256, mpp=0.5, random_state=0),
    FoundationFeaturizer(Encoder("colors", Colors(), transform=to_tensor)),
)
bags = featurize.fit_transform(cohort.slides)
bags[0]

# %%
# Two paths
# ---------
# The prior is fitted on the training patients of each fold. An array of zeros is the control.
# Folds, batches and held-out patients are the same for both.

priors = {
    "20 eigengenes": EigengeneEmbedder(20, random_state=0),
    "zeros (control)": np.zeros((cohort.expression.shape[1], 20)),
}
models = {
    name: PriorKnowledgeRegressorCV(
        PriorKnowledgeRegressor(prior=prior, embed_dim=32, lr=1e-3, max_epochs=80, random_state=0),
        lambdas=[0, 0.1, 0.2, 0.5, 0.8, 0.9],
        cv=3,
        scoring=significance_scorer,
    ).fit(bags, cohort.expression, groups=cohort.patients)
    for name, prior in priors.items()
}
for name, model in models.items():
    print(f"{name}: best lambda {model.lambda_best_}, {model.best_score_:.0f} genes per fold")

# %%
# Compare the distance between the paths with the standard deviation over folds before you look at
# the maxima. A gain over lambda = 0 that the control also has is not due to knowledge. One seed
# and 80 slides are not conclusive; :ref:`controls` describes more controls.

_, ax = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
for name, model in models.items():
    LambdaPathDisplay.from_estimator(model, label=name, ax=ax)
plt.show()

# %%
# The final fit
# -------------
# With the best lambda, the model is fitted again on all patients except those held out for early
# stopping. ``history_`` has one row per epoch. Training first minimises the loss until
# ``patience`` epochs bring no improvement. Among the epochs that follow, it maximises the
# correlation at nearly the same loss.

model = models["20 eigengenes"]
history = model.history_.set_index("epoch")
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(7, 5.4), sharex=True, layout="constrained", height_ratios=[3, 2]
)
top.plot(history["train_loss"], color="C0", label="training")
top.plot(history["valid_loss"], color="C1", label="held-out patients")
top.set_ylabel("mean squared error")
bottom.plot(history["valid_r"], color="C1")
bottom.set(xlabel="epoch", ylabel="mean r per gene")
for ax in (top, bottom):
    ax.axvline(model.best_epoch_, color="0.4", ls="--", lw=1, label="best_epoch_")
    ax.spines[["top", "right"]].set_visible(False)
top.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
plt.show()
