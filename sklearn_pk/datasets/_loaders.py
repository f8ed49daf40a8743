"""Loaders of the data sets shipped with the package."""

# SPDX-License-Identifier: BSD-3-Clause

from importlib.resources import files

import pandas as pd
from sklearn.utils import Bunch

from ..prior import read_gmt

_DATA = files("sklearn_pk") / "datasets" / "data"


def _describe(name):
    return (_DATA / f"{name}.rst").read_text(encoding="utf-8")


def load_cmu_slide():
    """
    Load the path of a real H&E slide: a region of CMU-1 in Aperio SVS format.

    2,220 x 2,967 pixels at 0.499 um/px, one pyramid level, JPEG tiles: skin with
    epithelium, keratin, dermis and background.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        path : str
            Path of the slide file.
        mpp : float
            Resolution of the slide in um/px, from its properties.
        DESCR : str
            Description, origin and licence.

    See Also
    --------
    make_slide_cohort : Slides composed of the texture of this one.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> slide = load_cmu_slide()
    >>> slide.path.endswith("cmu_small_region.svs")
    True
    """
    return Bunch(
        path=str(_DATA / "cmu_small_region.svs"), mpp=0.499, DESCR=_describe("cmu_small_region")
    )


def load_cgn():
    """
    Load the Cancer Gene Neighborhoods of MSigDB (collection C4:CGN, v2024.1).

    Each of the 427 sets contains the genes co-expressed with a centre gene, which
    ends the name of the set.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        path : str
            Path of the GMT file, for ``CoexpressionGraph(external=...)``.
        gene_sets : dict of str to list of str
            Mapping of the name of a set to its gene symbols.
        DESCR : str
            Description, origin and licence.

    See Also
    --------
    sklearn_pk.prior.CoexpressionGraph : Builds a graph from these sets.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cgn
    >>> cgn = load_cgn()
    >>> len(cgn.gene_sets)
    427
    >>> cgn.gene_sets["CAR_HPX"][:3]
    ['AADAC', 'ADH6', 'AFM']
    """
    path = str(_DATA / "c4.cgn.v2024.1.Hs.symbols.gmt")
    return Bunch(path=path, gene_sets=read_gmt(path), DESCR=_describe("cgn"))


def load_brca_expression():
    """
    Load log2 expression of 250 TCGA breast cancer samples and 1,000 genes.

    The 1,000 most variable genes of 50 samples from each of the five PAM50
    subtypes.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        expression : DataFrame of shape (250, 1000), float64
            log2 expression, one row per sample, one column per gene symbol.
        DESCR : str
            Description, origin and licence.

    See Also
    --------
    make_slide_cohort : Slides whose composition follows this expression.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_brca_expression
    >>> load_brca_expression().expression.shape
    (250, 1000)
    """
    expression = pd.read_csv(
        str(_DATA / "brca_expression_log2.csv.gz"), index_col=0, compression="gzip"
    )
    return Bunch(expression=expression, DESCR=_describe("brca_expression_log2"))
