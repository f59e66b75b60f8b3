"""Noise levels: how a walk spaces them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def log_uniform(
    sigma_max: float | Tensor, sigma_min: float | Tensor, steps: int, *, like: Tensor | None = None
) -> Tensor:
    """Space `steps` noise levels evenly in log sigma, from sigma_max down to sigma_min.

    Returns:
        (steps,), or (steps, B) where an end is (B,).
    """
    return _between(sigma_max, sigma_min, steps, torch.log, torch.exp, like)


def rho_grid(
    sigma_max: float | Tensor,
    sigma_min: float | Tensor,
    steps: int,
    *,
    rho: float = 7.0,
    like: Tensor | None = None,
) -> Tensor:
    """Space `steps` noise levels evenly in sigma^(1/rho), as `log_uniform` does in log sigma.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    return _between(sigma_max, sigma_min, steps, lambda s: s ** (1 / rho), lambda s: s**rho, like)


def _between(
    sigma_max: float | Tensor,
    sigma_min: float | Tensor,
    steps: int,
    to: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    like: Tensor | None,
) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    kind = {} if like is None else {"dtype": like.dtype, "device": like.device}
    high, low = (torch.as_tensor(s, **kind) for s in (sigma_max, sigma_min))
    if not bool((high >= low).all() and (low > 0).all()):
        raise ValueError(f"need sigma_max >= sigma_min > 0, not {sigma_max} and {sigma_min}")
    high, low = torch.broadcast_tensors(high, low)
    weight = torch.linspace(0, 1, steps, **kind).reshape(-1, *[1] * high.ndim)
    return back(to(high) * (1 - weight) + to(low) * weight)
