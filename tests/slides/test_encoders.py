"""The registry of encoders."""

# SPDX-License-Identifier: BSD-3-Clause

import numpy as np
import pytest
import torch

from sklearn_pk.slides import Encoder, list_encoders
from sklearn_pk.slides._encoders import describe_module, find_encoder, measure_width

NAMES = list_encoders().index.tolist()


def test_registry():
    table = list_encoders()
    assert {"efficientnet-lite0", "uni", "resnet50", "phikon", "gigapath"} <= set(NAMES)
    assert table["width"][["efficientnet-lite0", "uni", "resnet50"]].tolist() == [1280, 1024, 2048]
    assert table.loc["efficientnet-lite0", "mean"] == (0.5, 0.5, 0.5)
    assert (table["licence"].str.len() > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_builds_offline_with_the_published_width(name):
    encoder = find_encoder(name)
    # The meta device gives shapes without memory, so that a model of 1.1 billion weights is free.
    with torch.device("meta"), torch.inference_mode():
        model = encoder.build().eval()
        output = encoder.pool(model(torch.empty(2, 3, encoder.input_size, encoder.input_size)))
    assert tuple(output.shape) == (2, encoder.width)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("uni", 303), ("gigapath", 1135), ("h-optimus-0", 1135), ("virchow", 631)],
)
def test_published_number_of_weights(name, millions):
    with torch.device("meta"):
        count = sum(weight.numel() for weight in find_encoder(name).build().parameters())
    assert count / 1e6 == pytest.approx(millions, abs=1)


def test_any_model_of_timm():
    encoder = find_encoder("resnet18")
    assert (encoder.input_size, measure_width(encoder)) == (224, 512)
    assert not encoder.fixed_size
    assert find_encoder("vit_tiny_patch16_224").fixed_size


def test_unknown_encoder():
    with pytest.raises(ValueError, match="Unknown encoder 'unni'.*Did you mean 'uni'"):
        find_encoder("unni")
    with pytest.raises(ValueError, match="list_encoders"):
        find_encoder("zzzzzzzz")


def test_module_of_the_user():
    plain = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    encoder = describe_module(plain)
    assert encoder.input_size is None
    assert measure_width(encoder, plain) == 12
    with pytest.raises(ValueError, match=r"must give features of shape .* got \(1, 3, 2, 2\)"):
        measure_width(describe_module(plain[0]), plain[0])


def test_pooling_of_token_and_mean():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    pooled = Encoder("x", "x", 6, pooling="token+mean").pool(tokens)
    np.testing.assert_allclose(pooled[:, :3], tokens[:, 0])
    np.testing.assert_allclose(pooled[:, 3:], tokens[:, 1:].mean(dim=1))
