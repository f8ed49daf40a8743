"""Lists of all public objects, for tests and documentation."""

# SPDX-License-Identifier: BSD-3-Clause

import inspect
import pkgutil
from importlib import import_module

from sklearn.base import BaseEstimator

# A string, because utils must not import the other subpackages.
_ROOT = __name__.split(".")[0]


def _public_modules(name):
    """Yield the public modules of a package, itself included."""
    module = import_module(name)
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not info.name.startswith("_"):
            yield from _public_modules(f"{name}.{info.name}")


def all_public_objects():
    """
    List all public functions, classes and other objects.

    The names in ``__all__`` of modules and subpackages without a leading underscore are
    public.

    Returns
    -------
    objects : list of tuple of (str, object)
        Public names, such as ``"sklearn_pk.prior.CoexpressionGraph"``, and their objects,
        sorted by name. An object with two public names is listed twice.

    Raises
    ------
    AttributeError
        If a public module has no ``__all__``, or lacks a name in it.

    See Also
    --------
    all_estimators : List the estimators only.

    Examples
    --------
    >>> from sklearn_pk.utils import all_public_objects
    >>> "sklearn_pk.metrics.significance_report" in dict(all_public_objects())
    True
    """
    return sorted(
        (
            (f"{module.__name__}.{name}", getattr(module, name))
            for module in _public_modules(_ROOT)
            for name in module.__all__
            if not name.startswith("__")
        ),
        key=lambda item: item[0],
    )


def all_estimators():
    """
    List all public estimators.

    Returns
    -------
    estimators : list of tuple of (str, type)
        Class names and classes, sorted by name, each class once.

    See Also
    --------
    all_public_objects : List all public objects.
    sklearn.utils.discovery.all_estimators : List those of scikit-learn.

    Examples
    --------
    >>> from sklearn_pk.utils import all_estimators
    >>> [name for name, _ in all_estimators() if name.endswith("Regressor")]
    ['PriorKnowledgeRegressor']
    """
    found = {
        item
        for _, item in all_public_objects()
        if inspect.isclass(item)
        and issubclass(item, BaseEstimator)
        and not inspect.isabstract(item)
    }
    return sorted(((item.__name__, item) for item in found), key=lambda item: item[0])
