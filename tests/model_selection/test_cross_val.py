"""Pooling over folds, patients in one fold, routing of groups, and early errors."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RepeatedKFold,
    ShuffleSplit,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer, StandardScaler

from sklearn_pk.metrics import make_significance_scorer, significance_report
from sklearn_pk.model_selection import CrossValSignificance, cross_val_significance
from sklearn_pk.regression import PriorKnowledgeRidge

N, N_GENES = 60, 12
GENES = [f"G{gene}" for gene in range(N_GENES)]


class PatientRidge(RegressorMixin, BaseEstimator):
    """Ridge with an untrained baseline that stores the groups and y of fit."""

    __metadata_request__fit = {"groups": True}

    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def fit(self, X, y, groups=None):
        """Fit, and store groups and y."""
        self.groups_ = None if groups is None else np.asarray(groups)
        self.y_ = y
        self.ridge_ = Ridge(alpha=self.alpha).fit(X, y)
        self.projection_ = np.random.default_rng(0).normal(size=self.ridge_.coef_.T.shape)
        return self

    def predict(self, X):
        """Predict."""
        return self.ridge_.predict(X)

    def predict_untrained(self, X):
        """Predict with the untrained baseline."""
        return np.asarray(X) @ self.projection_


class PlainRidge(PatientRidge):
    """The same without a request for groups."""

    __metadata_request__fit = {"groups": None}


class Untrained(PatientRidge):
    """The untrained baseline only."""

    def predict(self, X):
        """Predict with the untrained baseline."""
        return self.predict_untrained(X)


class FileReader(TransformerMixin, BaseEstimator):
    """Read features by file name, as the steps for slides do."""

    def fit(self, X, y=None):
        """Do nothing."""
        return self

    def transform(self, X):
        """Read the numbers in the names."""
        assert isinstance(X, list)
        return np.array([read_name(name) for name in X])

    def __sklearn_is_fitted__(self):
        return True


def read_name(name):
    seed = int(name.removesuffix(".svs").split("-")[-1])
    return features()[seed]


def features():
    return np.random.default_rng(0).normal(size=(N, 5))


@pytest.fixture
def data():
    """Return X, y (half of the genes follow X) and 20 patients of 3 samples."""
    rng = np.random.default_rng(1)
    X = features()
    y = 8 + rng.normal(size=(N, N_GENES))
    y[:, :6] += X @ rng.normal(size=(5, 6))
    patients = np.array([f"P{number:02d}" for number in rng.permutation(np.arange(N) % 20)])
    return X, pd.DataFrame(y, columns=GENES, index=[f"S{row}" for row in range(N)]), patients


def test_pooled_report_equals_cross_val_predict(data):
    X, y, _ = data
    cv = KFold(4, shuffle=True, random_state=0)
    result = cross_val_significance(PatientRidge(), X, y, cv=cv)
    prediction = cross_val_predict(PatientRidge(), X, y, cv=cv)
    untrained = cross_val_predict(Untrained(), X, y, cv=cv)
    assert isinstance(result, CrossValSignificance)
    assert_allclose(result.predictions, prediction)
    assert_allclose(result.untrained_predictions, untrained)
    for table in (result.predictions, result.untrained_predictions, result.y_true):
        assert table.columns.tolist() == GENES
        assert table.index.tolist() == y.index.tolist()
    assert_allclose(result.y_true, y)
    expected = significance_report(y, prediction, untrained)
    pd.testing.assert_frame_equal(result.report.drop(columns="r_fold"), expected)
    against_mean = significance_report(y, prediction, None)
    pd.testing.assert_frame_equal(result.mean_report.drop(columns="r_fold"), against_mean)
    assert result.n_significant == expected["significant"].sum()
    assert 3 <= result.n_significant <= 7
    assert result.median_r == expected["r"].median()
    assert repr(result) == (
        f"CrossValSignificance(12 genes, significant: {result.n_significant} against the "
        f"untrained model, {result.mean_report['significant'].sum()} against the mean; "
        f"median r {result.median_r_fold:.3f} within folds, {result.median_r:.3f} pooled; "
        f"{result.n_published} by the published test, which is not calibrated for folds (see "
        "null); 60 samples, 4 folds)"
    )


def test_criteria_reach_the_report(data):
    X, y, _ = data
    result = cross_val_significance(PatientRidge(), X, y, alpha=1e-4, fdr=1e-3, compat="sequoia")
    tables = (y, result.predictions, result.untrained_predictions)
    expected = significance_report(*tables, alpha=1e-4, fdr=1e-3, compat="sequoia")
    pd.testing.assert_frame_equal(result.report.drop(columns="r_fold"), expected)


def test_folds_keep_patients_together(data):
    X, y, patients = data
    levels = {"alpha": 0.5, "fdr": 1.0}  # for the 4 patients of a fold
    result = cross_val_significance(PatientRidge(), X, y, groups=patients, **levels)
    tested = np.concatenate(result.test_indices)
    assert_array_equal(np.sort(tested), np.arange(N))
    for model, test in zip(result.estimators, result.test_indices, strict=True):
        train = np.setdiff1d(np.arange(N), test)
        assert not set(patients[train]) & set(patients[test])
        assert_array_equal(model.groups_, patients[train])
        assert model.y_.index.tolist() == y.index[train].tolist()
        assert model.y_.columns.tolist() == GENES
    folds = result.folds
    assert folds["n_train"].tolist() == [48] * 5
    assert folds["n_test"].tolist() == [12] * 5
    assert folds["n_train_patients"].tolist() == [16] * 5
    assert folds["n_test_patients"].tolist() == [4] * 5
    assert folds["fold"].tolist() == list(range(5))
    assert (folds[["fit_time", "score_time"]] > 0).all(axis=None)
    for number, test in enumerate(result.test_indices):
        tables = (y, result.predictions, result.untrained_predictions)
        tables = tuple(table.iloc[test] for table in tables)
        fold_report = significance_report(*tables, groups=patients[test], **levels)
        assert folds["n_significant"][number] == fold_report["significant"].sum()
        assert folds["median_r"][number] == pytest.approx(fold_report["r"].median())
    assert folds["n_significant"].sum() > 0


@pytest.mark.parametrize("routing", [False, True])
def test_groups_reach_estimators_that_request_them(data, routing):
    X, y, patients = data
    search = GridSearchCV(
        make_pipeline(StandardScaler(), PatientRidge()),
        {"patientridge__alpha": [1.0, 1e6]},
        cv=GroupKFold(4),
        scoring=make_significance_scorer(),
    )
    with config_context(enable_metadata_routing=routing):
        pipeline = make_pipeline(StandardScaler(), PatientRidge())
        result = cross_val_significance(pipeline, X, y, groups=patients, cv=4)
        assert all(len(model[-1].groups_) == 45 for model in result.estimators)
        result = cross_val_significance(search, X, y, groups=patients, cv=4)
        assert [model.n_splits_ for model in result.estimators] == [4] * 4
        assert all(len(model.best_estimator_[-1].groups_) == 45 for model in result.estimators)
        result = cross_val_significance(PlainRidge(), X, y, groups=patients, cv=4)
        assert all(model.groups_ is None for model in result.estimators)
        nested = GridSearchCV(Ridge(), {"alpha": [1.0]}, cv=GroupKFold(4))
        cross_val_significance(nested, X, y, groups=patients, cv=4)
        assert get_config()["enable_metadata_routing"] == routing


def test_same_result_in_threads_and_processes(data):
    X, y, patients = data
    pipeline = make_pipeline(StandardScaler(), PatientRidge())
    sequential = cross_val_significance(pipeline, X, y, groups=patients, cv=4)
    with parallel_config("threading"):
        threads = cross_val_significance(pipeline, X, y, groups=patients, cv=4, n_jobs=2)
    pd.testing.assert_frame_equal(sequential.report, threads.report)
    assert all(len(model[-1].groups_) == 45 for model in threads.estimators)
    # In other processes the search gets its groups too; without them GroupKFold would fail.
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 1e6]}, cv=GroupKFold(4))
    sequential = cross_val_significance(search, X, y, groups=patients, cv=4)
    parallel = cross_val_significance(search, X, y, groups=patients, cv=4, n_jobs=2)
    pd.testing.assert_frame_equal(sequential.report, parallel.report)
    pd.testing.assert_frame_equal(sequential.predictions, parallel.predictions)


def test_estimator_is_cloned_and_fold_models_are_averaged(data):
    X, y, _ = data
    model = PatientRidge()
    result = cross_val_significance(model, X, y, cv=3)
    assert not hasattr(model, "ridge_")
    X_new = np.random.default_rng(5).normal(size=(7, 5))
    expected = np.mean([fold.predict(X_new) for fold in result.estimators], axis=0)
    assert_allclose(result.predict(X_new), expected)


def test_regressor_without_untrained_baseline_is_compared_with_the_mean(data):
    X, y, _ = data
    result = cross_val_significance(Ridge(), X, y)
    assert result.untrained_predictions is None
    pd.testing.assert_frame_equal(result.report, result.mean_report)
    assert "against the mean" in repr(result)


def test_target_transformer_sees_training_patients_only(data):
    X, y, patients = data
    y = np.exp(y - 8)
    seen = []

    class Spy(QuantileTransformer):
        def fit(self, X, y=None):
            seen.append(X)
            return super().fit(X)

    transformer = Spy(n_quantiles=10, output_distribution="normal")
    result = cross_val_significance(
        PatientRidge(), X, y, groups=patients, target_transformer=transformer
    )
    assert not hasattr(transformer, "quantiles_")
    values = y.to_numpy()
    for rows, test, fitted in zip(
        seen, result.test_indices, result.target_transformers, strict=True
    ):
        train = np.setdiff1d(np.arange(N), test)
        means = [values[train][patients[train] == name].mean(axis=0) for name in set(patients)
                 if name in patients[train]]  # fmt: skip
        assert rows.shape == (16, N_GENES)
        assert_allclose(np.sort(rows, axis=0), np.sort(means, axis=0))
        assert_allclose(result.y_true.iloc[test], fitted.transform(values[test]))
    assert all(model.y_.columns.tolist() == GENES for model in result.estimators)
    assert np.abs(result.y_true).max(axis=None) < 6
    assert result.y_true.index.tolist() == y.index.tolist()


def test_target_transformer_without_groups_and_for_one_gene(data):
    X, y, _ = data
    result = cross_val_significance(
        PatientRidge(), X, y["G0"].to_numpy(), target_transformer=StandardScaler(), cv=3
    )
    assert result.report.shape[0] == 1
    assert result.estimators[0].y_.ndim == 1
    assert_allclose([model.y_.mean() for model in result.estimators], 0, atol=1e-12)
    assert result.predict(X).shape == (N,)
    series = cross_val_significance(PatientRidge(), X, y["G0"], cv=3)
    assert series.report.index.tolist() == ["G0"]
    assert series.predictions.index.tolist() == y.index.tolist()


def test_lists_of_paths_frames_and_arrays(data):
    X, y, _ = data
    names = [f"slide-{row}.svs" for row in range(N)]
    by_path = cross_val_significance(
        make_pipeline(FileReader(), PatientRidge()), names, y.reset_index(drop=True), cv=3
    )
    by_array = cross_val_significance(PatientRidge(), X, y.to_numpy(), cv=3)
    by_frame = cross_val_significance(PatientRidge(), pd.DataFrame(X, index=y.index), y, cv=3)
    bags = make_pipeline(FunctionTransformer(np.stack), PatientRidge())
    by_bags = cross_val_significance(bags, list(X), y, cv=3)
    for other in (by_array, by_frame, by_bags):
        assert_allclose(by_path.predictions, other.predictions)
    assert by_array.report.index.tolist() == list(range(N_GENES))


def test_folds_may_omit_samples_and_be_tiny(data):
    X, y, _ = data
    rows = np.arange(N)
    cv = [(rows[6:], rows[:3]), (rows[6:], rows[3:6])]
    result = cross_val_significance(PatientRidge(), X, y, cv=cv)
    assert result.predictions.index.tolist() == y.index[:6].tolist()
    assert result.folds[["n_significant", "median_r"]].isna().all(axis=None)
    masks = [(rows >= 6, rows < 6)]
    assert len(cross_val_significance(PatientRidge(), X, y, cv=masks).predictions) == 6


class NeverFit(PatientRidge):
    """Raise in fit, which must not be called with invalid input."""

    def fit(self, X, y, groups=None):
        """Raise."""
        raise AssertionError("fit was called before the input was checked")


def permuted(y):
    return y.iloc[np.random.default_rng(0).permutation(N)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y, g: {"X": X[:-1]}, "X has 59 samples, y has 60 rows"),
        (lambda X, y, g: {"groups": g[:-1]}, r"each of the 60 samples, got shape \(59,\)"),
        (lambda X, y, g: {"groups": [None, *g[1:]]}, "1 samples have no patient.* position 0"),
        (lambda X, y, g: {"y": y.set_axis(["G0", *GENES[:-1]], axis=1)}, "duplicate.*'G0'"),
        (lambda X, y, g: {"y": y.mask(y == y.loc["S4", "G2"])}, "NaN.*'G2'.*'S4'"),
        (lambda X, y, g: {"y": y.assign(name="a")}, "not numeric: 'name'"),
        (lambda X, y, g: {"X": pd.DataFrame(X, y.index), "y": permuted(y)}, "different names"),
        (lambda X, y, g: {"X": [f"a/{s}.svs" for s in y.index], "y": permuted(y)}, "row [0-9]+"),
        (lambda X, y, g: {"X": [f"a/{s}x.svs" for s in y.index]}, "60 of 60 carry different"),
        (lambda X, y, g: {"groups": g[:4].repeat(15)}, "5 folds need .* patients, got [34]"),
        (lambda X, y, g: {"cv": GroupKFold(21)}, "21 folds need at least 21 patients, got 20"),
        (lambda X, y, g: {"cv": 61, "groups": None}, "61 folds need at least 61 samples, got 60"),
        (lambda X, y, g: {"cv": KFold(3)}, "Fold 0 of cv has .* patient.* in both"),
        (lambda X, y, g: {"cv": RepeatedKFold(), "groups": None}, "60 samples out more than once"),
        (lambda X, y, g: {"cv": ShuffleSplit(9), "groups": None}, "more than once"),
        (lambda X, y, g: {"cv": [([0, 1], [1, 2])], "groups": None}, "1 sample.* in both"),
        (lambda X, y, g: {"cv": [([0, 1], [2, 3])], "groups": None}, "at least 4 held-out"),
        (lambda X, y, g: {"groups": pd.Series(g, y.index)[::-1]}, "groups.loc"),
        (lambda X, y, g: {"fdr": -1}, "'fdr' parameter"),
    ],
)  # fmt: skip
def test_invalid_input_raises_before_any_fit(data, change, message):
    X, y, patients = data
    arguments = {"X": X, "y": y, "groups": patients} | change(X, y, patients)
    with pytest.raises((ValueError, TypeError), match=message):
        cross_val_significance(NeverFit(), **arguments)


@pytest.mark.parametrize("named", ["groups", "X", "y"])
def test_wrong_groups_warn(data, named):
    X, y, patients = data
    codes = np.array([f"TCGA-A1-{int(patient[1:]):04d}" for patient in patients])
    names = [f"{code}-01Z-00-DX{i}" for i, code in enumerate(codes)]
    wrong = codes.copy()
    wrong[:18] = np.random.default_rng(0).permutation(codes)[:18]  # 30 %
    y = y.set_axis(names) if named == "y" else y.to_numpy()
    X = pd.DataFrame(X, index=names) if named == "X" else X
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_val_significance(PatientRidge(), X, y, groups=codes)
    if named == "groups":
        wrong = [f"{patient}-{i % 2}" for i, patient in enumerate(codes)]
    with pytest.warns(UserWarning, match="patients are in several groups, such as 'TCGA") as caught:
        cross_val_significance(PatientRidge(), X, y, groups=wrong)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("change", ["wrong", "blanks"])
def test_groups_that_separate_slides_of_a_patient_warn(data, change):
    X, y, patients = data
    repeated = y.iloc[:20].set_axis(np.unique(patients)).loc[patients].reset_index(drop=True)
    given = patients.astype(object)
    if change == "blanks":
        given[::3] += "  "
        result = cross_val_significance(PatientRidge(), X, repeated, groups=given)
        assert result.folds["n_test_patients"].sum() == 20
        return
    given[:18] = np.random.default_rng(0).permutation(patients)[:18]
    with pytest.warns(UserWarning, match="held-out samples have the same .* By groups, they are"):
        cross_val_significance(PatientRidge(), X, repeated, groups=given)


def test_slides_of_a_patient_in_two_folds_warn(data):
    X, y, _ = data
    repeated = y.to_numpy()[np.arange(N) // 2]
    order = np.random.default_rng(0).permutation(N)
    message = r"held-out samples have the same expression.*groups="
    with pytest.warns(UserWarning, match=message) as caught:
        cross_val_significance(PatientRidge(), X, repeated[order])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_val_significance(
            PatientRidge(), X, repeated[order], groups=(np.arange(N) // 2)[order]
        )
        cross_val_significance(PatientRidge(), X, np.round(y.to_numpy()[:, 0]))


@pytest.fixture
def external(data):
    """Return samples of another cohort with genes in another order."""
    X, y, _ = data
    rng = np.random.default_rng(9)
    rows = rng.permutation(N)[:30]
    genes = rng.permutation(GENES)
    noise = rng.normal(size=(30, N_GENES))
    return X[rows], (y.iloc[rows] + 0.3 * noise)[genes].set_axis([f"E{row}" for row in range(30)])


def test_result_has_patients_and_criteria(data):
    X, y, patients = data
    result = cross_val_significance(PatientRidge(), X, y, groups=patients, alpha=0.01, fdr=0.1)
    assert result.criteria == {"alpha": 0.01, "fdr": 0.1, "compat": None, "null": "published"}
    assert result.groups.index.equals(result.y_true.index)
    assert_array_equal(result.groups, patients)
    rows = np.arange(N)
    cv = [(rows[30:], rows[9:12]), (rows[30:], rows[:9])]
    part = cross_val_significance(PatientRidge(), X, y, groups=rows, cv=cv)
    assert_array_equal(part.groups, rows[:12])
    assert cross_val_significance(PatientRidge(), X, y).groups is None


def test_external_report_matches_genes_by_name(data, external):
    X, y, _ = data
    X_ext, y_ext = external
    result = cross_val_significance(PatientRidge(), X, y, alpha=0.01, compat="sequoia")
    report = result.evaluate(X_ext, y_ext)
    untrained = np.mean([model.predict_untrained(X_ext) for model in result.estimators], axis=0)
    expected = significance_report(
        y_ext[GENES], result.predict(X_ext), untrained, alpha=0.01, compat="sequoia"
    )
    pd.testing.assert_frame_equal(report, expected)
    assert 0 < report["significant"].sum() < N_GENES
    by_order = result.evaluate(X_ext, y_ext[GENES].to_numpy())
    pd.testing.assert_frame_equal(by_order, expected)
    with_more = result.evaluate(X_ext, y_ext.assign(UNKNOWN=np.nan_to_num(1.0)))
    pd.testing.assert_frame_equal(with_more, expected)
    against_mean = result.evaluate(X_ext, y_ext, baseline="mean")
    expected = significance_report(
        y_ext[GENES], result.predict(X_ext), None, alpha=0.01, compat="sequoia"
    )
    pd.testing.assert_frame_equal(against_mean, expected)
    ridge = cross_val_significance(Ridge(), X, y)
    assert ridge.evaluate(X_ext, y_ext)["steiger_p"].isna().all()
    same, (truth, prediction, baseline) = result.evaluate(X_ext, y_ext, return_tables=True)
    pd.testing.assert_frame_equal(same, report)
    pd.testing.assert_frame_equal(truth, y_ext[GENES], check_names=False)
    assert_allclose(prediction, result.predict(X_ext))
    assert_allclose(baseline, untrained)
    assert result.evaluate(X_ext, y_ext, baseline="mean", return_tables=True)[1][2] is None
    patients = np.arange(30) // 2
    assert_allclose(
        result.evaluate(X_ext, y_ext, groups=patients)["r"],
        significance_report(y_ext[GENES], result.predict(X_ext), untrained, groups=patients)["r"],
    )


@pytest.mark.parametrize("transformer", [None, QuantileTransformer(n_quantiles=20)])
def test_missing_external_genes_warn_and_are_omitted(data, external, transformer):
    X, y, _ = data
    X_ext, y_ext = external
    result = cross_val_significance(PatientRidge(), X, y, target_transformer=transformer)
    whole = result.evaluate(X_ext, y_ext)
    with pytest.warns(UserWarning, match="y lacks 2 of the 12 genes.*'G3', 'G7'") as caught:
        report = result.evaluate(X_ext, y_ext.drop(columns=["G3", "G7"]))
    assert caught[0].filename == __file__
    columns = ["r", "p", "rmse", "r_baseline", "steiger_p"]
    pd.testing.assert_frame_equal(report[columns], whole[columns].drop(index=["G3", "G7"]))


def test_external_truth_is_on_the_scale_of_the_predictions(data, external):
    X, y, _ = data
    X_ext, y_ext = external
    scaled = cross_val_significance(PatientRidge(), X, y, target_transformer=StandardScaler())
    plain = cross_val_significance(PatientRidge(), X, y)
    columns = ["rmse", "r"]
    found = scaled.evaluate(X_ext, y_ext, baseline="mean")[columns]
    expected = plain.evaluate(X_ext, y_ext, baseline="mean")[columns]
    scale = np.mean([1 / t.scale_ for t in scaled.target_transformers], axis=0)
    assert_allclose(found["rmse"], expected["rmse"] * scale, rtol=0.02)
    assert_allclose(found["r"], expected["r"], atol=0.02)
    mixing = cross_val_significance(PatientRidge(), X, y, target_transformer=NoNaN())
    with (
        pytest.warns(UserWarning, match="lacks 1 of"),
        pytest.raises(ValueError, match="target_transformer .* does not accept NaN"),
    ):
        mixing.evaluate(X_ext, y_ext.drop(columns="G3"))


class NoNaN(FunctionTransformer):
    """Raise for NaN."""

    def transform(self, X):
        """Raise."""
        if np.isnan(X).any():
            raise ValueError("Input contains NaN")
        return X


def test_external_evaluation_of_one_gene(data, external):
    X, y, _ = data
    X_ext, y_ext = external
    result = cross_val_significance(PatientRidge(), X, y["G0"])
    by_series = result.evaluate(X_ext, y_ext["G0"])
    assert by_series.index.tolist() == ["G0"]
    pd.testing.assert_frame_equal(result.evaluate(X_ext, y_ext["G0"].to_numpy()), by_series)
    pd.testing.assert_frame_equal(result.evaluate(X_ext, y_ext), by_series)
    renamed = result.evaluate(X_ext, y_ext["G0"].rename("log2 TPM"))
    pd.testing.assert_frame_equal(renamed, by_series)
    pd.testing.assert_frame_equal(result.evaluate(X_ext, y_ext["G0"].tolist()), by_series)


def test_external_input_is_checked(data, external):
    X, y, _ = data
    X_ext, y_ext = external
    result = cross_val_significance(PatientRidge(), X, y)
    with pytest.raises(ValueError, match="none of the 12 genes of the models.*'A0'.*'G0'"):
        result.evaluate(X_ext, y_ext[GENES].set_axis([f"A{gene}" for gene in range(12)], axis=1))
    with pytest.raises(ValueError, match="y has 11 genes without names, but the models have 12"):
        result.evaluate(X_ext, y_ext.to_numpy()[:, 1:])
    with pytest.raises(ValueError, match="X has 30 samples, y has 29"):
        result.evaluate(X_ext, y_ext[:-1])
    with pytest.raises(ValueError, match="do not belong to the samples"):
        result.evaluate(pd.DataFrame(X_ext, y_ext.index), y_ext[::-1])
    with pytest.raises(ValueError, match="NaN.*'G5'"):
        result.evaluate(X_ext, y_ext.mask(y_ext == y_ext.loc["E3", "G5"]))
    with pytest.raises(ValueError, match="'baseline' parameter"):
        result.evaluate(X_ext, y_ext, baseline="zero")
    with pytest.raises(ValueError, match="at least 4 samples, got n = 3"):
        result.evaluate(X_ext[:3], y_ext[:3])


def test_reports_have_one_row_per_patient_unless_as_published(data):
    X, y, patients = data
    result = cross_val_significance(PatientRidge(), X, y, groups=patients, alpha=0.01)
    tables = (result.y_true, result.predictions, result.untrained_predictions)
    averaged = significance_report(*tables, groups=patients, alpha=0.01)
    pd.testing.assert_frame_equal(result.report.drop(columns="r_fold"), averaged)
    averaged = significance_report(*tables[:2], None, groups=patients, alpha=0.01)
    pd.testing.assert_frame_equal(result.mean_report.drop(columns="r_fold"), averaged)
    expected = significance_report(*tables, alpha=0.01)
    pd.testing.assert_frame_equal(result.report_by_slide(), expected)
    expected = significance_report(*tables[:2], None, alpha=0.01)
    pd.testing.assert_frame_equal(result.report_by_slide(baseline="mean"), expected)
    published = significance_report(*tables, compat="sequoia")
    assert result.n_published == published["significant"].sum()
    as_published = cross_val_significance(PatientRidge(), X, y, groups=patients, compat="sequoia")
    pd.testing.assert_frame_equal(as_published.report.drop(columns="r_fold"), published)
    assert as_published.criteria["fdr"] == 0.2
    with pytest.raises(ValueError, match="baseline must be 'untrained' or 'mean', got 'zero'"):
        result.report_by_slide(baseline="zero")


def test_samples_of_the_cross_validation_are_not_external(data, external):
    X, y, _ = data
    X_ext, y_ext = external
    result = cross_val_significance(PatientRidge(), X, y)
    y_ext = y_ext.rename(index={"E3": "S3", "E7": "S9"})
    with pytest.warns(UserWarning, match="2 of 30 samples are among.*'S3', 'S9'") as caught:
        result.evaluate(X_ext, y_ext)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_expression_that_is_not_logged_is_warned_of_once(n_jobs):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 3))
    y = rng.negative_binomial(1, 0.001, size=(N, N_GENES)).astype(float)
    with pytest.warns(UserWarning, match="y looks like counts.*transform='log2p1'") as caught:
        cross_val_significance(PriorKnowledgeRidge(), X, y, cv=KFold(2), n_jobs=n_jobs)
    assert [each.filename for each in caught] == [__file__]
    with pytest.warns(UserWarning, match=r"y looks like counts.*np.log2\(y \+ 1\)"):
        PriorKnowledgeRidge().fit(X, y)
    cross_val_significance(PriorKnowledgeRidge(), X, np.log2(y + 1), cv=KFold(2))
    scale = FunctionTransformer(np.log1p)
    cross_val_significance(PriorKnowledgeRidge(), X, y, cv=KFold(2), target_transformer=scale)
