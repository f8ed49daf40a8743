"""Device and precision of torch."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager


def pick_device(device):
    """Return the name of a torch device; "auto" is resolved, a device that is absent refused."""
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ValueError(
            f"device={device!r} is not available here ({error}). Use 'auto' or 'cpu'."
        ) from error
    return device


def pick_dtype(dtype, device):
    """Return the precision, for "auto" the one that suits the device."""
    import torch

    if dtype != "auto":
        return dtype
    if torch.device(device).type != "cuda":
        return "float32"
    # Where bfloat16 is emulated, it is slower than float16.
    fast = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float16"


@contextmanager
def full_precision():
    """Multiply float32 matrices in full precision, whatever the user has set."""
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
