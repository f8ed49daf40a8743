"""
From slide files to bags
========================

What do these files contain, where is the tissue, what does the encoder receive, and which slides
cannot be used? Answer these questions before hours are spent on encoding. A bad slide need not stop
the others.
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
# A region of a real slide, five slides that are generated from its texture, and four problems
# that occur in many cohorts: a missing file, an incomplete copy, a file without um/px, and a
# slide without tissue.

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
# Which slides can be used?
# -------------------------
# ``check_slides`` never raises an error for a slide. Resolution is in um/px of level 0, tissue in
# square millimetres, and ``n_tiles`` is the number of tiles that the tiler would keep.

tiler = SlideTiler(tile_size=256, mpp=0.5, random_state=0)
report = check_slides(slides, tiler=tiler)
report[["ok", "vendor", "mpp", "width", "height", "tissue_mm2", "n_tiles"]].round(3)

# %%
# The reasons, with the same text as the errors:

for name, reason in report.loc[~report["ok"], "reason"].items():
    print(f"{name}: {reason.replace(f'{folder}/', '')}")

# %%
# Pass known values in a column: here the um/px that one file does not state. In rows without a
# number, the value of the file is used.

slides["mpp"] = np.nan
slides.loc["no-resolution", "mpp"] = 0.5
check_slides(slides, tiler=tiler)["ok"].to_dict()

# %%
# The whole cohort
# ----------------
# Numbers do not show whether the mask is correct. The background is darkened, and squares are
# tiles.

SlideSheetDisplay.from_estimator(tiler, slides, n_columns=5)
plt.show()

# %%
# One slide
# ---------
# Otsu's threshold, as published, and ``tissue="entropy"``, which uses texture and finds pale
# tissue. Look at slides for which two settings differ.

figure, axes = plt.subplots(1, 2, figsize=(10, 6.4), layout="constrained")
for ax, tissue in zip(axes, ["otsu", "entropy"], strict=True):
    display = TissueMaskDisplay.from_estimator(
        SlideTiler(tissue=tissue, random_state=0), real, ax=ax
    )
    ax.set_title(f'tissue="{tissue}": {len(display.tiles)} tiles')
plt.show()

# %%
# The tiles that the encoder receives. Look for blur, pen marks and folds.

TileSheetDisplay.from_estimator(tiler, real, n_tiles=12, n_columns=4)
plt.show()

# %%
# Tiles and features
# ------------------
# With ``errors="empty"`` a bad slide gives an empty bag and a warning, and ``failures_`` states
# the reason. The default, "raise", names all bad slides in one error before the work starts.

tiler.set_params(errors="empty")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tiled = tiler.fit_transform(slides)
print(str(caught[-1].message).replace(f"{folder}/", ""))
tiler.failures_["slide"].map(lambda path: Path(path).name).tolist()

# %%
# The ``store`` keeps features, one HDF5 file per slide. A second run reads them from there,
# whatever the order of the slides. The encoder is a small one that was not trained on histology;
# use your own here.

featurizer = FoundationFeaturizer("efficientnet-lite0", store=folder / "store", errors="empty")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # already shown above
    bags = featurizer.fit_transform(tiled)
    first_run = featurizer.throughput_
    featurizer.transform(tiled[::-1])
pd.DataFrame([first_run, featurizer.throughput_], index=["first run", "second run"])[
    ["n_slides", "n_stored", "n_encoded", "n_tiles"]
]

# %%
# A bag is an array (tiles, features) with the name of its slide and the corners of its tiles. It
# stays in its file. No regressor accepts empty bags, so remove these slides together with their
# expression.

kept = [bag for bag in bags if len(bag)]
print(f"{kept[0].name}: {kept[0].shape}, first corner {kept[0].coords[0].tolist()}")
print(f"{len(kept)} of {len(bags)} slides have tiles: {[len(bag) for bag in kept]}")

# %%
# Super-tiles
# -----------
# k-means in feature space on each slide gives all slides the same shape. A slide with fewer tiles
# than clusters keeps its tiles, and the remaining rows are NaN, which all models treat as
# missing.

X = SuperTileClusterer(n_clusters=18, random_state=0).fit_transform(kept)
print(X.shape, "missing:", np.isnan(X[:, :, 0]).sum(axis=1))

# %%
# Which tiles are similar? Each tile of the real slide is coloured by the nearest of eight
# super-tiles. No tissue types were given; the encoder distinguishes them.

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
