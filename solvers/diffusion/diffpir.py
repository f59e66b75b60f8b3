"""Plug-and-play: a proximal step on the data between denoising and fresh noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers.steps import renewed
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import ddpm_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level


@dataclass(frozen=True)
class DiffPIR(DiffusionSolver):
    """Denoising diffusion models for plug-and-play image restoration.

        x0 = denoise(x_t)
        x0hat = argmin_x |y - A x|^2 + rho_t |x - x0|^2,   rho_t = lambda sigma_y^2 / sigma_t^2
        x_{t-1} = x0hat + sigma_{t-1} (sqrt(1 - zeta) (x_t - x0hat) / sigma_t + sqrt(zeta) n)

    Attributes:
        lam: lambda, the weight of the prior.
        zeta: Share of the noise that is fresh at each step.
        ddpm_levels: Walk down DDPM's own levels, as published.

    Source: Zhu et al. 2023, arXiv:2305.08995, Algorithm 1. Differs: lambda = 1 is the default,
        which makes rho_t the noise-to-prior ratio of an x0 known to within sigma_t.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    lam: float = 1.0
    zeta: float = 0.5
    ddpm_levels: bool = False

    @classmethod
    def published(cls) -> DiffPIR:
        """The code's settings: 100 of DDPM's levels, lambda 7, zeta .3. No units to convert:
        rho_t is a ratio."""
        return cls(steps=100, lam=7.0, zeta=0.3, ddpm_levels=True)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self.ddpm_levels:
            return ddpm_grid(problem, self.steps)
        return super().levels(problem, prior)

    def descend(self, walk: Walk) -> Tensor:
        data = walk.data
        rhos = self.lam * (walk.sigma_y / walk.sigmas) ** 2
        kept = (1 - self.zeta) ** 0.5 * walk.lower / walk.sigmas
        fresh = self.zeta**0.5 * walk.lower
        x = self.start(walk)
        for sigma, rho, (k, s) in zip(walk.sigmas, rhos, per_level(x, kept, fresh), strict=True):
            x0 = walk.prior.denoise(x, sigma)
            u = data.solver(rho)(data.residual(x0))
            x0hat = walk.keep_sound(x0 + data.adjoint(u), x)
            walk.record(x0hat)
            x = renewed(x0hat, x, k, s, walk.noise(x))
        return x
