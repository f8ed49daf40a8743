"""A seal on files of the store: damage is noticed before HDF5 looks at a file."""

# SPDX-License-Identifier: BSD-3-Clause

import hashlib
import os
import re

# The smallest user block that HDF5 allows; its library passes over it.
USER_BLOCK = 512
_MAGIC = b"sklearn_pk seal 1 "
_SEAL = re.compile(re.escape(_MAGIC) + rb"(\d{1,18}) (\d{1,18}) ([0-9a-f]{32})\n\0*")


def _digest(head, tail, start, stop):
    """Digest what is before and after the features, and where they are."""
    digest = hashlib.blake2b(f"{start} {stop} ".encode(), digest_size=16)
    digest.update(head)
    digest.update(tail)
    return digest.hexdigest()


def make_seal(image, start, stop):
    """Make the user block of an HDF5 file, which says what all else in it should be."""
    head, tail = image[: start - USER_BLOCK], image[stop - USER_BLOCK :]
    seal = _MAGIC + f"{start} {stop} {_digest(head, tail, start, stop)}\n".encode()
    return seal.ljust(USER_BLOCK, b"\0")


def check_seal(path):
    """Compare a file with its seal."""
    with open(path, "rb") as file:
        block = file.read(USER_BLOCK)
        if not block.startswith(_MAGIC):
            return False
        found = _SEAL.fullmatch(block)
        if found:
            start, stop = int(found[1]), int(found[2])
            if USER_BLOCK <= start <= stop <= os.fstat(file.fileno()).st_size:
                head = file.read(start - USER_BLOCK)
                file.seek(stop)
                if _digest(head, file.read(), start, stop).encode() == found[3]:
                    return True
    raise ValueError(
        f"{str(path)!r} is damaged: it is not what was written to the store. There, it is computed "
        "again by the next run; a copy has to be made again."
    )
