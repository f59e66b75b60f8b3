"""Figures that show what flows of images are made of, and what they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genprior.figures.canvas import canvas, digits, load_family, tiles
from genprior.priors import RealNVP
from genprior.priors.flows.coupling import AffineCoupling
from genprior.priors.flows.flow import LEVELS, Flow
from genprior.priors.flows.multiscale import MultiScale, Squeeze
from genprior.priors.interpolation import interpolate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAYS, MOVES, DONE = 0.0, 1.0, 0.5
"""What a pixel does in a coupling: is read, is moved, or has left at an earlier scale."""

TEMPERATURES = (0.0, 0.25, 0.6, 0.7, 0.8, 0.9, 1.0)


def coupling_masks(flow: Flow, x: Tensor) -> list[list[tuple[str, Tensor]]]:
    """Return the partition of every coupling of a flow of scales, and what it does, by scale.

    Args:
        flow: A RealNVP or a Glow.
        x: An image of its shape, (1, C, H, W); what it shows does not count.
    Returns:
        Its name, and what it does to each pixel: STAYS, MOVES or DONE, (C, H, W).
    """
    scales = next(m for m in flow.modules() if isinstance(m, MultiScale)).scales
    before: list[Squeeze | int] = []
    found = []
    for scale in scales:
        masks = []
        for layer in scale.modules():
            if isinstance(layer, Squeeze):
                x = layer(x)[0]
                before.append(layer)
            elif isinstance(layer, AffineCoupling):
                partition = layer.partition
                stays, moves = partition.split(x)
                mask = partition.join(torch.full_like(stays, STAYS), torch.full_like(moves, MOVES))
                name = type(partition).__name__.lower()
                name += ", swapped" * bool(getattr(partition, "swapped", False))
                masks.append((name, _in_pixels(mask, before)[0]))
        found.append(masks)
        half = x.shape[1] // 2
        before.append(half)
        x = x[:, :half]
    return found


def _in_pixels(mask: Tensor, before: list[Squeeze | int]) -> Tensor:
    """Undo the squeezes, and put what has left back in its place."""
    for step in reversed(before):
        if isinstance(step, Squeeze):
            mask = step.inverse(mask)
        else:
            left = torch.full_like(mask[:, :1], DONE).expand(-1, step, -1, -1)
            mask = torch.cat([mask, left], 1)
    return mask


def masks(data: str | None, seed: int) -> Figure:
    """Draw which pixels of an 8x8 image each coupling of a RealNVP moves, and which it reads."""
    flow = RealNVP((1, 8, 8), levels=2, couplings=2, network={"width": 4}, seed=seed)
    by_scale = coupling_masks(flow, torch.zeros(1, 1, 8, 8))
    figure = canvas(9.5, 4.6)
    axes = figure.subplots(len(by_scale), max(map(len, by_scale)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, (line, found) in enumerate(zip(axes, by_scale, strict=True)):
        for axis, (name, mask) in zip(line, found, strict=False):
            axis.imshow(mask[0], cmap="gray", vmin=0, vmax=1)
            axis.axis("on")
            axis.set(xticks=[x + 0.5 for x in range(7)], yticks=[y + 0.5 for y in range(7)])
            axis.grid(color="C0", lw=0.4)
            axis.tick_params(length=0, labelbottom=False, labelleft=False)
            axis.set_title(f"scale {row + 1}: {name}", fontsize=8)
    figure.supxlabel("white: moved; black: read; grey: left at scale 1", fontsize=9)
    return figure


def tempered(flow: Flow, count: int, seed: int) -> Tensor:
    """Decode one set of draws of z times each temperature, (7, count, C, H, W)."""
    z = torch.randn(count, *flow.latent_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return torch.stack([flow.decode(temperature * z) for temperature in TEMPERATURES])


def temperatures(data: str | None, seed: int, prior: str) -> Figure:
    """Draw the images of twelve draws of z at each temperature; at 0 all are that of z = 0."""
    figure = canvas(9, 6)
    axes = figure.subplots(len(TEMPERATURES), 1)
    images = tempered(load_family(prior, Flow), 12, seed)
    for axis, temperature, row in zip(axes, TEMPERATURES, images, strict=True):
        tiles(axis, row, len(row))
        axis.set_ylabel(f"{temperature:g}", rotation=0, ha="right", va="center")
    figure.suptitle("decode(t z) for twelve draws of z, at temperatures t", fontsize=10)
    return figure


def dequantised(x: Tensor, seed: int) -> Tensor:
    """Return 8-bit images as flows are trained on them, (255 x + u) / 256, u uniform in [0, 1).

    Of the levels themselves the latent is far out: black, 0, is the edge of the logit.
    """
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return ((255 * x).round() + u) / LEVELS


def between(flow: Flow, x: Tensor, seed: int) -> Tensor:
    """Decode great circles in z from the first half of the images x to the second.

    Returns:
        (B / 2, 11, C, H, W): the first and the last are the images, dequantised.
    """
    noisy = dequantised(x, seed)
    with torch.no_grad():
        length = flow.encode(noisy).norm(dim=1) / x[0].numel() ** 0.5
        print(f"|z| / sqrt(d) of the ends: {float(length.min()):.2f} to {float(length.max()):.2f}")
        return interpolate(flow, *noisy.chunk(2), steps=11)


def paths(data: str | None, seed: int, prior: str) -> Figure:
    """Draw images on great circles in z between pairs of test digits."""
    x = digits(data, "test", 12)
    found = between(load_family(prior, Flow), x, seed)
    figure = canvas(9, 5.2)
    title = "great circles in z between two test images (first and last column)"
    tiles(figure.subplots(), found.flatten(0, 1), 11, title)
    return figure
