"""Checks on transformers whose X is a list of slides or bags, which scikit-learn skips."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import dataclasses
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.validation import check_is_fitted

from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, SuperTileClusterer

# Those of scikit-learn that need no valid X.
SKLEARN_CHECKS = (
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_param_validation,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_set_params,
    estimator_checks.check_valid_tag_types,
)

INVALID_X = (None, 3, 2.5, "a single name", [], (), [object()], {"a": 1}, np.array(1.0))


def assert_same(one, other):
    """Compare arrays, dataclasses, tables and lists of them up to rounding."""
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif dataclasses.is_dataclass(one):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif sparse.issparse(one):
        assert_same(one.toarray(), other.toarray())
    elif isinstance(one, np.ndarray | float) and np.asarray(one).dtype.kind == "f":
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    else:
        assert np.shape(one) == np.shape(other)
        np.testing.assert_array_equal(one, other)


def fit_transform(estimator, X):
    return clone(estimator).fit(X).transform(X)


def check_fit(estimator, X):
    estimator = clone(estimator)
    before = estimator.get_params(deep=False)
    assert estimator.fit(X) is estimator
    estimator.transform(X)
    after = estimator.get_params(deep=False)
    assert [name for name in before if after[name] is not before[name]] == []
    fitted = [name for name in vars(estimator) if name not in before]
    assert [n for n in fitted if not n.endswith("_") and not n.startswith("_")] == []
    assert any(name.endswith("_") for name in fitted)


def check_not_fitted(estimator, X):
    if not get_tags(estimator).requires_fit:
        assert_same(clone(estimator).transform(X), fit_transform(estimator, X))
        return
    with pytest.raises(NotFittedError):
        clone(estimator).transform(X)


def check_fit_idempotent(estimator, X):
    estimator = clone(estimator).fit(X)
    first = estimator.transform(X)
    assert_same(estimator.transform(X), first)
    assert_same(estimator.fit(X).transform(X), first)


def check_fit_transform(estimator, X):
    assert_same(clone(estimator).fit_transform(X), fit_transform(estimator, X))


def check_clone_and_pipeline(estimator, X):
    fitted = clone(estimator).fit(X)
    copied = clone(fitted)
    assert vars(copied).keys() == copied.get_params(deep=False).keys()
    result = fitted.transform(X)
    assert_same(copied.fit(X).transform(X), result)
    pipeline = clone(make_pipeline(clone(estimator)))
    assert_same(pipeline.fit(X, np.zeros(len(X))).transform(X), result)


def check_n_outputs(estimator, X):
    estimator = clone(estimator).fit(X)
    for n_samples in range(1, len(X) + 1):
        assert len(estimator.transform(X[:n_samples])) == n_samples


def check_sample_order(estimator, X):
    turned = fit_transform(estimator, X[::-1])
    assert_same(list(turned)[::-1], list(fit_transform(estimator, X)))


def check_sample_independence(estimator, X):
    estimator = clone(estimator).fit(X)
    result = list(estimator.transform(X))
    for row, sample in enumerate(X):
        assert_same(list(estimator.transform([sample] * 2)), [result[row]] * 2)
        assert_same(list(fit_transform(estimator, [sample])), [result[row]])


def check_n_jobs(estimator, X):
    # Processes that import torch are tested in slides/test_spread.py.
    backend = "threading" if isinstance(estimator, FoundationFeaturizer) else "loky"
    with joblib.parallel_config(backend=backend):
        one, two = (fit_transform(clone(estimator).set_params(n_jobs=n), X) for n in (1, 2))
    assert_same(two, one)


def check_pickle(estimator, X):
    unfitted = pickle.loads(pickle.dumps(clone(estimator)))
    fitted = clone(estimator).fit(X)
    result = fitted.transform(X)
    assert_same(unfitted.fit(X).transform(X), result)
    assert_same(pickle.loads(pickle.dumps(fitted)).transform(X), result)
    assert_same(pickle.loads(pickle.dumps(result)), result)


def check_X_unchanged(estimator, X):
    before = copy.deepcopy(X)
    fit_transform(estimator, X)
    assert_same(X, before)


def check_containers(estimator, X):
    array = np.empty(len(X), dtype=object)
    for row, sample in enumerate(X):
        array[row] = sample
    result = fit_transform(estimator, list(X))
    for container in (tuple(X), array):
        assert_same(fit_transform(estimator, container), result)


def check_invalid_X(estimator, X):
    fitted = clone(estimator).fit(X)
    for invalid in INVALID_X:
        for method in (clone(estimator).fit, fitted.transform):
            with pytest.raises((TypeError, ValueError)) as caught:
                method(invalid)
            assert len(str(caught.value)) > 20


CHECKS = (
    check_fit,
    check_not_fitted,
    check_fit_idempotent,
    check_fit_transform,
    check_clone_and_pipeline,
    check_n_outputs,
    check_sample_order,
    check_sample_independence,
    check_n_jobs,
    check_pickle,
    check_X_unchanged,
    check_containers,
    check_invalid_X,
)

torch.manual_seed(0)
MODULE = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
)
ESTIMATORS = {
    "SlideTiler": SlideTiler(tile_size=64, max_tiles=5, random_state=0),
    "FoundationFeaturizer": FoundationFeaturizer(MODULE, device="cpu"),
    "SuperTileClusterer": SuperTileClusterer(n_clusters=4, random_state=0),
}


@pytest.fixture(scope="session")
def samples(tmp_path_factory, cmu_slide):
    """Name of an estimator -> three samples it accepts."""
    import openslide
    import tifffile

    folder = tmp_path_factory.mktemp("slides")
    with openslide.OpenSlide(cmu_slide) as slide:
        rgb = np.array(slide.read_region((1000, 2200), 0, (700, 500)).convert("RGB"))
    paths = []
    for name, pixels in (("a", rgb[:301]), ("b", rgb[200:, :333]), ("c", rgb[100:, 300:])):
        paths.append(str(folder / f"{name}.tiff"))
        tifffile.imwrite(
            paths[-1],
            pixels,
            tile=(64, 64),
            compression="jpeg",
            photometric="rgb",
            resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )
    tiled = ESTIMATORS["SlideTiler"].fit_transform(paths)
    rng = np.random.default_rng(0)
    return {
        "SlideTiler": paths,
        "FoundationFeaturizer": tiled,
        "SuperTileClusterer": [rng.normal(size=(n, 6)) for n in (30, 3, 11)],
    }


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_slide_estimator(name, check, samples):
    check(ESTIMATORS[name], samples[name])


@pytest.mark.parametrize("check", SKLEARN_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_scikit_learn_check(name, check):
    # This one makes its own instance.
    is_of_class = check is estimator_checks.check_parameters_default_constructible
    if is_of_class and name == "FoundationFeaturizer":
        pytest.skip("the encoder has no default")
    check(name, clone(ESTIMATORS[name]))


class Doubler(TransformerMixin, BaseEstimator):
    """A valid transformer of lists of arrays; its subclasses each have one fault."""

    def __init__(self, n_jobs=None):
        self.n_jobs = n_jobs

    def fit(self, X, y=None):
        self._check(X)
        self.fitted_ = True
        return self

    def transform(self, X):
        check_is_fitted(self)
        self._check(X)
        return [2 * x for x in X]

    def _check(self, X):
        is_sequence = isinstance(X, list | tuple | np.ndarray) and getattr(X, "ndim", 1) == 1
        if not is_sequence or not len(X) or not all(isinstance(x, np.ndarray) for x in X):
            raise ValueError(f"Expected a list of arrays, got {X!r}.")


class CountsFits(Doubler):
    def fit(self, X, y=None):
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        return super().fit(X)

    def transform(self, X):
        return [self.n_fits_ * x for x in super().transform(X)]


class DropsLast(Doubler):
    def transform(self, X):
        return super().transform(X)[:2]


class AddsPosition(Doubler):
    def transform(self, X):
        return [x + row for row, x in enumerate(super().transform(X))]


class AddsNumberOfSamples(Doubler):
    def transform(self, X):
        return [x + len(X) for x in super().transform(X)]


class AddsNumberOfJobs(Doubler):
    def transform(self, X):
        return [x + (self.n_jobs or 0) for x in super().transform(X)]


class LosesStateInPickle(Doubler):
    def __getstate__(self):
        return {"n_jobs": self.n_jobs}


class ChangesX(Doubler):
    def transform(self, X):
        for x in X:
            x += 1
        return super().transform(X)


class AcceptsAnything(Doubler):
    def _check(self, X):
        pass

    def transform(self, X):
        check_is_fitted(self)
        return list(X) if isinstance(X, list | tuple | str | dict | np.ndarray) else [X]


class AcceptsListsOnly(Doubler):
    def _check(self, X):
        if not isinstance(X, list):
            raise TypeError(f"Expected a list of arrays, got {X!r}.")
        super()._check(X)


class UsesY(Doubler):
    def fit(self, X, y=None):
        self.shift_ = 0 if y is None else 1
        return super().fit(X)

    def transform(self, X):
        return [x + self.shift_ for x in super().transform(X)]


class TransformsDifferently(Doubler):
    def fit_transform(self, X, y=None):
        return [x + 1 for x in self.fit(X).transform(X)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_checks_pass_for_a_valid_estimator(check):
    check(Doubler(), [np.arange(3.0), np.ones(2), np.zeros(4)])


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (CountsFits, check_fit_idempotent),
        (DropsLast, check_n_outputs),
        (AddsPosition, check_sample_order),
        (AddsNumberOfSamples, check_sample_independence),
        (AddsNumberOfJobs, check_n_jobs),
        (LosesStateInPickle, check_pickle),
        (ChangesX, check_X_unchanged),
        (AcceptsAnything, check_invalid_X),
        (AcceptsListsOnly, check_containers),
        (UsesY, check_clone_and_pipeline),
        (TransformsDifferently, check_fit_transform),
    ],
)
def test_check_finds_a_fault(broken, check):
    with pytest.raises((AssertionError, NotFittedError, TypeError, pytest.fail.Exception)):
        check(broken(), [np.arange(3.0), np.ones(2), np.zeros(4)])
