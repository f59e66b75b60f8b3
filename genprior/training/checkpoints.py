"""Checkpoints that survive a kill at any moment: written whole or not at all, two kept.

A file is what `torch.save` writes, and behind it the sha256 of that, so that a bit that flips on
the disk is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from genprior.operators.files import write_atomically

FORMAT = 3
KEPT = 2


def write(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain data) as the checkpoint of `step`; drop old ones.

    Raises:
        OSError: The disk is full; the checkpoints before are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    content = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, **state}, content)
    content.write(hashlib.sha256(content.getbuffer()).digest())
    try:
        write_atomically(path, content.getbuffer())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        kept = _found(folder)
        raise OSError(
            error.errno,
            f"the disk is full: the checkpoint of step {step} ({content.tell() / 2**20:.0f} MiB) "
            f"was not written; {kept[-1].name if kept else 'none'} is the last. Free some space "
            "and run the same command again to resume",
        ) from error
    for old in _found(folder)[:-KEPT]:
        old.unlink()
    return path


def newest(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; None where there is none.

    A damaged one is passed over, with a warning that says so.

    Raises:
        ValueError: There are checkpoints, all damaged.
    """
    found = _found(folder)
    for path in reversed(found):
        try:
            state = _read(path)
            if state["format"] != FORMAT:
                raise ValueError(
                    f"{path} is of another version of genprior (format {state['format']}, not "
                    f"{FORMAT}): finish the run with that one, or name another folder"
                )
        except OSError as error:
            warnings.warn(f"{path} is damaged ({error}); trying the one before", stacklevel=2)
        else:
            return state
    if found:
        raise ValueError(f"every checkpoint in {folder} is damaged: remove it to start anew")
    return None


def sweep(out: Path) -> None:
    """Remove the halves of files that a run left in its folder when it was killed."""
    halves = [*(out / "checkpoints").glob(".step-*.pt.*"), *out.glob(".prior.safetensors.*")]
    for half in halves:
        half.unlink()


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Say in words where two nested dictionaries of plain data differ."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} before, {b} now")
    return lines


def _read(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        OSError: It cannot be read, or is not what was written.
    """
    content = path.read_bytes()
    digest_size = hashlib.sha256().digest_size
    whole, digest = memoryview(content)[:-digest_size], content[-digest_size:]
    if hashlib.sha256(whole).digest() != digest:
        raise OSError("not what was written, or of a version that wrote no sha256")
    return torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))
