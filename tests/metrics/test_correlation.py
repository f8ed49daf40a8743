"""Pearson and Steiger against scipy, published examples and a plain implementation."""

# SPDX-License-Identifier: BSD-3-Clause

import math

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from sklearn_pk.metrics import pearson_by_gene, steiger_test
from sklearn_pk.metrics._correlation import pearson_pvalue


def plain_steiger(a, b, c, n):
    """Return Williams' t by the textbook formula, for r well inside (-1, 1)."""
    determinant = 1 - a**2 - b**2 - c**2 + 2 * a * b * c
    mean = (a + b) / 2
    spread = 2 * (n - 1) / (n - 3) * determinant + mean**2 * (1 - c) ** 3
    return (a - b) * math.sqrt((n - 1) * (1 + c) / spread)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 4, 121])
def test_pearson_equals_scipy(dtype, n):
    rng = np.random.default_rng(0)
    y_true = rng.normal(size=(n, 30)).astype(dtype)
    y_pred = (y_true + rng.normal(size=(n, 30))).astype(dtype)
    r = pearson_by_gene(y_true, y_pred)
    assert r.dtype == np.float64
    for gene in range(30):
        a, b = y_true[:, gene].astype(float), y_pred[:, gene].astype(float)
        expected = stats.pearsonr(a, b)
        assert_allclose(r[gene], expected.statistic, atol=1e-13)
        assert_allclose(pearson_pvalue(r[gene], n), expected.pvalue, rtol=1e-6, atol=1e-300)


def test_pearson_more_genes_than_one_block():
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.normal(size=(2, 6, 1100))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(y_true.T, y_pred.T, strict=True)]
    assert_allclose(pearson_by_gene(y_true, y_pred), expected, atol=1e-13)


def test_pearson_is_accurate_with_a_huge_offset():
    rng = np.random.default_rng(0)
    y_true, y_pred = 2e4 + 0.01 * rng.normal(size=(2, 300, 5))
    y_pred += 0.5 * (y_true - 2e4)
    expected = pearson_by_gene(y_true - 2e4, y_pred - 2e4)
    assert_allclose(pearson_by_gene(y_true, y_pred), expected, atol=1e-9)


def test_pearson_of_constants_is_zero():
    noise = np.random.default_rng(0).normal(size=50)
    constants = np.array([0.0, 0.1, -7.3, 2e4, 1e-9])
    table = np.tile(constants, (50, 1))
    varying = np.tile(noise[:, None], 5)
    assert (pearson_by_gene(table, varying) == 0).all()
    assert (pearson_by_gene(varying, table) == 0).all()
    assert (pearson_by_gene(table, table) == 0).all()
    # A constant with rounding errors is still a constant.
    rounded = table * (1 + 1e-16 * np.sign(varying)) + 0.3 - 0.3
    assert (pearson_by_gene(rounded[:, 1:4], varying[:, 1:4]) == 0).all()


def test_pearson_of_perfect_inverted_and_tied_predictions():
    y = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 7.0])
    assert_allclose(pearson_by_gene(y, y), [1])
    assert_allclose(pearson_by_gene(y, -2 * y + 3), [-1])
    tied = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert_allclose(pearson_by_gene(y, tied), [stats.pearsonr(y, tied).statistic])


def test_pearson_checks_shapes_names_and_values():
    y = pd.DataFrame(np.eye(4), columns=list("abcd"), index=list("wxyz"))
    with pytest.raises(ValueError, match=r"same shape .* got \(4, 4\) and \(4, 3\)"):
        pearson_by_gene(y, y.to_numpy()[:, :3])
    with pytest.raises(ValueError, match="same genes in the same order.*'a' and 'd'"):
        pearson_by_gene(y, y[list("dcba")])
    with pytest.raises(ValueError, match="same rows in the same order.*'w' and 'z'"):
        pearson_by_gene(y, y.loc[list("zyxw")])
    y_nan = y.copy()
    y_nan.loc["x", "c"] = np.nan
    with pytest.raises(ValueError, match="Input y_pred contains NaN.*'c'.*'x'"):
        pearson_by_gene(y, y_nan)


@pytest.mark.parametrize(
    ("r_xy", "r_xz", "r_yz", "n", "t", "p"),
    [
        # Howell, Statistical Methods for Psychology, 6th ed., p. 262: t(23) = 1.36, p = .187.
        (0.80, 0.72, 0.89, 26, 1.361, 0.187),
        # Steiger (1980), verbal ability with masculinity and femininity; t = -0.89, p = .37.
        (0.40, 0.50, 0.10, 103, -0.89, 0.37),
    ],
)
def test_steiger_published_examples(r_xy, r_xz, r_yz, n, t, p):
    statistic, pvalue = steiger_test(r_xy, r_xz, r_yz, n, alternative="two-sided")
    assert_allclose(statistic, t, atol=0.005)
    assert_allclose(pvalue, p, atol=0.005)


def test_steiger_equals_the_textbook_formula():
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(200, 12, 3)) + rng.normal(size=(200, 12, 1))
    r = np.array([np.corrcoef(table.T) for table in tables])
    a, b, c = r[:, 0, 1], r[:, 0, 2], r[:, 1, 2]
    expected = [plain_steiger(*args, 12) for args in zip(a, b, c, strict=True)]
    statistic, greater = steiger_test(a, b, c, 12)
    assert_allclose(statistic, expected, rtol=1e-9)
    assert_allclose(greater, stats.t.sf(expected, 9), rtol=1e-9)
    by_name = {
        name: steiger_test(a, b, c, 12, alternative=name)[1]
        for name in ("less", "two-sided", "abs")
    }
    assert_allclose(by_name["less"], stats.t.cdf(expected, 9), rtol=1e-9)
    assert_allclose(by_name["abs"], stats.t.sf(np.abs(expected), 9), rtol=1e-9)
    assert_allclose(by_name["two-sided"], 2 * by_name["abs"])


def test_steiger_small_pvalues_do_not_become_zero():
    _, pvalue = steiger_test(0.95, 0.0, 0.0, 300)
    assert 0 < pvalue < 1e-50


def test_steiger_level_for_equal_correlations():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(4000, 20, 1))
    x, y, z = np.moveaxis(common + rng.normal(size=(4000, 20, 3)), 2, 0)
    r = [pearson_by_gene(a.T, b.T) for a, b in ((x, y), (x, z), (y, z))]
    _, pvalue = steiger_test(*r, 20)
    assert 0.035 < np.mean(pvalue < 0.05) < 0.065


def test_steiger_near_1():
    # The baseline is equal up to scale: no difference, except for rounding errors.
    assert steiger_test(0.3, 0.3 - 1e-16, 1.0, 100) == (0.0, 0.5)
    assert steiger_test(1.0, 1.0, 1.0, 100) == (0.0, 0.5)
    # A perfect prediction: finite, equal to the formula with a determinant of 0.
    statistic, _ = steiger_test(1.0, 0.2, 0.2, 121)
    assert_allclose(statistic, 0.8 * math.sqrt(120 * 1.2 / (0.6**2 * 0.8**3)))
    # The determinant must be accurate near 1: compare with exact integers.
    a, b, c = 1 - 2.0**-30, 1 - 2.0**-28, 1 - 2.0**-29
    one = 2**30
    ia, ib, ic = one - 1, one - 4, one - 2
    exact = (one**3 - one * (ia**2 + ib**2 + ic**2) + 2 * ia * ib * ic) / one**3
    expected = (a - b) * math.sqrt(
        99 * (1 + c) / (2 * 99 / 97 * exact + ((a + b) / 2) ** 2 * (1 - c) ** 3)
    )
    assert_allclose(steiger_test(a, b, c, 100)[0], expected, rtol=1e-6)
    # Opposite variables: the limit of the formula, finite unless the prediction is perfect.
    assert_allclose(steiger_test(0.6, -0.6, -1.0, 28)[0], 0.6 * math.sqrt(25) / 0.8)
    assert steiger_test(1.0, -1.0, -1.0, 100) == (np.inf, 0.0)


def test_steiger_invalid_input():
    with pytest.raises(ValueError, match="n >= 4 samples, got n = .*3"):
        steiger_test(0.5, 0.2, 0.1, 3)
    with pytest.raises(ValueError, match=r"r_xz must be correlations in \[-1, 1\], got .*1.5"):
        steiger_test(0.5, 1.5, 0.1, 30)
    with pytest.raises(ValueError, match="r_yz must be correlations.*nan"):
        steiger_test(0.5, 0.5, np.nan, 30)
    with pytest.raises(ValueError, match="alternative must be one of.*'smaller'"):
        steiger_test(0.5, 0.5, 0.1, 30, alternative="smaller")
