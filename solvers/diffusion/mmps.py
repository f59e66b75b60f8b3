"""Moment matching: the likelihood with the covariance that the denoiser itself implies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.operators.base import per_row
from genprior.priors.samplers import Sampler
from genprior.priors.samplers.sa_solver import SASolver
from genprior.solvers.base import Counted
from genprior.solvers.walk.guided import GuidedSolver
from genprior.solvers.walk.krylov import krylov_solve
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import plus

DAMPING = 1e-4
"""Least measurement variance as a share of that of x0 given x_sigma: keeps noise-free systems
solvable where the network's Jacobian is all but singular, and vanishes with sigma."""


@dataclass(frozen=True)
class MMPS(GuidedSolver):
    """Moment Matching Posterior Sampling.

        p(y | x_t) = N(y; A x0, sigma_y^2 I + A V A^T),   V = Cov[x0 | x_t] = sigma_t^2 dx0/dx_t
        E[x0 | x_t, y] = x0 + V A^T (sigma_y^2 I + A V A^T)^-1 (y - A x0)

    with x0 = denoise(x_t). V times a vector is one vector-Jacobian product; the system is solved
    by few of them. Exact for a Gaussian prior; a network's Jacobian is not quite symmetric, so
    the solver of the system does not ask for symmetry.

    The walk draws fresh noise, which heals what a trained network gets wrong.

    Attributes:
        iterations: Most vector-Jacobian products for each step.
        tolerance: Relative residual at which the system counts as solved.

    Source: Rozet et al. 2024, arXiv:2405.13712, section 4 (with conjugate gradients and a
        DDPM or DDIM walk). Differs: the walk is SA-Solver's, on log-uniform levels that follow
        sigma_y, started at the second order in 1 / sigma; generalised conjugate residuals,
        preconditioned by the system of V = v I where A A^T is diagonal in closed form.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    steps: int = 20
    iterations: int = 5
    tolerance: float = 1e-2
    sampler: Sampler = SASolver()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"MMPS: iterations must be at least 1, not {self.iterations}")

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        levels = self.sampler.steps(max(1, self.steps - 2))
        return noise_grid(problem, prior, levels, below_noise=0.05, top=0.5)

    def start(self, walk: Walk) -> Tensor:
        """Draw x at sigma about E[x0 | y], and give it the posterior's own variance V there.

            m = E[x0 | x_sigma = data_mean, y],   x = m + sigma n
            x + (E[x0 | x_sigma = x, y] - m) / 2 = m + (sigma + V / (2 sigma)) n

        The probability flow from infinity begins so. Two evaluations, which let the walk begin
        at half the height that a start ignorant of V asks for.
        """
        if self.steps < 3:
            return super().start(walk)
        sigma = walk.sigmas[0]
        n = walk.noise(walk.problem.y.new_empty(walk.shape))
        mean = walk.prior.data_mean.to(n).expand_as(n)
        mean = walk.keep_sound(self.guide(walk, mean, sigma), mean)
        x = mean + per_row(sigma, n) * n
        return walk.keep_sound(x + (self.guide(walk, x, sigma) - mean) / 2, x)

    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        x, x0 = walk.denoise_with_graph(x, sigma)
        mean, data = x0.detach(), walk.data
        v2, noise2 = walk.variances(sigma, DAMPING)
        sigma2 = sigma**2

        def cov_x(v: Tensor) -> Tensor:
            """V v = sigma^2 (dx0/dx)^T v."""
            (product,) = torch.autograd.grad(x0, x, v, retain_graph=True)
            return per_row(sigma2, v) * product

        def cov_y(c: Tensor) -> tuple[Tensor, Tensor]:
            """(sigma_y^2 I + A V A^T) c, and V A^T c."""
            correction = cov_x(data.adjoint(c))
            return plus(data.forward(correction), noise2, c), correction

        _, correction = krylov_solve(
            cov_y,
            data.residual(mean),
            precondition=_unchanged if data.spectrum is None else data.solver(noise2, scale=v2),
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        return mean + correction


def _unchanged(c: Tensor) -> Tensor:
    return c
