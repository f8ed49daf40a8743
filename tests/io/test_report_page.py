"""The report of a result, in a real browser."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import QuantileTransformer

from sklearn_pk.io import match_samples
from sklearn_pk.model_selection import cross_val_significance
from sklearn_pk.regression import PriorKnowledgeRidge

EVIL = "<img src=x onerror=alert(1)></script>"
GENES = [f"GENE{number}" for number in range(598)] + [EVIL, "@SUM(A1)"]


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(50, 8)), index=[f"S{number}" for number in range(50)])
    known = np.arange(600) < 200
    y = X.to_numpy() @ rng.normal(size=(8, 600)) * known + rng.normal(size=(50, 600)) + 9
    y = pd.DataFrame(y, index=X.index, columns=GENES)
    normal = QuantileTransformer(n_quantiles=20, output_distribution="normal")
    options = {"null": "permutation", "n_permutations": 20, "random_state": 0}
    model = PriorKnowledgeRidge(prior=None)
    return cross_val_significance(model, X, y, target_transformer=normal, **options)


@pytest.fixture(scope="module")
def page(open_page, result, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    rows = pd.DataFrame({"TP53": [5.0, 6.0]}, index=["P1", "P2"])
    audit = match_samples(pd.DataFrame({"a": [1, 2]}, index=["P1-a", "P3-<b>bold"]), rows)
    options = {"audit": audit, "annotations": {"GENE7": EVIL}, "gene_sets": {EVIL: GENES[:40]}}
    result.to_html(path, title=EVIL, units="log2", **options)
    page = open_page(path, width=1400, height=900)
    return page


def first_genes(page, n=3):
    return [page.inner_text(f"#table tbody tr:nth-child({k + 1}) td") for k in range(n)]


def test_one_file_in_which_names_are_text(page):
    assert page.problems == []
    assert len([url for url in page.requests if not url.startswith("data:")]) == 1
    assert page.locator("img").count() == 0
    assert page.title() == EVIL == page.inner_text("h1")
    assert EVIL in page.inner_text("#sets + p + div")
    assert "P3-<b>bold" in page.inner_text("body")


def test_verdict_has_both_numbers(page, result):
    verdict = page.inner_text(".verdict")
    assert f"{result.n_significant} of 600 genes are significantly predicted." in verdict
    assert f"By the published test, for comparison with papers: {result.n_published}" in verdict
    assert f"{result.median_r_fold:.3f}; pooled over folds" in verdict


def test_nothing_predicted_and_nothing_calibrated_are_said(result, tmp_path):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 30))
    model = PriorKnowledgeRidge(prior=None, alpha=1.0)
    for null, words in (
        ("analytic", "None of 30 genes is significantly predicted"),
        ("published", "is not"),
    ):
        cross_val_significance(model, X, y, null=null).to_html(tmp_path / "a.html")
        assert words in (tmp_path / "a.html").read_text()


def test_genes_are_sorted_searched_and_selected(page, result):
    best = result.report.sort_values("r_fold", ascending=False, kind="stable").index[:3].tolist()
    assert first_genes(page) == best
    assert page.inner_text("#count") == "600 of 600 genes, the first 500 shown"
    page.click("#more")
    assert page.locator("#table tbody tr").count() == 600
    page.click("#table th button >> text=gene")
    assert first_genes(page) == ["@SUM(A1)", EVIL, "GENE0"]
    page.click("#table th button >> text=r_low")
    assert page.get_attribute("#table th:nth-child(4)", "aria-sort") == "descending"
    page.fill("#search", "gene59")
    assert page.inner_text("#count") == "9 of 600 genes"
    page.fill("#search", "onerror")
    assert sorted(first_genes(page, 2)) == sorted([EVIL, "GENE7"])
    page.fill("#search", "")
    page.check("#only")
    assert page.inner_text("#count").startswith(f"{result.n_significant} of 600 genes")


def test_figures_and_facts(page):
    assert page.locator("figure svg").count() == 4
    assert "GENE" in page.locator("figure svg").nth(3).inner_html()
    facts = page.inner_text("body")
    assert "Expression was transformed by QuantileTransformer" in facts
    assert "1 of 2 samples have expression; 1 rows of expression have no sample." in facts
    assert "PriorKnowledgeRidge(prior=None)" in facts
    assert "scikit-learn" in page.inner_text("#versions + p")


@pytest.mark.parametrize("width", [1400, 400])
def test_page_fits(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_other_audits_are_refused(result, tmp_path):
    with pytest.raises(TypeError, match="audit must be what match_samples returns"):
        result.to_html(tmp_path / "a.html", audit=pd.DataFrame({"a": [1]}))
    assert list(tmp_path.iterdir()) == []
