"""What every test, doctest and documentation page runs under."""

# SPDX-License-Identifier: BSD-3-Clause

import os

# Set before the libraries are imported: no window is opened, and no model hub is asked.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import socket  # noqa: E402

import pytest  # noqa: E402

_connect = socket.socket.connect


def _connect_to_this_machine(self, address):
    host = address[0] if isinstance(address, tuple) else ""
    if host not in ("", "localhost", "::1") and not host.startswith("127."):
        raise OSError(f"a test tried to reach {host!r}; nothing here may need the network")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _connect_to_this_machine)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
