"""Speed of the steps from a slide to super-tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import tempfile
from pathlib import Path

import numpy as np
from _reference_tiling import (
    float_overview_mask,
    for_each_tile,
    read_tile,
    reference_candidates,
    reference_keeps,
)
from _slide import TILE, write_slide
from bench_slides import inertia, planted_tiles, pure_model, read_batches
from sklearn.cluster import KMeans

from sklearn_pk.datasets import load_cmu_slide
from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, _tiler
from sklearn_pk.slides._encoders._registry import find_encoder
from sklearn_pk.slides._encoders._weights import find_weights, load_encoder
from sklearn_pk.slides._supertiles import cluster_labels
from sklearn_pk.slides._tissue._methods import otsu_mask
from sklearn_pk.slides._wsi import _reader

from ._comparison import Comparison


class SlideComparison(Comparison):
    """A step on a slide composed of the shipped real tissue."""

    width, height, tissue = 6144, 5632, 0.5

    @property
    def size(self):
        """Width and height of the slide."""
        return f"{self.width:,} x {self.height:,} px"

    def prepare(self):
        """Write the slide."""
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "slide.tiff")
        write_slide(self.path, self.width, self.height, tissue=self.tissue)


class Tiling(SlideComparison):
    """Tiles of tissue found and read, against masks in floats of one tile after the other."""

    step = "tiling, reading and tissue test"
    # The reference looks at each tile itself, the library at an overview.
    tolerance = 0.01

    def ours(self):
        """Find the tiles on an overview, then read them."""
        _tiler._cache.clear()  # the cache of tiles of a slide
        [tiled] = SlideTiler(max_tiles=None).fit_transform([self.path])
        for _ in read_batches(tiled):
            pass
        return tiled.coords

    def reference(self):
        """Find candidates on an overview, then read and test each of them."""
        corners, tissue = reference_candidates(self.path)
        keeps = for_each_tile(reference_keeps, self.path, corners[tissue])
        return corners[tissue][np.array(keeps, dtype=bool)]

    def difference(self, ours, reference):
        """Fraction of the grid on which both differ."""
        found, expected = (set(map(tuple, corners.tolist())) for corners in (ours, reference))
        return len(found ^ expected) / (self.width // TILE * (self.height // TILE))


class Reading(SlideComparison):
    """Tiles read in batches against OpenSlide, by their pixels."""

    step = "tile reading"

    @property
    def size(self):
        """Number and size of the tiles."""
        return f"{len(self.tiled)} tiles of {TILE} x {TILE} px"

    def prepare(self):
        """Write the slide and take all of its tiles."""
        super().prepare()
        [self.tiled] = SlideTiler(tissue=None, max_tiles=None).fit_transform([self.path])

    def ours(self):
        """Read batch by batch."""
        return np.concatenate(list(read_batches(self.tiled)))

    def reference(self):
        """Read tile by tile."""
        return np.stack(for_each_tile(read_tile, self.path, self.tiled.coords))

    def difference(self, ours, reference):
        """Fraction of the values that differ."""
        return np.mean(ours != reference)


class Mask(Comparison):
    """The mask of an overview in 8-bit values against one in floats, by their pixels."""

    step = "tissue mask of an overview"
    edge = 1024
    # A threshold between two of 256 values is one in floats, and one of them in 8 bits.
    tolerance = 0.01

    @property
    def size(self):
        """Width and height of the overview."""
        return f"{self.edge:,} x {self.edge:,} px"

    def prepare(self):
        """Read a part of the shipped real slide, half of it background."""
        with _reader.open_slide(load_cmu_slide().path) as slide:
            self.rgb = slide.read(512, 1024, 0, self.edge, self.edge)

    def ours(self):
        """Mask the tissue with the library."""
        return otsu_mask(self.rgb)

    def reference(self):
        """Mask it in floats."""
        return float_overview_mask(self.rgb)

    def difference(self, ours, reference):
        """Fraction of the pixels that differ."""
        return np.mean(ours != reference)


class Encoding(Comparison):
    """Tiles encoded from a file against the pure model on tiles in memory, by their features."""

    step = "feature extraction"
    encoder = "efficientnet-lite0"
    n_tiles, batch_size = 48, 16
    tolerance = 1e-4

    @property
    def size(self):
        """Number of tiles and name of the encoder."""
        return f"{self.n_tiles} tiles, {self.encoder}"

    def prepare(self):
        """Tile the real slide that is shipped, and load its tiles and the model."""
        tiler = SlideTiler(max_tiles=self.n_tiles, random_state=0)
        self.slides = tiler.fit_transform([load_cmu_slide().path])
        self.featurizer = FoundationFeaturizer(
            self.encoder, device="cpu", batch_size=self.batch_size
        ).fit(self.slides)
        encoder = find_encoder(self.encoder)
        model = load_encoder(encoder, find_weights(encoder, None), "cpu")
        tiles = np.stack(list(self.slides[0].iter_tiles()))
        self.arguments = model, encoder, tiles, self.batch_size, "cpu", None

    def ours(self):
        """Read and encode."""
        return self.featurizer.transform(self.slides)[0].features

    def reference(self):
        """Encode with torch only."""
        return pure_model(*self.arguments)

    def difference(self, ours, reference):
        """Largest difference relative to the largest value."""
        return np.abs(ours - reference).max() / np.abs(reference).max()


class SuperTiles(Comparison):
    """Clusters of tiles against scikit-learn's k-means with its defaults, by the inertia."""

    step = "k-means super-tiles"
    n_tiles, n_features, n_clusters = 4000, 1024, 100
    # k-means ends in one of many minima.
    tolerance = 0.01

    @property
    def size(self):
        """Tiles, features and clusters."""
        return f"{self.n_tiles:,} x {self.n_features:,}, k = {self.n_clusters}"

    def prepare(self):
        """Draw tiles around centres."""
        self.features = planted_tiles(np.random.default_rng(0), self.n_tiles, self.n_features)

    def ours(self):
        """Cluster with the library."""
        return cluster_labels(self.features, self.n_clusters, 0)

    def reference(self):
        """Cluster with scikit-learn."""
        return KMeans(self.n_clusters, random_state=0).fit_predict(self.features)

    def difference(self, ours, reference):
        """Relative increase of the inertia."""
        return inertia(self.features, ours) / inertia(self.features, reference) - 1
