"""Regularisation by denoising diffusion: one image, optimised with the network as its judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers.steps import plus
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import ddpm_grid, noise_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level

BETA1, BETA2 = 0.9, 0.99
SMOOTHING = 0.05
"""Share of the newest denoised image in the running mean that Poisson variances are taken of: mu
itself follows the counts, and low ones would weigh most."""


@dataclass(frozen=True)
class REDDiff(DiffusionSolver):
    """Regularisation by Denoising Diffusion: a point estimate mu.

        min_mu |y - A(mu)|^2 / 2 + lambda_t sg[mu - denoise(mu + sigma_t n)]^T mu

    by Adam, one noise level sigma_t and one draw of n a step. A may be nonlinear; Poisson noise
    enters by its normal approximation. The levels end at sigma_y, and

        lambda_t = lambda sigma_y^2 (s^2 + sigma_t^2) / (s^2 sigma_t^2)

    with the prior's standard deviation s: for lambda = 1 and a prior of that variance the
    minimum is the posterior's mode at every level.

    Attributes:
        lam: lambda.
        rate: Adam's step, as a share of the prior's standard deviation; falling to 0.
        ddpm_levels: Walk down DDPM's own levels at a constant rate, as published.

    Source: Mardani et al. 2024, arXiv:2305.04391, Algorithm 1: their weight lambda / SNR_t of
        the noise residual is lambda in front of mu - denoise. Differs: levels,
        lambda_t and the falling rate.
    """

    point_estimate: ClassVar[bool] = True

    lam: float = 1.0
    rate: float = 0.3
    ddpm_levels: bool = False

    @classmethod
    def published(cls) -> REDDiff:
        """The code's settings: 1000 levels, lambda .25, Adam at .1 of [-1, 1], .05 of ours.

        Here the rate counts in the prior's standard deviations, .25 for photographs: .2."""
        return cls(steps=1000, lam=0.25, rate=0.2, ddpm_levels=True)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self.ddpm_levels:
            return ddpm_grid(problem, self.steps)
        return noise_grid(problem, prior, self.steps, below_noise=1.0, below_data=0.5)

    def descend(self, walk: Walk) -> Tensor:
        mu = walk.prior.data_mean.to(walk.problem.y).expand(walk.shape)
        first, second = torch.zeros_like(mu), torch.zeros_like(mu)
        smooth, scale = mu, walk.prior.data_scale
        weights = self._weights(walk)
        levels = zip(walk.sigmas, per_level(mu, walk.sigmas, weights), strict=True)
        norm, pulled = walk.residual_gradient(mu)
        for step, (sigma, (s, weight)) in enumerate(levels, start=1):
            x0 = walk.prior.denoise(plus(mu, s, walk.noise(mu)), sigma)
            smooth = smooth.lerp(x0, SMOOTHING)
            gradient = plus(weight * (mu - x0), norm, pulled)
            first = first.lerp(gradient, 1 - BETA1)
            second = second.lerp(gradient**2, 1 - BETA2)
            size = (second / (1 - BETA2**step)).sqrt() + 1e-12 * scale
            fall = 1.0 if self.ddpm_levels else 1 - (step - 1) / self.steps
            rate = self.rate * fall * scale / (1 - BETA1**step)
            mu = walk.keep_sound(mu - rate * first / size, mu)
            norm, pulled = walk.residual_gradient(mu, about=smooth)
            walk.record(mu, norm)
        return mu

    def _weights(self, walk: Walk) -> Tensor:
        """lambda_t, (N, R). Without noise the last level stands for sigma_y."""
        if self.ddpm_levels:
            return torch.full_like(walk.sigmas, self.lam)
        noise = torch.maximum(walk.sigma_y, walk.sigmas[-1])
        return self.lam * noise**2 / walk.uncertainty(walk.sigmas)
