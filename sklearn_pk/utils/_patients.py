"""Patients of samples: checked, inferred from expression, averaged."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import PurePath

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.utils.validation import _num_samples

from ._reporting import callers_warn, warn_user
from ._validation import has_names, name_some, plain_name, sample_names_of, split_barcode

# Samples with fewer distinct values may be equal by chance.
_FEWEST_VALUES = 3


def check_groups(groups, y, X=None):
    """
    Check that there is one patient for each sample.

    A warning is issued if the patients contradict the barcodes (TCGA, TARGET, HCMI, CPTAC, GTEx)
    in the names of the samples or in `groups` itself, or if they differ only in case or
    separators, so that a patient would be in several groups.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Patient of each sample.
    y : array-like or DataFrame of n_samples
        Data of the same samples.
    X : FeatureBags, list or DataFrame of n_samples, default=None
        Samples, whose names are used if `y` has none.

    Returns
    -------
    groups : ndarray of shape (n_samples,)
        The patients, without spaces around them; labels of mixed types are converted to text.

    Raises
    ------
    ValueError
        If there is not one patient per sample, if one is missing, or if groups and y are indexed
        by the same samples in a different order.

    Examples
    --------
    >>> from sklearn_pk.utils import check_groups
    >>> check_groups(["P1", "P1", "P2"], [[5.0], [5.0], [9.5]]).tolist()
    ['P1', 'P1', 'P2']
    """
    labels, n_samples = np.asarray(groups), _num_samples(y)
    if labels.shape != (n_samples,):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: groups must name the "
            f"patient of each of the {n_samples} samples, got shape {labels.shape}."
        )
    # As text, a missing label would be the string "nan".
    is_missing = pd.isna(np.asarray(groups, dtype=object))
    if labels.dtype.kind in "OUT":
        # Labels of mixed type (patient 12 and patient "12b") cannot be sorted, as splitters do.
        labels = np.array([_label(label) for label in labels], dtype=str)
        is_missing |= np.isin(labels, ["", "nan"])
    missing = np.flatnonzero(is_missing)
    if missing.size:
        raise ValueError(
            f"groups must name the patient of each sample, but {missing.size} samples have no "
            f"patient, the first at position {missing[0]}."
        )
    if isinstance(groups, pd.Series) and isinstance(y, pd.DataFrame | pd.Series):
        _check_order(groups.index, y.index)
    _warn_of_contradictions(labels, y, X)
    return labels


def _label(label):
    """Return a patient as text; 12.0 is patient 12, and "P1 " is P1."""
    is_whole = isinstance(label, float | np.floating) and float(label).is_integer()
    return str(int(label) if is_whole else label).strip()


def _warn_of_contradictions(labels, y, X):
    """Warn of patients in several groups, and of groups of several patients, by their names."""
    if callers_warn():
        return
    names = list(y.index) if hasattr(y, "iloc") and has_names(y.index) else sample_names_of(X)
    patients = [split_barcode(PurePath(str(name)).name)[1] for name in names or ()]
    table = pd.DataFrame({"group": labels})
    table["patient"] = patients if any(patients) else [split_barcode(name)[1] for name in labels]
    pairs = table.dropna().drop_duplicates()
    spread = pairs["patient"][pairs["patient"].duplicated()].unique()
    mixed = pairs["group"][pairs["group"].duplicated()].unique()
    kinds = pd.Series({label: plain_name(label) for label in table["group"].unique()}, dtype=object)
    alike = kinds[kinds.duplicated(keep=False) & (kinds != "")].index
    found = []
    if len(spread):
        apart = pairs["group"][pairs["patient"] == spread[0]]
        found.append(
            f"{len(spread)} patients are in several groups, such as {spread[0]!r} in "
            f"{name_some(apart)}"
        )
    if len(mixed):
        together = pairs["patient"][pairs["group"] == mixed[0]]
        found.append(
            f"{len(mixed)} groups hold several patients, such as {mixed[0]!r} with "
            f"{name_some(together)}"
        )
    if len(alike) and not len(spread):
        found.append(f"{len(alike)} groups differ only in case or separators: {name_some(alike)}")
    if found:
        warn_user(
            f"groups: by the names of the samples, {' and '.join(found)}. A patient in several "
            "groups is trained on and tested at once, so that results are too good. Correct "
            "groups, or take patients from the barcodes: patient_ids(names)."
        )


def _check_order(group_index, y_index):
    if not has_names(y_index) or list(group_index) == list(y_index):
        return
    if sorted(map(str, group_index)) == sorted(map(str, y_index)):
        raise ValueError(
            "groups and y are indexed by the same samples in a different order. Reorder with "
            "groups.loc[y.index]."
        )


def patient_key(name):
    """Return what the names of the samples of a patient share: the barcode, or the name."""
    return split_barcode(name)[1] or str(name).strip()


class PatientAverager:
    """Average the samples of each patient."""

    def __init__(self, groups):
        self.patients, first, codes = np.unique(groups, return_index=True, return_inverse=True)
        self._first, self._codes = first, codes
        weights = 1 / np.bincount(codes)[codes]
        shape = (len(first), len(codes))
        where = (codes, np.arange(len(codes)))
        self._weights = sparse.csr_array((weights, where), shape=shape)

    def __matmul__(self, values):
        """Return the mean of the rows of each patient, in float64."""
        first = values[self._first]
        return first + self._weights @ (values - first[self._codes])


def infer_groups(values):
    """Return a patient number per sample; samples of identical expression share it."""
    if values.shape[1] == 1:
        return np.arange(len(values))
    seen = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in values + 0.0])


def warn_of_equal(values, groups):
    """Warn if samples of equal expression are in different groups, unless a caller does."""
    if callers_warn():
        return
    varied = is_varied(values)
    equal = infer_groups(values[varied])
    n_apart = (pd.Series(groups[varied]).groupby(equal).transform("nunique") > 1).sum()
    if n_apart:
        warn_user(
            f"groups: {n_apart} samples have the same expression as one of another patient. They "
            "are slides of one patient, or a mistake in y. Correct groups or y."
        )


def is_varied(values):
    """Return which samples have so many distinct values that none is equal by chance."""
    some = values[:, :: max(1, values.shape[1] // 200)]
    return np.array([len(np.unique(row)) > _FEWEST_VALUES for row in some], dtype=bool)
