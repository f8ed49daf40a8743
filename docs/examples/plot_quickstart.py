"""
From slides to significantly predicted genes
============================================

This example leads from whole slide images to significantly predicted genes. The slides are
generated files with real H&E texture, and their composition follows the leading components of real
expression (see :func:`~sklearn_pk.datasets.make_slide_cohort`), so it is known which genes can be
predicted.

``make quickstart`` runs this file. On your own data::

    python docs/examples/plot_quickstart.py --features DIR --expression TABLE

DIR contains one HDF5 file of tile features per slide, or is a table (csv, csv.gz, parquet) with one
row per slide or patient. TABLE has one row per slide or patient and one column per gene. Rows are
matched by name, or by the TCGA barcode (see :func:`~sklearn_pk.io.match_samples`).
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import os
import time
import warnings
from pathlib import Path

import matplotlib

if "DISPLAY" not in os.environ:
    matplotlib.use("agg")

import numpy as np
import pandas as pd
import sklearn
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils import Bunch

from sklearn_pk.datasets import make_slide_cohort
from sklearn_pk.io import match_samples, read_expression, read_table
from sklearn_pk.metrics import significance_scorer
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.plotting import LambdaPathDisplay, PredictionDisplay, TissueMaskDisplay
from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRidge
from sklearn_pk.slides import (
    BagPooler,
    FoundationFeaturizer,
    SlideTiler,
    SuperTileClusterer,
    read_features,
)

# The groups, that is patients, are passed to the splitter and to the regressor.
sklearn.set_config(enable_metadata_routing=True)

STEP = "priorknowledgeregressor__"


def parse_arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description="From slides to significant genes")
    parser.add_argument("--features", type=Path, help="folder of HDF5 files, or a table")
    parser.add_argument("--expression", type=Path, help="table: samples x genes")
    parser.add_argument(
        "--transform",
        choices=["rank", "none"],
        default="rank",
        help="rank-normalise the expression on each training fold (default), or not",
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart-output"))
    parser.add_argument("--n-slides", type=int, default=60)
    parser.add_argument("--max-epochs", type=int, default=100, help="of the networks")
    parser.add_argument("--n-jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (arguments.features is None) != (arguments.expression is None):
        parser.error("--features and --expression go together")
    for path in (arguments.features, arguments.expression):
        if path is not None and not path.exists():
            parser.error(f"there is no {path}")
    if torch.cuda.is_available():
        arguments.n_jobs = 1  # one process feeds one GPU
    return arguments


# %%
# The data
# --------
# Either generated slides, or your own features.


def planted_cohort(arguments):
    """Generate slides whose composition follows expression, and the pipeline for slides."""
    cohort = make_slide_cohort(
        arguments.n_slides,
        random_state=arguments.seed,
        out_dir=arguments.out / "slides",
        slide_size=(1536, 1536),
        n_jobs=arguments.n_jobs,
        verbose=1,
    )
    steps = (
        SlideTiler(tile_size=256, mpp=0.5, random_state=0),
        FoundationFeaturizer("efficientnet-lite0", store=arguments.out / "features"),
    )
    ridge = make_pipeline(*steps, BagPooler(), PriorKnowledgeRidge())
    model = make_pipeline(
        *steps,
        SuperTileClusterer(n_clusters=16, random_state=0),
        regressor(arguments, n_components=32, embed_dim=64, depth=1, n_heads=4, head_dim=16),
    )
    return Bunch(
        X=cohort.slides,
        expression=cohort.expression,
        patients=cohort.patients,
        planted_r2=cohort.planted_r2,
        ridge=ridge,
        model=model,
        aggregators=["mlp", "transformer", "summary_mixing"],
        transformer=None,
        units="log2",
    )


def regressor(arguments, *, n_components, threshold=0.75, **sizes):
    """Build a regressor with a prior from training expression and gene sets of MSigDB."""
    prior = make_pipeline(
        CoexpressionGraph(threshold=threshold, source="combined"),
        NMFGeneEmbedder(n_components, random_state=0),
    )
    return PriorKnowledgeRegressor(
        prior=prior,
        max_epochs=arguments.max_epochs,
        random_state=0,
        memory=str(arguments.out / "cache"),
        **sizes,
    )


def own_data(arguments):
    """Read features and expression, match their rows, and build the pipeline for features."""
    table = read_expression(arguments.expression)
    if arguments.features.is_dir():
        features, aggregators = read_features(arguments.features), ["mlp", "summary_mixing"]
    else:
        features, aggregators = read_table(arguments.features), ["mlp"]
    matched = match_samples(features, table.expression, patients=table.patients)
    n_samples = len(matched.X)
    print(f"{n_samples} of {len(features)} rows of features have a row of expression.")
    first, pooled = SuperTileClusterer(random_state=0), BagPooler()
    if not arguments.features.is_dir():
        first = pooled = normalizer(n_samples, 200)
    ranked = arguments.transform == "rank"
    return Bunch(
        X=matched.X,
        expression=matched.expression,
        patients=matched.patients,
        planted_r2=None,
        ridge=make_pipeline(pooled, PriorKnowledgeRidge()),
        model=make_pipeline(
            first,
            regressor(arguments, n_components=128, embed_dim=128, depth=2, n_heads=8, head_dim=16),
        ),
        aggregators=aggregators,
        transformer=normalizer(n_samples, 500) if ranked else None,
        units="rank-normalised" if ranked else None,
    )


def normalizer(n_samples, n_quantiles):
    """Map each column to a normal distribution, fitted on training patients only."""
    # A training fold needs at least as many samples as there are quantiles.
    n_quantiles = min(n_quantiles, n_samples // 2)
    return QuantileTransformer(n_quantiles=n_quantiles, output_distribution="normal")


# %%
# The comparison
# --------------
# Ridge regression comes first: it takes seconds and chooses lambda inside each training fold.
# Lambda and aggregator of the networks are searched over patient folds. As in the literature, they
# are selected on the same patients as the reported number; pass the search itself to
# ``cross_val_significance`` for nested cross-validation.


def evaluate(data, arguments, model, expression=None):
    """Predict every patient with a model that was not trained on them, and test all genes."""
    with warnings.catch_warnings():
        # The table shows the correlation within folds, which pooling does not change.
        warnings.filterwarnings("ignore", message="The untrained baseline has a median r")
        return cross_val_significance(
            model,
            data.X,
            data.expression if expression is None else expression,
            groups=data.patients,
            cv=GroupKFold(5),
            target_transformer=data.transformer,
            n_jobs=arguments.n_jobs,
            verbose=1,
        )


def permute_patients(expression, patients, seed):
    """Assign the expression of another patient to each patient."""
    names, first = np.unique(patients, return_index=True)
    other = np.random.default_rng(seed).permutation(first)
    rows = other[np.searchsorted(names, patients)]
    return expression.iloc[rows].set_axis(expression.index)


def compare_ridge(data, arguments, say):
    """Test ridge regression without a prior, with eigengenes, and with permuted patients."""
    rows, reports = [], {}
    for name, prior in (("none", None), ("eigengenes", "eigengenes")):
        model = clone(data.ridge).set_params(priorknowledgeridge__prior=prior)
        reports["ridge", name] = report = evaluate(data, arguments, model)
        lambda_ = np.mean([fitted[-1].lambda_best_ for fitted in report.estimators])
        rows.append(("ridge", name, lambda_, report.n_significant, report.median_r_fold))
        say(f"ridge, prior {name}: {report.n_significant:,} significant genes")
    return rows, reports


def compare(data, arguments, search, say):
    """Test the selected lambda of each aggregator, no prior, and permuted patients."""
    results = pd.DataFrame(search.cv_results_)
    rows, reports = compare_ridge(data, arguments, say)
    for aggregator in data.aggregators:
        of_aggregator = results[results[f"param_{STEP}aggregator"] == aggregator]
        best = of_aggregator.loc[of_aggregator["mean_test_score"].idxmax(), "params"]
        settings = {"none": best | {f"{STEP}prior": None, f"{STEP}lambda_": 0.0}, "combined": best}
        for prior, parameters in settings.items():
            model = clone(search.estimator).set_params(**parameters)
            reports[aggregator, prior] = report = evaluate(data, arguments, model)
            lambda_ = parameters[f"{STEP}lambda_"]
            rows.append((aggregator, prior, lambda_, report.n_significant, report.median_r_fold))
            say(f"{aggregator}, prior {prior}: {report.n_significant:,} significant genes")
    permuted = [
        evaluate(
            data,
            arguments,
            search.best_estimator_,
            permute_patients(data.expression, data.patients, seed),
        )
        for seed in range(3)
    ]
    say("three permutations of the patients done")
    best = search.best_params_
    rows.append(
        (
            best[f"{STEP}aggregator"],
            "permuted patients",
            best[f"{STEP}lambda_"],
            np.mean([report.n_significant for report in permuted]),
            np.mean([report.median_r_fold for report in permuted]),
        )
    )
    n_genes = data.expression.shape[1]
    columns = ["model", "prior", "lambda", f"significant of {n_genes:,}", "r within folds"]
    return pd.DataFrame(rows, columns=columns), reports


# %%
# The figures
# -----------


def draw(data, arguments, search, result):
    """Save the figures: tissue and tiles, the lambda path, the best gene."""
    figures = {}
    if "slidetiler" in search.best_estimator_.named_steps:
        tiler = search.best_estimator_.named_steps["slidetiler"]
        figures["tissue"] = TissueMaskDisplay.from_estimator(tiler, data.X[0])
    figures["lambda_path"] = LambdaPathDisplay.from_estimator(search)
    gene = result.report["r"].idxmax()
    figures["best_gene"] = PredictionDisplay.from_predictions(
        result.y_true[gene], result.predictions[gene], gene=gene, units=data.units
    )
    for name, display in figures.items():
        path = arguments.out / f"{name}.png"
        display.figure_.savefig(path, dpi=120, bbox_inches="tight")
        print(f"wrote {path}")


# %%
# The script
# ----------


def main():
    """Run from data to table and figures."""
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def say(text):
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    say("reading data" if arguments.features else f"generating {arguments.n_slides} slides")
    data = (own_data if arguments.features else planted_cohort)(arguments)
    if arguments.features is None:
        say("tiling and encoding; stored features are reused")
        clone(data.model[:2]).set_params(foundationfeaturizer__verbose=1).fit_transform(data.X)
    say(f"searching lambda and aggregator, {len(set(data.patients))} patients in 3 folds")
    search = GridSearchCV(
        data.model,
        {f"{STEP}lambda_": [0.1, 0.5, 0.9], f"{STEP}aggregator": data.aggregators},
        scoring=significance_scorer,
        cv=GroupKFold(3),
        n_jobs=arguments.n_jobs,
    )
    # A search only ranks settings, so ranks over all patients suffice here. The report below fits
    # them on the training fold.
    target = data.expression
    if data.transformer is not None:
        target = clone(data.transformer).set_output(transform="pandas").fit_transform(target)
    search.fit(data.X, target, groups=data.patients)
    say(f"best: {search.best_params_}; testing each gene on the pooled folds")
    table, reports = compare(data, arguments, search, say)
    say("done\n")
    formats = dict(zip(table.columns[2:], ["{:.2g}", "{:,.0f}", "{:.3f}"], strict=True))
    print(table.to_string(index=False, formatters={k: v.format for k, v in formats.items()}), "\n")
    result = reports["ridge", "eigengenes"]
    if data.planted_r2 is not None:
        found = result.report["significant"]
        planted = data.planted_r2.reindex(found.index) > 0.5
        print(
            f"Of {planted.sum()} genes that the planted components explain by more than half, "
            f"{found[planted].mean():.0%} are found; of the {(~planted).sum()} others "
            f"{found[~planted].mean():.0%}.\n"
        )
    result.report.to_csv(arguments.out / "report.csv")
    result.to_html(arguments.out / "report.html", units=data.units)
    print(f"wrote {arguments.out / 'report.html'}: open it in a web browser")
    table.to_csv(arguments.out / "table.csv", index=False)
    draw(data, arguments, search, result)


if __name__ == "__main__":
    main()
