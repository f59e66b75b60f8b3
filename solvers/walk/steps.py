"""Arithmetic of one step down, and of rows that must not touch each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genprior.operators.base import per_row


def renewed(
    x0: Tensor, x: Tensor, kept: Tensor, fresh: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """Return x0 + kept (x - x0) + fresh noise: a step down that keeps a share of x's noise.

    Fused, which is measured to matter beside a small network.
    """
    ahead = x0.lerp(x, kept)
    return ahead if fresh is None or noise is None else torch.addcmul(ahead, fresh, noise)


def plus(x: Tensor, weight: float | Tensor, v: Tensor) -> Tensor:
    """Return x + weight v, one weight for each row (R,) or shaped for x; fused as `renewed`."""
    return torch.addcmul(x, per_row(weight, x), v)


def renewal(sigma: Tensor, lower: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (kept, fresh) of the step `renewed` from sigma to `lower`.

    A share eta of the noise is fresh: 1 is ancestral sampling, 0 the probability flow.

    Source: Song, Meng, Ermon 2021, arXiv:2010.02502, equations 12 and 16, in x / sqrt(alpha).
    """
    fresh = eta * lower / sigma * (sigma**2 - lower**2).clamp(min=0).sqrt()
    return (lower**2 - fresh**2).clamp(min=0).sqrt() / sigma, fresh


def per_level(like: Tensor, *coefficients: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield each level's coefficients, given as (N, R), in a shape that multiplies `like`."""
    shape = [1] * (like.ndim - 1)
    return zip(*(c.reshape(*c.shape, *shape).unbind() for c in coefficients), strict=True)


def finite_rows(x: Tensor) -> Tensor:
    """Return which rows of x (R, ...) hold finite values only, (R,) bool."""
    return (0 * x).flatten(1).sum(1) == 0  # five times as fast as isfinite().all()


def surely_finite(*tensors: Tensor) -> bool:
    """Whether all values are finite, by one sum each; False where asking would make it wait."""
    return all(t.device.type == "cpu" and math.isfinite(t.sum().item()) for t in tensors)


def where_rows(chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take the rows of `a` (R, ...) where `chosen` (R,) is True, else those of `b`."""
    return torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def row_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each row of x (R, ...), (R,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
