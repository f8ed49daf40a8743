"""Which modules import which, and what is loaded."""

# SPDX-License-Identifier: BSD-3-Clause

import pkgutil
import subprocess
import sys

import pytest
from importlinter import cli

import sklearn_pk

SUBPACKAGES = [info.name for info in pkgutil.iter_modules(sklearn_pk.__path__)]


def imported_by(statement):
    """Return the modules that are loaded after a statement in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_contracts(project_root, monkeypatch):
    monkeypatch.chdir(project_root)
    # The captured output names the module, its import and the line.
    assert cli.lint_imports(no_cache=True) == cli.EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("name", ["", ".slides", ".prior", ".metrics", ".datasets", ".plotting"])
def test_import_does_not_load_torch(name):
    loaded = imported_by(f"import sklearn_pk{name}")
    assert f"sklearn_pk{name}" in loaded
    assert loaded.isdisjoint({"torch", "timm", "skorch"})


def test_import_of_the_package_alone_is_light():
    loaded = imported_by("import sklearn_pk; dir(sklearn_pk)")
    assert loaded.isdisjoint({"numpy", "sklearn", "matplotlib", "openslide"})


def test_subpackages_are_imported_when_used():
    loaded = imported_by("import sklearn_pk; sklearn_pk.prior.CoexpressionGraph")
    assert "sklearn_pk.prior" in loaded
    assert loaded.isdisjoint({"torch", "sklearn_pk.slides"})


def test_names_of_subpackages():
    assert dir(sklearn_pk) == ["__version__", *SUBPACKAGES]
    for name in SUBPACKAGES:
        assert getattr(sklearn_pk, name).__name__ == f"sklearn_pk.{name}"
    with pytest.raises(AttributeError, match="'sklearn_pk' has no attribute 'priors'"):
        _ = sklearn_pk.priors
