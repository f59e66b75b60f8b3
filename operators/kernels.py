"""Blur kernels (h, w), float64, that sum to one."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from genprior.operators.files.picture import read_grey
from genprior.operators.random import normal
from genprior.operators.random import uniform as uniform_numbers

LARGEST = 256
"""Pixels: the longest size that a kernel may be asked for."""


def gaussian(std: float) -> Tensor:
    """A Gaussian of standard deviation `std` in pixels, cut at four of them."""
    _positive("std", std)
    t = torch.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1, dtype=torch.float64)
    profile = torch.exp(-0.5 * (t / std) ** 2)
    return _normalised(profile[:, None] * profile)


def uniform(size: int) -> Tensor:
    """The mean over size x size pixels."""
    _positive("size", size)
    return _normalised(torch.ones(size, size, dtype=torch.float64))


def disk(radius: float) -> Tensor:
    """A disk of `radius` pixels (a lens out of focus), its edge antialiased."""
    _positive("radius", radius)
    reach, fine = math.ceil(radius - 0.5), 16
    n = 2 * reach + 1
    t = (torch.arange(n * fine, dtype=torch.float64) + 0.5) / fine - n / 2
    inside = (t[:, None].square() + t.square() <= radius**2).double()
    return _normalised(inside.view(n, fine, n, fine).mean(dim=(1, 3)))


def motion(
    length: float, angle: float | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """The trace of a moving camera.

    Args:
        length: Of the path, pixels, > 0.
        angle: Degrees from the x axis, counter-clockwise, for a straight path. Where None, a
            smooth random one is drawn.
        generator: Draws the path; needed, and allowed, only without an angle.
    """
    _positive("length", length)
    steps = 8 * math.ceil(length) + 1
    if angle is not None:
        if generator is not None:
            raise ValueError("a straight path (angle given) draws nothing: leave generator out")
        headings = torch.full((steps - 1,), math.radians(angle), dtype=torch.float64)
    else:
        if generator is None:
            raise ValueError("a random path needs a generator; for a straight one give an angle")
        start = 2 * math.pi * uniform_numbers((1,), generator, dtype=torch.float64)
        turns = normal((steps - 1,), generator, dtype=torch.float64)
        headings = start + turns.cumsum(0) * math.sqrt(4 / steps)
    moves = torch.stack([-headings.sin(), headings.cos()], dim=1) * length / (steps - 1)
    path = torch.cat([torch.zeros(1, 2, dtype=torch.float64), moves.cumsum(0)])
    return _drawn(path - (path.amin(0) + path.amax(0)) / 2)


def from_file(path: str | Path) -> Tensor:
    """Read a kernel from a grey image or an npy file; one that does not sum to one is scaled.

    It is read upright: the picture of one bright pixel, as `Blur` convolves with it.

    Raises:
        ValueError: It is not two-dimensional, or its sum is not positive.
    """
    kernel = torch.from_numpy(read_grey(path, any_range=True))
    if kernel.ndim != 2 or not kernel.isfinite().all() or kernel.sum() <= 0:
        raise ValueError(
            f"{path}: a kernel must be two-dimensional and finite with a positive sum, but "
            f"{tuple(kernel.shape)} with sum {float(kernel.sum()):g} came"
        )
    if abs(float(kernel.sum()) - 1) > 1e-6:
        warnings.warn(
            f"{path}: the kernel sums to {float(kernel.sum()):g}; it was scaled to 1",
            stacklevel=2,
        )
    return _normalised(kernel)


def _drawn(path: Tensor) -> Tensor:
    """Spread points (n, 2), relative to the centre, over the pixels around them, bilinearly."""
    reach = int(path.abs().max().ceil()) + 1
    n = 2 * reach + 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = (1 - (path[..., None] - places).abs()).clamp(min=0).unbind(dim=1)
    kernel = y.T @ x
    used = kernel.nonzero()
    margin = int(torch.minimum(used.amin(0), n - 1 - used.amax(0)).min())
    return _normalised(kernel[margin : n - margin, margin : n - margin].contiguous())


def _normalised(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum()


def _positive(name: str, value: float) -> None:
    """Refuse what no blur has; a kernel far larger than any image would take all memory."""
    if not value > 0 or not math.isfinite(value):
        raise ValueError(f"{name} must be finite and > 0, not {value!r}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST} pixels, not {value!r}")
