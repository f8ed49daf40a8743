"""PriorKnowledgeRidge: equal to what is computed the long way, and right at the edges."""

# SPDX-License-Identifier: BSD-3-Clause

import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from sklearn_pk.metrics import significance_scorer
from sklearn_pk.plotting import LambdaPathDisplay
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRidge
from sklearn_pk.slides import BagPooler, FeatureBag


@pytest.fixture(scope="module")
def data():
    """80 patients, 12 features, 60 genes that follow four programs."""
    rng = np.random.default_rng(0)
    programs = rng.normal(size=(80, 4))
    X = programs @ rng.normal(size=(4, 12)) + rng.normal(size=(80, 12))
    y = 8 + programs @ rng.normal(size=(4, 60)) + 2 * rng.normal(size=(80, 60))
    return X, y


def standardized(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def fit_dual(K, T, penalty):
    """Solve kernel ridge with an intercept that is not penalised."""
    n_samples = len(K)
    if np.isinf(penalty):
        return np.vstack([np.zeros_like(T), T.mean(axis=0)])
    system = np.ones((n_samples + 1, n_samples + 1))
    system[:-1, :-1] = K + penalty * np.eye(n_samples)
    system[-1, -1] = 0
    return np.linalg.solve(system, np.vstack([T, np.zeros((1, T.shape[1]))]))


def leave_out_one_by_one(model, X, y, groups):
    """Leave each patient out in a loop; scales, kernel and eigengenes stay those of all."""
    Z, V = standardized(y), model.eigengenes_
    K = rbf_kernel(standardized(X), gamma=0.3 / X.shape[1])
    centred = K - K.mean(axis=0) - K.mean(axis=0)[:, None] + K.mean()
    K *= X.size / np.trace(centred)
    rest, own = model.alpha_ / (1 - (model.lambda_best_ or 0)) ** 2, model.eigengene_alpha_
    S = Z @ V
    errors = np.empty_like(Z)
    for group in np.unique(groups):
        train, left = groups != group, groups == group

        def predict(T, penalty, train=train, left=left):
            dual = fit_dual(K[np.ix_(train, train)], T[train], penalty)
            return K[np.ix_(left, train)] @ dual[:-1] + dual[-1]

        scores = [predict(S[:, [k]], own[k]) for k in range(V.shape[1])]
        predicted = np.hstack(scores) @ V.T + predict(Z - S @ V.T, rest)
        errors[left] = Z[left] - predicted
    return errors


def test_without_weight_of_the_prior_it_is_ridge(data):
    X, y = data
    model = PriorKnowledgeRidge(lambda_=0, alpha=3.0, kernel="linear").fit(X[:60], y[:60])
    ridge = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), Ridge(3.0)), transformer=StandardScaler()
    ).fit(X[:60], y[:60])
    assert_allclose(model.predict(X[60:]), ridge.predict(X[60:]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("slides_per_patient", [1, 3])
@pytest.mark.parametrize("parameters", [{"lambda_": 0.7}, {"lambda_": 0.0}, {"lambda_": "free"}])
def test_leave_one_out_equals_the_loop(data, parameters, slides_per_patient):
    X, y = data[0][:42], data[1][:42]
    groups = np.arange(42) // slides_per_patient
    model = PriorKnowledgeRidge(alpha=5.0, **parameters).fit(X, y, groups=groups)
    errors = leave_out_one_by_one(model, X, y, groups)
    expected = 1 - np.square(errors).sum(axis=0) / 42
    assert_allclose(model.loo_score_, expected, rtol=0, atol=1e-8)
    scores = standardized(y) @ model.eigengenes_
    by_eigengene = 1 - np.square(errors @ model.eigengenes_).sum(axis=0) / np.square(scores).sum(
        axis=0
    )
    assert_allclose(model.eigengene_loo_score_, by_eigengene, rtol=0, atol=1e-8)


def test_lambda_one_predicts_nothing_outside_the_span(data):
    X, y = data
    model = PriorKnowledgeRidge(lambda_=1.0, n_components=3, alpha=2.0).fit(X[:60], y[:60])
    predicted = (model.predict(X[60:]) - model.y_mean_) / model.y_scale_
    V = model.eigengenes_
    assert V.shape == (60, 3)
    assert_allclose(predicted @ V @ V.T, predicted, atol=1e-10)


def test_interpolated_path_is_close_to_the_exact_score(data):
    X, y = data
    path = PriorKnowledgeRidge(lambda_=[0, 0.6, 1.0], alpha=[1.0, 7.0, 300.0]).fit(X, y).path_
    size = np.square(standardized(y)).sum()
    for lambda_, alpha, score in zip(*path.values(), strict=True):
        exact = PriorKnowledgeRidge(lambda_=lambda_, alpha=alpha).fit(X, y)
        own = 1 - (1 - exact.loo_score_).sum() * len(y) / size
        assert score == pytest.approx(own, abs=2e-3)


def test_lambda_tells_knowledge_from_noise(data):
    X, y = data
    rng = np.random.default_rng(1)
    embeddings = EigengeneEmbedder(10, random_state=0).fit_transform(y[:60].T)
    true = PriorKnowledgeRidge(prior=embeddings).fit(X[:60], y[:60])
    noise = PriorKnowledgeRidge(prior=rng.permutation(embeddings)).fit(X[:60], y[:60])
    ridge = PriorKnowledgeRidge(prior=None).fit(X[:60], y[:60])
    assert true.lambda_best_ >= 0.8
    assert noise.lambda_best_ <= 0.2
    assert true.score(X[60:], y[60:]) > ridge.score(X[60:], y[60:]) + 0.01


def test_forms_of_the_prior(data):
    X, y = data
    genes = [f"gene{number}" for number in range(60)]
    frame = pd.DataFrame(y, columns=genes)
    graph = make_pipeline(CoexpressionGraph(threshold=0.2), NMFGeneEmbedder(4))
    model = PriorKnowledgeRidge(prior=graph, lambda_=0.5, random_state=0).fit(X, frame)
    assert model.prior_[-1].embedding_.shape == (60, 4)
    assert_array_equal(model.gene_names_out_, genes)
    named = pd.DataFrame(model.prior_[-1].embedding_, index=genes).iloc[::-1]
    same = PriorKnowledgeRidge(prior=named, lambda_=0.5).fit(X, frame)
    assert_allclose(same.predict(X), model.predict(X), rtol=1e-5)
    other = PriorKnowledgeRidge(prior=TruncatedSVD(3, random_state=0), lambda_=0.5).fit(X, y)
    assert other.eigengenes_.shape == (60, 3)
    assert other.eigenvalues_.sum() == pytest.approx(60)
    with pytest.raises(ValueError, match="needs one row for each of the 60 genes"):
        PriorKnowledgeRidge(prior=np.ones((50, 2))).fit(X, y)


def test_kernels(data):
    X, y = data
    Z = standardized(X[:60])
    new = (X[60:] - X[:60].mean(axis=0)) / X[:60].std(axis=0)

    def own_kernel(one, other):
        return one @ other.T

    linear = PriorKnowledgeRidge(kernel="linear", alpha=4.0, lambda_=0.5).fit(X[:60], y[:60])
    called = PriorKnowledgeRidge(kernel=own_kernel, alpha=4.0, lambda_=0.5).fit(X[:60], y[:60])
    given = PriorKnowledgeRidge(kernel="precomputed", alpha=4.0, lambda_=0.5)
    given.fit(Z @ Z.T, y[:60])
    expected, std = linear.predict(X[60:], return_std=True)
    assert_allclose(called.predict(X[60:]), expected)
    assert_allclose(given.predict(new @ Z.T), expected)
    assert_allclose(called.predict(X[60:], return_std=True)[1], std)
    with pytest.raises(ValueError, match="return_std needs the kernel"):
        given.predict(new @ Z.T, return_std=True)
    with pytest.raises(ValueError, match="must be the square kernel"):
        given.fit(new @ Z.T, y[60:])


def test_uncertainty_covers(data):
    rng = np.random.default_rng(3)
    programs = rng.normal(size=(400, 4))
    X = programs @ rng.normal(size=(4, 12)) + rng.normal(size=(400, 12))
    y = programs @ rng.normal(size=(4, 50)) + 2 * rng.normal(size=(400, 50))
    model = PriorKnowledgeRidge().fit(X[:100], y[:100])
    predicted, std = model.predict(X[100:], return_std=True)
    assert np.mean(np.abs(y[100:] - predicted) < 1.96 * std) == pytest.approx(0.95, abs=0.02)
    far = model.predict(X[100:] + 20, return_std=True)[1]
    assert (far > std).all()


def test_scale_of_y_and_dtype(data):
    X, y = data
    model = PriorKnowledgeRidge().fit(X, y)
    predicted = model.predict(X)
    assert_allclose(PriorKnowledgeRidge().fit(X, 1e-4 * y).predict(X), 1e-4 * predicted)
    assert_allclose(PriorKnowledgeRidge().fit(X, y + 1e6).predict(X) - 1e6, predicted, rtol=1e-5)
    narrow = PriorKnowledgeRidge().fit(X.astype(np.float32), y.astype(np.float32))
    assert_allclose(narrow.predict(X), predicted, rtol=1e-4)
    single = PriorKnowledgeRidge(prior=None).fit(X, y[:, 0])
    assert single.predict(X).shape == single.predict_untrained(X).shape == (80,)
    assert model.predict_untrained(X[:3]) == pytest.approx(np.tile(y.mean(axis=0), (3, 1)))


def test_constant_genes_and_features(data):
    X, y = data[0].copy(), data[1].copy()
    X[:, 2], y[:, 5] = 7.0, 3.25
    model = PriorKnowledgeRidge().fit(X, y)
    assert (model.predict(X)[:, 5] == 3.25).all()
    assert model.loo_score_[5] == 0
    assert np.isfinite(model.predict(X, return_std=True)[1]).all()
    everything = PriorKnowledgeRidge().fit(np.ones_like(X), y)
    assert_allclose(everything.predict(X), everything.predict_untrained(X))


def test_many_features_and_few_patients(data):
    X, y = data
    wide = np.random.default_rng(0).normal(size=(80, 80))
    assert np.isfinite(PriorKnowledgeRidge(alpha=1e-3).fit(wide, y).loo_score_).all()
    assert PriorKnowledgeRidge().fit(X[:3], y[:3]).predict(X).shape == (80, 60)
    with pytest.raises(ValueError, match="at least 3 patients, got n_samples=4 of 2"):
        PriorKnowledgeRidge().fit(X[:4], y[:4], groups=[0, 0, 1, 1])


def test_patients_of_identical_expression_are_left_out_together(data):
    X, y = data
    repeated = np.repeat(np.arange(40), 2)
    inferred = PriorKnowledgeRidge(alpha=1.0).fit(X, y[repeated])
    given = PriorKnowledgeRidge(alpha=1.0).fit(X, y[repeated], groups=repeated)
    with pytest.warns(UserWarning, match="groups: 80 samples have the same expression as one of"):
        apart = PriorKnowledgeRidge(alpha=1.0).fit(X, y[repeated], groups=np.arange(80))
    assert_array_equal(inferred.loo_score_, given.loo_score_)
    assert inferred.loo_score_.mean() < apart.loo_score_.mean()


def test_a_prior_of_zeros_warns(data):
    X, y = data
    with pytest.warns(UserWarning, match=r"all gene embeddings are zero.*this is ridge"):
        zeros = PriorKnowledgeRidge(prior=np.zeros((60, 2))).fit(X, y)
    assert_array_equal(zeros.predict(X), PriorKnowledgeRidge(prior=None).fit(X, y).predict(X))
    assert zeros.lambda_best_ == 0


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"lambda_": [0.5, 1.5]}, r"lambda_ must hold one or more numbers in \[0, 1\], got"),
        ({"lambda_": []}, "lambda_ must hold one or more numbers"),
        ({"alpha": [1.0, -1.0]}, r"alpha must hold one or more numbers in \[0, inf\]"),
        ({"alpha": [np.nan]}, "alpha must hold one or more numbers"),
        ({"lambda_": "auto"}, "The 'lambda_' parameter of PriorKnowledgeRidge must be"),
        ({"kernel": "poly"}, "The 'kernel' parameter of PriorKnowledgeRidge must be"),
    ],
)
def test_bad_parameters(data, parameters, text):
    with pytest.raises(ValueError, match=text):
        PriorKnowledgeRidge(**parameters).fit(*data)


def test_bad_input(data):
    X, y = data
    with pytest.raises(ValueError, match="Input y contains NaN"):
        PriorKnowledgeRidge().fit(X, np.where(y > 9, np.nan, y))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        PriorKnowledgeRidge().fit(np.where(X > 2, np.nan, X), y)
    frame = pd.DataFrame(y, columns=[f"gene{number}" for number in range(60)])
    prior = pd.DataFrame(np.ones((2, 2)), index=["TP53", "ESR1"])
    with pytest.raises(ValueError, match=r"none of its genes .* is among those of y"):
        PriorKnowledgeRidge(prior=prior).fit(X, frame)
    model = PriorKnowledgeRidge().fit(X, frame)
    with pytest.raises(ValueError, match="y has other genes than in fit"):
        model.score(X, frame.iloc[:, ::-1])


def test_composes(data):
    X, y = data
    groups = np.arange(80) // 2
    target = QuantileTransformer(n_quantiles=40, output_distribution="normal")
    regressor = make_pipeline(StandardScaler(), PriorKnowledgeRidge(alpha=10.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = cross_validate(
            regressor, X, y, groups=groups, cv=GroupKFold(2), scoring=significance_scorer
        )
    assert (scores["test_score"] > 10).all()
    model = TransformedTargetRegressor(PriorKnowledgeRidge(), transformer=target).fit(X, y)
    assert model.predict(X).shape == y.shape


def test_path_is_drawn(data):
    X, y = data
    model = PriorKnowledgeRidge(lambda_=[0, 0.5, 1.0]).fit(X, y)
    display = LambdaPathDisplay.from_estimator(make_pipeline(StandardScaler(), model).fit(X, y))
    assert display.paths["lambda_"].tolist() == [0, 0.5, 1.0]
    best = model.path_["loo_score"].reshape(3, -1).max(axis=1)
    assert_allclose(display.paths["mean"], best, rtol=1e-6)
    assert display.ax_.get_ylabel() == "Leave-one-out R squared"


def test_maps_of_a_model_of_means():
    rng = np.random.default_rng(0)
    corners = 512 * np.array([(x, y) for x in range(3) for y in range(3)])
    bags = [FeatureBag(rng.normal(size=(9, 4)), coords=corners, slide=f"S{i}") for i in range(20)]
    pooled = BagPooler(statistics=["mean"]).fit_transform(bags)
    y = pd.DataFrame(pooled @ rng.normal(size=(4, 6)), columns=[f"gene{i}" for i in range(6)])
    model = PriorKnowledgeRidge().fit(pooled, y)
    # A window that covers the slide has its mean.
    [whole] = model.predict_tiles(bags[:1], genes=["gene4", "gene1"], window=3)
    expected = model.predict(pooled[:1])[0, [4, 1]]
    assert whole.columns.tolist() == ["gene4", "gene1"]
    assert_allclose(whole, np.tile(expected, (9, 1)), rtol=1e-4, atol=1e-5)
    [tiles] = model.predict_tiles(bags[:1])
    assert_allclose(tiles, model.predict(np.asarray(bags[0])), rtol=1e-4, atol=1e-5)
    assert tiles.attrs["slide"] == "S0"
    with pytest.raises(ValueError, match=r"S0.* has 4 features per tile, .* 8 per slide.*'mean'"):
        PriorKnowledgeRidge().fit(BagPooler().fit_transform(bags), y).predict_tiles(bags[:1])
    with pytest.raises(KeyError, match="'x' not found"):
        model.predict_tiles(bags[:1], genes=["x"])
    frame = model.predict_frame(pd.DataFrame(pooled, index=[bag.slide for bag in bags]))
    assert frame.index[1] == "S1"
    assert frame.columns.equals(y.columns)


def test_several_priors_are_compared(data):
    X, y = data
    G = np.random.default_rng(0).normal(size=(60, 3))
    model = PriorKnowledgeRidge(prior=[None, G, "eigengenes"], lambda_=[0, 0.5, 0.9]).fit(X, y)
    assert model.prior_scores_[model.prior_index_] == model.path_["loo_score"].max()
    alone = [PriorKnowledgeRidge(prior=each, lambda_=[0, 0.5, 0.9]).fit(X, y) for each in (None, G)]
    for score, each in zip(model.prior_scores_, alone, strict=False):
        assert score == pytest.approx(each.path_["loo_score"].max())
    # The rows of one array are not a list of priors.
    assert PriorKnowledgeRidge(prior=G.tolist()).fit(X, y).eigengenes_.shape == (60, 3)
