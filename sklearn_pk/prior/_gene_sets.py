"""Gene sets and edge lists as gene-gene graphs."""

# SPDX-License-Identifier: BSD-3-Clause

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

CGN_PATH = files("sklearn_pk") / "datasets" / "data" / "c4.cgn.v2024.1.Hs.symbols.gmt"


def read_gmt(path):
    """
    Read gene sets from a GMT file.

    Parameters
    ----------
    path : str or path-like
        Tab-separated file with one set a line: name, description, then genes.

    Returns
    -------
    gene_sets : dict of str to list of str
        Name of each set to its genes, in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line has fewer than three fields or a set appears twice.

    See Also
    --------
    CoexpressionGraph : Takes the path of a GMT file as `external`.

    Examples
    --------
    >>> from sklearn_pk.datasets import load_cgn
    >>> from sklearn_pk.prior import read_gmt
    >>> len(read_gmt(load_cgn().path))
    427
    """
    gene_sets = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, *rest = line.rstrip("\n").split("\t")
            genes = [gene for gene in rest[1:] if gene]
            if not genes:
                raise ValueError(
                    f"{path}, line {number}: expected a GMT line (set name, description, genes, "
                    f"separated by tabs), got {line[:60]!r}."
                )
            if name in gene_sets:
                raise ValueError(f"{path}, line {number}: the gene set {name!r} appears twice.")
            gene_sets[name] = genes
    return gene_sets


def centre_member_edges(gene_sets):
    """
    List the distinct centre-member pairs of sets named ``PREFIX_GENE``.

    Parameters
    ----------
    gene_sets : dict of str to list of str
        Sets whose name ends in their centre gene, as in MSigDB C4:CGN.

    Returns
    -------
    edges : DataFrame with columns gene_a, gene_b
        One row a distinct undirected pair, gene_a < gene_b.

    Raises
    ------
    ValueError
        If most sets do not contain the gene that their name ends in.
    """
    listed = [name.partition("_")[2] in genes for name, genes in gene_sets.items()]
    if np.mean(listed) < 0.5:
        raise ValueError(
            f"Only {sum(listed)} of {len(listed)} gene sets contain the gene their name ends in "
            "(PREFIX_GENE), so they are not neighbourhoods of a centre gene. Give the graph as "
            "an edge DataFrame with the columns gene_a and gene_b."
        )
    edges = {
        tuple(sorted((name.partition("_")[2], gene)))
        for name, genes in gene_sets.items()
        for gene in genes
        if gene != name.partition("_")[2]
    }
    return pd.DataFrame(sorted(edges), columns=["gene_a", "gene_b"], dtype=object)


def load_edges(external):
    """
    Turn any description of external knowledge into an edge list.

    Parameters
    ----------
    external : {"cgn"}, str, path-like or DataFrame
        The shipped CGN collection, the path of a GMT file with centre genes, or a
        DataFrame with the columns gene_a and gene_b.

    Returns
    -------
    edges : DataFrame with columns gene_a, gene_b
        One row a pair.
    """
    if isinstance(external, pd.DataFrame):
        missing = {"gene_a", "gene_b"} - set(external.columns)
        if missing:
            raise ValueError(
                f"external: an edge DataFrame needs the columns gene_a and gene_b, "
                f"got {list(external.columns)!r}."
            )
        return external[["gene_a", "gene_b"]]
    path = CGN_PATH if isinstance(external, str) and external == "cgn" else Path(external)
    return centre_member_edges(read_gmt(path))


def edges_to_graph(edges, gene_names):
    """
    Make the adjacency matrix of an edge list over given genes.

    Parameters
    ----------
    edges : DataFrame with columns gene_a, gene_b
        Undirected pairs; direction, repetition and self loops do not count.
    gene_names : ndarray of shape (n_genes,)
        Genes of the graph; pairs with a gene that is not among them are left out.

    Returns
    -------
    graph : CSR array of shape (n_genes, n_genes), float32
        Symmetric, zero diagonal, ones.
    unmatched : ndarray of str
        Genes of the edges that are not in `gene_names`, sorted.
    """
    index = pd.Index(gene_names)
    rows = index.get_indexer(edges["gene_a"])
    columns = index.get_indexer(edges["gene_b"])
    mentioned = pd.unique(pd.concat([edges["gene_a"], edges["gene_b"]]))
    unmatched = np.sort(mentioned[index.get_indexer(mentioned) < 0].astype(str))
    keep = (rows >= 0) & (columns >= 0) & (rows != columns)
    return pairs_to_graph(rows[keep], columns[keep], len(index)), unmatched


def pairs_to_graph(rows, columns, n_genes):
    """
    Make a symmetric 0/1 adjacency matrix from index pairs.

    Parameters
    ----------
    rows, columns : ndarray of int
        Ends of each pair; a pair may appear more than once and in either direction.
    n_genes : int
        Number of genes.

    Returns
    -------
    graph : CSR array of shape (n_genes, n_genes), float32
        Symmetric, ones.
    """
    ones = np.ones(2 * len(rows), dtype=np.float32)
    ends = (np.concatenate([rows, columns]), np.concatenate([columns, rows]))
    graph = sparse.csr_array((ones, ends), shape=(n_genes, n_genes))
    graph.sum_duplicates()
    graph.data[:] = 1.0
    return graph
