"""Denoising diffusion null-space: what y fixes is put into every denoised image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.spectral import Spectral
from genprior.solvers.walk.walk import Walk, _Walk, images


@dataclass(frozen=True)
class DDNM(_Walk):
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

    def _grid(self, problem: Problem, prior: Counted) -> Tensor:
        return noise_grid(problem, prior, self.steps, below_noise=1.0, below_data=0.6)

    def _descend(self, walk: Walk) -> Tensor:
        spectral = Spectral.of(walk.problem, type(self).__name__)
        fresh, kept = walk.renewal(self.eta)
        scalars = zip(*(spectral.rows(c) for c in (fresh, 1 - kept)), strict=True)
        x = walk.start()
        for sigma, (k, s), (g, taken) in zip(
            walk.sigmas, images(kept, fresh), scalars, strict=True
        ):
            x0 = walk.keep_sound(walk.prior.denoise(x, sigma), x)
            n = walk.noise(x)
            x0bar, nbar = spectral.vt(x0), spectral.vt(n)
            brought = taken * spectral.noise
            weight = torch.where(brought > g, g / brought, 1.0)
            left = (g**2 - brought**2).clamp(min=0).sqrt()
            change = weight * (spectral.y - x0bar)
            walk.record(x0, spectral.residual_norm(x0bar + change))
            # x0hat = x0 + V change: what y changes and what fresh noise lacks go back together
            change = taken * change + (left - g) * nbar
            x = torch.addcmul(x0.lerp(x, k), s, n) + spectral.v(change)
        return x
