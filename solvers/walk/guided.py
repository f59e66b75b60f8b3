"""The base of methods that only say E[x0 | x_sigma, y]: any sampler walks down with it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers import DPMSolver, Sampler
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk


@dataclass(frozen=True)
class GuidedSolver(DiffusionSolver):
    """A method that approximates E[x0 | x_sigma, y], walked down by any sampler.

    Attributes:
        sampler: How sigma is walked down.
    """

    sampler: Sampler = DPMSolver()  # noqa: RUF009 (frozen)

    @abstractmethod
    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the method's E[x0 | x_sigma = x, y], (R, C, H, W); sigma is (R,)."""

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        return noise_grid(problem, prior, self.sampler.steps(self.steps))

    def descend(self, walk: Walk) -> Tensor:
        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            return walk.keep_sound(self.guide(walk, x, sigma), x)

        return self.sampler(
            guided,
            self.start(walk),
            walk.sigmas,
            generator=walk.generators,
            callback=lambda step, sigma, x, x0: walk.record(x0),
        )
