"""What regressors of expression share: tables of predictions, and the score over genes."""

# SPDX-License-Identifier: BSD-3-Clause

from numbers import Integral

import numpy as np
import pandas as pd
from sklearn.metrics import r2_score

from ..utils import check_expression
from ..utils._pipelines import FrameMixin
from ..utils._validation import (
    check_gene_order,
    check_sample_names,
    did_you_mean,
    name_some,
)


def positions_of_genes(genes, names, n_genes):
    if genes is None:
        return np.arange(n_genes)
    genes = [genes] if isinstance(genes, str | Integral) else list(genes)
    known = np.arange(n_genes) if names is None else names
    positions = pd.Index(known).get_indexer(genes)
    unknown = [gene for gene, position in zip(genes, positions, strict=True) if position < 0]
    if unknown:
        raise KeyError(
            f"genes: {name_some(unknown)} not found among the {n_genes} genes of fit, such as "
            f"{name_some(known[:1])}.{did_you_mean(unknown, known)}"
        )
    return positions


class ExpressionMixin(FrameMixin):
    """Predict tables, and score by the variance of all genes."""

    def score(self, X, y, sample_weight=None):
        """
        Compute R squared: the fraction of the variance of all genes that is predicted.

        Genes are weighted by their variance. A mean over genes, as other regressors return it,
        would be dominated by genes that hardly vary in these samples.

        Parameters
        ----------
        X : array-like, DataFrame or list of n samples
            Features, as in :meth:`fit`.
        y : array-like or DataFrame of shape (n,) or (n, n_genes)
            Expression. Names of samples and genes have to be those of X and :meth:`fit`.
        sample_weight : array-like of shape (n,), default=None
            Weights of the samples.

        Returns
        -------
        float
            R squared, at most 1.
        """
        values, gene_names, _ = check_expression(y, estimator_name="score")
        check_sample_names(X, y)
        check_gene_order(gene_names, getattr(self, "gene_names_out_", None))
        predicted = self.predict(X).reshape(len(values), -1)
        weights = {"sample_weight": sample_weight, "multioutput": "variance_weighted"}
        return float(r2_score(values, predicted, **weights))
