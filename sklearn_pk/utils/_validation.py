"""Validation of expression tables and of sample names."""

# SPDX-License-Identifier: BSD-3-Clause

import difflib
import re
import unicodedata
from pathlib import PurePath

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.utils.validation import _num_samples

# Patients of public cohorts. A name may go on after a separator.
_BARCODE = re.compile(
    r"(?<![A-Z0-9])(?:(?P<TCGA>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})|(?P<TARGET>TARGET-\d{2}-[A-Z0-9]{6})"
    r"|(?P<HCMI>HCM-[A-Z0-9]{4}-\d{4}-C\d{2})|(?P<CPTAC>C3[LN]-\d{5})|(?P<GTEx>GTEX-[A-Z0-9]{4,5}))"
    r"(?![A-Z0-9])"
)
_MAX_NAMED = 5
# Its square is still a float32.
_MAX_EXPRESSION = 1e18


def name_some(items, *, total=None):
    """Return the first few items as text, and the number of others."""
    items = list(items)
    total = len(items) if total is None else total
    shown = ", ".join(repr(_plain(item)) for item in items[:_MAX_NAMED])
    left = total - min(len(items), _MAX_NAMED)
    return f"{shown} and {left} more" if left > 0 else shown


def _plain(item):
    return item.item() if isinstance(item, np.generic) else item


def did_you_mean(names, known):
    """Return a sentence with what names that were not found may mean, or ""."""
    # Letters in other cases and versions of Ensembl identifiers are what differs most.
    similar = {_plain_gene(name): name for name in reversed(list(known)) if isinstance(name, str)}
    meant = {}
    for name in [name for name in names if isinstance(name, str)][:_MAX_NAMED]:
        plain = _plain_gene(name)
        close = [plain] if plain in similar else difflib.get_close_matches(plain, similar, n=3)
        if close:
            meant[name] = " or ".join(repr(similar[each]) for each in close)
    shown = list(meant.values())
    if len(meant) > 1:
        shown = [f"{close} for {name!r}" for name, close in meant.items()]
    return f" Did you mean {', '.join(shown)}?" if shown else ""


def _plain_gene(name):
    return re.sub(r"\.\d+$", "", name.strip()).upper()


def plain_name(name):
    """Return a name in lower case, normalised and with dashes for other separators."""
    text = unicodedata.normalize("NFKC", str(name)).strip().casefold()
    return re.sub(r"[-_.\s\u2010-\u2015]+", "-", text).strip("-")


def split_barcode(name):
    """Return the public cohort of a name, its patient, and what follows; None without one."""
    found = _BARCODE.search(plain_name(name).upper())
    if found is None:
        return None, None, ""
    return found.lastgroup, found.group(), found.string[found.end() :].strip("-")


def _names_of_columns(columns, input_name):
    """Return gene names as an object array, or None for the default index."""
    if isinstance(columns, pd.RangeIndex) and columns.start == 0 and columns.step == 1:
        return None
    index = pd.Index(columns)
    duplicated = index[index.duplicated()].unique()
    if len(duplicated):
        raise ValueError(
            f"{input_name} must have unique gene names, got duplicate gene names: "
            f"{name_some(duplicated)}. Average or drop the duplicates, for example with "
            "y.T.groupby(level=0).mean().T."
        )
    names = np.empty(len(index), dtype=object)
    names[:] = list(index)
    return names


def _float_dtype(dtypes):
    """Return float32 unless a dtype is wider, float64 otherwise."""
    narrow = all(str(dtype).lower() in ("float32", "float16") for dtype in dtypes)
    return np.float32 if narrow else np.float64


def _values_of_frame(frame, input_name):
    dtypes = frame.dtypes
    first = dtypes.iloc[0]
    if isinstance(first, np.dtype) and first.kind in "fiu" and (dtypes == first).all():
        return frame.to_numpy(dtype=_float_dtype(dtypes.iloc[:1]))
    wrong = []
    for name, dtype in zip(frame.columns, frame.dtypes, strict=True):
        if pd.api.types.is_numeric_dtype(dtype) and dtype.kind != "c":
            continue
        try:
            if not pd.api.types.is_object_dtype(dtype):
                raise TypeError(f"{dtype} is not numeric")
            frame[name].astype(np.float64)
        except (TypeError, ValueError):
            wrong.append(name)
    if wrong:
        raise TypeError(
            f"{input_name} must hold numbers only, got columns that are not numeric: "
            f"{name_some(wrong)}. Move identifiers to the index, for example with y.set_index(...)."
        )
    dtype = _float_dtype(frame.dtypes)
    if all(isinstance(column_type, np.dtype) for column_type in frame.dtypes):
        return frame.to_numpy(dtype=dtype)
    return frame.to_numpy(dtype=dtype, na_value=np.nan)


def _values_of_array(y, input_name):
    if sparse.issparse(y):
        raise TypeError(
            f"{input_name} must be a dense table of expression values, got {type(y).__name__}; "
            "pass y.toarray()."
        )
    array = np.asarray(y)
    if array.dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: {input_name} must hold real expression values."
        )
    if array.dtype.kind in "USO":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{input_name} must hold numbers only, got an array of dtype {array.dtype} "
                f"with values that are not numbers ({error})."
            ) from error
    return array.astype(_float_dtype([array.dtype]), copy=False)


def check_finite(values, gene_names, sample_names, input_name):
    largest = np.maximum(values.max(), -values.min())  # NaN if there is one
    if largest <= _MAX_EXPRESSION:
        return
    if np.isfinite(largest):
        kind, bad = f"{largest:.3g}", np.abs(values) > _MAX_EXPRESSION
    elif np.isnan(largest):
        kind, bad = "NaN", np.isnan(values)
    else:
        kind, bad = "infinity", np.isinf(values)
    genes, samples = np.flatnonzero(bad.any(axis=0)), np.flatnonzero(bad.any(axis=1))
    gene_labels = genes if gene_names is None else gene_names[genes]
    sample_labels = samples if sample_names is None else np.asarray(sample_names)[samples]
    limit = f" (inf) or a value too large for dtype('{values.dtype}')" if kind == "infinity" else ""
    if np.isfinite(largest):
        limit = f", whose square overflows (at most {_MAX_EXPRESSION:g} is computed with)"
    raise ValueError(
        f"Input {input_name} contains {kind}{limit}. It is found in {len(genes)} of "
        f"{values.shape[1]} genes ({name_some(gene_labels)}) and {len(samples)} of "
        f"{values.shape[0]} samples ({name_some(sample_labels)}). Drop these genes or samples, "
        "or impute the values."
    )


def check_expression(y, *, estimator_name="The estimator", input_name="y"):
    """
    Check an expression table and split it into values and gene names.

    Parameters
    ----------
    y : array-like or DataFrame of shape (n_samples,) or (n_samples, n_genes)
        Expression, usually log2(x + 1). Columns of a DataFrame are genes.
    estimator_name : str, default="The estimator"
        Caller named in error messages.
    input_name : str, default="y"
        Name of the table in error messages.

    Returns
    -------
    values : ndarray of shape (n_samples, n_genes), float32 or float64
        The values; float32 stays float32, everything else becomes float64.
    gene_names : ndarray of shape (n_genes,), dtype object, or None
        Columns of a DataFrame or name of a Series, None if there are none.
    is_1d : bool
        Whether `y` had one dimension.

    Raises
    ------
    TypeError
        If `y` is sparse or a column is not numeric.
    ValueError
        If `y` is None, empty, has more than two dimensions or duplicate gene names, or holds NaN
        or infinity; genes and samples are named.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn_pk.utils import check_expression
    >>> values, gene_names, is_1d = check_expression(pd.DataFrame({"ESR1": [5.0, 9.5]}))
    >>> values.shape, list(gene_names), is_1d
    ((2, 1), ['ESR1'], False)
    """
    if y is None:
        raise ValueError(
            f"{estimator_name} requires {input_name} to be passed, but the target {input_name} "
            "is None. Pass the expression, one row per sample and one column per gene."
        )
    gene_names = sample_names = None
    if isinstance(y, pd.DataFrame):
        gene_names, sample_names = _names_of_columns(y.columns, input_name), y.index
        values = _values_of_frame(y, input_name)
    elif isinstance(y, pd.Series):
        sample_names = y.index
        if isinstance(y.name, str):
            gene_names = _names_of_columns([y.name], input_name)
        values = _values_of_frame(y.to_frame(), input_name)[:, 0]
    else:
        if hasattr(y, "columns"):
            gene_names = _names_of_columns(list(y.columns), input_name)
        values = _values_of_array(y, input_name)
    is_1d = values.ndim == 1
    if values.ndim not in (1, 2):
        raise ValueError(
            f"{input_name} should be a 1d array or a table of shape (n_samples, n_genes), got "
            f"an array of shape {values.shape}."
        )
    if values.size == 0:
        raise ValueError(
            f"{estimator_name} requires at least one sample and one gene, got {input_name} "
            f"of shape {values.shape}."
        )
    if is_1d:
        values = values[:, np.newaxis]
    check_finite(values, gene_names, sample_names, input_name)
    return values, gene_names, is_1d


def check_gene_order(gene_names, fitted_names):
    """Check that y has the fitted genes in their order, where both have names."""
    if gene_names is None or fitted_names is None:
        return
    if len(gene_names) != len(fitted_names):
        raise ValueError(
            f"y has {len(gene_names)} genes, but fit had {len(fitted_names)}. Use "
            "y[model.gene_names_out_]."
        )
    wrong = [n for n, own in zip(gene_names, fitted_names, strict=True) if n != own]
    if wrong and len(gene_names) > 1:  # a single column is often named after its content
        raise ValueError(
            f"y has other genes than in fit, or another order: {name_some(wrong)}. Use "
            "y[model.gene_names_out_]."
        )


def name_of_item(item):
    """Return the file or slide of a sample as text, or None."""
    for name in (item, getattr(item, "slide", None), getattr(item, "path", None)):
        if isinstance(name, PurePath) or (isinstance(name, str) and name):
            return str(name)
    return None


def sample_names_of(X):
    """Return the name of each sample (file, slide or row label), or None if X has none."""
    if isinstance(X, pd.DataFrame) and "slide" in X.columns:
        X = X["slide"]
    if isinstance(X, pd.Series) and X.map(name_of_item).notna().all():
        return [name_of_item(item) for item in X]
    if isinstance(X, (pd.DataFrame, pd.Series)):
        return list(map(str, X.index)) if has_names(X.index) else None
    if isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.dtype.kind in "OU"):
        names = [name_of_item(item) for item in X]
        return None if None in names else names
    return None


def has_names(index):
    """Return whether an index has names; integers are row numbers."""
    return not (pd.api.types.is_numeric_dtype(index) or isinstance(index, pd.MultiIndex))


def _contains(text, name):
    """Return whether text contains name as a whole word: S1 in S1-01A.svs, not in S10.svs."""
    start = text.find(name)
    while start >= 0:
        before, after = text[start - 1 : start], text[start + len(name) :][:1]
        if not before.isalnum() and not after.isalnum():
            return True
        start = text.find(name, start + 1)
    return False


def same_sample(x_name, y_name):
    """Return whether two names, of files, slides or patients, are of the same sample."""
    if x_name == y_name:
        return True
    x_path, y_path = PurePath(x_name), PurePath(y_name)
    x_code, y_code = split_barcode(x_path.name), split_barcode(y_path.name)
    if x_code[1] and y_code[1]:
        # A donor of GTEx has many tissues.
        x_tissue, y_tissue = (rest.partition("-")[0] for *_, rest in (x_code, y_code))
        is_other = x_code[0] == "GTEx" and x_tissue and y_tissue and x_tissue != y_tissue
        return x_code[1] == y_code[1] and not is_other
    tail = "/".join(x_path.parts[-2:])
    return bool(y_name) and (_contains(tail, y_name) or _contains(y_name, x_path.stem))


def check_sample_names(X, y):
    """Check that the rows of y belong to the samples of X, where both have names."""
    n_samples, n_rows = _num_samples(X), _num_samples(y)
    if n_samples != n_rows:
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: X has "
            f"{n_samples} samples, y has {n_rows} rows. Each sample needs one row of y."
        )
    if not isinstance(y, (pd.DataFrame, pd.Series)) or not has_names(y.index):
        return
    x_names = sample_names_of(X)
    if x_names is None:
        return
    y_names = [str(name) for name in y.index]
    wrong = [
        row
        for row, (x_name, y_name) in enumerate(zip(x_names, y_names, strict=True))
        if not same_sample(x_name, y_name)
    ]
    if wrong:
        shown = "; ".join(
            f"row {row}: X has {x_names[row]!r}, y has {y_names[row]!r}" for row in wrong[:3]
        )
        raise ValueError(
            f"The rows of y do not belong to the samples of X: {len(wrong)} of {n_rows} carry "
            f"different names ({shown}). Put y in the order of X (y.loc[names]), or, if the "
            "rows do correspond, drop the names with y.reset_index(drop=True)."
        )
