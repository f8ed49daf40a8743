"""Matching of samples with rows of expression, and its record."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import pickle

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.io import match_samples, read_expression
from sklearn_pk.slides import FeatureBag, FeatureBags
from sklearn_pk.utils._validation import check_sample_names


def expression_of(names, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(names), 3))
    return pd.DataFrame(values, index=names, columns=["A", "B", "C"])


def samples(names):
    return pd.DataFrame({"feature": np.arange(len(names), dtype=float)}, index=names)


@pytest.mark.parametrize(
    ("name", "row", "how"),
    [
        ("p1", "p1", "name"),
        ("slides/p1.svs", "p1", "name"),
        ("p1-slide2-0a1b", "p1", "start of the name"),
        ("p10_x.tif", "p10", "start of the name"),
        ("p2", None, "no row of that name"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF.svs", "TCGA-3C-AALI", "TCGA patient"),
        ("tcga-3c-aali-01Z-00-DX1", "TCGA-3C-AALI", "TCGA patient"),
        ("TCGA-3C-AALJ-01A-00-DX1", "TCGA-3C-AALJ-01A-11R", "TCGA sample"),
        ("TCGA-3C-AALJ-06A-00-DX1", "TCGA-3C-AALJ-06A-11R", "TCGA sample"),
        ("TCGA-3C-AALJ", None, "2 different rows, all by TCGA patient"),
        (
            "TCGA-3C-AALK-01Z-00-DX1",
            None,
            "the rows of that patient are of sample type 11, the sample of type 01",
        ),
        ("TCGA-3C-AALK", None, "the rows of that patient are of sample type 11"),
        (
            "TCGA-3C-AALI-11A-01-TS1",
            None,
            "the rows of that patient are of sample type not named, the sample of type 11",
        ),
        ("TCGA-3C-AALL-01Z", None, "no row of that patient"),
        ("S9", "wsi/S9.svs", "name"),
    ],
)
def test_one_sample(name, row, how):
    rows = ["p1", "p10", "TCGA-3C-AALI", "TCGA-3C-AALJ-01A-11R", "TCGA-3C-AALJ-06A-11R"]
    rows += ["TCGA-3C-AALJ-11A-11R", "TCGA-3C-AALK-11A", "wsi/S9.svs", "other"]
    matched = match_samples(samples([name, "other"]), expression_of(rows))
    found = matched.audit.iloc[0]
    assert found["how"] == how
    assert found["row"] == row if row else pd.isna(found["row"])
    assert len(matched.X) == 1 + (row is not None)


def test_rows_are_in_the_order_of_samples():
    names = [f"p{i}" for i in range(6)]
    expression = expression_of(names)
    X = samples(["p3-a", "x", "p0-b", "p3-c"])
    matched = match_samples(X, expression)
    assert matched.X.index.tolist() == ["p3-a", "p0-b", "p3-c"]
    assert matched.expression.index.tolist() == matched.X.index.tolist()
    np.testing.assert_array_equal(matched.expression, expression.loc[["p3", "p0", "p3"]])
    assert matched.patients.tolist() == ["p3", "p0", "p3"]
    assert matched.unused_rows == ["p1", "p2", "p4", "p5"]
    assert matched.audit.index.tolist() == X.index.tolist()
    check_sample_names(matched.X, matched.expression)


def test_equal_rows_count_as_one():
    rows = ["S1.svs", "S2.svs", "S3.svs", "S4.svs"]
    expression = expression_of(rows)
    expression.loc["S2.svs"] = expression.loc["S1.svs"]
    matched = match_samples(samples(["S1", "S2", "S4"]), expression)
    assert matched.patients.tolist() == ["S1.svs", "S1.svs", "S4.svs"]
    assert matched.unused_rows == ["S3.svs"]
    apart = match_samples(samples(["S1"]), expression, patients=["P1", "P2", "P3", "P4"])
    assert apart.unused_rows == ["S2.svs", "S3.svs", "S4.svs"]
    # TCGA slides of one patient in a table with a row for each, of which one is left.
    barcodes = [f"TCGA-3C-AALI-01Z-00-DX{i}.{i}{i}" for i in (1, 2)]
    expression = expression_of(barcodes)
    twice = expression.copy()
    twice.iloc[1] = twice.iloc[0]
    assert len(match_samples(samples(["TCGA-3C-AALI-01Z-00-DX3"]), twice).X) == 1
    with pytest.raises(ValueError, match="None of the 1 samples .* 2 different rows, all by TCGA"):
        match_samples(samples(["TCGA-3C-AALI-01Z-00-DX3"]), expression)


def test_given_patients():
    expression = expression_of(["a", "b", "c"])
    patients = pd.Series(["P2", "P1", "P1"], index=["c", "b", "a"])
    matched = match_samples(samples(["a", "c"]), expression, patients=patients)
    assert matched.patients.tolist() == ["P1", "P2"]
    by_order = match_samples(samples(["a", "c"]), expression, patients=["P1", "P1", "P2"])
    assert by_order.patients.tolist() == ["P1", "P2"]
    with pytest.raises(ValueError, match="patients: 1 rows of expression have no patient: 'c'"):
        match_samples(samples(["a"]), expression, patients=patients.drop("c"))
    with pytest.raises(ValueError, match="patients: 1 rows of expression have no patient: 'c'"):
        match_samples(samples(["a"]), expression, patients=["P1", "P1"])


def test_patients_from_barcodes():
    expression = expression_of(["TCGA-3C-AALI-01A", "TCGA-3C-AALI-06A", "TCGA-3C-AALJ-01A"])
    names = ["TCGA-3C-AALI-01Z", "TCGA-3C-AALI-06Z", "TCGA-3C-AALJ-01Z"]
    matched = match_samples(samples(names), expression)
    assert matched.patients.tolist() == ["TCGA-3C-AALI", "TCGA-3C-AALI", "TCGA-3C-AALJ"]
    # A row without a barcode between those of a patient.
    more = pd.concat([expression, expression_of(["control"], seed=1)])
    matched = match_samples(samples([*names, "control"]), more)
    assert matched.patients.tolist()[1:] == ["TCGA-3C-AALI", "TCGA-3C-AALJ", "control"]


def test_bags_keep_their_attributes():
    bags = FeatureBags([FeatureBag(np.ones((2, 3)), slide=f"{name}.svs") for name in "abc"])
    bags.failures.loc[0] = ["broken.h5", "not HDF5"]
    matched = match_samples(bags, expression_of(["c", "a"]))
    assert isinstance(matched.X, FeatureBags)
    assert matched.X.names == ["a", "c"]
    assert len(matched.X.failures) == 1
    assert matched.expression.index.tolist() == ["a", "c"]
    as_list = match_samples(list(bags), expression_of(["c", "a"]))
    assert [bag.name for bag in as_list.X] == ["a", "c"]
    paths = match_samples(["x/a.svs", "x/b.svs"], expression_of(["a"]))
    assert paths.X == ["x/a.svs"]


def test_invalid_input():
    expression = expression_of(["a", "b"])
    with pytest.raises(ValueError, match="X has no samples"):
        match_samples(FeatureBags([]), expression)
    with pytest.raises(ValueError, match="X must have sample names"):
        match_samples(np.ones((2, 3)), expression)
    with pytest.raises(ValueError, match="X has 1 repeated names: 'a'"):
        match_samples(["1/a.svs", "2/a.svs"], expression)
    with pytest.raises(TypeError, match="expression must be a DataFrame .* got ndarray"):
        match_samples(samples(["a"]), expression.to_numpy())
    with pytest.raises(ValueError, match="None of the 1 samples of X \\(such as 'z'\\).*'a'"):
        match_samples(samples(["z"]), expression)
    with pytest.raises(ValueError, match="NaN.*'B'"):
        match_samples(samples(["a"]), expression.mask(expression == expression.loc["a", "B"]))


BARCODE = "TCGA-3C-AALI-01Z-00-DX1"
UUID = [f"{i}b49b408-7798-4fe1-9060-7329951da2b{i}" for i in range(6)]
GDC_SHEET = pd.DataFrame(
    {
        "File ID": UUID[:4],
        "File Name": ["TCGA-3C-AALI-01Z-00-DX1.F6.svs", "C3L-00004-21.svs", "C3L-00004-26.svs"]
        + [f"{UUID[5]}.rna_seq.augmented_star_gene_counts.tsv"],
        "Case ID": ["TCGA-3C-AALI", "C3L-00004", "C3L-00004", "C3L-00004"],
        "Sample ID": ["TCGA-3C-AALI-01Z", "C3L-00004-01", "C3L-00004-06", "C3L-00004-06"],
        "Tissue Type": ["Tumor", "Tumor", "Normal", "Normal"],
        "Tumor Descriptor": ["Primary", "Primary", "Not Applicable", "Not Applicable"],
        "Specimen Type": ["Unknown", "Solid Tissue", "Solid Tissue", "Solid Tissue"],
    }
)
STAMP = pd.DataFrame({"PATIENT": ["P1", "P2"], "FILENAME": ["H19-1.h5", "H19-2.h5"]})
CLAM = pd.DataFrame({"case_id": ["P1", "P2"], "slide_id": ["H19-1", "H19-2"], "label": ["x", "y"]})
TYPES = pd.DataFrame(
    {
        "Slide_ID": ["C3N-01", "C3N-02", "S3", "S4"],
        "Case_ID": ["P1", "P1", "P2", "P2"],
        "Specimen_Type": ["tumor_tissue", "normal_tissue", "Solid Tissue Normal", "Metastatic"],
    }
)


@pytest.mark.parametrize(
    ("name", "rows", "links", "expected"),
    [
        # Spelling: separators, case, spaces, unicode, what R makes of names.
        ("h19_0001-a.svs", ["H19.0001.A"], None, "H19.0001.A"),
        ("H19 0001.svs", [" h19-0001 "], None, " h19-0001 "),
        ("Mu\u0308ller-1", ["M\u00fcller_1"], None, "M\u00fcller_1"),
        ("H19\u20130001", ["H19-0001"], None, "H19-0001"),
        ("\uff281", ["h1"], None, "h1"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6", ["TCGA.3C.AALI.01A.11R.A41B.07"], None, 0),
        ("tcga_3c_aali_11a", ["TCGA-3C-AALI-01A", "TCGA-3C-AALI-11A"], None, 1),
        # Rows that are longer than the names of slides.
        ("GTEX-1117F-0226.svs", ["GTEX-1117F-0226-SM-5GZZ7", "GTEX-1117F-0326-SM-1"], None, 0),
        ("GTEX-1117F-0426.svs", ["GTEX-1117F-0226-SM-5GZZ7"], None, "sample of type 0426"),
        ("GTEX-1117F.svs", ["GTEX-1117F-0226-SM-5GZZ7"], None, "of sample type 0226"),
        ("H19-1", ["H19-1-RNA", "H19-10-RNA"], None, 0),
        ("H19-1", ["H19-1-RNA1", "H19-1-RNA2"], None, "2 different rows, all by start of the row"),
        # Normal tissue, by the name.
        ("C3L-00004-N.svs", ["C3L-00004", "C3L-00004.N"], None, 1),
        ("C3L-00004-26.svs", ["C3L-00004", "C3L-00004.N"], None, "of tumour and of normal tissue"),
        ("C3L-00004-26.svs", ["C3L-00004.N"], None, "of sample type normal"),
        ("P1-normal-2", ["P1", "P1-tumour"], None, "of sample type not named, tumour"),
        ("P1_N", ["P1_T", "P1_N"], None, 1),
        ("P1_2", ["P1_T", "P1_N"], None, "of tumour and of normal tissue"),
        ("TARGET-20-PABGKN-09A", ["TARGET-20-PABGKN-14A", "TARGET-20-PABGKN-09A-01R"], None, 1),
        # Sample sheets of GDC: names of files, folders, UUIDs.
        ("C3L-00004-21.svs", ["C3L-00004", "C3L-00004.N"], GDC_SHEET, 0),
        ("C3L-00004-26.svs", ["C3L-00004", "C3L-00004.N"], GDC_SHEET, 1),
        ("C3L-00004-26.svs", ["C3L-00004"], GDC_SHEET, "of sample type not named, the sample of"),
        ("C3L-00004-26.svs", ["C3L-00004-01", "C3L-00004-06"], GDC_SHEET, 1),
        (f"{UUID[0]}/slide.svs", ["TCGA-3C-AALI-01A-11R"], GDC_SHEET, 0),
        (f"{UUID[2]}.h5", ["C3L-00004", "C3L-00004.N"], GDC_SHEET, 1),
        ("C3L-00004-26.svs", [f"X{UUID[0]}", UUID[5].upper()], GDC_SHEET, 1),
        ("C3L-00004-26.svs", [UUID[3].replace("-", ".")], GDC_SHEET, 0),
        # Tables of other tools; a dict of slide to row or patient.
        ("H19-1.svs", ["P2", "P1"], STAMP, 1),
        ("feats/H19_1.h5", ["P2-RNA", "P1-RNA"], CLAM, 1),
        ("H19-3.svs", ["P2", "P1"], CLAM, "no row of that name"),
        ("C3N-02", ["P1", "P1.N"], TYPES, 1),
        ("C3N-01", ["P1", "P1.N"], TYPES, 0),
        ("S3", ["P2"], TYPES, "of sample type not named, the sample of type 11"),
        ("S4", ["P2-T"], TYPES, 0),
        ("x-1", ["12", "P2"], {"x_1.svs": 12}, 0),
        ("x-1", ["P1-RNA", "P2"], {"x-1": "p1"}, 0),
        ("x-1", ["P1-RNA", "P2"], pd.Series({"x-1": "P2"}), 1),
        ("x-1", ["P1", "P2"], {"slide": ["x-1"], "patient": ["P2"]}, 1),
        ("x-1", ["12", "13"], pd.DataFrame({"slide": ["x-1", "y"], "case": [13.0, np.nan]}), 1),
    ],
)
@pytest.mark.filterwarnings("error")
def test_names_as_people_have_them(name, rows, links, expected):
    matched = match_samples(samples([name, "other"]), expression_of([*rows, "other"]), links=links)
    found = matched.audit.iloc[0]
    if isinstance(expected, str) and expected not in rows:
        assert expected in found["how"]
        assert found["row"] is None
    else:
        assert found["row"] == (expected if isinstance(expected, str) else rows[expected])
    assert len(str(matched).splitlines()) == 3


def write(links, path):
    kinds = {".csv": ",", ".tsv": "\t", ".txt": ";"}
    if path.suffix == ".json":
        entry = {"file_name": "H19-1.svs", "associated_entities": [{"entity_submitter_id": "P1"}]}
        path.write_text(json.dumps([entry]))
    elif path.suffix == ".parquet":
        links.to_parquet(path)
    else:
        encoding = "utf-16" if path.suffix == ".txt" else "utf-8-sig"
        links.to_csv(path, sep=kinds[path.suffix], index=False, encoding=encoding)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.parquet", "a.json"])
def test_links_of_files(tmp_path, name):
    path = write(STAMP, tmp_path / name)
    expression = expression_of(["P2", "P1"])
    matched = match_samples(samples(["H19-1"]), expression, links=path)
    assert matched.audit["row"].tolist() == ["P1"]
    assert matched.patients.tolist() == ["P1"]
    with pytest.raises(FileNotFoundError, match="links: file not found: .*no.csv"):
        match_samples(samples(["H19-1"]), expression, links=str(tmp_path / "no.csv"))


def test_patients_of_links():
    links = pd.DataFrame({"slide": ["a", "b", "c"], "patient": ["P1", "P1", "P2"]})
    links["sample"] = ["R1", "R2", "R3"]
    matched = match_samples(
        samples(["c", "b", "a"]), expression_of(["R1", "R2", "R3"]), links=links
    )
    assert matched.audit["row"].tolist() == ["R3", "R2", "R1"]
    assert matched.patients.tolist() == ["P2", "P1", "P1"]
    # Names of rows that say nothing, whose patients are given.
    given = pd.Series(["P1", "P2"], index=["R1", "R3"])
    by_given = match_samples(samples(["p2-x"]), expression_of(["R1", "R3"]), patients=given)
    assert by_given.audit["row"].tolist() == ["R3"]
    # Samples of a patient, by the names of rows.
    rows = ["P1-T", "P1-N", "C3L-00004", "C3L-00004.N"]
    matched = match_samples(samples(rows), expression_of(rows))
    assert matched.patients.tolist() == ["P1", "P1", "C3L-00004", "C3L-00004"]


def test_slides_of_unknown_tissue_are_told():
    expression = expression_of(["C3L-00004", "C3L-00005"])
    with pytest.warns(UserWarning, match="1 samples of CPTAC, such as 'C3L-00004-26', do not say"):
        matched = match_samples(samples(["C3L-00004-26"]), expression)
    assert matched.audit["row"].tolist() == ["C3L-00004"]


@pytest.mark.parametrize(
    ("links", "error"),
    [
        ({"zzz": "yyy"}, "links names neither the samples of X .*'a'.* nor .*it names 'zzz'"),
        ({"foo": ["a"], "bar": ["b"]}, "links needs a column of slides .* got the columns 'foo'"),
        ({"slide": ["a"], "foo": ["b"]}, "links needs a column of slides"),
        (pd.DataFrame({"slide": [], "patient": []}), "links has no rows"),
        ({"slide": ["a", "a"], "patient": ["P1", "P2"]}, "'a' is of several patients: 'P1', 'P2'"),
        (
            {"slide": [BARCODE], "patient": ["TCGA-AA-0001"]},
            f"'{BARCODE}' is of patient 'TCGA-AA-0001', but its barcode is that of 'TCGA-3C-AALI'",
        ),
        (
            {"slide": [BARCODE], "patient": ["TCGA-3C-AALI"], "tissue_type": ["Normal"]},
            "is normal tissue, but by its name it is tumour tissue",
        ),
        (
            {"slide": ["a"], "patient": ["P"], "type": ["Tumor"], "tissue": ["normal"]},
            "'a' is both of tumour and of normal tissue: 'Tumor', 'normal'",
        ),
    ],
)
def test_links_that_contradict(links, error):
    with pytest.raises(ValueError, match=error):
        match_samples(samples(["a", BARCODE]), expression_of(["a", "P"]), links=links)


def test_links_of_other_types():
    with pytest.raises(TypeError, match="links must be a DataFrame, a dict .* got list"):
        match_samples(samples(["a"]), expression_of(["a"]), links=["a"])


def test_three_lines():
    X = samples(["TCGA-3C-AALI-01Z", "TCGA-3C-AALI-01A", "TCGA-3C-AALK-01Z", "b", "c", "<d>"])
    matched = match_samples(X, expression_of(["TCGA-3C-AALI", "TCGA-3C-AALK-11A", "b", "x", "y"]))
    assert str(matched).splitlines() == [
        "matched: 3 of 6 samples, of 2 patients (TCGA patient: 2, name: 1)",
        "left out: 3 samples (no row of that name: 2, such as 'c'; the rows of that patient are of "
        "sample type 11, the sample of type 01: 1, such as 'TCGA-3C-AALK-01Z')",
        "unused: 3 of 5 rows of expression, such as 'TCGA-3C-AALK-11A', 'x', 'y'",
    ]
    html = matched._repr_html_()
    assert html.count("<tr>") == 3
    assert "&#x27;c&#x27;" in html
    every = match_samples(samples(["b"]), expression_of(["b"]))
    assert str(every).splitlines()[1:] == [
        "left out: 0 samples",
        "unused: 0 of 1 rows of expression",
    ]
    assert pickle.loads(pickle.dumps(every)).patients.tolist() == ["b"]


def test_from_a_download_of_gdc_to_a_cohort(tmp_path):
    patients = ["TCGA-A1-0001", "TCGA-A1-0001", "TCGA-BH-0002", "C3L-00004"]
    samples_ = ["TCGA-A1-0001-01A", "TCGA-A1-0001-11A", "TCGA-BH-0002-01A", "C3L-00004-06"]
    rows = []
    for at, (case, sample) in enumerate(zip(patients, samples_, strict=True)):
        folder = tmp_path / "gdc" / UUID[at]
        folder.mkdir(parents=True)
        name = f"{UUID[at]}.rna_seq.augmented_star_gene_counts.tsv"
        lines = ["gene_id\tgene_name\tgene_type\ttpm_unstranded"]
        lines += [f"ENSG{g:011d}.1\tG{g}\tprotein_coding\t{g * 99 + at}.5" for g in range(6)]
        (folder / name).write_text("\n".join(lines) + "\n")
        rows.append([UUID[at], name, case, sample, "Normal" if at % 2 else "Tumor"])
    columns = ["File ID", "File Name", "Case ID", "Sample ID", "Tissue Type"]
    sheet = pd.DataFrame(rows, columns=columns)
    sheet.to_csv(tmp_path / "gdc" / "gdc_sample_sheet.tsv", sep="\t", index=False)
    slides = ["TCGA-A1-0001-01Z-00-DX1.AB", "TCGA-A1-0001-11A-01-TS1", "TCGA-BH-0003-01Z-00-DX1"]
    slides = [tmp_path / f"{name}.svs" for name in [*slides, "C3L-00004-26"]]
    table = read_expression(tmp_path / "gdc", transform="log2p1")
    with pytest.warns(UserWarning, match="1 samples of CPTAC.* matched as tumours"):
        matched = match_samples(slides, table.expression, patients=table.patients)
    assert matched.audit["row"].tolist() == [*samples_[:2], None, "C3L-00004-06"]
    assert matched.unused_rows == ["TCGA-BH-0002-01A"]
    matched = match_samples(slides, table.expression, links=table.samples)
    assert matched.audit["row"].tolist() == [
        *samples_[:2],
        None,
        None,
    ]  # the row is of normal tissue
    # The type of the slide of CPTAC is not in its name, but in the sheet of slides.
    sheet = pd.DataFrame([["C3L-00004-26.svs", "C3L-00004", "C3L-00004-02", "Tumor"]])
    sheet = sheet.set_axis(["File Name", "Case ID", "Sample ID", "Tissue Type"], axis=1)
    links = pd.concat([sheet, pd.read_csv(tmp_path / "gdc" / "gdc_sample_sheet.tsv", sep="\t")])
    for given in (links, links.iloc[::-1]):
        matched = match_samples(slides, table.expression, links=given)
        assert matched.audit["row"].tolist() == [*samples_[:2], None, None]
    matched = match_samples(slides[:2], table.expression, links=tmp_path / "gdc")
    assert matched.patients.tolist() == ["TCGA-A1-0001"] * 2
