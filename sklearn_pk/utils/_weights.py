"""Reading weights without executing anything."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
from pathlib import Path

# What torch raises for bytes that mean something else to it, or nothing.
_NOT_TENSORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _is_safetensors(path):
    """Look at the content, for files in the cache of Hugging Face have names without suffix."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= Path(path).stat().st_size


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
        if _is_safetensors(path):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _NOT_TENSORS + (SafetensorError,) as error:
        raise ValueError(f"weights: {path} is not a file of tensors ({error}).") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"weights: {path} does not hold a dictionary of tensors.")
    return state
