"""Annotation among genes or samples, and values that are not logged, are told."""

# SPDX-License-Identifier: BSD-3-Clause

import re
import warnings

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.datasets import load_brca_expression
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.prior import CoexpressionGraph, EigengeneEmbedder
from sklearn_pk.regression import PriorKnowledgeRidge
from sklearn_pk.utils._reporting import without_warnings_of_data

RNG = np.random.default_rng(0)
PRIORS = [CoexpressionGraph(), EigengeneEmbedder(3)]


@pytest.fixture(scope="module")
def expression():
    """Return 60 patients x 100 genes."""
    return load_brca_expression().expression.iloc[:60, :100]


def numbers(n, low, high):
    return RNG.integers(low, high, n).astype(float)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(
    "name", ["Entrez_Gene_Id", "entrezgene", "gene length", "Chr", "Unnamed: 0"]
)
def test_columns_of_annotation_are_refused_by_name(expression, prior, name):
    X = expression.T.copy()
    X.insert(0, name, numbers(100, 1, 30))
    with pytest.raises(ValueError, match=f"1 of 61 columns annotate genes: '{name}'.*X.drop"):
        prior.fit(X)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("scale", ["log", "z", "TPM"])
def test_columns_of_other_numbers_are_told_by_value(expression, prior, scale):
    X = expression.T.copy()
    if scale == "z":
        X = X.sub(X.mean(axis=1), axis=0).div(X.std(axis=1), axis=0)
    if scale == "TPM":
        X = 2**X - 1
    prior.fit(X)  # without a warning
    top = X.to_numpy().max()
    for column in (numbers(100, 20 * top, 200 * top), np.sort(numbers(100, 99 * top, 1e9))):
        for odd in (X.assign(x=column), X.assign(x=column).to_numpy()):
            where = "'x'" if hasattr(odd, "columns") else "60"
            with pytest.warns(UserWarning, match=f"1 of 61 columns of X hold .* {where}. They"):
                prior.fit(odd)
    two = X.assign(start=numbers(100, 1e6, 1e8), e=numbers(100, 1e6, 1e8)).rename(
        columns={"start": "s"}
    )
    with pytest.warns(UserWarning, match="2 of 62 columns of X hold .*'s', 'e'"):
        prior.fit(two)
    with pytest.warns(UserWarning, match="1 of 61 columns of X have the same value for all .*'x'"):
        prior.fit(X.assign(x=0.0))


@pytest.mark.parametrize("prior", PRIORS)
def test_transposed_expression_is_refused(expression, prior):
    y = expression.set_axis([f"TCGA.A1.{i:04d}.01" for i in range(60)])
    with pytest.raises(ValueError, match="its rows are samples, such as 'TCGA.A1.*expression.T"):
        prior.fit(y)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"Age": 60.0}, r"1 of 10\d columns of y are not named like genes: 'Age'"),
        ({"OS.time": 12.5, "patient_id": 3.0}, "not named like genes: 'OS.time', 'patient_id'"),
        ({"7157": 6.0, "": 7.0}, "not named like genes: '7157', ''"),
        ({"nr": "count"}, "1 of 101 columns number the samples: 'nr'"),
        ({"x": "days"}, "1 of 101 columns are on a larger scale than the others.*'x'"),
    ],
)
def test_columns_of_y_that_are_no_genes_are_told(expression, columns, message):
    made = {"count": np.arange(60.0), "days": numbers(60, 1, 4000)}
    columns = {name: made.get(v, RNG.normal(size=60)) for name, v in columns.items()}
    y = pd.concat([expression, pd.DataFrame(columns, index=expression.index)], axis=1)
    X = RNG.normal(size=(60, 4))
    ridge = PriorKnowledgeRidge(prior=None)
    with pytest.warns(UserWarning, match=message):
        ridge.fit(X, y)
    with pytest.warns(UserWarning, match=message) as caught:
        cross_val_significance(ridge, X, y, cv=3)
    told = [each for each in caught if re.search(message, str(each.message))]
    assert len(told) == 1  # and not again in each fold
    if not {"nr", "x"} & set(columns):
        with pytest.warns(UserWarning, match="rows of X are not named like genes"):
            EigengeneEmbedder(3).fit(y.T)
    with warnings.catch_warnings(), without_warnings_of_data():
        warnings.simplefilter("error")
        ridge.fit(X, y)


def test_rows_of_y_in_another_unit_are_told(expression):
    y = expression.copy()
    y.iloc[3] = numbers(100, 20, 90)
    with pytest.warns(UserWarning, match=f"1 of 60 rows of y hold .*{y.index[3]}"):
        PriorKnowledgeRidge(prior=EigengeneEmbedder(3)).fit(RNG.normal(size=(60, 4)), y)


def test_external_knowledge_of_other_genes_is_told(expression):
    known = [("ESR1", "TFF1"), *((f"7{i}", f"8{i}") for i in range(50))]
    edges = pd.DataFrame(known, columns=["gene_a", "gene_b"])
    X = expression.T.rename(index=dict(zip(expression.columns[:2], ["ESR1", "TFF1"], strict=True)))
    X = X[~X.index.duplicated()]
    graph = CoexpressionGraph(source="external", external=edges)
    with pytest.warns(
        UserWarning, match="external: only 2 of its 102 genes .* kind of identifiers"
    ):
        graph.fit(X)
    with pytest.raises(
        ValueError, match="none of its genes.*Did you mean 'ESR1' for 'esr1', 'TFF1'"
    ):
        graph.set_params(external=edges.iloc[:1].map(str.lower)).fit(X)
