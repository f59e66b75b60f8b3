"""What a notebook shows of an object: a name, small pictures and a table, in HTML."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping

import torch
from PIL import Image
from torch import Tensor

MISSING = (0.80, 0.84, 0.93)
"""Colour of pixels that were not measured: no grey level, and rare in photographs."""

SIDE = 96
"""Pixels of a picture's longer side in a notebook."""

LARGEST = 256
"""Pixels of its longer side in the file: larger images are shrunk, lest notebooks grow."""

Line = Iterable[tuple[str, Tensor]]
"""Pictures that stand beside each other, each with what is written under it."""


def html_card(name: str, table: Mapping[str, object], lines: Iterable[Line] = ()) -> str:
    """Write an object as HTML, its texts escaped.

    Args:
        name: Of its class.
        table: What is said of it, by what that is.
        lines: Rows of pictures, images (C, H, W) with pixels in [0, 1].
    """
    shown = "".join(
        f'<div style="display: flex; gap: 8px">{"".join(_figure(*part) for part in line)}</div>'
        for line in lines
    )
    cell = "text-align: left; padding: 1px 12px 1px 0"
    rows = "".join(
        f'<tr><th style="{cell}">{html.escape(key)}</th>'
        f'<td style="{cell}">{html.escape(str(value))}</td></tr>'
        for key, value in table.items()
    )
    return f"<div><strong>{html.escape(name)}</strong>{shown}<table>{rows}</table></div>"


def coloured(y: Tensor, observed: Tensor | None) -> Tensor:
    """Return images (B, C, H, W), in colour with `MISSING` where a pixel was not measured."""
    if observed is None:
        return y
    seen = observed.expand_as(y).all(1, keepdim=True)
    colour = torch.tensor(MISSING, dtype=y.dtype, device=y.device).view(3, 1, 1)
    return torch.where(seen, y.expand(-1, 3, -1, -1), colour)


def sizes(shape: Iterable[int | None]) -> str:
    """Say a shape: '3 x 64 x any'."""
    return " x ".join("any" if n is None else f"{n:,}" for n in shape)


def _figure(caption: str, image: Tensor) -> str:
    text = html.escape(caption)
    return (
        '<figure style="margin: 4px 0; text-align: center; font-size: 80%">'
        f'<img src="data:image/png;base64,{_png(image)}" alt="{text}" style="{_size(image)}; '
        f'image-rendering: {"pixelated" if max(image.shape[-2:]) < SIDE else "auto"}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _size(image: Tensor) -> str:
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    return f"width: {max(1, round(scale * width))}px; height: {max(1, round(scale * height))}px"


def _png(image: Tensor) -> str:
    """Encode an image (C, H, W); of other channels than one or three the mean is drawn."""
    x = image.detach().float().cpu().nan_to_num(0).clamp(0, 1)
    x = x if len(x) in (1, 3) else x.mean(0, keepdim=True)
    levels = (255 * x).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    picture = Image.fromarray(levels)
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
