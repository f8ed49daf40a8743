"""Gene sets as graphs."""

# SPDX-License-Identifier: BSD-3-Clause

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.datasets import load_cgn
from sklearn_pk.prior import _gene_sets, read_gmt
from sklearn_pk.prior._gene_sets import centre_member_edges, edges_to_graph, load_edges


def test_number_of_edges_of_the_shipped_collection():
    edges = centre_member_edges(load_cgn().gene_sets)
    assert len(edges) == 39_581
    assert len(np.unique(edges.to_numpy(dtype=str))) == 4_919
    assert (edges["gene_a"] < edges["gene_b"]).all()
    pd.testing.assert_frame_equal(edges, load_edges("cgn"))


def test_star_not_clique(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("X_A\turl\tA\tB\tC\nX_B\turl\tA\tB\n\n")
    edges = load_edges(path)
    assert edges.to_numpy().tolist() == [["A", "B"], ["A", "C"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X_A\turl\tA\tB\nX_C\turl\n", r"line 2: expected a GMT line .*got 'X_C"),
        ("X_A\turl\tA\tB\nX_A\turl\tA\n", "line 2: the gene set 'X_A' appears twice"),
        ("HALLMARK_HYPOXIA\turl\tVEGFA\tCA9\n", "Only 0 of 1 gene sets contain the gene"),
    ],
)
def test_bad_gmt(tmp_path, text, message):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        centre_member_edges(read_gmt(path))


def test_missing_file():
    with pytest.raises(FileNotFoundError, match="nowhere.gmt"):
        load_edges("nowhere.gmt")


def test_missing_columns_of_an_edge_frame():
    with pytest.raises(ValueError, match=r"columns gene_a and gene_b, got \['from', 'to'\]"):
        load_edges(pd.DataFrame({"from": ["A"], "to": ["B"]}))


def test_graph_is_symmetric_without_loops_or_weights():
    edges = pd.DataFrame(
        [("A", "B"), ("B", "A"), ("A", "A"), ("C", "Z"), ("B", "C")], columns=["gene_a", "gene_b"]
    )
    graph, unmatched = edges_to_graph(edges, np.array(["C", "A", "B"], object), {})
    assert graph.toarray().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert unmatched.tolist() == ["Z"]


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_bytes(b"X_A\turl\tA\t\xff\n")
    for read in (read_gmt, load_edges):
        with pytest.raises(ValueError, match=r"sets\.gmt is not a GMT file"):
            read(path)
    path.write_text("HYPOXIA\turl\tVEGFA\tCA9\n")
    with pytest.raises(ValueError, match=r"Only 0 of 1 gene sets .* 1 distinct .*sets\.gmt"):
        load_edges(path)


def test_large_set_needs_little_memory(tmp_path, monkeypatch):
    path = tmp_path / "sets.gmt"
    path.write_text("X_ALL\turl\t" + "\t".join(f"G{number}" for number in range(12_000)))
    monkeypatch.setattr(_gene_sets, "MAX_PAIRS", 5_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"more than 5,000,000 distinct edges.*sets\.gmt"):
        load_edges(path)
    assert tracemalloc.get_traced_memory()[1] < 400 << 20
    tracemalloc.stop()
    monkeypatch.setattr(_gene_sets, "MAX_PAIRS", 1000)
    with pytest.raises(ValueError, match=r"connect more than 1,000 pairs.*sets\.gmt"):
        load_edges(path, edges="clique")


@pytest.mark.parametrize("block", [1, 7, 100, 10**9])
def test_cliques_do_not_depend_on_block_size(monkeypatch, block):
    rng = np.random.default_rng(0)
    sets = {str(n): [f"G{gene}" for gene in rng.integers(0, 60, size=n)] for n in range(1, 12)}
    expected = {
        tuple(sorted((one, other)))
        for genes in sets.values()
        for one in genes
        for other in genes
        if one != other
    }
    monkeypatch.setattr(_gene_sets, "_BLOCK_PAIRS", block)
    edges = _gene_sets.clique_edges(sets)
    assert len(edges) == len(expected)
    assert {tuple(sorted(pair)) for pair in edges.to_numpy().tolist()} == expected
