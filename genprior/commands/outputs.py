"""What is refused before any work, and how a run is told so that it can be repeated."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any


def refuse_existing(paths: list[Path], force: bool) -> None:
    """Raise an OSError before any work if a result cannot be written, or would replace another.

    Args:
        paths: Files that will be written; their folders may still have to be made.
        force: Replace files that are there. What is no regular file is never replaced.
    """
    for folder in {path.parent for path in paths}:
        refuse_unwritable(folder)
    for path in paths:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise FileExistsError(f"{path} is {kind} and is not replaced: --out writes elsewhere")
    found = [path for path in paths if path.exists()]
    if found and not force:
        raise FileExistsError(
            f"{found[0]} exists (and {len(found) - 1} more): --force replaces them, --out writes "
            "elsewhere"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raise an OSError before any work if nothing can be written into a folder, made or not."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"--out {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {folder}: {there} cannot be written to")


def command_line(command: Callable[..., object], options: dict[str, Any], *groups: Any) -> str:
    """Write the line that repeats a run: what differs from the defaults.

    Args:
        command: Its function.
        options: Its own; `photo` needs no name.
        groups: Dataclasses of more.
    """
    words = ["genprior", command.__name__, str(options["photo"])]
    defaults = {p.name: p.default for p in inspect.signature(command).parameters.values()}
    given = {k: v for k, v in options.items() if k != "photo" and v != defaults[k]}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                given[field.name] = value
    for key, value in given.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{key.replace('_', '-')}", text.replace("(", "[").replace(")", "]")]
    return shlex.join(words)
