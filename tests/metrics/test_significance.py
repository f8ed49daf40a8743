"""The report against golden numbers, a plain loop over genes, and null simulations."""

# SPDX-License-Identifier: BSD-3-Clause

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from sklearn_pk.metrics import significance_report
from sklearn_pk.metrics._significance import interquartile_range

GOLDEN = Path(__file__).parents[1] / "data" / "significance.npz"
COLUMNS = [
    "r", "p", "p_fdr", "rmse", "rmse_baseline", "rmse_iqr", "rmse_mean", "r_baseline",
    "steiger_t", "steiger_p", "steiger_fdr", "significant", "reason",
]  # fmt: skip
GOLDEN_NAMES = {
    "r": "r",
    "r_base": "r_baseline",
    "p_pearson": "p",
    "p_steiger": "steiger_p",
    "fdr_steiger": "steiger_fdr",
    "rmse": "rmse",
    "rmse_base": "rmse_baseline",
}


def make_tables(n=40, n_genes=60, seed=0, dtype=np.float64):
    """Return truth, predictions of mixed quality, and an independent baseline."""
    rng = np.random.default_rng(seed)
    y_true = 8 + 2 * rng.normal(size=(n, n_genes))
    weight = rng.uniform(-0.2, 0.8, size=n_genes)
    y_pred = 8 + weight * (y_true - 8) + 0.7 * rng.normal(size=(n, n_genes))
    y_base = 8 + 0.7 * rng.normal(size=(n, n_genes)) + 0.1 * (y_true - 8)
    return tuple(a.astype(dtype) for a in (y_true, y_pred, y_base))


def plain_report(y_true, y_pred, y_base, alpha=0.05, fdr=0.2, compat=None):
    """Return the report by a loop over genes with scipy."""
    rows = []
    n = len(y_true)
    for t, p, q in zip(y_true.T, y_pred.T, y_base.T, strict=True):
        t, p, q = (np.asarray(a, dtype=float) for a in (t, p, q))
        pearson = stats.pearsonr(t, p)
        a, b, c = pearson.statistic, stats.pearsonr(t, q).statistic, stats.pearsonr(p, q).statistic
        determinant = 1 - a**2 - b**2 - c**2 + 2 * a * b * c
        spread = 2 * (n - 1) / (n - 3) * determinant + ((a + b) / 2) ** 2 * (1 - c) ** 3
        steiger_t = (a - b) * np.sqrt((n - 1) * (1 + c) / spread)
        rmse = np.sqrt(np.mean((t - p) ** 2))
        rows.append(
            {
                "r": a,
                "p": pearson.pvalue,
                "rmse": rmse,
                "rmse_baseline": np.sqrt(np.mean((t - q) ** 2)),
                "rmse_iqr": rmse / stats.iqr(t),
                "rmse_mean": rmse / t.mean(),
                "r_baseline": b,
                "steiger_t": steiger_t,
                "steiger_p": stats.t.sf(abs(steiger_t) if compat else steiger_t, n - 3),
            }
        )
    report = pd.DataFrame(rows)
    report["p_fdr"] = stats.false_discovery_control(report["p"])
    report["steiger_fdr"] = stats.false_discovery_control(report["steiger_p"])
    report["significant"] = (
        (report["r"] > 0)
        & (report["p"] < alpha)
        & (report["rmse"] < report["rmse_baseline"])
        & (report["r"] > report["r_baseline"])
        & (report["steiger_p"] < alpha)
        & (report["steiger_fdr"] < fdr)
    )
    return report


def test_golden_numbers_of_the_reference():
    with np.load(GOLDEN) as golden:
        golden = dict(golden)
    tables = [golden[name] for name in ("y_true", "y_pred", "y_baseline")]
    report = significance_report(*tables, compat="sequoia")
    for name, column in GOLDEN_NAMES.items():
        assert_allclose(report[column], golden[name], atol=1e-6, rtol=0, err_msg=name)
    assert_array_equal(report["significant"], golden["significant"])
    assert golden["significant"].sum() == 204
    constants = report["reason"][:3].tolist()
    assert constants == ["constant truth", "constant prediction", "constant baseline"]


@pytest.mark.parametrize("compat", [None, "sequoia"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [4, 40, 200])
def test_report_equals_a_plain_loop(n, dtype, compat):
    tables = make_tables(n=n, dtype=dtype)
    report = significance_report(*tables, compat=compat)
    assert report.columns.tolist() == COLUMNS
    expected = plain_report(*tables, compat=compat)
    for column in expected.columns.drop("significant"):
        assert_allclose(report[column], expected[column], rtol=1e-6, atol=1e-12, err_msg=column)
    assert_array_equal(report["significant"], expected["significant"])
    assert_array_equal(report["significant"], report["reason"] == "")
    if n == 200:
        assert 0 < report["significant"].sum() < 60


def test_alpha_and_fdr_are_used():
    tables = make_tables(n=60)
    counts = [
        significance_report(*tables, alpha=alpha, fdr=fdr)["significant"].sum()
        for alpha, fdr in ((0.05, 0.2), (1e-4, 0.2), (0.05, 1e-4))
    ]
    assert counts[0] > counts[1]
    assert counts[0] > counts[2]
    expected = plain_report(*tables, alpha=0.05, fdr=1e-4)["significant"].sum()
    assert counts[2] == expected


def test_alpha_applies_to_steiger():
    tables = make_tables(n=60, n_genes=150)
    for alpha in (0.05, 1e-3):
        report = significance_report(*tables, alpha=alpha, fdr=1.0)
        expected = plain_report(*tables, alpha=alpha, fdr=1.0)["significant"]
        assert_array_equal(report["significant"], expected)
        fails = (report["p"] < alpha) & (report["steiger_p"] >= alpha)
        assert fails.any(), "Steiger's test must fail for some genes"


def test_fdr_applies_to_the_mean_baseline():
    rng = np.random.default_rng(2)
    y_true, noise = rng.normal(size=(2, 60, 400))
    y_pred = 0.3 * noise
    y_pred[:, :20] += 0.15 * y_true[:, :20]
    report = significance_report(y_true, y_pred, None, fdr=0.05)
    assert (report["reason"] == "Pearson FDR >= 0.05").any()
    assert (report.loc[report["significant"], "p_fdr"] < 0.05).all()
    assert report["significant"].any()


def test_reason_is_the_first_condition_that_failed():
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=(2, 100))
    truth = base + rng.normal(size=100)
    # Noise independent of truth and baseline: it decreases r, but not significantly.
    design = np.column_stack([np.ones(100), truth, base])
    blank = noise - design @ np.linalg.lstsq(design, noise)[0]
    cases = {
        "": (truth, 0.9 * truth + 0.1 * noise, noise),
        "r <= 0": (truth, -truth, noise),
        "Pearson p >= 0.05": (truth, noise + 0.001 * truth, base),
        "RMSE >= baseline RMSE": (truth, 50 * truth, noise),
        "r <= baseline r": (truth, base * 0.5, truth - 10),
        "Steiger p >= 0.05": (truth, base * 0.5, base * 0.5 + 0.02 * blank - 1),
        "constant truth": (np.full(100, 0.1), noise, base),
        "constant prediction": (truth, np.full(100, 0.1), base),
        "constant baseline": (truth, truth, np.full(100, 0.1)),
    }
    y_true, y_pred, y_base = np.moveaxis(np.array(list(cases.values())), 1, 0).swapaxes(1, 2)
    report = significance_report(y_true, y_pred, y_base, gene_names=list(cases))
    assert dict(report["reason"]) == {name: name for name in cases}
    constant = report.loc[["constant truth", "constant prediction", "constant baseline"]]
    assert (constant["r"] == 0).all()
    assert (constant["p"] == 1).all()
    assert (constant["steiger_p"] == 1).all()


def test_fdr_as_the_reason():
    rng = np.random.default_rng(1)
    y_true, y_pred, y_base = rng.normal(size=(3, 80, 500))
    y_pred, y_base = y_pred * 0.1, y_base * 5
    y_pred[:, 0] += 0.025 * y_true[:, 0]
    report = significance_report(y_true, y_pred, y_base, fdr=0.05)
    assert (report["reason"] == "Steiger FDR >= 0.05").any()


def test_perfect_and_inverted_prediction():
    rng = np.random.default_rng(0)
    y_true, y_base = rng.normal(size=(2, 30, 2))
    y_pred = y_true * [1, -1]
    report = significance_report(y_true, y_pred, y_base)
    assert report["significant"].tolist() == [True, False]
    assert report["rmse"][0] == 0
    assert np.isfinite(report.drop(columns=["reason", "rmse_mean"]).astype(float)).all(axis=None)


def test_prediction_equal_to_the_baseline_is_not_significant():
    y_true, y_pred, _ = make_tables()
    for y_base in (y_pred, 3 * y_pred - 40):
        report = significance_report(y_true, y_pred, y_base)
        assert not report["significant"].any()
        assert_allclose(report["steiger_p"], 0.5, atol=1e-6)


def test_result_does_not_depend_on_the_order_of_samples():
    tables = make_tables()
    order = np.random.default_rng(0).permutation(40)
    report = significance_report(*tables)
    shuffled = significance_report(*(table[order] for table in tables))
    pd.testing.assert_frame_equal(report, shuffled, rtol=1e-9)


def test_huge_offset_does_not_change_significance():
    y_true, y_pred, y_base = make_tables(n=100)
    report = significance_report(y_true, y_pred, y_base)
    moved = significance_report(*(2e4 + 0.005 * (a - 8) for a in (y_true, y_pred, y_base)))
    assert_allclose(moved["r"], report["r"], atol=1e-7)
    assert_allclose(moved["steiger_p"], report["steiger_p"], atol=1e-6)
    assert_array_equal(moved["significant"], report["significant"])


def test_independent_predictions_are_rarely_significant():
    rng = np.random.default_rng(0)
    y_true, y_pred, y_base = rng.normal(size=(3, 50, 4000))
    report = significance_report(y_true, y_pred, y_base, fdr=1.0)
    # r > 0 at two-sided 0.05 gives 0.025; the other conditions can only decrease it.
    fraction = report["significant"].mean()
    assert 0.001 < fraction < 0.025
    assert_allclose(np.mean(report["p"] < 0.05), 0.05, atol=0.01)
    assert_allclose(np.mean(report["steiger_p"] < 0.05), 0.05, atol=0.015)
    assert significance_report(y_true, y_pred, y_base)["significant"].mean() < 0.001


def test_groups_are_averaged_to_one_row_per_patient():
    tables = make_tables(n=60)
    patients = np.random.default_rng(0).integers(0, 25, size=60)
    means = [pd.DataFrame(table).groupby(patients).mean().to_numpy() for table in tables]
    report = significance_report(*tables, groups=patients)
    pd.testing.assert_frame_equal(report, significance_report(*means), rtol=1e-9)
    names = [f"P{patient}" for patient in patients]
    pd.testing.assert_frame_equal(report, significance_report(*tables, groups=names), rtol=1e-9)


def test_groups_keep_constants_constant():
    y_true, y_pred, y_base = make_tables(n=30)
    y_pred[:, 0] = 0.1
    y_true[:, 1] = 0.1
    patients = np.repeat(np.arange(9), [1, 2, 3, 3, 3, 4, 4, 3, 7])
    report = significance_report(y_true, y_pred, y_base, groups=patients)
    assert report["reason"][:2].tolist() == ["constant prediction", "constant truth"]


def test_groups_in_another_order_raise():
    names = [f"s{i}" for i in range(40)]
    y_true, y_pred, y_base = (pd.DataFrame(table, index=names) for table in make_tables())
    patients = pd.Series(np.arange(40) // 2, index=names)
    with pytest.raises(ValueError, match=r"different order.*groups.loc"):
        significance_report(y_true, y_pred, y_base, groups=patients.sample(frac=1, random_state=0))


def test_series_with_different_names():
    y_true, y_pred, _ = (table[:, 0] for table in make_tables(n_genes=1))
    frame = pd.DataFrame({"true": y_true, "predicted": y_pred})
    report = significance_report(frame["true"], frame["predicted"], None)
    assert report["r"].iloc[0] == pytest.approx(np.corrcoef(y_true, y_pred)[0, 1])


def test_mean_baseline_omits_steiger():
    y_true, y_pred, _ = make_tables(n=80)
    y_pred[:, 0] = 7.0
    y_true[:, 1] = 0.1
    report = significance_report(y_true, y_pred, None)
    assert report["reason"][:2].tolist() == ["constant prediction", "constant truth"]
    assert_allclose(report["rmse_baseline"], y_true.std(axis=0), atol=1e-12)
    assert report[["steiger_t", "steiger_p", "steiger_fdr"]].isna().all(axis=None)
    expected = (
        (report["r"] > 0)
        & (report["p"] < 0.05)
        & (report["rmse"] < y_true.std(axis=0))
        & (report["p_fdr"] < 0.2)
    )
    assert_array_equal(report["significant"], expected)
    assert 0 < expected.sum() < 60


@pytest.mark.parametrize("n", [4, 5, 6, 7, 41, 200])
def test_interquartile_range_equals_scipy(n):
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(40, n)) * 10.0 ** rng.integers(-3, 3, size=(40, 1))
    rows[:10] = np.round(rows[:10])  # ties
    rows[10:15] = 2e4 + 1e-3 * rng.normal(size=(5, n))
    rows[15] = 7.0
    rows[16] *= 1e150
    rows[17] *= 1e-150
    rows[18] = np.where(np.arange(n) < n // 2, 0.0, rows[18])
    rounding = 4 * np.finfo(float).eps * np.abs(rows).max(axis=1)
    assert (np.abs(interquartile_range(rows) - stats.iqr(rows, axis=1)) <= rounding).all()


def test_rmse_ratios_are_nan_where_not_defined():
    y_true = np.array([[0.0, -1], [0, 1], [0, -1], [0, 1], [9, 0]])
    report = significance_report(y_true, y_true + 1, -y_true)
    assert np.isnan(report["rmse_iqr"][0])
    assert_allclose(report["rmse_mean"], [1 / 1.8, np.nan])
    centred, y_pred, _ = make_tables()
    centred = centred - centred.mean(axis=0)
    assert np.isnan(significance_report(centred, y_pred, None)["rmse_mean"]).all()


def test_gene_names_come_from_tables_or_the_argument():
    tables = make_tables(n_genes=3)
    names = ["ESR1", "ERBB2", "MKI67"]
    frames = [pd.DataFrame(table, columns=names) for table in tables]
    by_frame = significance_report(frames[0], *tables[1:])
    by_baseline = significance_report(*tables[:2], frames[2])
    by_argument = significance_report(*tables, gene_names=names)
    pd.testing.assert_frame_equal(by_frame, by_argument)
    pd.testing.assert_frame_equal(by_frame, by_baseline)
    assert by_frame.index.tolist() == names
    assert significance_report(*tables).index.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="gene_names must agree.*'ERBB2' for 'ESR1'"):
        significance_report(*frames, gene_names=names[1:] + names[:1])
    with pytest.raises(ValueError, match="one name for each of the 3 genes"):
        significance_report(*tables, gene_names=names[:2])
    with pytest.raises(ValueError, match="y_true and y_baseline must name the same genes"):
        significance_report(frames[0], tables[1], frames[2][names[::-1]])


def test_names_of_prediction_and_baseline_are_compared():
    names = ["ESR1", "ERBB2", "MKI67"]
    y_true, *tables = make_tables(n_genes=3)
    rows = [f"S{row}" for row in range(40)]
    y_pred, y_base = (pd.DataFrame(table, index=rows, columns=names) for table in tables)
    with pytest.raises(ValueError, match="y_pred and y_baseline must name the same genes"):
        significance_report(y_true, y_pred, y_base[names[::-1]])
    with pytest.raises(ValueError, match="y_pred and y_baseline must name the same rows"):
        significance_report(y_true, y_pred, y_base[::-1])


def test_one_gene_as_a_vector():
    y_true, y_pred, y_base = (table[:, 0] for table in make_tables(n_genes=1))
    report = significance_report(y_true, y_pred, y_base)
    assert report.shape == (1, len(COLUMNS))


def test_invalid_input():
    y_true, y_pred, y_base = make_tables()
    bad = pd.DataFrame(y_base.copy(), columns=[f"G{i}" for i in range(60)])
    bad.loc[3, "G7"] = np.nan
    with pytest.raises(ValueError, match="Input y_baseline contains NaN.*'G7'"):
        significance_report(y_true, y_pred, bad)
    with pytest.raises(ValueError, match="Input y_true contains infinity"):
        significance_report(np.where(y_true > 12, np.inf, y_true), y_pred, y_base)
    with pytest.raises(ValueError, match="at least 4 samples, got n = 3"):
        significance_report(y_true[:3], y_pred[:3], y_base[:3])
    with pytest.raises(ValueError, match="at least 4 patients, got n = 2"):
        significance_report(y_true, y_pred, y_base, groups=np.arange(40) % 2)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        significance_report(y_true, y_pred, y_base, groups=np.arange(39))
    with pytest.raises(ValueError, match="groups must name the patient"):
        significance_report(y_true, y_pred, y_base, groups=[None] + ["a"] * 39)
    with pytest.raises(ValueError, match="'alpha' parameter"):
        significance_report(y_true, y_pred, y_base, alpha=5)
    with pytest.raises(ValueError, match="'compat' parameter"):
        significance_report(y_true, y_pred, y_base, compat="he2rna")


def test_input_is_not_changed_and_memory_is_bounded():
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(200, 6000)).astype(np.float32) for _ in range(3)]
    before = [table.copy() for table in tables]
    tracemalloc.start()
    significance_report(*tables)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(table.nbytes for table in tables)
    for table, copy in zip(tables, before, strict=True):
        assert_array_equal(table, copy)
