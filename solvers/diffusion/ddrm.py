"""Denoising diffusion restoration: the walk taken apart by singular vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import ddpm_grid, noise_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level, renewed, row_norm


@dataclass(frozen=True)
class DDRM(DiffusionSolver):
    """Denoising Diffusion Restoration Models.

    In the coordinates of the singular value decomposition, xbar = V^T x and
    ybar_i = (U^T y)_i / s_i, with x0 = denoise(x_{t+1}) and n standard normal,

        s_i = 0:               x0bar + sqrt(1 - eta^2) sigma_t (xbar - x0bar) / sigma_{t+1}
                                     + eta sigma_t n
        sigma_t < sigma_y/s_i: x0bar + sqrt(1 - eta^2) sigma_t (ybar - x0bar) / (sigma_y / s_i)
                                     + eta sigma_t n
        else:                  (1 - eta_b) x0bar + eta_b ybar
                                     + sqrt(sigma_t^2 - eta_b^2 sigma_y^2 / s_i^2) n

    Attributes:
        eta, eta_b: As above, in [0, 1].
        ddpm_levels: Walk down DDPM's own levels, as published.

    Source: Kawar et al. 2022, arXiv:2201.11793, equations 7 and 8. Differs: the levels end near
        sigma_y, since every level further down takes y as news and narrows the samples; the
        start counts the data's spread.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    eta: float = 0.95
    eta_b: float = 1.0
    ddpm_levels: bool = False

    @classmethod
    def published(cls, *, steps: int = 20) -> DDRM:
        """The paper's settings: 20 of DDPM's 1000 levels, eta .85, eta_b 1. No units to convert:
        a share of the noise is the same in [0, 1] as in [-1, 1]."""
        return cls(steps=steps, eta=0.85, ddpm_levels=True)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self.ddpm_levels:
            return ddpm_grid(problem, self.steps)
        return noise_grid(problem, prior, self.steps, below_noise=0.5, below_data=0.3)

    def descend(self, walk: Walk) -> Tensor:
        svd, ybar, noise = walk.data.decomposed(type(self).__name__)
        x = self.start(walk)
        ((first,),) = per_level(ybar, walk.sigmas[:1])
        share, fresh = self._towards_y(first, noise)
        xbar = svd.vt(x)
        change = share * (ybar - xbar) + fresh * svd.vt(walk.noise(x))
        x, xbar = x + svd.v(change), xbar + change
        kept = (1 - self.eta**2) ** 0.5 * walk.lower / walk.sigmas
        in_x, in_y = per_level(x, kept, self.eta * walk.lower), per_level(ybar, kept, walk.lower)
        for sigma, (k, s), (kbar, lower) in zip(walk.sigmas, in_x, in_y, strict=True):
            x0 = walk.keep_sound(walk.prior.denoise(x, sigma), x)
            n = walk.noise(x)
            x0bar, nbar = svd.vt(x0), svd.vt(n)
            walk.record(x0, row_norm(walk.data.y - svd.singular_values * x0bar))
            share, fresh = self._towards_y(lower, noise)
            seen = share * (ybar - x0bar) + fresh * nbar
            free = kbar * (xbar - x0bar) + self.eta * lower * nbar
            x = renewed(x0, x, k, s, n) + svd.v(seen - free)
            xbar = x0bar + seen
        return x

    def _towards_y(self, lower: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The last two cases of the formula, on coefficients: x0 + share (y - x0) + fresh n."""
        below = lower < noise
        kept = (1 - self.eta**2) ** 0.5
        share = torch.where(below, kept * lower / noise, self.eta_b)
        fresh = (lower**2 - (self.eta_b * noise) ** 2).clamp(min=0).sqrt()
        return share, torch.where(below, self.eta * lower, fresh)
