"""What leaves a result: gene lists, gene sets, tables, models."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle

import numpy as np
import pandas as pd
import pytest
import skops.io
from numpy.testing import assert_allclose
from scipy.stats import fisher_exact
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from sklearn_pk.io import load_model, save_model
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.regression import PriorKnowledgeRidge
from sklearn_pk.slides import BagPooler, FeatureBag

N, N_GENES, N_KNOWN = 48, 40, 15
GENES = [f"G{number}" for number in range(N_GENES - 3)] + ["=1+1", "-AS1", "@x"]
NAMES = [f"S{number}" for number in range(N)]
PATIENTS = np.array([f"P{number // 2}" for number in range(N)])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    means = np.repeat(rng.normal(size=(N // 2, 5)), 2, axis=0)
    bags = [
        FeatureBag(row + 0.3 * rng.normal(size=(6, 5)), slide=f"{name}.svs")
        for row, name in zip(means, NAMES, strict=True)
    ]
    weights = rng.normal(size=(5, N_GENES)) * (np.arange(N_GENES) < N_KNOWN)
    noise = np.repeat(rng.normal(size=(N // 2, N_GENES)), 2, axis=0)
    y = pd.DataFrame(means @ weights + 0.5 * noise + 9, index=NAMES, columns=GENES)
    return bags, y


@pytest.fixture(scope="module")
def model():
    return make_pipeline(BagPooler(statistics=["mean"]), PriorKnowledgeRidge(prior=None))


@pytest.fixture(scope="module")
def result(data, model):
    options = {"null": "permutation", "n_permutations": 30, "random_state": 0}
    return cross_val_significance(model, *data, groups=PATIENTS, cv=4, **options)


@pytest.fixture(scope="module")
def scaled(data, model):
    transformer = StandardScaler()
    return cross_val_significance(
        model, *data, groups=PATIENTS, cv=4, target_transformer=transformer
    )


def test_gene_list(result):
    notes = pd.DataFrame({"where": ["chr1", "chr2"]}, index=["G3", "absent"])
    genes = result.significant_genes(notes)
    assert set(genes["gene"]) == set(result.report.index[result.report["significant"]])
    assert genes["r"].is_monotonic_decreasing
    row = genes.set_index("gene").loc["G3"]
    report = result.report.loc["G3"]
    assert row["where"] == "chr1"
    assert_allclose([row["r"], row["r_pooled"]], report[["r_fold", "r"]].astype(float))
    assert_allclose([row["p"], row["fdr"]], report[["null_p", "null_fdr"]].astype(float))
    assert row["r_low"] < row["r"] < row["r_high"] < 1
    # Spread of the correlations in single folds, one row per patient.
    y, prediction = (
        table["G3"].groupby(PATIENTS).mean() for table in (result.y_true, result.predictions)
    )
    fold = pd.Series(result.fold_of_sample).groupby(PATIENTS).first().to_numpy()
    r = [np.corrcoef(y[fold == k], prediction[fold == k])[0, 1] for k in range(4)]
    assert_allclose(row["fold_spread"], np.std(r, ddof=1))


@pytest.mark.parametrize(
    ("annotations", "error", "message"),
    [
        (["a"], TypeError, "annotations must be a DataFrame or Series"),
        (pd.Series(["a", "b"], ["G1", "G1"]), ValueError, "each gene once, got 'G1' again"),
        ({"ENSG1": "a"}, ValueError, "none of the 40 genes: its index has 'ENSG1'"),
        (pd.DataFrame({"r": [1]}, ["G1"]), ValueError, "columns of the result: 'r'"),
    ],
)
def test_annotations_are_checked(result, annotations, error, message):
    with pytest.raises(error, match=message):
        result.significant_genes(annotations)


def test_csv_has_no_formulas(result, tmp_path):
    notes = pd.DataFrame({"+note": ["@cmd", "a=b"]}, index=["G1", "G2"])
    result.to_csv(tmp_path / "genes.csv", notes)
    table = pd.read_csv(tmp_path / "genes.csv").set_index("gene")
    assert {"'=1+1", "'-AS1", "'@x"} < set(table.index)
    assert table.loc[["G1", "G2"], "'+note"].tolist() == ["'@cmd", "a=b"]
    assert_allclose(table.loc["'-AS1", "r"], result.report.loc["-AS1", "r_fold"])
    assert len(table) == N_GENES


def test_anndata(result):
    pytest.importorskip("anndata")
    adata = result.to_anndata()
    assert set(adata.layers) == {"truth", "prediction", "baseline"}
    assert_allclose(adata[:, "G2"].layers["truth"].ravel(), result.y_true["G2"])
    assert adata.obs["patient"].tolist() == PATIENTS.tolist()
    assert adata.obs["fold"].tolist() == result.fold_of_sample.tolist()
    assert_allclose(adata.var["r_fold"], result.report["r_fold"])


def test_gene_sets(result, tmp_path):
    sets = {"known": GENES[:10], "mixed": [*GENES[10:20], "absent"], "small": GENES[:2]}
    path = tmp_path / "sets.gmt"
    path.write_text("".join(f"{name}\t-\t" + "\t".join(g) + "\n" for name, g in sets.items()))
    table = result.gene_sets(path)
    assert table["gene_set"].tolist() == ["known", "mixed"]
    pd.testing.assert_frame_equal(table, result.gene_sets(sets))
    significant = result.report["significant"]
    inside, total = significant[:10].sum(), significant.sum()
    counts = [[inside, 10 - inside], [total - inside, 30 - total + inside]]
    known, mixed = table.to_dict("records")
    assert_allclose(known["p"], fisher_exact(counts, alternative="greater").pvalue)
    assert (mixed["n_in_set"], mixed["n_genes"]) == (11, 10)
    assert known["r_score"] > 0.8
    assert known["r_low"] < known["r_score"] < known["r_high"]
    with pytest.raises(ValueError, match="have genes such as 'ENSG1', the result has .* 'G0'"):
        result.gene_sets({"other": ["ENSG1"]})
    with pytest.raises(ValueError, match="No gene set has 50 of the 40 genes; the largest has 10"):
        result.gene_sets(sets, min_size=50)


def test_pooled_and_fold_centred_r():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 8)), rng.normal(size=(30, 50))
    with pytest.warns(UserWarning, match=r"median r of -0\.\d+, and r < 0 for \d+ %"):
        result = cross_val_significance(PriorKnowledgeRidge(prior=None), X, y, cv=KFold(5))
    assert result.median_r < -0.2
    assert abs(result.median_r_fold) < 0.15
    assert f"median r {result.median_r_fold:.3f} within folds, {result.median_r:.3f} pooled" in str(
        result
    )
    assert "within folds" in result._repr_html_()
    # The mean of centred expression is no scale.
    assert result.report["rmse_mean"].isna().all()


def test_rmse_mean_of_expression(result):
    report = result.report
    assert_allclose(report["rmse_mean"], report["rmse"] / result.y_true.mean(), rtol=0.2)


def test_final_model_is_on_the_scale_of_the_table(data, scaled):
    bags, y = data
    model = scaled.final_model()
    predicted = model.predict_frame(bags)
    assert predicted.index.tolist() == [f"{name}.svs" for name in NAMES]
    assert predicted.columns.tolist() == GENES
    assert_allclose(predicted.mean(), y.mean(), atol=0.2)
    assert np.corrcoef(predicted["G1"], y["G1"])[0, 1] > 0.9
    again = scaled.final_model(bags, y, groups=PATIENTS)
    assert_allclose(again.predict(bags), predicted)
    # Tiles are on the same scale: their mean is the slide, for a linear kernel.
    [tiles] = model.predict_tiles(bags[:1], genes=["G1"])
    assert tiles.shape == (6, 1)
    assert abs(tiles["G1"].mean() - predicted["G1"].iloc[0]) < 1
    with pytest.raises(KeyError, match="'G99' not found"):
        model.predict_tiles(bags[:1], genes=["G99"])


def test_final_model_of_a_search_and_of_one_gene(data):
    bags, y = data
    X = np.array([np.asarray(bag).mean(axis=0) for bag in bags])
    search = GridSearchCV(PriorKnowledgeRidge(prior=None), {"alpha": [0.1, 10.0]}, cv=3)
    transformer = QuantileTransformer(n_quantiles=10, output_distribution="normal")
    result = cross_val_significance(
        search, X, y["G0"].to_numpy(), cv=3, target_transformer=transformer
    )
    model = result.final_model()
    assert model.estimator.best_params_["alpha"] in (0.1, 10.0)
    predicted = model.predict(X)
    assert predicted.shape == (N,)
    assert y["G0"].min() <= predicted.min() <= predicted.max() <= y["G0"].max()


def test_slides_of_the_cohort_get_the_model_that_has_not_seen_them(data, result, scaled):
    bags, _ = data
    for row in (0, 13, 47):
        predicted = result.predict_frame(bags[row : row + 1])
        assert_allclose(predicted.iloc[0], result.predictions.iloc[row])
        fold = result.fold_of_sample[row]
        [tiles] = result.predict_tiles(bags[row : row + 1], genes=["G4"])
        [own] = result.estimators[fold][-1].predict_tiles(bags[row : row + 1], genes=["G4"])
        assert_allclose(tiles["G4"], own["G4"])
    new = FeatureBag(np.asarray(bags[0]), slide="other.svs")
    assert_allclose(result.predict_frame([new]).iloc[0], result.predict([new])[0])
    predicted = scaled.predict_frame(bags)
    assert_allclose(StandardScaler().fit_transform(predicted).shape, (N, N_GENES))
    assert_allclose(predicted.mean(), data[1].mean(), atol=0.3)
    with pytest.raises(ValueError, match="X must have the names of its samples"):
        result.predict_frame([np.asarray(bags[0])])


def test_transformers_without_inverse_have_no_final_model(data):
    bags, y = data
    X = np.array([np.asarray(bag).mean(axis=0) for bag in bags])

    class OneWay(StandardScaler):
        inverse_transform = property()

    result = cross_val_significance(
        PriorKnowledgeRidge(prior=None), X, y.to_numpy(), cv=3, target_transformer=OneWay()
    )
    with pytest.raises(ValueError, match="OneWay has no inverse_transform"):
        result.final_model()


def test_saved_final_model(data, scaled, tmp_path):
    bags, _ = data
    model = scaled.final_model()
    model.estimator[-1].set_params(kernel="linear")
    with pytest.raises(ValueError, match="no X and y"):
        pickle.loads(pickle.dumps(scaled)).final_model()
    linear = make_pipeline(
        BagPooler(statistics=["mean"]), PriorKnowledgeRidge(prior=None, kernel="linear")
    )
    result = cross_val_significance(linear, *data, cv=3, target_transformer=StandardScaler())
    model, path = result.final_model(), tmp_path / "model.skops"
    save_model(model, path, report=result)
    loaded = load_model(path)
    assert_allclose(loaded.predict_frame(bags), model.predict_frame(bags))
    assert_allclose(
        loaded.predict_tiles(bags[:1], genes=["G1"])[0],
        model.predict_tiles(bags[:1], genes=["G1"])[0],
        rtol=1e-5,
    )
    model.target_transformer = QuantileTransformer(n_quantiles=9).fit(data[1])
    with pytest.raises(ValueError, match="QuantileTransformer may hold the expression"):
        save_model(model, path)


@pytest.mark.parametrize("way", ["pickle", "skops"])
def test_result_on_disk_has_no_features(data, result, way):
    if way == "pickle":
        content = pickle.dumps(result)
        loaded = pickle.loads(content)
    else:
        content = skops.io.dumps(result)
        loaded = skops.io.loads(content, trusted=skops.io.get_untrusted_types(data=content))
    pd.testing.assert_frame_equal(loaded.report, result.report)
    assert loaded.verdict == result.verdict
    bags, y = data
    assert_allclose(loaded.predict_frame(bags[:2]), result.predict_frame(bags[:2]))
    assert not hasattr(loaded, "_data")
    final = loaded.final_model(bags, y, groups=PATIENTS)
    assert_allclose(final.predict(bags), result.final_model().predict(bags))
