"""Matching of samples and rows of expression, with a record of the unmatched ones."""

# SPDX-License-Identifier: BSD-3-Clause

import re
from collections import defaultdict
from pathlib import PurePath

import numpy as np
import pandas as pd
from sklearn.utils import Bunch, _safe_indexing

from ..utils import check_expression
from ..utils._patients import infer_groups
from ..utils._validation import TCGA_PATIENT, name_some, sample_names_of

# Suffixes that are removed from names: of slides, and of files with their features.
_ENDINGS = re.compile(
    r"\.(svs|tiff?|ndpi|mrxs|scn|bif|vms|vmu|czi|isyntax|dcm|zarr|h5|hdf5|pt|png|jpe?g)$", re.I
)
_SEPARATORS = re.compile(r"[-_. ]")
_TCGA_SAMPLE = re.compile(TCGA_PATIENT.pattern + r"-(\d{2})", re.IGNORECASE)


def _stem(name):
    """Return the name of a slide without folder and file suffixes."""
    stem = PurePath(str(name)).name
    while _ENDINGS.search(stem):
        stem = _ENDINGS.sub("", stem)
    return stem


def _prefixes(stem):
    """Return the prefixes of a name that end before a separator, from long to short."""
    ends = [found.start() for found in _SEPARATORS.finditer(stem)]
    return [stem[:end] for end in reversed(ends) if end]


def _tcga(stem):
    """Return patient and sample type (01 to 09 are tumours) of a TCGA barcode, or None."""
    patient = TCGA_PATIENT.match(stem)
    if patient is None:
        return None, None
    sample = _TCGA_SAMPLE.match(stem)
    return patient.group().upper(), None if sample is None else sample.group(1)


def _is_tumour(sample_type):
    return sample_type < "10"


class _Rows:
    """Rows of expression, indexed by name and patient."""

    def __init__(self, names, groups):
        self._groups = groups
        self._by_name, self._by_patient = defaultdict(list), defaultdict(list)
        for row, name in enumerate(names):
            stem = _stem(name)
            self._by_name[stem].append(row)
            patient, sample_type = _tcga(stem)
            if patient:
                self._by_patient[patient].append((row, sample_type))

    def find(self, name):
        """Return the candidate rows of a sample, and how they were matched."""
        stem = _stem(name)
        if stem in self._by_name:
            return self._by_name[stem], "name"
        patient, sample_type = _tcga(stem)
        if patient:
            return self._find_tcga(patient, sample_type)
        for prefix in _prefixes(stem):
            if prefix in self._by_name:
                return self._by_name[prefix], "start of the name"
        return [], "no row of that name"

    def _find_tcga(self, patient, sample_type):
        rows = self._by_patient.get(patient, [])
        if not rows:
            return [], "no row of that patient"
        same = [row for row, other in rows if sample_type is not None and other == sample_type]
        if same:
            return same, "TCGA sample"
        if sample_type is None:
            fitting = [row for row, other in rows if other is None or _is_tumour(other)]
        else:
            fitting = [row for row, other in rows if other is None and _is_tumour(sample_type)]
        if fitting:
            return fitting, "TCGA patient"
        types = sorted({other or "not named" for _, other in rows})
        own = f", the sample of type {sample_type}" if sample_type else ""
        return [], f"the rows of that patient are of sample type {', '.join(types)}{own}"

    def choose(self, name):
        """Return the row of a sample or None, and how it was matched or why not."""
        rows, how = self.find(name)
        if len(set(self._groups[rows])) > 1:
            return None, f"{len(rows)} different rows, all by {how}"
        return (rows[0], how) if rows else (None, how)


def _patients_of(expression, patients, same_rows):
    """Return the given patient of each row, that of its barcode, or the first of equal rows."""
    if patients is not None:
        given = pd.Series(patients)
        if not isinstance(patients, pd.Series):
            given.index = expression.index[: len(given)]
        missing = expression.index.difference(given.index[given.notna()])
        if len(missing):
            raise ValueError(
                f"patients: {len(missing)} rows of expression have no patient: "
                f"{name_some(missing)}."
            )
        return given[expression.index].astype(str).to_numpy()
    barcodes = [_tcga(_stem(name))[0] for name in expression.index]
    names = expression.index.to_numpy(dtype=str)[same_rows]
    return np.array([code or name for code, name in zip(barcodes, names, strict=True)], dtype=str)


def match_samples(X, expression, *, patients=None):
    """
    Match samples with rows of expression, and report what was not matched and why.

    A sample is matched by its full name, without folders and file suffixes. Otherwise, a TCGA
    barcode is matched by patient and sample type, or by patient if one of both has no type, which
    then counts as a tumour (normal tissue is never matched with a tumour). Other names are matched
    with a row whose name is a prefix that ends before a dash, underscore, dot or space.

    Parameters
    ----------
    X : FeatureBags, list of FeatureBag or of paths, or DataFrame of n samples
        Samples with names: of slides, or the index of a DataFrame.
    expression : DataFrame of shape (n_rows, n_genes)
        One row per slide, sample or patient, indexed by name.
    patients : Series or array-like of shape (n_rows,), default=None
        Patient of each row of `expression`; a Series is matched by name. None takes the TCGA
        barcode of a row; other rows are patients of their own unless their values are equal.

    Returns
    -------
    matched : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the attributes:

        X : list, FeatureBags or DataFrame of n_matched samples
            Samples that have a row, in their order.
        expression : DataFrame of shape (n_matched, n_genes)
            Their rows, indexed by the names of the samples.
        patients : ndarray of shape (n_matched,), str
            Patient of each, for use as `groups`.
        audit : DataFrame of n samples
            One row per sample: ``row`` of expression (None if there is none), ``patient`` and
            ``how`` it was matched, or why not.
        unused_rows : list of str
            Rows of expression without a sample, except for other slides of matched patients.

    Raises
    ------
    TypeError
        If `expression` is not a DataFrame, or not numeric.
    ValueError
        If `X` has no names or repeated names, if nothing matches, if a row lacks a patient, or if
        `expression` contains NaN.

    See Also
    --------
    read_expression : Reads expression and patients.

    Notes
    -----
    Several rows for a sample are allowed if they are equal, as in tables with one row per slide;
    if they differ, the sample is omitted, as reported in `audit`.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn_pk.io import match_samples
    >>> X = pd.DataFrame({"area": [0.1, 0.2, 0.3]}, index=["P1-a", "P1-b", "P3-a"])
    >>> expression = pd.DataFrame({"TP53": [5.0, 6.0]}, index=["P1", "P2"])
    >>> matched = match_samples(X, expression)
    >>> matched.expression
          TP53
    P1-a   5.0
    P1-b   5.0
    >>> matched.audit["how"].tolist()
    ['start of the name', 'start of the name', 'no row of that name']
    >>> matched.unused_rows
    ['P2']
    """
    names = sample_names_of(X)
    if names is None:
        raise ValueError(
            "X must have sample names: bags with a slide (FeatureBag(features, "
            "slide='NAME')), paths, or a DataFrame whose index has names."
        )
    if not names:
        raise ValueError("X has no samples.")
    labels = [_stem(name) for name in names]
    repeated = pd.Index(labels)[pd.Index(labels).duplicated()].unique()
    if len(repeated):
        raise ValueError(f"X has {len(repeated)} repeated names: {name_some(repeated)}.")
    if not isinstance(expression, pd.DataFrame):
        raise TypeError(
            f"expression must be a DataFrame indexed by sample, got {type(expression).__name__}."
        )
    values = check_expression(expression, estimator_name="match_samples")[0]
    expression = expression.set_axis(expression.index.map(str))
    # Rows with equal values; with one gene they may be equal by chance, which does no harm here.
    same_rows = infer_groups(values)
    first = np.unique(same_rows, return_index=True)[1]
    of_patient = _patients_of(expression, patients, first[same_rows])
    rows = _Rows(expression.index, same_rows)
    found = [rows.choose(name) for name in names]
    kept = np.array([i for i, (row, _) in enumerate(found) if row is not None], dtype=int)
    if not len(kept):
        raise ValueError(
            f"None of the {len(names)} samples of X (such as {labels[0]!r}) has a row among the "
            f"{len(expression)} of expression (such as {expression.index[0]!r}): "
            f"{found[0][1]}."
        )
    chosen = [found[i][0] for i in kept]
    audit = pd.DataFrame(
        {
            "row": [None if row is None else expression.index[row] for row, _ in found],
            "patient": [None if row is None else of_patient[row] for row, _ in found],
            "how": [how for _, how in found],
        },
        index=pd.Index(labels, name="sample"),
        dtype=object,
    )
    matched = expression.iloc[chosen].set_axis([labels[i] for i in kept])
    # Other slides of a patient with the same row count as used.
    used = set(zip(same_rows[chosen], of_patient[chosen], strict=True))
    return Bunch(
        X=_take(X, kept),
        expression=matched,
        patients=of_patient[chosen],
        audit=audit,
        unused_rows=[
            name
            for name, *key in zip(expression.index, same_rows, of_patient, strict=True)
            if tuple(key) not in used
        ],
    )


def _take(X, kept):
    taken = _safe_indexing(X, kept)
    if hasattr(X, "failures"):  # FeatureBags
        return type(X)(taken, X.failures)
    return taken
