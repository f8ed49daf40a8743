"""Other names of genes: renamed symbols, and Ensembl identifiers with a version."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

# ENSG00000141510.17: the number behind the point counts releases, not genes.
_VERSIONED = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+")
# Columns of the complete set that HGNC publishes; names of one gene are joined by "|".
_HGNC_ALIASES = ("ensembl_gene_id", "prev_symbol", "alias_symbol")


def strip_version(name):
    """Remove the version from an Ensembl gene identifier."""
    match = _VERSIONED.fullmatch(name) if isinstance(name, str) else None
    return match.group(1) if match else name


def load_aliases(aliases):
    """Read a table of other names of genes."""
    if aliases is None:
        return {}
    if isinstance(aliases, str | os.PathLike):
        pairs = _read_pairs(aliases)
    elif isinstance(aliases, Mapping | pd.Series):
        for alias, symbol in aliases.items():
            if isinstance(symbol, list | tuple | set | dict):
                raise ValueError(
                    f"aliases: a mapping leads from an alias to one symbol, but {alias!r} leads to "
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
    except ValueError as error:  # also what pandas raises for text that is no table
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
    """Find genes in a table: by name, by name without a version, by alias."""

    def canonical(values):
        plain = [strip_version(value) for value in values]
        known = [strip_version(aliases.get(value, value)) for value in plain]
        return pd.Index(known, dtype=object)

    names = pd.Index(names, dtype=object)
    positions = pd.Index(gene_names, dtype=object).get_indexer(names)
    left = np.flatnonzero(positions < 0)
    known = canonical(gene_names)
    unique = np.flatnonzero(~known.duplicated(keep=False))
    where = known[unique].get_indexer(canonical(names[left]))
    positions[left[where >= 0]] = unique[where[where >= 0]]
    return positions
