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
from ..utils._reporting import progress, warn_user
from ..utils._validation import name_some
from ._tables import InvalidTableError, RawTable, check_frame, open_text, read_raw

ENSEMBL = re.compile(r"ENS[A-Z]{0,4}[GT]\d{11}(\.\d+)?(_PAR_Y)?")
PAIR = re.compile(r"(.*)\|(\d+)|(\S+) \((\d+)\)")  # SYMBOL|ENTREZ, and SYMBOL (ENTREZ) of DepMap
# Symbols are in capitals; C1orf112 and its like are the exception.
SYMBOL = re.compile(r"[A-Z][A-Z0-9@_./-]*(orf[A-Z0-9]+(-[A-Z0-9]+)?)?")
SAMPLE = re.compile(
    r"TCGA[-._][A-Z0-9]{2}[-._][A-Z0-9]{4}([-._].*)?"  # barcodes, also dotted
    r"|X?C3[LN][-._]\d{5}([-._].*)?|X?\d{2}[A-Z]{2}\d{3}([-._].*)?"  # CPTAC
    r"|GTEX[-._][A-Z0-9]+([-._].*)?|K-562-SM-.*|ACH-\d{6}"
    r"|(GSM|SAMN|[SED]R[RSX])\d+([-._].*)?"
    r"|X?[0-9a-f]{8}([-.][0-9a-f]{4}){3}[-.][0-9a-f]{12}",
    re.IGNORECASE,
)
DATE = re.compile(
    r"\d{1,2}-(mar|sep|dec|oct|feb|apr|nov|mrz|dez|okt)|(mar|sep|dec|oct|feb|apr|nov)-\d{1,2}"
    r"|\d{4}-\d\d-\d\d( 00:00:00)?|\d{1,2}/\d{1,2}/\d{2,4}",
    re.IGNORECASE,
)
# Names of columns, in lower case and with underscores, that annotate genes or name samples.
ID_COLUMNS = ("gene_id", "ensembl_id", "ensembl_gene_id", "ensembl", "geneid", "name", "id")
SYMBOL_COLUMNS = (
    *("hugo_symbol", "gene_name", "symbol", "gene_symbol", "hgnc_symbol", "external_gene_name"),
    *("genesymbol", "description", "gene", "genes"),
)
ENTREZ_COLUMNS = ("entrez_gene_id", "entrez_id", "entrezgene", "entrezgene_id", "entrez", "ncbi_id")
GENE_COLUMNS = {
    *ID_COLUMNS, *SYMBOL_COLUMNS, *ENTREZ_COLUMNS,
    *("gene_type", "gene_biotype", "biotype", "type", "source", "phase", "score", "level", "tag"),
    *("chromosome", "chromosome_name", "chr", "chrom", "seqnames", "start", "end", "width"),
    *("strand",),
    *("start_position", "end_position", "length", "gene_length", "bp_length", "feature_length"),
    *("hgnc_id", "havana_gene", "transcript_id", "transcript_ids", "cytoband", "locus", "probe"),
    *("attrib_name", "hybridization_ref", "composite_element_ref", "cpg", "refseq", "unigene"),
}  # fmt: skip
SAMPLE_COLUMNS = {
    *("sample", "samples", "sample_id", "slide", "slides", "slide_id", "wsi_file_name", "patient"),
    *("patients", "patient_id", "case", "case_id", "barcode", "modelid", "depmap_id", "profileid"),
    *("tcga_id", "sample_barcode", "aliquot", "individual", "submitter_id", "bcr_patient_barcode"),
}
PATIENT_COLUMNS = (
    "patient_id",
    "patient",
    "case_id",
    "case",
    "bcr_patient_barcode",
    "submitter_id",
)
# Rows of counters, and the columns of the files of STAR.
NOT_GENES = re.compile(r"N_(unmapped|multimapping|noFeature|ambiguous)|__\w+")
STAR_COLUMNS = [
    *("unstranded", "stranded_first", "stranded_second"),
    *("tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded"),
]


class Layout(NamedTuple):
    """A way in which files are laid out: how it is recognised, and brought into one header."""

    name: str
    recognises: Callable  # of a RawTable
    tidy: Callable = lambda table, column: table


def _starts(*names):
    return lambda table: _key(table.header[0]) in names


def _firehose(table, column):
    """Take one column per sample, and leave out the second line of the header."""
    header, frame = table.header, table.frame
    kinds = [str(kind) for kind in frame.iloc[0]]
    found = list(dict.fromkeys(kinds[1:]))
    wanted = column or ("normalized_count" if "normalized_count" in found else found[0])
    if wanted not in found:
        raise InvalidTableError(f"column={column!r} is not one of {found}.")
    kept = [0, *(at for at, kind in enumerate(kinds) if at and kind == wanted)]
    values = frame.iloc[1:, kept].set_axis(range(len(kept)), axis=1).reset_index(drop=True)
    values = values.astype(dict.fromkeys(range(1, len(kept)), np.float64))
    return RawTable([header[at] for at in kept], values, table.comments, table.kind)


def _gct(table, column):
    """Leave out the lines below the header that annotate samples, of version 1.3."""
    sizes = [int(number) for number in re.findall(r"\d+", table.comments[-1])]
    if len(sizes) < 4 or not sizes[3]:
        return table
    n_notes, n_lines = sizes[2:4]
    values = table.frame.iloc[n_lines:].reset_index(drop=True)
    columns = range(1 + n_notes, values.shape[1])
    return table._replace(frame=values.astype(dict.fromkeys(columns, np.float64)))


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
    Layout("Firehose", _starts("hybridization_ref"), _firehose),
    Layout("GCT", lambda table: any(line.startswith("#1.") for line in table.comments), _gct),
    Layout("cBioPortal", _starts("hugo_symbol", "entrez_gene_id")),
    Layout("LinkedOmics", _starts("attrib_name")),
    Layout("recount3", lambda table: any(line.startswith("##") for line in table.comments)),
    Layout("DepMap", lambda t: sum(bool(PAIR.fullmatch(n)) for n in t.header) > len(t.header) / 2),
    Layout("PanCanAtlas", lambda t: bool(PAIR.fullmatch(str(t.frame.iloc[0, 0])))),
    Layout("Xena", _starts("ensembl_id", "sample")),
    Layout("R", lambda table: any(re.match(r"(X?TCGA|X\d).*\.", n) for n in table.header)),
    Layout("table", lambda table: True),
)


def _key(name):
    return re.sub(r"[\s.\-]+", "_", str(name).strip().lower()).strip("_").replace("(s)", "s")


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
    """Return the fraction of names that are genes of the shipped gene sets."""
    return np.mean([name in _cgn_genes() for name in names[:: max(1, len(names) // 2000)]])


def _sure_orientation(rows, columns):
    """Return the axis of the genes if identifiers show it, by majority; otherwise None."""
    in_columns = _is_gene(columns) + _fraction(SAMPLE, rows)
    in_rows = _is_gene(rows) + _fraction(SAMPLE, columns)
    if max(in_columns, in_rows) > 0.5 and abs(in_columns - in_rows) > 0.2:
        return "columns" if in_columns > in_rows else "rows"
    return None


def find_orientation(rows, columns, label, path):
    """Return whether genes are in "rows" or "columns", by what both axes look like."""
    sure = _sure_orientation(rows, columns)
    if sure is not None:
        return sure
    if _key(label) in SAMPLE_COLUMNS:
        return "columns"
    if _key(label) in GENE_COLUMNS - {"name", "id"}:
        return "rows"
    for votes, least in (
        ([_known_symbols(names) for names in (rows, columns)], 0.15),
        ([_fraction(SYMBOL, names) for names in (rows, columns)], 0.7),
    ):
        if max(votes) > least and min(votes) < 0.3 * max(votes):
            return "rows" if votes[0] > votes[1] else "columns"
    raise InvalidTableError(
        f"{str(path)!r}: it cannot be decided whether genes are in rows (such as "
        f"{name_some(rows[:3])}) or in columns (such as {name_some(columns[:3])}). Pass "
        "genes_in='rows' or genes_in='columns'."
    )


def _split_axes(table, genes_in, path):
    """Return values as genes x samples with names, and annotations of genes and samples."""
    header, frame = table.header, table.frame
    keys = [_key(name) for name in header]
    is_text = [dtype.kind not in "fiub" for dtype in frame.dtypes]
    # A first column of row numbers, as pandas and R write them, is no name.
    numbers_rows = keys[0] in ("", "unnamed:_0", "index") and _counts(frame[0])
    if numbers_rows and sum(is_text[1:]):
        header, keys, is_text = header[1:], keys[1:], is_text[1:]
        frame = frame.drop(columns=0).set_axis(range(len(header)), axis=1)
    texts = [at for at in range(len(header)) if is_text[at] or at == 0]
    names = frame[0].map(str)
    rest = [header[at] for at in range(len(header)) if at not in texts]
    if not rest:
        raise InvalidTableError(
            f"{str(path)!r}: expected numbers, found {len(header)} columns of text: "
            f"{name_some(header)}."
        )
    if genes_in is None:
        genes_in = find_orientation(names.tolist(), rest, header[0], path)
    elif _sure_orientation(names.tolist(), rest) not in (None, genes_in):
        other = "rows" if genes_in == "columns" else "columns"
        raise InvalidTableError(
            f"{str(path)!r}: genes_in={genes_in!r}, but genes seem to be in {other}: rows are such "
            f"as {names.iloc[0]!r}, columns such as {rest[0]!r}. Use genes_in={other!r}."
        )
    if genes_in == "rows":
        samples = _fraction(SAMPLE, rest)
        notes = {
            at
            for at, name in enumerate(header)
            if at in texts
            or (keys[at] in GENE_COLUMNS and not SAMPLE.fullmatch(name))
            or (samples > 0.7 and not SAMPLE.fullmatch(name))
        }
    else:
        notes = set(texts) | {at for at, key in enumerate(keys) if key in SAMPLE_COLUMNS}
        genes = [name for at, name in enumerate(header) if at not in notes]
        if _is_gene(genes) + _fraction(SYMBOL, genes) > 0.7:
            notes |= {at for at, name in enumerate(header) if not _may_be_gene(name)}
    kept = [at for at in range(len(header)) if at not in notes]
    if not kept:
        raise InvalidTableError(
            f"{str(path)!r}: none of its columns {name_some(header)} is a "
            f"{'sample' if genes_in == 'rows' else 'gene'}."
        )
    notes = frame[sorted(notes)].set_axis([header[at] for at in sorted(notes)], axis=1)
    values = frame[kept].to_numpy(dtype=np.result_type(*set(frame.dtypes[kept]), np.float32))
    return values, names.to_numpy(dtype=object), [header[at] for at in kept], notes, genes_in


def _counts(column):
    """Return whether a column is 0, 1, 2, ... or 1, 2, 3, ..."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    return len(values) > 0 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _may_be_gene(name):
    return any(pattern.fullmatch(name) for pattern in (ENSEMBL, PAIR, SYMBOL)) or name.isdigit()


def _annotate(names, notes):
    """Return identifiers of genes, one row each: id, symbol, entrez, ensembl and the notes."""
    genes = pd.DataFrame({"id": pd.Series(names, dtype=object)})
    columns = {_key(name): notes[name].map(_text) for name in notes.columns[::-1]}
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
            if key in columns and (genes[target] == "").all():
                wanted = target != "ensembl_id" or _fraction(ENSEMBL, columns[key].tolist()) > 0.5
                genes[target] = columns[key] if wanted else ""
    genes["symbol"] = genes["symbol"].where(~genes["symbol"].isin(["?", "NA", "nan"]), "")
    for name in notes.columns:
        if name not in genes.columns:
            genes[name] = notes[name].to_numpy()
    return genes


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
        pairs = genes["id"].map(lambda name: bool(PAIR.fullmatch(name)))
        names = genes["id"].where(~pairs & (genes["id"] != ""), genes["symbol"])
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
    names = names.where(~par_y, "")
    if not (names != "").any():
        raise InvalidTableError(
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
        raise InvalidTableError(
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


def _clean_samples(names, audit):
    """Undo what R does to names that hold dashes or begin with a digit."""
    dotted = re.compile(r"(X?)(TCGA|C3[LN]|GTEX)\.([A-Z0-9]+)\..*|(X?)(C3[LN])\.\d{5}.*", re.I)
    if _fraction(dotted, names) > 0.5 or _fraction(re.compile(r"X?[0-9a-f]{8}\..*"), names) > 0.5:
        # The .N of normal samples of CPTAC is no part of the barcode.
        cleaned = [re.sub(r"^X(?=\w)", "", re.sub(r"\.(?!N$)", "-", name)) for name in names]
        audit.add("names of samples with dots for dashes, as R writes them", names)
        return cleaned
    mangled = re.compile(r"X\d.*")
    if _fraction(mangled, names) == 1:
        audit.add("names of samples with an X before a digit, as R writes them", names)
        return [name[1:] for name in names]
    return list(names)


ALIQUOT = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-\d{2})([A-Z](-.*)?)?", re.IGNORECASE)


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
        raise InvalidTableError(
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
    if not gaps.any() or missing == "error":
        return values, *keep
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
        raise InvalidTableError(f"{str(path)!r}: missing={missing!r} leaves nothing of the table.")
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
    if not some.size:
        return "log"
    lowest, highest = some.min(), some.max()
    if lowest < 0:
        means, spread = some.mean(axis=0), some.std(axis=0)
        is_z = np.median(np.abs(means)) < 0.3 and 0.5 < np.median(spread) < 2
        return "z-scores" if is_z else "log"
    if highest > 50 and (some == np.rint(some)).all():
        return "counts"
    if highest > 50 and np.allclose(some.sum(axis=1), 1e6, rtol=0.02):
        return "TPM"
    return "not logged" if highest > 50 else "log"


def _read_h5ad(path, layer):
    try:
        import anndata
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r}: AnnData files need the package anndata: "
            "pip install 'sklearn_pk[anndata]'."
        ) from error
    try:
        data = anndata.read_h5ad(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as .h5ad: {error}") from error
    var = data.var
    if layer == "raw":
        if data.raw is None:
            raise InvalidTableError(f"{str(path)!r} has no raw.")
        values, var = data.raw.X, data.raw.var
    elif layer is not None:
        if layer not in data.layers:
            found = [*data.layers, *(["raw"] if data.raw is not None else [])]
            raise InvalidTableError(f"{str(path)!r} has no layer {layer!r}, only {found}.")
        values = data.layers[layer]
    else:
        values = data.X
    if values is None:
        raise InvalidTableError(
            f"{str(path)!r}: X is empty. Choose layer='raw' or one of {list(data.layers)}."
        )
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return values, data.obs, var


def _from_h5ad(path, layer, genes_in):
    """Return the same as :func:`_split_axes`, and the annotation of samples."""
    values, obs, var = _read_h5ad(path, layer)
    axes = [[str(name) for name in each.index] for each in (obs, var)]
    if genes_in is None:
        samples = [
            _fraction(SAMPLE, names) + ("gene" in str(each.columns)) * -0.5
            for names, each in zip(axes, (obs, var), strict=True)
        ]
        is_turned = samples[1] - samples[0] + _is_gene(axes[0]) - _is_gene(axes[1]) > 0.5
        genes_in = "rows" if is_turned else "columns"
    if genes_in == "rows":
        obs, var, values, axes = var, obs, values.T, axes[::-1]
    notes = var.reset_index(drop=True)
    return values.T, np.array(axes[1], dtype=object), axes[0], notes, obs, genes_in


def _find_sheet(folder):
    """Return a table of the files of a download of GDC: file name, sample, case and type."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".tsv", ".txt") and "sheet" in path.name.lower():
            sheet = pd.read_csv(path, sep="\t", dtype=str)
            if {"File Name", "Sample ID"} <= set(sheet.columns):
                sheet = sheet.rename(columns={"File Name": "file", "Sample ID": "sample"})
                return sheet.rename(columns={"Case ID": "case", "Sample Type": "type"}), path
    for path in sorted(folder.rglob("*.json")):
        entries = json.loads(path.read_text())
        if isinstance(entries, list) and entries and "file_name" in entries[0]:
            rows = []
            for entry in entries:
                entity = (entry.get("associated_entities") or [{}])[0]
                name = entity.get("entity_submitter_id", "")
                rows.append({"file": entry["file_name"], "sample": name, "case": name[:12]})
            return pd.DataFrame(rows), path
    raise InvalidTableError(
        f"{str(folder)!r}: found no sample sheet (gdc_sample_sheet*.tsv) and no metadata "
        "(metadata.cart*.json), which name the sample of each file. Download one of them from the "
        "cart of the GDC portal into this folder. A manifest does not name samples."
    )


def _from_gdc(folder, column, verbose):
    """Read a folder of STAR counts; return the same as :func:`_split_axes`."""
    sheet, sheet_path = _find_sheet(folder)
    paths = {
        path.name: path
        for path in folder.rglob("*")
        if re.search(r"star_gene_counts\.tsv(\.gz)?$", path.name)
    }
    sheet = sheet.drop_duplicates("file")
    missing = [name for name in sheet["file"] if name not in paths]
    unnamed = sorted(set(paths) - set(sheet["file"]))
    sheet = sheet[sheet["file"].isin(paths)]
    if not len(sheet):
        raise InvalidTableError(
            f"{str(folder)!r}: none of the {len(missing)} files of {sheet_path.name!r} is there, "
            f"such as {missing[:1]}; found {len(paths)} files of STAR counts."
        )
    column = column or "tpm_unstranded"

    def read(name):
        options = {"include_columns": ["gene_id", "gene_name", "gene_type", column]}
        if name != sheet["file"].iloc[0]:
            options["include_columns"] = ["gene_id", column]
        with open_text(paths[name]) as file:
            content = file.read()
        skipped = content.startswith(b"#")
        try:
            return csv.read_csv(
                BufferReader(content),
                read_options=csv.ReadOptions(skip_rows=int(skipped), use_threads=False),
                parse_options=csv.ParseOptions(delimiter="\t"),
                convert_options=csv.ConvertOptions(**options),
            )
        except (ArrowException, KeyError) as error:
            raise ValueError(
                f"{str(paths[name])!r} cannot be read as STAR counts with the column {column!r} "
                f"(one of {', '.join(STAR_COLUMNS)}): {error}"
            ) from error

    values = ids = notes = None
    with ThreadPoolExecutor(2) as pool:
        tables = pool.map(read, sheet["file"])
        bar = progress(tables, total=len(sheet), desc="GDC", verbose=verbose, unit="file")
        for at, (name, table) in enumerate(zip(sheet["file"], bar, strict=True)):
            found = table["gene_id"].combine_chunks()
            if values is None:
                ids = found
                values = np.empty((len(sheet), len(found)))
                notes = table.select(["gene_name", "gene_type"]).to_pandas()
            elif not found.equals(ids):
                raise ValueError(
                    f"{str(paths[name])!r} has other genes, or another order, than "
                    f"{sheet['file'].iloc[0]!r}: they come from different releases of GDC."
                )
            values[at] = table[column].to_numpy()
    names = np.array(ids.to_pylist(), dtype=object)
    samples = sheet.set_index("sample")
    audit = [("files of the sheet that are not there", missing)]
    audit.append(("files that the sheet does not name, left out", unnamed))
    return values.T, names, list(samples.index), notes, samples, audit


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
    path, audit, sheet = Path(path), Audit(), None
    if path.is_dir():
        layout, genes_in = "GDC", "rows"
        values, ids, samples, notes, sheet, found = _from_gdc(path, column, verbose)
        for what, names in found:
            audit.add(what, names)
    elif path.suffix.lower() == ".h5ad" and path.is_file():
        layout = "AnnData"
        values, ids, samples, notes, sheet, genes_in = _from_h5ad(path, layer, genes_in)
    else:
        table = read_raw(path)
        known = {each.name: each for each in LAYOUTS}
        found = known.get(layout) or next(each for each in LAYOUTS if each.recognises(table))
        layout, table = found.name, found.tidy(table, column)
        if layout == "SEQUOIA":
            if genes_in == "rows":
                raise InvalidTableError(
                    f"{str(path)!r} has columns rna_GENE, so its rows are samples. Use "
                    "genes_in='columns'."
                )
            genes_in = "columns"
        values, names, others, notes, genes_in = _split_axes(table, genes_in, path)
        if genes_in == "rows":
            ids, samples = names, others
        else:
            ids, samples, values = np.array(others, dtype=object), names, values.T
            sheet = notes.iloc[:, 1:]
            notes = pd.DataFrame(index=range(len(ids)))
        extra = notes.columns[1:] if sheet is None else sheet.columns
        audit.add("columns that are annotation", extra)
    counted = [bool(NOT_GENES.fullmatch(str(name))) for name in ids]
    audit.add("rows of counters left out", ids[counted])
    keep = ~np.array(counted, dtype=bool)
    values, ids, notes = values[keep], ids[keep], notes[keep].reset_index(drop=True)
    dates = [name for name in ids if DATE.fullmatch(name)]
    if dates:
        warn_user(
            f"{str(path)!r}: {len(dates)} genes are named as dates: {name_some(dates)}. Excel made "
            "them of symbols such as MARCH1 or SEPT2; take the original file."
        )
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
            raise InvalidTableError(
                f"{str(path)!r}: transform='log2p1' is for expression that is not logged, but "
                f"these values, from {frame.to_numpy().min():.3g} to "
                f"{frame.to_numpy().max():.3g}, look like {scale}."
            )
        frame, scale = np.log2(frame + 1), "log"
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
            if _key(name) == key:
                values = sheet[name].astype(object)
                values = values.where(values.notna() & (values.astype(str) != ""))
                return values.map(str, na_action="ignore").rename("patient")
    return None
