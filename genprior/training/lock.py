"""One run a folder: a lock that the system drops with the process that holds it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_held: set[int] = set()
"""Descriptors that are locked, which a forked reader of images would keep locked after a kill."""


def _close_in_fork() -> None:
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_in_fork)


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Make a folder and hold it: nobody else can until the block, or the process, ends.

    The folder itself is locked, so no file stays behind that could block a later run.

    Raises:
        BlockingIOError: Somebody holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    folder_file = os.open(folder, os.O_RDONLY)
    _held.add(folder_file)
    try:
        fcntl.flock(folder_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        _release(folder_file)
        raise BlockingIOError(
            f"{folder} is in use by another run: wait until it ends, or name another folder"
        ) from error
    except OSError as error:  # some network file systems
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): start no second run in it",
            stacklevel=3,
        )
    try:
        yield
    finally:
        _release(folder_file)


def _release(folder_file: int) -> None:
    if folder_file in _held:
        _held.remove(folder_file)
        os.close(folder_file)
