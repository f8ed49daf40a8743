"""Features and expression of a cohort, read and matched."""

# SPDX-License-Identifier: BSD-3-Clause

from dataclasses import dataclass, field
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from _common import checksum, write_file

from sklearn_pk.io import match_samples, read_expression, read_table
from sklearn_pk.slides import FeatureBags, SuperTileClusterer, read_features
from sklearn_pk.utils._bags import is_bag_input


@dataclass
class Cohort:
    """
    Samples that have features and expression.

    Parameters
    ----------
    X : DataFrame, ndarray of shape (n, tiles, n_features) or list of bags
        Features: a table with one row per sample, super-tiles, or bags in their files.
    expression : DataFrame of shape (n, n_genes)
        Expression, one row per sample.
    patients : ndarray of shape (n,)
        Patient of each sample.
    audit : DataFrame
        What was matched, and why not.
    unused_rows : list of str
        Rows of expression without a sample.
    left_out : dict of str to str
        Slides that cannot be used, and why.
    """

    X: object
    expression: pd.DataFrame
    patients: np.ndarray
    audit: pd.DataFrame
    unused_rows: list
    left_out: dict = field(default_factory=dict)

    @property
    def is_table(self):
        """Whether there is one vector per sample."""
        return not is_bag_input(self.X)

    @property
    def n_features(self):
        """Width of the features."""
        return (self.X if hasattr(self.X, "shape") else self.X[0]).shape[-1]

    def fingerprint(self):
        """Return an identifier of this cohort."""
        X = self.X
        if isinstance(X, list):  # not the features: they stay in their files
            X = list(map(identify, X))
        values = joblib.hash([np.asarray(X) if hasattr(X, "shape") else X])
        return {
            "features": values,
            "expression": joblib.hash([self.expression.to_numpy(), list(self.expression)]),
            "patients": joblib.hash(list(map(str, self.patients))),
        }

    def write_audit(self, path):
        """Write what was matched, and what could not be used, as a table."""
        left_out = pd.DataFrame({"how": self.left_out}, dtype=object).rename_axis("sample")
        pd.concat([self.audit, left_out]).to_csv(path)

    def describe(self):
        """Return its size."""
        return {
            "n_samples": len(self.expression),
            "n_patients": len(np.unique(self.patients)),
            "n_genes": self.expression.shape[1],
            "n_features": int(self.n_features),
        }


def identify(bag):
    """Return an identifier of the features of a slide, without reading them."""
    path = getattr(bag, "path", None)
    stat = None if path is None else Path(path).stat()
    return bag.name, bag.shape, str(path), stat and (stat.st_size, stat.st_mtime_ns)


def _save(path, array):
    with path.open("wb") as file:  # np.save would add an ending
        np.save(file, array)


def cluster(bags, n_clusters, path, verbose):
    """Compute super-tiles of bags once; they are cached in a file beside the results."""
    key = joblib.hash([list(map(identify, bags)), n_clusters])
    path = path.with_name(f"{path.name}-{key[:16]}.npy")
    seal = path.with_suffix(".sha256")
    if not seal.exists() or checksum(path) != seal.read_text():
        clusterer = SuperTileClusterer(n_clusters=n_clusters, random_state=0, verbose=verbose)
        supertiles = clusterer.fit_transform(bags).astype(np.float32, copy=False)
        found = write_file(path, lambda temporary: _save(temporary, supertiles))
        write_file(seal, lambda temporary: temporary.write_text(found))
    return np.load(path, mmap_mode="r")


def read_cohort(features, expression, *, n_clusters=100, work=Path(), genes_in="columns"):
    """
    Read features and expression, and match their rows.

    Parameters
    ----------
    features : Path
        Folder of files that :func:`~sklearn_pk.slides.read_features` reads, or a table.
    expression : Path
        Table that :func:`~sklearn_pk.io.read_expression` reads.
    n_clusters : int, default=100
        Super-tiles per slide, for bags with more tiles; 0 uses bags as they are.
    work : Path
        Where super-tiles are kept, a path without its ending.
    genes_in : {"columns", "rows"}, default="columns"
        Where the table of expression has its genes.

    Returns
    -------
    Cohort
        The samples that have both.
    """
    table = read_expression(expression, genes_in=genes_in)
    X, left_out = read_table(features) if features.is_file() else None, {}
    if features.is_dir():
        X, left_out = _drop_empty(read_features(features, min_tiles=0))
    matched = match_samples(X, table.expression, patients=table.patients)
    X = matched.X
    if features.is_dir() and n_clusters and max(bag.shape[0] for bag in X) > 1:
        X = cluster(X, n_clusters, work, verbose=1)
    parts = (matched.expression, matched.patients, matched.audit, matched.unused_rows)
    return Cohort(X, *parts, left_out)


def _drop_empty(bags):
    """Remove slides without tiles; return the others, and all that cannot be used."""
    left_out = dict(zip(bags.failures["slide"], bags.failures["reason"], strict=True))
    left_out |= {bag.name: "no tiles" for bag in bags if not bag.shape[0]}
    return FeatureBags((bag for bag in bags if bag.shape[0]), bags.failures), left_out


def describe_audit(name, cohort):
    """
    Describe in a few lines what was matched and what was not.

    Parameters
    ----------
    name : str
        Name of the cohort.
    cohort : Cohort
        The cohort.

    Returns
    -------
    str
        The lines.
    """
    audit, size = cohort.audit, cohort.describe()
    found = audit["row"].notna()
    lines = [
        f"{name}: {found.sum():,} of {len(audit):,} samples have a row of expression "
        f"({size['n_patients']:,} patients, {size['n_genes']:,} genes, "
        f"{size['n_features']:,} features).",
        *(f"  {n:,} by {how}" for how, n in audit[found]["how"].value_counts().items()),
    ]
    for how, few in audit[~found].groupby("how"):
        lines.append(f"  {len(few):,} left out: {how}, such as {few.index[0]!r}")
    if cohort.left_out:
        slide, reason = next(iter(cohort.left_out.items()))
        lines.append(f"  {len(cohort.left_out):,} slides cannot be used, such as {slide}: {reason}")
    if cohort.unused_rows:
        lines.append(
            f"  {len(cohort.unused_rows):,} rows of expression have no sample, such as "
            f"{cohort.unused_rows[0]!r}"
        )
    return "\n".join(lines)
