"""Validation of expression tables, sample names and groups."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sklearn_pk.utils import check_expression, check_groups
from sklearn_pk.utils._validation import check_sample_names, did_you_mean, same_sample

FRAME = pd.DataFrame([[1, 2.5], [3, 4.5], [5, 6.5]], columns=["A", "B"], index=["x", "y", "z"])


@pytest.mark.parametrize(
    ("y", "dtype", "names", "is_1d"),
    [
        (FRAME, np.float64, ["A", "B"], False),
        (FRAME.astype(np.float32), np.float32, ["A", "B"], False),
        (FRAME.astype(object), np.float64, ["A", "B"], False),
        (FRAME.astype("Float32"), np.float32, ["A", "B"], False),
        (FRAME.set_axis([672, 675], axis=1), np.float64, [672, 675], False),
        (FRAME["A"], np.float64, ["A"], True),
        (FRAME.to_numpy(), np.float64, None, False),
        (FRAME.to_numpy().astype(np.float16), np.float32, None, False),
        (pd.DataFrame(FRAME.to_numpy()), np.float64, None, False),
        (FRAME["A"].tolist(), np.float64, None, True),
        ([1, 2, 3], np.float64, None, True),
    ],
)
def test_valid_expression(y, dtype, names, is_1d):
    values, gene_names, was_1d = check_expression(y)
    assert values.dtype == dtype
    assert values.shape == (3, 1 if is_1d else 2)
    assert was_1d is is_1d
    assert gene_names is None if names is None else gene_names.tolist() == names
    np.testing.assert_allclose(values, np.reshape(np.asarray(y, dtype=float), values.shape))


def test_arrays_are_not_copied():
    y = np.ones((3, 2), dtype=np.float32)
    assert check_expression(y)[0] is y


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (None, ValueError, "Ridge requires y to be passed, but the target y is None"),
        (FRAME.set_axis(["A", "A"], axis=1), ValueError, "duplicate gene names: 'A'"),
        (FRAME.assign(C="text"), TypeError, "not numeric: 'C'"),
        (FRAME.assign(C=1j), TypeError, "not numeric: 'C'"),
        (FRAME.mask(FRAME == 4.5), ValueError, r"contains NaN.*1 of 2 genes \('B'\).*\('y'\)"),
        (FRAME.astype("Float64").mask(FRAME == 4.5), ValueError, "contains NaN.*'B'"),
        (FRAME.to_numpy() * [1, np.inf], ValueError, "contains infinity.*inf.*1 of 2 genes"),
        (FRAME * [1, -1e160], ValueError, r"contains .*e\+160.*overflows.*1 of 2 genes \('"),
        (FRAME.astype("float32") * [1, 1e30], ValueError, "overflows.*1 of 2 genes"),
        (np.array([1j, 2]), ValueError, "Complex data not supported"),
        (np.array(["a", "b"]), TypeError, "not numbers"),
        (sparse.eye_array(3), TypeError, "dense table"),
        (np.ones((2, 2, 2)), ValueError, r"shape \(2, 2, 2\)"),
        (3.0, ValueError, "should be a 1d array"),
        (np.ones((0, 2)), ValueError, "at least one sample"),
        (np.ones((2, 0)), ValueError, "at least one sample and one gene"),
    ],
)
def test_bad_expression(y, error, message):
    with pytest.raises(error, match=message):
        check_expression(y, estimator_name="Ridge")


@pytest.mark.parametrize(
    ("x_names", "y_names"),
    [
        (["a/x.svs", "a/y.svs", "a/z.svs"], ["x", "y", "z"]),
        ([Path("x.svs"), Path("y.svs"), Path("z.svs")], ["x.svs", "y.svs", "z.svs"]),
        (["p1_a.svs", "p1_b.svs", "p2_a.svs"], ["p1", "p1", "p2"]),
        (["p1/s.svs", "p1/s.svs", "p2/s.svs"], ["p1", "p1", "p2"]),
        (["p1", "p2", "p3"], ["p1-01A", "p2-01A", "p3-01A"]),
        (["TCGA-A1-A0SB-01Z-00-DX1.ab.svs"] * 3, ["tcga-a1-a0sb-01A-11R"] * 3),
        (["q.svs", "r.svs", "s.svs"], [0, 1, 2]),
        (["q.svs", "r.svs", "s.svs"], [7, 5, 6]),
        ([np.ones(2)] * 3, ["x", "y", "z"]),
    ],
)
def test_names_that_agree(x_names, y_names):
    y = FRAME.set_axis(y_names)
    check_sample_names(x_names, y)
    check_sample_names(x_names, y.to_numpy())
    if not isinstance(x_names[0], np.ndarray):
        check_sample_names(np.array(list(map(str, x_names))), y)
        check_sample_names(pd.Series(x_names), y)
        check_sample_names(pd.DataFrame({"slide": x_names, "mpp": 0.5}), y)
        check_sample_names([SimpleNamespace(slide=str(name)) for name in x_names], y)


@pytest.mark.parametrize(
    ("x_names", "y_names", "n_wrong"),
    [
        (["y.svs", "x.svs", "z.svs"], ["x", "y", "z"], 2),
        (["S10.svs", "S2.svs", "S3.svs"], ["S1", "S2", "S3"], 1),
        (["q.svs", "r.svs", "s.svs"], ["x", "y", "z"], 3),
        (["TCGA-A1-A0SB-01Z.svs"] * 3, ["TCGA-A1-A0SC"] * 3, 3),
    ],
)
def test_names_that_disagree(x_names, y_names, n_wrong):
    y = FRAME.set_axis(y_names)
    for X in (x_names, pd.DataFrame(np.ones((3, 2)), index=[Path(x).stem for x in x_names])):
        with pytest.raises(ValueError, match=f"{n_wrong} of 3 carry different names.*{y_names[0]}"):
            check_sample_names(X, y)


def test_features_without_names_are_not_compared():
    check_sample_names(np.ones((3, 2)), FRAME)
    check_sample_names(pd.DataFrame(np.ones((3, 2))), FRAME)
    check_sample_names([SimpleNamespace(slide=""), SimpleNamespace(slide="q"), None], FRAME)
    with pytest.raises(ValueError, match="inconsistent numbers of samples: X has 2"):
        check_sample_names(np.ones((2, 2)), FRAME)


@pytest.mark.parametrize(
    ("groups", "labels"),
    [
        (["p", "p", "q"], ["p", "p", "q"]),
        ([1, 1, 2], [1, 1, 2]),
        (np.array([12, "12b", 12], dtype=object), ["12", "12b", "12"]),
        (pd.Series(["p", "q", "p"], index=["x", "y", "z"], dtype="category"), ["p", "q", "p"]),
        (pd.Series(["p", "q", "p"], index=[2, 1, 0]), ["p", "q", "p"]),
        (["p", "p ", " q\t"], ["p", "p", "q"]),
        (np.array([12, 12.0, "13"], dtype=object), ["12", "12", "13"]),
        (pd.Series(["p", "p ", "q"], dtype="string"), ["p", "p", "q"]),
    ],
)
def test_groups_are_labels_that_can_be_sorted(groups, labels):
    checked = check_groups(groups, FRAME)
    assert checked.tolist() == labels
    assert np.unique(checked).tolist() == sorted(set(labels))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["p", "q"], r"inconsistent numbers of samples: groups.*3 samples, got shape \(2,\)"),
        (np.ones((3, 1)), r"got shape \(3, 1\)"),
        (["p", np.nan, None], "2 samples have no patient, the first at position 1"),
        (["p", " ", "q"], "1 samples have no patient, the first at position 1"),
        (["p", "q", np.nan], "1 samples have no patient, the first at position 2"),
        (pd.array([1, 2, pd.NA]), "1 samples have no patient, the first at position 2"),
        (pd.Series(["p", "p", "q"], index=["x", "z", "y"]), r"different order.*groups.loc"),
    ],
)
def test_bad_groups_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        check_groups(groups, FRAME)


BARCODES = [
    "TCGA-A1-0001-01Z-00-DX1",
    "tcga.a1.0001.01Z.00.DX2",
    "C3L-00004-21",
    "C3L-00004.N",
    "GTEX-1117F-0226",
    "other",
]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b", "c", "c", "d", "e"], "1 patients are in several .* 'TCGA-A1-0001' in 'a', 'b'"),
        (["a", "a", "c", "b", "d", "e"], "1 patients are in several groups, such as 'C3L-00004'"),
        (["a", "a", "a", "a", "d", "e"], "1 groups hold several patients, such as 'a' with 'TCGA-"),
        (["a", "a", "c", "c", "d", "d"], None),
        (
            ["p1", "P1", "c", "c", "d", "e"],
            "in several groups, such as 'TCGA-A1-0001' in 'p1', 'P1'",
        ),
        ([1, 1, 2, 2, 3, 4], None),
        (range(6), "2 patients are in several groups"),
    ],
)
def test_groups_that_contradict_barcodes_warn(groups, message):
    y = pd.DataFrame(np.zeros((6, 2)), index=BARCODES)
    for arguments in ((y,), (y.to_numpy(), BARCODES), (y.to_numpy(), y)):
        if message is None:
            check_groups(list(groups), *arguments)
            continue
        with pytest.warns(UserWarning, match=message) as caught:
            check_groups(list(groups), *arguments)
        assert caught[0].filename == __file__
    check_groups(list(groups)[2:4] * 2, np.zeros((4, 1)))  # without names


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["TCGA-A1-0001-01A", "TCGA-A1-0001-01B"], "1 patients are in several groups"),
        (["P1", "p_1", "p-1"], "2 groups differ only in case or separators: 'p_1', 'p-1'"),
        (["P1", "P2"], None),
    ],
)
def test_groups_that_contradict_each_other_warn(groups, message):
    if message is None:
        check_groups(groups, groups)
    else:
        with pytest.warns(UserWarning, match=message):
            check_groups(groups, groups)


@pytest.mark.parametrize(
    ("x_name", "y_name", "expected"),
    [
        ("TCGA.A1.0001.01Z", "TCGA-A1-0001-01A-11R", True),
        ("C3L-00004-21", "C3L-00004", True),
        ("C3L-00004-21", "C3L-00005", False),
        ("GTEX-1117F-0226", "GTEX-1117F-0226-SM-5GZZ7", True),
        ("GTEX-1117F-0226", "GTEX-1117F-0326-SM-5GZZ7", False),
    ],
)
def test_same_sample_by_barcode(x_name, y_name, expected):
    assert same_sample(x_name, y_name) is expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tff1"], " Did you mean 'TFF1'?"),
        (["TFFF1"], " Did you mean 'TFF1' or 'TFF3'?"),
        (["ENSG00000141510.18"], " Did you mean 'ENSG00000141510.17'?"),
        (["tff1", "esr1", "zz"], " Did you mean 'TFF1' for 'tff1', 'ESR1' for 'esr1'?"),
        (["zzzz", 7], ""),
    ],
)
def test_did_you_mean(names, expected):
    assert did_you_mean(names, ["TFF1", "TFF3", "ESR1", "ENSG00000141510.17", 7]) == expected
