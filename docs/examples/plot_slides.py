"""
From slide files to bags
========================

What is in these files, where is tissue, what will the encoder see, and which slides are no good?
All of this can be known before hours are spent on encoding, and a bad slide need not stop the rest.
"""

# SPDX-License-Identifier: BSD-3-Clause

import warnings
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tifffile

from sklearn_pk.datasets import load_cmu_slide, make_slide_cohort
from sklearn_pk.plotting import SlideSheetDisplay, TileSheetDisplay, TissueMaskDisplay
from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, SuperTileClusterer, check_slides

# %%
# The files
# ---------
# A region of a real slide, five slides that are made here of its texture, and four as they turn up
# in every cohort: one is missing, one was cut off while it was copied, one does not say how large a
# pixel is, and one is bare glass.

folder = Path(mkdtemp())
real = load_cmu_slide().path
made = make_slide_cohort(5, out_dir=folder, slide_size=(1280, 1024), random_state=0).slides


def write_tiff(name, pixels, **resolution):
    """Write a tiled TIFF of one level."""
    tifffile.imwrite(folder / name, pixels, tile=(256, 256), photometric="rgb", **resolution)


(folder / "cut-off.tif").write_bytes(Path(made[0]).read_bytes()[:20_000])
write_tiff("no-resolution.tif", tifffile.imread(made[1]))
glass = np.random.default_rng(0).integers(238, 246, size=(1024, 1280, 3), dtype=np.uint8)
write_tiff("glass.tif", glass, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")

bad = [str(folder / f"{name}.tif") for name in ("missing", "cut-off", "no-resolution", "glass")]
slides = pd.DataFrame({"slide": [real, *made, *bad]})
slides.index = slides["slide"].map(lambda path: Path(path).stem).rename("name")

# %%
# Which can be used?
# ------------------
# ``check_slides`` never raises for a slide. Resolution is in um/px of level 0, tissue in square
# millimetres, and ``n_tiles`` is what the tiler would keep.

tiler = SlideTiler(tile_size=256, mpp=0.5, random_state=0)
report = check_slides(slides, tiler=tiler)
report[["ok", "vendor", "mpp", "width", "height", "tissue_mm2", "n_tiles"]].round(3)

# %%
# And why not? Errors are told in the same words.

for name, reason in report.loc[~report["ok"], "reason"].items():
    print(f"{name}: {reason.replace(f'{folder}/', '')}")

# %%
# What you know about a slide goes into a column: here the um/px of the one that does not say it.
# Rows without a number keep what the file says.

slides["mpp"] = np.nan
slides.loc["no-resolution", "mpp"] = 0.5
check_slides(slides, tiler=tiler)["ok"].to_dict()

# %%
# All on one sheet
# ----------------
# Numbers do not tell whether the tissue is tissue. What is no tissue is darkened; squares are
# tiles.

SlideSheetDisplay.from_estimator(tiler, slides, n_columns=5)
plt.show()

# %%
# One slide
# ---------
# Otsu's thresholds, the published way, beside texture, ``tissue="entropy"``, which finds pale
# tissue and leaves ink out. Where two settings differ, look.

figure, axes = plt.subplots(1, 2, figsize=(10, 6.4), layout="constrained")
for ax, tissue in zip(axes, ["otsu", "entropy"], strict=True):
    display = TissueMaskDisplay.from_estimator(
        SlideTiler(tissue=tissue, random_state=0), real, ax=ax
    )
    ax.set_title(f'tissue="{tissue}": {len(display.tiles)} tiles')
plt.show()

# %%
# And what the encoder will see. Look for blur, pen and folds.

TileSheetDisplay.from_estimator(tiler, real, n_tiles=12, n_columns=4)
plt.show()

# %%
# Tiles and features
# ------------------
# With ``errors="empty"`` a bad slide becomes an empty one, with a warning, and ``failures_`` says
# why. The default, "raise", names all of them in one error before any work starts.

tiler.set_params(errors="empty")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tiled = tiler.fit_transform(slides)
print(str(caught[-1].message).replace(f"{folder}/", ""))
tiler.failures_["slide"].map(lambda path: Path(path).name).tolist()

# %%
# The ``store`` keeps features, one HDF5 file a slide. A second run finds them there, whatever the
# order of the slides is. The encoder is a small one that knows no histology; yours is named here.

featurizer = FoundationFeaturizer("efficientnet-lite0", store=folder / "store", errors="empty")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of the three slides that were told above
    bags = featurizer.fit_transform(tiled)
    first_run = featurizer.throughput_
    featurizer.transform(tiled[::-1])
pd.DataFrame([first_run, featurizer.throughput_], index=["first run", "second run"])[
    ["n_slides", "n_stored", "n_encoded", "n_tiles"]
]

# %%
# A bag is an array of (tiles, features) that knows its slide and the corners of its tiles, and
# stays in its file. No regressor takes an empty one, so drop these slides together with their
# expression.

kept = [bag for bag in bags if len(bag)]
print(f"{kept[0].name}: {kept[0].shape}, first corner {kept[0].coords[0].tolist()}")
print(f"{len(kept)} of {len(bags)} slides have tiles: {[len(bag) for bag in kept]}")

# %%
# Super-tiles
# -----------
# k-means on each slide by itself, in feature space, gives all slides one shape. A slide with fewer
# tiles than clusters keeps its tiles, and the rest is NaN, which all models here take for missing.

X = SuperTileClusterer(n_clusters=18, random_state=0).fit_transform(kept)
print(X.shape, "missing:", np.isnan(X[:, :, 0]).sum(axis=1))

# %%
# Which tiles are alike? Each tile of the real slide, coloured by the nearest of eight super-tiles.
# Nothing was said about tissue types; this is what the encoder tells apart.

[supertiles] = SuperTileClusterer(n_clusters=8, random_state=0).fit_transform(kept[:1])
nearest = np.linalg.norm(np.asarray(kept[0])[:, None] - supertiles, axis=2).argmin(axis=1)
thumbnail, _, downsample, _ = tiler.inspect_slide(tiled[0])
edge = kept[0].size_level0 / downsample
colors = plt.get_cmap("Set1").colors[:8]

_, ax = plt.subplots(figsize=(6.6, 6.6), layout="constrained")
ax.imshow(thumbnail.mean(axis=2), cmap="gray", vmin=0, vmax=255)
for number, color in enumerate(colors):
    corners = kept[0].coords[nearest == number] / downsample
    for x, y in corners:
        square = plt.Rectangle((x, y), edge, edge, facecolor=color, edgecolor="white", alpha=0.6)
        ax.add_patch(square)
    square.set_label(f"{number + 1}: {len(corners)} tiles")
ax.set_axis_off()
ax.legend(title="super-tile", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()
