"""External knowledge about genes: gene sets, edge lists and aliases, as gene-gene graphs."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils._gmt import read_gmt
from ._pearson_graph import MAX_PAIRS

_BLOCK_PAIRS = 4_000_000
CGN_PATH = files("sklearn_pk") / "datasets" / "data" / "c4.cgn.v2024.1.Hs.symbols.gmt"
# In ENSG00000141510.17, the suffix is the version of the record.
_VERSIONED = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+")
# Columns of the HGNC complete set; several aliases of a gene are separated by "|".
_HGNC_ALIASES = ("ensembl_gene_id", "prev_symbol", "alias_symbol")


def centre_member_edges(gene_sets):
    """List the distinct centre-member pairs of sets named ``PREFIX_GENE``."""
    named = [name.partition("_")[2] in genes for name, genes in gene_sets.items()]
    if np.mean(named) < 0.5:
        n_pairs = _count_pairs(gene_sets)
        raise ValueError(
            f"Only {sum(named)} of {len(named)} gene sets contain the gene that ends their name "
            "(PREFIX_GENE), so they are not neighbourhoods of a centre gene. edges='clique' "
            f"would connect all genes of a set with each other, {n_pairs} distinct edges; or "
            "give the graph as an edge DataFrame with the columns gene_a and gene_b."
        )
    edges = {
        tuple(sorted((name.partition("_")[2], gene)))
        for name, genes in gene_sets.items()
        for gene in genes
        if gene != name.partition("_")[2]
    }
    return pd.DataFrame(sorted(edges), columns=["gene_a", "gene_b"], dtype=object)


def _count_pairs(gene_sets):
    """Count the distinct pairs of genes with a common set, up to MAX_PAIRS."""
    n_pairs = 0
    for rows, _ in _clique_blocks(*_membership(gene_sets)):
        n_pairs += len(rows)
        if n_pairs > MAX_PAIRS:
            return f"more than {MAX_PAIRS:,}"
    return f"{n_pairs:,}"


def clique_edges(gene_sets):
    """List the distinct pairs of genes with a common set."""
    genes, membership = _membership(gene_sets)
    found, n_pairs = [], 0
    for rows, columns in _clique_blocks(genes, membership):
        found.append((rows, columns))
        n_pairs += len(rows)
        if n_pairs > MAX_PAIRS:
            raise ValueError(
                f"external: as cliques, these {len(gene_sets):,} gene sets connect more than "
                f"{MAX_PAIRS:,} pairs of genes. Leave out the largest sets."
            )
    rows, columns = (np.concatenate(ends) for ends in zip(*found, strict=True))
    return pd.DataFrame({"gene_a": genes[rows], "gene_b": genes[columns]})


def _membership(gene_sets):
    """Return the sorted genes and the 0/1 matrix of genes by sets."""
    genes = np.array(sorted({gene for members in gene_sets.values() for gene in members}), object)
    sets = np.repeat(np.arange(len(gene_sets)), [len(set(each)) for each in gene_sets.values()])
    members = [gene for each in gene_sets.values() for gene in set(each)]
    positions = pd.Index(genes).get_indexer(members)
    shape = (len(genes), len(gene_sets))
    ones = np.ones(len(positions), dtype=np.float32)
    return genes, sparse.csr_array((ones, (positions, sets)), shape=shape)


def _clique_blocks(genes, membership):
    """Yield the pairs of genes with a common set, in blocks of bounded memory."""
    sets_by_genes = sparse.csr_array(membership.T)
    # An upper bound on the pairs of each gene decides which genes form a block.
    n_pairs = membership @ sets_by_genes.sum(axis=1)
    blocks = np.cumsum(n_pairs, dtype=np.float64) // _BLOCK_PAIRS
    starts = [*np.flatnonzero(np.diff(blocks, prepend=-1.0)), len(genes)]
    for start, stop in pairwise(starts):
        common = (membership[start:stop] @ sets_by_genes).tocoo()
        rows, columns = common.row + start, common.col
        yield rows[rows < columns], columns[rows < columns]


def load_edges(external, *, edges="star", threshold=0.85, absolute=False):
    """Convert any form of external knowledge to an edge list."""
    if isinstance(external, str | os.PathLike):
        return _edges_of_file(external, edges)
    if isinstance(external, tuple):
        if len(external) != 2:
            raise ValueError(
                "external: expected a tuple of a sparse adjacency matrix and its gene names, got "
                f"{len(external)} items."
            )
        return _edges_of_matrix(*external)
    if not isinstance(external, pd.DataFrame):
        table = pd.DataFrame(list(external.edges(data="r")), columns=["gene_a", "gene_b", "r"])
        external = table if table["r"].notna().any() else table[["gene_a", "gene_b"]]
    return _edges_of_table(external, threshold, absolute)


def _edges_of_file(external, edges):
    path = CGN_PATH if external == "cgn" else Path(external)
    if not path.is_file():
        raise FileNotFoundError(
            f"external: file not found: {os.fspath(path)!r}. Expected the path of a GMT file, "
            "or 'cgn' for the shipped collection."
        )
    gene_sets = read_gmt(path)
    if not gene_sets:
        raise ValueError(f"external: {os.fspath(path)!r} has no gene sets.")
    try:
        return centre_member_edges(gene_sets) if edges == "star" else clique_edges(gene_sets)
    except ValueError as error:
        raise ValueError(f"{error} The file is {os.fspath(path)!r}.") from error


def _edges_of_table(external, threshold, absolute):
    missing = {"gene_a", "gene_b"} - set(external.columns)
    if missing:
        raise ValueError(
            f"external: an edge DataFrame needs the columns gene_a and gene_b, "
            f"got {list(external.columns)!r}."
        )
    if "r" in external:
        r = pd.to_numeric(external["r"], errors="coerce").to_numpy(dtype=np.float64)
        if np.isnan(r).any():
            first = external[["gene_a", "gene_b"]].iloc[np.flatnonzero(np.isnan(r))[0]]
            raise ValueError(
                f"external: {int(np.isnan(r).sum())} of {len(r)} edges have no numeric r, "
                f"first {tuple(first)!r}. Give r for all edges, or for none."
            )
        external = external[(np.abs(r) if absolute else r) > threshold]
    edges = external[["gene_a", "gene_b"]]
    unnamed = int(edges.isna().any(axis=1).sum())
    if unnamed:
        raise ValueError(
            f"external: {unnamed} of {len(edges)} edges lack a gene name. Drop them, for "
            "example with edges.dropna(subset=['gene_a', 'gene_b'])."
        )
    return edges


def _edges_of_matrix(matrix, names):
    names = np.asarray(names, dtype=object)
    if not sparse.issparse(matrix) or matrix.shape != (len(names), len(names)):
        raise ValueError(
            "external: expected a tuple of a sparse adjacency matrix of shape (n, n) and its "
            f"n gene names, got {type(matrix).__name__} of shape {getattr(matrix, 'shape', None)} "
            f"and {len(names)} names."
        )
    matrix = sparse.coo_array(matrix)
    if not (matrix.data >= 0).all():
        raise ValueError(
            "external: an adjacency matrix must not have negative values or NaN. Every positive "
            "value is an edge; pass correlations as a DataFrame with the columns gene_a, gene_b "
            "and r."
        )
    rows, columns = matrix.row[matrix.data != 0], matrix.col[matrix.data != 0]
    return pd.DataFrame({"gene_a": names[rows], "gene_b": names[columns]}, dtype=object)


def edges_to_graph(edges, gene_names, aliases):
    """Build the adjacency matrix of an edge list over given genes."""
    mentioned = pd.Index(pd.unique(pd.concat([edges["gene_a"], edges["gene_b"]])), dtype=object)
    positions = match_genes(mentioned, gene_names, aliases)
    unmatched = np.sort(mentioned[positions < 0].to_numpy().astype(str))
    rows = positions[mentioned.get_indexer(edges["gene_a"])]
    columns = positions[mentioned.get_indexer(edges["gene_b"])]
    keep = (rows >= 0) & (columns >= 0) & (rows != columns)
    return pairs_to_graph(rows[keep], columns[keep], len(gene_names)), unmatched


def pairs_to_graph(rows, columns, n_genes):
    """Build a symmetric 0/1 adjacency matrix from index pairs."""
    ones = np.ones(2 * len(rows), dtype=np.float32)
    ends = (np.concatenate([rows, columns]), np.concatenate([columns, rows]))
    graph = sparse.csr_array((ones, ends), shape=(n_genes, n_genes))
    graph.sum_duplicates()
    graph.data[:] = 1.0
    return graph


def upper_pairs(graph):
    """List the edges of a symmetric graph, each once."""
    upper = sparse.triu(graph, k=1).tocoo()
    return upper.row, upper.col


def strip_version(name):
    """Remove the version from an Ensembl gene identifier."""
    match = _VERSIONED.fullmatch(name) if isinstance(name, str) else None
    return match.group(1) if match else name


def load_aliases(aliases):
    """Return a dict of alias to symbol, without ambiguous aliases."""
    if aliases is None:
        return {}
    if isinstance(aliases, str | os.PathLike):
        pairs = _read_pairs(aliases)
    elif isinstance(aliases, Mapping | pd.Series):
        for alias, symbol in aliases.items():
            if isinstance(symbol, list | tuple | set | dict):
                raise ValueError(
                    f"aliases: expected one symbol for each alias, but {alias!r} maps to "
                    f"{symbol!r}."
                )
        pairs = [(alias, symbol) for alias, symbol in aliases.items() if not pd.isna(symbol)]
    else:
        pairs = _pairs_of_table(aliases)
    symbols = {symbol for _, symbol in pairs}
    found, ambiguous = {}, set()
    for alias, symbol in pairs:
        alias = strip_version(alias)
        if found.setdefault(alias, symbol) != symbol:
            ambiguous.add(alias)
    return {
        alias: symbol
        for alias, symbol in found.items()
        if alias not in ambiguous and alias not in symbols
    }


def _read_pairs(path):
    separator = "," if Path(path).suffix == ".csv" else "\t"
    try:
        return _pairs_of_table(pd.read_csv(path, sep=separator, dtype=str))
    except ValueError as error:  # includes the parser errors of pandas
        raise ValueError(f"aliases: {os.fspath(path)!r} cannot be read. {error}") from error


def _pairs_of_table(table):
    if {"alias", "symbol"} <= set(table.columns):
        return list(table[["alias", "symbol"]].dropna().itertuples(index=False, name=None))
    columns = [column for column in _HGNC_ALIASES if column in table]
    if "symbol" not in table or not columns:
        raise ValueError(
            "aliases: a table needs the columns alias and symbol, or those of HGNC (symbol, "
            f"{', '.join(_HGNC_ALIASES)}), got {[str(name)[:40] for name in table.columns[:10]]!r}."
        )
    return [
        (alias, symbol)
        for column in columns
        for names, symbol in table[[column, "symbol"]].dropna().itertuples(index=False)
        for alias in str(names).split("|")
    ]


def match_genes(names, gene_names, aliases):
    """Find genes by name, by name without a version, or by alias."""

    def canonical(values):
        plain = [strip_version(value) for value in values]
        known = [strip_version(aliases.get(value, value)) for value in plain]
        return pd.Index(known, dtype=object)

    names = pd.Index(names, dtype=object)
    positions = pd.Index(gene_names, dtype=object).get_indexer(names)
    unmatched = np.flatnonzero(positions < 0)
    known = canonical(gene_names)
    unique = np.flatnonzero(~known.duplicated(keep=False))
    where = known[unique].get_indexer(canonical(names[unmatched]))
    positions[unmatched[where >= 0]] = unique[where[where >= 0]]
    return positions
