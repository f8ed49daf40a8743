"""Tables with random changes, as people make them, and what is right for each."""

# SPDX-License-Identifier: BSD-3-Clause

import bz2
import gzip
import lzma
import warnings

import numpy as np
import pandas as pd

from sklearn_pk.io import read_expression

SYMBOLS = (
    "TSPAN6 TNMD DPM1 SCYL3 C1orf112 FGR CFH FUCA2 GCLC NFYA STPG1 NIPAL3 LAS1L ENPP4 SEMA3F TP53 "
    "ESR1 ERBB2 CD99 HLA-A HLA-DRB1 MARCHF1 KRT5 GATA3 PTPRC NKX2-1 MT-CO1 LINC01128 Y_RNA MIR21"
).split()
SAMPLES = {
    "TCGA": lambda n: f"TCGA-{n % 90 + 10}-A{n:03d}-{'11' if n % 5 == 4 else '01'}A",
    "aliquot": lambda n: f"TCGA-{n % 90 + 10}-A{n:03d}-01A-11R-A41B-07",
    "patient": lambda n: f"TCGA-{n % 90 + 10}-A{n:03d}",
    "GTEx": lambda n: f"GTEX-{n + 1000}-0226-SM-5GZ{n}",
    "CPTAC": lambda n: f"C3{'LN'[n % 2]}-{n:05d}",
    "TARGET": lambda n: f"TARGET-30-PAA{n:03d}-01",
    "UUID": lambda n: f"{n + 1:08x}-0a0b-4c4d-8e8f-{n:012x}",
    "hospital": lambda n: f"pat{n:02d}",
    "number": lambda n: str(1000 + 7 * n),
    "GSM": lambda n: f"GSM{4000 + n}",
}
GENES = {
    "symbol": SYMBOLS,
    "Ensembl": [f"ENSG{n:011d}" for n in range(100, 130)],
    "version": [f"ENSG{n:011d}.{n % 9 + 1}" for n in range(100, 130)],
    "Entrez": [str(7 * n + 13) for n in range(30)],
    "pair": [f"{symbol}|{n + 100}" for n, symbol in enumerate(SYMBOLS)],
    "DepMap": [f"{symbol} ({n + 100})" for n, symbol in enumerate(SYMBOLS)],
}
# Columns that annotate genes, or samples.
NOTES = {
    "gene_name": lambda n, rng: SYMBOLS[:n],
    "Description": lambda n, rng: [f"a protein, number {number}" for number in range(n)],
    "gene_type": lambda n, rng: ["protein_coding"] * n,
    "length": lambda n, rng: rng.integers(200, 9000, n),
    "Chromosome": lambda n, rng: [str(number % 23) if number % 7 else "X" for number in range(n)],
    "Entrez_Gene_Id": lambda n, rng: rng.permutation(99_000)[:n],
    "start": lambda n, rng: rng.integers(1, 10**8, n),
    "GC content": lambda n, rng: rng.random(n).round(3),
    "my_score": lambda n, rng: rng.normal(size=n).round(3) * 1e6,
}
CLINICAL = {
    "age": lambda n, rng: rng.integers(20, 90, n),
    "OS": lambda n, rng: rng.integers(0, 2, n),
    "OS.time": lambda n, rng: rng.integers(20, 4000, n),
    "stage": lambda n, rng: rng.choice(["I", "II", "III"], n),
    "TMB": lambda n, rng: rng.random(n).round(2),
    "patient_id": lambda n, rng: [f"P{number}" for number in range(n)],
    "purity": lambda n, rng: rng.random(n).round(2),
    "my_score": lambda n, rng: rng.random(n).round(2),
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def _values(rng, shape):
    unit = rng.choice(["log", "counts", "TPM", "z"])
    values = rng.gamma(2, 2, size=shape)
    if unit == "counts":
        return np.rint(values**3 * 10)
    if unit == "TPM":
        return (values / values.sum(axis=1, keepdims=True) * 1e6).round(int(rng.integers(2, 6)))
    if unit == "z":
        values = (values - values.mean(axis=0)) / values.std(axis=0)
    return values.round(int(rng.integers(2, 6)))


def _names(right, kind, genes, rng):
    """Return the names as they are in the file, of samples and genes."""
    samples = list(right.index)
    if kind not in ("hospital", "number", "GSM") and rng.random() < 0.3:
        mark = rng.choice([".", "_"]) if kind in ("TCGA", "aliquot", "patient") else "."
        samples = [name.replace("-", mark) for name in samples]
        if mark == "." and kind == "UUID":
            samples = [f"X{name}" if name[0].isdigit() else name for name in samples]
    return samples, list(genes)


def _annotate(table, notes, rng, n_rows):
    """Insert columns behind the names, between the values, or at the end."""
    for name, make in notes.items():
        if rng.random() < 0.25:
            at = rng.choice([1, table.shape[1] // 2, table.shape[1]])
            table.insert(int(at), name, make(n_rows, rng))
    return table


def _break(lines, rng):
    """Damage the lines of a table; return them, and whether they are damaged."""
    kind = rng.choice(["cut", "short", "long", "text", "none"], p=[0.05, 0.05, 0.05, 0.05, 0.8])
    at = int(rng.integers(1, len(lines)))
    if kind == "cut":
        lines = [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]
    elif kind == "short":
        lines[at] = lines[at][: len(lines[at]) // 2]
    elif kind == "long":
        lines[at] += lines[at][len(lines[at]) // 2 :]
    elif kind == "text":
        lines[at] = lines[at][:-1] + "<n.d."
    return lines, kind


def mutate(rng, folder):
    """Write a known table with several changes; return path, what is right, and the damage."""
    n_samples, n_genes = int(rng.integers(3, 12)), int(rng.integers(8, 31))
    kind, gene_kind = rng.choice(list(SAMPLES)), rng.choice(list(GENES))
    genes = GENES[gene_kind][:n_genes]
    shown = SYMBOLS[:n_genes] if gene_kind in ("pair", "DepMap") else genes
    samples = [SAMPLES[kind](n) for n in range(n_samples)]
    right = pd.DataFrame(_values(rng, (n_samples, n_genes)), samples, shown)
    right = right.sample(frac=1, random_state=int(rng.integers(1000)))
    table = right.copy()
    table.index, table.columns = _names(right, kind, genes, rng)
    in_rows = rng.random() < 0.6
    if in_rows:
        label = rng.choice(["", "sample", "gene_id", "Gene", "Hugo_Symbol", "Unnamed: 0"])
        table = table.T.rename_axis(label).reset_index()
        table = _annotate(table, NOTES, rng, n_genes)
    else:
        label = rng.choice(["", "sample", "slide", "index", "Unnamed: 0"])
        table = _annotate(table.rename_axis(label).reset_index(), CLINICAL, rng, n_samples)
    if rng.random() < 0.1:
        table.insert(0, rng.choice(["row", ""]), range(len(table)), allow_duplicates=True)
    elif rng.random() < 0.1 and not {"gene_name", "Entrez_Gene_Id", "patient_id"} & set(table):
        # The names are not in front.
        table = table[[*table.columns[1:], table.columns[0]]]
    sep = str(rng.choice(["\t", ",", ";", "|"]))
    decimal = "," if rng.random() < 0.2 else "."
    quoting = int(rng.choice([0, 1, 2]))
    text = table.to_csv(sep=sep, decimal=decimal, index=False, quoting=quoting)
    lines, damage = _break(text.splitlines(), rng)
    # A name with other letters is a name.
    damage = "none" if damage == "text" and table.columns[-1] in ("", label) else damage
    lines = text.splitlines() if damage == "none" else lines
    end = rng.choice(["\n", "\r\n", "\r"], p=[0.7, 0.2, 0.1])
    text = end.join(lines) + (end if rng.random() < 0.8 else "")
    ending, compress = list(COMPRESS.items())[rng.integers(4)]
    encoding = rng.choice(["utf-8", "utf-16", "utf-8-sig", "utf-16-le", "latin-1"])
    path = folder / (str(rng.choice(["a.csv", "a.tsv", "a.txt", "a"])) + ending)
    path.write_bytes(compress(text.encode(encoding)))
    return path, right, str(damage)


def outcome(seed, folder):
    """Return "right", "refused", "warned" (wrong, with a warning), or "wrong", and the reason."""
    path, right, damage = mutate(np.random.default_rng(seed), folder)
    options = {"missing": "median"} if seed % 2 else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            table = read_expression(path, **options).expression
        except (ValueError, TypeError) as error:
            told = str(path) in str(error)
            return ("refused", str(error)) if told else ("wrong", f"path is not named: {error}")
    # Behind numbers of rows, the symbols beside Entrez identifiers are good names, too.
    names = right.columns.tolist(), SYMBOLS[: right.shape[1]]
    same = table.columns.tolist() in names and table.index.tolist() == right.index.tolist()
    same = same and np.allclose(table, right, rtol=1e-6)
    if same:
        return "right", ""
    told = "; ".join(str(each.message) for each in caught)
    return "warned" if told else "wrong", f"{damage}: {told} {table.iloc[:2, :3]}"


def test_changed_tables_are_right_or_refused(tmp_path):
    # By hand: outcome(seed, folder) of some thousand seeds.
    found = {seed: outcome(seed, tmp_path) for seed in range(60)}
    kinds = [kind for kind, _ in found.values()]
    assert not {seed: each for seed, each in found.items() if each[0] in ("wrong", "warned")}
    assert kinds.count("right") > 40
    assert kinds.count("refused") > 2
