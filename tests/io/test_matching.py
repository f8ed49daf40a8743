"""Matching of samples with rows of expression, and its record."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.io import match_samples
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
