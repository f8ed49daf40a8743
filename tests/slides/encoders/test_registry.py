"""Encoders: the registry, look-up by name, keys and pooling."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torchvision import transforms

from sklearn_pk.slides import Encoder, list_encoders
from sklearn_pk.slides._encoders._encoder import measure_width
from sklearn_pk.slides._encoders._registry import (
    as_encoder,
    find_encoder,
    spelled,
)
from sklearn_pk.slides._encoders._weights import find_weights

NAMES = list_encoders().index.tolist()
WIDTHS = {
    "efficientnet-lite0": 1280,
    "resnet50": 2048,
    "resnet50-layer3": 1024,
    "ctranspath": 768,
    "uni": 1024,
    "uni2-h": 1536,
    "virchow": 2560,
    "virchow2": 2560,
    "virchow2-cls": 1280,
    "conch": 512,
    "musk": 1024,
    "gpfm": 1024,
    "midnight": 3072,
    "hibou-b": 768,
    "gigapath": 1536,
    "h-optimus-0": 1536,
    "h-optimus-1": 1536,
    "h0-mini": 1536,
    "h0-mini-cls": 768,
    "phikon": 768,
    "phikon-v2": 1024,
    "kaiko-vits8": 384,
    "kaiko-vits16": 384,
    "kaiko-vitb8": 768,
    "kaiko-vitb16": 768,
    "kaiko-vitl14": 1024,
    "lunit-dino-s8": 384,
    "lunit-dino-s16": 384,
}
# As the model cards and papers print them; a wrong width of the MLP would show here.
MILLIONS = {
    "resnet50": 23.5,
    "ctranspath": 27.5,
    "uni": 303.4,
    "uni2-h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "gigapath": 1135,
    "h-optimus-0": 1134.8,
    "h-optimus-1": 1134.8,
    "h0-mini": 85.7,
    "hibou-b": 85.7,
    "gpfm": 303.2,
    "phikon": 85.8,
    "phikon-v2": 303.4,
    "kaiko-vitl14": 304.4,
    "lunit-dino-s16": 21.7,
}


def test_registry():
    table = list_encoders()
    assert table["width"].to_dict() == WIDTHS
    assert table.loc["efficientnet-lite0", "mean"] == (0.5, 0.5, 0.5)
    sizes = table["input_size"]
    assert sizes[sizes != 224].to_dict() == {"conch": 448, "musk": 384}
    assert (table["licence"].str.len() > 0).all()
    assert table["source"].str.contains("https://|PyPI").all()
    assert table.index[table["gated"]].tolist() == [
        "uni",
        "uni2-h",
        "virchow",
        "virchow2",
        "virchow2-cls",
        "conch",
        "musk",
        "hibou-b",
        "gigapath",
        "h-optimus-0",
        "h-optimus-1",
        "h0-mini",
        "h0-mini-cls",
    ]
    assert table["mpp"].dropna().unique().tolist() == [0.5]
    for column in ("mean", "std"):
        assert all(len(values) == 3 and max(values) < 1 for values in table[column])


@pytest.mark.parametrize("name", NAMES)
def test_builds_offline_with_the_published_width(name):
    encoder = find_encoder(name)
    # The meta device gives shapes without memory, so that a model of 1.1 billion weights is free.
    with torch.device("meta"), torch.inference_mode():
        model = encoder.build().eval()
        output = encoder.pool(model(torch.empty(2, 3, encoder.input_size, encoder.input_size)))
    assert tuple(output.shape) == (2, encoder.width)
    if name in MILLIONS:
        count = sum(weight.numel() for weight in model.parameters())
        assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.1)


def test_keys_of_the_registry():
    keys = {name: find_encoder(name).key for name in NAMES}
    # Only the weights of these two differ.
    assert keys.pop("h-optimus-1") == keys["h-optimus-0"]
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
def test_any_model_of_timm(name):
    # num_features of timm is not the width where a head has layers of its own.
    encoder = find_encoder(name)
    model = timm.create_model(name, num_classes=0).eval()
    with torch.inference_mode():
        expected = model(torch.zeros(1, 3, 224, 224)).shape[1]
    assert (encoder.input_size, measure_width(encoder)) == (224, expected)
    assert encoder.fixed_size == name.startswith("vit")
    assert encoder.repository.startswith(f"timm/{name}.")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("uni_v1", "uni"),
        ("UNI", "uni"),
        ("uni_v2", "uni2-h"),
        ("CTransPath", "ctranspath"),
        ("conch_v1", "conch"),
        ("hoptimus0", "h-optimus-0"),
        ("H_Optimus_1", "h-optimus-1"),
        ("prov-gigapath", "gigapath"),
        ("midnight12k", "midnight"),
        ("lunit-vits8", "lunit-dino-s8"),
        ("Phikon_v2", "phikon-v2"),
        ("virchow2-cls", "virchow2-cls"),
    ],
)
def test_spellings_of_other_tools(spelling, name):
    assert find_encoder(spelling) is find_encoder(name)
    assert spelled(spelling) == name


def test_names_of_timm_are_not_respelled():
    assert find_encoder("vit_small_patch8_224").name == "vit_small_patch8_224"
    assert (spelled("resnet18"), spelled("")) == ("resnet18", "")


def test_unknown_encoder():
    with pytest.raises(ValueError, match="Unknown encoder 'unni'.*Did you mean 'uni'"):
        find_encoder("unni")
    with pytest.raises(ValueError, match="list_encoders"):
        find_encoder("zzzzzzzz")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf-hub:MahmoodLab/UNI", "uni"),
        ("hf_hub:mahmoodlab/uni", "uni"),
        ("hf-hub:bioptimus/H-optimus-1", "h-optimus-1"),
        ("hf-hub:prov-gigapath/prov-gigapath", "gigapath"),
        ("hf-hub:1aurent/swin_tiny_patch4_window7_224.CTransPath", "ctranspath"),
    ],
)
def test_repository_in_the_registry(name, expected):
    assert find_encoder(name) is find_encoder(expected)


def test_revision_of_a_repository():
    encoder = find_encoder("hf-hub:MahmoodLab/UNI@v1.0")
    assert (encoder.name, encoder.repository) == ("uni", "MahmoodLab/UNI@v1.0")
    assert encoder.key == find_encoder("uni").key


CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 5,
    "model_args": {"num_classes": 5, "img_size": 64, "depth": 2, "global_pool": ""},
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "fixed_input_size": True,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "license": "mit",
    },
}


def test_repository_described_beside_its_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").touch()
    for weights in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        encoder = find_encoder("hf-hub:some-one/a.model_1", weights)
        assert encoder.name == "hf-hub:some-one/a.model_1"
        assert (encoder.input_size, encoder.fixed_size) == (64, True)
        assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert (encoder.licence, encoder.pooling) == ("mit", "token")
        assert encoder.source == "https://huggingface.co/some-one/a.model_1"
        assert measure_width(encoder) == 192
        assert len(encoder.build().blocks) == 2


def test_folder_as_timm_saves_it(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path.parent)
    encoder = find_encoder(f"local-dir:{tmp_path.name}")
    assert encoder.name == f"local-dir:{tmp_path}"
    assert encoder.key == find_encoder("hf-hub:some-one/new", tmp_path).key
    assert find_weights(encoder, None) == tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"none': .*config\.json does not exist"):
        find_encoder("local-dir:none")


def test_repository_described_in_one_level(tmp_path):
    flat = {"architecture": "resnet18", "input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3]}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    encoder = find_encoder("hf-hub:some-one/old", tmp_path)
    assert (encoder.input_size, encoder.mean) == (96, (0.1, 0.2, 0.3))
    assert measure_width(encoder) == 512


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, r"'hf-hub:some-one/new' is not one of list_encoders\(\).*forbids downloads"),
        ("{", r"config\.json is not JSON"),
        ("[1]", "does not describe a model of timm.*got None"),
        ('{"model_type": "dinov2"}', r"timm.*got None. Load the model yourself .* Encoder\("),
        ('{"architecture": "vit_enormous"}', "timm.*got 'vit_enormous'"),
    ],
)
def test_repository_that_is_not_described(tmp_path, text, error):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=error):
        find_encoder("hf-hub:some-one/new", tmp_path)


@pytest.mark.parametrize("name", ["hf-hub:uni", "hf-hub:", "hf-hub:a/b/c", "hf-hub:a b/c"])
def test_invalid_repository(name):
    with pytest.raises(ValueError, match=f"'hf-hub:owner/name'.*got {name!r}"):
        find_encoder(name)


def test_module_of_the_user():
    plain = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    encoder = as_encoder(plain)
    assert encoder.input_size is None
    assert measure_width(encoder) == 12
    with pytest.raises(ValueError, match=r"must give features of shape .* got \(1, 3, 2, 2\)"):
        measure_width(as_encoder(plain[0]))
    # A copy, so that the one of the user keeps its mode and device.
    built = encoder.build()
    assert built is not plain
    assert repr(built) == repr(plain)


def test_module_with_a_configuration():
    encoder = as_encoder(timm.create_model("resnet10t", num_classes=0))
    assert (encoder.input_size, encoder.fixed_size) == (176, False)


def test_as_encoder():
    module = torch.nn.Flatten()
    encoder = Encoder("mine", module)
    assert as_encoder(encoder) is encoder
    assert as_encoder("uni") is find_encoder("uni")
    assert as_encoder(module).architecture is module


class Brighten:
    """A transform without an identifying text."""

    def __call__(self, image):
        return transforms.functional.to_tensor(image)


COMPOSED = transforms.Compose([transforms.Resize(24), transforms.ToTensor()])


def test_module_with_a_transform():
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((1, 24)), torch.nn.Flatten())
    assert measure_width(Encoder("mine", module, transform=COMPOSED)) == 72
    # The transform decides alone how a model of timm is fed, too.
    vit = Encoder(
        "vit", "vit_tiny_patch16_224", transform=COMPOSED, arguments={"img_size": 24, "depth": 1}
    )
    assert measure_width(vit) == 192
    with pytest.raises(TypeError, match="float tensor of shape"):
        measure_width(Encoder("mine", module, transform=np.asarray))


def test_key_depends_on_all_that_changes_features():
    base = {"architecture": "resnet18", "arguments": {"global_pool": "avg"}}
    changes = [
        {},
        {"architecture": "resnet34"},
        {"arguments": {"global_pool": "max"}},
        {"input_size": 256},
        {"fixed_size": False},
        {"mean": (0.1, 0.2, 0.3)},
        {"std": (0.1, 0.2, 0.3)},
        {"pooling": "mean"},
        {"prefix_tokens": 2},
        {"transform": COMPOSED},
        {"transform": transforms.Compose([transforms.Resize(25), transforms.ToTensor()])},
        {"transform": Brighten(), "transform_name": "brighten 1"},
        {"transform": Brighten(), "transform_name": "brighten 2"},
        {"architecture": torch.nn.Flatten()},
    ]
    keys = [Encoder("mine", **(base | change)).key for change in changes]
    assert len(set(keys)) == len(changes)
    again = [Encoder("other", **(copy.deepcopy(base | change))).key for change in changes]
    assert again == keys
    # Normalisation has no effect beside a transform.
    assert keys[9] == Encoder("mine", **base, transform=COMPOSED, mean=(0.1, 0.2, 0.3)).key


def test_key_is_the_same_in_every_process():
    imported = "from sklearn_pk.slides._encoders._registry import find_encoder"
    code = f"{imported}; print(find_encoder('virchow').key)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == find_encoder("virchow").key


@pytest.mark.parametrize(
    "transform",
    [
        Brighten(),
        functools.partial(transforms.functional.to_tensor),
        transforms.functional.to_tensor,
        transforms.Compose([transforms.Lambda(np.asarray), transforms.ToTensor()]),
    ],
)
def test_transform_that_cannot_be_identified(transform):
    with pytest.raises(ValueError, match="'mine': transform reads .*transform_name="):
        _ = Encoder("mine", torch.nn.Flatten(), transform=transform).key
    named = Encoder("mine", torch.nn.Flatten(), transform=transform, transform_name="v1")
    assert "v1" in named.key


def test_arguments_that_cannot_be_identified():
    with pytest.raises(ValueError, match="arguments reads .*Give layers by their names"):
        _ = Encoder("mine", "resnet18", arguments={"norm_layer": Brighten()}).key
    assert "lambda_resnet26t" in find_encoder("lambda_resnet26t").key


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"architecture": 3}, TypeError, "architecture must be the name .* got 3"),
        ({"pooling": "max"}, ValueError, "pooling must be one of .*'token.mean'.* got 'max'"),
        ({"transform": "resize"}, TypeError, "transform must be callable or None, got 'resize'"),
    ],
)
def test_wrong_encoder(change, error, text):
    with pytest.raises(error, match=f"encoder 'mine': {text}"):
        Encoder(**({"name": "mine", "architecture": "resnet18"} | change))


def test_lists_are_taken_for_tuples():
    encoder = Encoder("mine", "resnet18", mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    assert hash(encoder) == hash(Encoder("mine", "resnet18", mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize("n_registers", [0, 4])
def test_pooling_of_token_and_mean(n_registers):
    tokens = torch.arange(48.0).reshape(2, 8, 3)
    encoder = Encoder("x", "x", 6, pooling="token+mean", prefix_tokens=1 + n_registers)
    pooled = encoder.pool(tokens)
    np.testing.assert_allclose(pooled[:, :3], tokens[:, 0])
    np.testing.assert_allclose(pooled[:, 3:], tokens[:, 1 + n_registers :].mean(dim=1))
    np.testing.assert_array_equal(encoder.pool(pooled), pooled)


def test_registers_are_counted():
    arguments = {"img_size": 28, "depth": 1, "global_pool": ""}
    name = "vit_small_patch14_reg4_dinov2"
    known = {"input_size": 28, "pooling": "token+mean", "arguments": arguments}
    assert measure_width(Encoder("x", name, prefix_tokens=5, **known)) == 768
    with pytest.raises(ValueError, match="has 5 tokens before .*got prefix_tokens=1"):
        Encoder("x", name, **known).build()


def test_pooling_of_tokens_and_maps():
    tokens, maps = torch.rand(2, 5, 3), torch.rand(2, 3, 4, 5)
    np.testing.assert_array_equal(Encoder("x", "x", pooling="token").pool(tokens), tokens[:, 0])
    np.testing.assert_allclose(
        Encoder("x", "x", pooling="mean").pool(maps), maps.numpy().mean(axis=(2, 3)), rtol=1e-6
    )
    for pooling, output in (("model", tokens), ("mean", tokens), ("token", maps)):
        with pytest.raises(ValueError, match=rf"got .* and pooling='{pooling}'"):
            Encoder("x", "x", pooling=pooling).pool(output)


def test_last_of_several_maps():
    arguments = {"features_only": True, "out_indices": (1, 3)}
    assert measure_width(Encoder("x", "resnet10t", pooling="mean", arguments=arguments)) == 256
