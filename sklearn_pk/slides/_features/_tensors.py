"""Tensors in torch files, loaded without running any code."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import pickle
import warnings

from ...utils._tensor_files import check_archive

_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def load_tensor(path):
    """Map the tensor of a torch file into memory."""
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
    is_archive = check_archive(path)
    if not is_archive and start != _MAGIC:
        if start[:1] == b"\x80":
            raise pickle.UnpicklingError("a plain pickle")
        raise ValueError(f"{path!r} is not a readable torch file.")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what else could be in such a file
        # Files of torch 1.5 and older cannot be mapped.
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{path!r}: expected a tensor, got {type(tensor).__name__}.")
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
        kind = f"{tensor.layout}, {tensor.dtype}"
        raise ValueError(f"{path!r}: expected a dense tensor of floating point, got {kind}.")
    if tensor.nbytes > os.path.getsize(path):
        raise ValueError(f"{path!r}: declares {tensor.nbytes} bytes, which it cannot hold.")
    tensor = tensor.detach()
    if tensor.ndim == 3 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 2 or not tensor.shape[1]:
        shape = tuple(tensor.shape)
        raise ValueError(f"{path!r}: expected features of shape (tiles, n_features), got {shape}.")
    return tensor
