"""Layouts in which expression is downloaded, each against values that are known."""

# SPDX-License-Identifier: BSD-3-Clause

import bz2
import gzip
import json
import lzma
import zipfile

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_pk.io import read_expression

SYMBOLS = ["TSPAN6", "C1orf112", "TP53", "ESR1", "CD99", "HLA-A", "Y_RNA", "AC012345.1"]
ENSEMBL = [f"ENSG{number:011d}.{number % 7 + 1}" for number in range(3, 10)]
ENSEMBL += ["ENSG00000002586.20_PAR_Y"]
ENTREZ = [7105, 55732, 7157, 2099, 4267, 3105, 6084, 101]
ALIQUOTS = [f"TCGA-{site}-01A-11R-A41B-07" for site in ("3C-AAAU", "3C-AALI", "A7-A0DB", "BH-A0HP")]
ALIQUOTS += ["TCGA-BH-A0HP-11A-31R-A115-07"]
PATIENTS = [name[:12] for name in ALIQUOTS[:4]] + ["TCGA-E2-A15K"]
UUIDS = [f"{number:08x}-0a0b-4c4d-8e8f-{number:012x}" for number in (11, 298, 3000, 70001, 9)]
CPTAC = ["C3L-00001", "C3N-00217", "11BR047", "01OV007", "C3L-01834"]
GTEX = [f"GTEX-{name}-0226-SM-5GZZ7" for name in ("1117F", "111CU", "111FC", "111VG", "1122O")]
RNG = np.random.default_rng(0)
COUNTS = RNG.negative_binomial(1, 0.001, size=(5, 8)).astype(float)  # samples x genes
LOG = np.round(np.log2(COUNTS + 1), 4)


def frame(values=LOG, samples=ALIQUOTS, genes=SYMBOLS):
    return pd.DataFrame(values, index=list(samples), columns=list(genes))


def genes_in_rows(values=LOG, samples=ALIQUOTS, genes=SYMBOLS, label="", **notes):
    table = frame(values, samples, genes).T.rename_axis(label).reset_index()
    for at, (name, column) in enumerate(notes.items(), 1):
        table.insert(at, name, column)
    return table


def save(table, path, sep="\t", head="", **options):
    text = head + table.to_csv(sep=sep, index=False, **options)
    path.write_bytes(text.encode("utf-8"))
    return path


def xena(path):
    return save(genes_in_rows(samples=[n[:15] for n in ALIQUOTS], label="sample"), path / "HiSeqV2")


def xena_hub(path):
    table = genes_in_rows(samples=[n[:16] for n in ALIQUOTS], genes=ENSEMBL, label="Ensembl_ID")
    (path / "TCGA.star_tpm.tsv.gz").write_bytes(
        gzip.compress(table.to_csv(sep="\t", index=False).encode())
    )
    return path / "TCGA.star_tpm.tsv.gz"


def cbioportal(path):
    table = genes_in_rows(COUNTS, [n[:15] for n in ALIQUOTS], label="Hugo_Symbol")
    table.insert(1, "Entrez_Gene_Id", ENTREZ)
    table.loc[1, "Hugo_Symbol"] = ""
    return save(table, path / "data_mrna_seq_v2_rsem.txt")


def firehose(path):
    genes = [f"{symbol}|{number}" for symbol, number in zip(SYMBOLS, ENTREZ, strict=True)]
    genes[1] = f"?|{ENTREZ[1]}"
    table = genes_in_rows(COUNTS, genes=genes, label="gene_id")
    lines = table.to_csv(sep="\t", index=False).splitlines(keepends=True)
    head = "\t".join(["Hybridization REF", *ALIQUOTS]) + "\n"
    lines[0] = "\t".join(["gene_id", *["normalized_count"] * 5]) + "\n"
    (path / "BRCA.RSEM_genes_normalized.data.txt").write_text(head + "".join(lines))
    return path / "BRCA.RSEM_genes_normalized.data.txt"


def firehose_of_three(path):
    lines = ["\t".join(["Hybridization REF", *np.repeat(ALIQUOTS, 3)])]
    lines += ["\t".join(["gene_id", *["raw_count", "scaled_estimate", "transcript_id"] * 5])]
    for gene, number, row in zip(SYMBOLS, ENTREZ, COUNTS.T, strict=True):
        cells = [cell for value in row for cell in (f"{value}", f"{value * 1e-9}", "uc010.1,uc011")]
        lines += ["\t".join([f"{gene}|{number}", *cells])]
    (path / "BRCA.RSEM_genes.data.txt").write_text("\n".join(lines) + "\n")
    return path / "BRCA.RSEM_genes.data.txt"


def pancanatlas(path):
    genes = [f"{symbol}|{number}" for symbol, number in zip(SYMBOLS, ENTREZ, strict=True)]
    return save(genes_in_rows(COUNTS, genes=genes, label="gene_id"), path / "EBPlusPlus.tsv")


def linkedomics(path):
    samples = [name.replace("-", ".") for name in PATIENTS]
    return save(genes_in_rows(samples=samples, label="attrib_name"), path / "Human__TCGA.cct")


def cptac(path):
    samples = [
        f"{name.replace('-', '.')}.N" if at == 1 else name.replace("-", ".")
        for at, name in enumerate(CPTAC)
    ]
    samples = [f"X{name}" if name[0].isdigit() else name for name in samples]
    return save(genes_in_rows(samples=samples, label="idx"), path / "Human__CPTAC.cct")


def gtex(path):
    table = genes_in_rows(COUNTS, GTEX, ENSEMBL, label="Name", Description=SYMBOLS)
    return save(table, path / "gtex_without_its_ending.tsv", head="#1.2\n8\t5\n")


def gct_of_version_3(path):
    table = genes_in_rows(COUNTS, GTEX, ENSEMBL, label="id", Description=SYMBOLS).astype(object)
    notes = pd.DataFrame([["tissue", "na", *["breast"] * 5]], columns=table.columns)
    return save(pd.concat([notes, table]), path / "a.gct", head="#1.3\n8\t5\t1\t1\n")


def recount3(path):
    head = "##annotation=G026\n##date.generated=2021-01-01\n"
    table = genes_in_rows(COUNTS, UUIDS, ENSEMBL, label="gene_id")
    (path / "tcga.gene_sums.gz").write_bytes(
        gzip.compress((head + table.to_csv(sep="\t", index=False)).encode())
    )
    return path / "tcga.gene_sums.gz"


def r_write_csv(path):
    samples = [name.replace("-", ".") for name in ALIQUOTS]
    return save(genes_in_rows(samples=samples), path / "matrix.csv", sep=",", quoting=2)


def r_write_table(path):
    table = frame().T
    text = table.to_csv(sep=" ", index_label=False, quoting=2)
    (path / "matrix.txt").write_text(text)
    return path / "matrix.txt"


def r_uuids(path):
    samples = [f"X{name.replace('-', '.')}" for name in UUIDS]
    return save(genes_in_rows(samples=samples), path / "matrix.csv", sep=",")


def depmap(path):
    genes = [f"{symbol} ({number})" for symbol, number in zip(SYMBOLS, ENTREZ, strict=True)]
    table = frame(samples=[f"ACH-{number:06d}" for number in range(5)], genes=genes)
    table.to_csv(path / "OmicsExpression.csv")
    return path / "OmicsExpression.csv"


def german_csv(path):
    return save(genes_in_rows(), path / "deg.csv", sep=";", decimal=",")


def decimal_commas_and_tabs(path):
    return save(genes_in_rows(), path / "deg.txt", decimal=",")


def utf16(path):
    text = genes_in_rows().to_csv(sep="\t", index=False)
    (path / "unicode.txt").write_bytes(text.encode("utf-16"))
    return path / "unicode.txt"


def byte_order_mark(path):
    text = genes_in_rows(label="gene").to_csv(index=False)
    (path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return path / "bom.csv"


def xz_without_ending(path):
    (path / "data").write_bytes(lzma.compress(genes_in_rows().to_csv(index=False).encode()))
    return path / "data"


def zipped(path):
    with zipfile.ZipFile(path / "data.zip", "w") as archive:
        archive.writestr("inside.tsv", genes_in_rows().to_csv(sep="\t", index=False))
    return path / "data.zip"


def bzipped(path):
    (path / "d.tsv.bz2").write_bytes(bz2.compress(genes_in_rows().to_csv(index=False).encode()))
    return path / "d.tsv.bz2"


def parquet_of_genes(path):
    frame(genes=ENSEMBL).T.rename_axis("gene_id").to_parquet(path / "a.parquet")
    return path / "a.parquet"


def parquet_with_metadata(path):
    table = frame().reset_index(drop=True)
    table.insert(0, "Case ID", [name[:12] for name in ALIQUOTS])
    table.insert(1, "age", 61.5)
    table["OS.time"] = [300, 20, 1000, 5, 5]
    table.insert(0, "sample", ALIQUOTS)
    table.to_parquet(path / "b.parquet")
    return path / "b.parquet"


def feather(path):
    genes_in_rows(label="gene").to_feather(path / "a.feather")
    return path / "a.feather"


def annotated(path):
    notes = {"gene_type": "protein_coding", "length": range(1000, 9000, 1000), "Chromosome": "1"}
    return save(genes_in_rows(label="gene_name", **notes), path / "annotated.tsv")


def numbered_rows(path):
    genes_in_rows(label="Gene").to_csv(path / "numbered.csv")  # with row numbers
    return path / "numbered.csv"


def entrez_rows(path):
    return save(genes_in_rows(genes=map(str, ENTREZ), label="Entrez"), path / "entrez.tsv")


SHORT15, SHORT16 = ([name[:n] for name in ALIQUOTS] for n in (15, 16))
WITHOUT_SYMBOL = [SYMBOLS[0], "55732", *SYMBOLS[2:]]
CPTAC_NAMES = [f"{name}.N" if at == 1 else name for at, name in enumerate(CPTAC)]
CASES = {
    xena: ("Xena", "rows", LOG, SHORT15, SYMBOLS),
    xena_hub: ("Xena", "rows", LOG, SHORT16, ENSEMBL),
    cbioportal: ("cBioPortal", "rows", COUNTS, SHORT15, WITHOUT_SYMBOL),
    firehose: ("Firehose", "rows", COUNTS, ALIQUOTS, WITHOUT_SYMBOL),
    firehose_of_three: ("Firehose", "rows", COUNTS, ALIQUOTS, SYMBOLS),
    pancanatlas: ("PanCanAtlas", "rows", COUNTS, ALIQUOTS, SYMBOLS),
    linkedomics: ("LinkedOmics", "rows", LOG, PATIENTS, SYMBOLS),
    cptac: ("CPTAC", "rows", LOG, CPTAC_NAMES, SYMBOLS),
    gtex: ("GCT", "rows", COUNTS, GTEX, ENSEMBL),
    gct_of_version_3: ("GCT", "rows", COUNTS, GTEX, ENSEMBL),
    recount3: ("recount3", "rows", COUNTS, UUIDS, ENSEMBL),
    r_write_csv: ("R", "rows", LOG, ALIQUOTS, SYMBOLS),
    r_write_table: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    r_uuids: ("R", "rows", LOG, UUIDS, SYMBOLS),
    depmap: ("DepMap", "columns", LOG, [f"ACH-{n:06d}" for n in range(5)], SYMBOLS),
    german_csv: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    decimal_commas_and_tabs: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    utf16: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    byte_order_mark: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    xz_without_ending: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    zipped: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    bzipped: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    parquet_of_genes: ("table", "rows", LOG, ALIQUOTS, ENSEMBL),
    parquet_with_metadata: ("table", "columns", LOG, ALIQUOTS, SYMBOLS),
    feather: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    annotated: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    numbered_rows: ("table", "rows", LOG, ALIQUOTS, SYMBOLS),
    entrez_rows: ("table", "rows", LOG, ALIQUOTS, [str(number) for number in ENTREZ]),
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_layouts(make, tmp_path):
    layout, genes_in, values, samples, genes = CASES[make]
    table = read_expression(make(tmp_path))
    assert (table.layout, table.genes_in) == (layout, genes_in)
    assert table.expression.index.tolist() == list(samples)
    assert table.expression.columns.tolist() == list(genes)
    assert_allclose(table.expression, values, rtol=1e-6)
    assert table.genes.index.tolist() == list(genes)


def test_other_values_of_firehose(tmp_path):
    path = firehose_of_three(tmp_path)
    assert_allclose(read_expression(path, column="scaled_estimate").expression, COUNTS * 1e-9)
    with pytest.raises(ValueError, match="column='tpm' is not one of .*raw_count"):
        read_expression(path, column="tpm")


def gdc(folder, n=5):
    rows = []
    for at in range(n):
        name = f"{UUIDS[at]}.rna_seq.augmented_star_gene_counts.tsv"
        lines = [
            "# gene-model: GENCODE v36",
            "gene_id\tgene_name\tgene_type\tunstranded\t"
            "stranded_first\tstranded_second\ttpm_unstranded\tfpkm_unstranded\tfpkm_uq_unstranded",
        ]
        for what in ("unmapped", "multimapping", "noFeature", "ambiguous"):
            lines += [f"N_{what}\t\t\t5\t5\t5\t\t\t"]
        for gene, symbol, value in zip(ENSEMBL, SYMBOLS, COUNTS[at], strict=True):
            cells = [value, value // 2, value // 2, value / 4, value / 8, value / 16]
            lines += [f"{gene}\t{symbol}\tlncRNA\t" + "\t".join(map(str, cells))]
        (folder / UUIDS[at]).mkdir(parents=True)
        content = ("\n".join(lines) + "\n").encode()
        if at == 1:
            name, content = f"{name}.gz", gzip.compress(content)
        (folder / UUIDS[at] / name).write_bytes(content)
        kind = "Solid Tissue Normal" if "-11A" in ALIQUOTS[at] else "Primary Tumor"
        rows.append([UUIDS[at], name, ALIQUOTS[at][:12], ALIQUOTS[at][:16], kind])
    columns = ["File ID", "File Name", "Case ID", "Sample ID", "Sample Type"]
    sheet = pd.DataFrame(rows, columns=columns)
    sheet.to_csv(folder / "gdc_sample_sheet.tsv", sep="\t", index=False)
    return sheet


def test_gdc(tmp_path):
    gdc(tmp_path)
    table = read_expression(tmp_path)
    assert_allclose(table.expression, COUNTS / 4)
    assert table.expression.index.tolist() == SHORT16
    assert table.expression.columns.tolist() == ENSEMBL
    assert table.genes["symbol"].tolist() == SYMBOLS
    assert table.genes["gene_type"].tolist() == ["lncRNA"] * 8
    assert table.samples["type"].tolist()[-1] == "Solid Tissue Normal"
    assert table.patients.tolist() == [name[:12] for name in ALIQUOTS]
    assert table.audit.set_index("what").loc["rows of counters left out", "n"] == 4
    assert_array_equal(read_expression(tmp_path, column="unstranded").expression, COUNTS)
    by_symbol = read_expression(tmp_path, gene_ids="symbol")
    assert by_symbol.expression.columns.tolist() == SYMBOLS[:-1]  # without the _PAR_Y copy
    by_id = read_expression(tmp_path, gene_ids="ensembl").expression.columns
    assert by_id.tolist() == [name.partition(".")[0] for name in ENSEMBL[:-1]]
    with pytest.raises(ValueError, match=r"column 'tpm' \(one of unstranded"):
        read_expression(tmp_path, column="tpm")


def test_gdc_with_metadata_and_without(tmp_path):
    sheet = gdc(tmp_path)
    (tmp_path / "gdc_sample_sheet.tsv").unlink()
    with pytest.raises(ValueError, match="found no sample sheet.*metadata.*manifest does not name"):
        read_expression(tmp_path)
    entries = [
        {"file_name": name, "associated_entities": [{"entity_submitter_id": aliquot}]}
        for name, aliquot in zip(sheet["File Name"], ALIQUOTS, strict=True)
    ]
    entries.append({"file_name": "absent.star_gene_counts.tsv", "associated_entities": []})
    (tmp_path / "metadata.cart.json").write_text(json.dumps(entries))
    table = read_expression(tmp_path)
    assert table.expression.index.tolist() == ALIQUOTS
    assert table.audit["what"].tolist()[0] == "files of the sheet that are not there"
    other = next(tmp_path.rglob(f"{UUIDS[2]}*.tsv"))
    other.write_text(other.read_text().replace(ENSEMBL[0], "ENSG00000999999.1"))
    with pytest.raises(ValueError, match="has other genes, or another order"):
        read_expression(tmp_path)


def test_gdc_with_faults(tmp_path):
    sheet = gdc(tmp_path)
    files = [next(tmp_path.rglob(name)) for name in sheet["File Name"]]
    for options, match in (({"genes_in": "columns"}, "genes in rows"), ({"layer": "X"}, "AnnData")):
        with pytest.raises(ValueError, match=match):
            read_expression(tmp_path, **options)
    with pytest.raises(ValueError, match="expected several samples, found one.*Pass the folder"):
        read_expression(files[0])
    text = files[2].read_text()
    for changed in (text[:-30], text.replace(f"{COUNTS[2, 0] / 4}", "n.d."), text + "more"):
        files[2].write_text(changed)
        with pytest.raises(ValueError, match=rf"{UUIDS[2]}.*cannot be read as STAR counts"):
            read_expression(tmp_path)
    files[2].write_text(text)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / files[2].name).write_text(text.replace(str(COUNTS[2, 0] / 4), "1"))
    assert_allclose(read_expression(tmp_path).expression, COUNTS / 4)  # of the folder of its id
    sheet.loc[0, "Sample ID"] += ", TCGA-XX-0000-01A"
    sheet = sheet.rename(columns={"Sample Type": "Tissue Type"})
    (tmp_path / "gdc_sample_sheet.tsv").unlink()
    sheet.to_csv(tmp_path / "samples.csv", index=False)
    table = read_expression(tmp_path)
    assert table.expression.index.tolist() == SHORT16[1:]
    assert "type" in table.samples
    assert table.audit["what"].iloc[0] == "files of several samples, left out"


def test_orientation_is_decided_by_majority(tmp_path):
    genes = [*SYMBOLS[:6], "novel_1", "novel_2"]
    samples = [*ALIQUOTS[:4], "control"]
    for name, table in {
        "rows": genes_in_rows(samples=samples, genes=genes),
        "columns": frame(samples=samples, genes=genes).reset_index(names=""),
    }.items():
        with pytest.warns(UserWarning, match="columns are not named like the other"):
            found = read_expression(save(table, tmp_path / f"{name}.tsv"))
        assert found.genes_in == name
        assert "TP53" in found.expression.columns
    unknown = frame(LOG[:, :3], ["p1", "p2", "p3", "p4", "p5"], ["f1", "f2", "f3"])
    unknown.to_csv(tmp_path / "unknown.csv")
    with pytest.raises(ValueError, match="cannot be decided whether genes are in rows.*genes_in="):
        read_expression(tmp_path / "unknown.csv")
    assert read_expression(tmp_path / "unknown.csv", genes_in="rows").expression.shape == (3, 5)


def test_repeated_genes(tmp_path):
    genes = [*SYMBOLS[:6], "TP53", "TP53"]
    path = save(genes_in_rows(genes=genes), tmp_path / "a.tsv")
    with pytest.raises(ValueError, match="1 genes have repeated names: 'TP53'.*duplicates='mean'"):
        read_expression(path)
    same = [2, 6, 7]
    mean = read_expression(path, duplicates="mean")
    assert_allclose(mean.expression["TP53"], LOG[:, same].mean(axis=1))
    best = same[LOG[:, same].mean(axis=0).argmax()]
    assert_array_equal(
        read_expression(path, duplicates="max_mean").expression["TP53"], LOG[:, best]
    )
    assert_array_equal(read_expression(path, duplicates="first").expression["TP53"], LOG[:, 2])
    assert mean.expression.columns.tolist() == SYMBOLS[:6]
    assert mean.audit.iloc[-1, :2].tolist() == ["genes with repeated names, duplicates='mean'", 1]


def test_missing_values(tmp_path):
    values = LOG.copy()
    values[1, 2] = np.nan
    values[:, 4] = np.nan
    path = save(genes_in_rows(values), tmp_path / "a.tsv", na_rep="NA")
    with pytest.raises(
        ValueError, match="contains NaN.*'TP53', 'CD99'.*Choose missing='drop_genes'"
    ):
        read_expression(path)
    genes = read_expression(path, missing="drop_genes").expression
    assert genes.columns.tolist() == [*SYMBOLS[:2], SYMBOLS[3], *SYMBOLS[5:]]
    samples = read_expression(path, missing="drop_samples").expression
    assert samples.index.tolist() == [ALIQUOTS[0], *ALIQUOTS[2:]]
    assert "CD99" not in samples
    filled = read_expression(path, missing="median")
    assert filled.expression.loc[ALIQUOTS[1], "TP53"] == np.median(values[[0, 2, 3, 4], 2])
    assert "CD99" not in filled.expression
    assert len(filled.audit) == 2


def test_vials(tmp_path):
    samples = [*ALIQUOTS[:4], "TCGA-3C-AAAU-01C-02R-A277-07"]
    path = save(genes_in_rows(samples=samples), tmp_path / "a.tsv")
    with pytest.raises(ValueError, match="1 samples are further vials.*A277.*vials='first'"):
        read_expression(path)
    assert read_expression(path, vials="first").expression.index.tolist() == samples[:4]
    mean = read_expression(path, vials="mean").expression
    assert_allclose(mean.iloc[0], (LOG[0] + LOG[4]) / 2)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (COUNTS, "counts"),
        (COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e6, "TPM"),
        (COUNTS / 7, "not logged"),
        (LOG, "log"),
        ((LOG - LOG.mean(axis=0)) / LOG.std(axis=0), "z-scores"),
        (LOG - LOG.mean(), "log"),
    ],
)
def test_scale(values, scale, tmp_path):
    path = save(genes_in_rows(values), tmp_path / "a.tsv")
    assert read_expression(path).scale == scale
    if scale in ("counts", "TPM", "not logged"):
        table = read_expression(path, transform="log2p1")
        assert_allclose(table.expression, np.log2(values + 1))
        assert table.scale == "log"
    else:
        with pytest.raises(ValueError, match=f"look like {scale}"):
            read_expression(path, transform="log2p1")


def test_symbols_that_excel_made_dates(tmp_path):
    path = save(genes_in_rows(genes=["1-Mar", "2-Sep", *SYMBOLS[:6]]), tmp_path / "a.tsv")
    with pytest.warns(UserWarning, match="2 genes are named as dates: '1-Mar', '2-Sep'"):
        read_expression(path)


def test_symbols_of_other_identifiers(tmp_path):
    path = xena_hub(tmp_path)
    with pytest.raises(ValueError, match="gene_ids=.symbol., but the file has no.*aliases="):
        read_expression(path, gene_ids="symbol")
    aliases = {
        name.partition(".")[0]: symbol for name, symbol in zip(ENSEMBL, SYMBOLS, strict=True)
    }
    table = read_expression(path, gene_ids="symbol", aliases=aliases)
    assert table.expression.columns.tolist() == SYMBOLS[:-1]
    assert "_PAR_Y" in table.audit["what"].iloc[0]
    old = save(genes_in_rows(genes=["P53", *SYMBOLS[:7]], label="gene"), tmp_path / "old.tsv")
    renamed = read_expression(old, gene_ids="symbol", aliases={"P53": "TP53X"})
    assert renamed.expression.columns[0] == "TP53X"
    assert renamed.audit["what"].tolist() == ["symbols renamed by aliases"]
    notes = {"Description": [f"protein {number} of many" for number in range(8)]}
    save(genes_in_rows(genes=ENSEMBL, label="gene", **notes), old)
    with pytest.raises(ValueError, match="the file has no such identifiers"):
        read_expression(old, gene_ids="symbol")


def test_layout_can_be_given(tmp_path):
    path = xena(tmp_path)
    assert read_expression(path, layout="table").layout == "table"
    with pytest.raises(ValueError, match="'layout' parameter"):
        read_expression(path, layout="xena")
