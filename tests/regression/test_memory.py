"""Training and prediction on a device whose memory does not suffice."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import re
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV, _training

# Torch before 2.5 has it there only.
OutOfMemoryError = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError


def run_out():
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Picky(nn.Module):
    """An aggregator that has memory for a few tiles only, padding included."""

    # The module is copied, so these are shared by all copies.
    most = {True: 10**9, False: 10**9}
    seen = []

    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.3))

    def forward(self, x, mask=None):
        # A bag of zeros is shown to each new module.
        if x.any():
            self.seen.append((self.training, x.shape[0]))
        result = self.net(x).mean(dim=1)
        if x.any() and x.shape[0] * x.shape[1] > self.most[self.training]:
            run_out()
        return result


@pytest.fixture
def limit(monkeypatch):
    """Return a function that limits the tiles in training and in evaluation."""
    monkeypatch.setattr(Picky, "seen", [])

    def limit(training=10**9, evaluation=10**9):
        monkeypatch.setattr(Picky, "most", {True: training, False: evaluation})

    return limit


def settings(**parameters):
    defaults = {"max_epochs": 3, "random_state": 0, "lr": 1e-2, "batch_size": 16, "device": "cpu"}
    return defaults | parameters


def small(**parameters):
    return PriorKnowledgeRegressor(**settings(**{"aggregator": Picky} | parameters))


@pytest.mark.parametrize("limits", [{"training": 5 * 5}, {"evaluation": 2 * 5}])
def test_a_fit_names_the_batch_size_and_the_memory(data, limit, limits):
    X, y = data
    limit(**limits)
    model = small(validation_fraction=0.5)
    with pytest.raises(
        MemoryError,
        match=r"^batch_size=16 does not fit into the memory of cpu.*; the longest slide has 5 "
        r"tiles\. Use a smaller batch_size.*SuperTileClusterer",
    ) as caught:
        model.fit(X, y)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert [training for training, _ in Picky.seen].count(True) <= 2, "nothing is tried again"
    model.set_params(batch_size=2).fit(X, y)


def test_the_generator_is_left_alone(data, limit):
    X, y = data
    torch.manual_seed(3)
    limit()
    model = small()
    expected = model.fit(X, y).predict(X)
    state = torch.get_rng_state()
    limit(training=5 * 5)
    with pytest.raises(MemoryError):
        model.fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    limit()
    assert_array_equal(model.fit(X, y).predict(X), expected)


def test_errors_of_other_kinds_are_left_as_they_are(data, monkeypatch):
    def broken(self, x, mask=None):
        if self.training:
            raise RuntimeError("wrong shape")
        return x.mean(dim=1)

    monkeypatch.setattr(Picky, "forward", broken)
    with pytest.raises(RuntimeError, match="^wrong shape$"):
        small().fit(*data)


def test_a_module_that_finds_no_memory_for_one_bag_is_not_called_wrong(data, monkeypatch):
    def full(self, x, mask=None):
        run_out()

    monkeypatch.setattr(Picky, "forward", full)
    with pytest.raises(MemoryError, match="^batch_size=16 does not fit"):
        small().fit(*data)


def limit_networks(monkeypatch, most, first=0):
    """Let a step run out of memory with more networks than that; return the sizes of all steps."""
    sizes, run_epoch, step = [], _training._run_epoch, _training._step

    def limited_epoch(units, *arguments, **keywords):
        sizes.append(sum(len(unit.runs) for unit in units))
        return run_epoch(units, *arguments, **keywords)

    def limited_step(*arguments):
        if sizes[-1] > most and len(sizes) > first:
            run_out()
        return step(*arguments)

    monkeypatch.setattr(_training, "_run_epoch", limited_epoch)
    monkeypatch.setattr(_training, "_step", limited_step)
    return sizes


def search(**parameters):
    parameters = settings(prior=TruncatedSVD(3), batch_size=8) | parameters
    regressor = PriorKnowledgeRegressor(**parameters)
    return PriorKnowledgeRegressorCV(regressor, [0.1, 0.5, 0.9], cv=3, refit=False)


def scores_of(model):
    return np.array([model.cv_results_[f"split{fold}_test_score"] for fold in range(3)])


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(("aggregator", "at_once"), [("mlp", 9), (Picky, 3)])
def test_a_search_goes_on_with_one_network_at_a_time(
    data, monkeypatch, limit, aggregator, at_once, first
):
    X, y = data
    limit()
    monkeypatch.setattr(_training, "_shares_batches", lambda *_: True)
    expected = scores_of(search(aggregator=aggregator).fit(X, y))
    sizes = limit_networks(monkeypatch, 1, first)
    model = search(aggregator=aggregator)
    with pytest.warns(UserWarning, match=f"^{at_once} networks at once do not fit into") as caught:
        model.fit(X, y)
    [warning] = [each for each in caught if "networks at once" in str(each.message)]
    assert warning.filename == __file__
    assert sizes == [at_once] * (first + 1) + [1] * 9 * 6, "what has failed is not tried again"
    assert_allclose(scores_of(model), expected, rtol=1e-3, atol=1e-4)


def test_a_search_in_which_no_network_fits_names_the_batch_size(data, limit):
    X, y = data
    limit(training=5 * 5)
    with pytest.raises(MemoryError, match=r"^batch_size=8 does not fit into the memory of "):
        search(aggregator=Picky).fit(X, y)


def test_failed_stacks_are_freed(data, monkeypatch):
    X, y = data
    stacks, alive = weakref.WeakSet(), []
    init, single = _training.Stack.__init__, _training.Single.__init__

    def noted(self, *arguments):
        stacks.add(self)
        init(self, *arguments)

    def counted(self, *arguments):
        alive.append(len(stacks))
        single(self, *arguments)

    monkeypatch.setattr(_training.Stack, "__init__", noted)
    monkeypatch.setattr(_training.Single, "__init__", counted)
    limit_networks(monkeypatch, 3)
    with pytest.warns(UserWarning, match="networks at once do not fit"):
        search().fit(X, y)
    assert alive == [0] * 9


def test_a_slide_that_cannot_be_predicted_is_named(data, limit):
    X, y = data
    limit()
    model = small().fit(X, y)
    bags = [X[0], np.repeat(X[1], 9, axis=0)]
    limit(evaluation=10)
    for method in (model.predict, model.predict_untrained, model.embed):
        with pytest.raises(
            MemoryError,
            match=r"^bag 1 has 45 tiles, which the network cannot predict in the memory of cpu.*"
            r"SuperTileClusterer.*model\.net_\.set_params\(device='cpu'\)\.module_\.to\('cpu'\)",
        ) as caught:
            method(bags)
        assert isinstance(caught.value.__cause__, OutOfMemoryError)
    assert_array_equal(model.predict(bags[:1]), model.predict(X[:1]))


def test_the_network_can_be_moved_as_advised(data, limit):
    X, y = data
    limit()
    model = small().fit(X, y)
    expected = model.predict(X)
    model.net_.device = "meta"
    model.net_.set_params(device="cpu").module_.to("cpu")
    assert_array_equal(model.predict(X), expected)


def test_maps_in_smaller_batches(data, limit):
    X, y = data
    limit()
    model = small().fit(X, y)
    bags = [np.concatenate(X[:20]), np.concatenate(X[20:])]
    expected = model.predict_tiles(bags)
    Picky.seen.clear()
    limit(evaluation=20)
    with pytest.warns(
        UserWarning, match="64 windows .* Continued with 16, which changes"
    ) as caught:
        frames = model.predict_tiles(bags)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [size for _, size in Picky.seen] == [64, 32, *[16] * 6, 4, *[16] * 6, 4]
    for frame, other in zip(frames, expected, strict=True):
        assert_allclose(frame.to_numpy(), other.to_numpy(), rtol=1e-5, atol=1e-6)
    limit(evaluation=0)
    with pytest.raises(MemoryError, match="predict_tiles: bag 0 has windows whose 1 tiles do not"):
        model.predict_tiles(bags)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_real_lack_of_memory():
    # 32 slides are 4 MB, and 66 MB in some layers of the network.
    code = textwrap.dedent(
        """
        import resource
        import numpy as np, torch
        from sklearn_pk.regression import PriorKnowledgeRegressor

        torch.set_num_threads(1)
        rng = np.random.default_rng(0)
        X = rng.normal(size=(32, 500, 64)).astype(np.float32)
        y = rng.normal(size=(32, 5))
        model = PriorKnowledgeRegressor(
            aggregator="summary_mixing", depth=2, max_epochs=1, batch_size=32, device="cpu",
            validation_fraction=0, random_state=0,
        )
        small = X[:4, :10], y[:4]
        model.fit(*small)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
        try:
            model.fit(X, y)
        except MemoryError as error:
            print(error)
        model.set_params(batch_size=2).fit(X, y)
        print(len(model.history_))
        """
    )
    # What is freed is given back to the system, so that memory does not end in small pieces.
    variables = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr
    message, last = done.stdout.splitlines()
    assert re.match(
        r"batch_size=32 does not fit into the memory of cpu \(\d+\.\d of \d+\.\d GiB free\); "
        r"the longest slide has 500 tiles\.",
        message,
    )
    assert last == "1"
