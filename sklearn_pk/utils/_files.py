"""Writing of files that are complete or not there."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path):
    """Yield a temporary path in the folder of a file, which replaces the file at the end."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected the path of a file to write, got a folder: {str(path)!r}."
        )
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}"[-200:])
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, os.fspath(temporary), os.fspath(path)):
            raise
        raise type(error)(
            f"{str(path)!r} cannot be written ({error.strerror or error}). Check that its folder "
            "exists, that files may be written there, and that the disk is not full."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
