"""Names and files of the Hugging Face hub that are on this machine; nothing is downloaded."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import re
from pathlib import Path

PREFIXES = ("hf-hub:", "hf_hub:")
# With these, timm would read another file, or ask the network for one.
_FILES = {"pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"}


def parse_repository(name):
    """Parse a name such as "hf-hub:owner/name" or "hf-hub:owner/name@revision"."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", name[len(PREFIXES[0]) :])
    if not match:
        raise ValueError(
            f"encoder must name a repository as 'hf-hub:owner/name' or "
            f"'hf-hub:owner/name@revision', got {name!r}."
        )
    return match.groups()


def find_cached(repository, *filenames):
    """Find a file of a repository in the local cache of Hugging Face."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    for filename in filenames:
        path = try_to_load_from_cache(repository, filename, revision=revision or None)
        # What is known not to exist is told by an object that is no str.
        if isinstance(path, str):
            return Path(path)
    return None


def read_config(repository, weights):
    """Read the configuration that timm saves beside weights."""
    path = None
    if weights is not None:
        folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
        path = folder / "config.json"
    if path is None or not path.exists():
        path = find_cached(repository, "config.json")
    if path is None:
        raise ValueError(
            f"encoder 'hf-hub:{repository}' is not one of list_encoders(), and there is no "
            f"config.json of it beside weights={weights!r} or in the local Hugging Face cache. "
            f"Nothing is downloaded for you: download https://huggingface.co/"
            f"{repository.partition('@')[0]} and pass weights='/path/to/folder' with its "
            "config.json and its weights."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"encoder: {path} is not JSON ({error}).") from error
    import timm

    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(
            f"encoder: {path} does not describe a model of timm: 'architecture' must be one of "
            f"timm.list_models(), got {architecture!r}. Load the model yourself and pass it as "
            "Encoder(name, module, transform=...)."
        )
    # Files of timm before 0.9 have no inner dictionary.
    arguments, inner = config.get("model_args") or {}, config.get("pretrained_cfg", config)
    if not isinstance(arguments, dict) or not isinstance(inner, dict) or _FILES & arguments.keys():
        raise ValueError(
            f"encoder: {path} does not describe a model of timm: 'model_args' and "
            f"'pretrained_cfg' must be objects, without {', '.join(sorted(_FILES))}."
        )
    return architecture, arguments, inner
