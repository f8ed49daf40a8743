"""Fixtures shared by tests of several parts."""

# SPDX-License-Identifier: BSD-3-Clause

import time
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from sklearn_pk.datasets import load_brca_expression, load_cmu_slide
from tests.pretended_cuda import pretended_cuda


@pytest.fixture(scope="session")
def project_root():
    """Root of the checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wait_for_files():
    """Return a function that waits until a store has some files, while a process runs."""

    def wait(store, number, process):
        deadline = time.monotonic() + 120
        while len(list(store.glob("*.h5"))) < number:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


@pytest.fixture
def cuda():
    """Pretend that there is a CUDA device; see :class:`tests.pretended_cuda.PretendedCuda`."""
    with pretended_cuda() as world:
        yield world


@pytest.fixture(scope="session")
def cmu_slide():
    """Path of the shipped H&E slide."""
    return load_cmu_slide().path


@pytest.fixture(scope="session")
def brca_expression():
    """Real expression, 250 samples x 1,000 genes; a test that changes it works on a copy."""
    return load_brca_expression().expression


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
    """Return real tissue, 700 x 500 pixels at 0.499 um/px."""
    with openslide.OpenSlide(cmu_slide) as slide:
        return np.array(slide.read_region((1000, 2200), 0, (700, 500)).convert("RGB"))


@pytest.fixture(scope="session")
def small_slides(tmp_path_factory, tissue_rgb):
    """Return three different slides of odd sizes; two have a pyramid."""
    folder = tmp_path_factory.mktemp("small_slides")
    return [
        write_tiff(folder / "a.tiff", tissue_rgb[:401, :333], n_levels=2),
        write_tiff(folder / "b.tiff", tissue_rgb[50:407, 301:], n_levels=1),
        write_tiff(folder / "c.tiff", tissue_rgb[99:, :517], n_levels=3),
    ]


@pytest.fixture(scope="session")
def white_slide(tmp_path_factory):
    """Return a slide of background only, with the noise of a scanner."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(236, 246, size=(400, 500, 3), dtype=np.uint8)
    return write_tiff(tmp_path_factory.mktemp("white") / "white.tiff", rgb, n_levels=2)


@pytest.fixture(scope="session")
def bad_slides(tmp_path_factory, cmu_slide, tissue_rgb):
    """Return a dict of names to paths that are not usable slides."""
    tmp_path = tmp_path_factory.mktemp("bad_slides")
    content = Path(cmu_slide).read_bytes()
    bad = {name: tmp_path / f"{name}.svs" for name in ("missing", "text", "zero", "truncated")}
    bad["text"].write_text("not a slide")
    bad["zero"].touch()
    bad["truncated"].write_bytes(content[: len(content) // 2])
    bad["no_mpp"] = write_tiff(tmp_path / "no_mpp.tiff", tissue_rgb[:200, :200], mpp=None)
    bad["wrong_mpp"] = write_tiff(tmp_path / "wrong_mpp.tiff", tissue_rgb[:200, :200], mpp=25.0)
    bad["folder"] = tmp_path
    return {name: str(path) for name, path in bad.items()}
