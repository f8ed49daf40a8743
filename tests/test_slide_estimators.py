"""Our generic checks on estimators whose X is a list of slides or bags."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_pk.slides import FoundationFeaturizer, SlideTiler, SuperTileClusterer
from sklearn_pk.utils.estimator_checks import (
    assert_same,
    check_slide_estimator,
    slide_estimator_checks,
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
N_CHECKS = {"SlideTiler": 18, "FoundationFeaturizer": 18, "SuperTileClusterer": 18}

CASES = [
    pytest.param(name, check, id=f"{name}-{check_name}")
    for name, estimator in ESTIMATORS.items()
    for check_name, check in slide_estimator_checks(estimator)
]


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


@pytest.mark.parametrize(("name", "check"), CASES)
def test_slide_estimator_check(name, check, samples):
    check(ESTIMATORS[name], samples[name])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_number_of_checks(name):
    names = [check_name for check_name, _ in slide_estimator_checks(ESTIMATORS[name])]
    assert len(set(names)) == len(names) == N_CHECKS[name]


class Doubler(TransformerMixin, BaseEstimator):
    """A transformer of lists of arrays without a fault."""

    _parameter_constraints = {"factor": [float]}

    def __init__(self, factor=2.0, n_jobs=None):
        self.factor = factor
        self.n_jobs = n_jobs

    def fit(self, X, y=None):
        self._validate_params()
        self._check(X)
        self.fitted_ = True
        return self

    def transform(self, X):
        check_is_fitted(self)
        self._check(X)
        return [self.factor * x for x in X]

    def _check(self, X):
        sequence = isinstance(X, list | tuple | np.ndarray) and getattr(X, "ndim", 1) == 1
        if not sequence or not len(X) or not all(isinstance(x, np.ndarray) for x in X):
            raise ValueError(f"Expected a list of arrays, got {X!r}.")


Doubler._parameter_constraints["n_jobs"] = [int, None]


class WorksInInit(Doubler):
    def __init__(self, factor=2.0, n_jobs=None):
        super().__init__(factor, n_jobs)
        self.ready = True


class ForgetsToValidate(Doubler):
    def _validate_params(self):
        pass


class ReturnsNothing(Doubler):
    def fit(self, X, y=None):
        super().fit(X)


class NeedsNoFit(Doubler):
    def transform(self, X):
        return [self.factor * np.asarray(x) for x in X]


class CountsItsFits(Doubler):
    def fit(self, X, y=None):
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        return super().fit(X)

    def transform(self, X):
        return [self.n_fits_ * x for x in super().transform(X)]


class DropsTheLast(Doubler):
    def transform(self, X):
        return super().transform(X)[:2]


class AddsThePosition(Doubler):
    def transform(self, X):
        return [x + row for row, x in enumerate(super().transform(X))]


class DependsOnOthers(Doubler):
    def transform(self, X):
        result = super().transform(X)
        return [x + len(result) for x in result]


class DependsOnJobs(Doubler):
    def transform(self, X):
        return [x + (self.n_jobs or 0) for x in super().transform(X)]


class DoesNotPickle(Doubler):
    def fit(self, X, y=None):
        self.function_ = lambda x: x
        return super().fit(X)


class WritesIntoX(Doubler):
    def transform(self, X):
        for x in X:
            x += 1
        return super().transform(X)


class TakesAnything(Doubler):
    def _check(self, X):
        pass

    def transform(self, X):
        check_is_fitted(self)
        return list(X) if isinstance(X, list | tuple | str | dict | np.ndarray) else [X]


class SetsNothing(Doubler):
    def set_params(self, **parameters):
        return self


class RemembersThroughClone(Doubler):
    def __sklearn_clone__(self):
        copied = type(self)(**self.get_params())
        copied.__dict__.update(vars(self))
        return copied


class FitsAndTransformsOtherwise(Doubler):
    def fit_transform(self, X, y=None):
        return [x + 1 for x in self.fit(X).transform(X)]


class LearnsFromY(Doubler):
    def fit(self, X, y=None):
        self.shift_ = 0 if y is None else 1
        return super().fit(X)

    def transform(self, X):
        return [x + self.shift_ for x in super().transform(X)]


class DoesNotPickleUnfitted(Doubler):
    def __getstate__(self):
        if not hasattr(self, "fitted_"):
            raise TypeError("not before fit")
        return super().__getstate__()


class TakesListsOnly(Doubler):
    def _check(self, X):
        if not isinstance(X, list):
            raise TypeError(f"Expected a list of arrays, got {X!r}.")
        super()._check(X)


@pytest.fixture
def arrays():
    return [np.arange(3.0), np.ones(2), np.zeros(4)]


def failing_checks(estimator, X):
    failed = set()
    for name, check in slide_estimator_checks(estimator):
        try:
            check(estimator, [x.copy() for x in X])
        except Exception:  # noqa: BLE001 - whatever a broken estimator raises, the check failed
            failed.add(name)
    return failed


def test_a_sound_estimator_passes(arrays):
    check_slide_estimator(Doubler(), arrays)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (WorksInInit, "check_no_work_in_init"),
        (ForgetsToValidate, "check_parameters_are_validated"),
        (ReturnsNothing, "check_fit_returns_self"),
        (NeedsNoFit, "check_not_fitted"),
        (CountsItsFits, "check_fit_idempotent"),
        (DropsTheLast, "check_as_many_out_as_in"),
        (AddsThePosition, "check_order_does_not_matter"),
        (DependsOnOthers, "check_company_does_not_matter"),
        (DependsOnJobs, "check_n_jobs_does_not_matter"),
        (DoesNotPickle, "check_pickle_fitted"),
        (WritesIntoX, "check_X_is_left_alone"),
        (TakesAnything, "check_bad_X"),
        (TakesListsOnly, "check_containers"),
        (SetsNothing, "check_get_set_params"),
        (RemembersThroughClone, "check_clone"),
        (FitsAndTransformsOtherwise, "check_fit_transform"),
        (DoesNotPickleUnfitted, "check_pickle_unfitted"),
        (LearnsFromY, "check_pipeline"),
    ],
)
def test_a_broken_estimator_fails_its_check(broken, check, arrays):
    failed = failing_checks(broken(), arrays)
    assert check in failed
    # These two spoil whatever comes after them.
    if broken not in (ReturnsNothing, WritesIntoX):
        assert len(failed) < len(list(slide_estimator_checks(Doubler()))) / 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.ones((3, 2)), 1.0),
        (np.ones((3, 2)), np.ones((1, 2))),
        (sparse.csr_array(np.eye(3)), np.eye(3)),
        (sparse.csr_array(np.eye(3)), sparse.csr_array(2 * np.eye(3))),
        ([np.ones(2)], [np.ones(2), np.ones(2)]),
    ],
)
def test_results_that_differ_are_not_the_same(one, other):
    assert_same(one, one)
    with pytest.raises(AssertionError):
        assert_same(one, other)
