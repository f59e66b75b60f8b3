"""What quasi-Newton descent remembers of each row's curvature."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.linalg import vecdot

MEMORY = 10
DENSE = 64
"""Rows up to this length remember everything: a dense matrix costs less than pairs."""


def curvature(x: Tensor) -> Curvature:
    """Begin with none for rows like x (n, d)."""
    return Dense(x) if x.shape[1] <= DENSE else Pairs(x)


class Curvature(ABC):
    """An approximate inverse Hessian H for each of n functions."""

    def learn(self, s: Tensor, y: Tensor) -> None:
        """Take in steps s (n, d) and their changes of gradient y; a step of 0 teaches nothing.

        Nor does a step along which the gradient does not grow: H stays positive definite.
        """
        sy, yy = vecdot(s, y), vecdot(y, y)
        good = sy > 1e-10 * (vecdot(s, s) * yy).sqrt()
        self._learn(s, y, torch.where(good, 1 / sy, 0.0), sy / yy)

    @abstractmethod
    def _learn(self, s: Tensor, y: Tensor, rho: Tensor, scale: Tensor) -> None:
        """Take in pairs whose rho is 1 / s.y, or 0 for no pair; scale is s.y / y.y there."""

    @abstractmethod
    def apply(self, g: Tensor) -> Tensor:
        """Return H g, (n, d)."""

    @abstractmethod
    def forget(self, rows: Tensor) -> None:
        """Begin again with H = I on rows (n,) bool."""

    @abstractmethod
    def keep(self, index: Tensor) -> None:
        """Keep the rows `index` (int64)."""


class Dense(Curvature):
    """H itself, (n, d, d), which never forgets.

    Source: Nocedal, Wright 2006, Equations 6.17 and 6.20.
    """

    h: Tensor
    fresh: Tensor

    def __init__(self, x: Tensor) -> None:
        self.identity: Tensor = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        self.h = self.identity.repeat(len(x), 1, 1)
        self.fresh = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def _learn(self, s: Tensor, y: Tensor, rho: Tensor, scale: Tensor) -> None:
        taught = rho > 0
        if bool(self.fresh.any()):
            self.h *= scale.where(self.fresh & taught, 1.0)[:, None, None]
            self.fresh &= ~taught
        hy = self.apply(y)
        # (I - rho s y') H (I - rho y s') + rho s s' = H + s u' + u s'
        half = 0.5 * rho * (1 + rho * vecdot(y, hy))
        u = half[:, None] * s - rho[:, None] * hy
        self.h.baddbmm_(torch.stack([s, u], 2), torch.stack([u, s], 1))

    def apply(self, g: Tensor) -> Tensor:
        return torch.bmm(g[:, None], self.h)[:, 0]  # h is symmetric, and this way is faster

    def forget(self, rows: Tensor) -> None:
        self.h[rows] = self.identity
        self.fresh |= rows

    def keep(self, index: Tensor) -> None:
        self.h, self.fresh = self.h[index], self.fresh[index]


class Pairs(Curvature):
    """The last few pairs of each row, newest last; rho is 0 where there is no pair yet.

    Source: Nocedal, Wright 2006, Algorithm 7.4 (the two-loop recursion).
    """

    s: Tensor
    y: Tensor
    rho: Tensor
    scale: Tensor

    def __init__(self, x: Tensor) -> None:
        n, d = x.shape
        self.s, self.y = x.new_zeros(n, MEMORY, d), x.new_zeros(n, MEMORY, d)
        self.rho, self.scale = x.new_zeros(n, MEMORY), x.new_ones(n)

    def _learn(self, s: Tensor, y: Tensor, rho: Tensor, scale: Tensor) -> None:
        taught = rho > 0
        self.scale = scale.where(taught, self.scale)
        for name, new in (("s", s), ("y", y), ("rho", rho)):
            old = getattr(self, name)
            mask = taught.view(-1, *[1] * (old.ndim - 1))
            setattr(self, name, torch.cat([old[:, 1:], new[:, None]], 1).where(mask, old))

    def apply(self, g: Tensor) -> Tensor:
        q, alphas = g, []
        for i in reversed(range(MEMORY)):
            alpha = self.rho[:, i] * vecdot(self.s[:, i], q)
            q = q - alpha[:, None] * self.y[:, i]
            alphas.append(alpha)
        q = self.scale[:, None] * q
        for i, alpha in zip(range(MEMORY), reversed(alphas), strict=True):
            beta = self.rho[:, i] * vecdot(self.y[:, i], q)
            q = q + (alpha - beta)[:, None] * self.s[:, i]
        return q

    def forget(self, rows: Tensor) -> None:
        self.rho[rows], self.scale[rows] = 0.0, 1.0

    def keep(self, index: Tensor) -> None:
        self.s, self.y, self.rho, self.scale = (
            a[index] for a in (self.s, self.y, self.rho, self.scale)
        )
