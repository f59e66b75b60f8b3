"""Evaluate a local network on large images piece by piece, with the result of one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIXELS = 4_000_000
"""Pixels of an image that are evaluated in one piece, about 2.3 GB in the shipped networks."""

PIXELS_WITH_GRADIENT = 600_000
"""The same where a gradient is kept, which needs every layer's output."""

TILE = 640


def needs_tiles(x: Tensor) -> bool:
    """Say whether images (B, C, H, W) are too large for one piece."""
    pixels = x.shape[-2] * x.shape[-1]
    keeps_gradient = torch.is_grad_enabled() and x.requires_grad
    return pixels > (PIXELS_WITH_GRADIENT if keeps_gradient else PIXELS)


def in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, *, reach: int, multiple: int, tile: int = TILE
) -> Tensor:
    """Apply a local map to images in overlapping tiles.

    Each tile is evaluated with the surroundings that its pixels depend on and cut on the grid that
    the map works on, so that nothing differs from one piece but rounding. With gradients, a tile
    is evaluated again on the way back instead of being kept.

    Args:
        function: Keeps height and width; output pixels depend on input within `reach`.
        x: Images, (B, C, H, W).
        reach: Pixels.
        multiple: Side of the map's coarsest cells, pixels.
        tile: Side of the part that each evaluation adds, pixels.
    """
    margin = -(-reach // multiple) * multiple + multiple
    tile = max(tile // multiple, 1) * multiple
    height, width = x.shape[-2:]
    lines = []
    for rows in _parts(height, tile):
        line = []
        for columns in _parts(width, tile):
            top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
            given = x[..., top : rows.stop + margin, left : columns.stop + margin]
            if torch.is_grad_enabled() and x.requires_grad:
                given = checkpoint(function, given, use_reentrant=False)
            else:
                given = function(given)
            inner = slice(rows.start - top, rows.stop - top)
            line.append(given[..., inner, columns.start - left : columns.stop - left])
        lines.append(torch.cat(line, dim=-1))
    return torch.cat(lines, dim=-2)


def _parts(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
