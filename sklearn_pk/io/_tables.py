"""Read tables of any common format, as they are in the file."""

# SPDX-License-Identifier: BSD-3-Clause

import bz2
import codecs
import csv
import gzip
import io
import lzma
import math
import re
import struct
import sys
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pyarrow import ArrowException

from ..utils import check_expression
from ..utils._validation import name_some

_FORMATS = (
    "delimited text, parquet, feather, npz, Excel or h5ad; text also compressed with gzip, bzip2, "
    "xz or zip"
)
# Representations of missing values.
_MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None"]
_NUMBER = re.compile(
    r"|".join(map(re.escape, _MISSING)) + r"|[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?[Ii]nf"
)
# Columns of names, which may look like numbers.
_IDENTIFIER = re.compile(r"(^|[_ .])(id|ids|name|barcode|symbol|sample|patient|case|slide)$")
_ROW_KEYS = ("sample", "samples", "slide", "slides", "patient", "patients", "index", "names")
_COLUMN_KEYS = ("gene", "genes", "feature", "features", "columns")


# Text with mostly zeros is compressed to 1 %; a higher ratio indicates a decompression bomb.
_MAX_EXPANSION = 200
_MIN_LIMIT = 32 << 20
_MAX_COLUMNS = 1_000_000
_CHUNK = 1 << 20
# Columns above which a table is read row by row.
_WIDE = 3000
# Errors of pandas, numpy and pyarrow for damaged files or other formats.
BAD_FILE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(AttributeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(struct.error, tokenize.TokenError, ArrowException),
)


class RawTable(NamedTuple):
    """A table as it is in the file: one name per column, the names of rows in a column, too."""

    header: list  # of str
    frame: pd.DataFrame  # columns are numbered
    comments: list  # lines above the header
    kind: str = "text"
    marks: tuple = (".", None)  # of decimals and thousands

    def texts(self):
        """Return the columns of text, but the first."""
        # A column is not taken out of the frame to see its type: there may be 60,000.
        return [at for at, dtype in enumerate(self.frame.dtypes) if at and dtype.kind not in "fiub"]

    def first_numbers(self):
        """Return the first column, which text files hold as text, as numbers, or NaN."""
        decimal, thousands = self.marks
        column = self.frame[0]
        if self.kind == "text" and self.marks != (".", None):
            column = column.str.replace(thousands, "") if thousands else column
            column = column.str.replace(decimal, ".")
        return pd.to_numeric(column, errors="coerce")


def number(names):
    """Return whether texts are numbers or missing, as an array."""
    return np.array([bool(_NUMBER.fullmatch(name.strip())) for name in names], dtype=bool)


def _of_frame(frame, kind):
    """Make a raw table of a DataFrame; names in the index become the first column."""
    if isinstance(frame.columns, pd.MultiIndex):
        raise ValueError(
            f"its columns have {frame.columns.nlevels} levels of names, expected one. Keep one: "
            "frame.columns = frame.columns.get_level_values(0)."
        )
    if not isinstance(frame.index, pd.RangeIndex):
        names = [name or "" for name in frame.index.names]
        names = [f"{name}_{at}" if names.count(name) > 1 else name for at, name in enumerate(names)]
        frame = frame.reset_index(names=names)
    header = [str(name) for name in frame.columns]
    frame = frame.set_axis(range(frame.shape[1]), axis=1)
    nullable = [
        at
        for at, dtype in enumerate(frame.dtypes)
        if not isinstance(dtype, np.dtype) and dtype.kind in "fiub"
    ]
    if nullable:  # Int64 and its like, with pd.NA
        frame[nullable] = frame[nullable].to_numpy(dtype=np.float64, na_value=np.nan)
        frame = frame.astype(dict.fromkeys(nullable, np.float64))
    return RawTable(header, frame, [], kind)


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
        raise ValueError(
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
                raise ValueError(
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
        raise ValueError(
            f"{str(path)!r}: expected one array with two dimensions, samples x columns, and names "
            f"in other arrays, found {name_some(tables) if tables else 'none'} in {list(arrays)}."
        )
    values = arrays[tables[0]]
    names = {key: each for key, each in arrays.items() if each.ndim == 1 and each.dtype.kind == "U"}
    column_key, columns = _names_for(names, _COLUMN_KEYS, values.shape[1], _ROW_KEYS)
    row_key, rows = _names_for(names, _ROW_KEYS, values.shape[0], (*_COLUMN_KEYS, column_key))
    if rows is None:
        raise ValueError(
            f"{str(path)!r}: its rows have no names. Add an array of strings to the file, "
            f"'samples', with {len(values)} names."
        )
    return pd.DataFrame(values, index=pd.Index(rows, name=row_key), columns=columns)


def _magic(path):
    with path.open("rb") as file:
        return file.read(8)


@contextmanager
def open_text(path):
    """Open a text file, decompressed whatever its name, as bytes."""
    magic = _magic(path)
    openers = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    if magic[:2] != b"PK":
        with openers.get(magic[:2], open)(path, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        # Archives of macOS also hold a folder of resources.
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not re.match(r"__MACOSX/|(.*/)?\.", name)
        ]
        if len(names) != 1:
            raise ValueError(f"{str(path)!r}: expected one file in it, found {len(names)}.")
        with archive.open(names[0]) as file:
            yield file


def _is_compressed(path):
    return _magic(path)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"PK")


def _first_lines(path):
    """Return the first lines, at most 64, after checking that all lines fit into memory."""
    with open_text(path) as file:
        lines = []
        for line in islice(iter(lambda: file.readline(_limit(path)), b""), 64):
            lines.append(line)
            if max(line.count(mark) for mark in (b",", b"\t", b";")) >= _MAX_COLUMNS:
                raise ValueError(
                    f"{str(path)!r}: one of its first lines has more than {_MAX_COLUMNS:,} "
                    "columns. A table has samples in rows and genes in columns, or the other way "
                    "round."
                )
        n_bytes = sum(map(len, lines))
        if _is_compressed(path):
            while n_bytes <= _limit(path) and (chunk := file.read(_CHUNK)):
                n_bytes += len(chunk)
            _check_unpacked(n_bytes, path)
    return lines


def _encoding(lines):
    """Return the encoding of lines of bytes."""
    head = b"".join(lines)
    for mark, name in (
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
        (b"\xef\xbb", "utf-8-sig"),
    ):
        if head.startswith(mark):
            return name
    if head[1:2] == b"\0" or head[:1] == b"\0":
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    try:
        # Of a UTF-8 file, the last line may be cut.
        head.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def decode_text(content):
    """Return the text of bytes in any common encoding."""
    return content.decode(_encoding([content])).lstrip("\ufeff")


def _rows(lines, separator):
    """Split lines into fields, as pandas does."""
    if separator == r"\s+":
        lines, separator = (line.strip() for line in lines), " "
    return csv.reader(lines, delimiter=separator, skipinitialspace=separator == " ")


def _separator(lines, path):
    """Return the separator that gives lines the same number of fields, more than one."""
    best = None
    for separator in ("\t", ",", ";", "|", r"\s+", ":", "^", "~"):
        try:
            counts = [len(row) for row in _rows(lines, separator) if row]
        except csv.Error:  # one field of the whole line
            continue
        width = max(counts[1:] or counts)
        # R leaves out the name of the first column.
        fits = width > 1 and counts[0] in (width, width - 1) and counts[1:].count(width)
        score = (counts[1:].count(width) / max(1, len(counts) - 1), width) if fits else (0, 0)
        if fits and (best is None or score > best[0]):
            best = score, separator
    if best is None:
        shown = lines[0][:60].strip() if lines else ""
        raise ValueError(
            f"{str(path)!r}: expected a table of samples x columns, separated by tabs, commas, "
            f"semicolons or spaces, with the names of rows in the first column; its first line is "
            f"{shown!r}."
        )
    return best[1]


def _check_text(head, path):
    """Raise for files that are no table of text, by their first bytes."""
    for mark, found in (
        (b"{", "JSON"),
        (b"<", "a web page or XML; perhaps the download failed"),
        (b"RDX", "data of R. Save it in R with write.csv"),
        (b"X\n\0\0", "data of R. Save it in R with write.csv"),
        (b"%PDF", "PDF"),
    ):
        if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(mark):
            raise ValueError(
                f"{str(path)!r}: expected a table of samples x columns, found {found}."
            )
    if head[257:262] == b"ustar":
        raise ValueError(
            f"{str(path)!r}: expected one table, found a tar archive. Extract it, and pass "
            "one file in it, or, of a download from GDC, the folder."
        )


def _split_comments(lines):
    """Separate lines above the header: comments, and the two lines of a GCT file."""
    n_comments = 0
    while n_comments < len(lines) and (
        lines[n_comments].startswith(("#", "!")) or not lines[n_comments].strip()
    ):
        n_comments += 1
    comments, is_gct = lines[:n_comments], lines[0].startswith("#1.") if lines else False
    if is_gct and n_comments < len(lines):
        comments, n_comments = lines[: n_comments + 1], n_comments + 1
    return [line.strip() for line in comments], lines[n_comments:]


def _number_format(cells, path):
    """Return the marks of decimals and of thousands, or None, that numbers are written with."""
    marked = [cell for cell in cells if re.fullmatch(r"[+-]?[\d.,]+([eE][+-]?\d+)?", cell)]
    commas = [cell for cell in marked if "," in cell]
    points = [cell for cell in marked if "." in cell]
    groups = {",": [], ".": []}  # cells that may have marks of thousands
    for mark, found in ((",", commas), (".", points)):
        pattern = re.compile(rf"[+-]?[1-9]\d{{0,2}}(\{mark}\d{{3}})+([.,]\d+)?")
        groups[mark] = [cell for cell in found if pattern.fullmatch(cell)]
    both = [cell for cell in commas if "." in cell]
    if both:  # 1,234.5 or 1.234,5
        mark = "," if all(cell.rfind(",") < cell.rfind(".") for cell in both) else "."
        found = commas if mark == "," else points
        if len(groups[mark]) == len(found):
            return (".", ",") if mark == "," else (",", ".")
    elif len(commas) > len(groups[","]) and not points:
        return ",", None
    elif (
        commas
        and len(commas) == len(groups[","])
        and (points or any(cell.count(",") > 1 for cell in commas))
    ):
        return ".", ","
    whole = [int(cell) for cell in marked if cell.isdigit() and cell.strip("0")]
    grouped = len(points) > 2 and len(groups["."]) == len(points) and whole and max(whole) < 1000
    if commas or grouped:
        shown = (both or commas or points)[0]
        raise ValueError(
            f"{str(path)!r}: it cannot be decided whether {shown!r} has a mark of decimals or of "
            "thousands. Save the table without marks of thousands."
        )
    return ".", None


def _find_texts(rows, header, marks):
    """Return the columns that hold text in any of the rows, or names."""
    decimal, thousands = marks

    def plain(cell):
        cell = cell.replace(thousands, "") if thousands else cell
        return cell.replace(decimal, ".")

    is_number = np.all([number(map(plain, row)) for row in rows], axis=0)
    return [
        at
        for at, name in enumerate(header)
        if at == 0 or not is_number[at] or _IDENTIFIER.search(name.lower())
    ]


def _check_short_rows(frame, texts, separator, skipped, encoding, path):
    """Raise for lines with too few fields, which pandas fills with missing values."""
    last = frame.columns[-1]
    empty = frame[last].eq("") if last in texts else frame[last].isna()
    if not empty.any():
        return
    with open_text(path) as file:
        lines = io.TextIOWrapper(file, encoding=encoding, newline="")
        for at, row in enumerate(_rows(islice(lines, skipped, None), separator), skipped + 1):
            if row and len(row) < frame.shape[1] and not row[0].startswith(("#", "!")):
                raise ValueError(
                    f"{str(path)!r}: line {at} has {len(row)} fields, expected {frame.shape[1]}. "
                    "The file may be incomplete: download it again, or correct the line."
                )


def _read_wide(path, header, texts, separator, encoding, skipped):
    """Read a table of many columns row by row, as pandas takes long for each column."""
    numeric = np.setdiff1d(np.arange(len(header)), texts)
    names, rows = {at: [] for at in texts}, []
    with open_text(path) as file:
        lines = io.TextIOWrapper(file, encoding=encoding, newline="")
        for row in _rows(islice(lines, skipped, None), separator):
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{str(path)!r}: {len(header)} names of columns, but row {row[0]!r} has "
                    f"{len(row)} fields."
                )
            cells = np.array(row, dtype=object)
            for at in texts:
                names[at].append(row[at])
            try:
                rows.append(cells[numeric].astype(np.float64))
            except ValueError:
                rows.append(_numbers(cells[numeric], numeric, header, row[0], path))
    frame = pd.DataFrame(np.array(rows), columns=numeric)
    for at, column in names.items():
        frame.insert(int(np.searchsorted(frame.columns.to_numpy(), at)), at, column)
    return frame


def _numbers(cells, columns, header, name, path):
    """Convert texts to numbers, and missing ones to NaN."""
    is_number = number(cells)
    if not is_number.all():
        at = np.flatnonzero(~is_number)[0]
        raise _not_a_number(cells[at], header[columns[at]], name, path)
    return np.where(np.isin(cells.astype(str), _MISSING), "nan", cells).astype(np.float64)


def _not_a_number(cell, column, row, path):
    return TypeError(
        f"{str(path)!r} must hold numbers only, got {cell!r} in column {column!r} and row {row!r}. "
        "Correct it, or drop the column."
    )


def _drop_comments(frame, texts):
    """Leave out comments below the header; return them, too."""
    is_comment = frame[0].str.match(r"[#!]").to_numpy(dtype=bool, copy=True)
    for at in frame.columns[1:] if is_comment.any() else ():
        is_comment &= (frame[at].isna() | frame[at].eq("")).to_numpy()
    if not is_comment.any():
        return frame, []
    return frame[~is_comment].reset_index(drop=True), frame[0][is_comment].tolist()


def _read_text(path):
    raw_lines = _first_lines(path)
    encoding = _encoding(raw_lines)
    _check_text(b"".join(raw_lines)[:512], path)
    if encoding.startswith(("utf-16", "utf-32")):
        with open_text(path) as file:
            lines = list(islice(codecs.getreader(encoding)(file), 64))
    else:
        lines = b"".join(raw_lines).decode(encoding, errors="replace").splitlines(keepends=True)
    lines[:1] = [line.lstrip("\ufeff") for line in lines[:1]]
    if "\0" in "".join(lines[:2]):
        raise ValueError(f"{str(path)!r}: expected a table of text, found binary data.")
    comments, lines = _split_comments(lines)
    if len(lines) < 2:
        raise ValueError(
            f"{str(path)!r}: expected a table of samples x columns, found {len(lines)} lines."
        )
    # Few lines of wide tables say as much as many of narrow ones.
    lines = lines[: max(4, 500_000 // len(lines[0]))]
    separator = _separator(lines, path)
    header, *rows = _rows(lines, separator)
    rows = [row for row in rows if len(row) == max(map(len, rows))]
    header = [name.strip() for name in header]
    if len(header) == len(rows[0]) - 1:
        # R leaves out the name of the first column; others end each row with a separator.
        header = ["", *header] if any(row[-1] for row in rows) else [*header, ""]
    cells = [cell.strip() for row in rows for cell in row[1:]]
    marks = _number_format(cells, path)
    texts = _find_texts(rows, header, marks)
    skipped = len(comments) + 1
    if len(header) > _WIDE and marks == (".", None):
        frame = _read_wide(path, header, texts, separator, encoding, skipped)
        return RawTable(header, frame, comments)
    options = {
        "sep": separator,
        "header": None,
        "skiprows": skipped,
        "encoding": encoding,
        "decimal": marks[0],
        "thousands": marks[1],
        "low_memory": False,
        "keep_default_na": False,
        "na_values": _MISSING,
        # Names are strings: 001 is not 1.
        "dtype": dict.fromkeys(texts, str),
        "skip_blank_lines": True,
    }
    with open_text(path) as file:
        frame = pd.read_csv(file, **options)
    if frame.shape[1] > max(texts) and frame[texts].isna().any(axis=None):
        # NA is a valid name; a second pass is needed in few tables only.
        options |= {"usecols": texts, "na_filter": False, "na_values": None}
        with open_text(path) as file:
            frame[texts] = pd.read_csv(file, **options)
    if frame.shape[1] != len(header):
        raise ValueError(
            f"{str(path)!r}: {len(header)} names of columns, but rows have {frame.shape[1]} fields."
        )
    frame, below = _drop_comments(frame, texts)
    _check_short_rows(frame, texts, separator, skipped, encoding, path)
    return RawTable(header, frame, comments + below, marks=marks)


def check_numbers(table, columns, path):
    """Raise for columns that are mostly numbers, but not only."""
    for at in columns:
        column = table.frame[at]
        if column.dtype.kind in "fiub":
            continue
        cells = column[column.notna()].astype(str)
        bad = cells[~number(cells)]
        if len(bad) and len(bad) <= 0.5 * (~cells.isin(_MISSING)).sum():
            name = table.frame[0][bad.index[0]]
            raise _not_a_number(bad.iloc[0], table.header[at], name, path)


def to_numbers(table, columns):
    """Convert columns of text to numbers; return the frame."""
    frame, columns = table.frame, list(columns)
    cells = frame[columns].to_numpy(dtype=object)
    missing = pd.isna(cells) | np.isin(cells.astype(str), _MISSING)
    try:
        values = np.where(missing, np.nan, cells).astype(np.float64)
    except ValueError:
        check_numbers(table, columns, "the table")
        raise TypeError(
            f"expected numbers, found text, such as {cells[0, 0]!r} in column "
            f"{table.header[columns[0]]!r}."
        ) from None
    kept = frame.drop(columns=columns)
    return pd.concat([kept, pd.DataFrame(values, frame.index, columns)], axis=1)[frame.columns]


def is_hdf5(path):
    """Return whether a file is HDF5, by its content, or claims to be h5ad."""
    if not path.is_file():
        return False
    return path.suffix.lower() == ".h5ad" or _magic(path) == b"\x89HDF\r\n\x1a\n"


def _layers_of(data):
    found = [*data.layers, *(["raw"] if data.raw is not None else [])]
    return f"Choose layer= of {found}." if found else "It has no layers and no raw."


def read_h5ad(path, layer=None):
    """Return values, obs and var of an AnnData file."""
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
            raise ValueError(f"{str(path)!r} has no raw.")
        values, var = data.raw.X, data.raw.var
    elif layer is not None:
        if layer not in data.layers:
            raise ValueError(f"{str(path)!r} has no layer {layer!r}. {_layers_of(data)}")
        values = data.layers[layer]
    else:
        values = data.X
    if values is None:
        raise ValueError(f"{str(path)!r}: X is empty. {_layers_of(data)}")
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if values.size and not values.any():
        raise ValueError(
            f"{str(path)!r}: {'X' if layer is None else layer} has zeros only. {_layers_of(data)}"
        )
    return values, data.obs, var


def _of_h5ad(path):
    values, obs, var = read_h5ad(path)
    return _of_frame(pd.DataFrame(values, obs.index.map(str), var.index.map(str)), "h5ad")


def _read_excel(path):
    try:
        sheets = pd.read_excel(path, dtype={0: str}, sheet_name=None)
        table = _of_frame(next(iter(sheets.values())), "Excel")
        left_out = [f"sheet {name!r} left out" for name in list(sheets)[1:]]
        return table._replace(comments=left_out)
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r}: Excel files need the package openpyxl. Install it, or save the sheet "
            "as text. Excel changes gene symbols such as MARCH1 to dates."
        ) from error


def _reader(path):
    """Return the format of a file, by its content, and the function that reads it."""
    magic = _magic(path)
    if magic[:4] == b"PAR1":
        return ".parquet", lambda path: _of_frame(pd.read_parquet(path), "parquet")
    if magic[:6] == b"ARROW1" or magic[:4] == b"FEA1":
        return ".feather", lambda path: _of_frame(pd.read_feather(path), "feather")
    if is_hdf5(path):
        return ".h5ad", _of_h5ad
    if magic[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.startswith("xl/") for name in names):
            return "Excel", _read_excel
        if names and all(name.endswith(".npy") for name in names):
            return ".npz", lambda path: _of_frame(_read_npz(path), "npz")
    kinds = {".parquet": "parquet", ".npz": "npz", ".feather": "feather"}
    kinds |= {".xlsx": "Excel", ".xls": "Excel"}
    claimed = kinds.get(path.suffix.lower())
    if claimed:
        raise ValueError(f"{str(path)!r} cannot be read as {path.suffix}: it is not such a file.")
    return "text", _read_text


def read_raw(path):
    """Read a table as it is in the file."""
    if not path.is_file():
        raise FileNotFoundError(f"File not found: {str(path)!r}.")
    kind = path.suffix.lower() or "a table"
    try:
        kind, read = _reader(path)
        table = read(path)
        for at, dtype in enumerate(table.frame.dtypes):
            if dtype.kind not in "fiub":
                table.frame[at].map(str)  # forces pyarrow to decode
    except ImportError:
        raise
    except pd.errors.ParserError as error:
        fields = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        found = "its lines are not those of a table"
        if fields:
            found = "expected {} fields in line {}, found {}".format(*fields.groups())
        raise ValueError(
            f"{str(path)!r} cannot be read as {kind}: {found}. Correct the file, or download it "
            "again."
        ) from error
    except BAD_FILE as error:
        if str(path) in str(error):
            raise
        expected = "" if str(error) else f"expected {_FORMATS}"
        raise ValueError(f"{str(path)!r} cannot be read as {kind}: {error}{expected}") from error
    return table


def check_frame(frame, path):
    """Raise unless the table has rows and columns with unique names."""
    if not all(frame.shape):
        raise ValueError(
            f"{str(path)!r}: expected a table of samples x columns, got shape {frame.shape}. The "
            "first column of a text file has the row names."
        )
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
        Text with the row names in the first column (separated by tabs, commas, semicolons or
        spaces, also with decimal commas; plain, or compressed with gzip, bzip2, xz or zip; UTF-8,
        UTF-16 or Latin-1), parquet, feather, Excel, h5ad (X of AnnData, with the extra
        ``anndata``), or npz with one array (rows, columns) and both names as arrays of strings.
        The content decides, not the ending of the name.

    Returns
    -------
    table : DataFrame of shape (n_rows, n_columns)
        The values, with rows indexed by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If openpyxl is not installed, for Excel files, or anndata, for AnnData files.
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
    table = read_raw(path)
    header, frame, kind = table.header, table.frame, table.kind
    # Of a reference table of SEQUOIA, the slide names the rows, and the patient is no feature.
    first = header.index("wsi_file_name") if "wsi_file_name" in header else 0
    if frame[first].dtype.kind in "fiu" and kind != "text":
        raise ValueError(
            f"{str(path)!r}: its rows have no names. They are expected in the index or in the "
            "first column."
        )
    names = pd.Index(frame[first].map(str), name=header[first] or None)
    dropped = [first, *(at for at, name in enumerate(header) if name == "patient_id")]
    kept = [at for at in range(len(header)) if at not in dropped]
    check_numbers(table, kept, path)
    frame = frame[kept].set_axis(names).set_axis([header[at] for at in kept], axis=1)
    check_frame(frame, path)
    check_expression(frame, estimator_name="read_table", input_name=str(path))
    return frame
