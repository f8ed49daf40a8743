"""Tables of expression in the layouts in which they are downloaded."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pyarrow import ArrowException, BufferReader, csv
from sklearn.utils import Bunch
from sklearn.utils._param_validation import StrOptions, validate_params

from ..prior._gene_sets import load_aliases, load_edges, strip_version
from ..utils import check_expression
from ..utils._annotation import (
    CLINICAL,
    ENTREZ_COLUMNS,
    GENE_COLUMNS,
    ID_COLUMNS,
    PATIENT_COLUMNS,
    SAMPLE_COLUMNS,
    SYMBOL_COLUMNS,
    column_key,
)
from ..utils._reporting import progress, warn_user
from ..utils._validation import name_some
from ._tables import (
    RawTable,
    check_frame,
    check_numbers,
    is_hdf5,
    open_text,
    read_h5ad,
    read_raw,
    to_numbers,
)

ENSEMBL = re.compile(r"ENS[A-Z]{0,4}[GT]\d{11}(\.\d+)?(_PAR_Y)?")
PAIR = re.compile(r"(.*)\|(\d+)|(\S+) \((\d+)\)")  # SYMBOL|ENTREZ, and SYMBOL (ENTREZ) of DepMap
# Symbols are in capitals; C1orf112 and its like are the exception.
SYMBOL = re.compile(r"[A-Z][A-Z0-9@_./-]*(orf[A-Z0-9]+(-[A-Z0-9]+)?)?")
CPTAC = re.compile(r"X?C3[LN][-._]\d{5}([-._ ].*)?|X?\d{2}[A-Z]{2}\d{3}([-._ ].*)?|CPT\d{6,}.*")
SAMPLE = re.compile(
    r"(TCGA[-._][A-Z0-9]{2}|TARGET[-._]\d{2}|HCM[-._]\w{4})[-._][A-Z0-9]{4,6}([-._].*)?"  # GDC
    rf"|{CPTAC.pattern}"
    r"|GTEX[-._][A-Z0-9]+([-._].*)?|K-562-SM-.*|ACH-\d{6}|MMRF[-_]\d{4}.*|(MB|MTS)-T?\d{4}.*"
    r"|(GSM|SAM[NED][AG]?|[SED]R[RSX])\d+([-._].*)?|(SP|SA|DO)\d{4,}|P-\d{7}.*"
    r"|X?[0-9a-f]{8}([-._][0-9a-f]{4}){3}[-._][0-9a-f]{12}",
    re.IGNORECASE,
)
MONTH = "jan|feb|m[aä]r|mrz|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz]"
DATE = re.compile(
    rf"\d{{1,2}}[-./ ]\s?({MONTH})|({MONTH})[-./ ]\d{{1,2}}|\d{{4}}-\d\d-\d\d( 00:00:00)?"
    r"|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d\.\d+E\+\d\d",  # 2310009E13 is a gene of mice
    re.IGNORECASE,
)
# Rows of counters, and the columns of the files of STAR.
NOT_GENES = re.compile(r"N_(unmapped|multimapping|noFeature|ambiguous)|__\w+|(?i:total|sum)")
STAR_COLUMNS = [
    *("unstranded", "stranded_first", "stranded_second"),
    *("tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded"),
]


# Columns of files that hold several values of one sample.
MEASURES = {
    *(name.lower() for name in STAR_COLUMNS),
    *("tpm", "fpkm", "fpkm_uq", "rpkm", "expected_count", "isopct", "numreads", "est_counts"),
    *("count", "counts", "raw_count", "raw_counts", "effectivelength", "eff_length", "cpm"),
}


class Layout(NamedTuple):
    """A way in which files are laid out: how it is recognised, and brought into one header."""

    name: str
    recognises: Callable  # of a RawTable
    tidy: Callable = lambda table, column: table
    columns: bool = False  # whether a sample has several values, of which column= chooses


def _starts(*names):
    return lambda table: column_key(table.header[0]) in names


def _symbols_first(table, column):
    """Bring symbols to the front: Entrez identifiers are annotation."""
    keys = [column_key(name) for name in table.header]
    if "hugo_symbol" not in keys[1:]:
        return table
    at = keys.index("hugo_symbol")
    order = [at, *(other for other in range(len(keys)) if other != at)]
    frame = table.frame[order].set_axis(range(len(order)), axis=1)
    return table._replace(header=[table.header[other] for other in order], frame=frame)


def _firehose(table, column):
    """Take one column per sample, and leave out the second line of the header."""
    header, frame = table.header, table.frame
    kinds = [str(kind) for kind in frame.iloc[0]]
    found = list(dict.fromkeys(kinds[1:]))
    wanted = column or ("normalized_count" if "normalized_count" in found else found[0])
    if wanted not in found:
        raise ValueError(f"column={column!r} is not one of {found}.")
    kept = [0, *(at for at, kind in enumerate(kinds) if at and kind == wanted)]
    values = to_numbers(table._replace(frame=frame.iloc[1:]), kept[1:])
    values = values[kept].set_axis(range(len(kept)), axis=1).reset_index(drop=True)
    left_out = [f"columns of {kind!r} left out" for kind in found if kind != wanted]
    return RawTable([header[at] for at in kept], values, table.comments + left_out, table.kind)


def _gct(table, column):
    """Leave out the lines below the header that annotate samples, of version 1.3."""
    sizes = [int(number) for number in re.findall(r"\d+", table.comments[1])]
    n_notes, n_lines = sizes[2:4] if len(sizes) == 4 else (0, 0)
    table = table._replace(frame=table.frame.iloc[n_lines:].reset_index(drop=True))
    if len(table.frame) != sizes[0]:
        raise ValueError(
            f"expected {sizes[0]} genes, as stated in line 2, found {len(table.frame)}. The file "
            "is incomplete: download it again."
        )
    if not n_lines:
        return table
    return table._replace(frame=to_numbers(table, range(1 + n_notes, table.frame.shape[1])))


def _sequoia(table, column):
    """Take the columns of genes, which have a prefix, and leave other columns out."""
    kept = [
        at
        for at, name in enumerate(table.header)
        if name.startswith("rna_") or name in ("wsi_file_name", "patient_id")
    ]
    kept.sort(key=lambda at: table.header[at] != "wsi_file_name")
    header = [table.header[at].removeprefix("rna_") for at in kept]
    return RawTable(header, table.frame[kept].set_axis(range(len(kept)), axis=1), [], table.kind)


# The first layout that recognises a table is taken; the last recognises all.
LAYOUTS = (
    Layout("SEQUOIA", lambda table: any(n.startswith("rna_") for n in table.header), _sequoia),
    Layout("Firehose", _starts("hybridization_ref"), _firehose, columns=True),
    Layout("GCT", lambda table: table.comments[:1] in (["#1.2"], ["#1.3"]), _gct),
    Layout("cBioPortal", _starts("hugo_symbol", "entrez_gene_id"), _symbols_first),
    Layout("LinkedOmics", _starts("attrib_name")),
    Layout("recount3", lambda table: "##" in "".join(table.comments)[:2]),
    Layout("DepMap", lambda t: sum(bool(PAIR.fullmatch(n)) for n in t.header) > len(t.header) / 2),
    Layout("PanCanAtlas", lambda t: bool(PAIR.fullmatch(str(t.frame.iloc[0, 0])))),
    Layout(
        "Xena", lambda t: _starts("ensembl_id", "sample")(t) and _fraction(SAMPLE, t.header) > 0.5
    ),
    Layout(
        "CPTAC", lambda t: max(_fraction(CPTAC, n) for n in (t.header, t.frame[0].tolist())) > 0.5
    ),
    Layout("R", lambda table: any(re.match(r"(X?TCGA|X\d).*\.", n) for n in table.header)),
    Layout("table", lambda table: True),
)


class Audit(list):
    """What was left out, merged or changed while reading: one row each."""

    def add(self, what, names):
        """Add a row, unless there are no names."""
        names = list(map(str, names))
        if names:
            self.append({"what": what, "n": len(names), "names": name_some(names)})

    def frame(self):
        """Return the rows as a DataFrame."""
        return pd.DataFrame(list(self), columns=["what", "n", "names"])


def _fraction(pattern, names):
    names = list(names[:: max(1, len(names) // 2000)])
    return sum(bool(pattern.fullmatch(str(name))) for name in names) / max(1, len(names))


def _is_gene(names):
    """Return the fraction of names that are surely genes."""
    return _fraction(ENSEMBL, names) + _fraction(PAIR, names)


@cache
def _cgn_genes():
    return frozenset(load_edges("cgn", edges="star", threshold=0, absolute=False).to_numpy().flat)


def _known_symbols(names):
    """Return the fraction of names that are genes of the shipped gene sets, also of mice."""
    some = [str(name) for name in names[:: max(1, len(names) // 2000)]]
    # F2 and P4 may also be a feature and a patient.
    numbered = re.compile(r"[A-Za-z]{1,2}\d+|[a-z].*")
    return np.mean([n.upper() in _cgn_genes() and not numbered.fullmatch(n) for n in some])


def _sure_orientation(rows, columns):
    """Return the axis of the genes if identifiers show it, by majority; otherwise None."""
    in_columns = _is_gene(columns) + _fraction(SAMPLE, rows)
    in_rows = _is_gene(rows) + _fraction(SAMPLE, columns)
    if max(in_columns, in_rows) > 0.5 and abs(in_columns - in_rows) > 0.2:
        return "columns" if in_columns > in_rows else "rows"
    return None


def _is_symbol(names):
    """Return the fraction of names that look like symbols, and not like numbered samples."""
    return _fraction(SYMBOL, names) - _fraction(re.compile(r"[A-Z]+[_-]?\d+|[A-Z]"), names)


def _vote(rows, columns, label):
    """Return the axes of the genes that names, sizes and the label of the rows speak for."""
    votes = set()
    known = [_known_symbols(names) for names in (rows, columns)]
    # Of 60,000 genes, most are in no gene set.
    if max(known) > 0.03 and min(known) < 0.2 * max(known):
        votes.add("rows" if known[0] > known[1] else "columns")
    elif abs(_is_symbol(rows) - _is_symbol(columns)) > 0.5:
        votes.add("rows" if _is_symbol(rows) > _is_symbol(columns) else "columns")
    if column_key(label) in GENE_COLUMNS - {"name", "id"}:
        votes.add("rows")
    elif column_key(label) in SAMPLE_COLUMNS and (
        # Xena also writes "sample" above genes.
        column_key(label) not in ("sample", "samples") or _fraction(SYMBOL, columns) > 0.5
    ):
        votes.add("columns")
    # Ten thousand of anything are genes, if there are few of the other.
    sizes = len(rows), len(columns)
    if not votes and max(sizes) >= 10_000 and min(sizes) <= 2000:
        votes.add("rows" if sizes[0] > sizes[1] else "columns")
    return votes


def find_orientation(rows, columns, label, path, *, default=None):
    """Return whether genes are in "rows" or "columns", by what both axes look like."""
    sure = _sure_orientation(rows, columns)
    votes = {sure} if sure else _vote(rows, columns, label)
    if len(votes) == 1:
        return votes.pop()
    if default is not None:
        return default
    raise ValueError(
        f"{str(path)!r}: it cannot be decided whether genes are in rows (such as "
        f"{name_some(rows[:3])}) or in columns (such as {name_some(columns[:3])}). Pass "
        "genes_in='rows' or genes_in='columns'."
    )


def _check_orientation(genes_in, rows, columns, path):
    """Raise if genes are surely in the other axis than in the given one."""
    if _sure_orientation(rows, columns) not in (None, genes_in):
        other = "rows" if genes_in == "columns" else "columns"
        raise ValueError(
            f"{str(path)!r}: genes_in={genes_in!r}, but genes seem to be in {other}: rows are such "
            f"as {rows[0]!r}, columns such as {columns[0]!r}. Use genes_in={other!r}."
        )


# Labels of row numbers, which name nothing.
NUMBERS = {"", "unnamed:_0", "index", "id", "row", "row_id", "rownames", "row_names", "no", "nr"}


def _find_names(table, path):
    """Return the column that names the rows: the first, unless it holds numbers."""
    frame, keys = table.frame, [column_key(name) for name in table.header]
    texts = table.texts()
    samples = [
        at for at in texts if _fraction(SAMPLE, frame[at].tolist()) > 0.9 and frame[at].is_unique
    ]
    named = {*SAMPLE_COLUMNS, *ID_COLUMNS, *SYMBOL_COLUMNS, *ENTREZ_COLUMNS, *NUMBERS}
    genes = [
        at
        for at in texts
        if _is_gene(frame[at].tolist()) > 0.5
        or (
            keys[at] in {*ID_COLUMNS, *SYMBOL_COLUMNS, ""}
            and _holds(frame[at].map(_text), "symbol")
        )
    ]
    head = table._replace(frame=frame.head(1000))
    if head.first_numbers().isna().any() or table.first_numbers().isna().any():
        if (
            keys[0] in GENE_COLUMNS - (named - {"description"}) and genes
        ):  # its type or place, in front of the gene
            return genes[0]
        is_known = keys[0] in SAMPLE_COLUMNS - {"sequencingid"} | GENE_COLUMNS
        better = samples if not is_known and _fraction(SAMPLE, frame[0].tolist()) < 0.5 else []
        # Rows of genes have no column of barcodes.
        return better[0] if better and _is_gene(frame[0].tolist()) < 0.5 else 0
    is_whole = frame[0].map(str).str.isdigit().all()
    is_name = keys[0] in named and not (keys[0] in ENTREZ_COLUMNS and genes)
    if is_whole and is_name and frame[0].is_unique and not _counts(frame[0]):
        return 0
    for candidates in (samples, genes, [at for at in texts if keys[at] in SAMPLE_COLUMNS]):
        if candidates:
            return candidates[0]
    # Behind the numbers of rows, names may be numbers, too.
    if keys[0] in NUMBERS and _counts(frame[0]) and keys[1:2] and keys[1] in named:
        return 1
    if is_whole and keys[0] in named:
        return 0
    raise ValueError(
        f"{str(path)!r}: its rows have no names. They are expected in the index or in the first "
        f"column, but {table.header[0]!r} holds numbers, such as {str(frame[0].iloc[0])!r}."
    )


def _drop_unnamed(table, first, path):
    """Leave out columns without a name and without values, and numbers of rows."""
    kept = []
    for at, name in enumerate(table.header):
        if at == first or column_key(name) not in NUMBERS:
            kept.append(at)
            continue
        column = table.frame[at]
        is_row_number = _counts(column)
        if name and not is_row_number:
            kept.append(at)
        elif not (is_row_number or column.isna().all() or column.eq("").all()):
            raise ValueError(
                f"{str(path)!r}: column {at + 1} has no name, but values such as "
                f"{str(column.iloc[0])!r}. Name it in the header, or remove it."
            )
    if not first and len(kept) == len(table.header):
        return table
    kept.sort(key=lambda at: at != first)
    if first and 0 in kept and table.kind == "text":  # the first column is read as text
        numbers = table.first_numbers()
        if not numbers.isna().any():
            table.frame[0] = numbers
    header = [table.header[at] for at in kept]
    return table._replace(header=header, frame=table.frame[kept].set_axis(range(len(kept)), axis=1))


def _choose_axis(table, genes_in, path):
    """Return the axis of the genes: as given, unless names contradict, or as they show."""
    header, frame = table.header, table.frame
    names = frame[0].map(str).tolist()
    texts = set(table.texts())
    others = [header[at] for at in range(1, len(header)) if at not in texts]
    if not others:
        shown = frame.iloc[0, 1] if frame.shape[1] > 1 else frame.iloc[0, 0]
        raise ValueError(
            f"{str(path)!r}: expected numbers, found {len(header)} columns of text: "
            f"{name_some(header)}. The first value is {shown!r}. Only one line of names is "
            "expected above the values."
        )
    if genes_in is None:
        return find_orientation(names, others, header[0], path)
    _check_orientation(genes_in, names, others, path)
    return genes_in


def _notes_of_genes(table, path):
    """Return the columns that annotate genes, where other columns are samples."""
    header = table.header
    texts = set(table.texts())
    known = {
        at
        for at, name in enumerate(header)
        if at and column_key(name) in GENE_COLUMNS and not SAMPLE.fullmatch(name)
    }
    check_numbers(table, texts - known, path)
    lost = [header[at] for at in sorted(texts) if SAMPLE.fullmatch(header[at])]
    if lost:
        shown = table.frame[header.index(lost[0])].iloc[0]
        raise TypeError(
            f"{str(path)!r} must hold numbers only, but {len(lost)} samples hold text: "
            f"{name_some(lost)}, such as {shown!r}. Correct them, or drop these columns."
        )
    rest = [at for at in range(1, len(header)) if at not in texts | known]
    return texts | known | _odd_columns(table, rest, path)


def _odd_columns(table, columns, path):
    """Return columns that are no samples, by their names and values, and warn of them."""
    names = [table.header[at] for at in columns]
    alike = np.array([bool(SAMPLE.fullmatch(name)) for name in names], dtype=bool)
    if alike.mean() <= 0.7:  # samples of a hospital, which are numbered
        alike = np.array([any(map(str.isdigit, name)) for name in names], dtype=bool)
    if alike.all() or alike.mean() <= 0.7:
        return set()
    values = table.frame[columns].to_numpy(dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns of nothing but NaN
        medians, lowest, highest = (
            each(values, axis=0) for each in (np.nanmedian, np.nanmin, np.nanmax)
        )
        low, high = np.nanpercentile(values[:, alike], [5, 95])
    whole = np.array([(column == np.rint(column)).all() for column in values.T])
    bottom, top = lowest[alike].min(), highest[alike].max()
    within = (low <= medians) & (medians <= high) & (whole == whole[alike].all())
    within &= (lowest >= bottom - (top - bottom) / 2) & (highest <= top + (top - bottom) / 2)
    odd = ~alike & ~within
    for chosen, what in ((odd, "annotation of genes"), (~alike & ~odd, "samples")):
        if chosen.any():
            shown = name_some(np.array(names, dtype=object)[chosen])
            warn_user(
                f"{str(path)!r}: {chosen.sum()} columns are not named like the other samples: "
                f"{shown}. By their values, they are taken for {what}. Drop or rename them."
            )
    return {at for at, is_odd in zip(columns, odd, strict=True) if is_odd}


def _notes_of_samples(table, path):
    """Return the columns that annotate samples, where other columns are genes."""
    header = table.header
    texts = set(table.texts())
    known = {
        at for at, name in enumerate(header) if at and column_key(name) in SAMPLE_COLUMNS | CLINICAL
    }
    check_numbers(table, texts - known, path)
    rest = [at for at in range(1, len(header)) if at not in texts | known]
    genes = [header[at] for at in rest]
    kinds = ENSEMBL, PAIR, re.compile(r"\d+")
    sure = [pattern for pattern in kinds if _fraction(pattern, genes) > 0.7]
    if sure:
        odd = {at for at in rest if not sure[0].fullmatch(header[at])}
    else:
        is_symbol = _fraction(SYMBOL, genes) > 0.7
        odd = {at for at in rest if is_symbol and not _may_be_gene(header[at])}
    if odd:
        warn_user(
            f"{str(path)!r}: {len(odd)} columns are not named like the other genes: "
            f"{name_some(header[at] for at in sorted(odd))}. They are taken for annotation of "
            "samples, and returned in `samples`. Drop or rename them."
        )
    return texts | known | odd


def _split_axes(table, layout, genes_in, path, audit):
    """Return values as genes x samples with names, and annotations of genes and samples."""
    if layout == "SEQUOIA":
        if genes_in == "rows":
            raise ValueError(
                f"{str(path)!r} has columns rna_GENE, so its rows are samples. Use "
                "genes_in='columns'."
            )
        genes_in = "columns"
    table = _drop_unnamed(table, _find_names(table, path), path)
    genes_in = _choose_axis(table, genes_in, path)
    header, frame = table.header, table.frame
    annotate = _notes_of_genes if genes_in == "rows" else _notes_of_samples
    noted = sorted(annotate(table, path))
    kept = [at for at in range(1, len(header)) if at not in noted]
    if not kept:
        raise ValueError(
            f"{str(path)!r}: none of its columns {name_some(header)} is a "
            f"{'sample' if genes_in == 'rows' else 'gene'}."
        )
    audit.add("columns that are annotation", [header[at] for at in noted])
    if genes_in == "rows" and len(kept) > 1 and {column_key(header[at]) for at in kept} <= MEASURES:
        raise ValueError(
            f"{str(path)!r}: expected several samples, found one, with the columns "
            f"{name_some(header[at] for at in kept)}. Pass the folder of a download from GDC, or "
            "join the files of the samples first."
        )
    values = frame[kept].to_numpy(dtype=np.result_type(*set(frame.dtypes[kept]), np.float32))
    notes = frame[noted].set_axis([header[at] for at in noted], axis=1)
    names, others = frame[0].map(str).to_numpy(dtype=object), [header[at] for at in kept]
    if genes_in == "columns":
        _check_named(others, path)
        notes_of_genes = pd.DataFrame(index=range(len(others)))
        return values.T, np.array(others, dtype=object), names, notes_of_genes, notes, genes_in
    _check_named(names.tolist(), path)
    notes = pd.concat([frame[[0]].set_axis([header[0]], axis=1), notes], axis=1)
    is_clinical = np.zeros(len(names), dtype=bool)
    if _is_gene(names) < 1:
        is_clinical[:] = [column_key(name) in CLINICAL for name in names]
    audit.add("rows that annotate samples", names[is_clinical])
    sheet = pd.DataFrame(values[is_clinical].T, columns=names[is_clinical])
    notes = notes[~is_clinical].reset_index(drop=True)
    return values[~is_clinical], names[~is_clinical], others, notes, sheet, genes_in


def _check_named(genes, path):
    """Raise if genes are numbered instead of named."""
    if len(genes) > 2 and _counts(pd.Series(genes)):
        raise ValueError(
            f"{str(path)!r}: its genes have no names, only numbers: {name_some(genes)}. Save the "
            "table with the names of the genes."
        )


def _counts(column):
    """Return whether a column is 0, 1, 2, ... or 1, 2, 3, ..."""
    if str(column.iloc[0]) not in ("0", "1", "0.0", "1.0"):
        return False
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    return len(values) > 0 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _may_be_gene(name):
    return any(pattern.fullmatch(name) for pattern in (ENSEMBL, PAIR, SYMBOL)) or name.isdigit()


def _check_options(path, layout, column, layer, gene_ids, aliases):
    """Raise for options that do not apply to a file, or to each other."""
    kind = "GDC" if path.is_dir() else "AnnData" if is_hdf5(path) else "table"
    if layout is not None and kind != (layout if layout in ("GDC", "AnnData") else "table"):
        found = {"GDC": "a folder", "AnnData": "an HDF5 file", "table": "another file"}[kind]
        expected = {"GDC": "a folder of files of STAR counts", "AnnData": "an h5ad file"}
        raise ValueError(
            f"{str(path)!r}: layout={layout!r} is {expected.get(layout, 'one table')}, but this is "
            f"{found}."
        )
    if layer is not None and kind != "AnnData":
        raise ValueError(f"{str(path)!r}: layer={layer!r} is for AnnData files only.")
    if column is not None and kind == "AnnData":
        raise ValueError(f"{str(path)!r}: column={column!r} is not for AnnData; use layer=.")
    if aliases is not None and gene_ids != "symbol":
        raise ValueError(
            f"aliases= names genes by symbols, but gene_ids={gene_ids!r}. Pass gene_ids='symbol'."
        )


def _recognise(path, layout, column, audit):
    """Return the name of the layout, and the table with one line of names."""
    table = read_raw(path)
    forced = next((each for each in LAYOUTS if each.name == layout), None)
    found = forced or next(each for each in LAYOUTS if each.recognises(table))
    if forced and forced.tidy is not Layout._field_defaults["tidy"] and not found.recognises(table):
        raise ValueError(
            f"{str(path)!r}: layout={layout!r}, but the file is not laid out like that; its first "
            f"column is {table.header[0]!r}. Leave out layout=, or pass layout='table'."
        )
    if column is not None and not found.columns:
        names = [each.name for each in LAYOUTS if each.columns]
        raise ValueError(
            f"{str(path)!r}: column={column!r} is for GDC and {', '.join(names)}, but the layout "
            f"is {found.name!r}, with one value per gene and sample."
        )
    try:
        table = found.tidy(table, column)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{str(path)!r}, read as {found.name}: {error}") from None
    audit.add("lines of comments left out", [line[:60] for line in table.comments])
    return found.name, table


def _warn_of_dates(ids, path):
    """Warn of symbols that Excel made dates, or days since 1900."""
    dates = [name for name in ids if DATE.fullmatch(name)]
    digits = [name for name in ids if name.isdigit()]
    if len(digits) < 0.5 * len(ids):  # not a table of Entrez identifiers
        dates += [name for name in digits if len(name) == 5 and 36_500 < int(name) < 55_000]
    if dates:
        warn_user(
            f"{str(path)!r}: {len(dates)} genes are named as dates: {name_some(dates)}. Excel made "
            "them of symbols such as MARCH1 or SEPT2; take the original file."
        )


def _annotate(names, notes):
    """Return identifiers of genes, one row each: id, symbol, entrez, ensembl and the notes."""
    genes = pd.DataFrame({"id": pd.Series(names, dtype=object)})
    columns = {column_key(name): notes[name].map(_text) for name in notes.columns[::-1]}
    pairs = [PAIR.fullmatch(name) for name in names]
    genes["symbol"] = genes["entrez_id"] = genes["ensembl_id"] = ""
    if sum(pair is not None for pair in pairs) > len(names) / 2:
        for column, groups in (("symbol", (1, 3)), ("entrez_id", (2, 4))):
            genes[column] = [
                "" if pair is None else next(filter(None, pair.group(*groups)), "")
                for pair in pairs
            ]
    elif _fraction(ENSEMBL, names) > 0.5:
        genes["ensembl_id"] = genes["id"]
    elif _fraction(re.compile(r"\d+"), names) > 0.5:
        genes["entrez_id"] = genes["id"]
    else:
        genes["symbol"] = genes["id"]
    for target, keys in (
        ("symbol", SYMBOL_COLUMNS),
        ("entrez_id", ENTREZ_COLUMNS),
        ("ensembl_id", ID_COLUMNS),
    ):
        for key in keys:
            if key in columns and (genes[target] == "").all() and _holds(columns[key], target):
                genes[target] = columns[key]
    genes["symbol"] = genes["symbol"].where(~genes["symbol"].isin(["?", "NA", "nan"]), "")
    for name in notes.columns:
        if name not in genes.columns:
            genes[name] = notes[name].to_numpy()
    return genes


def _holds(column, kind):
    """Return whether a column has identifiers of a kind."""
    names = [name for name in column if name]
    is_ensembl = _fraction(ENSEMBL, names) > 0.5
    if kind == "ensembl_id":
        return is_ensembl
    is_number = _fraction(re.compile(r"-?\d+"), names) > 0.5
    return (
        is_number
        if kind == "entrez_id"
        else (not is_ensembl and not is_number and _fraction(re.compile(r"\S+"), names) > 0.5)
    )


def _text(value):
    """Return text; numbers without a fraction, which pandas reads as floats, without it."""
    if isinstance(value, float):
        return "" if np.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def _name_genes(genes, gene_ids, aliases, audit, path):
    """Return the names of genes; "" for those that have none."""
    if gene_ids == "as_is":
        # An id that joins both is a symbol; without one, the Entrez id remains.
        par_y = genes["id"].str.endswith("_PAR_Y")
        audit.add("_PAR_Y copies of genes, kept under their own names", genes["id"][par_y])
        is_pair = genes["id"].str.fullmatch(PAIR)
        names = genes["id"].where(~is_pair & (genes["id"] != ""), genes["symbol"])
        empty = (names == "") | names.isin(["?", "NA", "nan"])
        entrez = genes["entrez_id"].where(genes["entrez_id"] != "0", "")
        audit.add(
            "genes without a symbol, named by their Entrez id", entrez[empty & (entrez != "")]
        )
        return names.where(~empty, entrez)
    par_y = genes["id"].str.endswith("_PAR_Y") | genes["ensembl_id"].str.endswith("_PAR_Y")
    audit.add("_PAR_Y copies of genes left out", genes["id"][par_y])
    column = "symbol" if gene_ids == "symbol" else "ensembl_id"
    names = genes[column]
    if column == "ensembl_id":
        names = names.str.replace(r"\.\d+$", "", regex=True)
    known = load_aliases(aliases) if gene_ids == "symbol" else {}
    for source in ("ensembl_id", "entrez_id") if known else ():
        found = genes[source].map(lambda name: known.get(strip_version(name), ""))
        names = names.where(names != "", found)
    renamed = names.map(lambda name: known.get(name, name))
    audit.add("symbols renamed by aliases", names[renamed != names])
    names = renamed
    names = names.where(~par_y, "")
    if not (names != "").any():
        raise ValueError(
            f"{str(path)!r}: gene_ids={gene_ids!r}, but the file has no such identifiers (its "
            f"genes are {name_some(genes['id'][:3])}). Symbols can be found with aliases=."
        )
    return names


def _merge_genes(values, names, duplicates, audit, path):
    """Bring genes of the same name together; return values, and the row that names each."""
    first = ~pd.Index(names).duplicated()
    repeated = pd.Index(names)[~first].unique()
    if not len(repeated):
        return values, np.arange(len(names))
    if duplicates == "error":
        raise ValueError(
            f"{str(path)!r}: {len(repeated)} genes have repeated names: {name_some(repeated)}. "
            "Choose duplicates='mean', 'max_mean' (the row with the highest mean) or 'first'."
        )
    audit.add(f"genes with repeated names, duplicates={duplicates!r}", repeated)
    codes, _ = pd.factorize(names)
    if duplicates == "first":
        return values[first], np.flatnonzero(first)
    if duplicates == "max_mean":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing but NaN
            means = np.nan_to_num(np.nanmean(values, axis=1), nan=-np.inf)
        order = np.lexsort((np.arange(len(names)), -means))
        best = np.unique(codes[order], return_index=True)[1]
        return values[order[best]], order[best]
    merged = values[first].astype(np.float64)
    for code in np.unique(codes[~first]):
        merged[code] = values[codes == code].mean(axis=0)
    return merged, np.flatnonzero(first)


# Barcodes and UUIDs with other marks than dashes, as R, LinkedOmics and file systems need them.
MARKED = re.compile(
    r"X?((TCGA|TARGET|GTEX|C3[LN])[._]\w+([-._]\w+)*|[0-9a-f]{8}([._][0-9a-f]{4}){3}[._][0-9a-f]{12})",
    re.IGNORECASE,
)


def _clean_samples(names, audit):
    """Undo what R does to names that hold dashes or begin with a digit."""
    # The .N of normal samples of CPTAC is no part of the barcode.
    cleaned = [
        re.sub(r"[._](?![NT]$)", "-", name.removeprefix("X")) if MARKED.fullmatch(name) else name
        for name in names
    ]
    if sum(bool(re.match(r"X\d", name)) for name in cleaned) == len(cleaned):
        cleaned = [name[1:] for name in cleaned]
    cleaned = [
        name.removeprefix("X") if re.match(r"X\d{2}[A-Z]{2}\d{3}", name) else name
        for name in cleaned
    ]
    changed = [old for old, new in zip(names, cleaned, strict=True) if old != new]
    audit.add("names of samples with other marks for dashes, or an X before a digit", changed)
    return cleaned


ALIQUOT = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-\d{2})([A-Z]?([-.].*)?)?", re.IGNORECASE)


def _merge_vials(values, samples, vials, audit, path):
    """Bring samples of one patient and type together; return values, and the row of each."""
    found = [None if "-DX" in name.upper() else ALIQUOT.fullmatch(name) for name in samples]
    keys = [at if each is None else each.group(1).upper() for at, each in enumerate(found)]
    codes, _ = pd.factorize(np.array(keys, dtype=object))
    first = ~pd.Series(codes).duplicated().to_numpy()
    if first.all():
        return values, np.arange(len(samples))
    repeated = [samples[at] for at in np.flatnonzero(~first)]
    if vials == "error":
        raise ValueError(
            f"{str(path)!r}: {len(repeated)} samples are further vials or aliquots of a patient "
            f"and type: {name_some(repeated)}. Choose vials='first' or 'mean'."
        )
    audit.add(f"further vials or aliquots, vials={vials!r}", repeated)
    rows = np.flatnonzero(first)
    if vials == "first":
        return values[:, first], rows
    merged = values[:, first].astype(np.float64)
    for code in np.unique(codes[~first]):
        merged[:, code] = values[:, codes == code].mean(axis=1)
    return merged, rows


def _fill(values, genes, samples, missing, audit, path):
    """Treat missing values; return values and which genes and samples are kept."""
    gaps = np.isnan(values)
    keep = np.ones(values.shape[0], dtype=bool), np.ones(values.shape[1], dtype=bool)
    if not gaps.any():
        return values, *keep
    if missing == "error":
        shown = genes[gaps.any(axis=1)], np.asarray(samples, object)[gaps.any(axis=0)]
        raise ValueError(
            f"{str(path)!r} contains NaN in {len(shown[0])} of {len(genes)} genes "
            f"({name_some(shown[0])}) and {len(shown[1])} of {len(samples)} samples "
            f"({name_some(shown[1])}). Choose missing='drop_genes', 'drop_samples' or 'median'."
        )
    if missing == "drop_genes":
        keep = ~gaps.any(axis=1), keep[1]
        audit.add("genes with missing values left out", genes[~keep[0]])
    elif missing == "drop_samples":
        empty = gaps.all(axis=1)  # a gene without any value would drop all samples
        keep = ~empty, ~gaps[~empty].any(axis=0)
        audit.add("genes without any value left out", genes[empty])
        audit.add("samples with missing values left out", np.asarray(samples, object)[~keep[1]])
    else:
        empty = gaps.all(axis=1)
        audit.add("genes without any value left out", genes[empty])
        audit.add(
            "genes with missing values, filled with their median", genes[gaps.any(1) & ~empty]
        )
        values, keep = values.copy(), (~empty, keep[1])
        medians = np.zeros(len(values))
        medians[~empty] = np.nanmedian(values[~empty], axis=1)
        values[gaps] = np.broadcast_to(medians[:, None], values.shape)[gaps]
    if not (keep[0].any() and keep[1].any()):
        raise ValueError(f"{str(path)!r}: missing={missing!r} leaves nothing of the table.")
    return values, *keep


def describe_scale(values):
    """
    Say in which unit expression is, as far as its values show.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_genes)
        Expression, without missing values.

    Returns
    -------
    {"counts", "TPM", "not logged", "z-scores", "log"}
        "TPM" is not logged either: the values of a sample sum to a million.
    """
    some = values[:200]
    lowest, highest = some.min(), some.max()
    # Correction of batches makes few values of genes negative.
    if lowest < 0 and highest > 100 and -lowest < 0.05 * highest and (some < 0).mean() < 0.2:
        return "not logged"
    if lowest < 0:
        means, spread = some.mean(axis=0), some.std(axis=0)
        is_z = np.median(np.abs(means)) < 0.3 and 0.5 < np.median(spread) < 2
        return "z-scores" if is_z or highest > 50 else "log"
    if highest > 20 and (some == np.rint(some)).all():
        return "counts"
    if highest > 50 and np.allclose(some.sum(axis=1), 1e6, rtol=0.02):
        return "TPM"
    return "not logged" if highest > 50 else "log"


def _names_of(frame, keys, pattern):
    """Return the index of obs or var, or, of numbered rows, the column that names them."""
    names = [str(name) for name in frame.index]
    if _counts(pd.Series(names)):
        for name, column in frame.items():
            texts = column.map(str)
            known = column_key(name) in keys or _fraction(pattern, texts.tolist()) > 0.9
            if known and column.dtype.kind not in "fiub" and texts.is_unique:
                return texts.tolist()
    return names


def _from_h5ad(path, layer, genes_in):
    """Return the same as :func:`_split_axes`, and the annotation of samples."""
    values, obs, var = read_h5ad(path, layer)
    genes, samples = {*SYMBOL_COLUMNS, *ID_COLUMNS}, SAMPLE_COLUMNS
    axes = [_names_of(obs, samples, SAMPLE), _names_of(var, genes, ENSEMBL)]
    if genes_in is None:
        genes_in = find_orientation(*axes, "", path, default="columns")
    else:
        _check_orientation(genes_in, *axes, path)
    if genes_in == "rows":
        obs, var, values = var, obs, values.T
        axes = [_names_of(obs, samples, SAMPLE), _names_of(var, genes, ENSEMBL)]
    _check_named(axes[1], path)
    notes = var.reset_index(drop=True)
    return values.T, np.array(axes[1], dtype=object), axes[0], notes, obs, genes_in


def _sheet_of_text(path):
    """Return a sample sheet, or None if a file is none."""
    with path.open("rb") as file:
        head = file.readline(10_000).decode("utf-8", errors="replace").lstrip("\ufeff")
    sep = "\t" if "\t" in head else ","
    if not {"File Name", "Sample ID"} <= {name.strip() for name in head.split(sep)}:
        return None
    sheet = pd.read_csv(path, sep=sep, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    sheet.columns = [name.strip() for name in sheet.columns]
    names = {"File Name": "file", "File ID": "folder", "Sample ID": "sample", "Case ID": "case"}
    kind = "Sample Type" if "Sample Type" in sheet else "Tissue Type"
    return sheet.rename(columns={**names, kind: "type"})


def sheet_of_json(path):
    """Return the same from the metadata of a cart, or None."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # another or a damaged file
        return None
    if not (isinstance(entries, list) and entries and "file_name" in entries[0]):
        return None
    rows = []
    for entry in entries:
        aliquot = (entry.get("associated_entities") or [{}])[0].get("entity_submitter_id", "")
        case = (entry.get("cases") or [{}])[0]
        sample = (case.get("samples") or [{}])[0]
        rows.append(
            {
                "file": entry["file_name"],
                "folder": entry.get("file_id", ""),
                "sample": aliquot or sample.get("submitter_id", ""),
                "case": case.get("submitter_id", "") or aliquot[:12],
                "type": sample.get("sample_type") or sample.get("tissue_type") or "",
                "aliquot": aliquot,
            }
        )
    return pd.DataFrame(rows)


def find_sheet(folder):
    """Return a table of the files of a download of GDC: file name, sample, case and type."""
    readers = {".tsv": _sheet_of_text, ".txt": _sheet_of_text, ".csv": _sheet_of_text}
    readers[".json"] = sheet_of_json
    for path in sorted(folder.rglob("*")):
        read = readers.get(path.suffix.lower())
        if read is None or STAR_FILE.search(path.name) or not path.is_file():
            continue
        sheet = read(path)
        if sheet is not None:
            return sheet, path
    raise ValueError(
        f"{str(folder)!r}: found no sample sheet (gdc_sample_sheet*.tsv) and no metadata "
        "(metadata.cart*.json), which name the sample of each file. Download one of them from the "
        "cart of the GDC portal into this folder. A manifest does not name samples. To read one "
        "table, pass its file."
    )


STAR_FILE = re.compile(r"star_gene_counts\.tsv(\.gz)?$")


def _find_files(folder, audit):
    """Return the sheet, restricted to files that are there, with their paths."""
    sheet, sheet_path = find_sheet(folder)
    paths = {}
    for path in sorted(folder.rglob("*")):
        if STAR_FILE.search(path.name):
            paths.setdefault(path.name, []).append(path)
    sheet = sheet.drop_duplicates(["file", "sample"])
    pooled = sheet["sample"].str.contains(",")
    audit.add("files of several samples, left out", sheet["file"][pooled])
    sheet = sheet[~pooled]
    audit.add("files of the sheet that are not there", [n for n in sheet["file"] if n not in paths])
    audit.add(
        "files that the sheet does not name, left out", sorted(set(paths) - set(sheet["file"]))
    )
    missing, sheet = sheet["file"].tolist(), sheet[sheet["file"].isin(paths)].copy()
    if not len(sheet):
        raise ValueError(
            f"{str(folder)!r}: none of the {len(missing)} files of {sheet_path.name!r} is there, "
            f"such as {missing[:1]}; found {len(paths)} files of STAR counts."
        )
    if (sheet["sample"] == "").any():
        raise ValueError(
            f"{str(sheet_path)!r} does not name the sample of {sheet['file'].iloc[0]!r}. Download "
            "the sample sheet from the cart of the GDC portal."
        )
    folders = sheet["folder"] if "folder" in sheet else [""] * len(sheet)
    found = []
    for name, own in zip(sheet["file"], folders, strict=True):
        candidates = [path for path in paths[name] if path.parent.name == own] or paths[name]
        if len(candidates) > 1:
            raise ValueError(
                f"{str(folder)!r}: {len(candidates)} files are named {name!r}, such as "
                f"{str(candidates[1])!r}. Remove the copies."
            )
        found.append(candidates[0])
    sheet["path"] = found
    return sheet


def _read_star(path, columns):
    """Read columns of one file of STAR counts."""
    with open_text(path) as file:
        content = file.read()
    while content.startswith(b"#"):
        content = content.partition(b"\n")[2]
    header = content.partition(b"\n")[0].decode("utf-8", errors="replace").strip().split("\t")
    lost = [name for name in columns if name not in header]
    if lost:
        raise ValueError(
            f"{str(path)!r}: expected the columns of STAR counts, but column {lost[0]!r} (one of "
            f"{', '.join(STAR_COLUMNS)}) is not among {header}."
        )
    try:
        table = csv.read_csv(
            BufferReader(content),
            read_options=csv.ReadOptions(use_threads=False),
            parse_options=csv.ParseOptions(delimiter="\t"),
            convert_options=csv.ConvertOptions(
                include_columns=columns, column_types={columns[-1]: "float64"}
            ),
        )
    except ArrowException as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as STAR counts: a line has another number of fields, or "
            f"{columns[-1]!r} is not a number. The file may be incomplete: download it again."
        ) from error
    return table


def _from_gdc(folder, column, verbose, audit):
    """Read a folder of STAR counts; return the same as :func:`_split_axes`."""
    sheet = _find_files(folder, audit)
    column, paths = column or "tpm_unstranded", sheet["path"].tolist()
    wanted = ["gene_id", "gene_name", "gene_type", column]

    def read(path):
        return _read_star(path, wanted if path == paths[0] else ["gene_id", column])

    with ThreadPoolExecutor(2) as pool:
        tables = pool.map(read, paths)
        bar = progress(tables, total=len(sheet), desc="GDC", verbose=verbose, unit="file")
        for at, (path, table) in enumerate(zip(paths, bar, strict=True)):
            found = table["gene_id"].combine_chunks()
            if not at:
                ids = found
                values = np.empty((len(sheet), len(found)))
                notes = table.select(["gene_name", "gene_type"]).to_pandas()
            elif not found.equals(ids):
                raise ValueError(
                    f"{str(path)!r} has other genes, or another order, than "
                    f"{str(paths[0])!r}: they come from different releases of GDC, or a file is "
                    "incomplete."
                )
            values[at] = table[column].to_numpy()
    with open_text(paths[0]) as file:
        comments = [line for line in file.readlines(1000) if line.startswith(b"#")]
    audit.add("lines of comments left out", [line.decode().strip() for line in comments])
    names = np.array(ids.to_pylist(), dtype=object)
    samples = sheet.drop(columns=["path", "folder"], errors="ignore").set_index("sample")
    return values.T, names, list(samples.index), notes, samples


@validate_params(
    {
        "path": "no_validation",
        "genes_in": [StrOptions({"columns", "rows"}), None],
        "layout": [StrOptions({layout.name for layout in LAYOUTS} | {"GDC", "AnnData"}), None],
        "column": [str, None],
        "layer": [str, None],
        "gene_ids": [StrOptions({"as_is", "symbol", "ensembl"})],
        "aliases": "no_validation",
        "duplicates": [StrOptions({"error", "mean", "max_mean", "first"})],
        "missing": [StrOptions({"error", "drop_genes", "drop_samples", "median"})],
        "vials": [StrOptions({"error", "first", "mean"})],
        "transform": [StrOptions({"log2p1"}), None],
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def read_expression(
    path,
    *,
    genes_in=None,
    layout=None,
    column=None,
    layer=None,
    gene_ids="as_is",
    aliases=None,
    duplicates="error",
    missing="error",
    vials="error",
    transform=None,
    verbose=0,
):
    r"""
    Read expression in the layout in which it was downloaded.

    Recognised are a folder of STAR counts of GDC, and tables of Xena, cBioPortal, Firehose,
    PanCanAtlas, LinkedOmics and CPTAC, GTEx (GCT), recount3, TCGAbiolinks and R, DepMap, SEQUOIA
    and AnnData, and any table with genes on one axis and samples on the other. Columns that
    annotate genes or samples are not taken for either.

    Parameters
    ----------
    path : str or path-like
        A file as in :func:`read_table`, an h5ad file (AnnData, with the extra ``anndata``), or a
        folder with files of STAR counts and their sample sheet or metadata from GDC.
    genes_in : {"columns", "rows"} or None, default=None
        Axis of the genes. None decides by what the names on both axes look like: identifiers of
        Ensembl, ``SYMBOL|ENTREZ``, symbols; barcodes of TCGA, CPTAC, GTEx, UUIDs.
    layout : str or None, default=None
        Name of the layout. None recognises it; ``layout`` of the result says which.
    column : str or None, default=None
        Which of several values per sample: of GDC "tpm_unstranded" (default),
        "fpkm_uq_unstranded", "unstranded" and others; of Firehose "normalized_count",
        "raw_count" or "scaled_estimate".
    layer : str or None, default=None
        Layer of AnnData, or "raw". None is X.
    gene_ids : {"as_is", "symbol", "ensembl"}, default="as_is"
        Names of the genes. "as_is" are those of the file, of ``SYMBOL|ENTREZ`` the symbol;
        "symbol" and "ensembl" take them from the annotation in the file. Versions of Ensembl
        identifiers are removed with "ensembl", and rows that end with ``_PAR_Y`` left out.
    aliases : mapping, Series, DataFrame, str, path-like or None, default=None
        Symbols of other identifiers, as in :class:`~sklearn_pk.prior.CoexpressionGraph`, for
        ``gene_ids="symbol"``.
    duplicates : {"error", "mean", "max_mean", "first"}, default="error"
        What is done with genes of the same name: their mean, the one with the highest mean over
        samples, or the first.
    missing : {"error", "drop_genes", "drop_samples", "median"}, default="error"
        What is done with missing values. The last three also leave out genes without any value.
    vials : {"error", "first", "mean"}, default="error"
        What is done with several vials or aliquots of one TCGA patient and sample type.
    transform : {"log2p1"} or None, default=None
        Whether to compute log2(x + 1).
    verbose : int, default=0
        Whether to show a progress bar, for GDC.

    Returns
    -------
    table : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        expression : DataFrame of shape (n_samples, n_genes)
            Expression; rows are indexed by the name of the slide, sample or patient.
        patients : Series of shape (n_samples,), str, or None
            Patient of each row, if the file contains it.
        genes : DataFrame of n_genes rows
            Identifiers of the genes and their annotation in the file.
        samples : DataFrame of n_samples rows
            Annotation of the samples in the file or in the sample sheet.
        layout : str
            The layout that was recognised.
        genes_in : {"columns", "rows"}
            Axis of the genes in the file.
        scale : {"counts", "TPM", "not logged", "z-scores", "log"}
            What the values are, as far as they show. Regression needs a log scale: pass
            ``transform="log2p1"`` for the first three.
        audit : DataFrame
            What was left out, merged or renamed: ``what``, ``n`` and some ``names``.
        path : str
            Path of the file.

    Raises
    ------
    FileNotFoundError, ImportError, TypeError
        As :func:`read_table`.
    ValueError
        As :func:`read_table`, and if the axis of the genes cannot be decided, a name repeats, a
        value is missing or a patient has several vials, unless it is said what is done then.

    See Also
    --------
    match_samples : Matches slides with rows of expression.
    sklearn_pk.model_selection.patient_ids : Patients from TCGA barcodes.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from sklearn_pk.io import read_expression
    >>> path = Path(mkdtemp()) / "data_mrna.txt"
    >>> _ = path.write_text(
    ...     "Hugo_Symbol\tEntrez_Gene_Id\tTCGA-3C-AAAU-01\tTCGA-3C-AALI-01\n"
    ...     "TP53\t7157\t900.5\t410.0\n"
    ...     "ESR1\t2099\t30.1\t8000.2\n"
    ... )
    >>> table = read_expression(path)
    >>> table.layout, table.scale
    ('cBioPortal', 'not logged')
    >>> table.expression
                       TP53    ESR1
    TCGA-3C-AAAU-01   900.5    30.1
    TCGA-3C-AALI-01   410.0  8000.2
    >>> read_expression(path, transform="log2p1").expression.round(1)
                      TP53  ESR1
    TCGA-3C-AAAU-01    9.8   5.0
    TCGA-3C-AALI-01    8.7  13.0
    """
    path, audit = Path(path), Audit()
    _check_options(path, layout, column, layer, gene_ids, aliases)
    if path.is_dir():
        if genes_in == "columns":
            raise ValueError(f"{str(path)!r}: files of GDC have genes in rows, not in columns.")
        layout, genes_in = "GDC", "rows"
        values, ids, samples, notes, sheet = _from_gdc(path, column, verbose, audit)
    elif is_hdf5(path):
        layout = "AnnData"
        values, ids, samples, notes, sheet, genes_in = _from_h5ad(path, layer, genes_in)
    else:
        layout, table = _recognise(path, layout, column, audit)
        values, ids, samples, notes, sheet, genes_in = _split_axes(
            table, layout, genes_in, path, audit
        )
    counted = [bool(NOT_GENES.fullmatch(str(name))) for name in ids]
    audit.add("rows of counters left out", ids[counted])
    keep = ~np.array(counted, dtype=bool)
    values, ids, notes = values[keep], ids[keep], notes[keep].reset_index(drop=True)
    _warn_of_dates(ids, path)
    genes = _annotate([str(name) for name in ids], notes)
    names = _name_genes(genes, gene_ids, aliases, audit, path)
    audit.add(
        "genes without a name left out", genes["id"].where(genes["id"] != "", "''")[names == ""]
    )
    keep = (names != "").to_numpy()
    values, genes, names = values[keep], genes[keep], names[keep].to_numpy(dtype=object)
    values, rows = _merge_genes(values, names, duplicates, audit, path)
    genes = genes.iloc[rows].set_index(pd.Index(names[rows], name="gene"))
    samples = _clean_samples([str(name) for name in samples], audit)
    values, rows = _merge_vials(values, samples, vials, audit, path)
    samples = [samples[row] for row in rows]
    sheet = None if sheet is None else sheet.iloc[rows]
    values, kept_genes, kept_samples = _fill(
        values, genes.index.to_numpy(), samples, missing, audit, path
    )
    genes, samples = genes[kept_genes], pd.Index(samples)[kept_samples]
    values = values[kept_genes][:, kept_samples].T
    frame = pd.DataFrame(values, index=samples, columns=genes.index.rename(None))
    check_frame(frame, path)
    check_expression(frame, estimator_name="read_expression", input_name=str(path))
    scale = describe_scale(frame.to_numpy())
    if transform is not None:
        if scale not in ("counts", "TPM", "not logged"):
            raise ValueError(
                f"{str(path)!r}: transform='log2p1' is for expression that is not logged, but "
                f"these values, from {frame.to_numpy().min():.3g} to "
                f"{frame.to_numpy().max():.3g}, look like {scale}."
            )
        negative = frame.columns[(frame < 0).any()]
        audit.add("genes with negative values, of correction of batches, taken for 0", negative)
        frame, scale = np.log2(frame.clip(lower=0) + 1), "log"
    sheet = pd.DataFrame(index=samples) if sheet is None else sheet[kept_samples].set_axis(samples)
    return Bunch(
        expression=frame,
        patients=_patients(sheet),
        genes=genes,
        samples=sheet,
        layout=layout,
        genes_in=genes_in,
        scale=scale,
        audit=audit.frame(),
        path=str(path),
    )


def _patients(sheet):
    """Return the patients of samples, of the first column that names them."""
    for key in PATIENT_COLUMNS:
        for name in sheet.columns:
            if column_key(name) == key:
                values = sheet[name].astype(object)
                values = values.where(values.notna() & (values.astype(str) != ""))
                return values.map(str, na_action="ignore").rename("patient")
    return None
