"""Readers of tables of features and expression."""

# SPDX-License-Identifier: BSD-3-Clause

import bz2
import gzip
import io
import lzma
import sys
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sklearn_pk.io import _tables, match_samples, read_expression, read_table

try:
    import anndata
except ImportError:
    anndata = None

needs_anndata = pytest.mark.skipif(
    anndata is None, reason="anndata, an extra, does not go with the pandas that is installed"
)


@pytest.fixture
def frame():
    values = np.random.default_rng(0).normal(size=(4, 3)).round(3)
    return pd.DataFrame(values, index=pd.Index(list("wxyz"), name="slide"), columns=["A", "B", "C"])


def write(frame, path):
    kind = path.name.partition(".")[2]
    if kind.startswith(("csv", "tsv", "txt")):
        frame.to_csv(path, sep="," if kind.startswith("csv") else "\t")
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        names = {"samples": frame.index.to_numpy(str), "genes": frame.columns.to_numpy(str)}
        np.savez(path, values=frame.to_numpy(), **names)
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "csv.xz", "tsv", "txt.bz2", "parquet", "npz"])
def test_wide_tables(frame, tmp_path, kind):
    path = write(frame, tmp_path / f"table.{kind}")
    table = read_expression(path)
    pd.testing.assert_frame_equal(
        table.expression, frame, check_names=False, check_index_type=False, check_column_type=False
    )
    assert table.patients is None
    assert table.path == str(path)
    pd.testing.assert_frame_equal(
        read_table(path), frame, check_names=False, check_index_type=False, check_column_type=False
    )


def test_reference_table_of_sequoia(frame, tmp_path):
    reference = frame.add_prefix("rna_").reset_index(names="wsi_file_name")
    reference.insert(0, "patient_id", ["P1", "P1", "P2", "P3"])
    reference["tcga_project"] = "TCGA-BRCA"
    for name in ("reference.csv", "reference.parquet"):
        path = tmp_path / name
        reference.to_csv(path) if name.endswith("csv") else reference.to_parquet(path)
        table = read_expression(path)
        assert table.expression.columns.tolist() == ["A", "B", "C"]
        np.testing.assert_allclose(table.expression, frame)
        assert table.expression.index.tolist() == list("wxyz")
        assert table.patients.to_dict() == {"w": "P1", "x": "P1", "y": "P2", "z": "P3"}


@needs_anndata
def test_anndata_with_sparse_values_and_patients(frame, tmp_path):
    values = sparse.csr_matrix(np.maximum(frame.to_numpy(), 0))
    obs = pd.DataFrame({"patient_id": ["P1", "P1", "P2", "P3"]}, index=frame.index)
    path = tmp_path / "table.h5ad"
    anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=frame.columns)).write_h5ad(path)
    table = read_expression(path)
    np.testing.assert_allclose(table.expression, values.toarray())
    assert table.patients.tolist() == ["P1", "P1", "P2", "P3"]
    assert read_table(path).columns.tolist() == ["A", "B", "C"]


@needs_anndata
def test_anndata_in_either_orientation(tmp_path):
    genes, samples = ["TP53", "ESR1", "ERBB2"], ["p1", "p2"]
    values = np.array([[1.5, 2.0, 3.0], [4.0, 5.0, 6.5]])
    ensembl = [f"ENSG{number:011d}" for number in range(3)]
    for index, var in (
        (genes, {"gene_ids": ensembl}),
        (ensembl, {"feature_name": genes}),
        (["0", "1", "2"], {"gene_name": genes}),
    ):
        table = anndata.AnnData(
            values, pd.DataFrame({"barcode": samples}, ["0", "1"]), pd.DataFrame(var, index)
        )
        for number, each in enumerate((table, table.T.copy())):
            path = tmp_path / f"{number}"  # known by its content
            each.write_h5ad(path)
            options = {"gene_ids": "symbol"} if index == ensembl else {}
            if number and index[0] == "0":
                continue  # nothing shows the axis of numbered genes
            found = read_expression(path, **options)
            assert found.layout == "AnnData"
            assert found.genes_in == ("rows" if number else "columns")
            assert found.expression.index.tolist() == samples
            assert found.expression.columns.tolist() == genes
            np.testing.assert_allclose(found.expression, values)
    table = table[:, :2].copy()
    table.var_names, table.obs_names = ["TCGA-3C-AAAU-01", "TCGA-3C-AALI-01"], ensembl[:2]
    table.write_h5ad(path)
    with pytest.raises(ValueError, match="genes_in='columns', but genes seem to be in rows"):
        read_expression(path, genes_in="columns")


@needs_anndata
def test_anndata_without_values_or_names(tmp_path):
    path = tmp_path / "a.h5ad"
    obs, var = pd.DataFrame(index=["p1", "p2"]), pd.DataFrame(index=["TP53", "ESR1"])
    table = anndata.AnnData(np.zeros((2, 2)), obs, var)
    table.layers["log"] = np.ones((2, 2))
    table.write_h5ad(path)
    with pytest.raises(ValueError, match=r"X has zeros only. Choose layer= of \['log'\]"):
        read_expression(path)
    assert (read_expression(path, layer="log").expression == 1).all(axis=None)
    with pytest.raises(ValueError, match="no layer 'raw'|has no raw"):
        read_expression(path, layer="raw")
    anndata.AnnData(None, obs, var).write_h5ad(path)
    with pytest.raises(ValueError, match="X is empty. It has no layers and no raw"):
        read_expression(path)
    numbered = pd.DataFrame(index=["0", "1", "2"])
    anndata.AnnData(np.ones((2, 3)), obs, numbered).write_h5ad(path)
    with pytest.raises(ValueError, match="genes have no names, only numbers"):
        read_expression(path)


def test_anndata_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "table.h5ad"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ImportError, match=r"table.h5ad.*pip install 'sklearn_pk\[anndata\]'"):
        read_expression(path)


def test_genes_in_rows(frame, tmp_path):
    barcodes = [f"TCGA-3C-AAL{letter}-01A" for letter in "IJKL"]
    turned = frame.set_axis(barcodes).T
    path = write(turned, tmp_path / "table.csv")
    table = read_expression(path, genes_in="rows")
    assert table.expression.index.tolist() == barcodes
    np.testing.assert_allclose(table.expression, frame)
    assert read_expression(path).expression.equals(table.expression)
    with pytest.raises(ValueError, match="genes seem to be in rows.*Use genes_in='rows'"):
        read_expression(path, genes_in="columns")
    reference = frame.add_prefix("rna_").assign(patient_id="P")
    with pytest.raises(ValueError, match="rows are samples. Use genes_in='columns'"):
        read_expression(write(reference, tmp_path / "reference.csv"), genes_in="rows")
    with pytest.raises(ValueError, match="'genes_in' parameter"):
        read_expression(path, genes_in="neither")


def test_parquet_written_without_its_index(frame, tmp_path):
    path = tmp_path / "table.parquet"
    frame.reset_index().to_parquet(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), frame, check_index_type=False)
    frame.to_parquet(path, index=False)
    with pytest.raises(ValueError, match="table.parquet.*its rows have no names"):
        read_table(path)


def test_names_are_strings(frame, tmp_path):
    names = ["001", "12", "NA", "1e3"]
    path = write(frame.set_axis(names), tmp_path / "table.csv")
    assert read_expression(path, genes_in="columns").expression.index.tolist() == names
    assert read_table(path).index.tolist() == names
    reference = frame.add_prefix("rna_").assign(patient_id=["01", "01", "NA", ""])
    reference.set_axis(names).to_csv(tmp_path / "reference.csv", index_label="wsi_file_name")
    table = read_expression(tmp_path / "reference.csv")
    assert table.expression.index.tolist() == names
    assert table.patients.tolist()[:3] == ["01", "01", "NA"]
    with pytest.raises(ValueError, match="1 rows of expression have no patient: '1e3'"):
        match_samples(["001.svs"], table.expression, patients=table.patients)


def test_table_written_by_r(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("A\tB\nx\t1.5\t2\ny\t3\t4\n")
    table = read_table(path)
    assert table.index.tolist() == ["x", "y"]
    assert table.to_numpy().tolist() == [[1.5, 2.0], [3.0, 4.0]]


def test_names_in_square_npz(tmp_path):
    path = tmp_path / "table.npz"
    np.savez(path, values=np.eye(2), gene=np.array(["A", "B"]), sample=np.array(["x", "y"]))
    table = read_table(path)
    assert table.index.tolist() == ["x", "y"]
    assert table.columns.tolist() == ["A", "B"]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"values": np.ones((2, 3))}, "its rows have no names"),
        ({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, "expected one array with two dimensions"),
        ({"a": np.ones(2)}, "found none in"),
        (
            {"values": np.ones((2, 3)), "samples": np.array(["x", "y"], dtype=object)},
            "'samples' holds Python objects, which could run code.*samples.astype",
        ),
    ],
)
def test_invalid_npz(tmp_path, arrays, match):
    path = tmp_path / "table.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"table.npz.*{match}"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", b"nothing but one line\n", "expected a table of samples x columns"),
        ("a.csv", b"", "expected a table.*found 0 lines"),
        ("a.csv", b"name,A\nx,1\nx,2\n", "1 rows have repeated names: 'x'"),
        ("a.csv", b"name,A,B,A\nx,1,2,3\n", "1 (columns|genes) have repeated names: 'A'"),
        (
            "a.csv",
            b"one line of text\nand another\n",
            "expected a table.*separated by tabs, commas",
        ),
        ("a.csv", b"name,A\nx,1\ny,\n", "NaN.*'A'.*'y'"),
        ("a.csv.gz", b"\x1f\x8bno gzip", "cannot be read as text"),
        ("a.npz", b"no zip", "a.npz. cannot be read as .npz"),
        ("a.parquet", b"no parquet", "cannot be read as .parquet"),
        pytest.param("a.h5ad", b"no hdf5", "cannot be read as .h5ad", marks=needs_anndata),
        ("a.xlsx", b"", "cannot be read as .xlsx: it is not such a file"),
        ("noending", b"\0\1\2", "noending"),
    ],
)
def test_invalid_files(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_table, partial(read_expression, genes_in="columns")):
        with pytest.raises(ValueError, match=match):
            read(path)


def test_missing_file_and_text_column(frame, tmp_path):
    with pytest.raises(FileNotFoundError, match="File not found: '.*missing.csv'"):
        read_table(tmp_path / "missing.csv")
    path = write(frame.assign(stage="II"), tmp_path / "table.csv")
    with pytest.raises(TypeError, match="not numeric: 'stage'"):
        read_table(path)
    table = read_expression(path)  # a column of text annotates samples
    assert table.expression.columns.tolist() == ["A", "B", "C"]
    assert table.samples["stage"].tolist() == ["II"] * 4


def compress(name, text, n_times):
    """Compress a repeated text; of most formats as repeated streams, which is fast."""
    if name.endswith("zip"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("table.csv", text * n_times)
        return file.getvalue()
    return {"gz": gzip, "bz2": bz2, "xz": lzma}[name.rpartition(".")[2]].compress(text) * n_times


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.bz2", "a.csv.xz", "a.csv.zip"])
def test_decompression_bombs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_tables, "_MIN_LIMIT", 4 << 20)
    path = tmp_path / name
    path.write_bytes(compress(name, b"1,2\n" * (1 << 18), 24))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}.*decompresses to more than 4 MiB"):
        read_table(path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_compressed_tables_of_zeros(tmp_path):
    path = tmp_path / "zeros.csv.gz"
    pd.DataFrame(np.zeros((300, 200)), index=[f"s{n}" for n in range(300)]).to_csv(path)
    assert read_table(path).shape == (300, 200)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_too_many_columns(name, separator, tmp_path):
    path = tmp_path / name
    path.write_text("x" + f"{separator}1" * 1_000_000)
    with pytest.raises(ValueError, match=rf"{name}.*more than 1,000,000 columns"):
        read_table(path)


def write_npy(shape, descr="<f8", content=b""):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (write_npy((1 << 20, 1 << 12)), "'values' of shape .* is incomplete"),
        (write_npy((1 << 50, 1 << 50)), "is incomplete"),
        (write_npy((2, 2), content=bytes(8)), "cannot be read as .npz"),
        (write_npy((40, 1 << 20), "|u1", bytes(40 << 20)), "decompresses to more than 32 MiB"),
        (b"no array", "cannot be read as .npz"),
        (b"\x93NUMPY\x01\0\x05\0(((((", "cannot be read as .npz"),  # raises in tokenize
    ],
)
def test_npz_with_wrong_header(content, text, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("values.npy", content)
    with pytest.raises(ValueError, match=rf"a\.npz.*{text}"):
        read_table(path)


def test_parquet_with_invalid_text(frame, tmp_path):
    path = tmp_path / "a.parquet"
    frame.index = [f"TCGA-AA-{number:04}" for number in range(4)]
    frame.rename_axis("slide").to_parquet(path, compression=None, use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"TCGA-AA-0001", b"TCGA-AA\xff\xfe\xff\xff1"))
    with pytest.raises(ValueError, match=r"a\.parquet"):
        read_table(path)


@pytest.mark.parametrize("code", [0xFFFFFFFF, 0x110000, 0xD800])
@pytest.mark.parametrize("order", "<>")
def test_npz_with_invalid_characters(tmp_path, code, order):
    path = tmp_path / "a.npz"
    names = np.frombuffer(np.array([65, code], dtype=f"{order}u4").tobytes(), dtype=f"{order}U1")
    np.savez(path, values=np.ones((2, 2)), samples=names)
    with pytest.raises(ValueError, match=r"a\.npz.* cannot be read as \.npz"):
        read_table(path)


def test_text_far_below_the_header(tmp_path):
    path = tmp_path / "a.tsv"
    lines = [f"gene{n}\t{n}\t\t{n / 2}" for n in range(200)]
    lines[150] = "gene150\t#REF!\t\t1"
    path.write_text("gene\tTCGA-AA-0001\tnote\tTCGA-AA-0002\n" + "\n".join(lines) + "\n")
    with pytest.raises(TypeError, match="got '#REF!' in column 'TCGA-AA-0001' and row 'gene150'"):
        read_expression(path)
    lines[150] = "gene150\t7\tdoubtful\t1"
    path.write_text("gene\tTCGA-AA-0001\tnote\tTCGA-AA-0002\n" + "\n".join(lines) + "\n")
    table = read_expression(path)
    assert table.expression.index.tolist() == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert table.genes["note"].tolist()[150] == "doubtful"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_wide_table_is_read_by_rows(tmp_path, monkeypatch, encoding):
    columns = [f"ENSG{number:011d}" for number in range(30)]
    values = np.random.default_rng(0).normal(size=(5, 30)).round(3)
    values[2, 4] = np.nan
    table = pd.DataFrame(values, [f"TCGA-AA-{n:04d}-01A" for n in range(5)], columns)
    table.insert(3, 'stage, "final"', ["I", "II", "NA", "III", "IV"])
    path = tmp_path / "a.csv"
    path.write_bytes(table.to_csv(na_rep="NA").encode(encoding))
    expected = read_expression(path, missing="median")
    monkeypatch.setattr(_tables, "_WIDE", 10)
    found = read_expression(path, missing="median")
    pd.testing.assert_frame_equal(found.expression, expected.expression)
    pd.testing.assert_frame_equal(found.samples, expected.samples)
    path.write_text(path.read_bytes().decode(encoding).replace("III,", "III,#REF!"))
    with pytest.raises(TypeError, match="got '#REF!.*in column .* and row 'TCGA-AA-0003-01A'"):
        read_expression(path)
