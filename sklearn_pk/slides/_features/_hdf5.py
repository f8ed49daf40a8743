"""What an HDF5 file holds, as plain data. Run as a script, it is the process of `_hdf5_guard`."""

# SPDX-License-Identifier: BSD-3-Clause

import json
import math
import os
import resource
import signal
import socket
import struct
import sys

import h5py
import numpy as np

BLOCK_BYTES = 1 << 24
# What h5py raises on files that are damaged or somebody else's.
BAD_FILE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError)
FRAME = struct.Struct("<cQ")
TEXT, BYTES = b"t", b"b"
_MAX_LINKS = 16
_CPU_SECONDS = 2.0
_SPARE_BYTES = 1 << 30
_ATTRIBUTES = (
    *("key", "complete", "checksum", "slide", "encoder", "extractor"),
    *("unit", "tile_edge_um", "tile_size_um", "tile_size"),
)
_OWN_ATTRIBUTES = ("savetodir", "patch_size_level0")


def describe(file, wanted):
    """Describe an open file."""
    names = sorted(file)
    found = {name: find(file, name) for name in wanted}
    return {
        "attributes": _plain(file.attrs, _ATTRIBUTES),
        "names": names[:6],
        "n_names": len(names),
        "stored": {name: _describe(each, name) for name, each in found.items() if each is not None},
    }


def _plain(attributes, names):
    """Return attributes as numbers and text."""
    found = {name: attributes[name] for name in names if name in attributes}
    return {name: _value(value) for name, value in found.items()}


def _value(value):
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str | int | float) else str(value)[:1000]


def find(file, name):
    """Find a data set or group without leaving the file."""
    parts, place, n_links = name.split("/")[::-1], file, 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if not isinstance(place, h5py.Group):
            return None
        link = place.get(part, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            n_links += 1
            if n_links > _MAX_LINKS:
                raise ValueError(f"its {name!r} is a link that leads in a circle")
            parts += link.path.split("/")[::-1]
            place = file if link.path.startswith("/") else place
        elif isinstance(link, h5py.HardLink):
            place = place[part]
        else:
            raise ValueError(
                f"its {name!r} is a link to another file, and only what is in the file is read"
            )
    return place


def _describe(stored, name):
    """Describe one member of a file."""
    if not isinstance(stored, h5py.Dataset):
        return {"what": "a group" if isinstance(stored, h5py.Group) else "a type", "kind": ""}
    created = stored.id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        raise ValueError(
            f"the values of its {name!r} lie in another file, and only what is in the file is read"
        )
    described = {"what": str(stored.dtype), "kind": stored.dtype.kind, "shape": stored.shape}
    described["attributes"] = _plain(stored.attrs, _OWN_ATTRIBUTES)
    if stored.shape is None:
        return described | {"kind": ""}
    chunk = math.prod(stored.chunks or (0,)) * stored.dtype.itemsize
    return described | {
        "nbytes": max(stored.nbytes, chunk),
        "is_written": stored.dtype.kind in "iuf" and _is_written(stored),
    }


def _is_written(stored):
    """Whether no part of a data set is missing; HDF5 would read it as zeros."""
    if stored.chunks is None:
        return stored.id.get_storage_size() >= stored.nbytes
    chunks = zip(stored.shape, stored.chunks, strict=True)
    return stored.id.get_num_chunks() >= math.prod(math.ceil(n / size) for n, size in chunks)


def shape_of(shape):
    """Return the shape of an array without the first axis of three if that has length one."""
    return tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)


def read_blocks(stored):
    """Read a data set of two dimensions, or of three with a first one of length one."""
    rows = shape_of(stored.shape)[0]
    per_chunk = stored.chunks[-2] if stored.chunks else 1
    # Whole chunks, because each one is unpacked again for every block that has a part of it.
    step = max(1, BLOCK_BYTES // max(1, stored.nbytes // max(1, rows)))
    step = max(1, step // per_chunk) * per_chunk
    for start in range(0, rows, step):
        place = (slice(start, start + step),)
        yield stored[(0, *place) if stored.ndim == 3 else place]


class _Limits:
    """Bounds of time and memory within which this process works on one file."""

    def __init__(self, n_bytes=0):
        self._seconds = _CPU_SECONDS + n_bytes / 2e7

    def __enter__(self):
        """Start the clock."""
        signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def __exit__(self, *error):
        """Stop it."""
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(base, path):
    if sys.platform == "linux":
        limit = base + _SPARE_BYTES + 4 * os.path.getsize(path)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _answer(send, request):
    """Open the file of a request, say what it holds, and send the data set asked for."""
    with _Limits():
        file = h5py.File(request["path"], "r", locking=False)
    try:
        with _Limits():
            described = describe(file, request["wanted"])
        send(TEXT, json.dumps(described).encode())
        if request["read"]:
            stored = find(file, request["wanted"][0])
            blocks = read_blocks(stored)
            while True:
                with _Limits(stored.nbytes):
                    block = next(blocks, None)
                if block is None:
                    return
                send(BYTES, np.ascontiguousarray(block).data.cast("B"))
    finally:
        with _Limits():
            file.close()


def _serve():
    """Answer requests until the other end is closed."""
    # The terminal sends it to all processes; the other end decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=0)
    base = 0
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            base = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")

    def send(kind, content):
        channel.sendall(FRAME.pack(kind, len(content)))
        channel.sendall(content)

    send(TEXT, b"{}")
    with channel.makefile("rb") as requests:
        for line in requests:
            request = json.loads(line)
            last = {}
            try:
                _limit_memory(base, request["path"])
                _answer(send, request)
            except BAD_FILE as error:
                last = {"error": type(error).__name__, "text": str(error)[:1000]}
            send(TEXT, json.dumps(last | {"end": True}).encode())


if __name__ == "__main__":
    _serve()
