"""SignificanceDisplay shows the values, significance and levels of the report."""

# SPDX-License-Identifier: BSD-3-Clause

import io
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_pk.metrics import significance_report
from sklearn_pk.plotting import SignificanceDisplay


def make_tables(n_samples=60, n_genes=20, noise=0.8, seed=0):
    """Return truth, predictions of decreasing quality over genes, and a baseline of noise."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n_samples, n_genes))
    pred = true * np.linspace(1, 0, n_genes) + noise * rng.normal(size=true.shape)
    names = [f"GENE{number}" for number in range(n_genes)]
    return (
        pd.DataFrame(true, columns=names),
        pd.DataFrame(pred, columns=names),
        pd.DataFrame(rng.normal(size=true.shape), columns=names),
    )


@pytest.fixture
def report():
    return significance_report(*make_tables())


@pytest.fixture
def mean_report():
    return significance_report(*make_tables()[:2], None)


def offsets(collection):
    return np.asarray(collection.get_offsets())


def legend_of(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def names_of(display):
    return [label.get_text() for label in display.labels_]


def sort_rows(points):
    return points[np.lexsort(points.T)]


def test_volcano_shows_r_and_steiger(report):
    display = SignificanceDisplay.from_report(report, kind="volcano")
    for collection, significant in (
        (display.significant_, True),
        (display.not_significant_, False),
    ):
        shown = report[report["significant"] == significant]
        assert 2 < len(shown) < 18
        assert_allclose(
            offsets(collection), np.column_stack([shown["r"], -np.log10(shown["steiger_p"])])
        )
    n = report["significant"].sum()
    assert display.ax_.get_title() == (
        f"{n} of 20 genes significant, median r = {report['r'].median():.2f}"
    )
    assert f"significant ({n} genes)" in legend_of(display)
    assert f"not significant ({20 - n} genes)" in legend_of(display)
    assert "Steiger" in display.ax_.get_ylabel()
    assert display.ceiling_ is display.baseline_ is display.highlighted_ is None
    assert display.figure_ is display.ax_.figure


def test_significance_is_visible_without_colour(report):
    display = SignificanceDisplay.from_report(report)
    assert (display.significant_.get_facecolor()[:, 3] == 1).all()
    assert (display.not_significant_.get_facecolor()[:, 3] == 0).all()
    assert (display.not_significant_.get_edgecolor()[:, 3] == 1).all()
    assert display.significant_.get_sizes() > display.not_significant_.get_sizes()


def test_volcano_against_the_mean_shows_pearsons_p(mean_report):
    display = SignificanceDisplay.from_report(mean_report, kind="volcano")
    every = np.concatenate([offsets(display.significant_), offsets(display.not_significant_)])
    expected = np.column_stack([mean_report["r"], -np.log10(mean_report["p"])])
    assert_allclose(sort_rows(every), sort_rows(expected))
    assert "Pearson" in display.ax_.get_ylabel()
    assert not any("Steiger" in text for text in legend_of(display))
    ranked = display.plot(kind="sorted")
    assert ranked.baseline_ is None
    assert not any("baseline" in text for text in legend_of(ranked))


def test_sorted_shows_all_genes_and_the_baseline(report):
    display = SignificanceDisplay.from_report(report, kind="sorted")
    ranks = report["r"].rank().to_numpy()
    for collection, significant in (
        (display.significant_, True),
        (display.not_significant_, False),
    ):
        shown = (report["significant"] == significant).to_numpy()
        assert_allclose(offsets(collection), np.column_stack([ranks[shown], report["r"][shown]]))
    assert_allclose(offsets(display.baseline_), np.column_stack([ranks, report["r_baseline"]]))
    assert "baseline, same gene" in legend_of(display)
    low, high = display.ax_.get_xlim()
    assert low < 1
    assert high > 20


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("baseline", [True, False])
def test_lines_are_at_the_levels_of_the_tests(alpha, baseline):
    true, pred, base = make_tables(n_genes=40)
    display = SignificanceDisplay.from_predictions(
        true, pred, base if baseline else None, alpha=alpha, fdr=0.5, kind="volcano"
    )
    t = stats.t.isf(alpha / 2, 58)
    r = t / np.sqrt(58 + t**2)
    horizontal, *vertical = display.levels_
    assert_allclose(horizontal.get_ydata(), -np.log10(alpha))
    assert horizontal.get_label() == f"{'Steiger' if baseline else 'Pearson'} p = {alpha:g}"
    # Against the mean, the level of p and that of r are the same.
    assert len(vertical) == baseline
    if baseline:
        assert_allclose(vertical[0].get_xdata(), r)
        assert vertical[0].get_label() == f"Pearson p = {alpha:g} (r = {r:.2f})"
    assert_allclose(display.plot(kind="sorted").levels_[0].get_ydata(), r)


def test_line_of_corrected_p_value():
    tables = make_tables(n_genes=40, noise=2.5)
    display = SignificanceDisplay.from_predictions(*tables, fdr=0.05, kind="volcano")
    report = display.report
    [_, corrected, _] = display.levels_
    assert corrected.get_label() == "Steiger FDR = 0.05"
    level = 10.0 ** -corrected.get_ydata()[0]
    assert level < 0.05
    assert 0 < (report["steiger_fdr"] < 0.05).sum() < (report["steiger_p"] < 0.05).sum()
    assert ((report["steiger_p"] < level) == (report["steiger_fdr"] < 0.05)).all()
    # For some of the genes, the level of the correction is unknown.
    some = SignificanceDisplay.from_report(report.iloc[:25], fdr=0.05, kind="volcano")
    assert len(some.levels_) == 2


def test_critical_r_depends_on_the_number_of_patients():
    true, pred, base = make_tables()
    groups = np.arange(60) // 2
    display = SignificanceDisplay.from_predictions(true, pred, base, groups=groups, kind="volcano")
    t = stats.t.isf(0.025, 28)
    assert_allclose(display.levels_[-1].get_xdata(), t / np.sqrt(28 + t**2))


def test_best_and_highlighted_genes_are_labelled(report):
    display = SignificanceDisplay.from_report(
        report, n_labels=3, highlight=["GENE19", "GENE18"], kind="volcano"
    )
    best = report["r"][report["significant"]].nlargest(3).index
    assert set(names_of(display)) == {*best, "GENE19", "GENE18"}
    for label in display.labels_:
        gene = report.loc[label.get_text()]
        assert_allclose(label.xy, [gene["r"], -np.log10(gene["steiger_p"])])
        assert (label.get_fontweight() == "bold") == (label.get_text() in ("GENE18", "GENE19"))
    marked = report.loc[["GENE18", "GENE19"]]
    assert_allclose(
        offsets(display.highlighted_),
        np.column_stack([marked["r"], -np.log10(marked["steiger_p"])]),
    )
    assert "highlighted" in legend_of(display)
    assert names_of(display.plot(n_labels=0)) == []
    assert names_of(display.plot(n_labels=0, highlight="GENE3")) == ["GENE3"]
    assert len(names_of(display.plot(n_labels=99))) == report["significant"].sum()


@pytest.mark.parametrize("kind", ["volcano", "sorted"])
@pytest.mark.parametrize("n_genes", [20, 300])
def test_names_do_not_overlap(kind, n_genes):
    tables = make_tables(n_genes=n_genes)
    display = SignificanceDisplay.from_predictions(
        *tables, kind=kind, n_labels=12, highlight=tables[0].columns[-3:]
    )
    display.figure_.canvas.draw()
    boxes = [mpl.text.Text.get_window_extent(label) for label in display.labels_]
    assert len(boxes) == 15
    for number, box in enumerate(boxes):
        assert box.x0 > display.ax_.get_window_extent().x1
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert box.y1 <= display.figure_.bbox.y1
        assert box.x1 <= display.figure_.bbox.x1


@pytest.mark.parametrize("kind", ["volcano", "sorted"])
def test_legend_hides_nothing(report, kind):
    display = SignificanceDisplay.from_report(report, kind=kind, highlight=["GENE3"])
    display.figure_.canvas.draw()
    legend = display.ax_.get_legend().get_window_extent()
    assert not legend.overlaps(display.ax_.xaxis.label.get_window_extent())
    assert legend.y1 < display.ax_.get_window_extent().y0
    assert legend.y0 >= 0


def test_underflowing_p_values_are_triangles():
    true, pred, base = make_tables(n_samples=3000, n_genes=20, noise=0.05)
    pred["GENE1"] += 100  # RMSE far above the baseline's
    display = SignificanceDisplay.from_predictions(
        true, pred, base, highlight=["GENE1"], kind="volcano"
    )
    report = display.report
    underflow = report["steiger_p"] == 0
    assert 2 < underflow.sum() < 20
    assert not report.loc["GENE1", "significant"]
    assert underflow["GENE1"]
    points = offsets(display.ceiling_)
    assert_allclose(points[:, 0], report["r"][underflow])
    assert np.isfinite(points).all()
    assert len(set(points[:, 1])) == 1
    shown = np.concatenate([offsets(display.significant_), offsets(display.not_significant_)])
    assert len(shown) + len(points) == 20
    assert np.isfinite(shown).all()
    low, high = display.ax_.get_ylim()
    assert shown[:, 1].max() < points[0, 1] < high
    n_paths = len(display.ceiling_.get_paths()[0].vertices)
    assert n_paths != len(display.significant_.get_paths()[0].vertices)
    filled = display.ceiling_.get_facecolor()[:, 3] == 1
    assert filled.tolist() == report["significant"][underflow].tolist()
    assert f"p below the range of floats ({underflow.sum()} genes)" in legend_of(display)
    assert f"significant ({report['significant'].sum()} genes)" in legend_of(display)
    assert display.plot(kind="sorted").ceiling_ is None


def test_all_p_values_underflow():
    true, pred, base = make_tables(n_samples=3000, n_genes=2, noise=0.001)
    display = SignificanceDisplay.from_predictions(
        true[["GENE0"]], pred[["GENE0"]], base[["GENE0"]], kind="volcano"
    )
    assert np.isfinite(offsets(display.ceiling_)).all()
    assert legend_of(display)[-1] == "p below the range of floats (1 gene)"
    assert not any(text.startswith("significant") for text in legend_of(display))


@pytest.mark.parametrize("kind", ["volcano", "sorted"])
@pytest.mark.parametrize("significant", [True, False])
def test_one_gene(kind, significant):
    true, pred, base = make_tables(n_genes=2, noise=0.4)
    gene = "GENE0" if significant else "GENE1"
    display = SignificanceDisplay.from_predictions(
        true[gene].to_numpy(), pred[gene].to_numpy(), base[gene].to_numpy(), kind=kind
    )
    r = display.report["r"].iloc[0]
    n = int(significant)
    assert display.ax_.get_title() == f"{n} of 1 gene significant, median r = {r:.2f}"
    assert len(offsets(display.significant_)) == n
    assert len(offsets(display.not_significant_)) == 1 - n
    assert names_of(display) == ["0"] * n
    display.figure_.canvas.draw()
    if kind == "sorted":
        low, high = display.ax_.get_xlim()
        assert [tick for tick in display.ax_.get_xticks() if low < tick < high] == [1]


@pytest.mark.parametrize("kind", ["volcano", "sorted"])
def test_whole_transcriptome(kind):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(30, 25_761))
    pred = true * rng.uniform(0, 2, 25_761) + rng.normal(size=true.shape)
    display = SignificanceDisplay.from_predictions(
        true, pred, rng.normal(size=true.shape), kind=kind
    )
    n = int(display.report["significant"].sum())
    assert display.ax_.get_title().startswith(f"{n:,} of 25,761 genes significant")
    assert len(offsets(display.significant_)) == n > 1000
    assert len(offsets(display.not_significant_)) == 25_761 - n > 1000
    assert display.significant_.get_rasterized()
    small = SignificanceDisplay.from_predictions(true[:, :9], pred[:, :9], true[::-1, :9])
    assert not small.significant_.get_rasterized()
    assert small.significant_.get_sizes() > display.significant_.get_sizes()
    file = io.BytesIO()
    display.figure_.savefig(file, format="svg")
    assert len(file.getvalue()) < 1_000_000


def test_constant_genes_have_no_correlation():
    true, pred, base = make_tables(n_genes=3)
    pred["GENE2"] = 1.0
    for baseline in (base, None):
        display = SignificanceDisplay.from_predictions(true, pred, baseline, kind="volcano")
        assert [0.0, 0.0] in offsets(display.not_significant_).tolist()


class IdentityRegressor(RegressorMixin, BaseEstimator):
    """Predict the features, or noise without training."""

    def fit(self, X, y):
        self.is_fitted_ = True
        return self

    def predict(self, X):
        return X

    def predict_untrained(self, X):
        return np.random.default_rng(1).normal(size=X.shape)


def test_baseline_of_estimators_is_untrained_or_the_mean(plt):
    true, pred, _ = make_tables()
    X = pred.to_numpy()
    _, ax = plt.subplots()
    model = make_pipeline(StandardScaler(), IdentityRegressor()).fit(X, true)
    display = SignificanceDisplay.from_estimator(
        model, X, true, kind="sorted", highlight=["GENE2"], alpha=0.01, ax=ax
    )
    assert display.ax_ is ax
    untrained = model[-1].predict_untrained(X)
    expected = significance_report(true, model.predict(X), untrained, alpha=0.01)
    pd.testing.assert_frame_equal(display.report, expected)
    assert_allclose(offsets(display.baseline_)[:, 1], expected["r_baseline"])
    assert "GENE2" in names_of(display)
    ridge = Ridge().fit(X, true)
    display = SignificanceDisplay.from_estimator(ridge, X, true)
    pd.testing.assert_frame_equal(display.report, significance_report(true, ridge.predict(X), None))
    assert "Pearson" in display.ax_.get_ylabel()


def test_parameters_are_passed_to_the_report():
    true, pred, base = make_tables()
    display = SignificanceDisplay.from_predictions(
        true.to_numpy(),
        pred.to_numpy(),
        base.to_numpy(),
        gene_names=true.columns,
        compat="sequoia",
        kind="volcano",
    )
    expected = significance_report(true, pred, base, compat="sequoia")
    pd.testing.assert_frame_equal(display.report, expected, check_index_type=False)


def test_report_from_a_file(report, tmp_path):
    report = report[report["significant"]]
    report.to_csv(tmp_path / "report.csv")
    read = pd.read_csv(tmp_path / "report.csv", index_col=0)
    display = SignificanceDisplay.from_report(read, kind="volcano")
    assert len(offsets(display.significant_)) == len(report)
    assert len(display.levels_) >= 2


def test_levels_must_be_those_of_the_report(report):
    with pytest.raises(ValueError, match=r"alpha=1e-08 and fdr=0\.05 are not the levels"):
        SignificanceDisplay.from_report(report, alpha=1e-8)
    strict = significance_report(*make_tables(), alpha=1e-4)
    with pytest.raises(
        ValueError, match=r"alpha=0\.05 .* they change the significance of .*, first 'GENE"
    ):
        SignificanceDisplay.from_report(strict)
    assert SignificanceDisplay.from_report(strict, alpha=1e-4).alpha == 1e-4


def test_invalid_report(report):
    with pytest.raises(TypeError, match="from significance_report, .* got an instance of dict"):
        SignificanceDisplay.from_report(report.to_dict())
    with pytest.raises(ValueError, match=r"lacks the columns \['steiger_p', 'reason'\]"):
        SignificanceDisplay.from_report(report.drop(columns=["steiger_p", "reason"]))
    with pytest.raises(ValueError, match="at least one gene"):
        SignificanceDisplay.from_report(report.iloc[:0])
    broken = report.copy()
    broken.loc["GENE4", "r"] = np.nan
    with pytest.raises(ValueError, match="1 of 20 genes do, first 'GENE4'"):
        SignificanceDisplay.from_report(broken)


def test_report_without_a_common_n_has_no_line_of_r(report):
    display = SignificanceDisplay.from_report(report.assign(r=report["r"] / 2), kind="volcano")
    labels = [line.get_label() for line in display.levels_]
    assert labels == ["Steiger p = 0.05", "Steiger FDR = 0.05"]


def test_invalid_parameters(report):
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'manhattan'"):
        SignificanceDisplay.from_report(report, kind="manhattan")
    with pytest.raises(
        ValueError, match=r"highlight must contain genes .* got \['TP53'\]; .*'GENE0'"
    ):
        SignificanceDisplay.from_report(report, highlight=["GENE1", "TP53"])


def test_many_names_fit_beside_the_axes():
    report = significance_report(*make_tables(n_genes=120, noise=0.1))
    display = SignificanceDisplay.from_report(report, n_labels=60)
    display.figure_.canvas.draw()
    assert len(display.labels_) == 60
    box = display.ax_.get_window_extent()
    boxes = [mpl.text.Text.get_window_extent(label) for label in display.labels_]
    assert boxes[0].y0 > box.y0 - 0.02 * box.height
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))


def test_names_of_genes_may_be_a_column(report):
    display = SignificanceDisplay.from_report(report.rename_axis("gene").reset_index())
    assert names_of(display) == names_of(SignificanceDisplay.from_report(report))
