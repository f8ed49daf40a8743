"""Patients from TCGA barcodes."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import PurePath

import numpy as np

from ..utils._validation import name_of_item, name_some, split_barcode


def _patient_of(barcode):
    name = name_of_item(barcode)
    stem = "" if name is None else PurePath(name).name.strip()
    return split_barcode(stem)[1] if stem[:4].upper() == "TCGA" else None


def patient_ids(barcodes):
    """
    Extract the patient of each sample from TCGA barcodes, for use as `groups`.

    Parameters
    ----------
    barcodes : list, array or Series of str or Path, length n_samples
        TCGA barcodes of any length, or names or paths of files that start with a barcode.

    Returns
    -------
    patients : ndarray of shape (n_samples,), dtype str
        The first three dash-separated fields, ``TCGA-XX-XXXX`` in upper case.

    Raises
    ------
    TypeError
        If `barcodes` is a single string or path instead of a list.
    ValueError
        If entries do not start with a TCGA barcode; the first of them are named.

    See Also
    --------
    cross_val_significance : Takes the patients as `groups`.
    sklearn.model_selection.GroupKFold : Keeps the samples of a patient in one fold.

    Examples
    --------
    >>> from sklearn_pk.model_selection import patient_ids
    >>> patient_ids(["slides/TCGA-A1-A0SB-01Z-00-DX1.svs", "TCGA-A1-A0SD-01A"]).tolist()
    ['TCGA-A1-A0SB', 'TCGA-A1-A0SD']
    """
    if isinstance(barcodes, (str, PurePath)):
        raise TypeError(
            f"barcodes must be a list of barcodes or paths, got {barcodes!r}. Pass [{barcodes!r}]."
        )
    barcodes = list(barcodes)
    patients = [_patient_of(barcode) for barcode in barcodes]
    wrong = [barcode for barcode, patient in zip(barcodes, patients, strict=True) if not patient]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(barcodes)} entries do not start with a TCGA barcode "
            f"(TCGA-XX-XXXX...): {name_some(wrong)}. For other samples, pass your own patient "
            "ids as groups."
        )
    return np.array(patients, dtype=str)
