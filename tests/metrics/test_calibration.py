"""Correlations within folds, permuted patients, and p-values from them."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from sklearn_pk.metrics import compare_significance, make_significance_scorer, significance_report
from sklearn_pk.metrics._calibration import Folds, NullDistribution, permute_patients

FOLDS = np.repeat([2, 0, 1], [12, 10, 18])


def make_tables(seed=0, n_genes=30):
    """Return truth, predictions of the first ten genes, and a baseline."""
    y_true, noise, y_base = np.random.default_rng(seed).normal(size=(3, 40, n_genes))
    return y_true, y_true * (np.arange(n_genes) < 10) + noise, y_base


def combined(true, pred, folds):
    """Return the mean of Fisher's z of each fold by a plain loop."""
    parts = [(np.sum(folds == fold) - 3, folds == fold) for fold in np.unique(folds)]
    weights = [weight for weight, _ in parts]
    z = [
        [np.arctanh(stats.pearsonr(t[rows], p[rows]).statistic) for _, rows in parts]
        for t, p in zip(true.T, pred.T, strict=True)
    ]
    return np.average(z, axis=1, weights=weights)


def test_correlation_within_folds_equals_a_plain_loop():
    y_true, y_pred, _ = make_tables()
    shifted = y_pred + 100 * FOLDS[:, np.newaxis]  # a fold's own offset has no effect
    assert_allclose(Folds(FOLDS).combine(y_true.T, shifted.T), combined(y_true, y_pred, FOLDS))
    # Folds that are too small for a variance count as one.
    pooled = Folds(np.arange(40) // 3).combine(y_true.T, y_pred.T)
    assert_allclose(pooled, combined(y_true, y_pred, np.zeros(40)))


@pytest.mark.parametrize("sizes", [[1] * 8, [3] * 5, [1, 3, 2, 2, 5]])
def test_patients_are_permuted_with_all_their_slides(sizes):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = permute_patients(groups, np.random.default_rng(1))
    partner = {}
    for row, source in enumerate(order):
        assert partner.setdefault(groups[row], groups[source]) == groups[source]
    assert sorted(partner.values()) == sorted(set(groups))
    assert any(own != other for own, other in partner.items())
    if len(set(sizes)) == 1:
        assert_array_equal(np.sort(order), np.arange(len(groups)))


def test_permutation_pools_genes_that_are_standardised_by_the_other_permutations():
    rng = np.random.default_rng(0)
    null_z = (rng.normal(size=(25, 6)) * [1, 2, 3, 4, 5, 6] + 3).astype(np.float32)
    z = np.array([3.0, 9.0, -20.0, 12.0, 3.5, 30.0])
    scores = []
    for row in range(25):
        others = np.delete(null_z, row, axis=0).astype(float)
        scores.append((null_z[row] - others.mean(axis=0)) / others.std(axis=0, ddof=1))
    own = (z - null_z.mean(axis=0)) / null_z.std(axis=0, ddof=1)
    expected = [(1 + np.sum(np.array(scores) >= value)) / (1 + 150) for value in own]
    assert_allclose(NullDistribution("permutation", null_z).pvalue(z), expected)


def test_a_few_permutations_have_one_standard_deviation():
    null_z = np.random.default_rng(0).normal(size=(3, 200)) * 0.2
    z = np.array([0.0, 0.4])
    expected = stats.norm.sf(z, scale=np.sqrt(np.mean(null_z**2)))
    assert_allclose(NullDistribution("empirical", null_z, 0.1).pvalue(z), expected)
    # Never narrower than that of independent folds.
    assert_allclose(NullDistribution("empirical", null_z, 0.3).pvalue(z), stats.norm.sf(z / 0.3))


@pytest.mark.parametrize("null", ["permutation", "empirical"])
def test_one_model_that_has_seen_no_patient(null):
    y_true, y_pred, y_base = make_tables(n_genes=400)
    report = significance_report(y_true, y_pred, y_base, null=null, random_state=0)
    assert report["significant"][:10].sum() >= 8
    assert report["significant"][10:].sum() <= 2
    assert stats.kstest(report["null_p"][10:], "uniform").pvalue > 0.01
    assert_allclose(report["r_fold"], report["r"])
    tested = report["null_fdr"] < 0.05
    assert_array_equal(
        report["significant"],
        tested & (report["rmse"] < report["rmse_baseline"]) & (report["r"] > report["r_baseline"]),
    )
    assert report["reason"][10:].str.startswith(null.capitalize()).any()
    # Columns of the published tests do not change.
    published = significance_report(y_true, y_pred, y_base)
    columns = published.columns.drop(["significant", "reason"])
    assert report[columns].equals(published[columns])
    scorer = make_significance_scorer(baseline=lambda *_: y_base, null=null, random_state=0)
    model = type("Model", (), {"predict": lambda self, X: y_pred})()
    assert scorer(model, y_true, y_true) == report["significant"].sum()


def test_runs_with_permuted_patients_are_used():
    y_true, y_pred, _ = make_tables()
    rng = np.random.default_rng(1)
    permuted = [(y_true[rng.permutation(40)], rng.normal(size=(40, 30))) for _ in range(20)]
    options = {"folds": FOLDS, "permuted": permuted, "null": "permutation"}
    report = significance_report(y_true, y_pred, None, **options)
    null_z = np.array([combined(*run, FOLDS) for run in permuted])
    z = combined(y_true, y_pred, FOLDS)
    assert_allclose(report["null_p"], NullDistribution("permutation", null_z).pvalue(z))
    assert_allclose(report["r_fold"], np.tanh(z))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"folds": FOLDS}, ValueError, "3 folds are not independent of y_true"),
        ({"folds": FOLDS[1:]}, ValueError, r"each of the 40 samples, got shape \(39,\)"),
        (
            {"folds": FOLDS, "groups": np.arange(40) % 20},
            ValueError,
            "samples of a patient must be in one fold, but those of .* are in 2",
        ),
        ({"n_permutations": 19}, ValueError, r"n_permutations >= 20, .* got 19"),
        ({"permuted": [np.zeros(3)]}, TypeError, "got ndarray at position 0"),
        ({"permuted": [make_tables()[:2]] * 3}, ValueError, "n_permutations >= 20, .* got 3"),
        (
            {"permuted": [make_tables(n_genes=4)[:2]]},
            ValueError,
            r"shape \(40, 30\), as y_true, got \(40, 4\) at position 0",
        ),
        ({"null": "analytic"}, ValueError, "'null' parameter"),
    ],
)
def test_invalid_nulls(options, error, message):
    with pytest.raises(error, match=message):
        significance_report(*make_tables(), **({"null": "permutation"} | options))


def test_tables_have_no_null_to_compare_with():
    tables = make_tables()
    with pytest.raises(ValueError, match="null='permutation' needs results of cross_val"):
        compare_significance({"a": tables, "b": tables}, null="permutation", n_boot=2)
