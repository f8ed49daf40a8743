"""Tables that link slides with samples, patients and types of tissue."""

# SPDX-License-Identifier: BSD-3-Clause

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

import pandas as pd

from ..utils._annotation import PATIENT_COLUMNS, column_key
from ..utils._validation import name_some, plain_name, split_barcode
from ._expression import find_sheet, sheet_of_json
from ._tables import BAD_FILE, decode_text, open_text

# Suffixes that are removed from names: of slides, and of files with their features.
_ENDINGS = re.compile(
    r"\.(svs|tiff?|ndpi|mrxs|scn|bif|vms|vmu|czi|isyntax|dcm|zarr|h5|hdf5|pt|png|jpe?g"
    r"|npy|npz|pkl|safetensors)$",
    re.I,
)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-z])")
# Names of columns as `column_key` returns them, the most specific first.
SLIDE_COLUMNS = (
    *("slide_id", "slide", "slides", "slide_name", "slide_file", "slide_submitter_id"),
    *("slide_barcode", "wsi_file_name", "wsi", "wsi_id", "wsi_name", "image", "image_id"),
    *(
        "image_name",
        "image_file",
        "filename",
        "file_name",
        "file",
        "path",
        "slide_path",
        "filepath",
    ),
    *("image_path", "full_path", "svs", "file_id", "id", "uuid", "folder", "features", "bag"),
    *("barcode", "name", "tissue_sample_id"),
)
SAMPLE_COLUMNS = (
    *("sample", "sample_id", "samples", "sampleid", "sample_barcode", "sample_submitter_id"),
    *("samples_submitter_id", "sampid", "aliquot", "aliquot_id", "aliquot_barcode"),
    *("aliquot_submitter_id", "entity_submitter_id", "specimen", "specimen_id", "expression"),
    *("expression_id", "expression_name", "row", "rna", "rna_id", "rna_sample", "rna_sample_id"),
    *("rnaseq", "rnaseq_id", "rna_seq_id", "rna_file", "portion", "analyte", "tumor_sample_id"),
)
_PATIENT_COLUMNS = (
    *("case_submitter_id", "cases_submitter_id", *PATIENT_COLUMNS, "patients", "patientid"),
    *(
        "caseid",
        "patient_name",
        "patient_barcode",
        "subject",
        "subject_id",
        "subjid",
        "participant",
    ),
    *("participant_id", "donor", "donor_id", "individual", "individual_id", "pid", "mrn"),
    *("cases_case_id", "pat_id", "patient_code"),
)
_TISSUE_COLUMNS = (
    *("tissue_type", "sample_type", "specimen_type", "type", "tissue", "sample_type_id"),
    *("tumor_normal", "tumour_normal", "tissue_status", "tissue_category", "sample_kind"),
)
# The first that fits: words of GDC, CPTAC and pathology, and their codes in TCGA.
_TISSUES = (
    (r"blood[-a-z]*-normal|normal-blood", "10"),
    (r"solid-tissue-normal", "11"),
    (
        r"non-?tumou?r|non-?neoplas|(?<!ab)normal|\bnat\b|healthy|tumou?r-free|benign-adjacent",
        "normal",
    ),
    (r"metasta", "06"),
    (r"recurren", "02"),
    (r"primary", "01"),
    (r"tumou?r|cancer|carcinoma|malignan|neoplas", "tumour"),
    (r"t", "tumour"),
    (r"n", "normal"),
)


_MISSING = ("nan", "na", "n/a", "none", "--", "'--", "not reported", "unknown")


class Identity(NamedTuple):
    """What a name, and the links, say of a sample or of a row of expression."""

    stem: str  # without folder and suffixes
    key: str  # the same, in lower case and with dashes
    cohort: str | None = None
    patient: str | None = None  # key
    tissue: str | None = (
        None  # a code of TCGA, "tumour", "normal", or the tissue of a donor of GTEx
    )
    samples: tuple = ()  # keys of samples that the links name
    label: str | None = None  # the patient as it is written


def stem_of(name):
    """Return the name of a slide without folder and file suffixes."""
    stem = PurePath(str(name).strip()).name.strip()
    while _ENDINGS.search(stem):
        stem = _ENDINGS.sub("", stem)
    return stem


def prefixes(key):
    """Return the beginnings of a key that end before a dash, from long to short."""
    return [key[:at] for at in range(len(key) - 1, 0, -1) if key[at] == "-"]


def tissue_kind(code):
    """Return "tumour" or "normal", or another tissue as it is."""
    if code is None or not re.fullmatch(r"\d\d", code):
        return code
    return "tumour" if code < "10" else "normal" if code < "20" else code


def tissue_of(text):
    """Return the tissue that words say, or a code of TCGA; None if they say none."""
    text = plain_name(text)
    if re.fullmatch(r"[01]\d[a-z]?", text):
        return text[:2]
    for pattern, tissue in _TISSUES:
        found = re.fullmatch(pattern, text) if len(pattern) == 1 else re.search(pattern, text)
        if found:
            return tissue
    return None


def identify(name):
    """Return what a name says of itself."""
    stem = stem_of(name)
    key = plain_name(stem)
    cohort, patient, rest = split_barcode(stem)
    first = rest.partition("-")[0]
    tissue = None
    if cohort in ("TCGA", "TARGET", "HCMI"):
        tissue = first[:2] if re.fullmatch(r"\d\d[A-Z]?", first) else None
    elif cohort == "GTEx":
        tissue = first.lower() or None
    if tissue is None:
        parts = rest.lower().split("-") if cohort else key.split("-")[1:]
        words = {"n", "t", "normal", "nat", "tumor", "tumour", "adjacent"}
        said = [tissue_of(part) or "normal" for part in parts if part in words]
        tissue = min(said, default=None)  # "normal" comes first: adjacent to a tumour
    if patient:
        return Identity(stem, key, cohort, plain_name(patient), tissue, label=patient)
    # P1-N and P1-T are of the same patient.
    base = re.sub(r"(?i)[-_. ](n|t|normal|nat|tumou?r)$", "", stem) if tissue else None
    return Identity(stem, key, tissue=tissue, patient=base and plain_name(base), label=base)


def _texts(column):
    """Return a column as a list of stripped text; numbers without a fraction without it."""

    def text(value):
        if isinstance(value, float):
            return "" if value != value else str(int(value)) if value.is_integer() else str(value)
        text = "" if value is None or value is pd.NA else str(value).strip()
        return (
            ""
            if text.lower() in ("nan", "na", "n/a", "none", "--", "'--", "not reported")
            else text
        )

    return [text(value) for value in column.tolist()]


def read_links(links):
    """Return the texts of slide, sample, patient and tissue of each row, as dicts of tuples."""
    table = _to_table(links)
    keys = [re.sub(r"^(cases_(\d_)?)?(samples_(\d_)?)?", "", column_key(n)) for n in table.columns]
    table = table.set_axis(range(len(keys)), axis=1)
    if not len(table):
        raise ValueError("links has no rows.")
    chosen = {
        role: [at for name in names for at, key in enumerate(keys) if key == name]
        for role, names in (
            ("slide", SLIDE_COLUMNS),
            ("sample", SAMPLE_COLUMNS),
            ("patient", _PATIENT_COLUMNS),
            ("tissue", _TISSUE_COLUMNS),
        )
    }
    named = [role for role in ("slide", "sample", "patient") if chosen[role]]
    if not named or (len(named) == 1 and not chosen["tissue"]):
        raise ValueError(
            "links needs a column of slides (such as slide_id, FILENAME, 'File Name') and one of "
            "samples or patients (such as sample_id, 'Sample ID', case_id, PATIENT), got the "
            f"columns {name_some(keys)}. Rename them, or pass a dict of slide to sample."
        )
    texts = {at: _texts(table[at]) for columns in chosen.values() for at in columns}
    return [
        {
            role: tuple(texts[at][row] for at in columns)
            for role, columns in chosen.items()
            if columns
        }
        for row in range(len(table))
    ]


def _to_table(links):
    if isinstance(links, pd.DataFrame):
        index = links.index
        return links if isinstance(index, pd.RangeIndex) else links.reset_index(names=_name(index))
    if isinstance(links, pd.Series):
        return links.rename("sample").rename_axis("slide").reset_index()
    if isinstance(links, Mapping):
        values = list(links.values())
        if values and all(isinstance(value, (list, tuple, pd.Series)) for value in values):
            return pd.DataFrame(dict(links))
        if values and all(isinstance(value, Mapping) for value in values):
            return pd.DataFrame.from_dict(dict(links), orient="index").reset_index(names="slide")
        return pd.DataFrame({"slide": list(links), "sample": values})
    if isinstance(links, str | os.PathLike):
        return _read(Path(links))
    raise TypeError(
        "links must be a DataFrame, a dict of slide to sample or patient, or the path of a table, "
        f"got {type(links).__name__}."
    )


def _name(index):
    return [name or ("slide" if not at else f"level_{at}") for at, name in enumerate(index.names)]


def _read(path):
    if path.is_dir():
        return find_sheet(path)[0].rename(columns={"type": "sample_type"})
    if not path.is_file():
        raise FileNotFoundError(f"links: file not found: {str(path)!r}.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            sheet = sheet_of_json(path)
            if sheet is None:
                raise ValueError("it is not the metadata of a cart of GDC")
            return sheet.rename(columns={"type": "sample_type"})
        if suffix in (".xlsx", ".xls"):
            return pd.read_excel(path, dtype=str)
        if suffix == ".parquet":
            return pd.read_parquet(path)
        with open_text(path) as file:
            text = decode_text(file.read())
        header = text.partition("\n")[0]
        separator = max("\t,;|", key=header.count)
        options = {"dtype": str, "keep_default_na": False, "quoting": csv.QUOTE_MINIMAL}
        return pd.read_csv(io.StringIO(text), sep=separator, **options)
    except ImportError as error:
        raise ImportError(
            f"links: {str(path)!r}: {path.suffix} needs another package: {error.name or error}. "
            "Install it, or save the table as text."
        ) from error
    except BAD_FILE as error:
        raise ValueError(f"links: {str(path)!r} cannot be read as a table: {error}") from error


class Links:
    """The links by the names of slides, samples and patients."""

    def __init__(self, links):
        self._named, self._patients = {}, {}
        self.used = False
        if links is None:
            return
        for row in read_links(links):
            self._add(row)

    def _add(self, row):
        slides, samples = (
            [part for text in row.get(role, ()) for part in _parts(text)]
            for role in ("slide", "sample")
        )
        patients = [part for text in row.get("patient", ()) for part in _parts(text)]
        label = patients[0] if patients else None
        barcode = next(
            (split_barcode(name)[1] for name in (*patients, *samples) if split_barcode(name)[1]),
            None,
        )
        said = [tissue_of(text) for text in row.get("tissue", ()) if text]
        if not any(said):
            said = [identify(name).tissue for name in samples]
        kinds = {tissue_kind(tissue) for tissue in said} - {None}
        if len(kinds) > 1:
            raise ValueError(
                f"links: {name_some([*slides, *samples][:1])} is both of tumour and of normal "
                f"tissue: {name_some(row['tissue'])}."
            )
        exact = [tissue for tissue in said if tissue and tissue.isdigit()]
        entry = {
            "patient": barcode or label,
            "tissue": exact[0] if exact else next(iter(kinds), None),
            "samples": tuple(dict.fromkeys(plain_name(name) for name in samples)),
        }
        for name in (*slides, *samples):
            for key in _keys(name):
                self._named.setdefault(key, []).append(entry)
        for name in patients:
            self._patients.setdefault(plain_name(name), entry["patient"])

    def __bool__(self):
        return bool(self._named or self._patients)

    @property
    def example(self):
        """Return a name of a slide, sample or patient."""
        return next(iter(self._named or self._patients))

    def describe(self, name):
        """Return the identity of a name, by itself and by the links."""
        found = identify(name)
        if not self:
            return found
        # The name, the folder of a download, TCGA-...-DX1 for TCGA-...-DX1.UUID, P1-A for P1-A_HE.
        keys = [*_keys(name), *_keys(PurePath(str(name)).parent.name), *prefixes(found.key)]
        for key in keys:
            if key in self._named:
                self.used = True
                return _join(found, self._named[key], name)
        patient = next((self._patients[key] for key in keys if key in self._patients), None)
        if patient is None or found.cohort:
            return found
        self.used = True
        return found._replace(
            cohort=split_barcode(patient)[0], patient=plain_name(patient), label=patient
        )


def _parts(text):
    """Return the different names in a cell; GDC joins several by commas."""
    return list(dict.fromkeys(part.strip() for part in text.split(", ") if part.strip()))


def _keys(name):
    """Return the keys of a name: as it is, without suffixes, and the UUID that it begins with."""
    if not str(name):
        return ()
    full, stem = plain_name(PurePath(str(name)).name), plain_name(stem_of(name))
    uuid = UUID.match(full)
    return tuple(dict.fromkeys([full, stem, *([uuid.group()] if uuid else [])]))


def _join(found, entries, name):
    """Add what links say to what a name says of itself; raise if they contradict each other."""
    patients = {plain_name(e["patient"]): e["patient"] for e in entries if e["patient"]}
    if len(patients) > 1:
        raise ValueError(
            f"links: {str(name)!r} is of several patients: {name_some(patients.values())}."
        )
    own = found.patient if found.cohort else None
    for patient in patients.values():
        linked = split_barcode(patient)[1]
        if own and linked and plain_name(linked) != own:
            raise ValueError(
                f"links: {str(name)!r} is of patient {patient!r}, but its barcode is that of "
                f"{found.label!r}."
            )
    tissues = {entry["tissue"] for entry in entries} - {None}
    kinds = {tissue_kind(tissue) for tissue in tissues}
    said = tissue_kind(found.tissue)
    if found.cohort != "GTEx" and said in ("tumour", "normal") and kinds - {said}:
        raise ValueError(
            f"links: {str(name)!r} is {' and '.join(sorted(kinds))} tissue, but by its name it is "
            f"{said} tissue."
        )
    tissue = found.tissue
    if tissue is None or (tissue in ("tumour", "normal") and len(tissues) == 1):
        tissue = tissues.pop() if len(tissues) == 1 else kinds.pop() if len(kinds) == 1 else None
    samples = tuple(dict.fromkeys(sample for entry in entries for sample in entry["samples"]))
    if own or not patients:
        return found._replace(tissue=tissue, samples=samples)
    key, label = patients.popitem()
    cohort = split_barcode(label)[0]
    return found._replace(tissue=tissue, samples=samples, patient=key, label=label, cohort=cohort)
