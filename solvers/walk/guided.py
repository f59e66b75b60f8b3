"""The base of methods that only say E[x0 | x_sigma, y]: any sampler walks down with it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers import DPMSolver, Sampler
from genprior.priors.samplers.steps import between, plus, renewed
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level


@dataclass(frozen=True)
class GuidedSolver(DiffusionSolver):
    """A method that approximates E[x0 | x_sigma, y], walked down by any sampler.

    Attributes:
        sampler: How sigma is walked down. With `returns` the walk is the probability flow by
            exponential Heun steps instead, as samplers that remember earlier steps cannot go
            back: one evaluation more in all, and two for each return.

    Source of the returns: Lugmayr et al. 2022, arXiv:2201.09865, section 4.2, with jumps of one
        level.
    """

    can_return: ClassVar[bool] = True

    sampler: Sampler = DPMSolver()  # noqa: RUF009 (frozen)

    @abstractmethod
    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the method's E[x0 | x_sigma = x, y], (R, C, H, W); sigma is (R,)."""

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        return noise_grid(problem, prior, self.sampler.steps(self.steps))

    def _guided(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        return walk.keep_sound(self.guide(walk, x, sigma), x)

    def descend(self, walk: Walk) -> Tensor:
        if self.returns:
            return self._descend_again(walk)
        return self.sampler(
            partial(self._guided, walk),
            self.start(walk),
            walk.sigmas,
            generator=walk.generators,
            callback=lambda step, sigma, x, x0: walk.record(x0),
        )

    def _descend_again(self, walk: Walk) -> Tensor:
        """Walk down, each level inside the window visited again."""
        low, high = (share * walk.prior.data_scale for share in self.window)
        x = self.start(walk)
        x0 = self._guided(walk, x, walk.sigmas[0])
        for i, (sigma, lower) in enumerate(pairwise(walk.sigmas)):
            walk.record(x0)
            x, x0 = self._step(walk, i, x, x0)
            inside = ((low <= lower) & (lower <= high)).nonzero()[:, 0]
            if not len(inside):
                continue
            rows = walk.take(inside)
            again, again0 = x[inside], x0[inside]
            climb = (sigma**2 - lower**2).clamp(min=0).sqrt()[inside]
            for _ in range(self.returns):
                above = plus(again, climb, rows.noise(again))
                above0 = self._guided(rows, above, rows.sigmas[i])
                again, again0 = self._step(rows, i, above, above0)
            x, x0 = x.index_copy(0, inside, again), x0.index_copy(0, inside, again0)
            if rows.doubted:
                walk.doubt(walk.sound.index_copy(0, inside, rows.sound))
        x0 = self._guided(walk, x, walk.sigmas[-1])
        walk.record(x0)
        return x0

    def _step(self, walk: Walk, i: int, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Go one level down the probability flow; return x and x0 there.

            x' = k x + (1 - k) [x0 + w (x0' - x0)],   k = sigma' / sigma,   h = -log k

        with w = (1 - (1 - k) / h) / (1 - k), which integrates a straight line from x0 to x0',
        and x0' from the step without it.
        """
        ((k,),) = per_level(x, (walk.sigmas[i + 1] / walk.sigmas[i])[None])
        w = (1 - (1 - k) / -k.log()) / (1 - k)
        w = torch.where(k < 1, w, 0.5)
        ahead = self._guided(walk, renewed(x0, x, k), walk.sigmas[i + 1])
        return renewed(between(x0, ahead, w), x, k), ahead
