"""What imports what, and what an import costs."""

# SPDX-License-Identifier: BSD-3-Clause

import pkgutil
import subprocess
import sys

import pytest
from importlinter import cli

import sklearn_pk

SUBPACKAGES = [info.name for info in pkgutil.iter_modules(sklearn_pk.__path__)]


def imported_by(statement):
    """Return the modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_contracts(project_root, monkeypatch):
    monkeypatch.chdir(project_root)
    # The message is in the captured output: which module imports which, in what line.
    assert cli.lint_imports(no_cache=True) == cli.EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("name", ["", ".slides", ".prior", ".metrics", ".datasets", ".plotting"])
def test_import_does_not_load_torch(name):
    loaded = imported_by(f"import sklearn_pk{name}")
    assert f"sklearn_pk{name}" in loaded
    assert loaded.isdisjoint({"torch", "timm", "skorch"})


def test_import_of_the_package_alone_is_light():
    loaded = imported_by("import sklearn_pk")
    assert loaded.isdisjoint({"numpy", "sklearn", "matplotlib", "openslide"})


def test_subpackages():
    assert SUBPACKAGES == [
        "datasets",
        "metrics",
        "model_selection",
        "plotting",
        "prior",
        "regression",
        "slides",
        "utils",
    ]
