"""What figures start from: digits, an empty canvas, a panel of images; and their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from genprior.data import images
from genprior.plots import grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measured(NamedTuple):
    """A picture, and the numbers in it: one line of a CSV each."""

    picture: Figure
    rows: list[dict[str, Any]]


def digits(data: str | None, split: str, count: int) -> Tensor:
    """Read the first digits of a folder of MNIST, (count, 1, 28, 28)."""
    if data is None:
        raise ValueError("this figure needs digits: pass --data, a folder with MNIST's files")
    return images(data, split=split).batch(range(count))


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
