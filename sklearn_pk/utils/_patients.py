"""Patients of samples: checked, inferred from expression, averaged."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.utils.validation import _num_samples

from ._validation import TCGA_PATIENT, has_names


def check_groups(groups, y):
    """
    Check that there is one patient for each sample.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Patient of each sample.
    y : array-like or DataFrame of n_samples
        Data of the same samples.

    Returns
    -------
    groups : ndarray of shape (n_samples,)
        The patients; labels of mixed types are converted to text.

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
    missing = np.flatnonzero(pd.isna(np.asarray(groups, dtype=object)))
    if missing.size:
        raise ValueError(
            f"groups must name the patient of each sample, but {missing.size} samples have no "
            f"patient, the first at position {missing[0]}."
        )
    if isinstance(groups, pd.Series) and isinstance(y, pd.DataFrame | pd.Series):
        _check_order(groups.index, y.index)
    # Labels of mixed type (patient 12 and patient "12b") cannot be sorted, as splitters do.
    return labels.astype(str) if labels.dtype == object else labels


def _check_order(group_index, y_index):
    if not has_names(y_index) or list(group_index) == list(y_index):
        return
    if sorted(map(str, group_index)) == sorted(map(str, y_index)):
        raise ValueError(
            "groups and y are indexed by the same samples in a different order. Reorder with "
            "groups.loc[y.index]."
        )


def patient_key(name):
    """Return what the names of the samples of a patient share: the TCGA barcode, or the name."""
    found = TCGA_PATIENT.search(str(name))
    return found.group().upper() if found else str(name).strip()


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
