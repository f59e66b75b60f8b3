"""Arithmetic of one step down. Fused operations hide here: they matter beside a small network."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators.base import per_row


def renewed(
    x0: Tensor, x: Tensor, kept: Tensor, fresh: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """Return x0 + kept (x - x0) + fresh noise: a step down that keeps a share of x's noise."""
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


def between(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """Return a + share (b - a)."""
    return a.lerp(b, share)
