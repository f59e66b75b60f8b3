"""Moment matching: the likelihood with the covariance that the denoiser itself implies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem, conjugate_gradient
from genprior.operators.base import per_row
from genprior.operators.linear.spectrum import Map
from genprior.priors.samplers import DDPM, Sampler, log_uniform
from genprior.priors.samplers.sa_solver import SASolver
from genprior.priors.samplers.steps import plus
from genprior.solvers.base import Counted
from genprior.solvers.data_term import DataTerm
from genprior.solvers.walk.guided import GuidedSolver
from genprior.solvers.walk.krylov import krylov_solve
from genprior.solvers.walk.levels import ABOVE_DATA, noise_ends, noise_grid, noise_width
from genprior.solvers.walk.state import Walk

DAMPING = 1e-4
"""Least measurement variance as a share of that of x0 given x_sigma: keeps noise-free systems
solvable where the network's Jacobian is all but singular, and vanishes with sigma."""

TURN, FULL = 6.0, 18.0
"""Data standard deviations at which steering ends, and from which on it is whole."""

STEER = 20.0
"""How many times `steered` exaggerates; chosen on a data set's own posterior, other seeds."""

APPROACH_PRODUCTS = 2
"""Most vector-Jacobian products for each step of the approach."""

ROUGH, WHITE_PRODUCTS = 0.1, 10
"""Relative residual, and most products with A A^T, at which a preconditioner is good enough."""


@dataclass(frozen=True)
class MMPS(GuidedSolver):
    """Moment Matching Posterior Sampling.

        p(y | x_t) = N(y; A x0, sigma_y^2 I + A V A^T),   V = Cov[x0 | x_t] = sigma_t^2 dx0/dx_t
        E[x0 | x_t, y] = x0 + V A^T (sigma_y^2 I + A V A^T)^-1 (y - A x0)

    with x0 = denoise(x_t). V times a vector is one vector-Jacobian product; the system is solved
    by few of them. Exact for a Gaussian prior; a network's Jacobian is not quite symmetric, so
    the solver of the system does not ask for symmetry.

    The walk draws fresh noise, which heals what a trained network gets wrong.

    Where x0 given x_t has many modes, the Gaussian knows their spread but not that only one of
    them fits y, and pulls too little. `steered` exaggerates the correction high up, where a walk
    chooses what an image shows: ancestral steps whose guidance is that of p(y | x_t)^beta,

        x0 + beta V A^T (sigma_y^2 I + A V A^T)^-1 (y - A x0)
        beta = [1 + (steer - 1) r^2 / (r^2 + sigma_y^2)]^w
        r^2 = sigma_t^2 s^2 / (sigma_t^2 + s^2)

    with s the data's standard deviation and w falling from 1 at 18 s to 0 at 6 s in log sigma_t.
    Below, the walk is MMPS's own. For a Gaussian prior, which has no modes to choose from, the
    mean is then off by about a tenth of a posterior standard deviation.

    Attributes:
        iterations: Most vector-Jacobian products for each step. One step's precondition the next
            step's system, in rows where they would have served the last. Five are still few for a
            smooth prior and very little noise: the mean is off by a tenth of a posterior standard
            deviation at .005 of [0, 1] and by up to a fifth at .0005, which no residual and not
            `converged` shows; with 20 it is within a twentieth.
        tolerance: Relative residual at which the system counts as solved.
        steer: How many times the correction is exaggerated high up; 1 is MMPS.
        approach: Share of the steps that lie above 6 s, for `steer` above 1.

    Source: Rozet et al. 2024, arXiv:2405.13712, section 4 (with conjugate gradients and a
        DDPM or DDIM walk). Differs: the walk is SA-Solver's, on log-uniform levels that follow
        sigma_y, started at the second order in 1 / sigma; generalised conjugate residuals,
        preconditioned by the system of V = v I and by the products of the step before.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    steps: int = 20
    iterations: int = 5
    tolerance: float = 1e-2
    sampler: Sampler = SASolver()  # noqa: RUF009 (frozen)
    steer: float = 1.0
    approach: float = 0.625

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"MMPS: iterations must be at least 1, not {self.iterations}")
        if not (1 <= self.steer < math.inf and 0 <= self.approach < 1):
            raise ValueError(
                "MMPS: steer must be finite and at least 1 and approach in [0, 1), not "
                f"{self.steer} and {self.approach}"
            )
        if self.steer > 1 and self.returns:
            raise ValueError(
                "MMPS: returns is for steer=1: steered walks choose before they return"
            )

    @classmethod
    def steered(cls, *, steps: int = 32) -> MMPS:
        """What `genprior.solve` takes: 20 steered steps and 12 of MMPS's own."""
        return cls(steps=steps, steer=STEER)

    @property
    def _above(self) -> int:
        """Steps of the approach."""
        return round(self.approach * self.steps) if self.steer > 1 and self.steps > 1 else 0

    @property
    def _second_order(self) -> bool:
        """Whether two steps are spent on the start."""
        return self.steps > 2 and not self._above

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self._above:
            _, low = noise_ends(problem, prior, below_noise=0.05)
            top = min(prior.sigma_range[1], ABOVE_DATA * prior.data_scale / 2)
            turn = low.clamp(min=min(TURN * prior.data_scale, top))
            above = log_uniform(turn.clamp(min=top), turn, self._above + 1, like=problem.y)
            below = self.sampler.steps(self.steps - self._above)
            return torch.cat([above[:-1], log_uniform(turn, low, below, like=problem.y)])
        walked = self.steps - 2 if self._second_order else self.steps
        levels = self.sampler.steps(walked)
        return noise_grid(problem, prior, levels, below_noise=0.05, top=0.5)

    def start(self, walk: Walk) -> Tensor:
        """Draw x at sigma about E[x0 | y], and give it the posterior's own variance V there.

            m = E[x0 | x_sigma = data_mean, y],   x = m + sigma n
            x + (E[x0 | x_sigma = x, y] - m) / 2 = m + (sigma + V / (2 sigma)) n

        The probability flow from infinity begins so. Two evaluations, which let the walk begin
        at half the height that a start ignorant of V asks for.
        """
        if not self._second_order:
            return super().start(walk)
        sigma = walk.sigmas[0]
        n = walk.noise(walk.problem.y.new_empty(walk.shape))
        mean = walk.prior.data_mean.to(n).expand_as(n)
        mean = walk.keep_sound(self.guide(walk, mean, sigma), mean)
        x = mean + per_row(sigma, n) * n
        return walk.keep_sound(x + (self.guide(walk, x, sigma) - mean) / 2, x)

    def descend(self, walk: Walk) -> Tensor:
        if not self._above:
            return super().descend(walk)
        note = partial(self._note, walk)
        x = DDPM()(
            partial(self._steered, walk, noise_width(walk.problem)),
            self.start(walk),
            walk.sigmas[: self._above + 1],
            generator=walk.generators,
            callback=note,
            to_zero=False,
        )
        rest = walk.sigmas[self._above :]
        guided = partial(self._guided, walk)
        return self.sampler(guided, x, rest, generator=walk.generators, callback=note)

    @staticmethod
    def _note(walk: Walk, step: int, sigma: Tensor, x: Tensor, x0: Tensor) -> None:
        walk.record(x0)

    def _steered(self, walk: Walk, width: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        s, r2 = walk.prior.data_scale, walk.uncertainty(sigma)
        w = ((sigma / (TURN * s)).log() / math.log(FULL / TURN)).clamp(0, 1)
        beta = (1 + (self.steer - 1) * r2 / (r2 + width**2)) ** w
        x0, correction = self._correction(walk, x, sigma, APPROACH_PRODUCTS)
        return walk.keep_sound(plus(x0, beta, correction), x)

    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        x0, correction = self._correction(walk, x, sigma, self.iterations)
        return x0 + correction

    def _correction(
        self, walk: Walk, x: Tensor, sigma: Tensor, iterations: int
    ) -> tuple[Tensor, Tensor]:
        """Return x0 and V A^T (sigma_y^2 I + A V A^T)^-1 (y - A x0)."""
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

        solution = krylov_solve(
            cov_y,
            data.residual(mean),
            precondition=_white_inverse(data, noise2, v2),
            iterations=iterations,
            tolerance=self.tolerance,
            known=walk.known,
        )
        walk.known = solution.known
        return mean, solution.image


def _white_inverse(data: DataTerm, noise2: Tensor, v2: Tensor) -> Map:
    """Return about (sigma_y^2 I + v A A^T)^-1, the inverse were V = v I.

    Exact where A A^T is diagonal in closed form. Elsewhere by few products with A A^T, which cost
    little beside a network's: left out, the few iterations of `MMPS` end half a posterior
    standard deviation short of y where sigma_y is small (a camera's blur, say).
    """
    if data.spectrum is not None:
        return data.solver(noise2, scale=v2)

    def white(c: Tensor) -> Tensor:
        return plus(per_row(v2, c) * data.forward(data.adjoint(c)), noise2, c)

    def solve(c: Tensor) -> Tensor:
        found = conjugate_gradient(white, c, tolerance=ROUGH, max_iterations=WHITE_PRODUCTS)
        return found[0]

    return solve
