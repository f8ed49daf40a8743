"""The torch device and the precision that parameters name."""

# SPDX-License-Identifier: BSD-3-Clause

from contextlib import contextmanager


def pick_device(device):
    """
    Turn "auto" into a torch device and refuse one that is not there.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda", "cuda:1", "mps" and so on.

    Returns
    -------
    str
        Name of a device of this machine.

    Raises
    ------
    ValueError
        If there is no such device.

    Examples
    --------
    >>> from sklearn_pk.utils import pick_device
    >>> pick_device("cpu")
    'cpu'
    """
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
    """Turn "auto" into the precision that suits a device."""
    import torch

    if dtype != "auto":
        return dtype
    if torch.device(device).type != "cuda":
        return "float32"
    # Emulated, it would be slower than float16.
    fast = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float16"


@contextmanager
def full_precision():
    """Multiply float32 in full precision, whatever the user has set."""
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
