"""ComparisonDisplay draws the values of the comparison, with texts that never overlap."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal

from sklearn_pk.metrics import compare_significance
from sklearn_pk.plotting import ComparisonDisplay

BLUE = "#0072B2"


def make_frame(intervals, reference="zero", value=1281, measure="n_significant"):
    """Return a comparison from (difference, ci_low, ci_high) of each setting."""
    return pd.DataFrame(
        [
            {
                "setting": name,
                "reference": reference,
                "measure": measure,
                "value": value + difference,
                "reference_value": value,
                "difference": difference,
                "ci_low": low,
                "ci_high": high,
            }
            for name, (difference, low, high) in intervals.items()
        ]
    )


COUNTS = {
    "prior": (105.6, 4.8, 206.5),
    "none": (108.6, 16.5, 200.7),
    "shuffled": (52.4, -36.4, 141.1),
    "linear": (-1250.0, -1300.04, -1200.0),
}
CORRELATIONS = {
    "prior": (0.018, 0.012, 0.024),
    "none": (-0.0199, -0.0251, -0.0147),
    "shuffled": (0.0, -0.00004, 0.00004),
    "linear": (0.1, 0.1, 0.1),
}


@pytest.fixture
def comparison():
    """Return both measures alternating, as in compare_significance."""
    frames = make_frame(COUNTS), make_frame(CORRELATIONS, value=0.2124, measure="median_r")
    return pd.concat(frames).sort_index(kind="stable").reset_index(drop=True)


def texts_of(artists):
    return [artist.get_text().replace("\N{MINUS SIGN}", "-") for artist in artists]


def boxes_of(display):
    """Return the bounding boxes of the points and of the texts, names before numbers."""
    display.figure_.canvas.draw()
    points = [errorbar.lines[0].get_tightbbox() for errorbar in display.errorbars_]
    return points, [text.get_window_extent() for text in display.names_ + display.texts_]


def assert_clear(display):
    """Check that texts do not overlap each other or points, and are inside the axes."""
    points, texts = boxes_of(display)
    axes = display.ax_.get_window_extent().padded(0.5)
    for number, box in enumerate(texts):
        assert not any(box.overlaps(point) for point in points)
        assert not any(box.overlaps(other) for other in texts[:number])
        assert axes.x0 <= box.x0 < box.x1 <= axes.x1
        assert axes.y0 <= box.y0 < box.y1 <= axes.y1
    for text in (display.ax_.title, display.ax_.xaxis.label):
        assert text.get_window_extent().width <= axes.width


@pytest.mark.parametrize(
    ("measure", "expected"), [("n_significant", COUNTS), ("median_r", CORRELATIONS)]
)
def test_points_and_intervals_are_those_of_the_measure(comparison, measure, expected):
    display = ComparisonDisplay.from_comparison(comparison, measure=measure)
    assert len(display.errorbars_) == len(expected)
    assert texts_of(display.names_) == list(expected)
    for row, (errorbar, numbers) in enumerate(
        zip(display.errorbars_, expected.values(), strict=True)
    ):
        difference, low, high = numbers
        assert_allclose(errorbar.lines[0].get_xydata(), [[difference, row]])
        [segment] = errorbar.lines[2][0].get_segments()
        assert_allclose(segment, [[low, row], [high, row]], atol=1e-12)
    left, right = display.ax_.get_xlim()
    assert left < min(0, *(low for _, low, _ in expected.values()))
    assert right > max(0, *(high for _, _, high in expected.values()))
    bottom, top = display.ax_.get_ylim()
    assert bottom > len(expected) - 1  # the first setting is on top
    assert top < 0
    assert_allclose(display.line_.get_xdata(), 0)
    assert display.figure_ is display.ax_.figure


def test_texts_are_in_the_rows_of_their_settings(comparison):
    display = ComparisonDisplay.from_comparison(comparison)
    points, texts = boxes_of(display)
    axes = display.ax_.get_window_extent()
    names, numbers = texts[: len(points)], texts[len(points) :]
    for row, point in enumerate(points):
        for box in (names[row], numbers[row]):
            assert 0 <= box.y0 - point.y1 < 10  # just above
            nearest = np.argmin([abs(box.y0 - other.y1) for other in points])
            assert nearest == row
        assert_allclose(names[row].x0, axes.x0, atol=1.5)
        assert_allclose(numbers[row].x1, axes.x1, atol=1.5)


def test_points_are_filled_if_the_interval_excludes_0(comparison):
    for measure in ("n_significant", "median_r"):
        display = ComparisonDisplay.from_comparison(comparison, measure=measure)
        points = [errorbar.lines[0] for errorbar in display.errorbars_]
        filled = [same_color(point.get_markerfacecolor(), BLUE) for point in points]
        hollow = [same_color(point.get_markerfacecolor(), "white") for point in points]
        assert filled == [True, True, False, True]
        assert hollow == [False, False, True, False]
        edges = [same_color(point.get_markeredgecolor(), BLUE) for point in points]
        assert edges == filled


@pytest.mark.parametrize("limits", [(0.0, 5.0), (-5.0, 0.0), (0.0, 0.0)])
def test_interval_that_ends_at_0_contains_it(limits):
    display = ComparisonDisplay.from_comparison(make_frame({"a": (np.mean(limits), *limits)}))
    assert same_color(display.errorbars_[0].lines[0].get_markerfacecolor(), "white")
    assert_clear(display)


@pytest.mark.parametrize("sign", [1, -1])
def test_axis_includes_0(sign):
    low, high = sorted([sign * 200.0, sign * 300.0])
    display = ComparisonDisplay.from_comparison(make_frame({"a": (sign * 250.0, low, high)}))
    left, right = display.ax_.get_xlim()
    assert left < 0 < right


def test_numbers_of_counts(comparison):
    display = ComparisonDisplay.from_comparison(comparison)
    assert texts_of(display.texts_) == [
        "+105.6 [4.8, 206.5]",
        "+108.6 [16.5, 200.7]",
        "+52.4 [-36.4, 141.1]",
        "-1,250 [-1,300, -1,200]",
    ]
    small = make_frame({"a": (34, -0.04, 80.96), "b": (0, 0, 0)}, value=1)
    display = ComparisonDisplay.from_comparison(small)
    assert texts_of(display.texts_) == ["+34 [0, 81]", "0 [0, 0]"]
    assert display.ax_.get_title() == "Reference: zero, 1 significant gene"


def test_numbers_of_correlations(comparison):
    display = ComparisonDisplay.from_comparison(comparison, measure="median_r")
    assert texts_of(display.texts_) == [
        "+0.018 [0.012, 0.024]",
        "-0.020 [-0.025, -0.015]",
        "0.000 [0.000, 0.000]",
        "+0.100 [0.100, 0.100]",
    ]
    assert display.ax_.get_title() == "Reference: zero, median r 0.212"
    assert display.ax_.get_xlabel() == "Difference in median r from 'zero'"


@pytest.mark.parametrize(("value", "number"), [(1281, "1,281"), (1281.25, "1,281.2"), (0, "0")])
def test_title_and_label_name_the_reference(value, number):
    display = ComparisonDisplay.from_comparison(make_frame(COUNTS, "no_$prior$", value))
    assert display.ax_.get_title() == f"Reference: no_$prior$, {number} significant genes"
    assert display.ax_.get_xlabel() == "Difference in significant genes from 'no_$prior$'"
    assert not display.ax_.title.get_parse_math()


LONG = "prior of StringDB at lambda {}, transformer of six layers, {}"


@pytest.mark.parametrize("n_settings", [1, 2, 12, 25])
@pytest.mark.parametrize("where", ["own", "plain", "constrained", "beside"])
@pytest.mark.parametrize("name", ["{}", LONG])
def test_texts_do_not_overlap(plt, n_settings, where, name):
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 300, size=n_settings)
    rows = {name.format(k, "a" * (k % 7)): (c, c - 200, c + 250) for k, c in enumerate(centres)}
    axes = {
        "own": lambda: None,
        "plain": lambda: plt.subplots()[1],
        "constrained": lambda: plt.subplots(layout="constrained")[1],
        "beside": lambda: plt.subplots(1, 2)[1][0],
    }[where]()
    display = ComparisonDisplay.from_comparison(make_frame(rows, name), ax=axes)
    assert_clear(display)
    assert axes is None or display.ax_ is axes


def test_texts_are_only_scaled_down_in_small_axes(plt):
    for ax in (None, plt.subplots()[1]):
        display = ComparisonDisplay.from_comparison(make_frame(COUNTS), ax=ax)
        assert {text.get_fontsize() for text in display.names_} == {9}
        assert {text.get_fontsize() for text in display.texts_} == {8}
    rows = {str(k): (0, -1, 1) for k in range(40)}
    crowded = ComparisonDisplay.from_comparison(make_frame(rows), ax=plt.subplots()[1])
    assert crowded.names_[0].get_fontsize() < 6


def test_figure_height_depends_on_the_number_of_settings():
    heights = []
    for n_settings in (1, 3, 12):
        rows = dict.fromkeys(range(n_settings), (1, 0, 2))  # names may be integers
        display = ComparisonDisplay.from_comparison(make_frame(rows))
        assert texts_of(display.names_) == [str(k) for k in rows]
        assert {text.get_fontsize() for text in display.names_} == {9}
        heights.append(display.figure_.get_figheight())
    assert 1 < heights[0] < heights[1] < heights[2] < 8


def test_plot_again_on_other_axes(plt, comparison):
    _, (left, right) = plt.subplots(1, 2)
    display = ComparisonDisplay(comparison, measure="median_r")
    assert display.plot(left) is display
    assert display.ax_ is left
    assert not right.lines
    display.plot(ax=right)
    assert display.ax_ is right
    assert len(display.errorbars_) == len(display.texts_) == len(display.names_) == 4


def test_from_results_draws_the_comparison():
    y_true, noise, y_base = np.random.default_rng(0).normal(size=(3, 60, 30))
    reports = {
        name: (y_true, strength * y_true + 0.5 * noise, y_base)
        for name, strength in [("weak", 0.1), ("same", 0.1), ("strong", 0.4)]
    }
    options = {"reference": "same", "n_boot": 30, "random_state": 0}
    display = ComparisonDisplay.from_results(reports, measure="median_r", **options)
    expected = compare_significance(reports, **options)
    assert_frame_equal(display.comparison, expected)
    assert texts_of(display.names_) == ["weak", "strong"]
    assert display.rows["measure"].unique().tolist() == ["median_r"]
    assert display.ax_.get_xlabel().endswith("from 'same'")
    filled = [
        same_color(errorbar.lines[0].get_markerfacecolor(), BLUE) for errorbar in display.errorbars_
    ]
    assert filled == [False, True]
    counts = ComparisonDisplay.from_results(reports, **options)
    assert "significant genes" in counts.ax_.get_title()


def test_unknown_measure_raises_before_the_draws():
    with pytest.raises(ValueError, match=r"\['n_significant', 'median_r'\], got 'rmse'"):
        ComparisonDisplay.from_results(None, measure="rmse")


def test_comparison_from_a_file(comparison, tmp_path):
    comparison.to_csv(tmp_path / "comparison.csv", index=False)
    display = ComparisonDisplay.from_comparison(pd.read_csv(tmp_path / "comparison.csv"))
    assert texts_of(display.texts_)[0] == "+105.6 [4.8, 206.5]"


def test_invalid_comparison(comparison):
    with pytest.raises(TypeError, match="from compare_significance, got an instance of dict"):
        ComparisonDisplay(comparison.to_dict())
    with pytest.raises(ValueError, match=r"lacks the columns \['measure', 'ci_low'\]"):
        ComparisonDisplay(comparison.drop(columns=["ci_low", "measure"]))
    with pytest.raises(ValueError, match=r"\['n_significant', 'median_r'\], got 'rmse'"):
        ComparisonDisplay(comparison, measure="rmse")
    with pytest.raises(ValueError, match=r"\['median_r'\], got 'n_significant'"):
        ComparisonDisplay(comparison[comparison["measure"] == "median_r"])
    with pytest.raises(ValueError, match=r"in the comparison, \[\], got"):
        ComparisonDisplay(comparison.iloc[:0])


@pytest.mark.parametrize("column", ["value", "difference", "ci_high", "setting", "reference"])
def test_missing_numbers(comparison, column):
    comparison.loc[2, column] = np.nan if column in ("value", "difference", "ci_high") else None
    with pytest.raises(ValueError, match="1 of the 4 rows of 'n_significant' do, first"):
        ComparisonDisplay(comparison)
    assert len(ComparisonDisplay(comparison, measure="median_r").rows) == 4


def test_infinite_numbers(comparison):
    comparison.loc[2, "ci_low"] = -np.inf
    with pytest.raises(ValueError, match="NaN or infinity.* first that of 'none'"):
        ComparisonDisplay(comparison)


def test_rows_that_cannot_be_plotted_together(comparison):
    other = comparison.assign(reference="none")
    with pytest.raises(ValueError, match=r"one reference, got \['zero', 'none'\]; plot"):
        ComparisonDisplay(pd.concat([comparison, other]))
    other = make_frame({"new": (1, 0, 2)}, value=1280)
    with pytest.raises(ValueError, match="one value of the reference 'zero', got 1280 to 1281"):
        ComparisonDisplay(pd.concat([comparison, other]))
    with pytest.raises(ValueError, match="several for 'shuffled'"):
        ComparisonDisplay(pd.concat([comparison, make_frame({"shuffled": (1, 0, 2)})]))
