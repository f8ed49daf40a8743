"""Random numbers of torch that fits in other threads do not disturb."""

# SPDX-License-Identifier: BSD-3-Clause

import threading
from contextlib import contextmanager

import torch

# Torch has one generator for a process, so who borrows it keeps others waiting.
_LOCK = threading.RLock()


@contextmanager
def seeded(seed):
    """Draw on the CPU from a seed, and leave the generator as it was."""
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class RandomStream:
    """Draw from a seed, each time going on where the last time ended."""

    def __init__(self, seed, device):
        self._devices = [device] if torch.device(device).type == "cuda" else []
        with _LOCK, torch.random.fork_rng(devices=self._devices):
            torch.manual_seed(seed)
            self._state = self._get()

    def __enter__(self):
        """Borrow the generators."""
        _LOCK.acquire()
        self._outside = self._get()
        self._set(self._state)

    def __exit__(self, *error):
        """Give them back as they were."""
        self._state = self._get()
        self._set(self._outside)
        _LOCK.release()

    def _get(self):
        return torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in self._devices]

    def _set(self, state):
        torch.set_rng_state(state[0])
        for device, each in zip(self._devices, state[1], strict=True):
            torch.cuda.set_rng_state(each, device)
