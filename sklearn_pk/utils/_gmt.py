"""Files of gene sets."""

# SPDX-License-Identifier: BSD-3-Clause


def read_gmt(path):
    """
    Read gene sets from a GMT file.

    Parameters
    ----------
    path : str or path-like
        Tab-separated file with one set per line: name, description, then genes.

    Returns
    -------
    gene_sets : dict of str to list of str
        Name of each set to its genes, in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line has fewer than three fields, a set appears twice, or the file is not text.

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
    try:
        with open(path, encoding="utf-8") as lines:
            return _sets_of_lines(lines, path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a GMT file: expected tab-separated UTF-8 text ({error})."
        ) from error


def _sets_of_lines(lines, path):
    gene_sets = {}
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
            raise ValueError(f"{path}, line {number}: the gene set {name[:60]!r} appears twice.")
        gene_sets[name] = genes
    return gene_sets
