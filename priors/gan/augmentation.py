"""Random views of real and generated images alike, through which gradients pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genprior.operators.random import Generators, uniform

SHIFT = 1 / 8
"""Largest translation, of the side."""
HOLE = 1 / 2
"""Side of the square that is cut out, of the image's."""


def augmented(x: Tensor, probability: float, generator: Generators) -> Tensor:
    """Return images (B, C, H, W) moved, with a hole, and in other colours; each by its own draw.

    A critic that sees few real images learns them by heart; it cannot learn all their views. As
    it sees views of generated images too, the generator does not learn to make them.

    Args:
        x: Images, (B, C, H, W), pixels in [0, 1]; the views' may lie outside.
        probability: Of a translation, and of a hole; of a colour half of that.
        generator: Of the draws.
    Source: Zhao et al. 2020, arXiv:2006.10738. Differs: each of the three with a probability.
    """
    u = uniform((len(x), 10), generator, dtype=x.dtype, device=x.device)
    move, down, right, cut, row, column, colour, *strengths = u.unbind(1)
    x = _where(colour < probability / 2, _coloured(x, *strengths), x)
    x = _where(move < probability, _moved(x, down, right), x)
    return _where(cut < probability, x * _kept(x, row, column), x)


def _coloured(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Shift by up to .25, and scale what colours differ from grey, and greys from their mean."""
    brightness, saturation, contrast = (
        u.view(-1, 1, 1, 1) for u in (brightness, saturation, contrast)
    )
    x = x + 0.5 * (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (x - mean)


def _moved(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move by whole pixels; black comes in."""
    for axis, u in ((-2, down), (-1, right)):
        side = x.shape[axis]
        most = round(SHIFT * side)
        padded = F.pad(x, (0, 0, most, most) if axis == -2 else (most, most))
        first = (u * (2 * most + 1)).long().clamp(max=2 * most)
        places = first[:, None] + torch.arange(side, device=x.device)
        view = (len(x), 1, side, 1) if axis == -2 else (len(x), 1, 1, side)
        x = padded.gather(axis, places.view(view).expand(x.shape))
    return x


def _kept(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return what a hole with its centre anywhere leaves, (B, 1, H, W) of 0 and 1."""
    inside = []
    for axis, u in ((-2, row), (-1, column)):
        side = x.shape[axis]
        hole = round(HOLE * side)
        first = (u * (side + 1)).long()[:, None] - hole // 2
        places = torch.arange(side, device=x.device)
        inside.append((places >= first) & (places < first + hole))
    return (~(inside[0][:, :, None] & inside[1][:, None, :])).to(x.dtype)[:, None]


def _where(chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), a, b)
