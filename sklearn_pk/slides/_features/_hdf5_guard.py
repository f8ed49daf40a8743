"""Reads HDF5 files that anybody may have written in a process that may crash or hang."""

# SPDX-License-Identifier: BSD-3-Clause

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import spawn
from threading import Lock

import h5py
import numpy as np

from . import _hdf5


class _Ended(Exception):
    """The other process is gone."""


class _Reader:
    """A process that reads HDF5 files for this one."""

    def __init__(self):
        self.is_fresh, self.is_pending = True, False
        self._channel, other = socket.socketpair()
        for end in (self._channel, other):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, buffer, 1 << 20)
        # Where this process finds h5py, and one thread, for it computes nothing.
        found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        with other:
            self._process = subprocess.Popen(
                [spawn.get_executable(), "-P", _hdf5.__file__],
                stdin=other,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | found,
            )
        try:
            self._receive()
        except _Ended as error:
            raise RuntimeError(
                f"the process {spawn.get_executable()!r} that reads it did not start: exit status "
                f"{self.close()}"
            ) from error

    def _fill(self, view):
        while view:
            try:
                n_bytes = self._channel.recv_into(view)
            except ConnectionError as error:
                raise _Ended from error
            if not n_bytes:
                raise _Ended
            view = view[n_bytes:]

    def _receive(self):
        """Return the next text, or the size of the bytes that follow."""
        header = bytearray(_hdf5.FRAME.size)
        self._fill(memoryview(header))
        kind, size = _hdf5.FRAME.unpack(header)
        if kind == _hdf5.BYTES:
            return size
        text = bytearray(size)
        self._fill(memoryview(text))
        answer = json.loads(text)
        self.is_pending = "end" not in answer
        return answer

    def ask(self, path, wanted, read):
        """Return what a file holds and, if asked for, the first of the wanted data sets."""
        request = {"path": str(path), "wanted": list(wanted), "read": read}
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except ConnectionError as error:
            raise _Ended from error
        self.is_fresh = False
        self.is_pending = True
        described = _raise_error(self._receive())
        array = None
        if read:
            stored = described["stored"].get(wanted[0], {})
            shape = _hdf5.shape_of(stored["shape"])
            array = np.empty(shape, dtype=stored["what"])
            left = memoryview(array).cast("B") if array.size else memoryview(b"")
            while isinstance(size := self._receive(), int):
                self._fill(left[:size])
                left = left[size:]
            _raise_error(size)
            if left:
                raise ValueError(f"{len(left)} bytes of {wanted[0]} are missing")
        else:
            _raise_error(self._receive())
        return described, array

    def close(self):
        """End the process; return its exit status."""
        self._channel.close()
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def forget(self):
        """Leave the process to the one that this one was forked from."""
        self._channel.close()
        self._process.returncode = 0


def _raise_error(answer):
    """Raise the error that an answer tells of; otherwise return the answer."""
    if "error" in answer:
        kinds = {"FileNotFoundError": FileNotFoundError, "PermissionError": PermissionError}
        raise kinds.get(answer["error"], ValueError)(answer["text"])
    return answer


_lock = Lock()
_reader = None
# Data sets that were read whole by the other process. Once is enough: a training reads each file
# in every epoch, and through the channel that takes longer.
_proven = {}
_MAX_PROVEN = 100_000


def _close():
    global _reader
    if _reader is not None:
        _reader.close()
        _reader = None


def _forget():
    global _reader, _lock
    _lock = Lock()
    if _reader is not None:
        _reader.forget()
        _reader = None


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)


def _ask_guarded(path, wanted, read):
    global _reader
    while True:
        if _reader is None:
            _reader = _Reader()
        was_fresh = _reader.is_fresh
        try:
            return _reader.ask(path, wanted, read)
        except _Ended as error:
            # Damage done by an earlier file may show now, so only a new process is believed.
            if was_fresh:
                raise RuntimeError(_describe_end(_reader.close())) from error
        finally:
            # Also where this process was interrupted, for the answer would come later.
            if _reader.is_pending:
                _close()


def _describe_end(status):
    if status == -signal.SIGPROF:
        return "the HDF5 library does not come to an end on it"
    return f"the HDF5 library crashes on it, exit status {status}"


def ask(path, wanted, *, read=False, trusted=False):
    """Say what an HDF5 file holds, and read a data set of it."""
    status = os.stat(path)
    seen = (str(path), status.st_size, status.st_mtime_ns, wanted[0])
    if not (trusted or (read and seen in _proven)):
        with _lock:
            answer = _ask_guarded(path, wanted, read)
            if read:
                _proven[seen] = True
                while len(_proven) > _MAX_PROVEN:
                    _proven.pop(next(iter(_proven)))
        return answer
    with h5py.File(path, "r", locking=False) as file:
        described = _hdf5.describe(file, wanted)
        if not read:
            return described, None
        stored = _hdf5.find(file, wanted[0])
        return described, stored[0] if stored.ndim == 3 else stored[()]
