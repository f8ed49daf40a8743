"""Tables of expression that are easily read wrongly: right, or refused with the true reason."""

# SPDX-License-Identifier: BSD-3-Clause

import io
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from sklearn_pk.io import read_expression

SYMBOLS = ["TSPAN6", "TNMD", "DPM1", "SCYL3", "C1orf112", "FGR", "TP53", "ESR1", "ERBB2", "HLA-A"]
ENSEMBL = [f"ENSG{number:011d}.{number % 9 + 1}" for number in range(3, 13)]
ENTREZ = ["7105", "64102", "8813", "57147", "55732", "2268", "7157", "2099", "2064", "3105"]
TCGA = [f"TCGA-3C-AA{letter}U-01A" for letter in "ABCDEF"]
COUNTS = np.random.default_rng(0).negative_binomial(1, 0.001, size=(6, 10)).astype(float)
LOG = np.round(np.log2(COUNTS + 1), 4)


def frame(values=LOG, samples=TCGA, genes=SYMBOLS):
    return pd.DataFrame(values, index=list(samples), columns=list(genes))


def in_rows(values=LOG, samples=TCGA, genes=SYMBOLS, label="gene", **notes):
    table = frame(values, samples, genes).T.rename_axis(label).reset_index()
    for at, (name, column) in enumerate(notes.items(), 1):
        table.insert(at, name, column)
    return table


def in_columns(genes=SYMBOLS, **notes):
    return frame(genes=genes).reset_index(names="sample").assign(**notes)


def with_cell(table, row, column, text):
    table = table.astype(object)
    table.iloc[row, column] = text
    return table


def depmap():
    genes = [f"{symbol} ({number})" for symbol, number in zip(SYMBOLS, ENTREZ, strict=True)]
    table = frame(genes=genes).reset_index(drop=True)
    table.insert(0, "IsDefaultEntryForModel", "Yes")
    table.insert(0, "ModelID", [f"ACH-{number:06d}" for number in range(6)])
    table.insert(0, "SequencingID", [f"CDS-{number:06d}" for number in range(6)])
    return table


def names_last():
    table = frame().reset_index(drop=True)
    return table.assign(sample=TCGA)


HOSPITAL = [f"p{number}x" for number in range(6)]
CLINICAL = {"OS": [0, 1, 0, 1, 1, 0], "AGE": [50, 60, 70, 55, 44, 33], "OS.time": range(6)}
MIXED = [*TCGA[:4], "TARGET-30-PAAPFA-01", "GTEX-S4Q7-0003-SM-3NM8M"]
NORMALS = {"gc_content": 0.5, "baseMean": 3.5, "log2FoldChange": 0.1, "padj": 0.01}
RIGHT = {
    "Xena, not TCGA": (in_rows(samples=HOSPITAL, label="sample"), frame(samples=HOSPITAL)),
    "Toil": (in_rows(samples=MIXED, label="sample"), frame(samples=MIXED)),
    "names in the last column": (names_last(), frame()),
    "names in the third column": (in_rows().pipe(lambda t: t.assign(start=1, n=2)[
        ["start", *t.columns]]), frame()),
    "survival in columns": (in_columns(**CLINICAL), frame()),
    "survival beside Ensembl": (in_columns(ENSEMBL, **CLINICAL), frame(genes=ENSEMBL)),
    "survival in rows": (
        pd.concat([pd.DataFrame([["age", *range(6)]], columns=in_rows().columns), in_rows()]),
        frame(),
    ),
    "results beside samples": (
        in_rows(samples=HOSPITAL, **NORMALS),
        frame(samples=HOSPITAL),
    ),
    "row numbers of GTEx": (
        in_rows(genes=ENSEMBL, label="Name", Description=SYMBOLS).reset_index(names="id"),
        frame(genes=ENSEMBL),
    ),
    "DepMap of 2025": (depmap(), frame(samples=depmap()["ModelID"])),
    "underscores": (in_rows(samples=[name.replace("-", "_") for name in TCGA]), frame()),
    "cell lines": (
        in_rows(samples=["A549", "MCF7", "K562", "T47D", "HL60", "PC3"], label=""),
        frame(samples=["A549", "MCF7", "K562", "T47D", "HL60", "PC3"]),
    ),
    "mouse": (
        in_rows(genes=[name.capitalize() for name in SYMBOLS], samples=HOSPITAL, label=""),
        frame(genes=[name.capitalize() for name in SYMBOLS], samples=HOSPITAL),
    ),
    "Entrez first": (
        in_rows(genes=ENTREZ, label="Entrez_Gene_Id", Hugo_Symbol=SYMBOLS), frame()
    ),
    "a sum": (in_rows().pipe(lambda table: pd.concat([table, pd.DataFrame([["Total", *range(6)]],
        columns=table.columns)])), frame()),
}  # fmt: skip
REFUSED = {
    "a text": (with_cell(in_rows(), 2, 3, "<0.1"), "got '<0.1' in column 'TCGA-3C-AACU-01A'"),
    "an error of Excel": (with_cell(in_columns(), 2, 3, "#VALUE!"), "got '#VALUE!' in .*'DPM1'"),
    "a sample of text": (in_rows().assign(**{TCGA[2]: "high"}), "samples hold text: 'TCGA-3C-AAC"),
    "thousands": (in_rows(COUNTS).map(lambda x: f"{int(x):,}" if isinstance(x, float) else x),
        "cannot be decided whether '1,444' has a mark of decimals or of thousands"),
    "a copy made by pandas": (in_rows(samples=[*TCGA[:5], TCGA[0] + ".1"]), "samples are furthe"),
    "no genes": (in_columns()[["sample"]].assign(age=1, stage="I"), "none of its columns.*a gene"),
    "numbered genes": (in_columns(map(str, range(10))), "its genes have no names"),
    "a sample without a name": (in_rows(samples=[*TCGA[:5], ""]), "column 7 has no name"),
    "two lines of names": (
        pd.concat([pd.DataFrame([["id", *ENSEMBL]], columns=in_columns().columns), in_columns()]),
        "columns of text.* Only one line of names",
    ),
    "numbers on both axes": (
        in_rows(genes=ENTREZ, samples=map(str, range(100, 106)), label=""), "cannot be decided"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("sep", ["\t", ",", ";", "|", ":"])
def test_doubtful_tables_are_read(case, sep, tmp_path):
    table, right = RIGHT[case]
    table.to_csv(tmp_path / "a", sep=sep, index=False, decimal="," if sep == ";" else ".")
    found = read_expression(tmp_path / "a").expression
    assert found.index.tolist() == right.index.tolist()
    assert found.columns.tolist() == right.columns.tolist()
    assert_allclose(found, right)


@pytest.mark.parametrize("case", REFUSED)
def test_doubtful_tables_are_refused(case, tmp_path):
    table, match = REFUSED[case]
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    with pytest.raises((ValueError, TypeError), match=rf"a\.tsv.*{match}"):
        read_expression(tmp_path / "a.tsv", missing="median")


def test_columns_unlike_the_others_are_named(tmp_path):
    path = tmp_path / "a.tsv"
    in_rows(samples=[*TCGA[:5], "UHR"], my_lengths=range(1000, 1010)).to_csv(path, sep="\t")
    with pytest.warns(UserWarning, match="'my_lengths'.*annotation of genes|'UHR'.*for samples"):
        table = read_expression(path)
    assert table.expression.index.tolist() == [*TCGA[:5], "UHR"]
    assert table.genes["my_lengths"].tolist() == list(range(1000, 1010))


TEXT = in_rows().to_csv(sep="\t", index=False)
LINES = TEXT.splitlines()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (TEXT[:-30], "line 11 has 4 fields, expected 7"),
        ("\n".join([*LINES[:4], LINES[4] + "\t5", *LINES[5:]]), "expected 7 fields in line 5, fou"),
        ("<!DOCTYPE html>\n<p>404</p>\n", "found a web page"),
        ('{"a": [1,\n 2]}\n', "found JSON"),
        ("RDX3\nX\n", "found data of R"),
        ("ab\0\tc\n1\t2\n", "found binary data"),
    ],
)
def test_files_that_are_no_tables(content, match, tmp_path):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.tsv.*{match}"):
        read_expression(tmp_path / "a.tsv", missing="median")


def test_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.tsv", TEXT)
        archive.writestr("__MACOSX/._a.tsv", b"\0\5")
    assert_allclose(read_expression(tmp_path / "a.zip").expression, LOG)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a.tsv")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT.encode()))
    with pytest.raises(ValueError, match=r"a\.tar\.gz.*found a tar archive. Extract it"):
        read_expression(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("\n", "\t\n"),  # a separator at the end of lines
        "\n".join([LINES[0], *(line + "\t" for line in LINES[1:])]) + "\n",
        in_rows().to_string(index=False),
        f'!Series_title\t"x"\n!series_matrix_table_begin\n{TEXT}!series_matrix_table_end\n',
        TEXT.replace("\n", "\r"),
        in_rows().to_csv(index=False, decimal=",", quoting=1),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_unusual_text(text, encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert_allclose(read_expression(tmp_path / "a.txt").expression, LOG)


def test_thousands(tmp_path):
    for name, marks in {"english": ",.", "german": ".,"}.items():
        table = in_rows(COUNTS * 1.25)
        table[TCGA] = table[TCGA].map(lambda x: f"{x:,.2f}".translate(str.maketrans(",.", marks)))  # noqa: B023
        table.to_csv(tmp_path / name, sep=";", index=False)
        assert_allclose(read_expression(tmp_path / name).expression, COUNTS * 1.25)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (COUNTS - 0.4, "not logged"),  # batches corrected, as in PanCanAtlas
        (np.log2(COUNTS / 100 + 0.001), "log"),
        (np.rint(COUNTS / 100), "counts"),
        (np.where(COUNTS == COUNTS.max(), 90, (LOG - LOG.mean(0)) / LOG.std(0)), "z-scores"),
    ],
)
def test_scale_of_unusual_values(values, scale, tmp_path):
    in_rows(values).to_csv(tmp_path / "a.csv", index=False)
    assert read_expression(tmp_path / "a.csv").scale == scale


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"column": "tpm_unstranded"}, "column='tpm_unstranded' is for GDC and Firehose"),
        ({"layer": "raw"}, "layer='raw' is for AnnData"),
        ({"aliases": {"p53": "TP53"}}, "gene_ids='as_is'. Pass gene_ids='symbol'"),
        ({"layout": "Firehose"}, "not laid out like that; its first column is 'gene'"),
        ({"layout": "GDC"}, "layout='GDC' is a folder"),
        ({"layout": "AnnData"}, "layout='AnnData' is an h5ad file"),
    ],
)
def test_options_that_do_not_apply(options, match, tmp_path):
    in_rows().to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=match):
        read_expression(tmp_path / "a.csv", **options)


def test_parquet_of_other_types(tmp_path):
    path = tmp_path / "a.parquet"
    frame(COUNTS).astype("Int64").to_parquet(path)
    assert_allclose(read_expression(path).expression, COUNTS)
    table = frame().set_index(pd.Index(["P1"] * 6, name="patient"), append=True)
    table.index.names = ["sample", "patient"]
    table.to_parquet(path)
    found = read_expression(path)
    assert found.expression.index.tolist() == TCGA
    assert found.patients.tolist() == ["P1"] * 6
    names_last().to_parquet(path)
    assert_allclose(read_expression(path).expression, LOG)
    table = frame()
    table.columns = pd.MultiIndex.from_arrays([SYMBOLS, ENSEMBL])
    table.to_parquet(path)
    with pytest.raises(ValueError, match=r"a\.parquet.*2 levels of names, expected one"):
        read_expression(path)
