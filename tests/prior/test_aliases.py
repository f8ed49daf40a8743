"""Aliases of genes."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.prior import CoexpressionGraph
from sklearn_pk.prior._gene_sets import load_aliases, match_genes, strip_version

HGNC = pd.DataFrame(
    {
        "symbol": ["TP53", "SEPTIN2", "MARCHF1", "NEW"],
        "prev_symbol": [np.nan, "SEPT2", "MARCH1", "TP53"],
        "alias_symbol": ["p53|LFS1", "DIFF6", "SHARED|DIFF6", np.nan],
        "ensembl_gene_id": ["ENSG00000141510", "ENSG00000168385", np.nan, np.nan],
    }
)


def test_versions():
    assert strip_version("ENSG00000141510.17") == "ENSG00000141510"
    assert strip_version("ENSMUSG00000059552.14") == "ENSMUSG00000059552"
    # Not versions: a pseudoautosomal copy is another gene, and clone names contain a dot.
    for name in ("ENSG00000182378.14_PAR_Y", "RP11-34P13.7", "TP53", 7157):
        assert strip_version(name) == name


def test_hgnc_table(tmp_path):
    path = tmp_path / "hgnc_complete_set.txt"
    HGNC.to_csv(path, sep="\t", index=False)
    for table in (HGNC, path, str(path)):
        aliases = load_aliases(table)
        assert aliases["p53"] == aliases["LFS1"] == aliases["ENSG00000141510"] == "TP53"
        assert aliases["SEPT2"] == "SEPTIN2"
        # DIFF6 is an alias of two genes, and TP53 the symbol of a gene itself.
        assert "DIFF6" not in aliases
        assert "TP53" not in aliases


def test_two_columns_and_mappings(tmp_path):
    path = tmp_path / "aliases.csv"
    pd.DataFrame({"alias": ["SEPT2"], "symbol": ["SEPTIN2"]}).to_csv(path, index=False)
    for table in (path, {"SEPT2": "SEPTIN2"}, pd.Series({"SEPT2": "SEPTIN2"})):
        assert load_aliases(table) == {"SEPT2": "SEPTIN2"}
    assert load_aliases(None) == {}
    with pytest.raises(ValueError, match=r"needs the columns alias and symbol.*\['old', 'new'\]"):
        load_aliases(pd.DataFrame({"old": ["A"], "new": ["B"]}))


def test_matching_goes_from_exact_to_alias():
    aliases = load_aliases(HGNC)
    genes = ["SEPT2", "ENSG00000141510.17", "MARCHF1"]
    names = ["SEPT2", "SEPTIN2", "TP53", "p53", "MARCH1", "ENSG00000141510.3", "NONE"]
    assert match_genes(names, genes, aliases).tolist() == [0, 0, 1, 1, 2, 1, -1]
    # Without a table, only versions are ignored.
    assert match_genes(names, genes, {}).tolist() == [0, -1, -1, -1, -1, 1, -1]


def test_ambiguous_names_match_exactly_or_not_at_all():
    genes = ["ENSG00000141510.1", "ENSG00000141510.2", "SEPT2", "SEPTIN2"]
    names = ["ENSG00000141510.2", "ENSG00000141510.9", "SEPT2", "DIFF6"]
    aliases = {"SEPT2": "SEPTIN2", "DIFF6": "SEPTIN2"}
    assert match_genes(names, genes, aliases).tolist() == [1, -1, 2, -1]


def test_versions_are_ignored():
    genes = ["ENSG00000141510.17"]
    for symbol in ("ENSG00000141510", "ENSG00000141510.17", "ENSG00000141510.3"):
        assert match_genes(["TP53"], genes, load_aliases({"TP53": symbol})).tolist() == [0]


def test_only_hgnc_columns_are_split():
    table = pd.DataFrame({"alias": ["TP53|7157"], "symbol": ["TP53"]})
    assert load_aliases(table) == {"TP53|7157": "TP53"}
    with pytest.raises(ValueError, match=r"one symbol .*, but 'TP53' maps to \['p53', 'LFS1'\]"):
        load_aliases({"TP53": ["p53", "LFS1"]})


def test_aliases_connect_edges_to_a_table():
    edges = pd.DataFrame({"gene_a": ["p53", "TP53", "XYZ"], "gene_b": ["SEPT2", "LFS1", "TP53"]})
    X = pd.DataFrame(np.eye(3), index=["ENSG00000141510.17", "SEPTIN2", "OTHER"])
    graph = CoexpressionGraph(source="external", external=edges, aliases=HGNC)
    with pytest.raises(ValueError, match=r"none of its genes .*`aliases`"):
        graph.set_params(aliases=None).fit(X)
    fitted = graph.set_params(aliases=HGNC).fit(X)
    # TP53 and LFS1 are the same gene, so that their edge is a self loop.
    assert fitted.n_edges_ == 1
    assert fitted.unmatched_genes_.tolist() == ["XYZ"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "No columns to parse"),
        (b"alias,symbol\na,\xff\n", "codec can't decode"),
        (b"alias,symbol\na,b\nc,d,e\n", "Error tokenizing data"),
        (b"old,new\na,b\n", "needs the columns alias and symbol"),
        (b"a" * 100_000, "needs the columns alias and symbol"),
    ],
)
def test_invalid_files_are_named(tmp_path, content, text):
    path = tmp_path / "aliases.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"aliases\.csv.*{text}") as info:
        load_aliases(path)
    assert len(str(info.value)) < 500
