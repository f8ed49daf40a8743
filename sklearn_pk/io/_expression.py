"""Readers of tables of features and of expression."""

# SPDX-License-Identifier: BSD-3-Clause

import bz2
import gzip
import lzma
import math
import struct
import sys
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException
from sklearn.utils import Bunch
from sklearn.utils._param_validation import StrOptions, validate_params

from ..utils import check_expression
from ..utils._validation import TCGA_PATIENT, name_some

_TEXT_ENDINGS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zip"}
_ENDINGS = "csv, tsv or txt (also compressed: .gz, .bz2, .xz, .zip), parquet, npz or h5ad"
# Column names of the reference tables of SEQUOIA.
_SLIDE, _PATIENT, _GENE_PREFIX = "wsi_file_name", "patient_id", "rna_"
# Representations of missing values.
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None"]
_ROW_KEYS = ("sample", "samples", "slide", "slides", "patient", "patients", "index", "names")
_COLUMN_KEYS = ("gene", "genes", "feature", "features", "columns")


# Text with mostly zeros is compressed to 1 %; a higher ratio indicates a decompression bomb.
_MAX_EXPANSION = 200
_MIN_LIMIT = 32 << 20
_MAX_COLUMNS = 1_000_000
_CHUNK = 1 << 20
# Errors of pandas, numpy and pyarrow for damaged files or other formats.
_BAD_FILE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(AttributeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(struct.error, tokenize.TokenError, ArrowException),
)


class _InvalidTable(ValueError):
    """A file that is readable, but not a valid table."""


def _ending(path):
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 else ""
    return suffixes[-1] if suffixes else ""


def _read_parquet(path):
    frame = pd.read_parquet(path)
    if isinstance(frame.index, pd.RangeIndex) and frame.shape[1]:
        first = _SLIDE if _SLIDE in frame.columns else frame.columns[0]
        if not pd.api.types.is_numeric_dtype(frame[first]):
            return frame.set_index(first)  # written without its index
        raise _InvalidTable(
            f"{str(path)!r}: its rows have no names. They are expected in the index or in the "
            "first column."
        )
    return frame


def _names_for(arrays, keys, length, others):
    """Return the names of rows or columns: the array with a known key, else the first that fits."""
    fitting = [key for key in arrays if len(arrays[key]) == length and key not in others]
    known = [key for key in keys if key in fitting]
    chosen = known or fitting
    return (chosen[0], arrays[chosen[0]]) if chosen else (None, None)


def _limit(path):
    return max(_MIN_LIMIT, _MAX_EXPANSION * path.stat().st_size)


def _check_unpacked(n_bytes, path):
    """Raise for small files that decompress to large ones."""
    if n_bytes > _limit(path):
        raise _InvalidTable(
            f"{str(path)!r} decompresses to more than {_limit(path) >> 20} MiB, which is not "
            "plausible for a table. Decompress it yourself if you trust it."
        )


def _read_arrays(path):
    """Read the arrays of an npz file after checking their headers, which numpy trusts."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        _check_unpacked(sum(member.file_size for member in archive.infolist()), path)
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                readers = {(1, 0): np.lib.format.read_array_header_1_0}
                readers |= {(2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = readers[version](file)
            if dtype.hasobject:
                raise _InvalidTable(
                    f"{str(path)!r}: the array {key!r} holds Python objects, which could run code "
                    f"when they are loaded. Save it as text: {key}.astype(str)."
                )
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{key!r} of shape {shape} is incomplete")
            with archive.open(member) as file:
                arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
            _check_characters(arrays[key], key)
    return arrays


def _check_characters(array, key):
    """Raise for invalid code points, which numpy does not check."""
    if array.dtype.kind == "U" and array.nbytes:
        dtype = np.dtype("u4").newbyteorder(array.dtype.byteorder)
        codes = np.ascontiguousarray(array).reshape(-1).view(dtype)
        # Code points from D800 to DFFF are surrogates.
        if codes.max() > sys.maxunicode or (codes >> 11 == 0xD800 >> 11).any():
            raise ValueError(f"{key!r} contains invalid characters")


def _read_npz(path):
    arrays = _read_arrays(path)
    tables = [key for key, array in arrays.items() if array.ndim == 2]
    if len(tables) != 1:
        raise _InvalidTable(
            f"{str(path)!r}: expected one array with two dimensions, samples x columns, and names "
            f"in other arrays, found {name_some(tables) if tables else 'none'} in {list(arrays)}."
        )
    values = arrays[tables[0]]
    names = {key: each for key, each in arrays.items() if each.ndim == 1 and each.dtype.kind == "U"}
    column_key, columns = _names_for(names, _COLUMN_KEYS, values.shape[1], _ROW_KEYS)
    _, rows = _names_for(names, _ROW_KEYS, values.shape[0], (*_COLUMN_KEYS, column_key))
    if rows is None:
        raise _InvalidTable(
            f"{str(path)!r}: its rows have no names. Add an array of strings to the file, "
            f"'samples', with {len(values)} names."
        )
    return pd.DataFrame(values, index=rows, columns=columns)


def _read_h5ad(path):
    try:
        import anndata
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r}: AnnData files need the package anndata: "
            "pip install 'sklearn_pk[anndata]'."
        ) from error
    data = anndata.read_h5ad(path)
    values = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    frame = pd.DataFrame(values, index=data.obs_names, columns=data.var_names)
    for name in (_PATIENT, _SLIDE):
        if name in data.obs:
            frame.insert(0, name, data.obs[name].astype(str).to_numpy())
    return frame


@contextmanager
def _open_text(path):
    """Open a text file, decompressed, as bytes."""
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if path.suffix.lower() != ".zip":
        with openers.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise _InvalidTable(f"{str(path)!r}: expected one file in it, found {len(names)}.")
        with archive.open(names[0]) as file:
            yield file


def _check_text(path, separator):
    """Raise for text that would need too much memory."""
    with _open_text(path) as file:
        line = file.readline(_limit(path))
        if line.count(separator.encode()) >= _MAX_COLUMNS:
            raise _InvalidTable(
                f"{str(path)!r}: its first line has more than {_MAX_COLUMNS:,} columns. A table "
                "has samples in rows and genes in columns, or the other way round."
            )
        n_bytes = len(line)
        if path.suffix.lower() in _COMPRESSED:
            while n_bytes <= _limit(path) and (chunk := file.read(_CHUNK)):
                n_bytes += len(chunk)
            _check_unpacked(n_bytes, path)


def _read_text(path):
    separator = _TEXT_ENDINGS[_ending(path)]
    _check_text(path, separator)
    options = {"header": None, "nrows": 1, "dtype": str, "keep_default_na": False}
    header = pd.read_csv(path, sep=separator, **options).iloc[0]
    # pandas would rename repeated columns.
    repeated = header[header.duplicated() & (header != "")].unique()
    if len(repeated):
        raise _InvalidTable(
            f"{str(path)!r}: {len(repeated)} columns have repeated names: "
            f"{name_some(repeated)}. Keep one of each, or average them."
        )
    columns = pd.read_csv(path, sep=separator, nrows=1)
    if not isinstance(columns.index, pd.RangeIndex):
        return pd.read_csv(path, sep=separator)  # written by R, without name of the first column
    columns = list(columns.columns)
    # Names are strings: 001 is not 1, and NA is a valid name.
    names = [name for name in (_SLIDE, _PATIENT) if name in columns]
    names = names if _SLIDE in names else [columns[0], *names]
    missing = dict.fromkeys([name for name in columns if name not in names], _MISSING)
    options = {"dtype": dict.fromkeys(names, str), "keep_default_na": False, "na_values": missing}
    frame = pd.read_csv(path, sep=separator, **options)
    if _SLIDE in names:
        return frame
    name = columns[0]
    return frame.set_index(name).rename_axis(None if name.startswith("Unnamed: ") else name)


def _read(path):
    if not path.is_file():
        raise FileNotFoundError(f"File not found: {str(path)!r}.")
    ending = _ending(path)
    readers = dict.fromkeys(_TEXT_ENDINGS, _read_text)
    readers |= {".parquet": _read_parquet, ".npz": _read_npz, ".h5ad": _read_h5ad}
    if ending not in readers:
        raise ValueError(f"{str(path)!r}: expected a table as {_ENDINGS}, got {ending!r}.")
    try:
        frame = readers[ending](path)
        is_text = map(pd.api.types.is_string_dtype, frame.dtypes)
        texts = [frame.iloc[:, at] for at, text in enumerate(is_text) if text]
        for text in (frame.index, frame.columns, *texts):
            text.map(str)  # forces pyarrow to decode
    except (ImportError, _InvalidTable):
        raise
    except _BAD_FILE as error:
        raise ValueError(f"{str(path)!r} cannot be read as {ending}: {error}") from error
    return frame


def _check_frame(frame, path):
    """Raise unless the table has rows and columns with unique names."""
    if not all(frame.shape):
        separator = _TEXT_ENDINGS.get(_ending(path))
        hint = f", columns are separated by {separator!r}" if separator else ""
        raise ValueError(
            f"{str(path)!r}: expected a table of samples x columns, got shape {frame.shape}. The "
            f"first column of a text file has the row names{hint}."
        )
    frame.index = frame.index.map(str)
    for what, names in (("rows", frame.index), ("columns", frame.columns)):
        repeated = names[names.duplicated()].unique()
        if len(repeated):
            raise ValueError(
                f"{str(path)!r}: {len(repeated)} {what} have repeated names: "
                f"{name_some(repeated)}. Keep one of each, or average them."
            )


def read_table(path):
    r"""
    Read a table with one named row per slide or patient, such as hand-crafted features.

    Parameters
    ----------
    path : str or path-like
        A csv, tsv or txt (tab separated) file, optionally compressed, with the row names in the
        first column; parquet; npz with one array (rows, columns) and both names as arrays of
        strings; or h5ad (AnnData, with the extra ``anndata``).

    Returns
    -------
    table : DataFrame of shape (n_rows, n_columns)
        The values, with rows indexed by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If anndata is not installed, for h5ad files.
    TypeError
        If a column is not numeric; it is named.
    ValueError
        If the file is damaged, of another format, empty, could run code (object arrays in npz),
        has repeated row or column names, or contains NaN or infinity; the file is named.

    See Also
    --------
    read_expression : Reads expression, including reference tables of SEQUOIA.
    match_samples : Matches rows of features with rows of expression.
    sklearn_pk.slides.read_features : Reads tile features.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from sklearn_pk.io import read_table
    >>> path = Path(mkdtemp()) / "features.csv"
    >>> _ = path.write_text("slide,area,nuclei\nP1,0.5,120\nP2,0.25,80\n")
    >>> read_table(path)
           area  nuclei
    slide
    P1     0.50     120
    P2     0.25      80
    """
    path = Path(path)
    frame = _read(path)
    frame = frame.drop(columns=[name for name in (_SLIDE, _PATIENT) if name in frame.columns])
    _check_frame(frame, path)
    check_expression(frame, estimator_name="read_table", input_name=str(path))
    return frame


def _looks_like_samples(names):
    return bool(len(names)) and all(TCGA_PATIENT.match(str(name)) for name in names)


def _gene_columns(frame):
    """Return the genes of a table, which have a prefix in tables of SEQUOIA."""
    prefixed = [name for name in frame.columns if str(name).startswith(_GENE_PREFIX)]
    if not prefixed:
        return frame
    return frame[prefixed].rename(columns=lambda name: name.removeprefix(_GENE_PREFIX))


@validate_params(
    {"path": "no_validation", "genes_in": [StrOptions({"columns", "rows"})]},
    prefer_skip_nested_validation=True,
)
def read_expression(path, *, genes_in="columns"):
    r"""
    Read a table of expression.

    Parameters
    ----------
    path : str or path-like
        A wide table as in :func:`read_table`; a reference table of SEQUOIA with the
        columns ``wsi_file_name``, ``patient_id`` and ``rna_GENE``; or AnnData (h5ad; samples
        are ``obs``, with patients in ``obs["patient_id"]`` if present).
    genes_in : {"columns", "rows"}, default="columns"
        Whether genes are in columns or, as in many public data sets, in rows.

    Returns
    -------
    table : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        expression : DataFrame of shape (n_samples, n_genes)
            The values of the file, usually log2(x + 1); rows are indexed by the
            name of the slide, sample or patient.
        patients : Series of shape (n_samples,), str, or None
            Patient of each row, if the file contains it.
        path : str
            Path of the file.

    Raises
    ------
    FileNotFoundError, ImportError, TypeError
        As :func:`read_table`.
    ValueError
        As :func:`read_table`, and if columns are TCGA barcodes instead of genes.

    See Also
    --------
    match_samples : Matches slides with rows of expression.
    sklearn_pk.model_selection.patient_ids : Patients from TCGA barcodes.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from sklearn_pk.io import read_expression
    >>> path = Path(mkdtemp()) / "reference.csv"
    >>> _ = path.write_text("wsi_file_name,patient_id,rna_TP53\nS1.svs,P1,5.0\nS2.svs,P1,5.0\n")
    >>> table = read_expression(path)
    >>> table.expression
                   TP53
    wsi_file_name
    S1.svs          5.0
    S2.svs          5.0
    >>> table.patients.tolist()
    ['P1', 'P1']
    """
    path = Path(path)
    frame = _read(path)
    if _SLIDE in frame.columns:
        frame = frame.set_index(_SLIDE)
    patients = None
    if _PATIENT in frame.columns:
        values = frame[_PATIENT]
        values = values.where(values.notna() & (values.astype(str) != ""))
        patients = values.map(str, na_action="ignore").rename("patient")
        frame = frame.drop(columns=_PATIENT)
    if genes_in == "rows":
        if patients is not None:
            raise ValueError(
                f"{str(path)!r} has the patient of each row, so its rows are samples. Use "
                "genes_in='columns'."
            )
        frame = frame.T
    elif _looks_like_samples(frame.columns):
        raise ValueError(
            f"{str(path)!r}: its columns are TCGA barcodes, such as {frame.columns[0]!r}, so genes "
            "seem to be in rows. Use genes_in='rows'."
        )
    frame = _gene_columns(frame)
    _check_frame(frame, path)
    frame.columns = frame.columns.map(str)
    check_expression(frame, estimator_name="read_expression", input_name=str(path))
    if patients is not None:
        patients.index = frame.index
    return Bunch(expression=frame, patients=patients, path=str(path))
