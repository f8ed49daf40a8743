"""The prior-knowledge layer."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
import pytest
import torch

from sklearn_pk.regression import PriorKnowledgeLinear

DATA = Path(__file__).parents[1] / "data"


def test_golden_layer():
    golden = np.load(DATA / "layer.npz")
    layer = PriorKnowledgeLinear(32, 50, golden["G"], float(golden["lambda_"]))
    layer.load_state_dict(
        {
            "weight": torch.from_numpy(golden["A"]),
            "bias": torch.from_numpy(golden["b"]),
            "embeddings": torch.from_numpy(golden["G"]),
        }
    )
    output = layer(torch.from_numpy(golden["w"])).detach().numpy()
    np.testing.assert_allclose(output, golden["y"], rtol=1e-5, atol=1e-5)


def test_equation():
    rng = np.random.default_rng(0)
    w, G = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    layer = PriorKnowledgeLinear(6, 9, G, 0.3)
    A, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = 0.7 * w @ A.T + 0.3 * w @ G.T + b
    np.testing.assert_allclose(layer(torch.from_numpy(w)).detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("embeddings", "lambda_"), [(None, 0.7), (torch.ones(9, 6), 0.0)])
def test_without_prior_it_is_a_plain_linear_layer(embeddings, lambda_):
    layer = PriorKnowledgeLinear(6, 9, embeddings, lambda_)
    w = torch.randn(4, 6)
    assert torch.equal(layer(w), torch.nn.functional.linear(w, layer.weight, layer.bias))


def test_embeddings_are_fixed_and_saved():
    layer = PriorKnowledgeLinear(6, 9, np.ones((9, 6)), 0.5)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert torch.equal(layer.state_dict()["embeddings"], torch.ones(9, 6))
    bound = 1 / np.sqrt(6)
    assert layer.weight.abs().max() <= bound
    assert layer.bias.abs().max() <= bound


def test_bad_input():
    with pytest.raises(ValueError, match=r"lambda_ must lie in \[0, 1\], got 1.5"):
        PriorKnowledgeLinear(6, 9, None, 1.5)
    with pytest.raises(ValueError, match=r"\(9, 6\), got \(9, 5\)"):
        PriorKnowledgeLinear(6, 9, torch.ones(9, 5))
