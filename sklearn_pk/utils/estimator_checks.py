"""Checks on transformers whose X is a list of slides or bags, which scikit-learn cannot make."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError

__all__ = ["check_slide_estimator", "slide_estimator_checks"]

_BAD_X = (None, 3, 2.5, "a single name", [], (), [object()], {"a": 1}, np.array(1.0))


def assert_same(one, other):
    """
    Compare two results: arrays, dataclasses, lists of them, tables or plain values.

    Parameters
    ----------
    one, other : object
        Results. Floating point numbers may differ by rounding, NaN equals NaN.

    Raises
    ------
    AssertionError
        If they differ.
    """
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif dataclasses.is_dataclass(one):
        _assert(type(one) is type(other), f"types differ: {type(one)} and {type(other)}")
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, list | tuple):
        _assert(len(one) == len(other), f"lengths differ: {len(one)} and {len(other)}")
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif sparse.issparse(one):
        _assert(sparse.issparse(other), f"one is sparse, the other {type(other)}")
        assert_same(one.toarray(), other.toarray())
    elif np.shape(one) != np.shape(other):
        raise AssertionError(f"shapes differ: {np.shape(one)} and {np.shape(other)}")
    elif isinstance(one, np.ndarray | float) and np.asarray(one).dtype.kind == "f":
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(one, other)


def _assert(condition, message):
    # Not the statement, which python -O leaves out.
    if not condition:
        raise AssertionError(message)


def _take(X, rows):
    """Return rows of X as X itself would be indexed by a splitter."""
    if isinstance(X, pd.DataFrame | pd.Series):
        return X.iloc[rows]
    return X[rows] if isinstance(X, np.ndarray) else [X[row] for row in rows]


def _rows(result, rows):
    return [result[row] for row in rows]


def check_no_work_in_init(estimator, X):
    """
    Check that ``__init__`` stores each parameter as it is and does nothing else.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    names = estimator.get_params(deep=False)
    marks = {name: object() for name in names}
    built = type(estimator)(**marks)
    _assert(vars(built).keys() == marks.keys(), f"attributes after __init__: {sorted(vars(built))}")
    for name, mark in marks.items():
        _assert(getattr(built, name) is mark, f"__init__ changed the parameter {name!r}")
    parameters = inspect.signature(type(estimator).__init__).parameters.values()
    starred = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    _assert(not starred, f"__init__ has parameters that cannot be searched: {starred}")


def check_get_set_params(estimator, X):
    """
    Check that ``set_params`` sets what ``get_params`` gives, and refuses unknown names.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    estimator = clone(estimator)
    for name in estimator.get_params(deep=False):
        mark = object()
        _assert(estimator.set_params(**{name: mark}) is estimator, "set_params must return self")
        _assert(estimator.get_params(deep=False)[name] is mark, f"{name!r} was not set")
    try:
        estimator.set_params(no_such_parameter=1)
    except ValueError:
        return
    raise AssertionError("set_params took an unknown parameter")


def check_clone(estimator, X):
    """
    Check that a clone has the same parameters and nothing that was learned.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    fitted = clone(estimator).fit(X)
    copied = clone(fitted)
    learned = [name for name in vars(copied) if name not in copied.get_params(deep=False)]
    _assert(not learned, f"clone kept {learned}")
    assert_same(copied.fit(X).transform(X), fitted.transform(X))


def check_parameters_are_validated(estimator, X):
    """
    Check that ``fit`` refuses a parameter of a wrong type and names it.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    for name in estimator.get_params(deep=False):
        wrong = clone(estimator).set_params(**{name: object()})
        try:
            wrong.fit(X)
        except InvalidParameterError as error:
            _assert(repr(name) in str(error), f"the error does not name {name!r}: {error}")
        else:
            raise AssertionError(f"fit took an object() for the parameter {name!r}")


def check_fit_returns_self(estimator, X):
    """
    Check that ``fit`` returns the estimator, learns something and keeps the parameters.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    estimator = clone(estimator)
    before = estimator.get_params(deep=False)
    _assert(estimator.fit(X) is estimator, "fit must return self")
    estimator.transform(X)
    after = estimator.get_params(deep=False)
    changed = [name for name in before if after[name] is not before[name]]
    _assert(not changed, f"fit or transform changed the parameters {changed}")
    public = [name for name in vars(estimator) if name not in before]
    wrong = [name for name in public if not name.endswith("_") and not name.startswith("_")]
    _assert(not wrong, f"fitted attributes must end with an underscore: {wrong}")
    _assert(any(name.endswith("_") for name in public), "fit left no attribute behind")


def check_not_fitted(estimator, X):
    """
    Check that ``transform`` before ``fit`` raises NotFittedError.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    try:
        clone(estimator).transform(X)
    except NotFittedError:
        return
    raise AssertionError("transform before fit raised no NotFittedError")


def check_fit_idempotent(estimator, X):
    """
    Check that a second ``fit`` on the same X changes nothing.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    estimator = clone(estimator).fit(X)
    first = estimator.transform(X)
    assert_same(estimator.transform(X), first)
    assert_same(estimator.fit(X).transform(X), first)


def check_fit_transform(estimator, X):
    """
    Check that ``fit_transform`` equals ``fit`` followed by ``transform``.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    assert_same(clone(estimator).fit_transform(X), clone(estimator).fit(X).transform(X))


def check_as_many_out_as_in(estimator, X):
    """
    Check that ``transform`` gives one result a sample, also for fewer than were fitted.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    estimator = clone(estimator).fit(X)
    for n_samples in range(1, len(X) + 1):
        found = len(estimator.transform(_take(X, list(range(n_samples)))))
        _assert(found == n_samples, f"{n_samples} samples gave {found} results")


def check_order_does_not_matter(estimator, X):
    """
    Check that samples in another order give the same results in that order.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    result = clone(estimator).fit(X).transform(X)
    rows = list(range(len(X)))[::-1]
    turned = _take(X, rows)
    assert_same(_rows(clone(estimator).fit(turned).transform(turned), rows), list(result))


def check_company_does_not_matter(estimator, X):
    """
    Check that a sample gives the same alone, repeated, and among others.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    estimator = clone(estimator).fit(X)
    result = estimator.transform(X)
    for row in range(len(X)):
        assert_same(list(estimator.transform(_take(X, [row, row]))), _rows(result, [row, row]))
        alone = _take(X, [row])
        assert_same(list(clone(estimator).fit(alone).transform(alone)), _rows(result, [row]))


def check_n_jobs_does_not_matter(estimator, X):
    """
    Check that one and two jobs give the same.

    Parameters
    ----------
    estimator : estimator
        Transformer to check; it has the parameter `n_jobs`.
    X : list
        Samples it accepts.
    """
    one, two = (clone(estimator).set_params(n_jobs=n_jobs).fit(X) for n_jobs in (1, 2))
    assert_same(two.transform(X), one.transform(X))


def check_pickle_unfitted(estimator, X):
    """
    Check that an estimator pickled before ``fit`` works as the original does.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    copied = pickle.loads(pickle.dumps(clone(estimator)))
    assert_same(copied.fit(X).transform(X), clone(estimator).fit(X).transform(X))


def check_pickle_fitted(estimator, X):
    """
    Check that a fitted estimator and its results survive pickling.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    fitted = clone(estimator).fit(X)
    result = fitted.transform(X)
    assert_same(pickle.loads(pickle.dumps(fitted)).transform(X), result)
    assert_same(pickle.loads(pickle.dumps(result)), result)


def check_X_is_left_alone(estimator, X):
    """
    Check that neither ``fit`` nor ``transform`` changes X.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    before = copy.deepcopy(X)
    clone(estimator).fit(X).transform(X)
    assert_same(X, before)


def check_containers(estimator, X):
    """
    Check that a list, a tuple and an array of objects are taken alike.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    array = np.empty(len(X), dtype=object)
    for row, sample in enumerate(X):
        array[row] = sample
    result = clone(estimator).fit(list(X)).transform(list(X))
    for other in (tuple(X), array):
        assert_same(clone(estimator).fit(other).transform(other), result)


def check_pipeline(estimator, X):
    """
    Check that the estimator does the same in a cloned pipeline.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    pipeline = clone(make_pipeline(clone(estimator)))
    y = np.zeros(len(X))
    assert_same(pipeline.fit(X, y).transform(X), clone(estimator).fit(X).transform(X))


def check_bad_X(estimator, X):
    """
    Check that what is no list of samples gets a TypeError or ValueError with a text.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.
    X : list
        Samples it accepts.
    """
    fitted = clone(estimator).fit(X)
    for bad in _BAD_X:
        for method in (clone(estimator).fit, fitted.transform):
            try:
                method(bad)
            except (TypeError, ValueError) as error:
                _assert(len(str(error)) > 20, f"X={bad!r} got the poor text {str(error)!r}")
            else:
                raise AssertionError(f"{method.__name__} took X={bad!r}")


_CHECKS = (
    check_no_work_in_init,
    check_get_set_params,
    check_clone,
    check_parameters_are_validated,
    check_fit_returns_self,
    check_not_fitted,
    check_fit_idempotent,
    check_fit_transform,
    check_as_many_out_as_in,
    check_order_does_not_matter,
    check_company_does_not_matter,
    check_pickle_unfitted,
    check_pickle_fitted,
    check_X_is_left_alone,
    check_containers,
    check_pipeline,
    check_bad_X,
)


def slide_estimator_checks(estimator):
    """
    Generate the checks that apply to an estimator whose X is a list of slides or bags.

    Parameters
    ----------
    estimator : estimator
        Transformer to check.

    Yields
    ------
    name : str
        Name of the check.
    check : callable
        Function of (estimator, X) that raises AssertionError where the check fails.

    See Also
    --------
    check_slide_estimator : Runs them all.

    Examples
    --------
    >>> from sklearn_pk.slides import SlideTiler
    >>> from sklearn_pk.utils.estimator_checks import slide_estimator_checks
    >>> [name for name, check in slide_estimator_checks(SlideTiler())][:2]
    ['check_no_work_in_init', 'check_get_set_params']
    """
    for check in _CHECKS:
        yield check.__name__, check
    if "n_jobs" in estimator.get_params(deep=False):
        yield check_n_jobs_does_not_matter.__name__, check_n_jobs_does_not_matter


def check_slide_estimator(estimator, X):
    """
    Run all checks on an estimator whose X is a list of slides or bags.

    Parameters
    ----------
    estimator : estimator
        Transformer to check, with a fixed `random_state` where it has one.
    X : list
        Two or more different samples it accepts.

    Raises
    ------
    AssertionError
        If a check fails.

    See Also
    --------
    slide_estimator_checks : The checks one by one.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_pk.slides import SuperTileClusterer
    >>> from sklearn_pk.utils.estimator_checks import check_slide_estimator
    >>> bags = [np.eye(6), np.ones((2, 6))]
    >>> check_slide_estimator(SuperTileClusterer(n_clusters=3, random_state=0), bags)
    """
    for _, check in slide_estimator_checks(estimator):
        check(estimator, X)
