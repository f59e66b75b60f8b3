"""Masks for `Inpainting`: bool, True (white) = measured, (1, H, W), or (count, 1, H, W)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genprior.operators.files.picture import read_grey
from genprior.operators.random import Generators, uniform


def box(
    shape: tuple[int, int],
    *,
    size: int | tuple[int, int],
    position: tuple[int, int] | None = None,
    count: int | None = None,
    generator: Generators = None,
) -> Tensor:
    """A box is missing.

    Args:
        shape: (H, W).
        size: Side, or height and width, of the box.
        position: (top, left) of the box. By default it is in the middle, or anywhere inside if
            a generator is given.
        count: Number of masks, for one each.
        generator: Draws positions.
    """
    height, width = _shape(shape)
    h, w = (size, size) if isinstance(size, int) else size
    if not (0 < h <= height and 0 < w <= width) or (h, w) == (height, width):
        raise ValueError(f"a box of {(h, w)} does not leave part of an image of {(height, width)}")
    top, left = position if position is not None else ((height - h) // 2, (width - w) // 2)
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise ValueError(
            f"a box of {(h, w)} at {(top, left)} sticks out of an image of {(height, width)}"
        )
    corner = torch.tensor([[top, left]]).expand(count or 1, 2)
    if position is None and generator is not None:
        room = torch.tensor([height - h + 1, width - w + 1])
        corner = (uniform((count or 1, 2), generator, dtype=torch.float64) * room).long()
    y, x = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    above, before = corner[:, 0].view(-1, 1, 1), corner[:, 1].view(-1, 1, 1)
    missing = (y >= above) & (y < above + h) & (x >= before) & (x < before + w)
    return _counted(~missing, count)


def random(
    shape: tuple[int, int],
    *,
    missing: float = 0.92,
    count: int | None = None,
    generator: Generators = None,
) -> Tensor:
    """A share `missing` of the pixels, rounded to whole pixels, is missing at random places."""
    height, width = _shape(shape)
    kept = round((1 - missing) * height * width)
    if not 0 <= missing < 1 or kept < 1:
        raise ValueError(
            f"missing must be a share in [0, 1) that leaves a pixel of {(height, width)}, not "
            f"{missing!r}"
        )
    order = uniform((count or 1, height * width), generator, dtype=torch.float64).argsort(dim=1)
    mask = torch.zeros(order.shape, dtype=torch.bool)
    mask.scatter_(1, order[:, :kept], True)
    return _counted(mask.view(-1, height, width), count)


def half(
    shape: tuple[int, int], *, missing: Literal["left", "right", "top", "bottom"] = "right"
) -> Tensor:
    """One half of the image is missing; of an odd side, the smaller one."""
    height, width = _shape(shape)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    measured = {
        "left": x >= width // 2,
        "right": x < width - width // 2,
        "top": y >= height // 2,
        "bottom": y < height - height // 2,
    }
    if missing not in measured:
        raise ValueError(f"missing must be one of {', '.join(measured)}, not {missing!r}")
    return measured[missing].expand(1, height, width).clone()


def stripes(
    shape: tuple[int, int], *, measured: int = 1, missing: int = 1, vertical: bool = False
) -> Tensor:
    """Rows (columns if `vertical`) are measured and missing in turns, `measured` of them first."""
    height, width = _shape(shape)
    if measured < 1 or missing < 0:
        raise ValueError(
            f"measured must be >= 1 and missing >= 0 lines, not {measured!r} and {missing!r}"
        )
    lines = torch.arange(width if vertical else height) % (measured + missing) < measured
    mask = lines.view(1, 1, -1) if vertical else lines.view(1, -1, 1)
    return mask.expand(1, height, width).clone()


def strokes(
    shape: tuple[int, int],
    *,
    number: int = 4,
    width: float | None = None,
    count: int | None = None,
    generator: Generators = None,
) -> Tensor:
    """Random brush strokes are missing: `number` bent lines, `width` pixels wide.

    Args:
        shape: (H, W).
        number: Strokes in each mask.
        width: By default a tenth of the shorter side.
        count: Number of masks, for one each.
        generator: Draws the strokes.
    """
    height, columns = _shape(shape)
    width = min(height, columns) / 10 if width is None else width
    if not 1 <= number <= 10_000 or not width > 0:
        raise ValueError(
            f"number must be 1 to 10000 and width positive, not {number!r} and {width!r}"
        )
    drawn = uniform((count or 1, number, 7), generator, dtype=torch.float64)
    # Each stroke: a start, a heading, a length and three turns of its four equal pieces.
    size = torch.tensor([height, columns], dtype=torch.float64)
    start = drawn[..., None, :2] * size
    turns = torch.cat([2 * math.pi * drawn[..., 2:3], 2 * drawn[..., 3:6] - 1], dim=-1)
    heading = turns.cumsum(-1)
    piece = (0.4 + 0.6 * drawn[..., 6:7]) * min(height, columns) / 4
    moves = torch.stack([heading.sin() * piece, heading.cos() * piece], dim=-1)
    corners = torch.cat([start, start + moves.cumsum(-2)], dim=-2)
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(columns)) + 0.5
    pixels = pixels.double().view(height, columns, 2)
    far = torch.stack([_distance(pixels, c).amin(0) > width / 2 for c in corners.flatten(1, 2)])
    if not bool(far.flatten(1).any(1).all()):
        raise ValueError("the strokes cover a whole image: draw fewer or thinner ones")
    return _counted(far, count)


def from_file(
    path: str | Path,
    *,
    shape: tuple[int, int] | None = None,
    threshold: float | None = None,
    invert: bool = False,
) -> Tensor:
    """Read a painted mask: white = measured, black = missing.

    Args:
        path: An image file.
        shape: The (H, W) that it must have.
        threshold: In (0, 1): grey levels from here on count as white. Where None, there must be
            only black and white.
        invert: Take black as measured instead.
    Raises:
        ValueError: It cannot be read, holds grey levels, measures nothing or has another size.
    """
    return from_grey(
        torch.from_numpy(read_grey(path)),
        str(path),
        shape=shape,
        threshold=threshold,
        invert=invert,
    )


def from_grey(
    grey: Tensor,
    name: str,
    *,
    shape: tuple[int, int] | None = None,
    threshold: float | None = None,
    invert: bool = False,
) -> Tensor:
    """Make a mask of a painted picture (H, W) in [0, 1], which errors call `name`."""
    if shape is not None and tuple(grey.shape) != tuple(shape):
        raise ValueError(
            f"{name} is {grey.shape[0]} x {grey.shape[1]} pixels (height x width), but the mask "
            f"must be {shape[0]} x {shape[1]}"
        )
    between = (grey > 0) & (grey < 1)
    if threshold is None and bool(between.any()):
        raise ValueError(
            f"{name} holds {int(between.sum())} grey pixels, but a mask is black and white: "
            "paint it without antialiasing, save it as PNG, or give threshold=0.5 "
            "(--mask-threshold 0.5)"
        )
    white = grey >= (0.5 if threshold is None else threshold)
    mask = ~white if invert else white
    if not bool(mask.any()):
        colour, other = ("black", "white") if invert else ("white", "black")
        raise ValueError(
            f"{name} measures nothing: all of it is {other}, and {colour} is what was measured"
        )
    return mask[None]


def _shape(shape: tuple[int, int]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be (H, W), both positive, not {tuple(shape)}")
    return shape


def _counted(masks: Tensor, count: int | None) -> Tensor:
    """Masks (n, H, W) as (n, 1, H, W), or the only one as (1, H, W)."""
    return masks if count is None else masks[:, None]


def _distance(pixels: Tensor, corners: Tensor) -> Tensor:
    """Distance of pixels (H, W, 2) from each piece of a polygon (n + 1, 2), (n, H, W)."""
    start, along = corners[:-1, None, None], (corners[1:] - corners[:-1])[:, None, None]
    share = ((pixels - start) * along).sum(-1) / along.square().sum(-1)
    nearest = start + share.clamp(0, 1)[..., None] * along
    return (pixels - nearest).square().sum(-1).sqrt()
