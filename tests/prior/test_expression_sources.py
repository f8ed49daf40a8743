"""Expression of patients without slides, in both kinds of priors."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRidge


@pytest.fixture(scope="module")
def cohorts(genes):
    """Genes x patients with slides, and patients x genes of others in another unit."""
    others = genes.T.iloc[100:] * 3 - 5
    others.columns = genes.index
    return genes.iloc[:, :100], others.iloc[:, ::-1]


def scale(values):
    return (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)


def test_both_sources_are_normalised_by_themselves_and_stacked(cohorts):
    own, others = cohorts
    fitted = EigengeneEmbedder(400, normalize="standard", expression=others, weight=0.5).fit(own)
    aligned = others[own.index].T.to_numpy()
    stacked = np.hstack([scale(own.to_numpy()), np.sqrt(0.5) * scale(aligned)])
    total = own.shape[1] + 0.5 * len(others)
    G = fitted.embedding_
    assert_allclose(G @ G.T, stacked @ stacked.T / total, atol=1e-6)
    assert_allclose(np.square(G).sum(axis=1), 1, atol=1e-6)
    assert_allclose(fitted.transform(own.iloc[3:7]), G[3:7], atol=1e-8)
    alone = EigengeneEmbedder(20, expression=others, use="instead").fit(own)
    expected = EigengeneEmbedder(20).fit(others[own.index].T)
    assert_allclose(alone.embedding_, expected.embedding_, atol=1e-6)


def test_genes_without_other_expression_keep_their_variance(cohorts):
    own, others = cohorts
    few = others.drop(columns=own.index[:5])
    G = EigengeneEmbedder(400, normalize="standard", expression=few).fit_transform(own)
    assert_allclose(np.square(G).sum(axis=1), 1, atol=1e-6)
    alone = EigengeneEmbedder(expression=few, use="instead").fit_transform(own)
    assert_array_equal(alone[:5], 0)
    assert alone[5:].any(axis=1).all()


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_graph(cohorts, method):
    own, others = cohorts
    options = {"threshold": 0.6, "method": method}
    alone = CoexpressionGraph(expression=others, use="instead", **options).fit(own)
    expected = CoexpressionGraph(**options).fit(others[own.index].T)
    assert (alone.graph_ != expected.graph_).nnz <= 2  # scaling moves r by rounding only
    both = CoexpressionGraph(expression=others, **options)
    graph = both.fit_transform(own)
    assert (both.transform(own) != graph).nnz == 0
    internal = CoexpressionGraph(**options).fit(own)
    assert 0 < (graph != internal.graph_).nnz
    if method == "pearson":
        stacked = np.hstack([scale(own.to_numpy()), scale(others[own.index].T.to_numpy())])
        r = np.corrcoef(stacked) - np.eye(len(own))
        assert (abs(graph.toarray() - (r > 0.6))).sum() <= 2
    # A gene that was not in fit is connected over all patients.
    fitted = CoexpressionGraph(expression=others, **options).fit(own.iloc[10:])
    new = fitted.transform(own.iloc[:10])
    assert (new != graph[:10, 10:]).nnz == 0


def test_patients_who_are_trained_on_are_refused(cohorts):
    own, others = cohorts
    named = own.set_axis([f"TCGA-AA-{number:04d}" for number in range(own.shape[1])], axis=1)
    for label in ("TCGA-AA-0003-01A-11R-A089-07", "tcga-aa-0003"):
        table = others.rename(index={others.index[7]: label})
        with pytest.raises(ValueError, match="1 of the patients in X.*drop"):
            EigengeneEmbedder(expression=table).fit(named)
    # The same patient under another name, in another unit.
    copied = pd.concat([others, np.log2(own.iloc[:, [5]].T - own.to_numpy().min() + 1)])
    copied.index = [f"other {number}" for number in range(len(copied))]
    for prior in (EigengeneEmbedder(expression=copied), CoexpressionGraph(expression=copied)):
        with pytest.raises(ValueError, match=f"by equal values: 'other {len(copied) - 1}'"):
            prior.fit(own)


def test_bad_expression(cohorts):
    own, others = cohorts
    for expression, error, match in (
        (others.T, ValueError, "pass expression.T"),
        (others.add_prefix("x"), ValueError, "same kind of gene identifiers"),
        (others.where(others.ne(others.iloc[0, 0])), ValueError, "contains NaN"),
        (others.iloc[:2], ValueError, "at least 3 patients, got 2"),
        (others.to_numpy(), ValueError, "'expression' parameter of EigengeneEmbedder"),
    ):
        with pytest.raises(error, match=match):
            EigengeneEmbedder(expression=expression).fit(own)
    with pytest.raises(ValueError, match="X has no gene names"):
        EigengeneEmbedder(expression=others).fit(own.to_numpy())
    with pytest.warns(UserWarning, match="only 1 of the"):
        EigengeneEmbedder(expression=others.iloc[:, :1]).fit(own)


@pytest.fixture(scope="module")
def cohort(cohorts):
    own, others = cohorts
    rng = np.random.default_rng(0)
    y = own.T.set_axis([f"patient {number}" for number in range(own.shape[1])])
    X = scale(y.to_numpy()) @ rng.normal(size=(y.shape[1], 6)) + 5 * rng.normal(size=(len(y), 6))
    return pd.DataFrame(X, index=y.index), y, others


def test_in_regressors(cohort):
    X, y, others = cohort
    prior = EigengeneEmbedder(20, expression=others)
    model = PriorKnowledgeRidge(prior=prior).fit(X[:60], y[:60])
    assert model.predict(X[60:]).shape == (40, y.shape[1])
    assert model.prior_.components_.shape[1] == 60 + len(others)
    copy = pickle.loads(pickle.dumps(model))
    assert_array_equal(copy.predict(X), model.predict(X))
    assert clone(model).prior.expression.equals(others)
    graph = make_pipeline(CoexpressionGraph(threshold=0.5, expression=others), NMFGeneEmbedder(4))
    network = PriorKnowledgeRegressor(prior=graph, max_epochs=1, random_state=0)
    assert network.fit(X[:60], y[:60]).predict(X[60:]).shape == (40, y.shape[1])


@pytest.mark.parametrize(
    "model", [PriorKnowledgeRidge(), PriorKnowledgeRegressor(max_epochs=1)], ids=["ridge", "net"]
)
def test_patients_who_are_predicted_are_refused(cohort, model):
    X, y, others = cohort
    leaked = pd.concat([others, y.iloc[[70]]])
    model = clone(model).set_params(prior=EigengeneEmbedder(5, expression=leaked))
    model.fit(X[:60], y[:60])
    with pytest.raises(ValueError, match="1 of the 40 patients to predict: 'patient 70'"):
        model.predict(X[60:])
    # In cross-validation every tested patient is trained on in another fold.
    with pytest.raises(ValueError, match="expression contains 1 of the patients"):
        cross_val_significance(model, X.to_numpy(), y, groups=y.index, cv=3)


def test_weight_of_a_source_by_leave_one_out(cohort):
    X, y, others = cohort
    rng = np.random.default_rng(0)
    noise = pd.DataFrame(rng.permuted(others, axis=0), columns=others.columns)
    sources = [others, noise]
    priors = [
        EigengeneEmbedder(10, normalize="standard", expression=each, use="instead")
        for each in sources
    ]
    for order in (1, -1):
        model = PriorKnowledgeRidge(prior=priors[::order]).fit(X, y)
        assert model.prior_.expression is not None
        assert len(model.prior_scores_) == 2
        assert model.prior_index_ == (0 if order == 1 else 1)
        alone = PriorKnowledgeRidge(prior=priors[0]).fit(X, y)
        assert_allclose(model.predict(X), alone.predict(X))
        assert model.prior_scores_.max() == pytest.approx(alone.path_["loo_score"].max())
