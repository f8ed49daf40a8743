"""Gene embeddings by eigenvectors of co-expression."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm, rankdata
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import StandardScaler

from sklearn_pk.prior import EigengeneEmbedder, _eigengenes
from sklearn_pk.prior._expression_sources import normalize_genes


def test_embedding_approximates_the_correlation_matrix(genes):
    table = genes.iloc[:120]
    G = EigengeneEmbedder(120, normalize="standard", random_state=0).fit_transform(table)
    assert_allclose(G @ G.T, np.corrcoef(table.to_numpy()), atol=1e-6)
    # Fewer components are the leading eigenvectors times the square root of their eigenvalues.
    eigenvalues, vectors = np.linalg.eigh(np.corrcoef(table.to_numpy()))
    few = EigengeneEmbedder(3, normalize="standard", random_state=0).fit_transform(table)
    expected = vectors[:, :-4:-1] * np.sqrt(eigenvalues[:-4:-1])
    signs = np.sign(np.sum(few * expected, axis=0))
    assert_allclose(few, expected * signs, atol=1e-3)


def test_ranks(genes):
    scores = norm.ppf((rankdata(genes.to_numpy(), axis=1) - 0.5) / genes.shape[1])
    scores = StandardScaler().fit_transform(scores.T).T
    expected = TruncatedSVD(5, random_state=0).fit_transform(scores) / np.sqrt(genes.shape[1])
    G = EigengeneEmbedder(5, random_state=0).fit_transform(genes)
    signs = np.sign(np.sum(G * expected, axis=0))
    assert_allclose(G, expected * signs, atol=2e-3)
    # The embedding is invariant to monotonic transformations of a gene.
    changed = genes.apply(lambda gene: np.exp2(gene) if gene.name in genes.index[::2] else gene, 1)
    assert_allclose(EigengeneEmbedder(5, random_state=0).fit_transform(changed), G, atol=1e-5)


def test_no_normalisation_is_centring(genes):
    fitted = EigengeneEmbedder(4, normalize=None, random_state=0).fit(genes)
    centred = genes.sub(genes.mean(axis=1), axis=0).to_numpy()
    assert_allclose(
        fitted.singular_values_, np.linalg.svd(centred, compute_uv=False)[:4], rtol=1e-4
    )
    ratio = fitted.singular_values_**2 / np.sum(centred**2)
    assert_allclose(fitted.explained_variance_ratio_, ratio, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_methods_agree(genes, dtype):
    X = genes.to_numpy(dtype)
    fitted = EigengeneEmbedder(6, random_state=0)
    G = fitted.fit_transform(X)
    assert G.dtype == dtype
    assert_allclose(fitted.transform(X), G)
    assert_allclose(fitted.transform(X[5:9]), G[5:9], rtol=1e-3, atol=1e-5)
    assert_array_equal(EigengeneEmbedder(6, random_state=0).fit_transform(X), G)


def test_constant_genes_are_zero_and_there_are_no_surplus_components(genes):
    X = genes.to_numpy()[:20].copy()
    X[3] = 1e6 + 0.1
    fitted = EigengeneEmbedder(30)
    G = fitted.fit_transform(X)
    assert G.shape == (20, 19)
    assert_array_equal(G[3], 0)
    assert np.isfinite(G).all()
    assert len(fitted.get_feature_names_out()) == 19
    assert_array_equal(EigengeneEmbedder(2).fit_transform(np.ones((4, 3))), np.zeros((4, 1)))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_exact_and_random_decompositions_agree(shape, monkeypatch):
    X = np.random.default_rng(0).normal(size=shape)
    exact = EigengeneEmbedder(8).fit(X)
    monkeypatch.setattr(_eigengenes, "_EXACT", 5)
    randomised = EigengeneEmbedder(8, random_state=0).fit(X)
    assert_allclose(exact.singular_values_, randomised.singular_values_, rtol=0.05)
    Z = normalize_genes(X, "rank")
    assert_allclose(exact.singular_values_, np.linalg.svd(Z, compute_uv=False)[:8])


def test_bad_input(genes):
    with pytest.raises(ValueError, match="1 feature"):
        EigengeneEmbedder().fit(genes.iloc[:, :1])
    with pytest.raises(ValueError, match="'normalize' parameter of EigengeneEmbedder"):
        EigengeneEmbedder(normalize="l2").fit(genes)
