"""The whole way: slide files to significant genes, as users write it."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline

from sklearn_pk.datasets import load_cmu_slide, make_slide_cohort
from sklearn_pk.metrics import significance_scorer
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRegressor
from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, SuperTileClusterer


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Sixteen small slides of thirteen patients."""
    folder = tmp_path_factory.mktemp("cohort")
    cohort = make_slide_cohort(16, random_state=0, out_dir=folder, slide_size=(768, 768))
    cohort.store = folder / "features"
    return cohort


@pytest.fixture(scope="module")
def larger_cohort(tmp_path_factory):
    """Forty small slides: enough for a gene to pass the test of significance in half of them."""
    folder = tmp_path_factory.mktemp("larger_cohort")
    return make_slide_cohort(40, random_state=0, out_dir=folder, slide_size=(768, 768))


@pytest.fixture
def model(cohort):
    prior = make_pipeline(
        CoexpressionGraph(threshold=0.9, source="combined"), NMFGeneEmbedder(4, random_state=0)
    )
    return make_pipeline(
        SlideTiler(tile_size=256, mpp=0.5, max_tiles=4, random_state=0),
        FoundationFeaturizer("efficientnet-lite0", store=cohort.store),
        SuperTileClusterer(n_clusters=3, random_state=0),
        PriorKnowledgeRegressor(
            prior=prior, embed_dim=8, max_epochs=3, depth=1, n_heads=2, head_dim=4, random_state=0
        ),
    )


def test_from_a_cohort_to_the_real_slide(cohort, model):
    with pytest.warns(UserWarning, match="3 samples repeat the expression of an earlier one"):
        model.fit(cohort.slides, cohort.expression)
    predicted = model.predict([load_cmu_slide().path])
    assert predicted.shape == (1, 1000)
    assert np.isfinite(predicted).all()
    assert list(model[-1].gene_names_out_) == list(cohort.expression.columns)
    again = pickle.loads(pickle.dumps(model)).predict([load_cmu_slide().path])
    assert_array_equal(again, predicted)


def test_search_as_in_the_documentation(larger_cohort, model):
    cohort = larger_cohort
    model.set_params(priorknowledgeregressor__max_epochs=40, priorknowledgeregressor__lr=0.01)
    grid = {
        "priorknowledgeregressor__lambda_": [0.1, 0.9],
        "priorknowledgeregressor__aggregator": ["mlp", "summary_mixing"],
        "priorknowledgeregressor__prior__coexpressiongraph__source": ["external", "internal"],
    }
    search = GridSearchCV(
        model, grid, scoring=significance_scorer, cv=GroupKFold(2), error_score="raise"
    )
    with sklearn.config_context(enable_metadata_routing=True):
        search.fit(cohort.slides, cohort.expression, groups=cohort.patients)
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 8
    assert np.isfinite(scores).all()
    assert scores.max() > 0
    assert search.best_estimator_[-1].embeddings_.any()
    result = cross_val_significance(
        search.best_estimator_,
        cohort.slides,
        cohort.expression,
        groups=cohort.patients,
        cv=GroupKFold(3),
    )
    assert list(result.report.index) == list(cohort.expression.columns)
    assert result.predictions.index.equals(cohort.expression.index)
    assert result.predict(cohort.slides[:2]).shape == (2, 1000)


def test_no_leak_each_graph_saw_the_expression_of_its_training_fold(cohort, model):
    cv = GroupKFold(3)
    result = cross_val_significance(
        model, cohort.slides, cohort.expression, groups=cohort.patients, cv=cv
    )
    folds = cv.split(cohort.slides, cohort.expression, cohort.patients)
    graphs = []
    for fitted, (train, test) in zip(result.estimators, folds, strict=True):
        graph = fitted[-1].prior_[0]
        training = cohort.expression.iloc[train].groupby(cohort.patients[train]).first()
        assert list(graph.feature_names_in_) == list(training.index)
        assert not set(graph.feature_names_in_) & set(cohort.patients[test])
        expected = clone(graph).fit(training.T)
        assert (graph.graph_ != expected.graph_).nnz == 0
        graphs.append(graph.graph_)
    assert (graphs[0] != graphs[1]).nnz > 0, "folds do not share a graph"
    everything = cohort.expression.groupby(cohort.patients).first()
    assert (clone(graph).fit(everything.T).graph_ != graphs[-1]).nnz > 0


def test_cross_validate_with_the_scorer_in_processes(cohort, model):
    scores = [
        cross_validate(
            model,
            cohort.slides,
            cohort.expression,
            scoring={"significant": significance_scorer, "r2": "r2"},
            cv=2,
            n_jobs=n_jobs,
            params={"priorknowledgeregressor__groups": cohort.patients},
        )
        for n_jobs in (1, 2)
    ]
    assert_array_equal(scores[0]["test_significant"], scores[1]["test_significant"])
    assert_allclose(scores[0]["test_r2"], scores[1]["test_r2"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of distributed itself, whatever its version
def test_dask_cluster_of_processes_gives_the_same(cohort, model):
    distributed = pytest.importorskip("distributed")
    arguments = (model, cohort.slides, cohort.expression)
    keywords = {"groups": cohort.patients, "cv": GroupKFold(2)}
    here = cross_val_significance(*arguments, **keywords)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        there = cross_val_significance(*arguments, **keywords, n_jobs=2)
    assert_allclose(there.predictions, here.predictions, rtol=1e-5)
    assert there.n_significant == here.n_significant


def test_slides_with_a_resolution_of_the_users_own(cohort, model):
    frame = pd.DataFrame({"slide": cohort.slides, "mpp": 0.4})
    bags = model[:2].fit(frame).transform(frame)
    assert bags[0].size_level0 == 320


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda_": 1.5}, "'lambda_' parameter of PriorKnowledgeRegressor .* Got 1.5"),
        ({"aggregator": "mean"}, "'aggregator' parameter of PriorKnowledgeRegressor"),
        ({"prior__coexpressiongraph__source": "both"}, "'source' parameter of CoexpressionGraph"),
    ],
)
def test_bad_parameters_are_found_before_any_slide_is_read(cohort, model, change, message):
    model.set_params(**{f"priorknowledgeregressor__{key}": value for key, value in change.items()})
    with pytest.raises(ValueError, match=message):
        cross_val_significance(model, ["nowhere.svs"] * 16, cohort.expression.to_numpy())


def test_bad_tables_are_found_before_any_slide_is_encoded(cohort, model):
    model.set_params(foundationfeaturizer__encoder="no-such-encoder")
    other = cohort.expression.rename(index=lambda name: f"other-{len(name)}")
    holes = cohort.expression.copy()
    holes.iloc[3, 5] = np.nan
    twice = cohort.expression.rename(columns={cohort.expression.columns[0]: "TFF1"})
    for table, message in (
        (other, "16 of 16 carry different names"),
        (holes, f"(?s)NaN.*{cohort.expression.columns[5]!r}"),
        (twice, "duplicate gene names: 'TFF1'"),
        (cohort.expression.iloc[1:], "X has 16 samples, y has 15 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(cohort.slides, table)
    with pytest.raises(ValueError, match="'no-such-encoder'"):
        model.fit(cohort.slides, cohort.expression)


def test_more_folds_than_patients(cohort, model):
    with pytest.raises(ValueError, match="20 folds need at least 20 patients, got 13 patients"):
        cross_val_significance(
            model, cohort.slides, cohort.expression, groups=cohort.patients, cv=GroupKFold(20)
        )


def test_an_unfitted_pipeline_says_so(cohort, model):
    with pytest.raises((NotFittedError, FutureWarning), match="not fitted"):
        model.predict(cohort.slides)
