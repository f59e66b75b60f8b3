"""Files: read within limits, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

FILE = 2**30
"""Most bytes of one image file that are read."""

ARRAY = 2**31
"""Most bytes that an array, or a compressed file of arrays, may unpack to in memory."""

PIXELS = 2**27
"""Most pixels of one image: 134 million, 1.6 GB as a colour image of float32."""

SIDE = 10**6
"""Most pixels along one side."""


def regular_file(path: str | Path, *, most: int | None = None) -> Path:
    """Return the path of a regular file, which may be opened without waiting or end.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, pipe or device, closed to reading, or larger than `most` bytes.
    """
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise ValueError(f"{path} is {what}, not a file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read: its permissions forbid it")
    if most is not None and found.st_size > most:
        raise ValueError(
            f"{path} has {found.st_size / 1e6:.0f} MB; at most {most / 1e6:.0f} are read at once"
        )
    return path


def read_bytes(path: str | Path) -> bytes:
    """Read a regular file of at most `FILE` bytes.

    Raises:
        FileNotFoundError, ValueError: As in `regular_file`; or the reading itself failed.
    """
    path = regular_file(path, most=FILE)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def sha256(path: str | None) -> str | None:
    """Hash a file; None where there is none, as for masks that are drawn."""
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def extra(what: str, library: str) -> Any:
    """Import a library of the extra [formats].

    Raises:
        ValueError: It is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise ValueError(f"{what} needs {library}: pip install genprior[formats]") from error


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write `content` beside `path` and move it there in one step, safe from a crash.

    Raises:
        OSError: It cannot be written, or `path` is a folder, pipe or device; what was there is
            intact.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file and is not replaced")
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp makes it private
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
