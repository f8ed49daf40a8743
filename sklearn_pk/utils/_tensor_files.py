"""Tensors in files of torch and safetensors, loaded without running code."""

# SPDX-License-Identifier: BSD-3-Clause

import pickle
import struct
import warnings
import zipfile
from pathlib import Path

# What torch raises on files that are damaged or of another kind.
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
    zipfile.BadZipFile,
    OSError,  # torch seeks to offsets that the file states
)


def _is_safetensors(path):
    # Files in the cache of Hugging Face have names without suffix.
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= Path(path).stat().st_size


def _is_archive(path):
    """Return whether a file is a zip archive; refuse compressed ones."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # torch writes none, and they may unpack to any size.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed")
    return True


def load_torch(path, *, mmap=False):
    """Load a torch file that holds only tensors and plain containers."""
    import torch

    try:
        # Files of torch 1.5 and older are not archives and cannot be mapped.
        mmap = _is_archive(path) and mmap
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other kinds of torch files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except pickle.UnpicklingError as error:
        # The text of torch recommends to load the file without this check.
        raise ValueError(
            f"{str(path)!r} is not a readable torch file: it is damaged, or holds Python objects "
            "other than tensors. These are refused, because objects can run code when they are "
            "loaded."
        ) from error
    except _NOT_TENSORS as error:
        found = str(error) or type(error).__name__
        raise ValueError(f"{str(path)!r} is not a readable torch file ({found}).") from error


def read_state(path):
    """Read a dictionary of tensors."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if _is_safetensors(path) else load_torch(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (*_NOT_TENSORS, SafetensorError) as error:
        raise ValueError(f"weights: {path} is not a file of tensors ({error}).") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"weights: {path} does not hold a dictionary of tensors.")
    return state
