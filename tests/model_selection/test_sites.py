"""Folds that keep sites and patients together."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score

from sklearn_pk.model_selection import SiteGroupKFold, cross_val_significance, site_ids

RNG = np.random.default_rng(0)
CODES = ["A1", "A2", "BH", "E2", "D8", "3C", "AR", "GM", "OL", "XX"]
# 70 patients of sites that differ in size, one to three slides each.
SITE = np.repeat(CODES, [14, 12, 10, 8, 7, 6, 5, 4, 3, 1])
PATIENT = np.array([f"TCGA-{site}-{i:04d}" for i, site in enumerate(SITE)])
ROWS = RNG.permutation(np.repeat(np.arange(70), RNG.integers(1, 4, 70)))
GROUPS, SITES = PATIENT[ROWS], SITE[ROWS]
X = RNG.normal(size=(len(ROWS), 3))
Y = pd.DataFrame(
    X @ RNG.normal(size=(3, 6)) + RNG.normal(size=(len(ROWS), 6)),
    index=[f"{patient}-01Z-00-DX{i}" for i, patient in enumerate(GROUPS)],
)


def folds_of(splitter, *args, **kwargs):
    return [test.tolist() for _, test in splitter.split(*args, **kwargs)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_folds_keep_sites_together_and_are_balanced(shuffle):
    cv = SiteGroupKFold(4, shuffle=shuffle, random_state=0 if shuffle else None)
    folds = list(cv.split(X, groups=GROUPS))
    assert len(folds) == cv.get_n_splits() == 4
    for train, test in folds:
        assert not set(SITES[train]) & set(SITES[test])
        assert not set(GROUPS[train]) & set(GROUPS[test])
    sizes = [len(test) for _, test in folds]
    assert sum(sizes) == len(X)
    assert max(sizes) - min(sizes) <= 0.15 * len(X) / 4
    assert folds_of(cv, X, groups=GROUPS) == [test.tolist() for _, test in folds]


def test_shuffling_changes_folds():
    equal = {patient: f"S{i}" for i, patient in enumerate(np.unique(GROUPS))}
    folds = [
        folds_of(SiteGroupKFold(4, sites=equal, shuffle=True, random_state=seed), X, groups=GROUPS)
        for seed in range(2)
    ]
    assert folds[0] != folds[1]


def test_sites_of_any_kind():
    expected = folds_of(SiteGroupKFold(4), X, groups=GROUPS)
    by_patient = dict(zip(PATIENT, SITE, strict=True))
    by_name = pd.Series(SITES, index=Y.index)
    assert folds_of(SiteGroupKFold(4), X, Y) == expected
    assert folds_of(SiteGroupKFold(4), list(Y.index)) == expected
    for sites in (by_patient, pd.Series(by_patient), SITES, list(SITES), pd.Series(SITES)):
        assert folds_of(SiteGroupKFold(4, sites=sites), X, groups=GROUPS) == expected
    assert folds_of(SiteGroupKFold(4, sites=by_name), X, Y) == expected
    assert folds_of(SiteGroupKFold(4, sites=SITES), X) == expected
    codes = {patient: CODES.index(site) for patient, site in by_patient.items()}
    folds = folds_of(SiteGroupKFold(4, sites=codes), X, groups=GROUPS)
    assert sorted(map(len, folds)) == sorted(map(len, expected))


def test_patients_of_two_sites_join_them():
    sites = ["a", "a", "b", "b", "c", "d"]
    groups = ["P1", "P2", "P2", "P3", "P4", "P5"]
    cv = SiteGroupKFold(3, sites=sites)
    assert folds_of(cv, np.ones((6, 1)), groups=groups) == [[0, 1, 2, 3], [4], [5]]
    with pytest.raises(ValueError, match=r"4 folds need .* got 4 \('a', .*\), 3 without a patient"):
        folds_of(SiteGroupKFold(4, sites=sites), np.ones((6, 1)), groups=groups)


def test_in_searches_and_reports():
    cv = SiteGroupKFold(4)
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=cv).fit(X, Y, groups=GROUPS)
    assert search.n_splits_ == 4
    with config_context(enable_metadata_routing=True):
        cross_val_score(Ridge(), X, Y, cv=cv, params={"groups": GROUPS})
    by_patient = dict(zip(PATIENT, SITE, strict=True))
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=SiteGroupKFold(3, sites=by_patient))
    result = cross_val_significance(search, X, Y, groups=GROUPS, cv=cv)
    tested = [SITES[test] for test in result.test_indices]
    assert sum(len(set(sites)) for sites in tested) == len(CODES)


def test_invalid_sites():
    with pytest.raises(ValueError, match="neither groups nor names .* Pass sites="):
        folds_of(SiteGroupKFold(2), X)
    with pytest.raises(ValueError, match="do not start with a TCGA barcode .*'P1'.* Pass sites="):
        folds_of(SiteGroupKFold(2), np.ones((2, 1)), groups=["P1", "P2"])
    with pytest.raises(ValueError, match="sites has 3 entries, but there are 2 .* dict or Series"):
        folds_of(SiteGroupKFold(2, sites=["a", "b", "c"]), np.ones((2, 1)))
    with pytest.raises(ValueError, match="1 samples have no site: 'P2'"):
        folds_of(SiteGroupKFold(2, sites={"P1": "a"}), np.ones((2, 1)), groups=["P1", "P2"])
    with pytest.raises(ValueError, match="sites is a dict .* groups="):
        folds_of(SiteGroupKFold(2, sites={"P1": "a"}), np.ones((2, 1)))
    with pytest.raises(ValueError, match="1 of 2 entries do not start with a TCGA barcode"):
        site_ids(["TCGA-A1-A0SB", "C3L-00001"])
