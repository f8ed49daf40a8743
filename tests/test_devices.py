"""Each part of the library on a pretended CUDA device: no mixed devices, numbers of the CPU."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklearn_pk.prior import CoexpressionGraph, NMFGeneEmbedder
from sklearn_pk.regression import (
    PriorKnowledgeRegressor,
    PriorKnowledgeRegressorCV,
    PriorKnowledgeRidge,
    _training,
)
from sklearn_pk.slides import FoundationFeaturizer
from sklearn_pk.utils import _device
from tests.pretended_cuda import pretended_cuda

N_SLIDES, N_GENES = 16, 9
RNG = np.random.default_rng(0)
EVEN = RNG.normal(size=(N_SLIDES, 5, 6)).astype(np.float32)
RAGGED = [tiles[: 2 + row % 4] for row, tiles in enumerate(EVEN)]
Y = EVEN.mean(axis=1) @ RNG.normal(size=(6, N_GENES)) + RNG.normal(size=(N_SLIDES, N_GENES))
G = RNG.normal(size=(N_GENES, 4))
SMALL = {
    "prior": G, "max_epochs": 2, "batch_size": 8, "depth": 1, "n_heads": 2, "head_dim": 4,
    "lr": 1e-2, "random_state": 0,
}  # fmt: skip
SHAPES = {"even": EVEN, "ragged": RAGGED}
AGGREGATORS = ("mlp", "attention", "transformer", "summary_mixing", "topk")


def regressor(device="cuda", **parameters):
    return PriorKnowledgeRegressor(device=device, **(SMALL | parameters))


def search(device="cuda", **parameters):
    return PriorKnowledgeRegressorCV(regressor(device, **parameters), [0.1, 0.5], cv=2)


@pytest.mark.parametrize(
    ("layer", "dtype", "shape"),
    [
        ("published", "float32", "ragged"),
        ("projected", "float32", "even"),
        ("scores", "bfloat16", "ragged"),
        ("published", "bfloat16", "even"),
    ],
)
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_regressor(aggregator, layer, dtype, shape):
    X, options = SHAPES[shape], {"aggregator": aggregator, "layer": layer, "dtype": dtype}

    def outputs(device):
        model = regressor(device, **options).fit(X, Y)
        found = [getattr(model, name)(X[:3]) for name in ("predict", "predict_untrained", "embed")]
        return model, [*found, model.predict_tiles(X[:1])[0]]

    _, expected = outputs("cpu")
    with pretended_cuda() as cuda:
        model, found = outputs("cuda")
        weights = model.net_.module_.state_dict().values()
        assert {cuda.get(each) for each in weights} == {"cuda:0"}
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "shape"), [("float32", "ragged"), ("bfloat16", "even")])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_search(aggregator, dtype, shape):
    options = {"aggregator": aggregator, "dtype": dtype}
    expected = search("cpu", **options).fit(SHAPES[shape], Y)
    with pretended_cuda() as cuda:
        found = search("cuda", **options).fit(SHAPES[shape], Y)
        assert cuda.n_kernels
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    scores = [each.cv_results_["mean_test_score"] for each in (found, expected)]
    assert_allclose(*scores, rtol=tolerance, atol=tolerance)


def test_ridge(cuda):
    X = EVEN.mean(axis=1)
    PriorKnowledgeRidge(prior=G).fit(X, Y).predict(X)
    assert not cuda.n_kernels, "it computes on the CPU"


def test_prior(cuda):
    expression = np.abs(RNG.normal(size=(30, 20)))
    expression[::2] = expression[1::2] + 0.05 * RNG.normal(size=(15, 20))
    for options in ({}, {"absolute": True, "method": "spearman"}):
        graphs = [
            CoexpressionGraph(threshold=0.5, device=device, **options).fit_transform(expression)
            for device in ("cuda", "cpu")
        ]
        assert (graphs[0] != graphs[1]).nnz == 0
    embeddings = [
        NMFGeneEmbedder(6, device=device, max_iter=30, random_state=0).fit_transform(graphs[1])
        for device in ("cuda", "cpu")
    ]
    assert_allclose(*embeddings, rtol=1e-3, atol=1e-4)


def test_featurizer(cuda):
    tiles = [RNG.integers(0, 256, (n_tiles, 16, 16, 3), dtype=np.uint8) for n_tiles in (5, 3)]
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    bags = {
        device: FoundationFeaturizer(encoder, device=device, dtype=dtype, batch_size=2)
        .fit_transform(tiles)
        for device, dtype in (("cuda", "float32"), ("cpu", "float32"))
    }  # fmt: skip
    assert cuda.n_kernels
    for found, expected in zip(bags["cuda"], bags["cpu"], strict=True):
        assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-6)


def _note_steps(monkeypatch, cuda):
    """Record what happens in steps, and count them."""
    step, following, steps = _training._step, _training._next_batches, []

    def noted(unit, part, training):
        results = step(unit, part, training)
        if training:
            steps.append((unit, cuda.waits(), cuda.n_kernels))
        cuda.reset()
        return results

    def noted_batches(batches, device):
        # From the first request on: making a batch is part of its step.
        cuda.reset()
        yield from following(batches, device)

    monkeypatch.setattr(_training, "_step", noted)
    monkeypatch.setattr(_training, "_next_batches", noted_batches)
    return steps


@pytest.mark.parametrize("n_tiles", [None, 3])
@pytest.mark.parametrize("shape", ["even", "ragged"])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_a_step_does_not_wait(cuda, monkeypatch, aggregator, shape, n_tiles):
    steps = _note_steps(monkeypatch, cuda)
    options = {"aggregator": aggregator, "n_tiles": n_tiles, "max_epochs": 1}
    regressor(**options).fit(SHAPES[shape], Y)
    assert [waits for _, waits, _ in steps] == [[]] * 2
    if n_tiles is None and aggregator != "topk":
        # Folds of different size: the last step of one finds no batch of the other.
        rows = np.arange(N_SLIDES)
        folds = [(rows[6:], rows[:6]), (rows[2:], rows[:2])]
        estimator = regressor(batch_size=4, **options)
        PriorKnowledgeRegressorCV(estimator, [0.1, 0.5], cv=folds, refit=False).fit(
            SHAPES[shape], Y
        )
        stacked = [waits for unit, waits, _ in steps if isinstance(unit, _training.Stack)]
        assert stacked == [[]] * 4


@pytest.mark.parametrize("fault", [lambda y: y.item() * 0, lambda y: y[[0]].sum() * 0])
def test_a_wait_in_a_step_is_found(cuda, monkeypatch, fault):
    steps, evaluate = _note_steps(monkeypatch, cuda), _training.Single.evaluate

    def waiting(self, batches):
        [(runs, losses, predicted)] = evaluate(self, batches)
        return [(runs, losses + fault(losses.detach()), predicted)]

    monkeypatch.setattr(_training.Single, "evaluate", waiting)
    regressor(max_epochs=1).fit(EVEN, Y)
    assert all(waits for _, waits, _ in steps)


def test_bags_in_files_are_copied_without_waiting(cuda, monkeypatch, tmp_path):
    monkeypatch.setattr(_training, "_RESIDENT", 0)
    steps = _note_steps(monkeypatch, cuda)
    regressor(max_epochs=1).fit(RAGGED, Y)
    assert [waits for _, waits, _ in steps] == [[]] * 2


def _keep_mask(bags, device):
    features, mask = bags
    return features.to(device), mask


def _numpy_of_device(y_true, y_pred):
    return torch.as_tensor(np.corrcoef(y_true.numpy().ravel(), y_pred.numpy().ravel())[0, 1])


def _draw_on_device(bags, device):
    torch.rand(3, device=device, generator=torch.Generator())
    return bags[0].to(device), bags[1].to(device)


@pytest.mark.parametrize(
    ("name", "fault", "error", "message"),
    [
        ("to_device", _keep_mask, RuntimeError, "all tensors to be on the same device, found cpu"),
        ("mean_correlation", _numpy_of_device, TypeError, "can't convert cuda device type tensor"),
        ("to_device", _draw_on_device, RuntimeError, "device type for generator, found cpu"),
    ],
)
def test_faults_are_found(cuda, monkeypatch, name, fault, error, message):
    monkeypatch.setattr(_training, "_RESIDENT", 0)  # so that batches are moved
    monkeypatch.setattr(_training, name, fault)
    with pytest.raises(error, match=message):
        regressor().fit(RAGGED, Y)


def test_what_is_recorded(cuda):
    layer, x = torch.nn.Linear(3, 4).to("cuda"), torch.ones(2, 3, device="cuda")
    loss = layer(x).mean().detach()
    assert loss.is_cuda
    assert cuda.n_kernels == 2  # the product and the mean
    cuda.reset()
    assert cuda.waits() == []
    for wait in (
        lambda: float(loss),
        lambda: bool(loss > 0),
        loss.tolist,
        lambda: x[[0, 1]],
        lambda: x[x > 2],
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: x.cpu(),
    ):
        cuda.reset()
        wait()
        assert cuda.waits() == ["elsewhere"]


class Own(torch.nn.Module):
    """An aggregator that draws numbers."""

    def __init__(self, dim):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(dim, dim), torch.nn.Dropout(0.1))

    def forward(self, x):
        return self.net(x).mean(dim=1)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_module_on_the_device(cuda, device):
    module = Own(6).to("cuda")
    model = regressor(device, aggregator=module).fit(EVEN, Y)
    assert {cuda.get(each) for each in module.parameters()} == {"cuda:0"}, "it is left alone"
    saved = model._module_params["aggregator"]
    assert {cuda.get(each) for each in saved.parameters()} == {"cpu"}
    assert model.predict(EVEN[:2]).shape == (2, N_GENES)


@pytest.fixture
def default_device(request):
    """Set the default device of torch, as users may."""
    with pretended_cuda() as world:
        with torch.device("cuda"):
            yield world


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("aggregator", ["topk", "transformer", Own])
def test_default_device(default_device, device, aggregator):
    model = regressor(device, aggregator=aggregator, max_epochs=1).fit(RAGGED, Y)
    model.predict(RAGGED[:2])
    model.predict_untrained(RAGGED[:2])
    if aggregator == "transformer":
        search(device, aggregator=aggregator, max_epochs=1).fit(RAGGED, Y)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_default_device_in_the_featurizer(default_device, device):
    with torch.device("cpu"):
        encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    tiles = [np.zeros((3, 8, 8, 3), dtype=np.uint8)]
    assert FoundationFeaturizer(encoder, device=device).fit_transform(tiles)[0].shape == (3, 3)


@pytest.mark.parametrize("aggregator", ["mlp", "topk", Own])
def test_second_device(aggregator):
    with pretended_cuda(count=2) as cuda:
        model = regressor("cuda:1", aggregator=aggregator).fit(RAGGED, Y)
        model.predict(RAGGED[:2])
        if aggregator == "mlp":
            search("cuda:1", aggregator=aggregator).fit(RAGGED, Y)
            graph = CoexpressionGraph(threshold=0.3, device="cuda:1").fit_transform(Y.T)
            NMFGeneEmbedder(2, device="cuda:1", max_iter=2).fit(graph)
            tiles = [np.zeros((3, 8, 8, 3), dtype=np.uint8)]
            encoder = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
            FoundationFeaturizer(encoder, device="cuda:1").fit_transform(tiles)
        assert cuda.touched == {1}


@pytest.mark.parametrize("count", [1, 2])
def test_stack_is_planned_for_the_memory_left(monkeypatch, count):
    budgets = []
    with pretended_cuda(free=2**30) as cuda:
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
        with ExitStack() as others:
            for _ in range(count):
                others.enter_context(_device.occupy("cuda"))
            budgets.append(_training._budget("cuda", 0))
        assert _device.count_processes("cuda") == 0
        assert cuda.touched == {0}
    assert budgets == [0.6 * 3 * 2**30 / count]
