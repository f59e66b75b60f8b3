"""Decoupled annealing: at each level a fresh draw of x0 given x_sigma and y, noised again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors import samplers
from genprior.priors.samplers import DPMSolver
from genprior.priors.samplers.steps import plus
from genprior.solvers.base import Counted
from genprior.solvers.data_term import DataTerm
from genprior.solvers.walk.gauss_newton import randomised_draw
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level


def conditional_draw(
    data: DataTerm, x0hat: Tensor, r2: Tensor, noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """Draw x0 ~ N(x0hat, r^2 I) p(y | x0) for linear A and Gaussian noise, by Matheron's rule."""
    sigma_y = data.problem.sigma
    x = plus(x0hat, r2.sqrt(), noise(x0hat))
    n = data.coefficients(noise(data.problem.y))
    u = data.solver(sigma_y**2, scale=r2)(plus(data.residual(x), sigma_y, n))
    return plus(x, r2, data.adjoint(u))


@dataclass(frozen=True)
class DAPS(DiffusionSolver):
    """Decoupled Annealing Posterior Sampling.

        x0hat = the probability flow from x_t, a few evaluations
        x0 ~ N(x0; x0hat, r_t^2 I) p(y | x0)
        x_{t-1} = x0 + sigma_{t-1} n

    For a linear A and Gaussian noise the middle step is drawn exactly, else by
    `randomised_draw`. Poisson noise enters there by its normal approximation, with the variances
    that A x0 shows.

    Attributes:
        steps: Network evaluations; steps / flow_steps noise levels.
        flow_steps: Evaluations for each probability flow; 1 makes x0hat the denoised image.

    Source: Zhang et al. 2025, arXiv:2407.01521, Algorithm 1. Differs: r_t^2 =
        sigma_t^2 s^2 / (sigma_t^2 + s^2) with the prior's standard deviation s instead of
        sigma_t^2; levels follow sigma_y; these draws in place of Langevin's.
    """

    flow_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.flow_steps <= self.steps:
            raise ValueError(
                f"DAPS: flow_steps must be 1 to steps ({self.steps}), not {self.flow_steps}"
            )

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        return noise_grid(problem, prior, self.steps // self.flow_steps)

    def descend(self, walk: Walk) -> Tensor:
        x, x0 = self.start(walk), None
        r2s = walk.uncertainty(walk.sigmas)
        for sigma, r2, (s,) in zip(walk.sigmas, r2s, per_level(x, walk.lower), strict=True):
            x0hat = self._flow(walk, x, sigma)
            if walk.problem.linear_gaussian:
                x0 = conditional_draw(walk.data, x0hat, r2, walk.noise)
            else:
                x0 = randomised_draw(walk, x0hat, r2, x0hat if x0 is None else x0)
            x0 = walk.keep_sound(x0, x)
            walk.record(x0)
            x = plus(x0, s, walk.noise(x))
        return x

    def _flow(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        if self.flow_steps == 1:
            return walk.prior.denoise(x, sigma)
        low = torch.minimum(walk.sigmas[-1], sigma)
        grid = samplers.log_uniform(sigma, low, self.flow_steps, like=x)
        return DPMSolver()(walk.prior.denoise, x, grid)
