"""Speed of the report on significant genes."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from bench_significance import loop_over_genes, make_tables

from sklearn_pk.metrics import significance_report

from ._comparison import Comparison


class Report(Comparison):
    """The report on all genes against a loop over genes that calls scipy, by its verdicts."""

    step = "significance report"
    # All slides of the published cohort, but not its 25,761 genes.
    n_slides, n_genes = 1133, 1000

    @property
    def size(self):
        """Slides and genes."""
        return f"{self.n_slides:,} slides x {self.n_genes:,} genes"

    def prepare(self):
        """Draw truth, prediction and baseline."""
        self.tables = make_tables(self.n_slides, self.n_genes)

    def ours(self):
        """Make the report."""
        return significance_report(*self.tables, fdr=0.2)["significant"].to_numpy()

    def reference(self):
        """Test one gene after the other."""
        return loop_over_genes(*self.tables)

    def difference(self, ours, reference):
        """Fraction of genes with another result."""
        return np.mean(ours != reference)
