"""What the quickstart does with data of the user's own."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib.util

import pandas as pd
import pytest
import sklearn


@pytest.fixture(scope="module")
def quickstart(project_root):
    path = project_root / "docs" / "examples" / "plot_quickstart.py"
    spec = importlib.util.spec_from_file_location("plot_quickstart", path)
    module = importlib.util.module_from_spec(spec)
    with sklearn.config_context():
        spec.loader.exec_module(module)
    return module


def test_slides_find_their_row(quickstart):
    index = pd.Index(["TCGA-3C-AALI", "TCGA-3C-AALJ-01A", "p1", "p10"])
    names = {
        "p1": "p1",
        "p1-slide2-0a1b": "p1",
        "p10-x": "p10",
        "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF": "TCGA-3C-AALI",
        "TCGA-3C-AALJ-01A-00-DX1": "TCGA-3C-AALJ-01A",
        "p2": None,
    }
    assert {name: quickstart.match_row(name, index) for name in names} == names


def test_slides_of_one_patient_stay_together(quickstart):
    table = pd.DataFrame({"A": [1.0, 1.0, 2.0, 1.0], "B": [3.0, 3.0, 3.0, 4.0]}, index=list("wxyz"))
    assert quickstart.patients_of(table).tolist() == [0, 0, 1, 2]
    barcodes = ["TCGA-3C-AALI-01A", "TCGA-3C-AALJ-01A", "TCGA-3C-AALI-01B", "TCGA-3C-AALK-01A"]
    patients = quickstart.patients_of(table.set_axis(barcodes))
    assert patients[0] == patients[2]
    assert len(set(patients)) == 3


def test_permutation_keeps_slides_of_a_patient_alike(quickstart):
    table = pd.DataFrame({"A": [1.0, 1.0, 2.0, 3.0, 4.0]})
    patients = pd.Series(["p", "p", "q", "r", "s"]).to_numpy()
    permuted = quickstart.permute_patients(table, patients, seed=0)
    assert permuted.index.equals(table.index)
    assert permuted["A"][0] == permuted["A"][1]
    assert sorted(permuted["A"][1:]) == [1.0, 2.0, 3.0, 4.0]
    assert not permuted.equals(table)
