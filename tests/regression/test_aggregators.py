"""The aggregators, against the outputs of the reference modules and for missing tiles."""

# SPDX-License-Identifier: BSD-3-Clause

from pathlib import Path

import numpy as np
import pytest
import torch

from sklearn_pk.regression._aggregators import make_aggregator

DATA = Path(__file__).parents[1] / "data"
NAMES = ["mlp", "attention", "transformer", "summary_mixing"]


def load_golden(name):
    golden = np.load(DATA / f"{name}.npz")
    prefix = "param/"
    return golden, {
        key.removeprefix(prefix): torch.from_numpy(golden[key])
        for key in golden.files
        if key.startswith(prefix)
    }


def feed_forward_state(reference, block):
    old, new = f"transformer.layers.{block}.1.net.", f"layers.{block}.1."
    return {key.replace(old, new): reference[key] for key in reference if key.startswith(old)}


def transformer_state(reference):
    state = {}
    for block in range(2):
        for key in ("norm.weight", "norm.bias", "to_qkv.weight", "to_out.weight"):
            state[f"layers.{block}.0.{key}"] = reference[f"transformer.layers.{block}.0.{key}"]
        state |= feed_forward_state(reference, block)
    return state


def summary_mixing_state(reference, n_heads=4):
    state = {}
    for block in range(2):
        old, new = f"transformer.layers.{block}.0.", f"layers.{block}.0."

        def heads(key, old=old):
            return [reference[f"{old}mixers.{head}.{key}"] for head in range(n_heads)]

        for ours, theirs in (("local", "f"), ("summary", "s")):
            state[f"{new}{ours}.weight"] = torch.cat(heads(f"{theirs}.weight"))
            state[f"{new}{ours}.bias"] = torch.cat(heads(f"{theirs}.bias"))
            state[f"{new}{ours}_weight"] = torch.stack(heads(f"{ours}_norm.weight"))
            state[f"{new}{ours}_bias"] = torch.stack(heads(f"{ours}_norm.bias"))
        state[f"{new}combine_weight"] = torch.stack([w.T for w in heads("c.weight")])
        state[f"{new}combine_bias"] = torch.stack(heads("c.bias"))
        for key in ("projection.weight", "projection.bias"):
            state[new + key] = reference[old + key]
        state |= feed_forward_state(reference, block)
    return state


@pytest.mark.parametrize(
    ("name", "convert"),
    [("transformer", transformer_state), ("summary_mixing", summary_mixing_state)],
)
def test_golden_outputs(name, convert):
    golden, reference = load_golden(name)
    aggregator = make_aggregator(name, 32, depth=2, n_heads=4, head_dim=8)
    aggregator.load_state_dict(convert(reference))
    with torch.inference_mode():
        w = aggregator(torch.from_numpy(golden["x"]) + reference["pos_emb1D"])
        w = torch.nn.functional.layer_norm(
            w, (32,), reference["linear_head.0.weight"], reference["linear_head.0.bias"]
        )
        output = w @ reference["linear_head.1.weight"].T + reference["linear_head.1.bias"]
    np.testing.assert_allclose(output, golden["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_masked_tiles_have_no_part(name):
    torch.manual_seed(0)
    aggregator = make_aggregator(name, 12, depth=2, n_heads=2, head_dim=4).double()
    bag = torch.randn(1, 5, 12, dtype=torch.float64)
    padded = torch.cat([bag, torch.full((1, 3, 12), 7.0, dtype=torch.float64)], dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    torch.testing.assert_close(aggregator(padded, mask), aggregator(bag))
    assert not torch.allclose(aggregator(padded), aggregator(bag))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_tiles_does_not_matter(name):
    torch.manual_seed(0)
    aggregator = make_aggregator(name, 12, depth=2, n_heads=2, head_dim=4).double()
    bag = torch.randn(2, 6, 12, dtype=torch.float64)
    torch.testing.assert_close(aggregator(bag[:, torch.randperm(6)]), aggregator(bag))


def test_parameter_count_of_the_paper():
    with torch.device("meta"):
        aggregator = make_aggregator("summary_mixing", 1024, depth=6, n_heads=16, head_dim=64)
    count = sum(parameter.numel() for parameter in aggregator.parameters())
    positions, head = 100 * 1024, (1024 + 1) * 20_820 + 2 * 1024
    assert (count + positions + head) / 1e6 == pytest.approx(53.8, abs=0.06)
