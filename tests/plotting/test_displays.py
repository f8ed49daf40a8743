"""Displays draw what the numbers say, on any axes, from one lambda or one gene on."""

# SPDX-License-Identifier: BSD-3-Clause

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, ParameterGrid

from sklearn_pk.plotting import LambdaPathDisplay, PredictionDisplay


@pytest.fixture(autouse=True)
def plt():
    """Draw without a screen, and close what was drawn."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def search_results(grid, n_folds=3, metric="score"):
    """Return cv_results_ of a search over a grid, with scores that grow with the row."""
    candidates = list(ParameterGrid(grid))
    names = sorted({name for candidate in candidates for name in candidate})
    results = {"params": candidates}
    for name in names:
        column = np.ma.masked_all(len(candidates), dtype=object)
        for row, candidate in enumerate(candidates):
            if name in candidate:
                column[row] = candidate[name]
        results[f"param_{name}"] = column
    for fold in range(n_folds):
        results[f"split{fold}_test_{metric}"] = 10.0 * np.arange(len(candidates)) + fold
    return results


def labels_of(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_one_line_for_each_combination(plt):
    grid = {"r__lambda_": [0.9, 0.1, 0.5], "r__aggregator": ["mlp", "transformer"]}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["mlp", "transformer"]
    assert display.ax_.get_legend().get_title().get_text() == "aggregator"
    first = display.lines_[0]
    assert_allclose(first.get_xdata(), [0.1, 0.5, 0.9])
    assert_allclose(first.get_ydata(), [11, 21, 1])
    assert_allclose(display.paths["std"], np.std([0, 1, 2]))
    assert_allclose(display.ax_.get_xticks(), [0.1, 0.5, 0.9])
    assert display.figure_ is display.ax_.figure
    colors = {line.get_color() for line in display.lines_}
    assert len(colors) == 2


def test_results_of_a_real_search_as_dict_and_frame():
    class LambdaRidge(Ridge):
        def __init__(self, lambda_=0.5):
            self.lambda_ = lambda_
            super().__init__()

    X = np.random.default_rng(0).normal(size=(30, 3))
    search = GridSearchCV(LambdaRidge(), {"lambda_": [0.1, 0.9]}, cv=3).fit(X, X[:, 0])
    for results in (search.cv_results_, pd.DataFrame(search.cv_results_)):
        display = LambdaPathDisplay.from_cv_results(results, score_name="R2")
        assert_allclose(display.lines_[0].get_ydata(), search.cv_results_["mean_test_score"])
        assert display.ax_.get_legend() is None
        assert display.ax_.get_ylabel().startswith("R2")


def test_one_lambda_and_given_axes(plt):
    _, axes = plt.subplots(1, 2)
    results = search_results({"lambda_": [0.5], "aggregator": ["mlp", "transformer"]})
    display = LambdaPathDisplay.from_cv_results(results, ax=axes[1])
    assert display.ax_ is axes[1]
    assert not axes[0].lines
    positions = [line.get_xdata()[0] for line in display.lines_]
    assert_allclose(positions, [0.495, 0.505])
    redrawn = display.plot(ax=axes[0])
    assert redrawn is display
    assert display.ax_ is axes[0]


def test_many_lines_stay_apart():
    grid = {"lambda_": [0.1, 0.5], "source": list("abc"), "aggregator": list("xyz")}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    looks = {(line.get_color(), line.get_linestyle()) for line in display.lines_}
    assert len(looks) == 9
    assert labels_of(display)[0] == "x, a"


def test_searched_objects_get_readable_labels():
    priors = [None, Ridge(alpha=1), Ridge(alpha=2)]
    grid = {"lambda_": [0.1, 0.5], "prior": priors, "constant": [3]}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["None", "Ridge 1", "Ridge 2"]
    assert all(len(line.get_xdata()) == 2 for line in display.lines_)


def test_candidates_without_a_lambda_are_left_out():
    grid = [{"lambda_": [0.1, 0.5], "prior": ["nmf"]}, {"prior": ["none"]}]
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert len(display.lines_) == 1


def test_band_and_error_bar_are_one_standard_deviation():
    grid = {"lambda_": [0.1, 0.5, 0.9]}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    [band] = display.ax_.collections
    spread = np.std([0, 1, 2])
    heights = band.get_paths()[0].vertices[:, 1]
    assert_allclose([heights.min(), heights.max()], [1 - spread, 21 + spread])
    one = LambdaPathDisplay.from_cv_results(search_results({"lambda_": [0.5]}))
    [bar] = one.ax_.containers
    assert_allclose(bar[2][0].get_segments()[0][:, 1], [1 - spread, 1 + spread])


def test_grids_of_other_parameters_keep_their_places():
    grid = [
        {"lambda_": [0.1, 0.5, 0.9], "prior": ["nmf"], "width": [4]},
        {"lambda_": [0.0], "prior": ["none"]},
    ]
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["nmf, 4", "none, not set"]
    assert_allclose(display.lines_[1].get_xdata(), [0.0])


def test_which_lambda_and_which_metric():
    grid = {"a__lambda_": [0.1, 0.5], "b__lambda_": [0.2, 0.3]}
    results = search_results(grid, metric="n")
    with pytest.raises(ValueError, match=r"one searched parameter .*'a__lambda_', 'b__lambda_'"):
        LambdaPathDisplay.from_cv_results(results)
    with pytest.raises(ValueError, match="no columns 'split0_test_score'"):
        LambdaPathDisplay.from_cv_results(results, lambda_param="b__lambda_")
    display = LambdaPathDisplay.from_cv_results(results, lambda_param="b__lambda_", metric="n")
    assert labels_of(display) == ["0.1", "0.5"]
    with pytest.raises(ValueError, match="must be a searched parameter, got 'c'"):
        LambdaPathDisplay.from_cv_results(results, lambda_param="c")


@pytest.fixture
def tables():
    """Return truth as a DataFrame and predictions as an array."""
    rng = np.random.default_rng(0)
    y_true = pd.DataFrame(8 + rng.normal(size=(50, 3)), columns=["ESR1", "ERBB2", "MKI67"])
    return y_true, 4 + 0.5 * y_true.to_numpy() + 0.3 * rng.normal(size=(50, 3))


def test_prediction_of_one_gene(tables):
    y_true, y_pred = tables
    display = PredictionDisplay.from_predictions(y_true, y_pred, gene="ERBB2")
    r = stats.pearsonr(y_true["ERBB2"], y_pred[:, 1]).statistic
    assert_allclose(display.r_, r)
    assert display.ax_.get_title() == f"ERBB2: r = {r:.2f}, n = 50"
    assert display.ax_.get_xlabel() == "True (log2 expression)"
    assert display.ax_.get_ylabel() == "Predicted (log2 expression)"
    points = display.scatter_.get_offsets()
    assert_allclose(points, np.column_stack([y_true["ERBB2"], y_pred[:, 1]]))
    assert display.ax_.get_xlim() == display.ax_.get_ylim()
    assert_allclose(display.line_.get_xdata(), display.line_.get_ydata())
    frame = pd.DataFrame(y_pred, columns=y_true.columns)
    for truth, prediction, gene in (
        (y_true, frame, "ERBB2"),
        (y_true.to_numpy(), y_pred, 1),
        (y_true["ERBB2"], y_pred[:, 1], None),
        (y_true.to_numpy()[:, 1], y_pred[:, 1], "ERBB2"),
    ):
        assert_allclose(
            PredictionDisplay.from_predictions(truth, prediction, gene=gene).r_, r, atol=1e-12
        )


def test_prediction_from_estimator_on_given_axes(tables, plt):
    y_true, _ = tables
    X = y_true.to_numpy()[:, :2]
    model = Ridge().fit(X, y_true)
    _, ax = plt.subplots()
    display = PredictionDisplay.from_estimator(
        model, X, y_true, gene="MKI67", units="z-score", ax=ax
    )
    assert display.ax_ is ax
    assert ax.get_xlabel() == "True (z-score)"
    assert_allclose(display.scatter_.get_offsets()[:, 1], model.predict(X)[:, 2])
    assert display.plot(scatter_kwargs={"color": "k"}).ax_ is not ax
    values = np.arange(50.0)
    scatter = display.plot(scatter_kwargs={"c": values, "lw": 2}).scatter_
    assert_allclose(scatter.get_array(), values)
    assert scatter.get_linewidth() == [2]


def test_constant_prediction_is_drawn():
    display = PredictionDisplay.from_predictions(np.ones(5), np.ones(5))
    assert display.r_ == 0
    assert display.ax_.get_title() == "r = 0.00, n = 5"


def test_bad_genes(tables):
    y_true, y_pred = tables
    with pytest.raises(ValueError, match="3 genes; name the one to draw"):
        PredictionDisplay.from_predictions(y_true, y_pred)
    with pytest.raises(ValueError, match="one of the 3 columns, got 'TP53'"):
        PredictionDisplay.from_predictions(y_true, y_pred, gene="TP53")
    with pytest.raises(ValueError, match="number of one of their 3 columns, got 3"):
        PredictionDisplay.from_predictions(y_true.to_numpy(), y_pred, gene=3)
    with pytest.raises(ValueError, match="same shape"):
        PredictionDisplay.from_predictions(y_true, y_pred[:9], gene="ESR1")
