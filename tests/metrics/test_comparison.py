"""The paired bootstrap against reports on resampled tables."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from sklearn_pk.metrics import _comparison, compare_significance, significance_report
from sklearn_pk.metrics._comparison import resample_measures
from sklearn_pk.model_selection import cross_val_significance

CRITERIA = {"alpha": 0.05, "fdr": 0.2, "compat": None}


def make_tables(n=60, n_genes=700, seed=0, dtype=np.float64, strength=0.4):
    """Return truth, predictions of mixed quality and a baseline, a few genes being constant."""
    rng = np.random.default_rng(seed)
    y_true, noise, y_base = rng.normal(size=(3, n, n_genes))
    y_pred = rng.uniform(0, strength, size=n_genes) * y_true + 0.6 * noise
    y_pred[:, 0] = 3
    y_true[:, 1] = 2
    y_base[:, 2] = 1
    y_true[1:, 3] = 0  # constant in draws without the first sample
    y_true[:, 4] += 2e4
    y_pred[:, 4] += 2e4
    return tuple(table.astype(dtype) for table in (y_true, y_pred, 0.6 * y_base))


def measures_of(tables, **criteria):
    report = significance_report(*tables, **criteria)
    return report["significant"].sum(), report["r"].median()


def resampled(tables, rows):
    return tuple(None if table is None else table[rows] for table in tables)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("baseline", ["untrained", "mean"])
@pytest.mark.parametrize("compat", [None, "sequoia"])
def test_replicates_equal_reports_on_resampled_tables(dtype, baseline, compat):
    y_true, y_pred, y_base = make_tables(dtype=dtype)
    tables = (y_true, y_pred, None if baseline == "mean" else y_base)
    criteria = CRITERIA | {"compat": compat}
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(60, np.full(60, 1 / 60), size=20).T
    assert (drawn[0] == 0).any()
    found = resample_measures(tables, drawn.astype(float), criteria)
    for number, weights in enumerate(drawn.T):
        expected = measures_of(resampled(tables, np.repeat(np.arange(60), weights)), **criteria)
        assert found[0, number] == expected[0]
        assert_allclose(found[1, number], expected[1], atol=1e-12)
    assert len(set(found[0])) > 5


def test_result_does_not_depend_on_chunks(monkeypatch):
    tables = make_tables(n_genes=30)
    weights = np.random.default_rng(0).integers(0, 3, size=(60, 10)).astype(float)
    whole = resample_measures(tables, weights, CRITERIA)
    monkeypatch.setattr(_comparison, "_CHUNK", 3)
    monkeypatch.setattr(_comparison, "_BLOCK", 2)
    assert_allclose(resample_measures(tables, weights, CRITERIA), whole, rtol=1e-12)


def test_comparison_equals_bootstrap_over_patients():
    y_true, weak, y_base = make_tables(n=80, n_genes=40, strength=0.3)
    strong = weak + 0.2 * (y_true - y_true.mean(axis=0))
    patients = np.random.default_rng(1).integers(0, 30, size=80)
    names = np.array([f"P{patient:02d}" for patient in patients])
    table = compare_significance(
        {"weak": (y_true, weak, y_base), "strong": (y_true, strong, y_base)},
        groups=names,
        compat="sequoia",  # otherwise, slides are averaged
        n_boot=60,
        confidence_level=0.9,
        random_state=7,
    )
    assert table.columns.tolist() == [
        "setting", "reference", "measure", "value", "reference_value", "difference", "ci_low",
        "ci_high",
    ]  # fmt: skip
    assert table["measure"].tolist() == ["n_significant", "median_r"]
    assert set(table["setting"]) == {"strong"}
    assert set(table["reference"]) == {"weak"}
    # The same draws by indexing rows.
    unique = np.unique(names)
    n = len(unique)
    drawn = np.random.RandomState(7).multinomial(n, np.full(n, 1 / n), size=60)
    differences = []
    for times in drawn:
        rows = np.concatenate([np.flatnonzero(names == name) for name in np.repeat(unique, times)])
        one, other = (
            measures_of(resampled((y_true, prediction, y_base), rows), compat="sequoia")
            for prediction in (strong, weak)
        )
        differences.append(np.subtract(one, other))
    margin = stats.norm.isf(0.05) * np.std(differences, axis=0, ddof=1)
    strong_measures = measures_of((y_true, strong, y_base), compat="sequoia")
    weak_measures = measures_of((y_true, weak, y_base), compat="sequoia")
    assert_allclose(table["value"], strong_measures)
    assert_allclose(table["reference_value"], weak_measures)
    observed = np.subtract(strong_measures, weak_measures)
    assert_allclose(table["difference"], observed)
    assert_allclose(table["ci_low"], observed - margin, rtol=1e-9)
    assert_allclose(table["ci_high"], observed + margin, rtol=1e-9)
    assert (table["ci_low"] > 0).all()


def test_equal_settings_have_no_difference():
    tables = make_tables(n_genes=30)
    table = compare_significance({"a": tables, "b": tables}, n_boot=20, random_state=0)
    assert (table[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)


def test_coverage_of_intervals():
    # Two models, one with more noise, on many cohorts; the truth is the mean over all.
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        y_true, common, base = rng.normal(size=(3, 80, 20))
        signal = np.linspace(0, 0.5, 20) * y_true + 0.5 * common
        models = [signal + scale * rng.normal(size=(80, 20)) for scale in (0.5, 0.9)]
        reports = {name: (y_true, m, base) for name, m in zip("ab", models, strict=True)}
        table = compare_significance(reports, n_boot=60, random_state=0)
        found.append(table[["difference", "ci_low", "ci_high"]].to_numpy())
    found = np.array(found)
    truth = found[:, :, 0].mean(axis=0)
    assert (truth < 0).all()
    covered = ((found[:, :, 1] <= truth) & (truth <= found[:, :, 2])).mean(axis=0)
    assert (covered >= 0.85).all()
    assert (found[:, 0, 2] < 0).mean() > 0.3, "the intervals are too wide"


def test_result_depends_on_seed_but_not_on_threads():
    reports = {name: make_tables(n_genes=1100, strength=s) for name, s in (("a", 0.3), ("b", 0.4))}
    tables = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            tables.append(compare_significance(reports, n_boot=30, random_state=3))
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    other = compare_significance(reports, n_boot=30, random_state=4)
    assert (other["ci_low"] != tables[0]["ci_low"]).all()
    assert (other["difference"] == tables[0]["difference"]).all()


def half_width(table):
    return ((table["ci_high"] - table["ci_low"]) / 2).to_numpy()


def test_runs_of_a_setting_are_averaged():
    runs = [make_tables(n_genes=50, strength=s) for s in (0.3, 0.5)]
    base = make_tables(n_genes=50, strength=0.2)
    table = compare_significance({"none": base, "two": runs}, n_boot=10, random_state=0)
    singles = [
        compare_significance({"none": base, "one": run}, n_boot=10, random_state=0) for run in runs
    ]
    for column in ("value", "difference"):
        mean = (singles[0][column] + singles[1][column]) / 2
        assert_allclose(table[column], mean)


def test_variance_over_runs_widens_the_interval():
    y_true, noise, other = np.random.default_rng(0).normal(size=(3, 60, 80))
    seeds = [np.random.default_rng(seed).normal(size=(60, 80)) for seed in range(4)]
    none = [(y_true, 0.3 * y_true + seed, other) for seed in seeds]
    prior = [
        (y_true, weight * y_true + seed, other)
        for weight, seed in zip((0.4, 0.3, 0.6, 0.5), seeds, strict=True)
    ]
    n_boot, rest = 50, {"n_boot": 50, "random_state": 0, "fdr": 0.2}
    table = compare_significance({"none": none, "prior": prior}, **rest)
    weights = np.random.RandomState(0).multinomial(60, np.full(60, 1 / 60), size=n_boot).T
    measures = [
        [resample_measures(run, weights.astype(float), CRITERIA) for run in runs]
        for runs in (prior, none)
    ]
    observed = np.array([[measures_of(run, fdr=0.2) for run in runs] for runs in (prior, none)])
    for number in range(2):
        by_patients = np.subtract(*np.mean(measures, axis=1))[number].var(ddof=1)
        differences = np.subtract(*observed)[:, number]
        assert_allclose(table["difference"][number], differences.mean())
        # The variance of a mean of 4 differences, and Satterthwaite's degrees of freedom.
        by_runs = differences.var(ddof=1) / 4
        freedom = (by_patients + by_runs) ** 2 / (by_runs**2 / 3)
        expected = stats.t.isf(0.025, freedom) * np.sqrt(by_patients + by_runs)
        assert_allclose(half_width(table)[number], expected)

    def width(by_patients, by_runs, freedom):
        freedom *= ((by_patients + by_runs) / by_runs) ** 2
        return stats.t.isf(0.025, freedom) * np.sqrt(by_patients + by_runs)

    # Not paired: the seeds do not cancel (Welch).
    fewer = compare_significance({"none": none[:3], "prior": prior}, **rest)
    single = compare_significance({"none": none[0], "prior": tuple(prior)}, **rest)
    for number in range(2):
        own, other = observed[0, :, number], observed[1, :3, number]
        mean = np.mean(measures[0], axis=0)[number]
        parts = np.array([own.var(ddof=1) / 4, other.var(ddof=1) / 3])
        freedom = parts.sum() ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
        by_patients = (mean - np.mean(measures[1][:3], axis=0)[number]).var(ddof=1)
        expected = width(by_patients, parts.sum(), freedom)
        assert_allclose(half_width(fewer)[number], expected)
        # The variance of a single run is that of the others.
        by_patients = (mean - measures[1][0][number]).var(ddof=1)
        expected = width(by_patients, own.var(ddof=1) * (1 / 4 + 1), 3)
        assert_allclose(half_width(single)[number], expected)
    same = compare_significance({"none": none[0], "prior": [none[0]] * 3}, **rest)
    assert_allclose(half_width(same), 0, atol=1e-12)


@pytest.fixture
def results():
    """Return results of two ridges with groups and criteria."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 20))
    names = [f"S{row}" for row in range(60)]
    genes = [f"G{gene}" for gene in range(30)]
    y = pd.DataFrame(X[:, :5] @ rng.normal(size=(5, 30)), index=names, columns=genes)
    y += np.linspace(0.5, 8, 30) * rng.normal(size=(60, 30))
    patients = np.array([f"P{row // 3}" for row in range(60)])
    return {
        f"alpha={alpha}": cross_val_significance(
            Ridge(alpha=alpha), X, y, groups=patients, cv=4, alpha=1e-6, fdr=1e-5
        )
        for alpha in (1e3, 1.0)
    }


def test_patients_and_criteria_of_results_are_used(results):
    first, second = results
    table = compare_significance(results, n_boot=40, random_state=0)
    assert table["value"][0] == results[second].n_significant
    assert table["reference_value"][0] == results[first].n_significant
    assert table["value"][1] == pytest.approx(results[second].median_r, abs=1e-12)
    tables = {name: (result.y_true, result.predictions, None) for name, result in results.items()}
    groups = results[first].groups
    by_table = compare_significance(
        tables, groups=groups, alpha=1e-6, fdr=1e-5, n_boot=40, random_state=0
    )
    pd.testing.assert_frame_equal(table, by_table)
    by_sample = compare_significance(tables, alpha=1e-6, fdr=1e-5, n_boot=40, random_state=0)
    assert by_sample["ci_low"][1] != table["ci_low"][1]
    published = compare_significance(results, alpha=0.05, fdr=0.2, n_boot=2, random_state=0)
    report = significance_report(*tables[second], groups=groups, fdr=0.2)
    assert published["value"][0] == report["significant"].sum() > table["value"][0]
    reversed_ = compare_significance(results, reference=second, n_boot=40, random_state=0)
    assert_allclose(reversed_["difference"], -table["difference"])
    assert_allclose(reversed_["ci_low"], -table["ci_high"])


def test_invalid_reports(results):
    tables = make_tables(n_genes=20)
    with pytest.raises(ValueError, match="a dict that maps .* to results, got list"):
        compare_significance([tables, tables])
    with pytest.raises(ValueError, match=r"got dict\['a'\]"):
        compare_significance({"a": tables})
    with pytest.raises(TypeError, match=r"reports\['b'\] must be a result.*got DataFrame"):
        compare_significance({"a": tables, "b": significance_report(*tables)})
    with pytest.raises(ValueError, match=r"reports\['b'\] has no runs"):
        compare_significance({"a": tables, "b": []})
    fewer = tuple(table[:50] for table in tables)
    with pytest.raises(ValueError, match=r"'b'\] and reports\['a'\] must have the same samples"):
        compare_significance({"a": tables, "b": fewer})
    fewer = tuple(table[:, :10] for table in tables)
    with pytest.raises(ValueError, match="the same genes in the same order"):
        compare_significance({"a": tables, "b": fewer})
    with pytest.raises(ValueError, match=r"one of the settings \['a', 'b'\], got 'c'"):
        compare_significance({"a": tables, "b": tables}, reference="c")
    with pytest.raises(ValueError, match="at least 4 patients, got 3"):
        compare_significance({"a": tables, "b": tables}, groups=np.arange(60) % 3)
    with pytest.raises(ValueError, match=r"each of the 60 samples, got shape \(59,\)"):
        compare_significance({"a": tables, "b": tables}, groups=np.arange(59))
    with pytest.raises(ValueError, match="'n_boot' parameter"):
        compare_significance({"a": tables, "b": tables}, n_boot=1)
    first, second = results
    results[second].criteria["alpha"] = 0.05
    with pytest.raises(ValueError, match=r"different alpha: \[0.05, 1e-06\]"):
        compare_significance(results)
    results[second].y_true.iloc[3, 4] = np.nan
    with pytest.raises(ValueError, match="Input y_true contains NaN.*'G4'"):
        compare_significance(results, alpha=0.05)


def named(tables, names):
    return tuple(pd.DataFrame(table, index=names) for table in tables)


def test_different_samples_raise():
    tables = make_tables(n_genes=20)
    turned = tuple(table[::-1] for table in tables)
    with pytest.raises(ValueError, match=r"'b'\] and reports\['a'\] have different y_true"):
        compare_significance({"a": tables, "b": turned})
    with pytest.raises(ValueError, match="have different y_true"):
        compare_significance({"a": tables, "b": named(turned, np.arange(60))})
    # The samples have the same names, so that the scales may differ.
    names = [f"S{row}" for row in range(60)]
    scaled = tuple(2 * table + 1 for table in tables)
    reports = {"a": named(tables, names), "b": named(scaled, names)}
    table = compare_significance(reports, n_boot=5, random_state=0)
    assert_allclose(table[["difference", "ci_low", "ci_high"]], 0, atol=1e-9)
    with pytest.raises(ValueError, match="the same samples in the same order"):
        compare_significance(reports | {"c": named(tables, names[::-1])})


def test_different_baselines_raise():
    y_true, y_pred, y_base = make_tables(n_genes=100)
    reports = {"a": (y_true, y_pred, None), "b": (y_true, y_pred, y_base)}
    with pytest.raises(ValueError, match="have different baselines"):
        compare_significance(reports)
    table = compare_significance(reports, baseline="mean", n_boot=5, random_state=0)
    assert (table["difference"] == 0).all()
    assert table["value"][0] == measures_of((y_true, y_pred, None))[0]


def test_patients_of_the_results_must_agree(results):
    first, second = results.values()
    expected = compare_significance(results, n_boot=20, random_state=0)
    first.groups = None
    pd.testing.assert_frame_equal(
        compare_significance(results, n_boot=20, random_state=0), expected
    )
    first.groups = second.groups.replace("P0", "P1")
    with pytest.raises(ValueError, match="have different patients for the same samples"):
        compare_significance(results)
    given = compare_significance(results, groups=second.groups, n_boot=20, random_state=0)
    pd.testing.assert_frame_equal(given, expected)


def test_lists_are_accepted_as_tables():
    tables = make_tables(n=20, n_genes=8)
    as_lists = tuple(table.tolist() for table in tables)
    table = compare_significance({"a": as_lists, "b": tables}, n_boot=5, random_state=0)
    assert_allclose(table["difference"], 0)
