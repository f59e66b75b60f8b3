"""Random crops, scales, flips and turns of training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genprior.data.files import to_float
from genprior.data.limits import refuse_outside


@dataclass(frozen=True)
class Augmentation:
    """A random view of each training image.

    Attributes:
        crop: Side of a random square crop; None leaves images whole.
        scales: Range of the factor by which a crop's surroundings are shrunk before it is cut
            (log-uniform, >= 1): 2 cuts a square of twice the side and halves it.
        flip: Mirror left and right half of the time.
        turn: Turn by a random multiple of 90 degrees.
    """

    crop: int | None = None
    scales: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    turn: bool = False

    def __post_init__(self) -> None:
        refuse_outside(vars(self), said="augment.{}".format)
        low, high = self.scales
        if low > high:
            raise ValueError(f"scales must be 1 <= low <= high, not {self.scales}")
        if high > 1 and self.crop is None:
            raise ValueError("scales need a crop size")

    def __call__(self, raw: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return one view of (C, H, W) uint8, uint16 or float32, in float32."""
        draw = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        image = to_float(raw) if self.crop is None else self._cut(raw, self.crop, draw)
        if self.flip and draw[3] < 0.5:
            image = image.flip(-1)
        return image.rot90(int(4 * draw[4]), (-2, -1)) if self.turn else image

    def _cut(self, raw: np.ndarray, crop: int, draw: list[float]) -> Tensor:
        height, width = raw.shape[-2:]
        low, high = self.scales
        side = round(crop * low * (high / low) ** draw[0])
        side = min(side, height, width)
        if side < crop:
            raise ValueError(f"an image of {height}x{width} pixels has no {crop}x{crop} crop")
        top, left = int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1))
        image = to_float(raw[..., top : top + side, left : left + side])
        if side == crop:
            return image
        small = torch.nn.functional.interpolate(
            image[None], (crop, crop), mode="bicubic", antialias=True
        )
        return small[0].clamp(0, 1)  # bicubic overshoots at edges
