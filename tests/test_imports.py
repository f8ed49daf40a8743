"""Which modules import which, and what is loaded."""

# SPDX-License-Identifier: BSD-3-Clause

import ast
import pkgutil
import subprocess
import sys
from collections import Counter

import pytest
from importlinter import cli

import sklearn_pk

SUBPACKAGES = [info.name for info in pkgutil.iter_modules(sklearn_pk.__path__) if info.ispkg]


def imported_by(statement):
    """Return the modules that are loaded after a statement in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_contracts(project_root, monkeypatch):
    monkeypatch.chdir(project_root)
    # The captured output names the module, its import and the line.
    assert cli.lint_imports(no_cache=True) == cli.EXIT_STATUS_SUCCESS


def test_subpackages_but_one_do_not_load_torch():
    names = [name for name in SUBPACKAGES if name != "regression"]
    loaded = imported_by("import sklearn_pk\n" + "\n".join(f"sklearn_pk.{name}" for name in names))
    assert {f"sklearn_pk.{name}" for name in names} <= loaded
    assert loaded.isdisjoint({"torch", "timm", "skorch", "sklearn_pk.regression"})


def test_import_of_the_package_alone_is_light():
    loaded = imported_by("import sklearn_pk; dir(sklearn_pk)")
    assert loaded.isdisjoint({"numpy", "sklearn", "matplotlib", "openslide"})


def test_names_of_subpackages():
    assert dir(sklearn_pk) == ["__version__", *SUBPACKAGES]
    for name in SUBPACKAGES:
        assert getattr(sklearn_pk, name).__name__ == f"sklearn_pk.{name}"
    with pytest.raises(AttributeError, match="'sklearn_pk' has no attribute 'priors'"):
        _ = sklearn_pk.priors


def test_no_file_name_occurs_twice(project_root):
    names = Counter(path.name for path in (project_root / "sklearn_pk").rglob("*.py"))
    del names["__init__.py"]
    assert [name for name, count in names.items() if count > 1] == []


def private_imports(path):
    """Yield the private names of other packages than scikit-learn that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package not in ("sklearn", "sklearn_pk") and any(p[0] == "_" for p in parts):
                yield name


def test_no_private_names_of_other_packages(project_root):
    files = sorted((project_root / "sklearn_pk").rglob("*.py"))
    assert len(files) > 50
    assert {file.name: names for file in files if (names := list(private_imports(file)))} == {}
