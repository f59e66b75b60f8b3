"""Planar and radial layers: bumps in one direction, or about one point."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.operators.random import normal
from genprior.priors.flows.bijection import Bijection

ROOT_STEPS = 60
"""Halvings of a bracket: beyond a double's precision."""


class Planar(Bijection):
    """Stretch space along u where it crosses a plane.

        z = x + u tanh(w x + b),   log_det = log(1 + (w u) (1 - tanh^2))

    Invertible while w u > -1: the part of u along w is u' with w u' = softplus(w u) - 1. The
    inverse is a root in one variable, a + (w u') tanh(a) = w z + b.

    Source: Rezende, Mohamed 2015, arXiv:1505.05770, equations 10 to 12 and appendix A.1.
    """

    w: nn.Parameter
    u: nn.Parameter
    b: nn.Parameter

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.w = nn.Parameter(normal((size,), generator) / size**0.5)
        self.u = nn.Parameter(0.1 * normal((size,), generator))
        self.b = nn.Parameter(normal((1,), generator)[0])

    def _constrained(self) -> tuple[Tensor, Tensor]:
        """Return u' and w u'."""
        along = self.w @ self.u
        kept = F.softplus(along) - 1
        return self.u + (kept - along) * self.w / (self.w @ self.w), kept

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, along = self._constrained()
        flat = x.flatten(1)
        h = torch.tanh((flat * self.w).sum(1) + self.b)
        log_det = torch.log1p(along * (1 - h**2))
        return (flat + h[:, None] * u).view_as(x), log_det

    def inverse(self, z: Tensor) -> Tensor:
        u, along = self._constrained()
        flat = z.flatten(1)
        c = (flat * self.w).sum(1) + self.b
        with torch.no_grad():
            low, high = c - along.abs(), c + along.abs()
            for _ in range(ROOT_STEPS):
                a = (low + high) / 2
                above = a + along * torch.tanh(a) > c
                low, high = torch.where(above, low, a), torch.where(above, a, high)
            a = (low + high) / 2
        # One Newton step polishes the root, and brings its derivatives.
        h = torch.tanh(a)
        a = a - (a + along * h - c) / (1 + along * (1 - h**2))
        return (flat - torch.tanh(a)[:, None] * u).view_as(z)


class Radial(Bijection):
    """Stretch or shrink space about a point x0.

        z = x + beta (x - x0) / (alpha + r),   r = |x - x0|
        log_det = (d - 1) log(1 + beta / (alpha + r)) + log(1 + alpha beta / (alpha + r)^2)

    with alpha > 0 and beta > -alpha. The inverse's r is the positive root of a parabola.

    Source: Rezende, Mohamed 2015, arXiv:1505.05770, equation 14 and appendix A.2.
    """

    x0: nn.Parameter
    raw_alpha: nn.Parameter
    raw_beta: nn.Parameter

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.x0 = nn.Parameter(normal((size,), generator))
        self.raw_alpha = nn.Parameter(torch.tensor(0.5))
        self.raw_beta = nn.Parameter(0.5 + 0.1 * normal((1,), generator)[0])

    def _constrained(self) -> tuple[Tensor, Tensor]:
        alpha = F.softplus(self.raw_alpha)
        return alpha, F.softplus(self.raw_beta) - alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = self._constrained()
        away = x.flatten(1) - self.x0
        h = 1 / (alpha + _length(away))
        log_det = (away.shape[1] - 1) * torch.log1p(beta * h) + torch.log1p(alpha * beta * h**2)
        return x + ((beta * h)[:, None] * away).view_as(x), log_det

    def inverse(self, z: Tensor) -> Tensor:
        alpha, beta = self._constrained()
        away = z.flatten(1) - self.x0
        length = _length(away)
        # |z - x0| = r (alpha + beta + r) / (alpha + r)
        b = alpha + beta - length
        r = (-b + (b**2 + 4 * alpha * length).sqrt()) / 2
        return z - ((beta / (alpha + beta + r))[:, None] * away).view_as(z)


def _length(v: Tensor) -> Tensor:
    """|v| of each row, with a derivative at 0."""
    return (v.square().sum(1) + torch.finfo(v.dtype).tiny).sqrt()
