"""A model with the transformer of its expression, and how it is fitted."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.base import clone
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import get_routing_for_object

from ..utils import check_expression, check_groups
from ..utils._patients import PatientAverager
from ..utils._pipelines import FrameMixin, last_estimator, tile_predictor
from ..utils._reporting import without_warnings_of_data
from ..utils._validation import check_sample_names, name_some


def takes_groups(estimator):
    """Return whether ``fit`` of an estimator, pipeline or search uses `groups`."""
    try:
        return bool(get_routing_for_object(estimator).consumes("fit", ["groups"]))
    except NotImplementedError:  # a meta-estimator without metadata routing
        return False


def take_rows(values, rows, y, is_1d):
    """Return some rows of the expression in the type of y."""
    values = values[rows]
    if isinstance(y, pd.DataFrame):
        return pd.DataFrame(values, index=y.index[rows], columns=y.columns)
    if isinstance(y, pd.Series):
        return pd.Series(values[:, 0], index=y.index[rows], name=y.name)
    return values[:, 0] if is_1d else values


def scale(transformer, values, groups, train):
    """Transform the expression with a transformer fitted on the training patients."""
    if transformer is None:
        return values, None
    training = values[train]
    if groups is not None:
        training = PatientAverager(groups[train]) @ training
    transformer = clone(transformer).fit(training)
    return np.asarray(transformer.transform(values)), transformer


class FinalModel(FrameMixin):
    """
    A fitted model that predicts expression on the scale of the table it was fitted on.

    :meth:`CrossValSignificance.final_model` returns it.

    Parameters
    ----------
    estimator : estimator
        The fitted regressor, or a Pipeline or search that ends in one.
    target_transformer : transformer, default=None
        Fitted transformer of the expression, whose ``inverse_transform`` is applied to all
        predictions.

    Attributes
    ----------
    gene_names_out_ : ndarray of shape (n_genes,), object, or None
        Names of the genes; None if the model was fitted without.

    See Also
    --------
    CrossValSignificance : The result that it belongs to.
    sklearn_pk.io.save_model : Saves it.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_pk.model_selection import cross_val_significance
    >>> from sklearn_pk.regression import PriorKnowledgeRidge
    >>> rng = np.random.default_rng(0)
    >>> X = pd.DataFrame(rng.normal(size=(40, 4)), index=[f"S{i}" for i in range(40)])
    >>> y = X @ rng.normal(size=(4, 2)) + [5, 9]
    >>> y.columns = ["ESR1", "MKI67"]
    >>> result = cross_val_significance(
    ...     PriorKnowledgeRidge(), X, y, target_transformer=StandardScaler()
    ... )
    >>> result.final_model().predict_frame(X).mean().round(0).to_dict()
    {'ESR1': 5.0, 'MKI67': 9.0}
    """

    def __init__(self, estimator, target_transformer=None):
        if target_transformer is not None and not hasattr(target_transformer, "inverse_transform"):
            raise ValueError(
                f"target_transformer {type(target_transformer).__name__} has no inverse_transform, "
                "so predictions cannot be on the scale of the table. Use one that has, such as "
                "QuantileTransformer or StandardScaler."
            )
        self.estimator = estimator
        self.target_transformer = target_transformer

    @property
    def gene_names_out_(self):
        """Names of the genes."""
        return getattr(last_estimator(self.estimator), "gene_names_out_", None)

    def predict(self, X):
        """
        Predict expression.

        Parameters
        ----------
        X : sequence or array of n_samples
            Samples of the same type as in the fit.

        Returns
        -------
        prediction : ndarray of shape (n_samples,) or (n_samples, n_genes), float64
            Prediction, on the scale of the table of the fit.

        Raises
        ------
        ValueError
            If a prediction is outside of what `target_transformer` can invert.
        """
        return self._invert(self.estimator.predict(X))

    def predict_tiles(self, X, *, genes=None, **options):
        """
        Predict the expression of the tiles of slides, for maps.

        Parameters
        ----------
        X : list of n_samples
            As in :meth:`predict`.
        genes : list, default=None
            Names of the genes, or their positions if they have no names. None means all.
        **options : object
            ``window`` and ``stride`` of the regressor.

        Returns
        -------
        list of DataFrame of shape (tiles_i, n_genes)
            Expression of each tile, one table per slide, on the scale of the table of the fit.

        Raises
        ------
        KeyError
            If a gene is unknown.
        TypeError
            If the regressor has no ``predict_tiles``.
        ValueError
            If a step of a Pipeline needs more of a slide than the mean of its tiles.

        Notes
        -----
        With a `target_transformer`, all genes are predicted before `genes` are selected.
        """
        model, X = tile_predictor(self.estimator, X)
        if self.target_transformer is None:
            return model.predict_tiles(X, genes=genes, **options)
        wanted = [genes] if isinstance(genes, str | int) else genes
        return [self._invert_tiles(tiles, wanted) for tiles in model.predict_tiles(X, **options)]

    def _invert_tiles(self, tiles, genes):
        values = self._invert(tiles.to_numpy(dtype=np.float64)).astype(np.float32)
        table = pd.DataFrame(values, index=tiles.index, columns=tiles.columns)
        table.attrs = tiles.attrs
        unknown = [gene for gene in genes or [] if gene not in table.columns]
        if unknown:
            raise KeyError(
                f"genes: {name_some(unknown)} not found among the {table.shape[1]} genes of fit."
            )
        return table if genes is None else table[list(genes)]

    def _invert(self, predicted):
        if self.target_transformer is None:
            return predicted
        table = predicted[:, np.newaxis] if predicted.ndim == 1 else predicted
        values = np.asarray(self.target_transformer.inverse_transform(table), dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=0))
        if wrong.size:
            names = self.gene_names_out_
            raise ValueError(
                f"{type(self.target_transformer).__name__} cannot invert the predictions of "
                f"{name_some(wrong if names is None else names[wrong])}: they are outside of its "
                "range. Use another target_transformer."
            )
        return values.reshape(predicted.shape)

    def __repr__(self):
        """Name the model and the transformer."""
        name = type(last_estimator(self.estimator)).__name__
        if self.target_transformer is None:
            return f"FinalModel({name})"
        return f"FinalModel({name}, {type(self.target_transformer).__name__})"


def fit_final(estimator, target_transformer, X, y, groups):
    """Fit a model on all patients."""
    check_sample_names(X, y)
    values, _, is_1d = check_expression(y, estimator_name="final_model")
    groups = None if groups is None else check_groups(groups, y)
    scaled, transformer = scale(target_transformer, values, groups, np.arange(len(values)))
    with config_context(enable_metadata_routing=True), without_warnings_of_data():
        pass_groups = {"groups": groups} if groups is not None and takes_groups(estimator) else {}
        model = clone(estimator)
        rows = np.arange(len(values))
        model.fit(_safe_indexing(X, rows), take_rows(scaled, rows, y, is_1d), **pass_groups)
    return FinalModel(model, transformer)
