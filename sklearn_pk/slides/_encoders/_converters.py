"""Published layouts of weights and what timm calls the same tensors."""

# SPDX-License-Identifier: BSD-3-Clause

import re


def convert_lite0(state):
    """Rename the tensors of EfficientNet-lite0 to what timm calls them."""
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


_HF_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_LAYERS = {
    "attention.output.dense": "attn.proj",
    # ViT
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    # DINOv2
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}


def convert_huggingface_vit(state):
    """Rename the tensors of a vision transformer of the transformers library."""
    import torch

    state = {re.sub(r"^(vit|dinov2)\.", "", key): tensor for key, tensor in state.items()}
    renamed = {}
    for key, tensor in state.items():
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)", key)
        number, name, kind = layer.groups() if layer else ("", "", "")
        if key in _HF_TOP:
            renamed[_HF_TOP[key]] = tensor
        elif name in _HF_LAYERS:
            kind = "gamma" if kind == "lambda1" else kind
            renamed[f"blocks.{number}.{_HF_LAYERS[name]}.{kind}"] = tensor
        elif name == "attention.attention.query":
            parts = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            renamed[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
        elif not re.search(r"attention\.(key|value)\.|^pooler\.|mask_token$", key):
            renamed[key] = tensor
    return renamed


def convert_dinov2(state):
    """Convert the tensors of a vision transformer as the DINOv2 repository saves it."""
    names = {"w12": "fc1", "w3": "fc2"}
    state = {
        re.sub(r"(?<=\.mlp\.)(w12|w3)(?=\.)", lambda match: names[match[0]], key): tensor
        for key, tensor in state.items()
        if key != "mask_token"
    }
    if "register_tokens" in state:
        position = state.pop("pos_embed")
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + position[:, :1]
        state["pos_embed"] = position[:, 1:]
    return state


def convert_swin(state):
    """Convert the tensors of a Swin transformer of timm before 0.9."""
    return {
        re.sub(
            r"(?<=^layers\.)(\d+)(?=\.downsample\.)", lambda match: str(int(match[0]) + 1), key
        ): tensor
        for key, tensor in state.items()
        if not key.endswith((".attn_mask", ".relative_position_index"))
    }


# What a key of a published file ends with, and the function that converts such a file.
_CONVERTERS = {
    "_conv_stem.weight": convert_lite0,
    "embeddings.cls_token": convert_huggingface_vit,
    "register_tokens": convert_dinov2,
    "mask_token": convert_dinov2,
    "layers.0.downsample.reduction.weight": convert_swin,
}


def convert_state(state, expected):
    """Convert the tensors of a published file to what timm expects, if they are not yet."""
    for marker, convert in _CONVERTERS.items():
        if any(key.endswith(marker) and key not in expected for key in state):
            return convert(state)
    return state
