"""Reading weights without executing anything."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
import struct
import warnings
import zipfile
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
    MemoryError,
    RecursionError,
    OverflowError,
    AssertionError,
    struct.error,
)


def _is_safetensors(path):
    """Look at the content, for files in the cache of Hugging Face have names without suffix."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= Path(path).stat().st_size


def check_archive(path):
    """Refuse an archive with packed members: torch makes none, and they may unpack to any size."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"{str(path)!r} is not a readable torch file ({error}).") from error
    if packed:
        raise ValueError(f"{str(path)!r} is not a readable torch file (it is compressed).")
    return True


def read_state(path):
    """Read tensors from a file without executing anything in it."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if _is_safetensors(path):
            return load_file(path)
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what else could be in such a file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except _NOT_TENSORS + (SafetensorError, OSError) as error:  # torch seeks where it is told
        told = str(error) or type(error).__name__
        raise ValueError(f"weights: {path} is not a file of tensors ({told}).") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"weights: {path} does not hold a dictionary of tensors.")
    return state
