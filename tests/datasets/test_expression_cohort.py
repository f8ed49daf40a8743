"""Cohorts of tile features with planted expression."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict

from sklearn_pk.datasets import make_expression_cohort
from sklearn_pk.datasets._expression_cohort import draw_edges, draw_outsiders
from sklearn_pk.metrics import pearson_by_gene
from sklearn_pk.prior import CoexpressionGraph

SMALL = {"n_tiles": 6, "n_features": 24, "n_genes": 103, "n_modules": 4, "random_state": 0}


@pytest.fixture(scope="module")
def cohort():
    return make_expression_cohort(40, **SMALL)


def module_pairs(cohort):
    ends = [cohort.modules[cohort.edges[end]].to_numpy() for end in ("gene_a", "gene_b")]
    return np.stack(ends)


def test_shapes_types_and_names(cohort):
    assert cohort.X.shape == (40, 6, 24)
    assert cohort.X.dtype == np.float32
    assert cohort.expression.shape == (40, 103)
    assert set(cohort.expression.dtypes) == {np.dtype(np.float32)}
    assert cohort.expression.columns.is_unique
    assert cohort.expression.index.is_unique
    for series in (cohort.planted, cohort.modules):
        assert series.index.equals(cohort.expression.columns)
    assert cohort.factors.index.equals(cohort.expression.index)
    assert (cohort.expression > 0).all(axis=None)
    assert "planted" in cohort.DESCR


@pytest.mark.parametrize("dtype", [np.float64, "float64"])
def test_dtype(dtype):
    cohort = make_expression_cohort(4, dtype=dtype, **SMALL)
    assert cohort.X.dtype == np.float64
    assert set(cohort.expression.dtypes) == {np.dtype(np.float64)}


def test_features_are_not_copied(cohort):
    assert cohort.X.flags.owndata
    assert cohort.X.nbytes == 40 * 6 * 24 * 4


def test_same_seed_same_numbers(cohort):
    again, other = (make_expression_cohort(40, **SMALL | {"random_state": s}) for s in (0, 1))
    assert_array_equal(again.X, cohort.X)
    for name in ("expression", "factors", "edges"):
        pd.testing.assert_frame_equal(again[name], cohort[name])
        assert not other[name].equals(cohort[name])
    assert not np.array_equal(other.X, cohort.X)


def test_expression_does_not_depend_on_the_tiles(cohort):
    other = make_expression_cohort(40, **SMALL | {"n_tiles": 3, "n_features": 30, "noise": 2.0})
    pd.testing.assert_frame_equal(other.expression, cohort.expression)


@pytest.mark.parametrize(("fraction", "n_patients"), [(0.0, 40), (0.25, 32), (1.0, 20)])
def test_slides_of_a_patient_have_equal_rows_and_different_tiles(fraction, n_patients):
    cohort = make_expression_cohort(40, two_slide_share=fraction, **SMALL)
    patients, counts = np.unique(cohort.patients, return_counts=True)
    assert len(patients) == n_patients
    assert counts.max() <= 2
    assert len(np.unique(cohort.expression, axis=0)) == n_patients
    for patient in patients[counts == 2]:
        first, second = np.flatnonzero(cohort.patients == patient)
        assert second == first + 1
        assert_array_equal(cohort.expression.iloc[first], cohort.expression.iloc[second])
        assert not np.array_equal(cohort.X[first], cohort.X[second])


def test_odd_number_of_slides_with_two_per_patient():
    cohort = make_expression_cohort(5, two_slide_share=1.0, **SMALL)
    assert len(set(cohort.patients)) == 3


def test_modules_of_unequal_size():
    cohort = make_expression_cohort(4, **SMALL | {"module_share": 0.8})
    sizes = cohort.modules.value_counts()
    assert sizes.to_dict() == {-1: 21, 0: 21, 1: 21, 2: 20, 3: 20}
    assert list(cohort.modules) != sorted(cohort.modules)


def test_modules_explain_the_given_fraction():
    cohort = make_expression_cohort(3000, coherence=(0.4, 0.9), visibility=1.0, **SMALL)
    for module in cohort.visible_modules:
        genes = cohort.modules.index[cohort.modules == module]
        expression, factor = cohort.expression[genes], cohort.factors[[module]]
        model = LinearRegression().fit(factor, expression)
        r2 = 1 - np.var(expression - model.predict(factor), axis=0) / expression.var()
        assert_allclose(r2, cohort.planted[genes], atol=0.05)
        assert cohort.planted[genes].between(0.4, 0.9).all()
    lone = cohort.expression.loc[:, cohort.modules == -1].to_numpy()
    assert np.abs(np.corrcoef(lone.T) - np.eye(lone.shape[1])).max() < 0.1


def test_tiles_without_noise_explain_the_planted_fraction():
    tiles = {"n_tiles": 200, "noise": 0.0, "n_tile_types": 1}
    cohort = make_expression_cohort(2000, visibility=0.6, **SMALL | tiles)
    means = cohort.X.mean(axis=1, dtype=np.float64)
    # Tiles vary along the planted directions only.
    assert np.linalg.matrix_rank(means - means.mean(axis=0), tol=1e-3) == 2
    r2 = 1 - np.var(
        cohort.expression - LinearRegression().fit(means, cohort.expression).predict(means), axis=0
    ) / np.var(cohort.expression, axis=0)
    assert_allclose(r2, cohort.planted, atol=0.06)


def test_ridge_on_bag_means_predicts_only_planted_genes():
    cohort = make_expression_cohort(400, n_tiles=20, n_features=32, n_genes=300, random_state=0)
    prediction = cross_val_predict(
        RidgeCV(np.logspace(0, 4, 5)),
        cohort.X.mean(axis=1),
        cohort.expression,
        groups=cohort.patients,
        cv=GroupKFold(5),
    )
    r = pearson_by_gene(cohort.expression.to_numpy(), prediction)
    planted = cohort.planted.to_numpy()
    assert np.median(r[planted > 0.3]) > 0.25
    assert (r[planted > 0.1] > 0.1).mean() > 0.8
    assert (r[planted == 0] > 0.1).mean() < 0.05
    assert np.corrcoef(r[planted > 0], planted[planted > 0])[0, 1] > 0.5


def test_tiles_of_a_slide_differ():
    cohort = make_expression_cohort(6, **SMALL | {"noise": 0.0, "n_tiles": 200})
    kinds = [len(np.unique(bag, axis=0)) for bag in cohort.X]
    assert max(kinds) <= 4
    assert np.mean(kinds) > 3
    fractions = [np.unique(bag, axis=0, return_counts=True)[1] for bag in cohort.X]
    assert np.std([fraction.max() / 200 for fraction in fractions]) > 0.01


@pytest.mark.parametrize("hidden", [{"visible_share": 0.0}, {"visibility": 0.0}])
def test_nothing_planted(hidden):
    cohort = make_expression_cohort(10, **SMALL, **hidden)
    assert (cohort.planted == 0).all()
    assert cohort.visible_modules.size == 0


def test_edges_connect_genes_of_a_module(cohort):
    first, second = module_pairs(cohort)
    assert_array_equal(first, second)
    assert set(first) == {0, 1, 2, 3}
    assert (cohort.edges["gene_a"] < cohort.edges["gene_b"]).all()
    assert not cohort.edges.duplicated().any()


def test_degrees_and_small_modules():
    modules = np.arange(100) % 2
    draw = np.random.RandomState(0)
    pairs = draw_edges(modules, [0, 1], 6, 0.0, draw)
    degrees = np.bincount(pairs.ravel(), minlength=100)
    assert degrees.max() <= 6
    assert degrees.mean() > 5
    assert len(draw_edges(modules[:8], [0, 1], 6, 0.0, draw)) == 2 * 6, "all pairs of 4 genes"
    assert draw_edges(modules, [], 6, 0.0, draw).shape == (0, 2)


def test_known_and_false_edges():
    cohort = make_expression_cohort(4, known_share=0.5, false_share=0.25, **SMALL)
    first, second = module_pairs(cohort)
    assert len(set(first[first == second])) == 2
    assert (first != second).mean() == pytest.approx(0.25, abs=0.02)
    assert (cohort.edges["gene_a"] < cohort.edges["gene_b"]).all()
    assert len(make_expression_cohort(4, known_share=0.0, **SMALL).edges) == 0


def test_outsiders_are_from_all_other_modules():
    modules = np.array([1, -1, 0, 1, 0, -1, 2])
    genes = np.repeat(np.arange(7), 200)
    outsiders = draw_outsiders(genes, modules, np.random.RandomState(0))
    for gene in range(7):
        expected = np.flatnonzero(modules != modules[gene])
        assert_array_equal(np.unique(outsiders[genes == gene]), expected)


def test_edges_as_external_knowledge(cohort):
    graph = CoexpressionGraph(source="external", external=cohort.edges).fit(cohort.expression.T)
    assert graph.n_edges_ == len(cohort.edges)
    assert graph.n_connected_genes_ == (cohort.modules >= 0).sum()
    assert graph.unmatched_genes_.size == 0


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"coherence": (0.9, 0.3)}, r"coherence: expected \(lowest, highest\).*got \(0.9, 0.3\)"),
        ({"coherence": [0.5]}, r"coherence: expected .*got \(0.5,\)"),
        ({"n_modules": 40}, r"n_modules=40 .* require 80 genes .* gives 52. Use fewer modules"),
        (
            {"n_features": 5},
            r"n_features=5 is too small: .* 4 tile types .* 2 visible .* at least 6",
        ),
        (
            {"n_modules": 1, "module_share": 1.0, "false_share": 0.5},
            r"false_share=0.5 requires genes outside .* all 103 belong",
        ),
        ({"n_slides": 1}, "'n_slides' parameter of make_expression_cohort"),
        ({"dtype": np.float16}, "'dtype' parameter of make_expression_cohort"),
        ({"visible_share": 1.5}, "'visible_share' parameter of make_expression_cohort"),
    ],
)
def test_bad_input(parameters, text):
    with pytest.raises(ValueError, match=text):
        make_expression_cohort(**SMALL | parameters)
