"""Conditioning in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genprior.priors.base import ExactPrior, Prior
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import Chunk, Solution


@dataclass(frozen=True)
class ExactPosterior(Solver):
    """Draw independent exact samples from p(x | y); mean and standard deviation are exact.

    For priors whose posterior is known in closed form, linear operators and Gaussian noise.

    Source: conditional Gaussians (Rasmussen, Williams 2006, appendix A.2) and mixtures of them;
        for stationary textures kriging (Galerne, Leclaire 2017).
    """

    needs: ClassVar[tuple[type[Prior], ...]] = (ExactPrior,)
    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        posterior = prior.posterior(chunk.problem)
        tasks = getattr(posterior, "tasks", list)()
        for task in chunk.track(tasks, "ExactPosterior") if tasks else ():
            task()
        return Solution(
            samples=posterior.sample(chunk.samples, generator=chunk.image_generators),
            mean=posterior.mean,
            std=posterior.std,
        )
