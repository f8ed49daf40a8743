"""LambdaPathDisplay and PredictionDisplay draw the right values on any axes."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer, r2_score
from sklearn.model_selection import GridSearchCV, ParameterGrid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_pk.metrics import make_significance_scorer
from sklearn_pk.plotting import LambdaPathDisplay, PredictionDisplay
from sklearn_pk.regression import PriorKnowledgeRidge


def search_results(grid, n_folds=3, metric="score"):
    """Return cv_results_ of a search over a grid, with scores increasing by row."""
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


def legend_of(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def labels_of(display):
    """Return the labels of the lines, less those of the marks on them."""
    return [label for label in legend_of(display) if not label.startswith(("chosen", "no prior ("))]


def test_one_line_for_each_combination(plt):
    grid = {"r__lambda_": [0.9, 0.1, 0.5], "r__aggregator": ["mlp", "transformer"]}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["mlp", "transformer"]
    assert display.ax_.get_legend().get_title().get_text() == "aggregator"
    first = display.lines_[0]
    assert_allclose(first.get_xdata(), [0.095, 0.495, 0.895])
    assert_allclose(display.lines_[1].get_xdata(), [0.105, 0.505, 0.905])
    assert_allclose(first.get_ydata(), [11, 21, 1])
    assert_allclose(display.paths["std"], np.std([0, 1, 2]))
    assert_allclose(display.ax_.get_xticks(), [0.1, 0.5, 0.9])
    assert display.figure_ is display.ax_.figure
    colors = {line.get_color() for line in display.lines_}
    assert len(colors) == 2


class LambdaRidge(Ridge):
    """A regressor with a lambda and a prior without effect."""

    def __init__(self, lambda_=0.5, prior=None):
        self.lambda_ = lambda_
        self.prior = prior
        super().__init__()


def test_results_of_a_real_search_as_dict_and_frame():
    X = np.random.default_rng(0).normal(size=(30, 3))
    search = GridSearchCV(LambdaRidge(), {"lambda_": [0.1, 0.9]}, cv=3).fit(X, X[:, 0])
    for results in (search.cv_results_, pd.DataFrame(search.cv_results_)):
        display = LambdaPathDisplay.from_cv_results(results, score_name="R2")
        assert_allclose(display.lines_[0].get_ydata(), search.cv_results_["mean_test_score"])
        assert labels_of(display) == []
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


def test_many_lines_do_not_overlap():
    grid = {"lambda_": [0.1, 0.5], "source": list("abc"), "aggregator": list("xyz")}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    looks = {(line.get_color(), line.get_linestyle()) for line in display.lines_}
    assert len(looks) == 9
    assert labels_of(display)[0] == "x, a"


def test_labels_of_searched_objects():
    priors = [None, Ridge(alpha=1), Ridge(alpha=2)]
    grid = {"lambda_": [0.1, 0.5], "prior": priors, "constant": [3]}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["None", "Ridge 1", "Ridge 2"]
    assert all(len(line.get_xdata()) == 2 for line in display.lines_)


def test_candidates_without_a_lambda_are_horizontal_lines():
    grid = [{"lambda_": [0.1, 0.5], "prior": ["nmf"]}, {"prior": ["none"]}]
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["nmf", "none"]
    assert_allclose(display.lines_[1].get_ydata(), 21)
    assert_allclose(display.lines_[1].get_xdata(), [0, 1])  # from edge to edge
    [(x, low), (_, high)] = display.errorbars_[1][2][0].get_segments()[0]
    assert x > 0.5
    assert_allclose([low, high], 21 + np.std([0, 1, 2]) * np.array([-1, 1]))
    assert_allclose(display.ax_.get_xticks(), [0.1, 0.5])


@pytest.mark.parametrize("as_frame", [False, True])
def test_lambda_is_ignored_without_a_prior(as_frame):
    grid = {"m__lambda_": [0.1, 0.5], "m__prior": ["nmf", None]}
    results = search_results(grid)
    results = pd.DataFrame(results) if as_frame else results
    display = LambdaPathDisplay.from_cv_results(results)
    assert labels_of(display) == ["nmf", "None"]
    assert_allclose(display.lines_[0].get_ydata(), [1, 21])
    # The candidates at both lambdas are averaged.
    assert_allclose(display.lines_[1].get_ydata(), (11 + 31) / 2)
    assert len(display.paths) == 3


def test_error_bars_are_one_standard_deviation():
    display = LambdaPathDisplay.from_cv_results(search_results({"lambda_": [0.1, 0.5, 0.9]}))
    spread = np.std([0, 1, 2])
    [errorbar] = display.errorbars_
    assert errorbar in display.ax_.containers
    for segment, lambda_, mean in zip(
        errorbar[2][0].get_segments(), [0.1, 0.5, 0.9], [1, 11, 21], strict=True
    ):
        assert_allclose(segment, [[lambda_, mean - spread], [lambda_, mean + spread]])


def test_error_bars_are_adjacent_at_each_lambda():
    grid = {"lambda_": [0.1, 0.2, 0.9], "a": list("pqr"), "b": list("wxyz")}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    at = np.array([[s[0][0] for s in bar[2][0].get_segments()] for bar in display.errorbars_])
    assert at.shape == (12, 3)
    assert (np.diff(at, axis=0) > 0).all()
    assert at[:, 0].max() < at[:, 1].min()
    assert_allclose(at.mean(axis=0), [0.1, 0.2, 0.9])
    assert_allclose(at, [line.get_xdata() for line in display.lines_])


def test_two_parameters_by_colour_and_line_style():
    grid = {"lambda_": [0.1, 0.5], "aggregator": ["mlp", "tf"], "prior": ["a", "b", "c"]}
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    looks = {
        label: (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_fillstyle())
        for label, line in zip(labels_of(display), display.lines_, strict=True)
    }
    for prior in "abc":
        assert looks[f"mlp, {prior}"][:2] == looks[f"tf, {prior}"][:2]
    for aggregator in ("mlp", "tf"):
        assert len({looks[f"{aggregator}, {prior}"][0] for prior in "abc"}) == 3
        assert len({looks[f"{aggregator}, {prior}"][2:] for prior in "abc"}) == 1
    assert looks["mlp, a"][2] != looks["tf, a"][2]
    assert looks["mlp, a"][3] != looks["tf, a"][3]


def test_displays_on_the_same_axes():
    results = search_results({"lambda_": [0.1, 0.5]})
    first = LambdaPathDisplay.from_cv_results(results, label="prior")
    results = search_results({"lambda_": [0.1, 0.9]})
    second = LambdaPathDisplay.from_cv_results(results, label="control", ax=first.ax_)
    assert second.ax_ is first.ax_
    assert labels_of(second) == ["prior", "control"]
    assert first.lines_[0].get_color() != second.lines_[0].get_color()
    assert first.lines_[0].get_xdata()[0] == 0.1
    assert second.lines_[0].get_xdata()[0] == pytest.approx(0.11)
    assert_allclose(second.ax_.get_xticks(), [0.1, 0.5, 0.9])
    results = search_results({"lambda_": [0.1], "aggregator": ["mlp", "tf"]})
    third = LambdaPathDisplay.from_cv_results(results, label="third", ax=first.ax_)
    assert labels_of(third) == ["prior", "control", "third: mlp", "third: tf"]
    assert third.ax_.get_legend().get_title().get_text() == "aggregator"
    lines = first.lines_ + second.lines_ + third.lines_
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4


def test_more_lines_than_looks_are_drawn():
    grid = {"lambda_": [0.5], "seed": list(range(40))}
    assert len(LambdaPathDisplay.from_cv_results(search_results(grid)).lines_) == 40


@pytest.mark.parametrize(
    ("scoring", "metric", "name"),
    [
        (make_significance_scorer(baseline="mean"), None, "Significant genes per fold"),
        (
            make_significance_scorer(baseline="mean", normalize=True),
            None,
            "Fraction of significant genes per fold",
        ),
        ("r2", None, "r2"),
        (None, None, "$R^2$"),
        (make_scorer(r2_score), None, "Score"),
        (["r2", "neg_max_error"], "neg_max_error", "neg_max_error"),
        (["r2", "neg_mean_squared_error"], None, "r2"),
        ({"n": make_significance_scorer(baseline="mean"), "r2": "r2"}, "n", "Significant genes"),
        ({"n": make_significance_scorer(baseline="mean"), "r2": "r2"}, None, "r2"),
    ],
)
def test_score_name_of_searches(scoring, metric, name):
    X = np.random.default_rng(0).normal(size=(30, 3))
    y = X[:, 0] + 0.1 * X[:, 1]
    several = isinstance(scoring, list | dict)
    search = GridSearchCV(
        LambdaRidge(),
        {"lambda_": [0.1, 0.9], "prior": ["a", None]},
        scoring=scoring,
        cv=3,
        refit="r2" if several else True,
    )
    search.fit(X, y)
    display = LambdaPathDisplay.from_estimator(search, metric=metric)
    assert display.ax_.get_ylabel().startswith(name)
    assert display.ax_.get_ylabel().endswith("\n(mean and s.d. over folds)")
    assert labels_of(display) == ["a", "None"]
    column = f"mean_test_{metric or ('r2' if several else 'score')}"
    assert_allclose(display.lines_[0].get_ydata(), search.cv_results_[column][[0, 2]])
    other = LambdaPathDisplay.from_estimator(search, metric=metric, score_name="Mine", label="L")
    assert other.score_name == "Mine"
    assert labels_of(other) == ["L: a", "L: None"]


def test_searches_at_the_end_of_a_pipeline():
    X = np.random.default_rng(0).normal(size=(30, 3))
    search = GridSearchCV(LambdaRidge(), {"lambda_": [0.1, 0.9]}, cv=3)
    pipeline = make_pipeline(StandardScaler(), search).fit(X, X[:, 0])
    assert LambdaPathDisplay.from_estimator(pipeline).paths["lambda_"].tolist() == [0.1, 0.9]


def test_invalid_search():
    for estimator in (Ridge(), GridSearchCV(LambdaRidge(), {"lambda_": [0.1]})):
        with pytest.raises(NotFittedError, match=f"fitted search .* {type(estimator).__name__}"):
            LambdaPathDisplay.from_estimator(estimator)
        with pytest.raises(TypeError, match=r"got an instance of .*from_estimator"):
            LambdaPathDisplay.from_cv_results(estimator)
    search = GridSearchCV(LambdaRidge(), {"lambda_": [0.1]}, cv=2)
    search.fit(np.arange(9.0)[:, None], np.arange(9.0))
    with pytest.raises(ValueError, match="no columns 'split0_test_r2'"):
        LambdaPathDisplay.from_estimator(search, metric="r2")


def test_default_label_is_neutral():
    results = search_results({"lambda_": [0.1, 0.5]})
    assert LambdaPathDisplay.from_cv_results(results).ax_.get_ylabel().startswith("Score\n")
    results = search_results({"lambda_": [0.1, 0.5]}, metric="r2")
    display = LambdaPathDisplay.from_cv_results(results, metric="r2")
    assert display.ax_.get_ylabel().startswith("r2\n")


def test_failed_fits_are_omitted_with_a_warning():
    results = search_results({"lambda_": [0.1, 0.5, 0.9]})
    results["split1_test_score"][1] = np.nan
    with pytest.warns(UserWarning, match="1 of 3 candidates have scores that are not finite"):
        display = LambdaPathDisplay.from_cv_results(results)
    assert display.paths["lambda_"].tolist() == [0.1, 0.9]
    results["split0_test_score"][:] = np.nan
    with pytest.raises(ValueError, match="no candidate with finite scores"):
        LambdaPathDisplay.from_cv_results(results)


def test_bad_paths():
    paths = pd.DataFrame({"line": "", "lambda_": [0.1, 0.5], "mean": [1.0, 2.0], "std": 0.1})
    assert LambdaPathDisplay(paths).plot().ax_.get_ylabel().startswith("Score")
    with pytest.raises(TypeError, match="must be a DataFrame, got an instance of dict"):
        LambdaPathDisplay(paths.to_dict())
    with pytest.raises(ValueError, match=r"lacks the columns \['mean'\]"):
        LambdaPathDisplay(paths.drop(columns="mean"))
    with pytest.raises(ValueError, match="finite means"):
        LambdaPathDisplay(paths.assign(std=[0.1, np.nan]))
    with pytest.raises(ValueError, match="at least one row with a lambda"):
        LambdaPathDisplay(paths.assign(lambda_=np.nan))
    with pytest.raises(ValueError, match=r"several for line '' and lambda 0\.1"):
        LambdaPathDisplay(paths.assign(lambda_=0.1))


def test_grids_of_different_parameters():
    grid = [
        {"lambda_": [0.1, 0.5, 0.9], "prior": ["nmf"], "width": [4]},
        {"lambda_": [0.0], "prior": ["none"]},
    ]
    display = LambdaPathDisplay.from_cv_results(search_results(grid))
    assert labels_of(display) == ["nmf, 4", "none, not set"]
    assert_allclose(display.lines_[1].get_xdata(), [0.0], atol=0.01)


def test_selection_of_lambda_and_metric():
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
    interval = stats.pearsonr(y_true["ERBB2"], y_pred[:, 1]).confidence_interval()
    assert_allclose(display.interval_, interval)
    ends = f"[{interval.low:.2f}, {interval.high:.2f}]"
    assert display.ax_.get_title() == f"ERBB2: r = {r:.2f} {ends}, n = 50"
    assert display.ax_.get_xlabel() == "True expression"
    assert display.ax_.get_ylabel() == "Predicted expression"
    points = display.scatter_.get_offsets()
    assert_allclose(points, np.column_stack([y_true["ERBB2"], y_pred[:, 1]]))
    # Each axis has the range of its own values.
    for limits, values in (
        (display.ax_.get_xlim(), y_true["ERBB2"]),
        (display.ax_.get_ylim(), y_pred[:, 1]),
    ):
        assert_allclose(np.ptp(limits), 1.1 * np.ptp(values))
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
    assert ax.get_xlabel() == "True expression (z-score)"
    assert ax.get_ylabel() == "Predicted expression (z-score)"
    assert_allclose(display.scatter_.get_offsets()[:, 1], model.predict(X)[:, 2])
    assert display.plot(scatter_kwargs={"color": "k"}).ax_ is not ax
    values = np.arange(50.0)
    scatter = display.plot(scatter_kwargs={"c": values, "lw": 2}).scatter_
    assert_allclose(scatter.get_array(), values)
    assert scatter.get_linewidth() == [2]


class NamedMean(RegressorMixin, BaseEstimator):
    """Predict multiples of the mean feature, with gene names."""

    def fit(self, X, y):
        self.gene_names_out_ = np.array(list(y.columns), dtype=object)
        return self

    def predict(self, X):
        return X.mean(axis=1, keepdims=True) * [1.0, -1.0, 2.0]


def test_one_gene_of_a_model_of_many(tables):
    y_true, _ = tables
    X = y_true.to_numpy()
    unnamed = make_pipeline(StandardScaler(), Ridge()).fit(X, X)
    search = GridSearchCV(unnamed, {"ridge__alpha": [1.0]}, cv=2).fit(X, y_true)
    named = make_pipeline(StandardScaler(), NamedMean()).fit(X, y_true)
    draw = PredictionDisplay.from_estimator
    for model, y, gene, title in (
        (unnamed, y_true, "MKI67", "MKI67"),
        (search, y_true, "MKI67", "MKI67"),
        (unnamed, X, 2, "2"),
        (unnamed, X[:, 2], 2, "2"),
        (unnamed, y_true["MKI67"], 2, "2"),
        (named, y_true, "MKI67", "MKI67"),
        (named, X, "MKI67", "MKI67"),
        (named, X[:, 2], "MKI67", "MKI67"),
        (named, y_true["MKI67"], None, "MKI67"),
        (named, y_true["MKI67"].rename("log2"), "MKI67", "MKI67"),
    ):
        display = draw(model, X, y, gene=gene)
        expected = np.column_stack([X[:, 2], model.predict(X)[:, 2]])
        assert_allclose(display.scatter_.get_offsets(), expected)
        assert display.ax_.get_title().startswith(f"{title}: r = ")
    with pytest.raises(ValueError, match="one of the 3 columns, got 'log2'"):
        draw(named, X, y_true["MKI67"].rename("log2"))
    with pytest.raises(ValueError, match="3 genes. Select one"):
        draw(unnamed, X, X[:, 2])
    with pytest.raises(ValueError, match="same genes in the same order"):
        draw(named, X, y_true[["ERBB2", "ESR1", "MKI67"]], gene="ESR1")


def test_samples_of_patients_are_averaged(tables):
    y_true, y_pred = tables
    patients = np.repeat(np.arange(25), 2)
    means = (
        y_true["ESR1"].groupby(patients).mean(),
        pd.Series(y_pred[:, 0]).groupby(patients).mean(),
    )
    model = LinearMap().fit(y_pred, y_true)
    for display in (
        PredictionDisplay.from_predictions(y_true, y_pred, gene="ESR1", groups=patients),
        PredictionDisplay.from_estimator(model, y_pred, y_true, gene="ESR1", groups=patients),
        PredictionDisplay.from_estimator(model, y_pred, y_true["ESR1"], gene=0, groups=patients),
    ):
        assert_allclose(display.scatter_.get_offsets(), np.column_stack(means))
        assert display.ax_.get_title().endswith("], n = 25 patients")


class LinearMap(RegressorMixin, BaseEstimator):
    """Predict the features."""

    def fit(self, X, y):
        return self

    def predict(self, X):
        return X


def test_constant_prediction_is_drawn():
    display = PredictionDisplay.from_predictions(np.ones(5), np.ones(5))
    assert display.r_ == 0
    assert display.ax_.get_title() == "r = 0.00, n = 5"


def test_bad_genes(tables):
    y_true, y_pred = tables
    with pytest.raises(ValueError, match="3 genes. Select one"):
        PredictionDisplay.from_predictions(y_true, y_pred)
    with pytest.raises(ValueError, match="one of the 3 columns, got 'TP53'"):
        PredictionDisplay.from_predictions(y_true, y_pred, gene="TP53")
    with pytest.raises(ValueError, match="number of one of their 3 columns, got 3"):
        PredictionDisplay.from_predictions(y_true.to_numpy(), y_pred, gene=3)
    with pytest.raises(ValueError, match="same shape"):
        PredictionDisplay.from_predictions(y_true, y_pred[:9], gene="ESR1")


def test_pipelines_are_named_by_their_steps():
    priors = [make_pipeline(StandardScaler(), Ridge()), make_pipeline(Ridge())]
    display = LambdaPathDisplay.from_cv_results(
        search_results({"lambda_": [0.1, 0.5], "prior": priors})
    )
    assert labels_of(display) == ["StandardScaler + Ridge", "Ridge"]


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_legend_stays_on_the_figure(plt, layout):
    figure, ax = plt.subplots(layout=layout)
    results = search_results({"lambda_": [0.1, 0.5]})
    for label in ("a prior with a long name", "its control"):
        display = LambdaPathDisplay.from_cv_results(results, ax=ax, label=label)
    figure.canvas.draw()
    box = display.ax_.get_legend().get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_chosen_value_and_the_line_without_prior(plt):
    results = search_results({"lambda_": [0.0, 0.5, 0.9]})
    display = LambdaPathDisplay.from_cv_results(results)
    assert display.chosen == ("", 0.9)
    [x], [y] = display.chosen_.get_data()
    assert_allclose([x, y], [display.lines_[0].get_xdata()[2], 21])
    assert_allclose(display.no_prior_.get_ydata(), 1)
    assert legend_of(display) == [r"no prior ($\lambda$ = 0)", "chosen: 0.9"]
    # A search may choose by another rule, and may choose no prior.
    X = np.random.default_rng(0).normal(size=(30, 3))
    grid = {"lambda_": [0.1, 0.9], "prior": [None, "graph"]}
    for index in (3, 0, 2):
        search = GridSearchCV(LambdaRidge(), grid, cv=2, refit=lambda _, index=index: index)
        search.fit(X, X)
        display = LambdaPathDisplay.from_estimator(search)
        chosen = ParameterGrid(grid)[index]
        lambda_ = np.nan if chosen["prior"] is None else chosen["lambda_"]
        assert display.chosen[0] == str(chosen["prior"])
        assert_allclose(display.chosen[1], lambda_)
        assert display.no_prior_ is None
        text = "no prior" if chosen["prior"] is None else f"{lambda_:g}"
        assert f"chosen: {text}" in legend_of(display)
        row = list(display.paths["line"]).index(display.chosen[0])
        assert display.chosen_.get_ydata()[0] in display.lines_[min(row, 1)].get_ydata()


def test_path_of_a_ridge():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 6))
    model = PriorKnowledgeRidge(lambda_=[0.0, 0.5, 1.0]).fit(X, y)
    display = LambdaPathDisplay.from_estimator(model)
    assert display.chosen == ("leave-one-out", model.lambda_best_)
    best = model.path_["loo_score"][model.path_["lambda_"] == 0].max()
    assert_allclose(display.no_prior_.get_ydata(), best)
