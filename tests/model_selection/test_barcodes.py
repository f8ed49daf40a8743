"""Patients from barcodes, file names and paths."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sklearn_pk.model_selection import patient_ids

BARCODES = [
    "TCGA-A1-A0SB",
    "TCGA-A1-A0SD-01Z-00-DX1.deb61b4f.svs",
    "/data.v2/TCGA-BRCA/TCGA-OL-A66H-01A-01-TS1.svs",
    "tcga-cr-7395-01a-01-ts1.svs",
]
PATIENTS = ["TCGA-A1-A0SB", "TCGA-A1-A0SD", "TCGA-OL-A66H", "TCGA-CR-7395"]


@pytest.mark.parametrize(
    "container",
    [list, tuple, np.array, pd.Series, pd.Index, lambda names: [Path(name) for name in names]],
)
def test_barcodes_of_any_kind(container):
    patients = patient_ids(container(BARCODES))
    assert isinstance(patients, np.ndarray)
    assert patients.dtype.kind == "U"
    assert patients.tolist() == PATIENTS


def test_other_names_raise():
    with pytest.raises(ValueError, match="2 of 3 entries.*'CPTAC-1', 'TCGA-A1-A0SBX'.*groups"):
        patient_ids([BARCODES[0], "CPTAC-1", "TCGA-A1-A0SBX"])
    with pytest.raises(ValueError, match="1 of 1 entries.*nan"):
        patient_ids([np.nan])
    with pytest.raises(ValueError, match="and 4 more"):
        patient_ids([f"slide{i}.svs" for i in range(9)])
    with pytest.raises(TypeError, match="must be a list"):
        patient_ids("TCGA-A1-A0SB")
