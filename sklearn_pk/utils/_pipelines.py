"""What a model is made of: Pipelines, searches, and what the last regressor needs for tiles."""

# SPDX-License-Identifier: BSD-3-Clause

import pandas as pd
from sklearn.pipeline import Pipeline

from ._validation import sample_names_of


def last_estimator(estimator):
    """Return the last step of the pipelines and the best estimator of the searches in it."""
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, Pipeline):
            estimator = estimator[-1]
        else:
            return estimator


def tile_predictor(estimator, X):
    """
    Return the regressor of a model that predicts tiles, and X as the steps before it make it.

    Steps that make super-tiles or the mean of a slide are left out: a tile is one of either.
    """
    reduced = None
    while not hasattr(estimator, "predict_tiles"):
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, Pipeline):
            for name, step in estimator.steps[:-1]:
                if step is None or step == "passthrough":
                    continue
                if reduced is not None:
                    raise ValueError(
                        f"Tiles cannot be predicted: the step {name!r} takes what {reduced!r} "
                        "makes of whole slides."
                    )
                if _reduces(step):
                    reduced = name
                else:
                    X = step.transform(X)
            estimator = estimator[-1]
        else:
            raise TypeError(
                "The model must have predict_tiles, as PriorKnowledgeRegressor has, got an "
                f"instance of {type(estimator).__name__}."
            )
    return estimator, X


def _reduces(step):
    """Return whether a step reduces slides to what one of their tiles is, too."""
    if not getattr(step, "_reduces_slides", False):
        return False
    statistics = list(getattr(step, "statistics", ["mean"]))
    if statistics != ["mean"]:
        raise ValueError(
            f"Tiles cannot be predicted: the model takes {statistics!r} of all tiles of a slide. "
            'Fit it behind BagPooler(statistics=["mean"]) for maps.'
        )
    return True


class FrameMixin:
    """Predict tables."""

    def predict_frame(self, X):
        """
        Predict expression as a table with the names of slides and genes.

        Parameters
        ----------
        X : array-like, DataFrame or list of n samples
            As in :meth:`predict`.

        Returns
        -------
        DataFrame of shape (n, n_genes)
            What :meth:`predict` returns. The rows have the names of X: the index of a DataFrame,
            the slides of feature bags; the columns are the genes of the fit.
        """
        predicted = self.predict(X)
        genes = getattr(self, "gene_names_out_", None)
        table = predicted.reshape(len(predicted), -1)
        return pd.DataFrame(table, index=sample_names_of(X), columns=genes)
