"""The command ``sklearn-pk``, also ``python -m sklearn_pk``: slides, features, results, maps."""

# SPDX-License-Identifier: BSD-3-Clause

import argparse
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd

_SLIDES = ".bif .czi .dcm .isyntax .mrxs .ndpi .scn .svs .svslide .tif .tiff .vms .vmu .zvi"


def main(arguments=None):
    """Run the command and return its exit code: 0, 1 after errors, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.function(options)
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _show_warning(message, *_, **__):
    print(f"warning: {message}", file=sys.stderr)


def _parser():
    parser = argparse.ArgumentParser(
        prog="sklearn-pk",
        description="Predict gene expression from whole slide images.",
        epilog="'sklearn-pk COMMAND --help' shows the options of a command and an example.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name, function, text, example):
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: sklearn-pk {name} {example}",
        )
        command.set_defaults(function=function)
        return command.add_argument

    add_option = add(
        "check", _check, "report which slides can be tiled, and why others cannot", "slides/"
    )
    _add_slides(add_option)
    add_option("--out", type=Path, metavar="CSV", help="write the report to this file, too")

    add_option = add(
        "encode",
        _encode,
        "tile slides and encode the tiles; stored features are not computed again",
        "slides/ --store features --encoder uni --weights uni/pytorch_model.bin",
    )
    _add_slides(add_option)
    add_option("--store", type=Path, required=True, metavar="DIR", help="folder for the features")
    _add_encoder(add_option)
    add_option("--batch-size", type=int, default=32, help="tiles per batch (default: 32)")
    add_option(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="only the I-th of N parts of the slides, for an array of jobs",
    )
    add_option("--dry-run", action="store_true", help="list the slides, and do nothing")

    add_option = add(
        "run",
        _run,
        "cross-validate on features and expression; write a report, gene lists and a model",
        "--features features --expression tpm.csv --log2 --out results",
    )
    add_option("--features", type=Path, required=True, help="folder of feature files, or a table")
    add_option("--expression", type=Path, required=True, help="table or folder of expression")
    add_option("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_option(
        "--genes-in",
        choices=["rows", "columns"],
        help="where the genes are, if the table does not say (default: seen from their names)",
    )
    add_option("--log2", action="store_true", help="transform expression to log2(x + 1)")
    add_option(
        "--others",
        type=Path,
        metavar="TABLE",
        help="expression of patients without slides, in the same unit, for the prior",
    )
    add_option(
        "--links",
        type=Path,
        metavar="TABLE",
        help="table that says which sample or patient a slide is of, as GDC's sample sheet does",
    )
    add_option("--prior", choices=["eigengenes", "none"], default="eigengenes")
    add_option("--gene-sets", type=Path, metavar="GMT", help="gene sets to test in the report")
    add_option(
        "--kernel",
        choices=["linear", "rbf"],
        default="linear",
        help="of the regression; rbf often finds more genes, but its model, which would hold data "
        "of the patients, is not saved (default: linear)",
    )
    add_option("--folds", type=int, default=5, help="number of folds over patients (default: 5)")
    add_option("--seed", type=int, default=0, help="seed of the permutations (default: 0)")
    add_option("--n-jobs", type=int, help="number of folds at a time")
    add_option("--dry-run", action="store_true", help="match the samples, and stop")

    add_option = add(
        "map",
        _map,
        "predict the tiles of a slide with a saved model, and write a map",
        "results/model.skops slide.svs --features features --genes ESR1 --out map.html",
    )
    add_option("model", type=Path, help="file that 'run' or save_model has written")
    add_option("slide", type=Path, help="the slide")
    add_option("--features", type=Path, help="its features, or their folder, instead of encoding")
    _add_encoder(add_option)
    add_option("--genes", nargs="+", help="genes of the map (default: all)")
    add_option(
        "--out",
        type=Path,
        required=True,
        help="file to write: .html, .geojson, .h5ad, .csv or .parquet",
    )
    return parser


def _add_slides(add_option):
    add_option(
        "slides",
        nargs="+",
        type=Path,
        help="slides, folders with slides, or a csv with the column 'slide' and, as needed, "
        "'mpp' (um/px) and 'tissue'",
    )
    add_option("--n-jobs", type=int, help="number of slides at a time")
    _add_tiles(add_option)


def _add_tiles(add_option):
    add_option("--tile-size", type=int, default=256, help="pixels of a tile (default: 256)")
    add_option("--mpp", type=float, default=0.5, help="um/px of a tile (default: 0.5)")
    add_option("--max-tiles", type=int, default=4000, help="per slide (default: 4000)")
    add_option("--tissue", default="otsu", help="how tissue is found (default: otsu)")


def _add_encoder(add_option):
    add_option("--encoder", help="name of the encoder (default: efficientnet-lite0)")
    add_option("--weights", type=Path, help="its weights, if they are not in the cache")
    add_option("--device", default="auto", help="torch device (default: auto)")


def _shard(text):
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(
            f"expected I/N with 1 <= I <= N, such as 3/10, got {text!r}"
        )
    return int(number), int(count)


def _find_slides(paths):
    """Return a table of slides: those given, and those in the folders and tables given."""
    tables = []
    for path in paths:
        if path.suffix.lower() == ".csv":
            table = pd.read_csv(path)
            if "slide" not in table:
                raise ValueError(f"{path}: expected the column 'slide', got {list(table)}.")
            tables.append(table)
            continue
        found = [path]
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            files = [each for each in files if each.suffix.lower() in _SLIDES.split()]
            found = _one_file_per_slide(files)
            if not found:
                raise ValueError(f"{path}: found no slides, which are files ending with {_SLIDES}.")
        tables.append(pd.DataFrame({"slide": [str(each) for each in found]}))
    return pd.concat(tables, ignore_index=True)


def _one_file_per_slide(files):
    """Leave out the other files of a DICOM series."""
    from .slides._wsi._slide_files import slide_files

    found, others = [], set()
    for file in files:
        if str(file) in others:
            continue
        found.append(file)
        if file.suffix.lower() == ".dcm":
            with suppress(OSError, ValueError):  # the slide is named when it is opened
                others |= set(slide_files(file))
    return found


def _tiler(options, **parameters):
    from .slides import SlideTiler

    return SlideTiler(
        tile_size=options.tile_size,
        mpp=options.mpp,
        max_tiles=options.max_tiles,
        tissue=options.tissue,
        random_state=0,
        **parameters,
    )


def _check(options):
    from .slides import check_slides

    report = check_slides(
        _find_slides(options.slides), tiler=_tiler(options), n_jobs=options.n_jobs, verbose=1
    )
    shown = report[
        ["slide", "ok", "vendor", "mpp", "width", "height", "tissue_mm2", "ink_mm2", "n_tiles"]
    ]
    print(shown.to_string(index=False))
    for reason in report.reason[~report.ok]:
        print(f"- {reason}")
    print(f"{report.ok.sum()} of {len(report)} slides can be tiled.")
    if options.out is not None:
        report.to_csv(options.out, index=False)
    return int(not report.ok.all())


def _encode(options):
    slides = _find_slides(options.slides)
    number, count = options.shard
    shard = slides.iloc[number - 1 :: count]
    print(f"{len(shard)} of {len(slides)} slides, part {number} of {count}.")
    if options.dry_run:
        print(*shard.slide, sep="\n")
        return 0
    if shard.empty:
        return 0
    from .slides import FoundationFeaturizer

    tiler = _tiler(options, errors="empty", n_jobs=options.n_jobs, verbose=1)
    featurizer = FoundationFeaturizer(
        options.encoder or "efficientnet-lite0",
        weights=options.weights,
        store=options.store,
        device=options.device,
        batch_size=options.batch_size,
        errors="empty",
        verbose=1,
    )
    featurizer.fit_transform(tiler.fit_transform(shard))
    failures = featurizer.failures_
    for slide, reason in failures.itertuples(index=False):
        print(f"- {slide}: {reason}")
    print(f"{len(shard) - len(failures)} of {len(shard)} slides have features in {options.store}.")
    return int(len(failures) > 0)


def _run(options):
    from sklearn.pipeline import make_pipeline

    from .io import match_samples, read_expression, read_table, save_model
    from .model_selection import cross_val_significance
    from .prior import EigengeneEmbedder
    from .regression import PriorKnowledgeRidge
    from .slides import BagPooler, read_features

    reading = {"transform": "log2p1" if options.log2 else None, "verbose": 1}
    reading["genes_in"] = options.genes_in
    table = read_expression(options.expression, **reading)
    is_table = options.features.is_file() and options.features.suffix not in (".h5", ".pt")
    features = (read_table if is_table else read_features)(options.features)
    matched = match_samples(
        features, table.expression, patients=table.patients, links=options.links
    )
    print(matched)
    print(f"{matched.expression.shape[1]:,} genes.")
    options.out.mkdir(parents=True, exist_ok=True)
    matched.audit.to_csv(options.out / "matching.csv")
    if options.dry_run:
        return 0
    # A prior with other expression is fitted anew with each permutation, so there are few.
    prior, null = None if options.prior == "none" else "eigengenes", "permutation"
    if options.others is not None:
        others = read_expression(options.others, **reading).expression
        prior, null = EigengeneEmbedder(expression=others), "empirical"
    # Linear on means: a model without data of the patients, which predicts tiles, too.
    ridge = PriorKnowledgeRidge(prior=prior, kernel=options.kernel)
    model = ridge if is_table else make_pipeline(BagPooler(statistics=("mean",)), ridge)
    data = matched.X, matched.expression
    result = cross_val_significance(
        model,
        *data,
        groups=matched.patients,
        cv=options.folds,
        null=null,
        random_state=options.seed,
        n_jobs=options.n_jobs,
        verbose=1,
    )
    print(f"Significant genes: {result.verdict}. Median r {result.median_r:.3f}.")
    units = "log2(x + 1)" if options.log2 else None
    result.to_csv(options.out / "report.csv")
    result.significant_genes().to_csv(options.out / "significant_genes.csv", index=False)
    result.to_html(
        options.out / "report.html", audit=matched, units=units, gene_sets=options.gene_sets
    )
    if options.kernel == "linear":
        save_model(
            result.final_model(),
            options.out / "model.skops",
            features=None if is_table else matched.X,
            report=result,
            units=units,
        )
    print(
        f"Wrote {', '.join(sorted(path.name for path in options.out.iterdir()))} in {options.out}."
    )
    return 0


def _map(options):
    from .io import export_map, load_model

    loaded = load_model(options.model)
    [tiled], bag = _features_of(options, loaded.info.get("origin") or {})
    [tiles] = loaded.predict_tiles([bag], genes=options.genes)
    export_map(tiled, tiles, options.out, report=loaded.report, units=loaded.info.get("units"))
    print(f"Wrote {options.out}: {tiles.shape[0]:,} tiles, {tiles.shape[1]:,} genes.")
    return 0


def _features_of(options, origin):
    """Return the slide and its bag, which is read, or encoded as the model states it."""
    from .slides import FoundationFeaturizer, SlideTiler, read_features

    if options.features is None:
        mpp = origin.get("mpp") or 0.5
        tile_size = round(origin.get("tile_edge_um", 256 * mpp) / mpp)
        tiler = SlideTiler(tile_size=tile_size, mpp=mpp, random_state=0, verbose=1)
        featurizer = FoundationFeaturizer(
            options.encoder or origin.get("encoder") or "efficientnet-lite0",
            weights=options.weights,
            device=options.device,
            verbose=1,
        )
        tiled = tiler.fit_transform([str(options.slide)])
        [bag] = featurizer.fit_transform(tiled)
        return tiled, bag
    found = read_features(options.features)
    bags = found if options.features.is_dir() else [found]
    bags = [bag for bag in bags if Path(bag.name).stem == options.slide.stem]
    if len(bags) != 1:
        raise ValueError(
            f"{options.features}: expected the features of one slide named {options.slide.stem!r}, "
            f"found {len(bags)}."
        )
    # A table needs no slide, and a viewer says that there is none.
    return [str(options.slide) if options.slide.exists() else bags[0]], bags[0]


if __name__ == "__main__":
    sys.exit(main())
