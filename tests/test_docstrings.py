"""Docstrings of everything public: complete, consistent, with an example that runs."""

# SPDX-License-Identifier: BSD-3-Clause

import importlib
import inspect
import tomllib

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

import sklearn_pk
from sklearn_pk.utils import all_public_objects

# The codes in pyproject.toml's [tool.numpydoc_validation], and why each is left out.
EXCLUDED = {
    "ES01": "A summary of one line can say all there is.",
    "EX01": "A method is shown by its class; test_has_an_example covers functions and classes.",
    "RT02": "Returned values have names, which say more than their types.",
    "SA01": "A method is found through its class; test_refers_to_relatives covers the others.",
    "SA04": "The name of a related function often says enough.",
    "GL01": "Common practice is undecided, and ruff format checks the quotes.",
}

PUBLIC = [
    (name, item)
    for name, item in all_public_objects()
    if inspect.isclass(item) or inspect.isfunction(item)
]
MODULES = sorted({name.rpartition(".")[0] for name, _ in PUBLIC})


def public_members():
    """Yield public functions, classes and the public methods that are written in this project."""
    for name, item in PUBLIC:
        yield name
        for member in sorted(vars(item)) if inspect.isclass(item) else ():
            # scikit-learn adds set_fit_request and its like; a dataclass has plain fields.
            module = getattr(getattr(item, member), "__module__", "")
            if module.startswith(sklearn_pk.__name__) and not member.startswith("_"):
                yield f"{name}.{member}"


def test_excluded_codes_have_a_reason(project_root):
    settings = tomllib.loads((project_root / "pyproject.toml").read_text())
    checks = settings["tool"]["numpydoc_validation"]["checks"]
    assert checks[0] == "all"
    assert set(checks[1:]) == set(EXCLUDED)


@pytest.mark.parametrize("name", list(public_members()))
def test_docstring_is_valid(name):
    errors = [f"{code} {text}" for code, text in validate(name)["errors"] if code not in EXCLUDED]
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(("name", "item"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_has_an_example(name, item):
    example = "\n".join(get_doc_object(item)["Examples"])
    assert f"from {name.rpartition('.')[0]} import" in example, "import it as a user does"


@pytest.mark.parametrize(("name", "item"), [each for each in PUBLIC if ".utils." not in each[0]])
def test_refers_to_relatives(name, item):
    assert get_doc_object(item)["See Also"], f"{name} has no section See Also"


@pytest.mark.parametrize("module", MODULES)
def test_all_is_sorted_and_complete(module):
    module = importlib.import_module(module)
    assert list(module.__all__) == sorted(set(module.__all__))
    if hasattr(module, "__path__"):
        imported = {
            name
            for name, item in vars(module).items()
            if not name.startswith("_")
            and getattr(item, "__module__", "").startswith(sklearn_pk.__name__)
        }
        assert imported <= set(module.__all__), "a subpackage imports what it does not name"


def test_the_list_of_public_objects_is_not_empty():
    assert len(MODULES) >= 8
    assert len(PUBLIC) >= 30


@pytest.mark.parametrize("name", sorted({cls.__module__ for _, cls in PUBLIC}))
def test_private_module_has_a_docstring_of_one_line(name):
    doc = importlib.import_module(name).__doc__
    assert doc
    assert "\n" not in doc.strip()
    assert doc.strip().endswith(".")
