"""Gene sets as graphs."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.datasets import load_cgn
from sklearn_pk.prior import read_gmt
from sklearn_pk.prior._gene_sets import centre_member_edges, edges_to_graph, load_edges


def test_shipped_collection_has_the_known_number_of_edges():
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


def test_edge_frame_needs_its_columns():
    with pytest.raises(ValueError, match=r"columns gene_a and gene_b, got \['from', 'to'\]"):
        load_edges(pd.DataFrame({"from": ["A"], "to": ["B"]}))


def test_graph_is_symmetric_without_loops_or_weights():
    edges = pd.DataFrame(
        [("A", "B"), ("B", "A"), ("A", "A"), ("C", "Z"), ("B", "C")], columns=["gene_a", "gene_b"]
    )
    graph, unmatched = edges_to_graph(edges, np.array(["C", "A", "B"], object), {})
    assert graph.toarray().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert unmatched.tolist() == ["Z"]
