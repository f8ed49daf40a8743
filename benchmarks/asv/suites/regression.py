"""Speed of a training step and of the correlation that training watches."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
from abc import abstractmethod

import numpy as np
import torch
from _reference_training import (
    HeadByHead,
    WrittenOutAttention,
    make_network,
    make_optimizer,
    replace_mixers,
    train_step,
)

from sklearn_pk.regression._training import mean_correlation

from ._comparison import Comparison


class ValidationCorrelation(Comparison):
    """The correlation that training watches against a loop over genes that calls numpy."""

    step = "validation correlation"
    n_slides, n_genes = 16, 5000
    tolerance = 1e-9
    # A call takes less than a millisecond.
    number = 20

    @property
    def size(self):
        """Slides and genes."""
        return f"{self.n_slides:,} slides x {self.n_genes:,} genes"

    def prepare(self):
        """Draw truth and prediction."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.n_slides, self.n_genes)
        self.y_true, self.y_pred = torch.randn(shape, generator=generator)

    def ours(self):
        """Correlate all genes at once."""
        return mean_correlation(self.y_true, self.y_pred).item()

    def reference(self):
        """Correlate one gene after the other."""
        pairs = zip(self.y_true.numpy().T, self.y_pred.numpy().T, strict=True)
        return np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])

    def difference(self, ours, reference):
        """Difference of the means over genes."""
        return abs(ours - reference)


class TrainingStep(Comparison):
    """Steps of the network and of one that is written out, from the same weights."""

    # As published, but a sixth of the depth and, to keep the proportions, of the genes.
    dim, n_heads, n_tiles, batch_size = 1024, 16, 100, 16
    depth, n_genes = 1, 4300
    tolerance = 1e-4

    @property
    @abstractmethod
    def aggregator(self):
        """Name of the aggregator."""

    @property
    @abstractmethod
    def written_out(self):
        """Module that stands for each of its mixing layers in the reference."""

    @property
    def size(self):
        """Slides, tiles, features, genes and depth."""
        bags = f"{self.batch_size} x {self.n_tiles} x {self.dim:,}"
        return f"{bags}, depth {self.depth}, {self.n_genes:,} genes"

    def prepare(self):
        """Draw a batch and build both networks; only that of the library has a fused optimiser."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = {"dim": self.dim, "depth": self.depth, "n_heads": self.n_heads}
            network = make_network(self.aggregator, self.n_genes, **sizes)
            X = torch.randn(self.batch_size, self.n_tiles, self.dim)
            y = torch.randn(self.batch_size, self.n_genes)
        written_out = copy.deepcopy(network)
        replace_mixers(written_out, self.written_out)
        self.batch = X, y
        self.our_network = network, make_optimizer(network, fused=True)
        self.reference_network = written_out, make_optimizer(written_out, fused=False)

    def ours(self):
        """Make a step of the network of the library."""
        return train_step(*self.our_network, *self.batch)

    def reference(self):
        """Make a step of the network that is written out."""
        return train_step(*self.reference_network, *self.batch)

    def compare(self):
        """Do two steps, since predictions of the second show the change by the first."""
        return max(super().compare(), super().compare())

    def difference(self, ours, reference):
        """Largest difference of the predictions."""
        return (ours - reference).abs().max()


class SummaryMixingStep(TrainingStep):
    """A training step of summary mixing against heads that are computed one by one."""

    step = "training step, summary mixing"
    aggregator = "summary_mixing"
    written_out = HeadByHead


class TransformerStep(TrainingStep):
    """A training step of the transformer against attention that is written out."""

    step = "training step, transformer"
    aggregator = "transformer"
    written_out = WrittenOutAttention
