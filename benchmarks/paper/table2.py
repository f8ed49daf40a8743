"""The experiment of the paper on your own features and expression, with controls.

Every prior is cross-validated over patients at every weight, and compared with no prior and with
uninformative controls. Finished runs are kept in --out: the same command resumes after an
interruption, and more seeds, weights or priors are added to the existing runs.
"""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import itertools
import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import joblib
import matplotlib

matplotlib.use("agg")
sys.path.insert(0, str(Path(__file__).parents[1]))

from _common import describe, sweep, write_results  # noqa: E402
from _data import describe_audit, read_cohort  # noqa: E402
from _runs import (  # noqa: E402
    N_FOLDS,
    PRIORS,
    PROJECTED,
    TRAININGS,
    Design,
    Store,
    duration,
    estimate,
    make_settings,
    run_all,
)
from _tables import (  # noqa: E402
    MEASURES,
    collect,
    compare,
    draw_gains,
    draw_paths,
    gain_table,
    paper_table,
)

from sklearn_pk.utils._device import pick_device
from sklearn_pk.utils._reporting import progress

AGGREGATORS = ("mlp", "transformer", "summary_mixing", "topk")
CONTROLS = ("zero", "shuffled", "rewired")
_TABLE_WIDTH = 128


def _prior(text):
    if text.removesuffix(PROJECTED) in PRIORS and text != "none" + PROJECTED:
        return text
    raise argparse.ArgumentTypeError(
        f"expected one of {', '.join(PRIORS)}, or one with {PROJECTED!r} behind it, got {text!r}"
    )


def _lambda(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1], got {text!r}")
    return value


def _at_least(kind, lowest):
    """Return a parser of numbers with a minimum."""

    def read(text):
        value = kind(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"expected at least {lowest}, got {text!r}")
        return value

    return read


def make_parser():
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--features", type=Path, required=True, help="folder of feature files, or a table")
    add("--expression", type=Path, required=True, help="table, one row per slide or patient")
    add("--genes-in", choices=["columns", "rows"], default="columns", help="of the expression")
    add("--gene-sets", default="cgn", help="GMT file of the external graph (default: MSigDB CGN)")
    add("--external-features", type=Path, help="of another cohort, for the models of the folds")
    add("--external-expression", type=Path)
    add("--aggregators", nargs="+", choices=AGGREGATORS, help="default: mlp for tables, else three")
    add(
        "--priors",
        nargs="+",
        type=_prior,
        default=list(PRIORS),
        help=f"{', '.join(PRIORS)}; with "
        f"{PROJECTED!r} behind it, predictions are projected onto its span",
    )
    add("--lambdas", nargs="+", type=_lambda, default=[0.1, 0.2, 0.5, 0.8, 0.9])
    add("--controls", nargs="*", choices=CONTROLS, default=list(CONTROLS))
    add(
        "--seeds",
        type=_at_least(int, 1),
        default=5,
        help="number of seeds; intervals need five or more",
    )
    add("--threshold", type=_lambda, default=0.85, help="of the internal graph")
    add("--transform", choices=["rank", "none"], default="rank", help="of expression, by fold")
    add(
        "--training",
        choices=TRAININGS,
        default="default",
        help="published: lr 1e-3, init_scale 1; loss: early stopping on the loss alone",
    )
    add(
        "--n-clusters",
        type=_at_least(int, 0),
        default=100,
        help="super-tiles per slide; 0 keeps bags as they are",
    )
    add(
        "--embed-dim",
        type=_at_least(int, 1),
        help=f"default: {_TABLE_WIDTH} for tables, else that of features",
    )
    add("--max-epochs", type=_at_least(int, 1), default=200)
    add("--device", default="auto")
    add("--n-jobs", type=int, help="runs at a time (default: one a core, one with a GPU)")
    add("--scheduler", help="address, or file, of a Dask scheduler whose workers do the runs")
    add(
        "--n-boot", type=_at_least(int, 2), default=1000, help="draws of patients for the intervals"
    )
    add("--dry-run", action="store_true", help="say what would run, and how long it may take")
    add("--out", type=Path, required=True, help="folder for results, figures and runs")
    return parser


def parse(arguments=None):
    """Read the command line and check what can be checked without the data."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if (options.external_features is None) != (options.external_expression is None):
        parser.error("--external-features and --external-expression go together")
    paths = ("features", "expression", "external_features", "external_expression")
    for name in paths:
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"--{name.replace('_', '-')}: there is no {path}")
    if options.gene_sets != "cgn":
        if not Path(options.gene_sets).is_file():
            parser.error(f"--gene-sets: there is no {options.gene_sets}")
        options.gene_sets = str(Path(options.gene_sets).absolute())
    options.priors = list(dict.fromkeys(["none", *options.priors]))
    options.controls = list(dict.fromkeys(options.controls))
    options.aggregators = options.aggregators and list(dict.fromkeys(options.aggregators))
    options.lambdas = sorted(set(options.lambdas))
    options.out = options.out.absolute()
    try:
        # Workers of a cluster find out themselves.
        options.device = options.device if options.scheduler else pick_device(options.device)
    except ValueError as error:
        parser.error(f"--device: {error}")
    if options.scheduler:
        options.n_jobs = None
        return options
    if options.n_jobs is None:
        options.n_jobs = -1 if options.device == "cpu" else 1
    options.n_jobs = joblib.effective_n_jobs(options.n_jobs)
    return options


def read(options):
    """Read the cohorts, report what was matched, and set what depends on them."""
    settings = {"n_clusters": options.n_clusters, "work": options.out / "supertiles"}
    cohort = read_cohort(
        options.features, options.expression, genes_in=options.genes_in, **settings
    )
    print(describe_audit("Cohort", cohort), flush=True)
    external = None
    if options.external_features is not None:
        external = read_cohort(
            options.external_features,
            options.external_expression,
            genes_in=options.genes_in,
            **settings,
        )
        print(describe_audit("External cohort", external), flush=True)
        check_external(cohort, external)
    if len(set(cohort.patients)) < N_FOLDS:
        raise ValueError(f"{N_FOLDS} folds need as many patients, got {len(set(cohort.patients))}.")
    if options.aggregators is None:
        options.aggregators = ["mlp"] if cohort.is_table else list(AGGREGATORS[:3])
    if options.embed_dim is None and cohort.is_table:
        options.embed_dim = _TABLE_WIDTH
    return cohort, external


def check_external(cohort, external):
    """Refuse a cohort that the models cannot predict, before they are trained."""
    shared = cohort.expression.columns.intersection(external.expression.columns)
    print(f"  {len(shared):,} of {cohort.expression.shape[1]:,} genes are in both cohorts")
    if not len(shared):
        raise ValueError(
            f"The external cohort has none of the genes: {external.expression.columns[0]!r} there, "
            f"{cohort.expression.columns[0]!r} here."
        )
    if external.n_features != cohort.n_features or external.is_table != cohort.is_table:
        raise ValueError(
            f"The external cohort has {external.n_features} features, the first one has "
            f"{cohort.n_features}; both must be tables, or both folders, of the same features."
        )
    if len(external.expression) < 4:
        raise ValueError(f"The external cohort needs 4 samples, got {len(external.expression)}.")


def make_design(options, cohort):
    """Set what is common to all runs."""
    return Design(
        threshold=options.threshold,
        gene_sets=options.gene_sets,
        width=options.embed_dim or cohort.n_features,
        embed_dim=options.embed_dim,
        transform=options.transform,
        training=options.training,
        max_epochs=options.max_epochs,
        n_folds=N_FOLDS,
    )


def check_manifest(folder, manifest):
    """Refuse to mix runs of other data or another design."""
    path = folder / "manifest.json"
    if not path.exists():
        write_results(manifest, path)
        return
    try:
        known = json.loads(path.read_text())
    except ValueError as error:
        print(f"{path} is damaged ({error}), and written again. Runs of other data are repeated.")
        write_results(manifest, path)
        return
    differing = [key for key in manifest if known.get(key) != manifest[key]]
    if differing:
        changed = "; ".join(
            f"{key}: {known.get(key)!r} there, {manifest[key]!r} now" for key in differing
        )
        raise SystemExit(
            f"{folder} holds runs of other data or another design ({changed}). Choose another"
            " --out."
        )


def plan(options, cohort, design, settings, todo, fit_options):
    """Print the remaining runs and an estimate of the time."""
    n_numbers = cohort.expression.size * 2
    print(
        f"{len(settings)} settings x {options.seeds} seeds, {design.n_folds} folds each: "
        f"{len(todo)} of {len(settings) * options.seeds} runs are left to do, "
        f"{options.n_jobs} at a time on {options.device}. Predictions take "
        f"{len(todo) * n_numbers * 4 / 1e9:.1f} GB in {options.out}."
    )
    if todo and options.dry_run:
        seconds = estimate(todo, cohort, design, fit_options, options.n_jobs)
        print(
            f"Roughly {duration(seconds)}, if trainings end after 30 epochs; early stopping and "
            "the priors decide."
        )


def report(options, settings, cohort, external, design, store):
    """Write the results, the tables and the figures of all runs that are finished."""
    runs = collect(settings, range(options.seeds), store)
    folds, comparisons = design.make_folds(cohort), []
    pairs = [
        (aggregator, prior)
        for aggregator in options.aggregators
        for prior in options.priors
        if prior != "none"
    ]
    for aggregator, prior in progress(pairs, desc="Intervals", verbose=1):
        comparisons += compare(aggregator, prior, options, runs, store, cohort, folds)
    write_results(
        describe("cpu" if options.scheduler else options.device)
        | {"design": asdict(design), "cohort": cohort.describe()}
        | ({"external_cohort": external.describe()} if external else {})
        | {"n_seeds": options.seeds, "n_boot": options.n_boot}
        | {"runs": runs.to_dict("records"), "comparisons": comparisons},
        options.out / "results.json",
    )
    text = tables_of(options, runs, store, external, comparisons)
    (options.out / "table2.rst").write_text(text)
    print(text)
    figures = {
        "lambda_paths": draw_paths(options, runs, store),
        "gains": draw_gains(comparisons, options),
    }
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(options.out / f"{name}.png", dpi=150)
            print(f"wrote {options.out / name}.png")


def tables_of(options, runs, store, external, comparisons):
    """Write all tables."""
    parts = [
        "Significant genes; in parentheses the lambda with the most, chosen on the same patients, "
        f"as published. Mean over seeds, of which there are {options.seeds}.",
        paper_table(options, runs, store),
    ]
    if external is not None:
        parts += [
            "Significant genes of the external cohort, at the lambda chosen on the first one.",
            paper_table(options, runs, store, cohort="external"),
        ]
    intervals = "each setting at the lambda that held-out patients chose in each fold, with 95 %"
    over = "patients and seeds" if options.seeds > 1 else "patients (one seed says little)"
    kinds = {False: f"{intervals} intervals over {over}."}
    kinds[True] = f"the mean prediction of all seeds, {intervals} intervals over patients."
    for aggregator, (ensemble, kind) in itertools.product(options.aggregators, kinds.items()):
        keys = {(row["aggregator"], row["ensemble"]) for row in comparisons}
        if (aggregator, ensemble) in keys:
            parts.append(f"{aggregator}: {kind}")
            parts += [
                gain_table(comparisons, aggregator, measure, ensemble=ensemble)
                for measure in MEASURES
            ]
    return "\n\n".join(parts) + "\n"


@contextmanager
def workers(scheduler):
    """Send loops to a Dask cluster, if there is one, with the modules of this folder."""
    if not scheduler:
        yield
        return
    from distributed import Client

    kind = "scheduler_file" if Path(scheduler).is_file() else "address"
    with Client(**{kind: scheduler}) as client:
        here = Path(__file__).parent
        for path in (here.parent / "_common.py", *map(here.joinpath, ("_data.py", "_runs.py"))):
            client.upload_file(str(path))
        with joblib.parallel_config(backend="dask"):
            yield


def main(arguments=None):
    """Do the remaining runs, then write tables and figures."""
    options = parse(arguments)
    with workers(options.scheduler):
        _main(options)


def _main(options):
    if options.n_jobs is None:
        options.n_jobs = joblib.effective_n_jobs(None)
    try:
        cohort, external = read(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    design = make_design(options, cohort)
    settings = make_settings(options.aggregators, options.priors, options.lambdas, options.controls)
    manifest = asdict(design) | cohort.fingerprint()
    if Path(design.gene_sets).is_file():
        manifest["gene_sets_content"] = joblib.hash(Path(design.gene_sets).read_bytes())
    manifest["external"] = external.fingerprint() if external else None
    store = Store(options.out, json.loads(json.dumps(manifest)), _say)
    fit_options = {"device": options.device, "memory": str(options.out / "cache")}
    if (options.out / "manifest.json").exists() or not options.dry_run:
        check_manifest(options.out, manifest)
    sweep(options.out)
    todo = [
        (setting, seed)
        for seed in range(options.seeds)
        for setting in settings
        if store.row(setting, seed) is None
    ]
    lost = store.lost_truth(["cv", *(["external"] if external else [])])
    if lost and len(todo) < len(settings) * options.seeds:
        print(
            f"{options.out}: {', '.join(lost)} is damaged or missing, and written again by a run."
        )
        todo = todo or [(settings[0], 0)]
    plan(options, cohort, design, settings, todo, fit_options)
    if options.dry_run:
        return
    cohort.write_audit(options.out / "audit.csv")
    if external is not None:
        external.write_audit(options.out / "external-audit.csv")
    failed = run_all(
        todo, cohort, external, design, store, fit_options, n_jobs=options.n_jobs, say=_say
    )
    if any(store.row(setting, seed) for setting in settings for seed in range(options.seeds)):
        report(options, settings, cohort, external, design, store)
    if failed:
        raise SystemExit(
            f"{len(failed)} runs failed:\n" + "\n".join(map(": ".join, failed.items()))
        )


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
