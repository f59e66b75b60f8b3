"""Conjugate gradients on a batch of independent systems."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).reshape((-1,) + (1,) * (a.ndim - 1))


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    x0: Tensor | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve M_i x_i = b_i for every row i of a batch, M_i symmetric and positive semidefinite.

    A row that has converged stays as it is while the others go on, so row i gives what it gives
    alone. A singular M_i is served where b_i lies in its range: from x0 = 0 the solution of
    least norm comes.

    Args:
        apply: x -> M x, (B, ...) to (B, ...), rows independent.
        b: Right-hand sides, (B, ...).
        x0: Start, as b; zero if None.
        tolerance: A row is done when ||b - M x|| <= tolerance ||b||; no smaller than 10 eps of
            the dtype is asked for.
        max_iterations: Stop after so many products with M.
        precondition: r -> an approximation of M^-1 r, symmetric positive definite, rows
            independent.
    Returns:
        x (B, ...), converged (B,) bool, iterations (B,) int64.
    Source: Hestenes and Stiefel 1952.
    """
    x = torch.zeros_like(b) if x0 is None else x0
    r = b if x0 is None else b - apply(x0)
    precondition = precondition or (lambda r: r)
    p = precondition(r)
    rr, rp = _dot(r, r), _dot(r, p)
    goal = max(tolerance, 10 * torch.finfo(b.dtype).eps) ** 2 * _dot(b, b)
    active = rr > goal
    iterations = torch.zeros_like(active, dtype=torch.int64)
    for _ in range(max_iterations):
        if not active.any():
            break
        image = apply(p)
        curvature = _dot(p, image)
        # No curvature left: p lies in the null space, b outside the range, nothing to gain.
        active = active & (curvature > 0)
        step = torch.where(active, rp / curvature.where(active, torch.ones_like(rr)), 0)
        x = x + step * p
        r = r - step * image
        z, previous = precondition(r), rp
        rr, rp = _dot(r, r), _dot(r, z)
        p = torch.where(active, z + rp / previous.where(active, torch.ones_like(rp)) * p, p)
        iterations = iterations + active
        active = active & (rr > goal)
    return x, (rr <= goal).flatten(), iterations.flatten()
