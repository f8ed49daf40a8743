"""The result of a cross-validation as one HTML file."""

# SPDX-License-Identifier: BSD-3-Clause

import html
import io
import json
import platform
from importlib.metadata import version
from importlib.resources import files

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn import config_context

from .. import __version__
from ..model_selection._gene_table import gene_table
from ..plotting import PredictionDisplay, SignificanceDisplay
from ..plotting._style import GREY, OKABE_ITO
from ..utils._files import written_whole

_PACKAGES = ("scikit-learn", "numpy", "scipy", "pandas", "torch")
_COLUMNS = (
    "r: correlation of truth and held-out prediction within folds, averaged as Fisher's z; r_low "
    "and r_high: its 95 % interval{width}. r_pooled: correlation over all folds at once, as "
    "published; with few patients it is pushed below 0. p, fdr: of the test that decides, and "
    "corrected by Benjamini and Hochberg. fold_spread: standard deviation of r between folds. "
    "reason: the first condition that failed."
)


def write_page(result, path, *, title, audit, units, annotations, gene_sets):
    """Write the page of a result."""
    table = gene_table(result, annotations)
    sections = {
        "Folds": ("", _table(result.folds)),
        "Audit of matching": _describe_audit(audit),
        "Transformations": ("", _list(_transformations(result, units))),
        "Settings": ("", f"<pre>{html.escape(_settings(result))}</pre>"),
        "Versions": ("", f"<p>{html.escape(', '.join(_versions()))}</p>"),
    }
    if gene_sets is not None:
        note = "The test takes genes as independent; r_score is the held-out correlation of the "
        note += "mean of the genes of a set."
        own = result.gene_sets(gene_sets).head(200)
        sections = {"Gene sets": (note, _table(own))} | sections
    anchors = {name: name.split()[0].lower() for name in ("Figures", "Genes", *sections)}
    anchors["Gene sets"] = "sets"
    parts = {
        "TITLE": html.escape(title),
        "SUBTITLE": html.escape(_size(result)),
        "VERDICT": "".join(_paragraphs(result)),
        "NOTES": "".join(f'<p class="note">{html.escape(note)}</p>' for note in _notes(result)),
        "NAV": " ".join(
            f'<a href="#{anchors[name]}">{name}</a>' for name in ("Figures", "Genes", *sections)
        ),
        "FIGURES": "".join(_figures(result, units)),
        "COLUMNS": html.escape(
            _COLUMNS.format(
                width=", too narrow, because folds are taken as independent"
                if result.null is None
                else ""
            )
        ),
        "SECTIONS": "".join(
            f'<h2 id="{anchors[name]}">{name}</h2>'
            + (f'<p class="note">{html.escape(note)}</p>' if note else "")
            + content
            for name, (note, content) in sections.items()
        ),
        # "<" would end the script of which this is the content.
        "DATA": json.dumps(_rows(table), allow_nan=False).replace("<", "\\u003c"),
    }
    page = (files("sklearn_pk.io") / "data" / "report.html").read_text(encoding="utf-8")
    pieces = page.split("@@")  # text and names of parts in turn
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    with written_whole(path) as temporary:
        temporary.write_text("".join(pieces), encoding="utf-8")


def _size(result):
    patients = "" if result.groups is None else f" of {result.groups.nunique():,} patients"
    return (
        f"{len(result.report):,} genes, {len(result.y_true):,} samples{patients}, "
        f"{len(result.folds)} folds"
    )


def _paragraphs(result):
    """Yield the verdict in words."""
    n, total = result.n_significant, len(result.report)
    level = 100 * result.criteria.get("fdr", 0.05)
    genes = "1 gene" if total == 1 else f"{total:,} genes"
    if result.null is None:
        yield "<p><b>The number of predicted genes is not calibrated.</b></p>"
        yield (
            f"<p>{n:,} of {genes} are significant at a false discovery rate of {level:g} %, but "
            "the test takes folds as independent. They are not, so some of these genes are "
            "expected by chance. For a number to believe, repeat the cross-validation with "
            "null=&quot;permutation&quot;, or null=&quot;empirical&quot; for networks.</p>"
        )
    else:
        how = "an analytic null" if result.null.null == "analytic" else "permuted patients"
        found = (
            f"{n:,} of {genes} are significantly predicted."
            if n
            else f"None of {genes} is significantly predicted"
        )
        yield f"<p><b>{found}{'' if n else ', as far as these patients show.'}</b></p>"
        yield (
            f"<p>Calibrated by {how}, with {level:g} % of the genes of the list expected to be "
            "false.</p>"
        )
    if result.n_published is not None:
        text = f"By the published test, for comparison with papers: {result.n_published:,}"
        if result.null_counts is not None:
            most = np.percentile(result.null_counts, 95)
            text += (
                f" (with permuted patients, where nothing can be predicted: "
                f"{result.null_counts.mean():,.0f} on average, 95th percentile {most:,.0f})"
            )
        yield f"<p>{text}.</p>"
    yield (
        f"<p>Median correlation within folds: {result.median_r_fold:.3f}; pooled over folds, as "
        f"published: {result.median_r:.3f}.</p>"
    )


def _notes(result):
    r = result.report["r_baseline"]
    if r.any():
        yield (
            f"The untrained baseline has a median pooled r of {r.median():.2f}, and r < 0 for "
            f"{100 * (r < 0).mean():.0f} % of the genes. It knows nothing, so that a difference "
            "from 0 is an effect of pooling the folds."
        )
    yield (
        "All numbers are of held-out patients. Predicted expression is not a measurement. For "
        "research only, not a medical device."
    )


def _figures(result, units):
    """Yield the figures as SVG."""
    criteria, report = result.criteria, result.report
    levels = {name: criteria[name] for name in ("alpha", "fdr") if name in criteria}
    r, name = report["r_fold"], report["r_fold"].idxmax()
    if any(each is not None for each in result.target_transformers):
        units = "transformed"

    def sorted_curve(ax):
        SignificanceDisplay.from_report(report, ax=ax, n_labels=3, **levels)

    def histogram(ax):
        edges = np.linspace(-1, 1, 41 if len(r) < 2000 else 81)
        shown = {"within folds": (r, OKABE_ITO[0]), "pooled": (report["r"], OKABE_ITO[1])}
        if report["r_baseline"].any():
            shown["baseline, pooled"] = (report["r_baseline"], GREY)
        for label, (values, color) in shown.items():
            ax.hist(values, edges, histtype="step", color=color, label=label, linewidth=1.4)
        ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        lows, highs = zip(*((v.min(), v.max()) for v, _ in shown.values()), strict=True)
        ax.set(xlabel="r", ylabel="genes", xlim=(min(lows) - 0.05, max(highs) + 0.05))
        ax.set_title("Correlations within folds and pooled")
        ax.figure.legend(frameon=False, loc="outside lower center", ncols=3)

    def folds(ax):
        ax.bar(result.folds["fold"].astype(str), result.folds["median_r"], color=OKABE_ITO[0])
        ax.axhline(result.median_r_fold, color=OKABE_ITO[1], label="within folds, averaged")
        ax.axhline(result.median_r, color=GREY, linestyle="--", label="pooled")
        ax.set(xlabel="fold", ylabel="median r", title="Folds")
        ax.figure.legend(frameon=False, loc="outside lower center", ncols=2)

    def best(ax):
        by_patient = result.groups is not None and criteria.get("compat") is None
        PredictionDisplay.from_predictions(
            result.y_true[name],
            result.predictions[name],
            gene=str(name),
            units=units,
            groups=result.groups if by_patient else None,
            ax=ax,
        )

    captions = {
        sorted_curve: "Genes by correlation.",
        histogram: "Pooled over folds, correlations of genes that are not predicted are below 0.",
        folds: "Median correlation in each fold.",
        best: "The gene with the highest r, chosen among all, so this pooled r is optimistic.",
    }
    for number, (draw, caption) in enumerate(captions.items()):
        svg = _draw_svg(draw, f"figure{number}")
        yield f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _draw_svg(draw, salt):
    # The salt makes identifiers different between figures, and equal between runs.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10}):
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _rows(table):
    text = [not pd.api.types.is_numeric_dtype(each) for each in table.dtypes]
    return {
        "columns": list(map(str, table.columns)),
        "text": text,
        "significant": table.columns.get_loc("significant"),
        "rows": [[_plain(value) for value in row] for row in table.itertuples(index=False)],
    }


def _plain(value):
    """Return a value for JSON, with four digits."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    if isinstance(value, int | np.integer):
        return int(value)
    return "" if pd.isna(value) else str(value)


def _table(frame):
    """Return a table as HTML, escaped."""
    text = frame.to_html(index=False, border=0, na_rep="", float_format="{:.3g}".format)
    return f'<div class="scroll">{text}</div>'


def _list(lines):
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _describe_audit(audit):
    if audit is None:
        return "", "<p>Not given: pass what match_samples returns as audit=.</p>"
    table = getattr(audit, "audit", audit)
    if not isinstance(table, pd.DataFrame) or not {"row", "how"} <= set(table):
        raise TypeError(
            "audit must be what match_samples returns, or its audit, got an instance of "
            f"{type(audit).__name__}."
        )
    matched = table["row"].notna()
    counts = table.groupby([matched.map({True: "matched", False: "left out"}), "how"]).size()
    counts = counts.rename_axis(["", "how"]).rename("samples").reset_index()
    unused = list(getattr(audit, "unused_rows", []))
    note = f"{matched.sum():,} of {len(table):,} samples have expression"
    note += f"; {len(unused):,} rows of expression have no sample." if unused else "."
    left = table[~matched][["how"]].rename_axis("sample").reset_index()
    return note, _table(counts) + (f"<p>Left out:</p>{_table(left)}" if len(left) else "")


def _transformations(result, units):
    transformer = next((each for each in result.target_transformers if each is not None), None)
    yield f"Scale of the table: {units or 'not stated'}."
    if transformer is None:
        yield "Expression was not transformed: all numbers are on the scale of the table."
    else:
        with config_context(print_changed_only=True):
            yield (
                f"Expression was transformed by {transformer!r}, fitted on the training patients "
                "of each fold. Correlations and errors are on that scale; final_model() predicts "
                "on the scale of the table."
            )
    by_patient = result.groups is not None and result.criteria.get("compat") is None
    if by_patient and result.groups.duplicated().any():
        yield "The slides of a patient were averaged to one row before the tests."
    else:
        yield "Each sample is one row of the tests."


def _settings(result):
    lines = [f"{name} = {value!r}" for name, value in result.criteria.items()]
    recipe = getattr(result, "_recipe", None)
    if recipe is not None:
        with config_context(print_changed_only=True):
            lines += ["", repr(recipe[0])]
    return "\n".join(lines)


def _versions():
    yield f"sklearn_pk {__version__}"
    for name in _PACKAGES:
        yield f"{name} {version(name)}"
    yield f"Python {platform.python_version()}"
