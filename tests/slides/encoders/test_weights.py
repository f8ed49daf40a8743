"""Finding, reading and converting weights."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torchvision.models import resnet50

from sklearn_pk.slides import Encoder, read_features
from sklearn_pk.slides._encoders import _weights
from sklearn_pk.slides._encoders._registry import find_encoder
from sklearn_pk.slides._encoders._weights import (
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
    model = load_encoder(encoder, find_weights(encoder, None), "cpu")
    assert not model.training
    loaded = model.state_dict()
    assert len(loaded) == len(published) - 2
    assert torch.equal(loaded["conv_stem.weight"], published["_conv_stem.weight"])
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in loaded.values())


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


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("uni", "MahmoodLab/UNI"),
        ("phikon", "owkin/phikon"),
        ("kaiko-vits8", "1aurent/vit_small_patch8_224.kaiko_ai_towards_large_pathology_fms"),
        ("virchow2", "paige-ai/Virchow2"),
        ("resnet18", "timm/resnet18.a1_in1k"),
        ("hf-hub:MahmoodLab/UNI@v1", "MahmoodLab/UNI --revision v1"),
    ],
)
def test_missing_weights_say_where_to_get_them(name, repository):
    encoder = find_encoder(name)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids downloads") as info:
        find_weights(encoder, None)
    text = str(info.value)
    assert all(part in text for part in (encoder.source, encoder.licence, f"{repository})"))
    assert "weights='/path/to/file-or-folder'" in text
    assert ("access has been requested" in text) == encoder.gated


def test_weights_without_a_source():
    with pytest.raises(ValueError, match="from the file given as weights") as info:
        find_weights(SMALL, None)
    assert "cache" not in str(info.value)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"uni\.bin does not exist.*MahmoodLab.*requested"):
        find_weights(find_encoder("uni"), tmp_path / "uni.bin")


def test_folder_of_weights(tmp_path, state):
    with pytest.raises(FileNotFoundError, match="expected one file of weights"):
        find_weights(SMALL, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_file(state, tmp_path / "model.safetensors")
    assert find_weights(SMALL, tmp_path).name == "model.safetensors"
    # Both hold the same by convention.
    (tmp_path / "pytorch_model.bin").touch()
    assert find_weights(SMALL, tmp_path).name == "model.safetensors"
    (tmp_path / "other.pth").touch()
    found = re.escape("['model.safetensors', 'other.pth', 'pytorch_model.bin']")
    with pytest.raises(FileNotFoundError, match=found):
        find_weights(SMALL, tmp_path)


def test_folder_of_a_repository(tmp_path):
    # GigaPath's has the weights of its slide encoder, too.
    (tmp_path / "slide_encoder.pth").touch()
    (tmp_path / "pytorch_model.bin").touch()
    assert find_weights(find_encoder("gigapath"), tmp_path).name == "pytorch_model.bin"


@pytest.mark.parametrize("name", ["lunit.torch", "ctranspath.pth", "odd.safetensors"])
def test_folder_with_one_file(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "README.md").touch()
    assert find_weights(SMALL, tmp_path).name == name


@pytest.mark.parametrize("names", [("model-1-of-2.safetensors", "model-2-of-2.safetensors")])
def test_shards_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=re.escape(repr(list(names)))):
        find_weights(find_encoder("uni"), tmp_path)


def fill_cache(cache, repository, state, name="model.safetensors", revision="main"):
    """Lay out a repository as the client of Hugging Face does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{'a' * 40}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text("a" * 40)
    blob = folder / "blobs" / ("b" * 64)
    save_file(state, blob) if name.endswith("safetensors") else torch.save(state, blob)
    place = folder / "snapshots" / ("a" * 40) / name
    place.symlink_to(os.path.relpath(blob, place.parent))
    return place


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_the_cache_of_hugging_face(cache, state, name):
    place = fill_cache(cache, "timm/resnet10t.c3_in1k", state, name)
    encoder = find_encoder("resnet10t")
    assert find_weights(encoder, None) == place
    # The file behind the link has no suffix that tells its format.
    for path in (find_weights(encoder, None), place.resolve()):
        model = load_encoder(encoder, path, "cpu")
        assert torch.equal(model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    assert hash_weights(encoder, find_weights(encoder, None)) == hash_weights(encoder, place)


def test_revision_in_the_cache(cache, state):
    place = fill_cache(cache, "MahmoodLab/UNI", {"x": torch.ones(1)}, revision="v1")
    assert find_weights(find_encoder("hf-hub:MahmoodLab/UNI@v1"), None) == place
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids downloads"):
        find_weights(find_encoder("uni"), None)


def test_repository_in_the_cache(cache, state):
    place = fill_cache(cache, "some-one/new", state)
    config = {"architecture": "resnet10t", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (place.parent / "config.json").write_text(json.dumps(config))
    encoder = find_encoder("hf-hub:some-one/new")
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert load_encoder(encoder, find_weights(encoder, None), "cpu").num_features == 512


def test_weights_are_downloaded_if_that_is_allowed(tmp_path, monkeypatch):
    asked = []

    def download(repository, filename, revision, local_files_only):
        asked.append((repository, filename, revision, local_files_only))
        if local_files_only or filename == "model.safetensors":
            raise LocalEntryNotFoundError("not there")
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    encoder = find_encoder("hf-hub:MahmoodLab/UNI@v1")
    with pytest.raises(ValueError, match=r"MahmoodLab/UNI@v1, and HF_HUB_OFFLINE forbids"):
        find_weights(encoder, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_weights, "_check_reachable", lambda address: None)
    n_offline = len(asked)
    assert find_weights(encoder, None) == tmp_path / "pytorch_model.bin"
    names = ("model.safetensors", "pytorch_model.bin")
    assert asked[:n_offline] == [("MahmoodLab/UNI", name, "v1", True) for name in names]
    assert asked[n_offline:] == [
        ("MahmoodLab/UNI", name, "v1", cached) for cached in (True, False) for name in names
    ]


def test_file_known_to_be_missing(cache, state):
    place = fill_cache(cache, "owkin/phikon", state, "pytorch_model.bin")
    absent = cache / "models--owkin--phikon" / ".no_exist" / ("a" * 40)
    absent.mkdir(parents=True)
    (absent / "model.safetensors").touch()
    assert find_weights(find_encoder("phikon"), None) == place


def test_cache_is_found_without_torch(tmp_path):
    place = fill_cache(tmp_path / "home" / "hub", "MahmoodLab/UNI", {"x": torch.ones(1)})
    code = (
        "import sys; from sklearn_pk.slides._encoders._registry import find_encoder; "
        "from sklearn_pk.slides._encoders._weights import find_weights; "
        "print(find_weights(find_encoder('uni'), None), 'torch' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == f"{place} False"


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


def test_type_of_the_weights(tmp_path, state):
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    save_file(half, tmp_path / "w.safetensors")
    for dtype in (None, torch.bfloat16):
        model = load_encoder(SMALL, tmp_path / "w.safetensors", "cpu", dtype)
        assert {weight.dtype for weight in model.parameters()} == {dtype or torch.float32}


def build_readme_vit():
    """Build Lunit's ViT as the repository of its authors does."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=384, num_heads=6, num_classes=0
    )


def third_stage(model, pixels):
    """Compute the mean of the third stage of torchvision's ResNet-50."""
    stem = (model.conv1, model.bn1, model.relu, model.maxpool)
    for layer in (*stem, model.layer1, model.layer2, model.layer3):
        pixels = layer(pixels)
    return pixels.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("name", "build", "compute"),
    [
        ("resnet50", resnet50, lambda model, pixels: model(pixels)),
        ("resnet50-layer3", resnet50, third_stage),
        ("lunit-dino-s16", build_readme_vit, lambda model, pixels: model(pixels)),
    ],
)
def test_features_are_those_of_the_published_code(tmp_path, name, build, compute):
    torch.manual_seed(0)
    model = build().eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    if name.startswith("resnet"):
        model.fc = torch.nn.Identity()
    encoder = find_encoder(name)
    loaded = load_encoder(encoder, find_weights(encoder, tmp_path), "cpu")
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        found, expected = encoder.pool(loaded(pixels)), compute(model, pixels)
    assert tuple(found.shape) == (2, encoder.width)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_stages_that_are_not_used_have_to_be_known(tmp_path):
    state = resnet50().state_dict() | {"layer5.weight": torch.zeros(1)}
    save_file(state, tmp_path / "model.safetensors")
    encoder = find_encoder("resnet50-layer3")
    with pytest.raises(ValueError, match=r"(?s)does not fit .*Unexpected.*layer5\.weight"):
        load_encoder(encoder, tmp_path / "model.safetensors", "cpu")


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


def test_hash_is_of_the_content(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"one")
    first = hash_weights(SMALL, path)
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert hash_weights(SMALL, path) != first


def test_hash_of_a_module():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    first = hash_module(model)
    assert hash_module(load_encoder(Encoder("mine", model), None, "cpu")) == first
    assert hash_module(model.to(torch.bfloat16)) != first
    with torch.no_grad():
        model.bias += 1
    assert hash_module(model.float()) != first


def test_module_of_the_user_keeps_its_mode():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Dropout())
    copied = load_encoder(Encoder("mine", model), None, "cpu")
    assert model.training
    assert not copied.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_encoder_that_brings_its_module_along(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Dropout())
    encoder = Encoder("mine", model)
    assert find_weights(encoder, None) is None
    assert hash_weights(encoder, None) == hash_module(model)
    loaded = load_encoder(encoder, None, "cpu")
    assert not loaded.training
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    pixels = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(loaded(pixels), model.eval()(pixels))
    assert load_encoder(encoder, None, "cpu", torch.bfloat16)[0].weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"weights must be None .* got 'w\.bin'. Load them into"):
        find_weights(encoder, "w.bin")


def test_packed_archives_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as source,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(ValueError, match=r"packed\.pt.*it is compressed"):
        read_state(tmp_path / "packed.pt")


@pytest.mark.parametrize(
    "error",
    [
        OSError(22, "Invalid argument"),  # for an archive that points before its start
        AssertionError("storage key not found"),
        struct.error("unpack requires a buffer of 4 bytes"),
    ],
)
def test_whatever_torch_raises_names_the_file(tmp_path, state, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    torch.save(state, tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=r"w\.pt is not a file of tensors") as info:
        read_state(tmp_path / "w.pt")
    assert str(error) in str(info.value)
    with pytest.raises(ValueError, match=r"w\.pt' is not a readable torch file"):
        read_features(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_state(tmp_path / "none.pt")


def test_no_network_fails_at_once(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9 cannot be reached \(.*refused.*UNI"):
        find_weights(find_encoder("uni"), None)
    assert time.monotonic() - start < 10


def as_transformers(state, *, registers):
    """Rename the tensors of timm's DINOv2 as transformers does; the positions are of 518 pixels."""
    found = {}
    for key, tensor in state.items():
        key = re.sub(r"^blocks\.", "encoder.layer.", key)
        key = re.sub(r"\.ls([12])\.gamma", r".layer_scale\1.lambda1", key)
        key = key.replace("mlp.fc1", "mlp.weights_in").replace("mlp.fc2", "mlp.weights_out")
        key = key.replace("attn.proj", "attention.output.dense").replace("norm.", "layernorm.")
        key = key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if "attn.qkv" in key:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[key.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            found[key] = tensor
    found["embeddings.cls_token"] = found.pop("cls_token")
    found["embeddings.mask_token"] = torch.zeros(1, 1)
    places = found.pop("pos_embed")
    if registers:
        places = torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)
        found["embeddings.register_tokens"] = found.pop("reg_token")
    else:
        grid = places[:, 1:].mean(dim=1, keepdim=True).expand(-1, 37 * 37, -1)
        places = torch.cat([places[:, :1], grid], dim=1)
    return found | {"embeddings.position_embeddings": places}


@pytest.mark.parametrize("name", ["midnight", "hibou-b"])
def test_layouts_of_transformers(tmp_path, name):
    encoder = find_encoder(name)
    encoder = replace(encoder, arguments=encoder.arguments | {"depth": 1})
    torch.manual_seed(0)
    model = encoder.build().eval()
    if name == "midnight":
        # Equal positions stay equal in any grid.
        mean = model.pos_embed.data[:, 1:].mean(dim=1, keepdim=True)
        model.pos_embed.data[:, 1:] = mean
    torch.save(as_transformers(model.state_dict(), registers=name != "midnight"), tmp_path / "w.pt")
    loaded = load_encoder(encoder, tmp_path / "w.pt", "cpu")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        found, expected = encoder.pool(loaded(pixels)), encoder.pool(model(pixels))
    assert tuple(found.shape) == (1, encoder.width)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def as_musk(state):
    """Rename the tensors of timm's BEiT-3 as MUSK does, with a branch and heads for texts."""
    found = {"logit_scale": torch.ones(()), "vision_head.weight": torch.ones(2, 2)}
    names = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "mlp": "ffn"}
    for key, tensor in state.items():
        if key == "pos_embed":
            places = torch.cat([torch.zeros(2, tensor.shape[2]), tensor[0]])
            found["beit3.encoder.embed_positions.A.weight"] = places
        elif key == "cls_token":
            found["beit3.vision_embed.cls_token"] = tensor
        elif key.startswith("patch_embed"):
            found[f"beit3.vision_embed.{key.removeprefix('patch_embed.')}"] = tensor
        elif key.startswith("norm."):
            found[f"beit3.encoder.layer_norm.A.{key.removeprefix('norm.')}"] = tensor
        else:
            _, layer, part, *rest = key.split(".")
            start = f"beit3.encoder.layers.{layer}"
            if part in ("norm1", "norm2"):
                found[f"{start}.{names[part]}.A.{rest[0]}"] = tensor
            elif part == "mlp":
                inner = "ffn_layernorm" if rest[0] == "norm" else rest[0]
                found[f"{start}.ffn.A.{inner}.{rest[1]}"] = tensor
            elif rest[0] == "qkv":
                for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{start}.self_attn.{letter}_proj.A.{rest[1]}"] = rows
            else:
                inner = {"norm": "inner_attn_ln", "proj": "out_proj"}[rest[0]]
                found[f"{start}.self_attn.{inner}.A.{rest[1]}"] = tensor
    branch = {key.replace(".A.", ".B."): tensor for key, tensor in found.items() if ".A." in key}
    return found | branch | {"beit3.text_embed.weight": torch.ones(3, 2)}


def as_conch(state):
    """Put a vision tower into a model of images and texts."""
    found = {f"visual.{key}": tensor for key, tensor in state.items()}
    extra = ("visual.proj_contrast", "visual.ln_caption.weight", "text.cls_emb", "logit_scale")
    return found | {key: torch.ones(2) for key in extra}


@pytest.mark.parametrize(("name", "publish"), [("musk", as_musk), ("conch", as_conch)])
def test_vision_towers_of_models_with_texts(tmp_path, name, publish):
    encoder = find_encoder(name)
    encoder = replace(encoder, arguments=encoder.arguments | {"depth": 1})
    torch.manual_seed(0)
    model = encoder.build().eval()
    torch.save(publish(model.state_dict()), tmp_path / "w.pt")
    loaded = load_encoder(encoder, tmp_path / "w.pt", "cpu")
    pixels = torch.randn(1, 3, encoder.input_size, encoder.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-3, atol=1e-4)


def test_own_name_of_a_file_of_weights(cache, state):
    place = fill_cache(cache, "majiabo/GPFM", state, "GPFM.pth")
    assert find_weights(find_encoder("gpfm"), None) == place
