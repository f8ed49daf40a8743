"""Folds that keep patients and their hospitals together."""

# SPDX-License-Identifier: BSD-3-Clause

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import GroupKFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import _num_samples

from ..utils import check_groups
from ..utils._validation import has_names, name_some, sample_names_of
from ._barcodes import patient_ids


def site_ids(barcodes):
    """
    Extract the tissue source site of each sample from TCGA barcodes.

    Parameters
    ----------
    barcodes : list, array or Series of str or Path, length n_samples
        TCGA barcodes of any length, or names or paths of files that start with a barcode.

    Returns
    -------
    sites : ndarray of shape (n_samples,), dtype str
        The second field, such as ``A1`` of ``TCGA-A1-A0SB``: the hospital that collected the
        tissue, for one kind of cancer. Several codes may stand for the same hospital.

    Raises
    ------
    TypeError
        If `barcodes` is a single string or path instead of a list.
    ValueError
        If entries do not start with a TCGA barcode; the first of them are named.

    See Also
    --------
    SiteGroupKFold : Folds that keep sites together.
    patient_ids : The patients of barcodes.

    Examples
    --------
    >>> from sklearn_pk.model_selection import site_ids
    >>> site_ids(["slides/TCGA-A1-A0SB-01Z-00-DX1.svs", "TCGA-BH-A0SD-01A"]).tolist()
    ['A1', 'BH']
    """
    return np.array([patient.split("-")[1] for patient in patient_ids(barcodes)], dtype=str)


class SiteGroupKFold(GroupKFold):
    """
    K folds that keep the samples of a site together, and those of a patient.

    Slides of a hospital share its staining, scanner and patients, and a network can tell hospitals
    apart. If a hospital is in training and test set, expression that differs between hospitals is
    predicted without any morphology [1]_. The folds of this splitter test on hospitals that the
    model has not seen.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at most the number of sites.

    sites : dict, Series or array-like of shape (n_samples,), default=None
        Site, or any other batch, of each sample. A dict or Series has the site of each patient in
        `groups`, or of each sample by its name, and so also applies to subsets of the samples, as
        in nested cross-validation. None takes the tissue source sites of the TCGA barcodes in
        `groups`, or in the names of the samples.

    shuffle : bool, default=False
        Whether to assign sites of the same size at random.

    random_state : int, RandomState instance or None, default=None
        Seed of `shuffle`.

    See Also
    --------
    site_ids : Tissue source sites of TCGA barcodes.
    cross_val_significance : Takes this as `cv`.
    sklearn.model_selection.GroupKFold : Keeps patients together only.

    Notes
    -----
    Sites that have a patient in common stay together, too. The largest sites are assigned first,
    each to the fold with the fewest samples, so that folds are as large as each other if no site
    has more than a fraction 1 / `n_splits` of the samples.

    References
    ----------
    .. [1] Howard et al., "The impact of site-specific digital histology signatures on deep
       learning model accuracy and bias", Nature Communications 12:4423 (2021),
       https://doi.org/10.1038/s41467-021-24698-1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.model_selection import SiteGroupKFold
    >>> patients = ["TCGA-A1-A0SB", "TCGA-A1-A0SD", "TCGA-BH-A0SE", "TCGA-E2-A15K"]
    >>> X = np.zeros((4, 2))
    >>> for train, test in SiteGroupKFold(3).split(X, groups=patients):
    ...     print(train, test)
    [2 3] [0 1]
    [0 1 3] [2]
    [0 1 2] [3]

    Any other batch, such as the scanner of each patient:

    >>> scanners = {"P1": "Aperio", "P2": "Aperio", "P3": "Hamamatsu"}
    >>> folds = SiteGroupKFold(2, sites=scanners).split(X, groups=["P1", "P2", "P3", "P3"])
    >>> [test.tolist() for _, test in folds]
    [[0, 1], [2, 3]]
    """

    def __init__(self, n_splits=5, *, sites=None, shuffle=False, random_state=None):
        super().__init__(n_splits, shuffle=shuffle, random_state=random_state)
        self.sites = sites

    def split(self, X, y=None, groups=None):
        """
        Yield the training and test samples of each fold.

        Parameters
        ----------
        X : sequence or array of n_samples
            The samples.
        y : array-like of n_samples, default=None
            Expression, whose names may have the barcodes of patients.
        groups : array-like of shape (n_samples,), default=None
            Patient of each sample. None takes sites alone.

        Yields
        ------
        train : ndarray of int
            Training samples.
        test : ndarray of int
            Test samples.

        Raises
        ------
        ValueError
            If there are fewer sites than folds, a sample has no site, or sites are not known:
            no `sites` are given and names are not TCGA barcodes.
        """
        n_samples = _num_samples(X)
        names = list(y.index) if hasattr(y, "iloc") and has_names(y.index) else sample_names_of(X)
        patients = None if groups is None else check_groups(groups, np.empty(n_samples))
        sites = self._sites(names, patients, n_samples)
        units = _join(sites, sites if patients is None else patients)
        if units.max() + 1 < self.n_splits:
            raise ValueError(
                f"{self.n_splits} folds need at least {self.n_splits} sites, got "
                f"{len(np.unique(sites))}"
                f" ({name_some(np.unique(sites))}), {units.max() + 1} without a patient in common. "
                "Use fewer folds (n_splits=)."
            )
        yield from super().split(X, y, units)

    def _iter_test_indices(self, X, y=None, groups=None):
        sizes, order = np.bincount(groups), np.arange(groups.max() + 1)
        if self.shuffle:
            order = check_random_state(self.random_state).permutation(order)
        folds, filled = np.empty(len(sizes), dtype=int), np.zeros(self.n_splits, dtype=int)
        for unit in order[np.argsort(-sizes[order], kind="stable")]:
            folds[unit] = filled.argmin()
            filled[folds[unit]] += sizes[unit]
        for fold in range(self.n_splits):
            yield np.flatnonzero(folds[groups] == fold)

    def _sites(self, names, patients, n_samples):
        """Return the site of each sample."""
        if self.sites is None:
            return self._sites_of_barcodes(names, patients)
        if isinstance(self.sites, Mapping | pd.Series) and not _is_positional(
            self.sites, n_samples
        ):
            sites = _look_up(dict(self.sites), names, patients)
        else:
            sites = list(self.sites)
            if len(sites) != n_samples:
                raise ValueError(
                    f"sites has {len(sites)} entries, but there are {n_samples} samples. For "
                    "subsets of samples, as in nested cross-validation, pass a dict or Series of "
                    "patient to site."
                )
        lost = np.flatnonzero(pd.isna(np.array(sites, dtype=object)))
        if len(lost):
            known = patients if patients is not None else names
            shown = lost if known is None else np.asarray(known, dtype=object)[lost]
            raise ValueError(f"sites: {len(lost)} samples have no site: {name_some(shown)}.")
        return np.array([str(site).strip() for site in sites], dtype=str)

    def _sites_of_barcodes(self, names, patients):
        found = "there are neither groups nor names of samples."
        for known in (patients, names):
            try:
                if known is not None:
                    return site_ids([str(name) for name in known])
            except ValueError as error:
                found = error
        raise ValueError(
            f"sites=None takes sites from TCGA barcodes, in groups or in names of samples: {found} "
            "Pass sites=, a dict of patient to site."
        )


def _is_positional(sites, n_samples):
    is_numbered = isinstance(sites, pd.Series) and not has_names(sites.index)
    return is_numbered and len(sites) == n_samples


def _look_up(sites, names, patients):
    """Return the sites by patient, or by the name of the sample."""
    sites = {str(name).strip(): site for name, site in sites.items()}
    keys = [[str(name) for name in known] for known in (patients, names) if known is not None]
    if not keys:
        raise ValueError(
            "sites is a dict of patient to site, so pass the patients: groups=. Or pass an array "
            "with the site of each sample."
        )
    return [
        next((sites[key] for key in each if key in sites), None) for each in zip(*keys, strict=True)
    ]


def _join(sites, patients):
    """Return a number per sample; samples of a site or of a patient share it."""
    _, site = np.unique(sites, return_inverse=True)
    _, patient = np.unique(patients, return_inverse=True)
    n_sites, n_patients = site.max() + 1, patient.max() + 1
    shape = (n_sites + n_patients, n_sites + n_patients)
    links = sparse.coo_array((np.ones(len(site)), (site, n_sites + patient)), shape=shape)
    _, parts = sparse.csgraph.connected_components(links, directed=False)
    return np.unique(parts[site], return_inverse=True)[1]
