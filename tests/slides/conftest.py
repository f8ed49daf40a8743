"""A clean state for each test of this folder."""

# SPDX-License-Identifier: BSD-3-Clause

import pytest

from sklearn_pk.slides import _tiler


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache of Hugging Face, not the one of whoever runs the tests."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _clear_tiles():
    _tiler._cache.clear()
