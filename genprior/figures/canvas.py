"""What figures start from: digits, an empty canvas, a panel of images; and their numbers."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from genprior.data import images
from genprior.plots import grid
from genprior.pretrained import load
from genprior.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure


P = TypeVar("P", bound=Prior)


class Measured(NamedTuple):
    """A picture, and the numbers in it: one line of a CSV each."""

    picture: Figure
    rows: list[dict[str, Any]]


def digits(data: str | None, split: str, count: int | None = None) -> Tensor:
    """Read the first digits of a folder of MNIST, or all, (count, 1, 28, 28)."""
    if data is None:
        raise ValueError("this figure needs digits: pass --data, a folder with MNIST's files")
    found = images(data, split=split)
    return found.batch(range(len(found) if count is None else min(count, len(found))))


def classes(data: str | None, split: str, count: int) -> Tensor | None:
    """Read the classes of MNIST's images from the file beside them; None where there is none."""
    marks = (split, "t10k", "t9800") if split == "test" else (split,)
    files = [
        f for f in sorted(Path(data or "").glob("*labels*")) if any(m in f.name for m in marks)
    ]
    if not files:
        return None
    content = files[0].read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return torch.frombuffer(bytearray(content[8 : 8 + count]), dtype=torch.uint8).long()


def load_family(prior: str, family: type[P]) -> P:
    """Load a prior of one family by its name or weights file.

    Raises:
        ValueError: It is of another family.
    """
    found = load(prior)
    if not isinstance(found, family):
        raise ValueError(
            f"this figure needs a {family.__name__}; {prior} is a {type(found).__name__}"
        )
    return found


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, without any global plotting state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tiles(axis: Any, x: Tensor, columns: int, title: str = "") -> None:
    """Draw images (B, C, H, W) side by side."""
    picture = grid(x, columns=columns).clamp(0, 1)
    axis.imshow(picture.permute(1, 2, 0), cmap="gray", interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
