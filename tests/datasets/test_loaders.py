"""Shipped data."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
from pathlib import Path

import numpy as np
import openslide
import pytest

from sklearn_pk.datasets import load_brca_expression, load_cgn, load_cmu_slide


def test_cmu_slide_opens():
    bunch = load_cmu_slide()
    with openslide.OpenSlide(bunch.path) as slide:
        assert slide.dimensions == (2220, 2967)
        assert float(slide.properties["openslide.mpp-x"]) == bunch.mpp


@pytest.mark.parametrize("load", [load_cmu_slide, load_cgn])
def test_files_match_their_descriptions(load):
    bunch = load()
    assert hashlib.sha256(Path(bunch.path).read_bytes()).hexdigest() in bunch.DESCR


def test_brca_expression():
    expression = load_brca_expression().expression
    assert expression.shape == (250, 1000)
    assert expression.columns.is_unique
    assert expression.index.is_unique
    assert np.isfinite(expression.to_numpy()).all()
    assert expression.to_numpy().max() < 25


@pytest.mark.parametrize("load", [load_cmu_slide, load_cgn, load_brca_expression])
def test_descriptions_have_origin_and_licence(load):
    assert "Origin" in load().DESCR
    assert any(word in load().DESCR for word in ("CC BY", "MIT", "Apache"))
