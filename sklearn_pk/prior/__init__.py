"""Prior knowledge: gene-gene graphs and gene embeddings."""

# SPDX-License-Identifier: BSD-3-Clause

from ._coexpression import CoexpressionGraph
from ._eigengenes import EigengeneEmbedder
from ._embedder import NMFGeneEmbedder
from ._gene_sets import read_gmt

__all__ = ["CoexpressionGraph", "EigengeneEmbedder", "NMFGeneEmbedder", "read_gmt"]
