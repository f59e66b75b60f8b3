"""What is refused before any work: results that would be overwritten, places closed to writing."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_existing(paths: list[Path], force: bool) -> None:
    """Raise a FileExistsError before any work if a result would be overwritten."""
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
