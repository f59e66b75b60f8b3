"""Denoising diffusion restoration: the walk taken apart by singular vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers.steps import renewal, renewed
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import ddpm_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level


@dataclass(frozen=True)
class DDRM(DiffusionSolver):
    """Denoising Diffusion Restoration Models.

    In the coordinates of the singular value decomposition, xbar = V^T x and
    ybar_i = (U^T y)_i / s_i, with x0 = denoise(x_{t+1}) and n standard normal, from sigma to the
    next level sigma',

        s_i = 0:              x0bar + k (xbar - x0bar) + sqrt(eta^2 sigma'^2 + v_k) n,
                              k = sqrt(1 - eta^2) sigma' / sigma
        sigma' < sigma_y/s_i: x0bar + k (xbar - x0bar) + sqrt(sigma'^2 - k^2 sigma^2 + v_k) n,
                              k = (sigma' / sigma)^2
        else:                 x0bar + eta_b (ybar - x0bar)
                                    + sqrt(sigma'^2 - eta_b^2 sigma_y^2 / s_i^2 + v_k) n,
                              k = eta_b

    with v_k = unknown (1 - k)^2 r^2, the variance that x0 has about its mean (0 in the last
    step).

    The paper's second case is the first with (ybar - x0bar) / (sigma_y / s_i) for
    (xbar - x0bar) / sigma. But ybar is a noisy look at x, at the level sigma_y / s_i. Once the
    walk has passed that level, x holds what y says; to take it as news again and again narrows
    the samples and shifts their mean.

    Attributes:
        eta, eta_b: As above, in [0, 1].
        unknown: x0's variance about its mean as a share of r^2 (see `Walk`), which is that of
            white data. Pixels that hang together know more of each other: 1 makes images too
            varied, 0 Gaussians too narrow.
        as_published: The paper's second case, v = 0, and DDPM's own levels.
        smallest: Singular values below it count as zero.

    Source: Kawar et al. 2022, arXiv:2201.11793, equations 7 and 8. Differs: as above; levels
        follow sigma_y; the start counts the data's spread.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    eta: float = 0.95
    eta_b: float = 1.0
    unknown: float = 0.5
    as_published: bool = False
    smallest: float = 0.0

    @classmethod
    def published(cls, *, steps: int = 20) -> DDRM:
        """The paper's settings: 20 of DDPM's 1000 levels, eta .85, eta_b 1.

        Singular values under .03 count as zero, as in the paper's code for blurs. No units to
        convert: a share of the noise is the same in [0, 1] as in [-1, 1].
        """
        return cls(steps=steps, eta=0.85, as_published=True, smallest=0.03)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self.as_published:
            return ddpm_grid(problem, self.steps)
        return super().levels(problem, prior)

    def descend(self, walk: Walk) -> Tensor:
        svd, ybar, noise = walk.data.decomposed(type(self).__name__, smallest=self.smallest)
        x = self.start(walk)
        xbar = svd.vt(x)
        ((first,),) = per_level(ybar, walk.sigmas[:1])
        noisy = ybar + (first**2 - noise**2).clamp(min=0).sqrt() * svd.vt(walk.noise(x))
        change = torch.where(first >= noise, noisy - xbar, 0.0)
        x, xbar = x + svd.v(change), xbar + change
        free, passed, v = self._coefficients(walk)
        in_x = per_level(x, *free)
        in_y = per_level(ybar, walk.sigmas, walk.lower, *free, *passed, v)
        for (k, s), (sigma, lower, k0, s0, k1, s1, v1) in zip(in_x, in_y, strict=True):
            level = sigma.flatten()
            x0 = walk.keep_sound(walk.prior.denoise(x, level), x)
            n = walk.noise(x)
            x0bar, nbar = svd.vt(x0), svd.vt(n)
            walk.record(x0)
            look = sigma / noise * (ybar - x0bar) if self.as_published else xbar - x0bar
            rest = (lower**2 - (self.eta_b * noise) ** 2 + v1).clamp(min=0).sqrt()
            towards_y = self.eta_b * (ybar - x0bar) + rest * nbar
            seen = torch.where(lower < noise, k1 * look + s1 * nbar, towards_y)
            # what `renewed` does to all directions, it is not to do to those that y shows
            x = renewed(x0, x, k, s, n) + svd.v(seen - k0 * (xbar - x0bar) - s0 * nbar)
            xbar = x0bar + seen
        return x

    def _coefficients(self, walk: Walk) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Return k and the noise's std in the first and the second case, and v in the third."""
        sigmas, lower = walk.sigmas, walk.lower
        free = (1 - self.eta**2) ** 0.5 * lower / sigmas, self.eta * lower
        if self.as_published:
            return free, free, torch.zeros_like(lower)
        r2 = self.unknown * walk.uncertainty(sigmas) * (lower > 0)

        def drawn(k: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            return k, (s**2 + (1 - k) ** 2 * r2).sqrt()

        return drawn(*free), drawn(*renewal(sigmas, lower)), (1 - self.eta_b) ** 2 * r2
