"""Denoising diffusion null-space: what y fixes is put into every denoised image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers.steps import renewed
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import ddpm_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level, row_norm


@dataclass(frozen=True)
class DDNM(DiffusionSolver):
    """Denoising Diffusion Null-space Model; DDNM+ where there is noise.

        x0hat = x0 - V diag(lambda) V^T (x0 - A^+ y),   x0 = denoise(x_t)
        x_{t-1} = (1 - k) x0hat + k x_t + Phi^(1/2) n,   k = sqrt(1 - eta^2) sigma_{t-1} / sigma_t

    In each singular direction, with r^2 the variance of x0 given x_t alone (see `Walk`),

        lambda_i = r^2 / (r^2 + sigma_y^2 / s_i^2)                      Wiener's weight
        Phi_i = eta^2 sigma_{t-1}^2 + unknown (1 - k)^2 r^2 (1 - lambda_i)  (in the last step 0)

    so that x0hat is x0's mean given x_t and y where r^2 is right, and Phi counts what is still
    unknown of x0. Without noise lambda = 1: the range of A^T is y's, the null space the
    network's. The paper's DDNM+ instead replaces fresh noise by y's own as far as that goes,

        lambda_i = min(1, g s_i / ((1 - k) sigma_y)),   g = eta sigma_{t-1}
        Phi_i = g^2 - ((1 - k) lambda_i sigma_y / s_i)^2

    which takes the same y as news at every level: off by several standard deviations on blurs.

    Attributes:
        eta: Share of the noise that is fresh.
        unknown: x0's variance given x_t as a share of r^2; see `DDRM`.
        as_published: The paper's lambda and Phi, and DDPM's own levels.

    Source: Wang, Yu, Zhang 2023, arXiv:2212.00490, Algorithm 1 and equations 17 to 19 with
        appendix I for singular values other than 1. Differs: as above; levels follow sigma_y.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    eta: float = 0.95
    unknown: float = 0.5
    as_published: bool = False

    @classmethod
    def published(cls, *, steps: int = 100) -> DDNM:
        """The paper's settings: 100 of DDPM's 1000 levels, eta .85. No units to convert."""
        return cls(steps=steps, eta=0.85, as_published=True)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self.as_published:
            return ddpm_grid(problem, self.steps)
        return super().levels(problem, prior)

    def descend(self, walk: Walk) -> Tensor:
        svd, ybar, noise = walk.data.decomposed(type(self).__name__)
        x = self.start(walk)
        kept, fresh = (1 - self.eta**2) ** 0.5 * walk.lower / walk.sigmas, self.eta * walk.lower
        r2 = walk.uncertainty(walk.sigmas)
        unknown = self.unknown * (1 - kept) ** 2 * r2 * (walk.lower > 0)
        spread = fresh if self.as_published else (fresh**2 + unknown).sqrt()
        in_x = per_level(x, kept, spread)
        in_y = per_level(ybar, 1 - kept, fresh, spread, r2, unknown)
        for sigma, (k, s), (taken, g, f, r2_t, v) in zip(walk.sigmas, in_x, in_y, strict=True):
            x0 = walk.keep_sound(walk.prior.denoise(x, sigma), x)
            n = walk.noise(x)
            x0bar, nbar = svd.vt(x0), svd.vt(n)
            if self.as_published:
                brought = taken * noise
                weight = torch.where(brought > g, g / brought, 1.0)
                left = (g**2 - brought**2).clamp(min=0).sqrt()
            else:
                weight = r2_t / (r2_t + noise**2)
                left = (g**2 + v * (1 - weight)).sqrt()
            change = weight * (ybar - x0bar)
            walk.record(x0, row_norm(walk.data.y - svd.singular_values * (x0bar + change)))
            # x0hat = x0 + V change: what y changes, and noise of another size, go back together
            x = renewed(x0, x, k, s, n) + svd.v(taken * change + (left - f) * nbar)
        return x
