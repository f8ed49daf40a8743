"""Finding, reading and converting weights."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from sklearn_pk.slides._encoders import Encoder, find_encoder
from sklearn_pk.slides._weights import (
    convert_lite0,
    convert_phikon,
    copy_module,
    find_weights,
    hash_module,
    hash_weights,
    load_encoder,
    read_state,
)

SMALL = Encoder("small", "resnet10t", 512)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=7).state_dict()


def test_default_weights_fit_strictly():
    encoder = find_encoder("efficientnet-lite0")
    published = read_state(find_weights(encoder, None))
    converted = convert_lite0(published)
    expected = encoder.build().state_dict()
    assert converted.keys() == expected.keys()
    assert len(converted) == len(published) - 2
    model = load_encoder(encoder, find_weights(encoder, None), "cpu")
    assert not model.training
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], converted[key]) for key in converted)


def test_default_encoder_sees(tissue_rgb):
    # Trained weights keep a tile and its mirror image close, and two tissues apart.
    model = load_encoder(
        find_encoder("efficientnet-lite0"),
        find_weights(find_encoder("efficientnet-lite0"), None),
        "cpu",
    )
    tiles = [tissue_rgb[:224, :224], tissue_rgb[:224, 223::-1], tissue_rgb[250:474, 450:674]]
    pixels = torch.from_numpy(np.stack([np.ascontiguousarray(tile) for tile in tiles]))
    with torch.inference_mode():
        features = model((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    near, far = (features[0] - features[1]).norm(), (features[0] - features[2]).norm()
    assert 2 * near < far


@pytest.mark.parametrize("name", ["uni", "phikon", "gigapath", "virchow", "resnet50", "resnet18"])
def test_missing_weights_say_where_to_get_them(name):
    encoder = find_encoder(name)
    with pytest.raises(ValueError, match="nothing is downloaded") as info:
        find_weights(encoder, None)
    assert all(part in str(info.value) for part in (encoder.source, encoder.licence, "weights="))


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"uni\.bin does not exist.*MahmoodLab"):
        find_weights(find_encoder("uni"), tmp_path / "uni.bin")


def test_folder_of_weights(tmp_path, state):
    with pytest.raises(FileNotFoundError, match="expected one file of weights"):
        find_weights(SMALL, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_file(state, tmp_path / "model.safetensors")
    assert find_weights(SMALL, tmp_path).name == "model.safetensors"
    (tmp_path / "other.pth").touch()
    with pytest.raises(FileNotFoundError, match=re.escape("['model.safetensors', 'other.pth']")):
        find_weights(SMALL, tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "wrapped"])
def test_formats(tmp_path, state, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.bin")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "wrapped" else state, path)
    # The head of 7 classes is left out, all else must fit.
    model = load_encoder(SMALL, path, "cpu")
    assert torch.equal(model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    assert load_encoder(SMALL, path, "cpu") is model


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_have_to_fit(tmp_path, state, change):
    state = dict(state)
    if change == "missing":
        del state["conv1.0.weight"]
    elif change == "extra":
        state["surprise"] = torch.zeros(1)
    else:
        state["conv1.0.weight"] = torch.zeros(1, 3, 3, 3)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt does not fit the encoder 'small'"):
        load_encoder(SMALL, tmp_path / "w.pt", "cpu")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_refused(tmp_path):
    for name, write in (("a.pt", torch.save), ("b.bin", None)):
        payload = Hostile(str(tmp_path / f"made by {name}"))
        if write is None:
            (tmp_path / name).write_bytes(pickle.dumps(payload, protocol=2))
        else:
            write({"weight": payload}, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is not a file of tensors"):
            read_state(tmp_path / name)
        assert not os.path.exists(payload.path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_garbage_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=f"{name} is not a file of tensors"):
        read_state(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="does not hold a dictionary of tensors"):
        read_state(tmp_path / "list.pt")


def test_phikon_names():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    expected = model.state_dict()
    back = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    published = {
        "embeddings.cls_token": expected["cls_token"],
        "embeddings.position_embeddings": expected["pos_embed"],
        "pooler.dense.weight": torch.zeros(1),
    }
    for kind in ("weight", "bias"):
        published[f"embeddings.patch_embeddings.projection.{kind}"] = expected[
            f"patch_embed.proj.{kind}"
        ]
        published[f"layernorm.{kind}"] = expected[f"norm.{kind}"]
        for block in range(2):
            layer = f"encoder.layer.{block}"
            for ours, theirs in back.items():
                published[f"{layer}.{theirs}.{kind}"] = expected[f"blocks.{block}.{ours}.{kind}"]
            parts = expected[f"blocks.{block}.attn.qkv.{kind}"].chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                published[f"{layer}.attention.attention.{part}.{kind}"] = tensor
    found = convert_phikon({f"vit.{key}": tensor for key, tensor in published.items()})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_hash_is_of_the_content(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"one")
    first = hash_weights(path)
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert hash_weights(path) != first


def test_hash_of_a_module():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    first = hash_module(model)
    assert hash_module(copy_module(model, "cpu")) == first
    assert hash_module(model.to(torch.bfloat16)) != first
    with torch.no_grad():
        model.bias += 1
    assert hash_module(model.float()) != first


def test_module_of_the_user_keeps_its_mode():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Dropout())
    copied = copy_module(model, "cpu")
    assert model.training
    assert not copied.training
    assert all(weight.requires_grad for weight in model.parameters())
