"""Denoising diffusion null-space: what y fixes is put into every denoised image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level, renewal, renewed, row_norm


@dataclass(frozen=True)
class DDNM(DiffusionSolver):
    """Denoising Diffusion Null-space Model; DDNM+ where there is noise.

        x0hat = x0 - V diag(lambda) V^T (x0 - A^+ y),   x0 = denoise(x_t)
        x_{t-1} = (1 - k) x0hat + k x_t + Phi^(1/2) n

    k and the fresh noise g_t are those of a DDIM step with eta. In each singular direction

        lambda_i = min(1, g_t s_i / ((1 - k) sigma_y)),
        Phi_i = g_t^2 - ((1 - k) lambda_i sigma_y / s_i)^2

    so that y's own noise takes the place of fresh noise as far as it goes. Without noise
    lambda = 1: the range of A^T is y's, the null space the network's.

    Attributes:
        eta: Share of the noise that is fresh; 1 is DDPM's, .85 the published code's.

    Source: Wang, Yu, Zhang 2023, arXiv:2212.00490, Algorithm 1 and equations 17 to 19 with
        appendix I for singular values other than 1. Differs: the levels end at sigma_y, since
        every level further down takes y as news and narrows the samples.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    eta: float = 1.0

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        return noise_grid(problem, prior, self.steps, below_noise=1.0, below_data=0.6)

    def descend(self, walk: Walk) -> Tensor:
        svd, ybar, noise = walk.data.decomposed(type(self).__name__)
        kept, fresh = renewal(walk.sigmas, walk.lower, self.eta)
        x = self.start(walk)
        in_x, in_y = per_level(x, kept, fresh), per_level(ybar, 1 - kept, fresh)
        for sigma, (k, s), (taken, g) in zip(walk.sigmas, in_x, in_y, strict=True):
            x0 = walk.keep_sound(walk.prior.denoise(x, sigma), x)
            n = walk.noise(x)
            x0bar, nbar = svd.vt(x0), svd.vt(n)
            brought = taken * noise
            weight = torch.where(brought > g, g / brought, 1.0)
            left = (g**2 - brought**2).clamp(min=0).sqrt()
            change = weight * (ybar - x0bar)
            walk.record(x0, row_norm(walk.data.y - svd.singular_values * (x0bar + change)))
            # x0hat = x0 + V change: what y changes and what fresh noise lacks go back together
            change = taken * change + (left - g) * nbar
            x = renewed(x0, x, k, s, n) + svd.v(change)
        return x
