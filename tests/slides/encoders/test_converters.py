"""Published layouts of weights: each against its own forward pass."""

# SPDX-License-Identifier: BSD-3-Clause

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from sklearn_pk.slides import Encoder
from sklearn_pk.slides._encoders._registry import find_encoder
from sklearn_pk.slides._encoders._weights import load_encoder

WIDTH, HEADS, DEPTH, PATCH, EDGE = 32, 4, 2, 8, 32
N_PATCHES = (EDGE // PATCH) ** 2


def linear(x, tensors, name):
    return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def norm(x, tensors, name, eps=1e-6):
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def fill(shapes, seed=0):
    """Draw tensors; those of a layer scale are near 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if "scale" in name else 0.0)
        for name, shape in shapes.items()
    }


def draw_layer(mlp, layer_scale, seed):
    hidden = 4 * WIDTH
    outer = 2 * hidden if mlp == "swiglu" else hidden
    shapes = {
        "norm1.weight": WIDTH,
        "norm1.bias": WIDTH,
        "norm2.weight": WIDTH,
        "norm2.bias": WIDTH,
        "up.weight": (outer, WIDTH),
        "up.bias": outer,
        "down.weight": (WIDTH, hidden),
        "down.bias": WIDTH,
    }
    for name in ("query", "key", "value", "proj"):
        shapes |= {f"{name}.weight": (WIDTH, WIDTH), f"{name}.bias": WIDTH}
    if layer_scale:
        shapes |= {"scale1": WIDTH, "scale2": WIDTH}
    return fill(shapes, seed)


def run_layer(x, layer, mlp):
    """Compute one layer of a vision transformer."""
    inner = norm(x, layer, "norm1")
    parts = [
        linear(inner, layer, name).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for name in ("query", "key", "value")
    ]
    scores = parts[0] @ parts[1].mT / (WIDTH // HEADS) ** 0.5
    heads = (scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2)
    x = x + linear(heads, layer, "proj") * layer.get("scale1", 1.0)
    hidden = linear(norm(x, layer, "norm2"), layer, "up")
    if mlp == "swiglu":
        gate, value = hidden.chunk(2, dim=-1)
        hidden = functional.silu(gate) * value
    else:
        hidden = functional.gelu(hidden)
    return x + linear(hidden, layer, "down") * layer.get("scale2", 1.0)


def name_huggingface_vit(shared, layers):
    """Name tensors as transformers' ViTModel does."""
    names = {
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "proj": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    return name_huggingface(shared, layers, names) | {"pooler.dense.weight": torch.zeros(1)}


def name_huggingface_dinov2(shared, layers):
    """Name tensors as transformers' Dinov2Model does."""
    names = {
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "proj": "attention.output.dense",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "norm1": "norm1",
        "norm2": "norm2",
        "scale1": "layer_scale1.lambda1",
        "scale2": "layer_scale2.lambda1",
    }
    mask = {"embeddings.mask_token": torch.zeros(1, WIDTH)}
    return name_huggingface(shared, layers, names) | mask


def name_huggingface(shared, layers, names):
    state = {
        "embeddings.cls_token": shared["cls"],
        "embeddings.position_embeddings": shared["position"],
        "embeddings.patch_embeddings.projection.weight": shared["patch.weight"],
        "embeddings.patch_embeddings.projection.bias": shared["patch.bias"],
        "layernorm.weight": shared["norm.weight"],
        "layernorm.bias": shared["norm.bias"],
    }
    for number, layer in enumerate(layers):
        for key, tensor in layer.items():
            name, dot, kind = key.partition(".")
            state[f"encoder.layer.{number}.{names[name]}{dot}{kind}"] = tensor
    return state


def name_dinov2(shared, layers, mlp=("fc1", "fc2")):
    """Name tensors as the DINOv2 repository does."""
    state = {
        "cls_token": shared["cls"],
        "pos_embed": shared["position"],
        "mask_token": torch.zeros(1, WIDTH),
        "patch_embed.proj.weight": shared["patch.weight"],
        "patch_embed.proj.bias": shared["patch.bias"],
        "norm.weight": shared["norm.weight"],
        "norm.bias": shared["norm.bias"],
    }
    if "registers" in shared:
        state["register_tokens"] = shared["registers"]
    names = {"proj": "attn.proj", "up": f"mlp.{mlp[0]}", "down": f"mlp.{mlp[1]}"}
    names |= {"norm1": "norm1", "norm2": "norm2", "scale1": "ls1.gamma", "scale2": "ls2.gamma"}
    for number, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            parts = [layer[f"{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
        for key, tensor in layer.items():
            name, dot, kind = key.partition(".")
            if name in names:
                state[f"blocks.{number}.{names[name]}{dot}{kind}"] = tensor
    return state


def prefix_vit(shared, layers):
    named = name_huggingface_vit(shared, layers)
    return {f"vit.{key}": tensor for key, tensor in named.items()}


def name_dinov2_swiglu(shared, layers):
    return name_dinov2(shared, layers, mlp=("w12", "w3"))


PLAIN, SCALED = "vit_tiny_patch16_224", {"init_values": 1e-5}
REGISTERS = SCALED | {"reg_tokens": 3, "no_embed_class": True}
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 8}


@pytest.mark.parametrize(
    ("write", "arguments", "mlp"),
    [
        (name_huggingface_vit, {}, "mlp"),
        (prefix_vit, {}, "mlp"),
        (name_huggingface_dinov2, SCALED, "mlp"),
        (name_dinov2, SCALED, "mlp"),
        (name_dinov2, REGISTERS, "mlp"),
        (name_dinov2_swiglu, REGISTERS | SWIGLU, "swiglu"),
    ],
)
def test_vision_transformers(tmp_path, write, arguments, mlp):
    layers = [draw_layer(mlp, "init_values" in arguments, seed) for seed in range(DEPTH)]
    shapes = {
        "cls": (1, 1, WIDTH),
        "position": (1, 1 + N_PATCHES, WIDTH),
        "patch.weight": (WIDTH, 3, PATCH, PATCH),
        "patch.bias": WIDTH,
        "norm.weight": WIDTH,
        "norm.bias": WIDTH,
    }
    n_registers = arguments.get("reg_tokens", 0)
    if n_registers:
        shapes["registers"] = (1, n_registers, WIDTH)
    shared = fill(shapes, seed=9)
    save_file(write(shared, layers), tmp_path / "model.safetensors")

    pixels = torch.randn(2, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(1))
    patches = functional.conv2d(pixels, shared["patch.weight"], shared["patch.bias"], stride=PATCH)
    tokens = torch.cat([shared["cls"].expand(2, -1, -1), patches.flatten(2).mT], dim=1)
    tokens = tokens + shared["position"]
    if n_registers:
        registers = shared["registers"].expand(2, -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    for layer in layers:
        tokens = run_layer(tokens, layer, mlp)
    expected = norm(tokens, shared, "norm")

    size = {"img_size": EDGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    size |= {"num_heads": HEADS, "global_pool": ""}
    encoder = Encoder("small", PLAIN, input_size=EDGE, arguments=size | arguments)
    model = load_encoder(encoder, tmp_path / "model.safetensors", "cpu")
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("img_size", EDGE * 2), ("patch_size", PATCH * 2)])
@pytest.mark.parametrize("arguments", [SCALED, REGISTERS])
def test_weights_for_another_size_are_not_resampled(tmp_path, arguments, name, value):
    size = {"img_size": EDGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 0, "num_heads": 4}
    shared = {
        "cls": torch.zeros(1, 1, WIDTH),
        "position": torch.zeros(1, 1 + N_PATCHES, WIDTH),
        "patch.weight": torch.zeros(WIDTH, 3, PATCH, PATCH),
        "patch.bias": torch.zeros(WIDTH),
        "norm.weight": torch.zeros(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    if arguments is REGISTERS:
        shared["registers"] = torch.zeros(1, 3, WIDTH)
    save_file(name_dinov2(shared, []), tmp_path / "model.safetensors")
    load_encoder(
        Encoder("fits", PLAIN, arguments=size | arguments), tmp_path / "model.safetensors", "cpu"
    )
    other = Encoder("other", PLAIN, arguments=size | arguments | {name: value})
    with pytest.raises(ValueError, match=r"does not fit .*'other'.*(?s:.*)size mismatch"):
        load_encoder(other, tmp_path / "model.safetensors", "cpu")


SWIN_DEPTHS, SWIN_HEADS, WINDOW = (2, 2, 6, 2), (3, 6, 12, 24), 7


def draw_ctranspath():
    """Draw tensors in the layout of ctranspath.pth, which timm 0.5.4 wrote."""
    shapes = {}
    for index, shape in ((0, (12, 3, 3, 3)), (3, (24, 12, 3, 3))):
        shapes[f"patch_embed.proj.{index}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"patch_embed.proj.{index + 1}.{name}"] = shape[0]
    shapes["patch_embed.proj.6.weight"] = (96, 24, 1, 1)
    norms, biased = {"patch_embed.norm": 96, "norm": 768}, {}
    for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS, strict=True)):
        width = 96 * 2**stage
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            norms |= {f"{name}.norm1": width, f"{name}.norm2": width}
            biased[f"{name}.attn.qkv"] = (3 * width, width)
            biased[f"{name}.attn.proj"] = (width, width)
            biased[f"{name}.mlp.fc1"] = (4 * width, width)
            biased[f"{name}.mlp.fc2"] = (width, 4 * width)
            shapes[f"{name}.attn.relative_position_bias_table"] = (169, heads)
        if stage < 3:
            norms[f"layers.{stage}.downsample.norm"] = 4 * width
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
    shapes |= {
        f"{name}.{kind}": size for name, size in norms.items() for kind in ("weight", "bias")
    }
    shapes |= {f"{name}.weight": shape for name, shape in biased.items()}
    shapes |= {f"{name}.bias": shape[0] for name, shape in biased.items()}
    shapes["patch_embed.proj.6.bias"] = 96
    state = {name: 0.2 * tensor for name, tensor in fill(shapes).items()}
    for name in state:
        if name.endswith("running_var") or name.removesuffix(".weight") in norms:
            state[name] = state[name].abs() + 0.5
    return state


def add_buffers(state):
    """Add what the old layout held beside the weights."""
    buffers = {}
    for stage, depth in enumerate(SWIN_DEPTHS):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            buffers[f"{name}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
            if block % 2 and stage < 3:
                n_windows = (56 // 2**stage // WINDOW) ** 2
                buffers[f"{name}.attn_mask"] = torch.zeros(n_windows, 49, 49)
    tracked = {f"patch_embed.proj.{index}.num_batches_tracked": torch.tensor(5) for index in (1, 4)}
    head = {"head.weight": torch.zeros(1000, 768), "head.bias": torch.zeros(1000)}
    return state | buffers | tracked | head


def split_windows(x):
    """Split (..., edge, edge, channels) into (..., windows, tokens, channels)."""
    n = x.shape[-2] // WINDOW
    x = x.unflatten(-3, (n, WINDOW)).unflatten(-2, (n, WINDOW)).transpose(-4, -3)
    return x.flatten(-3, -2).flatten(-4, -3)


def join_windows(x, edge):
    """Invert split_windows."""
    n = edge // WINDOW
    x = x.unflatten(-3, (n, n)).unflatten(-2, (WINDOW, WINDOW)).transpose(-4, -3)
    return x.flatten(-5, -4).flatten(-3, -2)


def attend(x, state, name, heads, shift):
    """Attend within windows, where neighbours in the shifted image must be neighbours in truth."""
    edge = x.shape[1]
    place = torch.arange(edge).roll(-shift)
    truth = split_windows(torch.stack(torch.meshgrid(place, place, indexing="ij"), dim=-1))
    apart = (truth[:, :, None] - truth[:, None]).abs().amax(dim=-1) >= WINDOW
    cell = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    distance = cell[:, None] - cell[None] + WINDOW - 1
    table = state[f"{name}.relative_position_bias_table"]
    bias = table[distance[..., 0] * (2 * WINDOW - 1) + distance[..., 1]].permute(2, 0, 1)

    windows = split_windows(x.roll((-shift, -shift), dims=(1, 2)))
    qkv = linear(windows, state, f"{name}.qkv").unflatten(-1, (3, heads, -1))
    query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
    scores = query @ key.mT / query.shape[-1] ** 0.5 + bias
    scores = scores.masked_fill(apart[:, None], -torch.inf)
    mixed = (scores.softmax(dim=-1) @ value).transpose(2, 3).flatten(-2)
    return join_windows(linear(mixed, state, f"{name}.proj"), edge).roll(
        (shift, shift), dims=(1, 2)
    )


def compute_ctranspath(pixels, state):
    """Compute CTransPath from the old layout: patches are merged at the end of a stage."""
    x = pixels
    for index in (0, 3):
        name = f"patch_embed.proj.{index + 1}"
        x = functional.conv2d(x, state[f"patch_embed.proj.{index}.weight"], stride=2, padding=1)
        statistics = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        x = functional.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"])
        x = functional.relu(x)
    name = "patch_embed.proj.6"
    x = functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]).permute(0, 2, 3, 1)
    x = norm(x, state, "patch_embed.norm", eps=1e-5)
    for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS, strict=True)):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            shift = WINDOW // 2 if block % 2 and stage < 3 else 0
            inner = norm(x, state, f"{name}.norm1", eps=1e-5)
            x = x + attend(inner, state, f"{name}.attn", heads, shift)
            hidden = linear(norm(x, state, f"{name}.norm2", eps=1e-5), state, f"{name}.mlp.fc1")
            x = x + linear(functional.gelu(hidden), state, f"{name}.mlp.fc2")
        if stage < 3:
            name = f"layers.{stage}.downsample"
            corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = norm(torch.cat(corners, dim=-1), state, f"{name}.norm", eps=1e-5)
            x = linear(x, state, f"{name}.reduction")
    return norm(x, state, "norm", eps=1e-5).mean(dim=(1, 2))


@pytest.mark.parametrize("wrapped", [True, False])
def test_ctranspath(tmp_path, wrapped):
    state = draw_ctranspath()
    path = tmp_path / ("ctranspath.pth" if wrapped else "model.safetensors")
    published = add_buffers(state)
    torch.save({"model": published}, path) if wrapped else save_file(published, path)
    encoder = find_encoder("ctranspath")
    model = load_encoder(encoder, path, "cpu")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = encoder.pool(model(pixels))
        expected = compute_ctranspath(pixels, state)
    assert tuple(features.shape) == (2, 768)
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_files_of_today_are_left_as_they_are(tmp_path):
    # In the layout of today, the second stage and not the first begins by merging patches.
    encoder = find_encoder("ctranspath")
    torch.manual_seed(0)
    model = encoder.build().eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_encoder(encoder, tmp_path / "model.safetensors", "cpu").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


def test_unknown_tensors_are_not_dropped(tmp_path):
    state = draw_ctranspath() | {"layers.1.downsample.surprise": torch.zeros(1)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)does not fit .*layers\.2\.downsample\.surprise"):
        load_encoder(find_encoder("ctranspath"), tmp_path / "model.safetensors", "cpu")
    layer = draw_layer("mlp", layer_scale=False, seed=0)
    shapes = {"cls": (1, 1, WIDTH), "position": (1, 17, WIDTH), "patch.weight": (WIDTH, 3, 8, 8)}
    shapes |= {"patch.bias": WIDTH, "norm.weight": WIDTH, "norm.bias": WIDTH}
    state = name_huggingface_vit(fill(shapes), [layer])
    state["encoder.layer.0.surprise.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "other.safetensors")
    size = {"img_size": EDGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 1, "num_heads": 4}
    with pytest.raises(ValueError, match=r"(?s)Unexpected.*blocks\.0\.surprise"):
        load_encoder(Encoder("s", PLAIN, arguments=size), tmp_path / "other.safetensors", "cpu")
