"""Prior knowledge in any torch model."""

# SPDX-License-Identifier: BSD-3-Clause

import copy

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from sklearn_pk.regression import (
    PriorKnowledgeLinear,
    PriorKnowledgeRegressor,
    inject_prior_knowledge,
)

N_GENES = 30


class AttentionMIL(nn.Module):
    def __init__(self, n_features=8, width=12):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(n_features, width), nn.ReLU())
        self.score = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1))
        self.genes = nn.Linear(width, N_GENES)

    def forward(self, tiles):
        h = self.embed(tiles)
        return self.genes((self.score(h).softmax(dim=1) * h).sum(dim=1))


def embeddings_of(width, seed=0):
    return np.random.default_rng(seed).normal(size=(N_GENES, width)).astype(np.float32)


def bags(n=5):
    return torch.randn(n, 6, 8, generator=torch.Generator().manual_seed(0))


def fit_regressor(aggregator):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 4, 8)).astype(np.float32), rng.normal(size=(12, N_GENES))
    model = PriorKnowledgeRegressor(
        aggregator=aggregator, max_epochs=1, depth=1, n_heads=2, head_dim=4, random_state=0
    )
    return model.fit(X, y), X


def watch(layer):
    seen = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    return seen


def by_hand(w, A, G, b, lambda_):
    w, A, b = (tensor.detach().double().numpy() for tensor in (w, A, b))
    return (1 - lambda_) * w @ A.T + lambda_ * w @ G.T + b


def check_injection(model, layer, G, lambda_, inputs):
    old = model.get_submodule(layer)
    weight, bias, before = old.weight, old.bias, old.weight.detach().clone()
    assert inject_prior_knowledge(model, G, lambda_) is model
    new = model.get_submodule(layer)
    assert isinstance(new, PriorKnowledgeLinear)
    assert new is not old
    assert new.weight is weight
    assert new.bias is bias
    assert torch.equal(weight, before)
    seen = watch(new)
    with torch.no_grad():
        model(inputs)
    [(w, output)] = seen
    assert_allclose(output, by_hand(w, weight, G, bias, lambda_), rtol=1e-4, atol=1e-5)
    assert not np.allclose(output, by_hand(w, weight, G, bias, 0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregator", ["mlp", "transformer", "summary_mixing", "topk"])
def test_own_aggregators(aggregator):
    model, X = fit_regressor(aggregator)
    check_injection(model.net_.module_.eval(), "layer", embeddings_of(8), 0.3, torch.from_numpy(X))


def test_a_regressor_predicts_with_it():
    model, X = fit_regressor("mlp")
    module, G = model.net_.module_, embeddings_of(8)
    inject_prior_knowledge(module, G, 0.3)
    w = torch.from_numpy(model.embed(X))
    mixed = by_hand(w, module.layer.weight, G, module.layer.bias, 0.3)
    expected = module.target_mean.numpy() + module.target_scale.numpy() * mixed
    assert_allclose(model.predict(X), expected, rtol=1e-4, atol=1e-5)


def test_timm_model():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False, num_classes=N_GENES).eval()
    check_injection(model, "fc", embeddings_of(512), 0.4, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("n_bags", [5, 200])
def test_attention_mil(n_bags):
    torch.manual_seed(0)
    check_injection(AttentionMIL(), "genes", embeddings_of(12), 0.7, bags(n_bags))


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, np.ndarray.tolist, np.float64])
def test_forms_of_embeddings(convert):
    model = inject_prior_knowledge(AttentionMIL(), convert(embeddings_of(12)))
    assert model.genes.embeddings.dtype == torch.float32
    assert_array_equal(model.genes.embeddings, embeddings_of(12))
    assert model.genes.lambda_ == 0.5


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_embeddings_are_copied(convert):
    G = embeddings_of(12)
    model = inject_prior_knowledge(AttentionMIL(), convert(G))
    G[:] = 0
    assert_array_equal(model.genes.embeddings, embeddings_of(12))


def test_narrow_embeddings_are_padded():
    model = AttentionMIL()
    weight = model.genes.weight.detach().clone()
    inject_prior_knowledge(model, embeddings_of(5))
    assert_array_equal(model.genes.embeddings[:, :5], embeddings_of(5))
    assert_array_equal(model.genes.embeddings[:, 5:], np.zeros((N_GENES, 7)))
    assert torch.equal(model.genes.weight, weight)


@pytest.mark.parametrize("bias", [True, False])
def test_bare_linear_layer(bias):
    linear = nn.Linear(12, N_GENES, bias=bias)
    new = inject_prior_knowledge(linear, embeddings_of(12), 1.0)
    assert isinstance(new, PriorKnowledgeLinear)
    assert new.weight is linear.weight
    assert new.bias is linear.bias
    w = torch.randn(4, 12)
    expected = w.numpy() @ embeddings_of(12).T + (linear.bias.detach().numpy() if bias else 0)
    assert_allclose(new(w).detach(), expected, rtol=1e-4, atol=1e-5)


def test_layer_by_name():
    def make():
        return nn.Sequential(nn.Linear(8, N_GENES), nn.ReLU(), nn.Linear(N_GENES, N_GENES))

    model = inject_prior_knowledge(nn.ModuleDict({"a": make()}), embeddings_of(8), layer="a.0")
    assert [type(part) for part in model["a"]] == [PriorKnowledgeLinear, nn.ReLU, nn.Linear]
    model = inject_prior_knowledge(nn.ModuleDict({"a": make()}), embeddings_of(8))
    assert [type(part) for part in model["a"]] == [nn.Linear, nn.ReLU, PriorKnowledgeLinear]


def test_training_changes_the_weights_and_not_the_embeddings():
    torch.manual_seed(0)
    model = AttentionMIL()
    # Made before: it still holds the parameters of the layer.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inject_prior_knowledge(model, embeddings_of(12), 0.5)
    weight, losses = model.genes.weight.detach().clone(), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(bags()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(model.genes.weight, weight)
    assert_array_equal(model.genes.embeddings, embeddings_of(12))
    assert "genes.embeddings" not in dict(model.named_parameters())


def test_embeddings_are_saved():
    torch.manual_seed(0)
    model = inject_prior_knowledge(AttentionMIL(), embeddings_of(12), 0.5)
    other = inject_prior_knowledge(AttentionMIL(), embeddings_of(12, seed=1), 0.5)
    assert not torch.equal(other(bags()), model(bags()))
    other.load_state_dict(model.state_dict())
    assert_array_equal(other.genes.embeddings, embeddings_of(12))
    for same in (other, copy.deepcopy(model)):
        assert torch.equal(same(bags()), model(bags()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_of_the_model(dtype):
    model = inject_prior_knowledge(AttentionMIL().to(dtype), embeddings_of(12))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert model(bags().to(dtype)).dtype == dtype
    expected = torch.from_numpy(embeddings_of(12)).to(dtype)
    assert torch.equal(model.genes.embeddings, expected)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(training):
    model = AttentionMIL().train(training).requires_grad_(training)
    inject_prior_knowledge(model, embeddings_of(12))
    assert model.genes.training is training
    assert model.genes.weight.requires_grad is training


def test_a_second_injection_replaces_the_first():
    model = inject_prior_knowledge(AttentionMIL(), embeddings_of(12), 0.2)
    weight = model.genes.weight
    inject_prior_knowledge(model, embeddings_of(12, seed=1), 0.9)
    assert model.genes.lambda_ == 0.9
    assert_array_equal(model.genes.embeddings, embeddings_of(12, seed=1))
    assert model.genes.weight is weight


def test_global_generator_is_left_alone():
    model, state = AttentionMIL(), torch.get_rng_state()
    inject_prior_knowledge(model, embeddings_of(12))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"module": "resnet"}, TypeError, r"module: expected a torch.nn.Module, got str"),
        ({"module": nn.ReLU()}, ValueError, r"ReLU has no torch.nn.Linear to replace"),
        ({"layer": "head"}, TypeError, "got 'head', which is not in the model"),
        ({"layer": "embed.1"}, TypeError, "torch.nn.Linear, got 'embed.1', which is ReLU"),
        ({"layer": ""}, TypeError, "got '', which is AttentionMIL"),
        ({"lambda_": 1.5}, ValueError, r"lambda_ must lie in \[0, 1\], got 1.5"),
        ({"lambda_": -0.1}, ValueError, r"lambda_ must lie in \[0, 1\], got -0.1"),
        ({"lambda_": float("nan")}, ValueError, r"lambda_ must lie in \[0, 1\], got nan"),
        (
            {"embeddings": np.ones((29, 12))},
            ValueError,
            r"layer 'genes' predicts 30 genes from 12 values, .*\(30, d\) with d <= 12.*\(29, 12\)",
        ),
        ({"embeddings": np.ones((30, 13))}, ValueError, r"with d <= 12.*got \(30, 13\)"),
        ({"embeddings": np.ones(30)}, ValueError, r"one row per gene, got \(30,\)"),
        ({"embeddings": np.full((30, 2), np.nan)}, ValueError, "embeddings contain NaN or inf"),
        ({"embeddings": np.full((30, 2), np.inf)}, ValueError, "embeddings contain NaN or inf"),
    ],
)
def test_bad_input(change, error, message):
    model = AttentionMIL()
    arguments = {"module": model, "embeddings": embeddings_of(12)} | change
    with pytest.raises(error, match=message):
        inject_prior_knowledge(**arguments)
    assert type(model.genes) is nn.Linear, "a model is not left half changed"


def test_shape_for_a_bare_layer():
    with pytest.raises(ValueError, match="embeddings: the layer predicts 30 genes from 4 values"):
        inject_prior_knowledge(nn.Linear(4, 30), np.ones((30, 5)))


def test_layers_of_other_classes_are_left_alone():
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match="MultiheadAttention has no torch.nn.Linear"):
        inject_prior_knowledge(attention, np.ones((4, 4)))
    model = nn.Sequential(nn.Linear(4, 3), attention)
    assert inject_prior_knowledge(model, np.ones((3, 4))) is model
    assert isinstance(model[0], PriorKnowledgeLinear)
    with pytest.raises(TypeError, match="'1.out_proj', which is NonDynamicallyQuantizableLinear"):
        inject_prior_knowledge(model, np.ones((4, 4)), layer="1.out_proj")


def test_a_layer_with_two_names_is_replaced_under_both():
    model = nn.ModuleDict({"a": nn.Linear(4, 3)})
    model["b"] = model["a"]
    inject_prior_knowledge(model, np.ones((3, 4)))
    assert isinstance(model["a"], PriorKnowledgeLinear)
    assert model["b"] is model["a"]


def test_embeddings_come_in_many_forms_and_are_copied():
    G = np.arange(12.0).reshape(3, 4)
    read_only = G.copy()
    read_only.flags.writeable = False
    learned = nn.Parameter(torch.from_numpy(G.copy()))
    for given in (G, G.tolist(), pd.DataFrame(G), G[::-1][::-1], read_only, learned):
        layer = inject_prior_knowledge(nn.Linear(4, 3), given)
        assert_allclose(layer.embeddings, G)
        assert not layer.embeddings.requires_grad
        copy.deepcopy(layer)
    layer.embeddings[0, 0] = 5.0
    assert learned[0, 0] == 0
