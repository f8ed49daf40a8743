"""The settings of the experiment, and running them: each once, whatever interrupts it."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from _common import checksum, peak_mb, write_file, write_results
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils import _safe_indexing

from sklearn_pk.metrics import significance_report
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.model_selection._prior_gain import ControlledPrior
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.utils._parallel import LostWorkerError, map_tasks, restore, share

GRAPHS = ("external", "internal", "combined")
PRIORS = ("none", *GRAPHS, "eigen")
PROJECTED = ":projected"
N_FOLDS = 5
N_EIGENGENES = 30
# How training differs from the defaults of the regressor.
TRAININGS = {
    "default": {"early_stopping": "loss+corr"},
    "published": {"early_stopping": "loss+corr", "lr": 1e-3, "init_scale": 1.0},
    "loss": {},
}


@dataclass(frozen=True)
class Setting:
    """
    One model.

    Parameters
    ----------
    aggregator : str
        How tiles are aggregated.
    prior : str
        Name of the prior, with ":projected" where predictions are projected onto its span; "none";
        or "zero", the control that is the same for all priors.
    control : str
        "" for the prior itself, or "shuffled" or "rewired".
    lambda_ : float
        Weight of the prior.
    """

    aggregator: str
    prior: str
    control: str = ""
    lambda_: float = 0.0

    @property
    def name(self):
        """Name of the folder of its runs."""
        parts = [self.aggregator, self.prior.replace(":", "-"), self.control]
        parts.append("" if self.prior == "none" else f"{self.lambda_:g}")
        return "_".join(part for part in parts if part)


def controls_of(prior, controls):
    """Return the controls a prior can have, beside the one of zeros."""
    can_rewire = prior.removesuffix(PROJECTED) in GRAPHS
    return [name for name in controls if name == "shuffled" or (name == "rewired" and can_rewire)]


def lambdas_of(prior, lambdas):
    """Return the weights to try: predictions can be projected altogether."""
    return sorted({*lambdas, 1.0}) if prior.endswith(PROJECTED) else list(lambdas)


def make_settings(aggregators, priors, lambdas, controls):
    """
    List all settings.

    Parameters
    ----------
    aggregators, priors, controls : list of str
        What to combine.
    lambdas : list of float
        Weights of the prior.

    Returns
    -------
    list of Setting
        Each once. The zeros of a weight are the control of all priors.
    """
    settings = []
    for aggregator in aggregators:
        for prior in priors:
            if prior == "none":
                settings.append(Setting(aggregator, "none"))
                continue
            for control in ["", *controls_of(prior, controls)]:
                for lambda_ in lambdas_of(prior, lambdas):
                    settings.append(Setting(aggregator, prior, control, lambda_))
        if "zero" in controls and set(priors) != {"none"}:
            # At 1, zeros are a constant.
            settings += [Setting(aggregator, "zero", "", each) for each in lambdas if each < 1]
    return settings


@dataclass(frozen=True)
class Design:
    """
    Settings of all runs.

    Parameters
    ----------
    threshold : float
        Of the internal graph.
    gene_sets : str
        GMT file of the external graph; "cgn" takes the shipped collection.
    width : int
        Width of the slide embedding and, as published, of the gene embeddings of graphs.
    embed_dim : int or None
        Width features are projected to; None leaves them.
    transform : {"rank", "none"}
        What is done to expression, on the training patients of each fold.
    training : {"default", "published"}
        Learning rate and start of the weights.
    max_epochs : int
        Largest number of epochs.
    n_folds : int
        Number of folds.
    """

    threshold: float
    gene_sets: str
    width: int
    embed_dim: int | None
    transform: str
    training: str
    max_epochs: int
    n_folds: int = N_FOLDS

    def make_prior(self, setting, seed):
        """Make the prior of a setting, or its control."""
        name = setting.prior.removesuffix(PROJECTED)
        if name == "none":
            return None
        if name == "eigen":
            prior = EigengeneEmbedder(N_EIGENGENES, random_state=0)
        else:
            graph = CoexpressionGraph(
                threshold=self.threshold,
                source=name,
                external=self.gene_sets,
                rewire=1.0 if setting.control == "rewired" else 0.0,
                # Where it is not used, one for all: what has been factorised is found again.
                random_state=seed if setting.control == "rewired" else 0,
            )
            # As published: the left factor, from random numbers of seed 0.
            prior = make_pipeline(
                graph, NMFGeneEmbedder(self.width, factors="left", random_state=0)
            )
        if setting.control == "shuffled":
            return ControlledPrior(prior, setting.control, seed)
        return prior

    def make_model(self, setting, seed, n_genes, **options):
        """Make the regressor of a setting."""
        prior = None
        if setting.prior == "zero":
            prior = np.zeros((n_genes, 1))
        elif setting.prior != "none":
            prior = self.make_prior(setting, seed)
        return PriorKnowledgeRegressor(
            prior=prior,
            aggregator=setting.aggregator,
            lambda_=setting.lambda_,
            layer="projected" if setting.prior.endswith(PROJECTED) else "published",
            embed_dim=self.embed_dim,
            max_epochs=self.max_epochs,
            random_state=seed,
            **TRAININGS[self.training],
            **options,
        )

    def make_transformer(self, n_samples):
        """Make what brings expression to a normal distribution, fitted in each fold."""
        if self.transform == "none":
            return None
        n_quantiles = max(2, min(200, n_samples // 2))
        return QuantileTransformer(n_quantiles=n_quantiles, output_distribution="normal")

    def make_folds(self, cohort):
        """Draw folds of patients, the same for all runs."""
        splitter = GroupKFold(self.n_folds, shuffle=True, random_state=0)
        return list(splitter.split(cohort.expression, groups=cohort.patients))


class Store:
    """
    The runs in a folder: figures, predictions of the held-out samples, reports.

    Files are written in one step, and a run knows the checksums of its own: one with a file that
    is damaged or missing is not finished.

    Parameters
    ----------
    folder : Path
        The folder.
    design : dict, default=None
        Data and design of the runs. Those of another design are not finished, either.
    say : callable, default=print
        Called with a line for each damaged run.
    """

    def __init__(self, folder, design=None, say=print):
        self.folder = Path(folder)
        self._design = design
        self._say = say
        self._rows = {}

    def _base(self, setting, seed):
        return self.folder / "runs" / setting.name / f"seed{seed}"

    def row(self, setting, seed):
        """Return the results of a run, or None if it is not finished."""
        base = self._base(setting, seed)
        if base not in self._rows:
            path = base.with_suffix(".json")
            row, damaged = self._read(path) if path.exists() else (None, None)
            if damaged:
                self._say(
                    f"{path}: {damaged} is damaged, missing or of other data. The run is repeated."
                )
            if row is None:
                return None
            self._rows[base] = row
        return self._rows[base]

    def _read(self, path):
        """Return a row, or None and the file that does not hold what was written."""
        try:
            found = json.loads(path.read_text())
            row, files = found["row"], found["files"]
            if found["sha256"] != _checksum_of(row, files, self._design):
                return None, path.name
        except (ValueError, TypeError, KeyError):
            return None, path.name
        damaged = [name for name in files if checksum(path.with_name(name)) != files[name]]
        return (None, damaged[0]) if damaged else (row, None)

    def lost_truth(self, cohorts):
        """Return the tables of truth that are damaged or missing, and remove them."""
        known = self.folder / "truth.json"
        try:
            expected = json.loads(known.read_text())
        except (OSError, ValueError):
            expected = {}
        lost = []
        for cohort in cohorts:
            path = self._truth(cohort)
            if checksum(path) != expected.get(cohort, ""):
                path.unlink(missing_ok=True)
                lost.append(path.name)
        return lost

    def tables(self, setting, seed, cohort="cv"):
        """Return predictions and those of the untrained model, not read yet."""
        base = self._base(setting, seed)
        names = (f"{base.name}-{cohort}-{what}.npy" for what in ("prediction", "untrained"))
        return tuple(np.load(base.with_name(name), mmap_mode="r") for name in names)

    def truth(self, cohort="cv"):
        """Return the truth that all runs are compared with."""
        return np.load(self._truth(cohort), mmap_mode="r")

    def _truth(self, cohort):
        return self.folder / f"{cohort}-truth.npy"

    def keep(self, setting, seed, row, tables, report):
        """Write a run; the results come last, so that a run with results is complete."""
        base = self._base(setting, seed)
        files = {}
        truths = {cohort: truth for cohort, (truth, *_) in tables.items()}
        if self.lost_truth(truths):
            sums = {each: _save(self._truth(each), truth) for each, truth in truths.items()}
            write_results(sums, self.folder / "truth.json")
        for cohort, (_, *predicted) in tables.items():
            for what, table in zip(("prediction", "untrained"), predicted, strict=True):
                path = base.with_name(f"{base.name}-{cohort}-{what}.npy")
                files[path.name] = _save(path, table)
        path = base.with_suffix(".parquet")
        files[path.name] = write_file(path, report.to_parquet)
        row = json.loads(json.dumps(row))
        found = {"row": row, "files": files, "sha256": _checksum_of(row, files, self._design)}
        write_results(found, base.with_suffix(".json"))


def _save(path, array):
    def write(temporary):
        with temporary.open("wb") as file:
            np.save(file, np.asarray(array, dtype=np.float32))

    return write_file(path, write)


def _checksum_of(*contents):
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _figures(report, mean_report):
    return {
        "n_significant": int(report["significant"].sum()),
        "n_significant_mean": int(mean_report["significant"].sum()),
        "median_r": float(report["r"].median()),
    }


def _held_out_loss(fold, model, transformer, cohort):
    """Return the mean squared error of the patients held out for early stopping."""
    rows = fold[0][model.validation_indices_]
    truth = cohort.expression.to_numpy()[rows]
    truth = truth if transformer is None else transformer.transform(truth)
    return float(np.mean((truth - model.predict(_safe_indexing(cohort.X, rows))) ** 2))


def run(setting, seed, cohort, external, design, store, options):
    """
    Cross-validate one setting with one seed and keep what it found.

    Parameters
    ----------
    setting : Setting
        The model.
    seed : int
        Its seed.
    cohort, external : Cohort
        The samples to cross-validate on, and those of another cohort, or None.
    design : Design
        Settings of all runs.
    store : Store
        Where it is kept.
    options : dict
        Further parameters of the regressor.

    Returns
    -------
    dict
        Its figures.
    """
    start = time.perf_counter()
    model = design.make_model(setting, seed, cohort.expression.shape[1], **options)
    folds = design.make_folds(cohort)
    with warnings.catch_warnings():
        # About single folds; the same in every run.
        warnings.filterwarnings("ignore", message=".*have the same value in all")
        result = cross_val_significance(
            model,
            cohort.X,
            cohort.expression,
            groups=cohort.patients,
            cv=folds,
            target_transformer=design.make_transformer(len(cohort.expression)),
            fdr=0.2,  # as published
            n_jobs=1,
        )
    row = asdict(setting) | {"seed": seed} | _figures(result.report, result.mean_report)
    row["folds"] = [
        {
            "n_significant": None if np.isnan(n) else int(n),
            "median_r": r,
            "held_out_loss": _held_out_loss(fold, fitted, transformer, cohort),
            "best_epoch": int(fitted.best_epoch_),
            "epochs": len(fitted.history_),
        }
        for fold, n, r, fitted, transformer in zip(
            folds,
            result.folds["n_significant"],
            result.folds["median_r"],
            result.estimators,
            result.target_transformers,
            strict=True,
        )
    ]
    tables = {"cv": (result.y_true, result.predictions, result.untrained_predictions)}
    if external is not None:
        with warnings.catch_warnings():
            # Reported once, with the cohort.
            warnings.filterwarnings("ignore", message="y lacks")
            report, found = result.evaluate(external.X, external.expression, return_tables=True)
        row["external"] = _figures(report, significance_report(*found[:2], None, fdr=0.2))
        tables["external"] = found
    row["seconds"] = time.perf_counter() - start
    row["peak_mb_of_process"] = peak_mb()
    store.keep(setting, seed, row, tables, result.report)
    return row


def _try_run(head, sizes, content, setting, seed):
    """Run a setting; an error of its prior or training is reported and does not stop other runs."""
    try:
        return run(setting, seed, *restore(head, sizes, content)), None
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}"


def run_all(todo, *arguments, n_jobs, say):
    """
    Do the remaining runs, several at a time, and estimate the time.

    Parameters
    ----------
    todo : list of (Setting, int)
        Settings and seeds.
    *arguments : object
        The others of :func:`run`.
    n_jobs : int
        Number of runs at a time, as in joblib.
    say : callable
        Called with a line for each finished run.

    Returns
    -------
    dict of str to str
        Settings that failed, and why.
    """
    start, failed = time.perf_counter(), {}
    # The cohorts are sent to each worker once, not with every run.
    shared = share(arguments)
    names = [f"{setting.name}, seed {seed}" for setting, seed in todo]
    tasks = [(*shared, *each) for each in todo]
    done = map_tasks(_try_run, tasks, n_jobs=n_jobs, name=names.__getitem__)
    for number, (position, outcome) in enumerate(done, start=1):
        row, error = (None, str(outcome)) if isinstance(outcome, LostWorkerError) else outcome
        left = (time.perf_counter() - start) / number * (len(todo) - number)
        name = f"[{number}/{len(todo)}] {names[position]}"
        if error:
            failed[names[position]] = error
            say(f"{name}: failed: {error}")
            continue
        say(
            f"{name}: {row['n_significant']:,} genes, median r {row['median_r']:.3f}, "
            f"{row['seconds']:.0f} s; {duration(left)} left"
        )
    return failed


def duration(seconds):
    """Return a time as text."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def estimate(todo, cohort, design, options, n_jobs):
    """
    Train one fold for two epochs, and estimate the time of all runs.

    Parameters
    ----------
    todo : list of (Setting, int)
        Settings and seeds.
    cohort : Cohort
        The samples.
    design : Design
        Settings of all runs.
    options : dict
        Further parameters of the regressor.
    n_jobs : int
        Number of runs at a time.

    Returns
    -------
    float
        Seconds, if trainings end after 30 epochs; priors are not counted.
    """
    train = design.make_folds(cohort)[0][0]
    y, X = cohort.expression.iloc[train], _safe_indexing(cohort.X, train)
    total = 0.0
    for aggregator in dict.fromkeys(setting.aggregator for setting, _ in todo):
        model = design.make_model(Setting(aggregator, "none"), 0, y.shape[1], **options)
        model.set_params(max_epochs=2, early_stopping=None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*have the same value in all")
            model.fit(X, y, groups=cohort.patients[train])
        of_fold = model.history_["dur"].iloc[-1] * min(30, design.max_epochs)
        n_runs = sum(setting.aggregator == aggregator for setting, _ in todo)
        total += of_fold * design.n_folds * n_runs
    return total / n_jobs
