"""Tile encoders by name: the registry, timm, Hugging Face, and modules of users."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import difflib
from dataclasses import replace

import numpy as np
import pandas as pd

from ._encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from ._hub import PREFIXES, parse_repository, read_config
from ._registry import ENCODERS


def _make_encoder(row):
    """Make an encoder from a row of the table."""
    page = f"https://huggingface.co/{row.get('repository')}"
    return Encoder(**({"source": page} | row))


_ENCODERS = {row["name"]: _make_encoder(row) for row in ENCODERS}


def list_encoders():
    """
    List the encoders that are known by name.

    Any other model of timm can be used by its name there, and any at Hugging Face that timm
    can build as "hf-hub:owner/name" once its files are on this machine.

    Returns
    -------
    encoders : DataFrame
        One row an encoder, with its name as index: architecture in timm, width (number
        of features), input_size in pixels, mean, std, pooling, mpp (um/px of the tiles it was
        trained on, NaN where its authors print no single value), gated (whether access has to
        be requested), licence and source of the weights.

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


def find_encoder(name, weights=None):
    """Look an encoder up by name."""
    if name in _ENCODERS:
        return _ENCODERS[name]
    if name.startswith(PREFIXES):
        return _find_in_hub(name, weights)
    import timm

    if timm.is_model(name):
        return _from_config(name, name, timm.get_pretrained_cfg(name))
    known = [*_ENCODERS, *timm.list_models()]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"Unknown encoder {name!r}: it is neither one of {sorted(_ENCODERS)!r} nor a model of "
        f"timm nor 'hf-hub:owner/name'.{hint} list_encoders() says more."
    )


def _find_in_hub(name, weights):
    """Find the encoder of a repository at Hugging Face, without a network."""
    repository, revision = parse_repository(name)
    suffix = f"@{revision}" if revision else ""
    for encoder in _ENCODERS.values():
        if (encoder.repository or "").lower() == repository.lower():
            return replace(encoder, repository=encoder.repository + suffix) if suffix else encoder
    architecture, arguments, config = read_config(repository + suffix, weights)
    encoder = _from_config(name, architecture, config)
    size = arguments.get("img_size") or encoder.input_size
    return replace(
        encoder,
        input_size=size if isinstance(size, int) else size[-1],
        # With its own pooling switched off, a vision transformer gives all tokens.
        pooling="token" if arguments.get("global_pool") == "" else "model",
        arguments={key: value for key, value in arguments.items() if key != "num_classes"},
        repository=repository + suffix,
        source=f"https://huggingface.co/{repository}",
    )


def _from_config(name, architecture, config):
    """Describe a model by the configuration that timm attaches to it, if it does."""
    if config is None:
        return Encoder(name, architecture, input_size=None)
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    repository = get("hf_hub_id")
    known = {"repository": repository, "source": f"https://huggingface.co/{repository}"}
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


def describe_module(module):
    """Describe a torch module that somebody brings along."""
    return _from_config(type(module).__name__, module, getattr(module, "pretrained_cfg", None))


def as_encoder(encoder, weights=None):
    """Describe whatever users may give as an encoder."""
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str):
        return find_encoder(encoder, weights)
    return describe_module(encoder)


def measure_width(encoder, module=None):
    """Count the features of an encoder without computing any from real weights."""
    import torch

    from .._loading import apply_transform

    if encoder.width is not None:
        return encoder.width
    edge = encoder.input_size or 224
    pixels = torch.zeros(1, 3, edge, edge)
    if encoder.transform is not None:
        # Noise, for a transform that normalises stains may fail without any.
        noise = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
        pixels = apply_transform(encoder.transform, noise[None])
    # The meta device gives shapes without memory or time; a module at hand is on another.
    own = module is None and isinstance(encoder.architecture, str)
    with torch.device("meta" if own else "cpu"), torch.inference_mode():
        model = encoder.build() if module is None else copy.deepcopy(module)
        model = model.eval() if own else model.cpu().eval()
        return encoder.pool(model(pixels.to("meta") if own else pixels)).shape[1]
