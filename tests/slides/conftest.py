"""Small real slides that the tests of this folder share."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from sklearn_pk.slides import _tiler


def write_tiff(path, rgb, *, mpp=0.5, n_levels=1):
    """Write a tiled JPEG TIFF that OpenSlide opens, with the um/px in its resolution tags."""
    unit = {} if mpp is None else {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(n_levels):
            size = (rgb.shape[1] >> level, rgb.shape[0] >> level)
            pixels = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))
            tiff.write(
                pixels,
                photometric="rgb",
                tile=(64, 64),
                compression="jpeg",
                compressionargs={"level": 95},
                subfiletype=1 if level else 0,
                **(unit if level == 0 else {}),
            )
    return str(path)


@pytest.fixture(scope="session")
def write_slide():
    return write_tiff


@pytest.fixture(scope="session")
def tissue_rgb(cmu_slide):
    """Real tissue, 700 x 500 pixels at 0.499 um/px."""
    with openslide.OpenSlide(cmu_slide) as slide:
        return np.array(slide.read_region((1000, 2200), 0, (700, 500)).convert("RGB"))


@pytest.fixture(scope="session")
def small_slides(tmp_path_factory, tissue_rgb):
    """Three different slides of odd sizes; two have a pyramid."""
    folder = tmp_path_factory.mktemp("small_slides")
    return [
        write_tiff(folder / "a.tiff", tissue_rgb[:401, :333], n_levels=2),
        write_tiff(folder / "b.tiff", tissue_rgb[50:407, 301:], n_levels=1),
        write_tiff(folder / "c.tiff", tissue_rgb[99:, :517], n_levels=3),
    ]


@pytest.fixture(scope="session")
def white_slide(tmp_path_factory):
    """Background only, with the noise of a scanner."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(236, 246, size=(400, 500, 3), dtype=np.uint8)
    return write_tiff(tmp_path_factory.mktemp("white") / "white.tiff", rgb, n_levels=2)


@pytest.fixture
def bad_slides(tmp_path, cmu_slide, tissue_rgb):
    """Name -> a path that is no usable slide."""
    content = Path(cmu_slide).read_bytes()
    bad = {name: tmp_path / f"{name}.svs" for name in ("missing", "text", "zero", "truncated")}
    bad["text"].write_text("not a slide")
    bad["zero"].touch()
    bad["truncated"].write_bytes(content[: len(content) // 2])
    bad["no_mpp"] = write_tiff(tmp_path / "no_mpp.tiff", tissue_rgb[:200, :200], mpp=None)
    bad["wrong_mpp"] = write_tiff(tmp_path / "wrong_mpp.tiff", tissue_rgb[:200, :200], mpp=25.0)
    bad["folder"] = tmp_path
    return {name: str(path) for name, path in bad.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache of Hugging Face, not the one of whoever runs the tests."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _forget_tiles():
    _tiler._cache.clear()
