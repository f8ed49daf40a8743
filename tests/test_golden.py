"""
What the library gives at fixed seeds, and its public names, against committed files.

``python tests/test_golden.py --write`` records changes that are intended.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import inspect
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline

from sklearn_pk.datasets import (
    load_brca_expression,
    load_cgn,
    load_cmu_slide,
    make_expression_cohort,
    make_slide_cohort,
)
from sklearn_pk.metrics import (
    compare_significance,
    make_significance_scorer,
    neighborhood_preservation,
    pearson_by_gene,
    significance_report,
    steiger_test,
)
from sklearn_pk.model_selection import cross_val_significance, prior_gain
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder, read_gmt
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    inject_prior_knowledge,
)
from sklearn_pk.slides import FeatureBag, FoundationFeaturizer, SlideTiler, SuperTileClusterer
from sklearn_pk.utils import all_public_objects

OUTPUTS = Path(__file__).parent / "data" / "golden_outputs.npz"
PUBLIC_NAMES = Path(__file__).parent / "data" / "public_names.json"
WRITE = "If that is intended, record it: python tests/test_golden.py --write"

# Relative and absolute tolerance by group; CPUs round differently, and training adds up.
TOLERANCES = {"slides": (1e-3, 1e-3), "datasets": (1e-6, 1e-6), "metrics": (1e-6, 1e-9)}
TRAINED = (1e-4, 1e-5)
AGGREGATORS = ("mlp", "transformer", "summary_mixing", "topk")
SMALL = {
    "max_epochs": 12,
    "early_stopping": "loss+corr",
    "lr": 2e-2,
    "batch_size": 8,
    "depth": 1,
    "n_heads": 2,
    "head_dim": 4,
    "validation_fraction": 0.2,
    "patience": 3,
    "device": "cpu",
    "random_state": 0,
}


def make_search(lambdas, cv, **parameters):
    """Make a search for lambda."""
    return PriorKnowledgeRegressorCV(PriorKnowledgeRegressor(**parameters), lambdas, cv=cv)


def columns_of(frame, leave_out=()):
    """Return the columns of a table as arrays, without times."""
    return {
        str(name): frame[name].to_numpy()
        for name in frame.columns
        if name not in leave_out and not str(name).endswith("_time")
    }


def prefix(name, outputs):
    """Put a name in front of the names of outputs."""
    return {f"{name}/{key}": value for key, value in outputs.items()}


@cache
def real_expression():
    """Return real expression of 250 samples and 400 genes."""
    return load_brca_expression().expression.iloc[:, :400]


@cache
def made_data():
    """Return ragged bags of 30 slides, expression of 10 genes that follows them, and patients."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(30, 6))
    level[1::3] = level[::3]  # 20 patients, of one and two slides
    weights = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 10))
    noise = 0.3 * rng.normal(size=(30, 10))
    noise[1::3] = noise[::3]
    bags = [
        (row + 0.5 * rng.normal(size=(2 + number % 5, 6))).astype(np.float32)
        for number, row in enumerate(level)
    ]
    genes = [f"G{number}" for number in range(10)]
    samples = [f"S{number}" for number in range(30)]
    expression = pd.DataFrame(8 + level @ weights + noise, index=samples, columns=genes)
    patients = np.array([f"P{number - (number % 3 == 1):02d}" for number in range(30)])
    return bags, expression, patients


def folds_of_patients(patients, n_folds):
    """Return folds of patients; those of GroupKFold depend on the version of scikit-learn."""
    return PredefinedSplit(np.unique(patients, return_inverse=True)[1] % n_folds)


def golden_datasets():
    """Return the shipped data in numbers, and made cohorts."""
    expression = load_brca_expression().expression
    cgn = load_cgn()
    gene_sets = read_gmt(cgn.path)
    cohort = make_expression_cohort(
        12, n_tiles=4, n_features=16, n_genes=30, n_modules=4, false_share=0.1, random_state=0
    )
    outputs = {
        "brca_genes": expression.columns,
        "brca_means_of_genes": expression.mean(),
        "brca_first_samples": expression.index[:5],
        "cgn_equals_read_gmt": cgn.gene_sets == gene_sets,
        "gmt_names": list(gene_sets),
        "gmt_sizes": [len(genes) for genes in gene_sets.values()],
        "gmt_first_set": next(iter(gene_sets.values())),
        "expression_cohort/X": cohort.X,
        "expression_cohort/expression": cohort.expression,
        "expression_cohort/samples": cohort.expression.index,
        "expression_cohort/patients": cohort.patients,
        "expression_cohort/planted": cohort.planted,
        "expression_cohort/modules": cohort.modules,
        "expression_cohort/visible_modules": cohort.visible_modules,
        "expression_cohort/factors": cohort.factors,
        "expression_cohort/edges": cohort.edges.to_numpy(dtype=str),
    }
    with TemporaryDirectory() as folder:
        slides = make_slide_cohort(
            3, random_state=0, out_dir=folder, slide_size=(512, 512), two_slide_share=0.5
        )
        tiled = SlideTiler(tissue=None).fit_transform(slides.slides)
        colors = [tile.mean(axis=(0, 1)) for slide in tiled for tile in slide.iter_tiles()]
    return outputs | {
        "slide_cohort/names": [Path(path).name for path in slides.slides],
        "slide_cohort/samples": slides.expression.index,
        "slide_cohort/means_of_samples": slides.expression.mean(axis=1),
        "slide_cohort/patients": slides.patients,
        "slide_cohort/composition": slides.composition,
        "slide_cohort/planted_r2": slides.planted_r2.to_numpy()[:50],
        # Whole numbers, since versions of libjpeg may round a pixel differently.
        "slide_cohort/colors_of_tiles": np.round(colors),
    }


def golden_slides():
    """Return tiles of the shipped slide, their features and super-tiles."""
    path = load_cmu_slide().path
    settings = {
        "otsu": {},
        "entropy": {"tissue": "entropy", "tile_size": 128, "mpp": 1.0, "overlap": 16},
        "few": {"max_tiles": 8, "random_state": 0},
    }
    outputs = {}
    for name, parameters in settings.items():
        [slide] = SlideTiler(**parameters).fit_transform([path])
        shape = [slide.level, slide.read_size, slide.size_level0, *slide.slide_size]
        found = {"coords": slide.coords, "shape": shape, "edge": slide.tile_edge_um}
        outputs |= prefix(f"tiles/{name}", found)
    [bag] = FoundationFeaturizer(device="cpu").fit_transform([slide])
    outputs |= prefix("features", {"values": bag.features, "coords": bag.coords})

    rng = np.random.default_rng(0)
    # Whole numbers are the same on all machines; the content of a bag is part of the seed.
    centres = rng.integers(-40, 40, size=(6, 160))
    wide = [centres[rng.integers(6, size=n)] + rng.integers(-20, 20, (n, 160)) for n in (90, 40, 5)]
    narrow = [bag[:, :5] for bag in wide]
    for name, bags in (("wide", wide), ("narrow", narrow)):
        clusterer = SuperTileClusterer(n_clusters=8, random_state=0)
        found = clusterer.fit_transform([bag.astype(np.float32) for bag in bags])
        outputs[f"supertiles/{name}"] = found[:, :, :20]
    return outputs


def golden_prior():
    """Return edges of graphs and embeddings of genes."""
    rows = real_expression().T
    settings = {
        "internal": {"source": "internal"},
        "external": {"source": "external"},
        "combined": {"source": "combined"},
        "rewired": {"source": "combined", "rewire": 0.5},
        "absolute_ranks": {"method": "spearman", "absolute": True},
    }
    outputs, graphs = {}, {}
    for name, parameters in settings.items():
        graph = CoexpressionGraph(threshold=0.6, random_state=0, **parameters).fit(rows)
        edges = np.argwhere(np.triu(graph.graph_.toarray())).astype(np.int16)
        counts = [graph.n_edges_, graph.n_connected_genes_, graph.n_rewired_edges_]
        found = {"edges": edges, "counts": counts, "n_unmatched": len(graph.unmatched_genes_)}
        outputs |= prefix(f"graph/{name}", found)
        graphs[name] = graph.graph_
    graph = graphs["combined"]
    embedders = {
        "both": NMFGeneEmbedder(6, max_iter=30, random_state=0),
        "left": NMFGeneEmbedder(4, factors="left", scaling="columns", random_state=0, max_iter=20),
        "cd": NMFGeneEmbedder(4, solver="cd", init="nndsvda", random_state=0, max_iter=20, tol=0),
    }
    for name, embedder in embedders.items():
        embedding = embedder.fit_transform(graph)
        error = embedder.reconstruction_err_
        outputs |= prefix(f"nmf/{name}", {"embedding": embedding[::2], "error": error})
        if name == "both":
            kept = [
                neighborhood_preservation(graph, embedding, k=10, **more)
                for more in ({}, {"normalize": "degree"}, {"hops": 2}, {"metric": "euclidean"})
            ]
            outputs["neighborhood_preservation"] = kept
    for normalize in ("rank", "standard", None):
        embedder = EigengeneEmbedder(4, normalize=normalize, random_state=0).fit(rows)
        found = {
            "embedding": embedder.embedding_[::4],
            "singular_values": embedder.singular_values_,
            "transformed": embedder.transform(rows)[:10],
        }
        outputs |= prefix(f"eigengenes/{normalize}", found)
    return outputs


def describe_regressor(model, bags, expression):
    """Return what a fitted regressor says of some bags, and how it was trained."""
    history = model.history_
    return {
        "predictions": model.predict(bags[:8]),
        "untrained": model.predict_untrained(bags[:8]),
        "tiles": np.concatenate(model.predict_tiles(bags[:2])),
        "embedded": model.embed(bags[:3]),
        "score": model.score(bags, expression),
        "best_epoch": model.best_epoch_,
        "validation_indices": model.validation_indices_,
        "seed": model.seed_,
        **prefix("history", columns_of(history, leave_out=("dur",))),
    }


def golden_regressor(aggregator):
    """Return regressors with one aggregator: without a prior, and with it in both layers."""
    bags, expression, patients = made_data()
    prior = EigengeneEmbedder(3, random_state=0)
    settings = {
        "none": {},
        "published": {"prior": prior, "lambda_": 0.4},
        "projected": {"prior": prior, "lambda_": 0.4, "layer": "projected"},
    }
    outputs = {}
    for name, parameters in settings.items():
        model = PriorKnowledgeRegressor(aggregator=aggregator, **SMALL, **parameters)
        model.fit(bags, expression, groups=patients)
        outputs |= prefix(name, describe_regressor(model, bags, expression))
        if model.embeddings_ is not None:
            outputs[f"{name}/embeddings"] = model.embeddings_
    return outputs


def golden_regressor_options():
    """Return regressors with other options, a window, and prior knowledge put into a module."""
    bags, expression, patients = made_data()
    outputs = {}

    sequoia = SMALL | {"lr": 1e-3, "init_scale": 1.0, "aggregator": "transformer"}
    model = PriorKnowledgeRegressor(
        **sequoia, compat="sequoia", prior=EigengeneEmbedder(3, random_state=0), lambda_=0.2
    )
    model.fit(bags, expression, groups=patients)
    outputs |= prefix("sequoia", describe_regressor(model, bags, expression))

    # A prior wider than the slide embedding, by gene name, and bags as one array with NaN.
    padded = np.full((30, 6, 6), np.nan, dtype=np.float32)
    for row, bag in zip(padded, bags, strict=True):
        row[: len(bag)] = bag
    table = np.random.default_rng(1).normal(size=(10, 7))
    model = PriorKnowledgeRegressor(
        **SMALL | {"early_stopping": "loss", "weight_decay": 0.1, "embed_dim": 4},
        prior=pd.DataFrame(table, index=expression.columns[::-1]),
        scale_embeddings=False,
        standardize=False,
        positive=True,
    )
    model.fit(padded, expression, groups=patients)
    outputs |= prefix("wide_prior", describe_regressor(model, padded, expression))

    # One gene, one tile a slide, no held-out patients, all epochs.
    features, gene = np.array([bag[0] for bag in bags]), expression["G0"].to_numpy()
    options = {"early_stopping": None, "validation_fraction": 0.0, "lr_schedule": "cosine"}
    model = PriorKnowledgeRegressor(**SMALL | options).fit(features, gene, groups=patients)
    outputs["one_gene/predictions"] = model.predict(features)
    outputs["one_gene/train_loss"] = model.history_["train_loss"]

    graph = make_pipeline(
        CoexpressionGraph(threshold=0.3), NMFGeneEmbedder(3, max_iter=30, random_state=0)
    )
    model = PriorKnowledgeRegressor(**SMALL, prior=graph).fit(bags, expression, groups=patients)
    outputs["graph/predictions"] = model.predict_frame(bags[:8])
    outputs["graph/embeddings"] = model.embeddings_
    corners = np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1).reshape(-1, 2) * 256
    features = np.random.default_rng(2).normal(size=(12, 6))
    bag = FeatureBag(features, corners, slide="slide", size_level0=256)
    [tiles] = model.predict_tiles([bag], genes=["G7", "G2"], window=2)
    outputs["window/tiles"] = tiles
    outputs["window/corners"] = tiles.index.to_frame()

    linear = torch.nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-1, 1, 12).reshape(3, 4))
        linear.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
        mixed = inject_prior_knowledge(linear, np.arange(6.0).reshape(3, 2), lambda_=0.25)
        outputs["inject"] = mixed(torch.linspace(0, 1, 8).reshape(2, 4)).numpy()
    return outputs


def golden_search(aggregator):
    """Return the choice of lambda; networks of "mlp" are stacked, those of "topk" are not."""
    bags, expression, patients = made_data()
    prior = EigengeneEmbedder(3, random_state=0)
    folds = folds_of_patients(patients, 3)
    search = make_search([0.0, 0.4, 0.9], cv=folds, prior=prior, aggregator=aggregator, **SMALL)
    search.fit(bags, expression, groups=patients)
    return {
        "lambda": search.lambda_,
        "mean_scores": search.cv_results_["mean_test_score"],
        "ranks": search.cv_results_["rank_test_score"],
        "best_score": search.best_score_,
        "best_epoch": search.best_epoch_,
        "predictions": search.predict(bags[:8]),
    }


def golden_metrics():
    """Return statistics of made predictions."""
    rng = np.random.default_rng(0)
    true, noise, base = rng.normal(size=(3, 60, 12))
    tables = (8 + true, 8 + np.linspace(0, 1, 12) * true + 0.7 * noise, 8 + base)
    patients = np.arange(60) // 2
    reports = {
        "slides": significance_report(*tables, fdr=0.2),
        "patients": significance_report(*tables, groups=patients, alpha=0.1, fdr=0.2),
        "sequoia": significance_report(*tables, compat="sequoia"),
        "mean": significance_report(*tables[:2], None, fdr=0.2),
    }
    outputs = {}
    for name, report in reports.items():
        outputs |= prefix(f"report/{name}", columns_of(report))
    settings = {
        "weak": (true, 0.2 * true + 0.5 * noise, base),
        "strong": [(true, share * true + 0.5 * noise, base) for share in (0.3, 0.4)],
    }
    by_patient = {"groups": patients, "baseline": "mean", "compat": "sequoia"}
    for name, options in (("slides", {"fdr": 0.2}), ("patients", by_patient)):
        compared = compare_significance(settings, n_boot=50, random_state=0, **options)
        outputs |= prefix(f"compare/{name}", columns_of(compared))
    for alternative in ("greater", "less", "two-sided", "abs"):
        tested = steiger_test(
            [0.5, 0.1, 0.3], [0.2, 0.4, 0.3], [0.3, -0.2, 1.0], 40, alternative=alternative
        )
        outputs[f"steiger/{alternative}"] = np.array(tested)
    outputs["pearson_by_gene"] = pearson_by_gene(*tables[:2])
    return outputs


def golden_model_selection():
    """Return significant genes over folds, what a prior gains, and scores."""
    bags, expression, patients = made_data()
    model = PriorKnowledgeRegressor(prior=EigengeneEmbedder(3, random_state=0), **SMALL)
    folds = folds_of_patients(patients, 3)
    result = cross_val_significance(model, bags, expression, groups=patients, cv=folds, fdr=0.2)
    by_slide = result.report_by_slide()
    published = cross_val_significance(
        model, bags, expression, groups=patients, cv=folds, compat="sequoia"
    )
    outputs = {
        "n_significant": by_slide["significant"].sum(),
        "median_r": by_slide["r"].median(),
        "predictions": result.predictions,
        "untrained_predictions": result.untrained_predictions,
        "samples": result.predictions.index,
        "test_indices": np.concatenate(result.test_indices),
        **prefix("report", columns_of(by_slide)),
        **prefix("mean_report", columns_of(result.report_by_slide(baseline="mean"))),
        **prefix("report_by_patient", columns_of(result.report)),
        **prefix("folds", columns_of(published.folds)),
    }
    fitted, test = result.estimators[-1], result.test_indices[-1]
    scorers = [
        make_significance_scorer(fdr=0.2),
        make_significance_scorer(fdr=0.2, baseline="mean", normalize=True),
    ]
    outputs["scorers"] = [
        scorer(fitted, [bags[number] for number in test], expression.iloc[test])
        for scorer in scorers
    ]
    graph = make_pipeline(
        CoexpressionGraph(threshold=0.3), NMFGeneEmbedder(3, max_iter=30, random_state=0)
    )
    table = prior_gain(
        model.set_params(prior=graph),
        bags,
        expression,
        groups=patients,
        cv=folds_of_patients(patients, 2),
        compat="sequoia",
        n_seeds=1,
        random_state=0,
    )
    return outputs | prefix("prior_gain", columns_of(table))


GROUPS = {
    "datasets": golden_datasets,
    "slides": golden_slides,
    "prior": golden_prior,
    "metrics": golden_metrics,
    **{f"regressor_{name}": lambda name=name: golden_regressor(name) for name in AGGREGATORS},
    "regressor_options": golden_regressor_options,
    **{f"search_{name}": lambda name=name: golden_search(name) for name in ("mlp", "topk")},
    "model_selection": golden_model_selection,
}


def as_stored(value):
    """Return an output as an array that is stored without pickle: text, numbers or bool."""
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind not in "biuf" else array


def compute_group(group):
    """Compute the outputs of one group."""
    return {name: as_stored(value) for name, value in prefix(group, GROUPS[group]()).items()}


def compute():
    """Compute all outputs."""
    return {name: value for group in GROUPS for name, value in compute_group(group).items()}


def public_methods(owner):
    """Return public methods and properties of a class: its own, and those of scikit-learn."""
    own, foreign = {}, {}
    for name in dir(owner):
        home = next((c for c in owner.__mro__ if name in vars(c)), object)
        package = home.__module__.split(".")[0]
        if name.startswith("_") or package not in ("sklearn_pk", "sklearn"):
            continue
        method = getattr(owner, name)
        found = own if package == "sklearn_pk" else foreign
        if isinstance(method, property):
            found[name] = "property"
        elif callable(method):
            found[name] = signature_of(method)
    return own, foreign


def signature_of(function):
    """Return a signature as text, without annotations, which depend on versions of pandas."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def public_names():
    """Return public names with signatures: the package's own, and methods of scikit-learn."""
    own, foreign = {}, {}
    for name, public in all_public_objects():
        own[name] = signature_of(public) if callable(public) else type(public).__name__
        if inspect.isclass(public):
            for found, methods in zip((own, foreign), public_methods(public), strict=True):
                found |= {f"{name}.{method}": text for method, text in methods.items()}
    return own, foreign


def describe_difference(expected, found, rtol, atol):
    """Return how an output differs from the recorded one, "" where it does not."""
    if expected is None or found is None:
        return "is not recorded" if expected is None else "is no longer computed"
    if (expected.shape, expected.dtype.kind) != (found.shape, found.dtype.kind):
        was, now = (f"{array.dtype} of shape {array.shape}" for array in (expected, found))
        return f"was {was}, is {now}"
    equal = expected == found
    if expected.dtype.kind == "f":
        equal = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if equal.all():
        return ""
    first = tuple(np.argwhere(~equal)[0].tolist())
    return (
        f"{np.sum(~equal)} of {equal.size} values differ, first at {first}: was "
        f"{expected[first]}, is {found[first]}"
    )


# By group and not by name, so that no two processes compute the same group.
@pytest.mark.parametrize("group", GROUPS)
def test_outputs(group):
    found = compute_group(group)
    with np.load(OUTPUTS) as file:
        expected = {name: file[name] for name in file.files if name.startswith(f"{group}/")}
    rtol, atol = TOLERANCES.get(group, TRAINED)
    changes = {
        name: describe_difference(expected.get(name), found.get(name), rtol, atol)
        for name in sorted(expected.keys() | found.keys())
    }
    lines = [f"{name}: {change}" for name, change in changes.items() if change]
    assert not lines, "\n".join(["Outputs have changed.", *lines, WRITE])


def test_public_names():
    recorded = json.loads(PUBLIC_NAMES.read_text(encoding="utf-8"))
    own, foreign = public_names()
    # Another version of scikit-learn may have further methods.
    found = own | {name: text for name, text in foreign.items() if name in recorded}
    changes = [
        f"{name}: was {recorded.get(name, 'not there')}, is {found.get(name, 'not there')}"
        for name in sorted(recorded.keys() | found.keys())
        if recorded.get(name) != found.get(name)
    ]
    assert not changes, "\n".join(["Public names have changed.", *changes, WRITE])


def write():
    """Record outputs and public names."""
    outputs = {
        name: value.astype(np.float32) if name == "slides/features/values" else value
        for name, value in compute().items()
    }
    np.savez_compressed(OUTPUTS, **outputs)
    own, foreign = public_names()
    text = json.dumps(own | foreign, indent=1, sort_keys=True)
    PUBLIC_NAMES.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="record all anew")
    parser.parse_args()
    write()
