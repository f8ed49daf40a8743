"""Slides of one patient: told apart by their expression, and averaged."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
from scipy import sparse


def patient_averager(groups):
    """
    Make the matrix that turns one row a sample into one row a patient.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Patient of each sample.

    Returns
    -------
    averager : CSR array of shape (n_patients, n_samples), float64
        ``averager @ values`` holds the mean of the rows of each patient.
    patients : ndarray of shape (n_patients,)
        The patients, sorted.
    """
    patients, codes = np.unique(groups, return_inverse=True)
    weights = 1 / np.bincount(codes)[codes]
    shape = (len(patients), len(codes))
    return sparse.csr_array((weights, (codes, np.arange(len(codes)))), shape=shape), patients


def infer_groups(values):
    """
    Take samples with identical expression as one patient.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_genes)
        Expression.

    Returns
    -------
    groups : ndarray of shape (n_samples,), int
        Number of the patient. With a single gene, every sample is its own.
    """
    if values.shape[1] == 1:
        return np.arange(len(values))
    seen = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in values + 0.0])
