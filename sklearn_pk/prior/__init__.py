"""Prior knowledge: gene-gene graphs and gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

from ._coexpression import CoexpressionGraph
from ._embedder import NMFGeneEmbedder
from ._gene_sets import read_gmt

__all__ = ["CoexpressionGraph", "NMFGeneEmbedder", "read_gmt"]
