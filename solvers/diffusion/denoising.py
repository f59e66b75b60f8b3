"""The posterior of denoising, where a denoiser needs no approximation at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Identity, Problem
from genprior.operators.base import per_row
from genprior.priors.samplers import log_uniform
from genprior.solvers.base import Counted
from genprior.solvers.walk.guided import GuidedSolver
from genprior.solvers.walk.levels import noise_ends, noise_level
from genprior.solvers.walk.state import Walk

ABOVE_POSTERIOR = 30.0
"""The first sigma over the posterior's own width: the walk starts from a normal law of the
posterior's mean and about its variance, which so large a sigma all but hides."""


@dataclass(frozen=True)
class DenoisingPosterior(GuidedSolver):
    """Samples of x0 given y = x0 + sigma_y n; only the walk's discretisation errs.

        w = sigma_t^2 / (sigma_t^2 + sigma_y^2)
        E[x0 | x_t, y] = denoise(w y + (1 - w) x_t, sqrt(w) sigma_y)

    y and x_t are two independent noisy looks at x0; weighted by their precisions they are one
    look with less noise, which the denoiser serves as any other. So there is no Jacobian and no
    approximation of p(y | x_t), for any prior, Gaussian or not.

    Source: the mean of two normal observations. Kawar et al. 2021, arXiv:2103.04192, sample the
        same posterior by Langevin steps.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    steps: int = 20

    def refuse(self, problem: Problem) -> None:
        super().refuse(problem)
        if not isinstance(problem.operator, Identity):
            raise TypeError(
                "DenoisingPosterior is for Identity (denoising), not "
                f"{type(problem.operator).__name__}: try MMPS"
            )

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        # one evaluation for the start's mean
        steps = self.sampler.steps(max(1, self.steps - 1))
        _, last = noise_ends(problem, prior)
        first = ABOVE_POSTERIOR * _width(noise_level(problem), prior.data_scale)
        return log_uniform(torch.maximum(first, last), last, steps, like=problem.y)

    def start(self, walk: Walk) -> Tensor:
        """Draw x about E[x0 | y], which is the denoised y, and the exact mean of the result."""
        mean = walk.keep_sound(walk.prior.denoise(walk.problem.y, walk.sigma_y), walk.problem.y)
        walk.mean = mean
        width = _width(walk.sigma_y, walk.prior.data_scale)
        std = (walk.sigmas[0] ** 2 + width**2).sqrt()
        return mean + per_row(std, mean) * walk.noise(mean)

    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        total = sigma**2 + walk.sigma_y**2
        w = per_row(sigma**2 / total, x)
        return walk.prior.denoise(
            w * walk.problem.y + (1 - w) * x, sigma * walk.sigma_y / total.sqrt()
        )


def _width(sigma_y: Tensor, data_std: float) -> Tensor:
    """Standard deviation of x0 given y for white data."""
    return sigma_y * data_std / (sigma_y**2 + data_std**2).sqrt()
