"""save_model and load_model: a fitted model in one file, without the patients."""

# SPDX-License-Identifier: BSD-3-Clause

import io
import json
import os
import warnings
import zipfile
from importlib.metadata import version

import numpy as np
import pandas as pd
from scipy import linalg
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .. import __version__
from ..model_selection import FinalModel
from ..slides import (
    FeatureBag,
    FoundationFeaturizer,
    SlideTiler,
    list_encoders,
)
from ..utils._files import written_whole
from ..utils._pipelines import FrameMixin, tile_predictor
from ..utils._reporting import warn_user
from ..utils._validation import name_of_item, name_some

FORMAT = 1
_INFO, _CARD, _REPORT, _SCHEMA = "sklearn_pk.json", "README.md", "held_out.csv", "schema.json"
_REGRESSORS = ("PriorKnowledgeRegressor", "PriorKnowledgeRegressorCV", "PriorKnowledgeRidge")
_PACKAGES = ("scikit-learn", "numpy", "torch", "skorch", "skops")
# Transformers of the expression that keep a few statistics of each gene.
_MOMENTS = ("StandardScaler", "PowerTransformer", "RobustScaler")
# Parameters of priors that hold genes, not patients.
_KNOWLEDGE = ("external", "aliases")
# Relative differences that come from the rounding of pixels.
_TOLERANCES = {"mpp": 0.02, "tile_edge_um": 0.05}
_ORIGIN = {
    "encoder": "the encoder",
    "weights_hash": "encoder weights with the hash",
    "mpp": "tiles at um/px =",
    "tile_edge_um": "tiles whose edge in um is",
}


class ModelVersionWarning(UserWarning):
    """
    Warning that a model was saved with another version of a package.

    Its predictions may differ from those at the time. It is to :func:`load_model` what
    :class:`~sklearn.exceptions.InconsistentVersionWarning` is to a pickle.

    Parameters
    ----------
    message : str
        What has changed.

    See Also
    --------
    load_model : Issues it.

    Examples
    --------
    >>> import warnings
    >>> from sklearn_pk.io import ModelVersionWarning
    >>> warnings.simplefilter("error", ModelVersionWarning)
    >>> warnings.simplefilter("default", ModelVersionWarning)
    """

    def __init__(self, message):
        super().__init__(message)


class SavedModel(FrameMixin):
    """
    A model that :func:`load_model` has read.

    It predicts as the model does, after a check that the features come from the encoder and the
    um/px that the model was fitted on. Features without such a record, such as arrays, are not
    checked.

    Parameters
    ----------
    model : estimator
        The fitted regressor, or Pipeline that ends in one.
    info : dict
        What the file states: ``origin`` (``encoder``, ``weights_hash``, ``mpp`` in um/px and
        ``tile_edge_um``, as far as known), ``units``, ``cohort``, ``versions`` and others.
    card : str, default=""
        The model card, in Markdown.
    report : DataFrame or None, default=None
        Held-out ``r``, ``significant`` and ``reason`` of the genes, if they were given.

    Attributes
    ----------
    gene_names_out_ : ndarray of shape (n_genes,), object, or None
        Names of the genes; None if the model was fitted without.

    See Also
    --------
    save_model : Writes the file.
    export_map : Exports what :meth:`predict_tiles` returns.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.io import SavedModel
    >>> from sklearn_pk.regression import PriorKnowledgeRidge
    >>> from sklearn_pk.slides import FeatureBag
    >>> rng = np.random.default_rng(0)
    >>> ridge = PriorKnowledgeRidge().fit(rng.normal(size=(9, 4)), rng.normal(size=(9, 3)))
    >>> saved = SavedModel(ridge, {"origin": {"encoder": "uni"}})
    >>> saved.predict([FeatureBag(rng.normal(size=(1, 4)), slide="a.svs", encoder="uni2-h")])
    Traceback (most recent call last):
        ...
    ValueError: 'a.svs' has features of the encoder 'uni2-h', but the model was fitted on ...
    """

    def __init__(self, model, info, card="", report=None):
        self.model = model
        self.info = info
        self.card = card
        self.report = report

    @property
    def gene_names_out_(self):
        """Names of the genes."""
        return getattr(_regressor_of(self.model), "gene_names_out_", None)

    def predict(self, X):
        """
        Predict expression.

        Parameters
        ----------
        X : sequence or array of n_samples
            What the model takes: feature bags, a table of features or, for a Pipeline that
            starts there, slides.

        Returns
        -------
        prediction : ndarray of shape (n_samples,) or (n_samples, n_genes), float64
            Predicted expression, in ``info["units"]``.

        Raises
        ------
        ValueError
            If features come from another encoder, other weights or another um/px.
        """
        self._check(X)
        return self.model.predict(X)

    @available_if(lambda self: hasattr(_regressor_of(self.model), "predict_tiles"))
    def predict_tiles(self, X, **options):
        """
        Predict the expression of the tiles of slides, for maps.

        Parameters
        ----------
        X : list of n_samples
            As in :meth:`predict`.
        **options : object
            As in :meth:`PriorKnowledgeRegressor.predict_tiles
            <sklearn_pk.regression.PriorKnowledgeRegressor.predict_tiles>`.

        Returns
        -------
        list of DataFrame of shape (tiles_i, n_genes), float32
            Expression of each tile, one table per slide.

        Raises
        ------
        ValueError
            As :meth:`predict`, or if the model needs more of a slide than the mean of its tiles.

        Notes
        -----
        Steps that reduce slides to super-tiles or to the mean of their tiles are left out.
        """
        self._check(X)
        model, X = tile_predictor(self.model, X)
        return model.predict_tiles(X, **options)

    def _check(self, X):
        is_list = isinstance(X, list | tuple) or str(getattr(X, "dtype", "")) == "object"
        for position, bag in enumerate(X if is_list else []):
            found = _difference(self.info["origin"], bag) if isinstance(bag, FeatureBag) else None
            if found is not None:
                name, expected, got = found
                raise ValueError(
                    f"{name_of_item(bag) or f'X[{position}]'!r} has features of {_ORIGIN[name]} "
                    f"{got!r}, but the model was fitted on those of {_ORIGIN[name]} {expected!r}. "
                    "Compute them as for the model. Its attribute model predicts without this "
                    "check."
                )

    def __repr__(self):
        """Name the model, its genes and its encoder."""
        encoder = self.info["origin"].get("encoder") or "not stated"
        genes = self.gene_names_out_
        known = "" if genes is None else f"{len(genes):,} genes, "
        return f"SavedModel({_names_of_steps(self.model)}, {known}encoder: {encoder})"

    def _repr_markdown_(self):
        return self.card


def _regressor_of(model):
    model = getattr(model, "estimator", model) if isinstance(model, FinalModel) else model
    while isinstance(model, Pipeline):
        model = model[-1]
    return model


def _names_of_steps(model):
    model = model.estimator if isinstance(model, FinalModel) else model
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    return " + ".join(type(step).__name__ for step in steps)


def _is(estimator, *names):
    """Return whether an estimator is one of these regressors, or of a subclass."""
    # Not imported with this module, which also reads tables: torch takes seconds.
    from .. import regression

    return isinstance(estimator, tuple(getattr(regression, name) for name in names))


def _check_model(model):
    if not _is(_regressor_of(model), *_REGRESSORS):
        names = ", ".join(_REGRESSORS)
        hint = "Pass one of them."
        if hasattr(_regressor_of(model), "best_estimator_"):
            hint = "Pass its best_estimator_."
        elif hasattr(model, "estimators"):
            hint = "A result holds one model per fold: pass its final_model()."
        raise TypeError(
            f"model must be one of {names}, or a Pipeline that ends in one, got an instance of "
            f"{type(_regressor_of(model)).__name__}. {hint}"
        )
    check_is_fitted(_regressor_of(model))


def _shallow(original, /, **changes):
    """Copy an estimator without its __getstate__, which would copy the network."""
    copied = object.__new__(type(original))
    vars(copied).update(vars(original))
    vars(copied).update({name: value for name, value in changes.items() if hasattr(copied, name)})
    return copied


def without_patients(estimator):
    """Return a fitted estimator that predicts the same without the patients."""
    if isinstance(estimator, FinalModel):
        transformer = estimator.target_transformer
        if transformer is not None and type(transformer).__name__ not in _MOMENTS:
            raise ValueError(
                f"The target_transformer {type(transformer).__name__} may hold the expression of "
                f"patients, such as quantiles. Those without are {', '.join(_MOMENTS)}. Pass "
                "include_expression=True if the file may hold it."
            )
        return FinalModel(without_patients(estimator.estimator), transformer)
    if isinstance(estimator, Pipeline):
        steps = [(name, without_patients(step)) for name, step in estimator.steps]
        return _shallow(estimator, steps=steps, memory=None)
    if _is(estimator, "PriorKnowledgeRegressorCV"):
        changes = {
            name: without_patients(getattr(estimator, name))
            for name in ("estimator", "best_estimator_")
            if getattr(estimator, name, None) is not None
        }
        return _shallow(estimator, **changes)
    if _is(estimator, "PriorKnowledgeRegressor", "PriorKnowledgeRidge"):
        copied = _shallow(estimator, prior_=None, prior=_plain_prior(estimator.prior), memory=None)
        if getattr(copied, "init", None) is not None:
            copied = _shallow(copied, init=without_patients(copied.init))
        return _mix_patients(copied) if hasattr(copied, "dual_coef_") else copied
    return estimator


def _without_failures(model):
    """Leave out the tables of slides that failed, which name patients."""
    if isinstance(model, FinalModel):
        return FinalModel(_without_failures(model.estimator), model.target_transformer)
    if isinstance(model, Pipeline):
        return _shallow(
            model, steps=[(name, _without_failures(step)) for name, step in model.steps]
        )
    if isinstance(model, SlideTiler | FoundationFeaturizer):
        model = _shallow(model, **_plain_paths(model.get_params(deep=False)))
        vars(model).pop("failures_", None)
    return model


def _plain_paths(parameters):
    """Return the paths among parameters as text, which is the same on all systems."""
    return {
        name: os.fspath(value)
        for name, value in parameters.items()
        if isinstance(value, os.PathLike)
    }


def _plain_prior(prior):
    """Return a prior without tables of patients: it may be fitted, or hold those without slides."""
    if isinstance(prior, list | tuple):
        return [_plain_prior(each) for each in prior]
    if hasattr(prior, "get_params"):
        prior = clone(prior)
        tables = {
            name: None
            for name, value in prior.get_params().items()
            if isinstance(value, pd.DataFrame | pd.Series | np.ndarray)
            and name.rpartition("__")[2] not in _KNOWLEDGE
        }
        return prior.set_params(**tables, **_plain_paths(prior.get_params()))
    if isinstance(prior, pd.DataFrame):
        return prior.set_axis(range(prior.shape[1]), axis=1)  # they may be named after patients
    return prior


def _mix_patients(ridge):
    """
    Rotate the training samples of a linear kernel at random.

    Predictions depend on the products of features and coefficients over all samples, and on sums
    over them. Both are the same for any rotation that leaves (1, ..., 1) as it is.
    """
    if ridge.kernel != "linear":
        raise ValueError(
            f"A PriorKnowledgeRidge with kernel={ridge.kernel!r} predicts from its training "
            "patients: their expression can be computed from dual_coef_ and the penalties. Pass "
            "include_expression=True if the file may hold it, or fit with kernel='linear', whose "
            "model can be saved without."
        )
    n_samples = len(ridge.dual_coef_)
    # Without a seed, so that it cannot be undone.
    random = linalg.qr(np.random.default_rng().normal(size=(n_samples - 1, n_samples - 1)))[0]
    basis = linalg.helmert(n_samples, full=True)
    rotation = basis.T @ linalg.block_diag(1.0, random) @ basis
    names = ("X_fit_", "dual_coef_", "_inverse_root")
    return _shallow(ridge, **{name: rotation @ getattr(ridge, name) for name in names})


def origin_of_bags(bags):
    """Return the encoder and the um/px of bags, as far as they state them."""
    bags = [bags] if isinstance(bags, FeatureBag) else list(bags)
    wrong = [bag for bag in bags if not isinstance(bag, FeatureBag)]
    if wrong:
        raise TypeError(
            "features must be the feature bags that the model was fitted on, got an instance of "
            f"{type(wrong[0]).__name__}."
        )
    origin = {}
    for bag in bags:
        found = _difference(origin, bag)
        if found is not None:
            name, expected, got = found
            raise ValueError(
                f"features: the bags differ: {bag.slide!r} is of {_ORIGIN[name]} {got!r}, others "
                f"of {_ORIGIN[name]} {expected!r}."
            )
        stated = {name: getattr(bag, name) for name in _ORIGIN}
        origin = {name: value for name, value in stated.items() if _is_stated(value)} | origin
    return origin


def _is_stated(value):
    return value is not None and value != "" and value == value


def _difference(origin, bag):
    """Return the first difference: its name, what was expected and what was found; or None."""
    for name, expected in origin.items():
        got = getattr(bag, name, None)
        if name not in _ORIGIN or not _is_stated(got):
            continue
        same = got == expected
        if name in _TOLERANCES:
            same = abs(got - expected) <= _TOLERANCES[name] * expected
        if not same:
            return name, expected, got
    return None


def _origin_of_steps(model):
    """Return the same from the steps of a Pipeline that starts with slides."""
    model = model.estimator if isinstance(model, FinalModel) else model
    origin = {}
    for _, step in model.steps if isinstance(model, Pipeline) else []:
        if isinstance(step, SlideTiler):
            origin |= {"mpp": float(step.mpp), "tile_edge_um": float(step.mpp * step.tile_size)}
        if isinstance(step, FoundationFeaturizer):
            origin |= {"encoder": step.encoder_.name, "weights_hash": step.weights_hash_}
            origin["licence"] = step.encoder_.licence
    return origin


def _held_out(report, model):
    """Return the columns of a report to save, and the size of its cohort."""
    if report is None:
        return None, None
    cohort, table = None, getattr(report, "report", report)
    if table is not report:
        cohort = f"{len(report.y_true):,} slides"
        if report.groups is not None:
            cohort += f" of {report.groups.nunique():,} patients"
    columns = ["r", "significant", "reason"]
    if not isinstance(table, pd.DataFrame) or not {"r", "significant"} <= set(table):
        raise TypeError(
            "report must be a result of cross_val_significance, or its report, got an instance of "
            f"{type(report).__name__}."
        )
    genes = getattr(_regressor_of(model), "gene_names_out_", None)
    if genes is not None:
        missing = [gene for gene in genes if gene not in table.index]
        if missing:
            raise ValueError(
                f"report lacks {len(missing)} of the {len(genes)} genes of the model: "
                f"{name_some(missing)}. Pass the report of the same genes."
            )
        table = table.loc[genes]
    return table[[name for name in columns if name in table]], cohort


def save_model(
    model,
    path,
    *,
    features=None,
    report=None,
    units=None,
    cohort=None,
    include_expression=False,
):
    """
    Save a fitted model in one file, without the patients it was fitted on.

    The file is an archive of skops, which loads without running code, with a model card
    (README.md) inside. The fitted prior, which holds the expression of the training patients, is
    left out: predictions need the gene embeddings only.

    Parameters
    ----------
    model : PriorKnowledgeRegressor, PriorKnowledgeRegressorCV, PriorKnowledgeRidge, Pipeline \
            or FinalModel
        Fitted model. A Pipeline has to end in one of the first three; its other steps are saved
        as they are, less the names of slides that failed. A
        :class:`~sklearn_pk.model_selection.FinalModel` is that of a result.
    path : str or path-like
        File to write, usually ``*.skops``. An existing one is replaced.
    features : list of FeatureBag, default=None
        Bags that the model was fitted on, or some of them: they state the encoder, the hash of
        its weights, the um/px and the size of the tiles, which :func:`load_model` then requires.
        Not needed for a Pipeline that computes its features itself.
    report : CrossValSignificance or DataFrame, default=None
        Held-out result, or its report, for the card and for maps.
    units : str, default=None
        Scale of the expression, such as "log2(TPM + 1)".
    cohort : str, default=None
        Patients that the model was fitted on, such as "884 patients of TCGA-BRCA". None takes
        the numbers of slides and patients from `report`, if they are known.
    include_expression : bool, default=False
        Whether the file may hold data of the training patients: the fitted prior, and the
        samples of a PriorKnowledgeRidge.

    Raises
    ------
    OSError
        If the file cannot be written.
    TypeError
        If the model is of another type.
    ValueError
        If the bags differ or genes are missing in `report`. Also if `include_expression` is False,
        and the model is a PriorKnowledgeRidge that needs its training samples, or has a
        ``target_transformer`` that may hold their expression, such as QuantileTransformer.

    See Also
    --------
    load_model : Reads the file.

    Notes
    -----
    A kernel ridge predicts from its training samples: from its features and coefficients, the
    expression of the patients can be computed. A linear kernel depends on sums over them only;
    its samples are mixed by a random rotation, which changes predictions by rounding. Other
    kernels need ``include_expression=True``.

    Means, scales, gene embeddings, eigengenes and scores over all patients are part of the model
    and stay in the file. So do parameters, such as paths of weights.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import mkdtemp
    >>> from sklearn_pk.io import load_model, save_model
    >>> from sklearn_pk.regression import PriorKnowledgeRidge
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    >>> model = PriorKnowledgeRidge(kernel="linear").fit(X, y)
    >>> path = mkdtemp() + "/model.skops"
    >>> save_model(model, path, units="log2(TPM + 1)", cohort="30 simulated patients")
    >>> loaded = load_model(path)
    >>> bool(np.allclose(loaded.predict(X), model.predict(X)))
    True
    >>> print(loaded.card.splitlines()[0])
    # Gene expression from H&E slides: PriorKnowledgeRidge
    """
    import skops.io  # which imports torch

    _check_model(model)
    table, counted = _held_out(report, model)
    origin = _origin_of_steps(model)
    if features is not None:
        origin = origin_of_bags(features) | origin
    licences = list_encoders()["licence"]
    if "licence" not in origin and origin.get("encoder") in licences.index:
        origin["licence"] = str(licences[origin["encoder"]])
    info = {
        "format": FORMAT,
        "versions": {"sklearn_pk": __version__} | {name: version(name) for name in _PACKAGES},
        "steps": _names_of_steps(model),
        "origin": origin,
        "units": units,
        "cohort": cohort or counted,
        "include_expression": bool(include_expression),
    }
    saved = _without_failures(model if include_expression else without_patients(model))
    content = io.BytesIO(skops.io.dumps(saved))
    with zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_INFO, json.dumps(info, indent=1))
        archive.writestr(_CARD, make_card(model, info, table))
        if table is not None:
            archive.writestr(_REPORT, table.to_csv())
    with written_whole(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def make_card(model, info, table):
    """Write the model card."""
    origin, regressor = info["origin"], _regressor_of(model)
    genes = getattr(regressor, "gene_names_out_", None)
    n_features = getattr(regressor, "n_features_in_", None)
    rows = {
        "Model": info["steps"],
        "Genes": "without names" if genes is None else f"{len(genes):,}, listed below",
        "Scale of the expression": info["units"] or "not stated",
        "Fitted on": info["cohort"] or "not stated",
        "Encoder": _describe_encoder(origin),
        "Licence of the encoder": origin.get("licence", "not stated"),
        "Tiles": _describe_tiles(origin),
        "Features": n_features,
        "Held-out accuracy": _describe_accuracy(table),
        "Data of patients": _describe_data(regressor, info["include_expression"]),
        "Versions": ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
    }
    lines = [
        f"# Gene expression from H&E slides: {_names_of_steps(model)}",
        "",
        "**Not a medical device.** For research only: predictions must not be used for the "
        "diagnosis or treatment of a patient.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_escape(value)} |" for name, value in rows.items()),
        "",
        "## Use",
        "",
        "    from sklearn_pk.io import load_model",
        '    model = load_model("FILE")',
        "    model.predict_frame(bags)",
        "",
        "Features have to come from the encoder and the resolution stated above.",
        "",
        "## Genes",
        "",
    ]
    if table is None:
        names = [] if genes is None else list(map(str, genes))
        lines += [_escape(", ".join(names)), "", "No held-out accuracy was given."]
    else:
        lines += ["| gene | held-out r | significant |", "|---|---|---|"]
        lines += [
            f"| {_escape(gene)} | {row.r:.3f} | {'yes' if row.significant else 'no'} |"
            for gene, row in zip(table.index, table.itertuples(), strict=True)
        ]
    return "\n".join(lines) + "\n"


def _escape(value):
    """Return text that is neither HTML nor the end of a cell."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(text.split())


def _describe_encoder(origin):
    if "encoder" not in origin:
        return "not stated, so features are not checked"
    known = origin.get("weights_hash")
    return origin["encoder"] + (f" (hash of the weights: {known})" if known else "")


def _describe_tiles(origin):
    edge, mpp = origin.get("tile_edge_um"), origin.get("mpp")
    parts = [] if edge is None else [f"{edge:.4g} um wide"]
    parts += [] if mpp is None else [f"{mpp:.4g} um/px"]
    return ", ".join(parts) or "not stated"


def _describe_accuracy(table):
    if table is None:
        return "not given"
    return (
        f"{table['significant'].sum():,} of {len(table):,} genes significant, median r "
        f"{table['r'].median():.3f}"
    )


def _describe_data(regressor, include_expression):
    is_ridge = hasattr(regressor, "dual_coef_")
    if not include_expression:
        text = "no expression and no names of patients"
        if is_ridge:
            text += ", but random mixtures of the features and the coefficients of all patients"
        return text
    if is_ridge:
        return (
            "standardised features and coefficients of the training samples, from which their "
            "expression can be computed, and the fitted prior"
        )
    return "the fitted prior, which can hold the expression of the training patients"


def load_model(path, *, trusted=()):
    """
    Load a model that :func:`save_model` has written.

    Parameters
    ----------
    path : str or path-like
        The file.
    trusted : list of str, default=()
        Types of other packages to load, such as an aggregator of your own:
        "package.module.Class". Those of scikit-learn and of this package are always loaded;
        others can run code.

    Returns
    -------
    model : SavedModel
        The model, with its card.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, is not one of :func:`save_model`, is of another format, or holds
        types that are not trusted.

    Warns
    -----
    ModelVersionWarning
        If it was saved with another version of sklearn_pk or scikit-learn.

    See Also
    --------
    save_model : Writes the file.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cmu_slide
    >>> from sklearn_pk.io import load_model
    >>> load_model(load_cmu_slide().path)
    Traceback (most recent call last):
        ...
    ValueError: '...cmu_small_region.svs' is not a model: expected a file of save_model.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"Model not found: {path!r}. Check the path.")
    if not os.path.isfile(path) or not zipfile.is_zipfile(path):
        raise ValueError(f"{path!r} is not a model: expected a file of save_model.")
    try:
        with zipfile.ZipFile(path) as archive:
            info, card, report = _read_members(archive, path)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path!r} is damaged ({error}). Copy it again.") from error
    if damaged is not None:
        raise ValueError(f"{path!r} is damaged: its {damaged!r} is not intact. Copy it again.")
    _warn_of_versions(path, info)
    return SavedModel(_load_estimator(path, info, list(trusted)), info, card, report)


def _read_members(archive, path):
    names = set(archive.namelist())
    if _INFO not in names or _SCHEMA not in names:
        hint = " Load it with skops.io.load." if _SCHEMA in names else ""
        raise ValueError(f"{path!r} is not a model of save_model: it lacks {_INFO!r}.{hint}")
    info = json.loads(archive.read(_INFO))
    found = info.get("format") if isinstance(info, dict) else None
    if found != FORMAT:
        saved = info.get("versions", {}).get("sklearn_pk", "?") if isinstance(info, dict) else "?"
        raise ValueError(
            f"{path!r} is of format {found!r}, saved with sklearn_pk {saved}, but sklearn_pk "
            f"{__version__} reads format {FORMAT}. Load it with that version, or fit and save the "
            "model again."
        )
    report = None
    if _REPORT in names:
        table = pd.read_csv(io.BytesIO(archive.read(_REPORT)), keep_default_na=False)
        report = table.set_index(table.columns[0])
    return info, archive.read(_CARD).decode(), report


def _warn_of_versions(path, info):
    current = {"sklearn_pk": __version__, "scikit-learn": version("scikit-learn")}
    changed = [
        f"{name} {info['versions'].get(name)} (now {number})"
        for name, number in current.items()
        if info["versions"].get(name) != number
    ]
    if changed:
        warn_user(
            f"{path!r} was saved with {' and '.join(changed)}. Predictions may differ from those "
            "at the time; compare them, or use the versions in its card.",
            ModelVersionWarning,
        )


def _load_estimator(path, info, trusted):
    import skops.io

    saved = f"It was saved with sklearn_pk {info['versions'].get('sklearn_pk')}"
    try:
        unknown = skops.io.get_untrusted_types(file=path)
        # Their constructors run no code of the file.
        own = [name for name in unknown if name.startswith(("sklearn_pk.", "scipy.sparse."))]
        foreign = sorted(set(unknown) - set(own) - set(trusted))
        if foreign:
            raise ValueError(
                f"{path!r} holds types that can run code: {foreign}. If you know them and trust "
                f"the file: load_model(path, trusted={foreign!r})."
            )
        with warnings.catch_warnings():
            # That of the versions is already given.
            warnings.filterwarnings("ignore", category=UserWarning, message="Trying to unpickle")
            return skops.io.load(path, trusted=[*own, *trusted])
    except (ImportError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path!r} holds a model that sklearn_pk {__version__} does not know ({error}). "
            f"{saved}: load it with that version, or fit and save the model again."
        ) from error
