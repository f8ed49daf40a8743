"""Training and prediction on a device whose memory does not suffice."""

# SPDX-License-Identifier: BSD-3-Clause

import gc
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

from sklearn_pk.regression import PriorKnowledgeRegressor, PriorKnowledgeRegressorCV, _stack
from sklearn_pk.regression._module import ExpressionModule

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


def test_a_fit_names_the_batch_size_that_fits(data, limit):
    X, y = data
    limit(training=5 * 5)
    model = small()
    with pytest.raises(
        MemoryError,
        match=r"^batch_size=16 does not fit into the memory of cpu.*; batch_size=4 does\. Pass it",
    ) as caught:
        model.fit(X, y)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    with pytest.raises(NotFittedError):
        model.predict(X)
    # One batch of the fit; then trials, the last with two steps and held-out slides.
    trial = [(True, 16), (True, 8), (True, 4), (True, 4), (False, 4)]
    assert Picky.seen == trial
    model.set_params(batch_size=4).fit(X, y)


def test_held_out_slides_count_too(data, limit):
    X, y = data
    limit(evaluation=2 * 5)
    with pytest.raises(MemoryError, match="; batch_size=2 does"):
        small(validation_fraction=0.5).fit(X, y)


def test_the_longest_bags_are_tried(data, limit):
    _, y = data
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(2, 6)) for _ in range(40)]
    X[7] = rng.normal(size=(40, 6))
    # A batch with the long one, which is padded to it, has at most 5 slides.
    limit(training=5 * 40)
    with pytest.raises(MemoryError, match="; batch_size=4 does"):
        small(validation_fraction=0).fit(X, y)


@pytest.mark.parametrize(("n_slides", "fitting"), [(12, 8), (7, 4)])
def test_what_is_tried_is_less_than_all_slides(data, limit, n_slides, fitting):
    X, y = data
    limit(training=5 * (n_slides - 1))
    with pytest.raises(MemoryError, match=f"^batch_size=16 .*; batch_size={fitting} does"):
        small(validation_fraction=0).fit(X[:n_slides], y[:n_slides])


@pytest.mark.parametrize("batch_size", [16, 1])
def test_not_even_one_slide_fits(data, limit, batch_size):
    X, y = data
    limit(training=0)
    with pytest.raises(
        MemoryError,
        match=rf"^batch_size={batch_size} does not .* not even one slide fits, the longest of "
        r"which has 5 tiles\. Make super-tiles",
    ):
        small(batch_size=batch_size).fit(X, y)


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


def test_what_failed_is_let_go_of_before_the_trial(data, limit, monkeypatch):
    X, y = data
    made, alive = weakref.WeakSet(), []
    init, forward = ExpressionModule.__init__, ExpressionModule.forward

    def noted(self, **parameters):
        # The module of the user is laid out on the meta device for its size alone.
        made.add(self)
        init(self, **parameters)

    def counted(self, *arguments):
        alive.append(len(made))
        return forward(self, *arguments)

    monkeypatch.setattr(ExpressionModule, "__init__", noted)
    monkeypatch.setattr(ExpressionModule, "forward", counted)
    limit(training=5 * 5)
    gc.disable()
    try:
        with pytest.raises(MemoryError, match="batch_size=4 does"):
            small().fit(X, y)
    finally:
        gc.enable()
    # The fit, a trial that fails, and one that does not: each alone, without help of chance.
    assert alive == [1] * 5


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
    with pytest.raises(MemoryError, match="^batch_size=16 .* not even one slide fits"):
        small().fit(*data)


def limit_networks(monkeypatch, engine, most, first=0):
    """Let an engine run out of memory with more runs than so many, from some step on."""
    steps, step = [], engine.step

    def limited(self, batches):
        steps.append((type(self).__name__, len(self.runs)))
        if len(self.runs) > most and len(steps) > first:
            run_out()
        return step(self, batches)

    monkeypatch.setattr(engine, "step", limited)
    return steps


def search(**parameters):
    parameters = settings(prior=TruncatedSVD(3), refit=False, batch_size=8) | parameters
    return PriorKnowledgeRegressorCV([0.1, 0.5, 0.9], cv=3, **parameters)


def scores_of(model):
    return np.array([model.cv_results_[f"split{fold}_test_score"] for fold in range(3)])


def without_repeats(steps):
    return [step for step, before in zip(steps, [None, *steps], strict=False) if step != before]


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize(
    ("most", "sizes"),
    [(5, [9, 3]), (2, [9, 3, 1, 2, 1, 2, 1, 2]), (1, [9, 3, 1, 2, 1])],
)
def test_a_search_stacks_fewer_networks(data, monkeypatch, most, sizes, first):
    X, y = data
    expected = scores_of(search().fit(X, y))
    steps = limit_networks(monkeypatch, _stack.Stack, most, first)
    model = search()
    with pytest.warns(UserWarning, match="9 networks at once do not fit into") as caught:
        model.fit(X, y)
    [warning] = [each for each in caught if "networks at once" in str(each.message)]
    assert warning.filename == __file__
    assert "goes on with 3 at once, in a stack" in str(warning.message)
    # What failed is not tried again; a fold, or lambdas of one, is a stack.
    assert without_repeats(steps) == [("Stack", size) for size in sizes]
    assert_allclose(scores_of(model), expected, rtol=1e-3, atol=1e-4)


def test_networks_side_by_side_give_the_same_numbers(data, monkeypatch, limit):
    X, y = data
    limit()
    monkeypatch.setattr(_stack, "_shares_batches", lambda *_: True)
    parameters = {"aggregator": Picky}
    expected = scores_of(search(**parameters).fit(X, y))
    steps = limit_networks(monkeypatch, _stack.SideBySide, 1, first=5)
    with pytest.warns(UserWarning, match="3 networks at once .* goes on with 2 at once, side by"):
        model = search(**parameters).fit(X, y)
    # The second epoch had begun, and all of it is forgotten.
    sizes = [size for _, size in steps]
    assert sizes[:6] == [3] * 6
    assert without_repeats(sizes) == [3, 1, 2, 1]
    assert_array_equal(scores_of(model), expected)


def test_one_network_is_tried_without_a_stack(data, monkeypatch):
    X, y = data
    stacked = limit_networks(monkeypatch, _stack.Stack, 0)
    alone = limit_networks(monkeypatch, _stack.SideBySide, 1)
    with pytest.warns(UserWarning, match="networks at once do not fit"):
        search().fit(X, y)
    assert without_repeats(stacked) == [("Stack", 9), ("Stack", 3), ("Stack", 1)]
    assert without_repeats(alone) == [("SideBySide", 1)]


def test_a_single_network_is_trained_without_a_stack_and_a_word(data, monkeypatch):
    X, y = data
    parameters = settings(prior=None, refit=False, cv=[(np.arange(30), np.arange(30, 40))])
    expected = PriorKnowledgeRegressorCV([0.5], **parameters).fit(X, y).best_score_
    stacked = limit_networks(monkeypatch, _stack.Stack, 0)
    model = PriorKnowledgeRegressorCV([0.5], **parameters).fit(X, y)
    assert stacked == [("Stack", 1)]
    assert_allclose(model.best_score_, expected, rtol=1e-4)


def test_a_search_in_which_no_network_fits_names_the_batch_size(data, limit):
    X, y = data
    limit(training=5 * 5)
    with pytest.raises(
        MemoryError, match=r"^batch_size=8 does not fit into the memory of .*; batch_size=4 does"
    ):
        search(aggregator=Picky).fit(X, y)


def test_failed_stacks_are_let_go_of(data, monkeypatch):
    X, y = data
    made, alive = weakref.WeakSet(), []
    init = _stack.Stack.__init__

    def noted(self, *arguments):
        alive.append(len(made))
        made.add(self)
        init(self, *arguments)

    monkeypatch.setattr(_stack.Stack, "__init__", noted)
    limit_networks(monkeypatch, _stack.Stack, 3)
    with pytest.warns(UserWarning, match="networks at once do not fit"):
        search().fit(X, y)
    assert len(alive) > 2
    assert not any(alive)


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
    with pytest.warns(UserWarning, match="64 windows .* Went on with 16, which changes") as caught:
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
    # 32 slides are 4 MB, and 66 MB in some places of the network.
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
            fitting = int(str(error).split("batch_size=")[2].split()[0])
        model.set_params(batch_size=fitting).fit(X, y)
        print(fitting, len(model.history_))
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
        r"batch_size=\d+ does\.",
        message,
    )
    fitting, n_epochs = map(int, last.split())
    assert 1 <= fitting <= 16
    assert n_epochs == 1
