"""The torch device that a parameter names."""

# SPDX-License-Identifier: BSD-3-Clause


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
