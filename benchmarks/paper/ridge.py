"""What prior knowledge gains in PriorKnowledgeRidge, against its controls.

Reads one table of features and one of expression, patients in rows. Experiments: all patients,
with controls; few patients with slides, the others with expression only; a foreign cohort whose
expression joins that of the training patients; and, with --networks, networks beside the ridge.
Each setting is run over several seeds of the folds; intervals are over patients and seeds, paired.
Missing features are medians of the training patients. Writes JSON.

    python benchmarks/paper/ridge.py features.csv.gz expression.csv.gz --foreign other.csv.gz
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from sklearn_pk.io import read_table
from sklearn_pk.metrics import compare_significance, significance_report
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRidge

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import RESULTS, describe, peak_mb, write_results

# End of the name of a setting in which features belong to other patients.
PERMUTED = ", patients permuted"


def eigengenes(expression=None, n_components=150):
    """Return the prior: the axes of the training patients, and of others if there are any."""
    return EigengeneEmbedder(n_components, normalize="standard", expression=expression)


def graph(source, rewire=0.0):
    """Return the published prior, or its control."""
    graph = CoexpressionGraph(source=source, rewire=rewire, random_state=0)
    return make_pipeline(graph, NMFGeneEmbedder(50, random_state=0))


class Cohort:
    """Features and expression of the same patients."""

    def __init__(self, features, expression):
        X, y = read_table(features), read_table(expression)
        patients = [name for name in X.index if name in set(y.index)]
        self.patients = pd.Index(patients)
        self.X = X.loc[patients].to_numpy(dtype=np.float64)
        self.y, self.genes = y.loc[patients].to_numpy(dtype=np.float64), y.columns

    def take_genes(self, genes):
        """Keep some genes."""
        positions = self.genes.get_indexer(genes)
        self.y, self.genes = self.y[:, positions], genes
        return self

    def take_patients(self, n_patients):
        """Return a cohort of some of the patients, drawn at random."""
        rows = np.random.default_rng(0).permutation(len(self.X))[:n_patients]
        part = copy.copy(self)
        part.X, part.y, part.patients = self.X[rows], self.y[rows], self.patients[rows]
        return part


def cross_validate(cohort, seed, settings, n_train=None, fold_seed=None):
    """Return the truth; (predictions, baseline, spread) and chosen lambdas of each setting.

    `settings` maps the expression of training patients with slides, that of those without and a
    random generator to the model.
    """
    truth = np.zeros(cohort.y.shape)
    predicted = {name: np.zeros((3, *truth.shape)) for name in settings}
    lambdas = {name: [] for name in settings}
    folds = KFold(5, shuffle=True, random_state=seed if fold_seed is None else fold_seed)
    for fold, (train, test) in enumerate(folds.split(cohort.X)):
        rng = np.random.default_rng([seed, fold])
        with_slides = train if n_train is None else rng.choice(train, n_train, replace=False)
        others = np.setdiff1d(train, with_slides)
        scores = QuantileTransformer(n_quantiles=len(train), output_distribution="normal")
        # Genes are brought to normal scores by the patients whose expression may be known.
        scores.fit(cohort.y[train])
        truth[test] = scores.transform(cohort.y[test])
        y, rest = (
            pd.DataFrame(scores.transform(cohort.y[rows]), cohort.patients[rows], cohort.genes)
            if len(rows)
            else None
            for rows in (with_slides, others)
        )
        X = SimpleImputer(strategy="median").fit(cohort.X[train]).transform(cohort.X)
        for name, make in settings.items():
            model = make(y, rest, rng)
            rows = rng.permutation(with_slides) if name.endswith(PERMUTED) else with_slides
            model.fit(X[rows], y)
            if isinstance(model, PriorKnowledgeRidge):
                means, spread = model.predict(X[test], return_std=True)
                lambdas[name].append(model.lambda_best_)
            else:
                means, spread = model.predict(X[test]), np.nan
            baseline = np.tile(y.mean(axis=0), (len(test), 1))
            for part, values in enumerate((means, baseline, spread)):
                predicted[name][part, test] = values
    return truth, predicted, lambdas


def summarize(patients, truths, runs, lambdas, reference, n_boot):
    """Compute counts, correlations and paired gains of the settings over one of them."""
    rows = []
    for name, predictions in runs.items():
        pairs = list(zip(truths, predictions, strict=True))
        reports = [significance_report(truth, p[0], p[1], fdr=0.2) for truth, p in pairs]
        counts = [int(report["significant"].sum()) for report in reports]
        inside = [np.abs(truth - p[0]) < 1.96 * p[2] for truth, p in pairs]
        rows.append(
            {
                "setting": name,
                "n_significant": float(np.mean(counts)),
                "n_significant_by_seed": counts,
                "median_r": float(np.mean([r["r"].median() for r in reports])),
                "lambda": lambdas[name],
                "coverage_of_95": float(np.mean(inside)),
            }
        )
    # Truths differ in scale between seeds; names say that the patients are the same.
    tables = {
        name: [
            tuple(pd.DataFrame(values, index=patients) for values in (truth, p[0], p[1]))
            for truth, p in zip(truths, runs[name], strict=True)
        ]
        for name in runs
    }
    gains = []
    for other in runs:
        if other != reference:
            pair = {reference: tables[reference], other: tables[other]}
            found = compare_significance(
                pair, reference=other, fdr=0.2, n_boot=n_boot, random_state=0
            )
            gains += found.to_dict("records")
    return {"settings": rows, "gains": gains}


def experiment(cohort, seeds, settings, reference, n_boot, n_train=None, **options):
    """Run settings over seeds and summarise them, with the mean of two of them if asked for."""
    means = options.pop("means", {})
    runs, lambdas = {name: [] for name in settings}, {name: [] for name in settings}
    truths, started = [], time.perf_counter()
    for seed in seeds:
        truth, predicted, chosen = cross_validate(cohort, seed, settings, n_train, **options)
        truths.append(truth)
        for name in settings:
            runs[name].append(predicted[name])
            lambdas[name].append(chosen[name])
        print(f"  seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    for name, parts in means.items():
        pairs = zip(*(runs[part] for part in parts), strict=True)
        runs[name], lambdas[name] = [(one + other) / 2 for one, other in pairs], []
    result = summarize(cohort.patients, truths, runs, lambdas, reference, n_boot)
    for row in result["settings"]:
        print(f"  {row['setting']:45s} {row['n_significant']:7.1f} {row['median_r']:.4f}")
    for gain in result["gains"]:
        print(
            f"  over {gain['reference']:40s} {gain['measure']:14s} {gain['difference']:+.4f} "
            f"[{gain['ci_low']:+.4f}, {gain['ci_high']:+.4f}]"
        )
    return result | {"n_train": n_train, "n_patients": len(cohort.X), "seeds": list(seeds)}


def _shuffled(rng, prior, y):
    """Return the embeddings of a prior, each given to another gene."""
    return rng.permutation(prior.fit_transform(y.T))


def _random_basis(rng, prior, y):
    """Draw a basis of the spectrum that the embeddings have."""
    embeddings = prior.fit_transform(y.T)
    basis = np.linalg.qr(rng.normal(size=embeddings.shape))[0]
    return basis * np.linalg.norm(embeddings, axis=0)


def ridge(prior, **parameters):
    """Make the regression."""
    return PriorKnowledgeRidge(prior=prior, **parameters)


def network(rng, **parameters):
    """Make a network with the defaults of the library, on a table."""
    seed = int(rng.integers(2**31))
    return PriorKnowledgeRegressor(embed_dim=128, random_state=seed, **parameters)


# Models by the expression of patients with slides, that of others, and a random generator.
ALL_PATIENTS = {
    "lambda": lambda y, rest, rng: ridge(eigengenes()),
    "ridge": lambda y, rest, rng: ridge(None),
    "lambda, shuffled genes": lambda y, rest, rng: ridge(_shuffled(rng, eigengenes(), y)),
    "lambda, random basis": lambda y, rest, rng: ridge(_random_basis(rng, eigengenes(), y)),
    "lambda, zeros": lambda y, rest, rng: ridge(np.zeros((y.shape[1], 1))),
    "free": lambda y, rest, rng: ridge("eigengenes", lambda_="free"),
    "free, shuffled genes": lambda y, rest, rng: ridge(
        _shuffled(rng, eigengenes(None, 2000), y), lambda_="free"
    ),
    "graph, external": lambda y, rest, rng: ridge(graph("external")),
    "graph, external, rewired": lambda y, rest, rng: ridge(graph("external", 1.0)),
    "lambda" + PERMUTED: lambda y, rest, rng: ridge(eigengenes()),
}

EXPRESSION_ONLY = {
    "with expression of others": lambda y, rest, rng: ridge(eigengenes(rest)),
    "ridge": lambda y, rest, rng: ridge(None),
    "internal": lambda y, rest, rng: ridge(eigengenes()),
    "with expression of others, shuffled genes": lambda y, rest, rng: ridge(
        _shuffled(rng, eigengenes(rest), y)
    ),
}


def with_foreign(foreign):
    """Return settings that add a foreign cohort, and its control."""

    def shuffled(y, rest, rng):
        mixed = foreign.set_axis(rng.permutation(foreign.columns), axis=1)
        return ridge(eigengenes(mixed, 100))

    def weighted(y, rest, rng):
        prior = eigengenes(foreign, 100)
        return ridge([clone(prior).set_params(weight=each) for each in (0.03, 0.1, 0.3, 1.0, 3.0)])

    return {
        "internal + foreign": lambda y, rest, rng: ridge(eigengenes(foreign, 100)),
        "internal": lambda y, rest, rng: ridge(eigengenes(None, 100)),
        "internal + foreign, weight by leave-one-out": weighted,
        "internal + foreign, foreign genes shuffled": shuffled,
    }


NETWORKS = {
    "free": lambda y, rest, rng: ridge("eigengenes", lambda_="free"),
    "ridge": lambda y, rest, rng: ridge(None),
    "network": lambda y, rest, rng: network(rng),
    "five networks": lambda y, rest, rng: network(rng, n_networks=5),
    "five score networks": lambda y, rest, rng: network(
        rng, n_networks=5, layer="scores", prior=eigengenes(None, 50)
    ),
}
MEANS = {"mean of free and five score networks": ("free", "five score networks")}
STOPPING = {
    "network, loss": lambda y, rest, rng: network(rng),
    "network, loss+corr": lambda y, rest, rng: network(rng, early_stopping="loss+corr"),
    "five networks, loss": lambda y, rest, rng: network(rng, n_networks=5),
    "ridge": lambda y, rest, rng: ridge(None),
}


def main():
    """Run what was asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features", type=Path)
    parser.add_argument("expression", type=Path)
    parser.add_argument("--foreign", type=Path, help="expression of another cohort")
    parser.add_argument("--n-train", type=int, nargs="*", default=[60, 120, 240])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--networks", action="store_true", help="networks only, added to the results of --out"
    )
    parser.add_argument("--foreign-seeds", type=int, default=10)
    parser.add_argument("--n-boot", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS / "ridge.json")
    options = parser.parse_args()
    cohort = Cohort(options.features, options.expression)
    seeds, n_boot = range(options.seeds), options.n_boot
    print(f"{len(cohort.X)} patients, {cohort.X.shape[1]} features, {len(cohort.genes)} genes")
    results = describe()
    if options.out.exists() and options.networks:
        results = json.loads(options.out.read_text())

    def run(name, *arguments, cohort=cohort, **more):
        results[name] = experiment(cohort, *arguments, **more)
        write_results(results | {"peak_mb": round(peak_mb())}, options.out)

    if options.networks:
        mean = next(iter(MEANS))
        run("networks", seeds, NETWORKS, mean, n_boot, means=MEANS)
        part = cohort.take_patients(350)
        run("stopping", range(5), STOPPING, "network, loss", n_boot, fold_seed=0, cohort=part)
        return
    run("all", seeds, ALL_PATIENTS, "lambda", n_boot)
    for n_train in options.n_train:
        print(f"{n_train} patients with slides")
        run(f"few_{n_train}", seeds, EXPRESSION_ONLY, "with expression of others", n_boot, n_train)
    if options.foreign is not None:
        foreign = read_table(options.foreign)
        genes = cohort.genes[cohort.genes.isin(foreign.columns)]
        settings, seeds = with_foreign(foreign[genes]), range(options.foreign_seeds)
        cohort.take_genes(genes)
        for n_train in options.n_train[:2]:
            print(f"{n_train} patients with slides, {len(genes)} genes, foreign cohort")
            run(f"foreign_{n_train}", seeds, settings, "internal + foreign", n_boot, n_train)


if __name__ == "__main__":
    main()
