"""Published SEQUOIA checkpoints as fitted regressors."""

# SPDX-License-Identifier: BSD-3-Clause

import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..utils._device import pick_device
from ..utils._tensor_files import read_state
from ..utils._validation import name_some
from ._network import build_network, describe_network
from ._regressor import PriorKnowledgeRegressor
from ._training import load_weights, make_net

_HEAD = {"linear_head.0": "norm", "linear_head.1": "layer"}
_HEAD_DIM = 64
# Of checkpoints; the first is preferred.
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")


def load_sequoia(path_or_state_dict, gene_names=None, n_heads=None, *, device="auto"):
    """
    Load a checkpoint published with SEQUOIA as a fitted regressor.

    Parameters
    ----------
    path_or_state_dict : str, path-like or mapping of str to Tensor
        A safetensors file, a torch file with tensors only, or the tensors themselves. Also a
        folder of such files or of folders with one each, as the folds of a cancer type are
        published: predictions are then the mean of all of them.
    gene_names : str, path-like or array-like of str of shape (n_genes,), default=None
        Names of the genes in the order of the outputs, or a table with them (text or csv, in a
        column with one row per gene). They are not in the checkpoint. None takes the only
        file of the folder whose name contains "gene", if there is one.
    n_heads : int, default=None
        Attention heads of a transformer, which are not stored in its tensors; None means heads
        of width 64, as published. Summary mixing has a tensor for each head.
    device : str, default="auto"
        Torch device.

    Returns
    -------
    PriorKnowledgeRegressor
        Fitted, with ``compat="sequoia"``. It predicts the expression of bags of as many
        super-tiles as the checkpoint has positions (100 in the published ones), or fewer.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If keys are missing or unexpected, if shapes do not fit together or differ between the
        files of a folder, if a file is not a file of tensors, or if `gene_names` or `n_heads` do
        not fit.

    See Also
    --------
    PriorKnowledgeRegressor : What it returns.

    References
    ----------
    .. [1] "Digital profiling of gene expression from histology images with
       linearized attention", Nature Communications 15:9886 (2024).

    Examples
    --------
    >>> import torch
    >>> from sklearn_pk.regression import load_sequoia
    >>> state = {"pos_emb1D": torch.zeros(5, 8)}  # a transformer with one block
    >>> state |= {"linear_head.0.weight": torch.ones(8), "linear_head.0.bias": torch.zeros(8)}
    >>> state |= {"linear_head.1.weight": torch.ones(3, 8), "linear_head.1.bias": torch.ones(3)}
    >>> block = "transformer.layers.0"
    >>> state |= {f"{block}.0.norm.weight": torch.ones(8), f"{block}.0.norm.bias": torch.ones(8)}
    >>> state |= {f"{block}.0.to_qkv.weight": torch.ones(24, 8)}
    >>> state |= {f"{block}.0.to_out.weight": torch.ones(8, 8)}
    >>> state |= {f"{block}.1.net.{i}.{part}": torch.ones(8) for i in (0, 1, 3)
    ...           for part in ("weight", "bias")}
    >>> state |= {f"{block}.1.net.{i}.weight": torch.ones(8, 8) for i in (1, 3)}
    >>> model = load_sequoia(state, gene_names=["ESR1", "ERBB2", "MKI67"], n_heads=2)
    >>> model.predict_frame([torch.zeros(5, 8)]).columns.tolist()
    ['ESR1', 'ERBB2', 'MKI67']
    """
    if n_heads is not None and (isinstance(n_heads, bool) or not isinstance(n_heads, Integral)):
        raise TypeError(f"n_heads must be an int or None, got {n_heads!r}.")
    if isinstance(path_or_state_dict, str | os.PathLike) and os.path.isdir(path_or_state_dict):
        folder = Path(path_or_state_dict)
        gene_names = _find_genes(folder) if gene_names is None else gene_names
        models = [load_sequoia(path, gene_names, n_heads, device=device) for path in _find(folder)]
        return _merge(models, folder)
    state, source = _read(path_or_state_dict)
    mixes = any(".mixers." in key for key in state)
    depth = len({_block_number(key) for key in state} - {None})
    sizes = _sizes(state, mixes, n_heads, source)
    n_tiles, n_genes = len(state["pos_emb1D"]), sizes.pop("n_genes")
    _check(state, _expected_shapes(depth, sizes, mixes, n_genes, n_tiles), source)
    dim = sizes.pop("dim")
    model = PriorKnowledgeRegressor(
        aggregator="summary_mixing" if mixes else "transformer",
        depth=depth,
        standardize=False,
        init_scale=1.0,
        lr=1e-3,
        lambda_=0.0,
        compat="sequoia",
        device=device,
        random_state=0,
        **sizes,
    )
    if gene_names is not None:
        model.gene_names_out_ = _check_names(gene_names, n_genes)
    model.n_features_in_, model._y_is_1d = dim, False
    model._offset = np.zeros(n_genes)
    model.prior_ = model.embeddings_ = None
    model.seed_ = 0
    model._module_params = {
        "feature_mean": np.zeros(dim, dtype=np.float32),
        "feature_scale": np.ones(dim, dtype=np.float32),
        "target_mean": np.zeros(n_genes, dtype=np.float32),
        "target_scale": np.ones(n_genes, dtype=np.float32),
        "n_tiles": n_tiles,
    } | describe_network(model)
    convert = _convert_mixing if mixes else _convert_attention
    weights = {"positions": state["pos_emb1D"]}
    for theirs, ours in _HEAD.items():
        for part in ("weight", "bias"):
            weights[f"{ours}.{part}"] = state[f"{theirs}.{part}"]
    for block in range(depth):
        old, new = f"transformer.layers.{block}.", f"aggregator.layers.{block}."
        weights |= {new + key: value for key, value in convert(state, old, sizes).items()}
        for number in (0, 1, 3):
            for part in ("weight", "bias"):
                weights[f"{new}1.{number}.{part}"] = state[f"{old}1.net.{number}.{part}"]
    network = build_network(model._module_params, None, model.seed_)
    load_weights(network, weights)
    model.net_ = make_net(network, model, pick_device(device))
    model.nets_ = [model.net_]
    return model


def _find(folder):
    """Return the checkpoints in a folder; of one folder's, safetensors are preferred."""
    found = {}
    for ending in _ENDINGS:
        for path in sorted(folder.rglob(f"*{ending}")):
            own = found.setdefault(path.parent, [])
            if not own or own[0].suffix == ending:
                own.append(path)
    paths = sorted(path for own in found.values() for path in own)
    if not paths:
        raise FileNotFoundError(
            f"{str(folder)!r} has no checkpoints: expected files that end in "
            f"{', '.join(_ENDINGS)}, there or in its folders."
        )
    return paths


def _find_genes(folder):
    """Return the file with the genes in a folder, or None."""
    names = {".csv", ".tsv", ".txt"}
    paths = sorted(folder.rglob("*"))
    found = [path for path in paths if path.suffix in names and "gene" in path.name.lower()]
    if len({path.read_bytes() for path in found}) > 1:
        raise ValueError(
            f"{str(folder)!r} has {len(found)} lists of genes: {name_some(map(str, found))}. Pass "
            "one as gene_names."
        )
    return found[0] if found else None


def _read_genes(path, n_genes):
    """Return the column of a table that names as many genes as a checkpoint predicts."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"List of genes not found: {os.fspath(path)!r}.")
    separator = "," if os.fspath(path).lower().endswith(".csv") else "\t"
    table = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False)
    found = []
    for column in table:
        values = table[column].str.strip()
        # A first row more than genes is the header.
        names = values.iloc[len(values) - n_genes :]
        is_list = len(values) in (n_genes, n_genes + 1) and names.is_unique
        if is_list and not names.str.fullmatch(r"[\d.]*").any():
            found.append(names)
    if len(found) != 1:
        raise ValueError(
            f"gene_names: {os.fspath(path)!r} has {len(found)} columns with {n_genes} different "
            f"names, as many as the checkpoint predicts genes; its table has the shape "
            f"{table.shape}. Pass the names themselves."
        )
    return found[0].str.removeprefix("rna_").tolist()


def _merge(models, folder):
    """Return one regressor that predicts the mean of several."""
    first = models[0]
    for model in models[1:]:
        for name in ("aggregator", "depth", "n_heads", "head_dim", "n_features_in_"):
            own, other = getattr(first, name), getattr(model, name)
            if own != other:
                raise ValueError(
                    f"{str(folder)!r}: the checkpoints differ in {name}: {own!r} and {other!r}. "
                    "Keep those of one model in the folder."
                )
        shapes = [len(each._module_params["target_mean"]) for each in (first, model)]
        shapes += [each._module_params["n_tiles"] for each in (first, model)]
        if shapes[0] != shapes[1] or shapes[2] != shapes[3]:
            raise ValueError(
                f"{str(folder)!r}: the checkpoints differ in genes ({shapes[0]}, {shapes[1]}) or "
                f"positions ({shapes[2]}, {shapes[3]}). Keep those of one model in the folder."
            )
    first.nets_ = [model.net_ for model in models]
    return first


def _read(source):
    if isinstance(source, Mapping):
        state, label = source, "state_dict"
    elif isinstance(source, str | os.PathLike):
        if not os.path.isfile(source):
            raise FileNotFoundError(f"Checkpoint not found: {os.fspath(source)!r}.")
        state, label = read_state(source), repr(os.fspath(source))
    else:
        raise TypeError(
            "path_or_state_dict: expected a path or a mapping from names to tensors, got "
            f"{type(source).__name__}."
        )
    if not state or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{label}: expected names and their tensors, got {name_some(state)}.")
    try:
        state = {key: torch.as_tensor(value).float() for key, value in state.items()}
    except (TypeError, ValueError, RuntimeError) as error:  # what torch raises for other things
        raise ValueError(f"{label}: expected tensors only ({error}).") from error
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"{label} holds NaN or infinity in {name_some(broken)}.")
    return state, label


def _block_number(key):
    parts = key.split(".")
    in_block = parts[:2] == ["transformer", "layers"] and len(parts) > 3 and parts[2].isdecimal()
    return int(parts[2]) if in_block else None


def _head_number(key):
    parts = key.split(".")
    is_head = _block_number(key) == 0 and parts[3:5] == ["0", "mixers"] and len(parts) > 6
    return int(parts[5]) if is_head and parts[5].isdecimal() else None


def _sizes(state, mixes, n_heads, source):
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    dim = _shape(shapes, "pos_emb1D", 2, source)[1]
    common = {"dim": dim, "n_genes": _shape(shapes, "linear_head.1.weight", 2, source)[0]}
    if mixes:
        heads = {_head_number(key) for key in state} - {None}
        width = _shape(shapes, "transformer.layers.0.0.mixers.0.f.weight", 2, source)[0]
        n_found = len(heads)
        if n_heads not in (None, n_found):
            raise ValueError(f"n_heads: {source} has {n_found} heads, got {n_heads!r}.")
        return common | {"n_heads": n_found, "head_dim": width}
    inner = _shape(shapes, "transformer.layers.0.0.to_qkv.weight", 2, source)[0] // 3
    heads = inner // _HEAD_DIM if n_heads is None else n_heads
    if heads < 1 or inner % heads or (n_heads is None and inner % _HEAD_DIM):
        raise ValueError(
            f"n_heads: the attention of {source} is {inner} wide, which is not "
            f"{'a number of heads of 64' if n_heads is None else f'{n_heads!r} equal heads'}. "
            "Pass the number of heads it was trained with."
        )
    return common | {"n_heads": heads, "head_dim": inner // heads}


def _shape(shapes, key, n_dims, source):
    if key not in shapes:
        raise ValueError(
            f"{source} is not a SEQUOIA checkpoint: it has no {key!r}, but {name_some(shapes)}."
        )
    if len(shapes[key]) != n_dims:
        raise ValueError(f"{source}: {key!r} should have {n_dims} dimensions, got {shapes[key]}.")
    return shapes[key]


def _expected_shapes(depth, sizes, mixes, n_genes, n_tiles):
    dim, head = sizes["dim"], sizes["head_dim"]
    inner = head * sizes["n_heads"]
    linear = {"linear_head.1": (n_genes, dim)}
    norms, bare = {"linear_head.0": dim}, {"pos_emb1D": (n_tiles, dim)}
    for block in range(depth):
        prefix = f"transformer.layers.{block}"
        norms[f"{prefix}.1.net.0"] = dim
        linear |= {f"{prefix}.1.net.{number}": (dim, dim) for number in (1, 3)}
        if not mixes:
            norms[f"{prefix}.0.norm"] = dim
            bare[f"{prefix}.0.to_qkv.weight"] = (3 * inner, dim)
            bare[f"{prefix}.0.to_out.weight"] = (dim, inner)
            continue
        linear[f"{prefix}.0.projection"] = (dim, inner)
        for number in range(sizes["n_heads"]):
            mixer = f"{prefix}.0.mixers.{number}"
            norms |= {f"{mixer}.{name}_norm": head for name in ("local", "summary")}
            linear |= {f"{mixer}.{name}": (head, dim) for name in ("f", "s")}
            linear[f"{mixer}.c"] = (head, 2 * head)
    shapes = {f"{name}.weight": shape for name, shape in linear.items()} | bare
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    for part in ("weight", "bias"):
        shapes |= {f"{name}.{part}": (width,) for name, width in norms.items()}
    return shapes


def _check(state, expected, source):
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        keys = [f"missing keys: {name_some(missing)}"] if missing else []
        keys += [f"unexpected keys: {name_some(unexpected)}"] if unexpected else []
        raise ValueError(
            f"{source} does not have the keys of a SEQUOIA checkpoint; {'; '.join(keys)}."
        )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise ValueError(
                f"{source}: {key!r} should have shape {shape} to go with the other tensors, got "
                f"{tuple(state[key].shape)}."
            )


def _check_names(gene_names, n_genes):
    if isinstance(gene_names, str | os.PathLike):
        gene_names = _read_genes(gene_names, n_genes)
    gene_names = [str(name) for name in gene_names]
    names = np.array(gene_names, dtype=object)
    if len(names) != n_genes or len(set(gene_names)) != n_genes:
        raise ValueError(
            f"gene_names: the checkpoint predicts {n_genes} genes, got {len(names)} names, "
            f"{len(set(gene_names))} of them different."
        )
    return names


def _convert_attention(state, old, sizes):
    names = ("norm.weight", "norm.bias", "to_qkv.weight", "to_out.weight")
    return {f"0.{name}": state[f"{old}0.{name}"] for name in names}


def _convert_mixing(state, old, sizes):
    def heads(key):
        return [state[f"{old}0.mixers.{head}.{key}"] for head in range(sizes["n_heads"])]

    weights = {}
    for ours, theirs in (("local", "f"), ("summary", "s")):
        weights[f"0.{ours}.weight"] = torch.cat(heads(f"{theirs}.weight"))
        weights[f"0.{ours}.bias"] = torch.cat(heads(f"{theirs}.bias"))
        weights[f"0.{ours}_weight"] = torch.stack(heads(f"{ours}_norm.weight"))
        weights[f"0.{ours}_bias"] = torch.stack(heads(f"{ours}_norm.bias"))
    weights["0.combine_weight"] = torch.stack([weight.T for weight in heads("c.weight")])
    weights["0.combine_bias"] = torch.stack(heads("c.bias"))
    for part in ("weight", "bias"):
        weights[f"0.projection.{part}"] = state[f"{old}0.projection.{part}"]
    return weights
