"""The base of solvers that walk down the noise levels of a denoising prior."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Inpainting, Problem
from genprior.operators.base import per_row
from genprior.priors.base import DenoisingPrior, Prior
from genprior.solvers.base import MOST_STEPS, Counted, Solver
from genprior.solvers.chunks import WORST, Chunk, Solution
from genprior.solvers.fit import largest_misfit, misfit
from genprior.solvers.walk.levels import noise_grid
from genprior.solvers.walk.state import Walk


@dataclass(frozen=True)
class DiffusionSolver(Solver):
    """Base of the solvers that walk down the noise levels of a `DenoisingPrior`.

    A method gives `descend`, and where its own differ `levels`, `start` and `refuse`. The trace's
    last entry, at sigma 0, is of the images returned; where one of an image's samples is further
    from y than noise explains, `converged` is False.

    Attributes:
        steps: Noise levels, as many as there are network evaluations unless the solver says so.
        keep_measured: Return measured pixels unchanged; for inpainting without noise.
        antithetic: Draw samples in pairs with opposite noise. Each sample keeps its law, but what
            is linear in the noise cancels in a pair, so the mean of few comes near the
            posterior's; the two of a pair are not independent.
        returns: Times that noise is added back from each level inside `window` up to the one
            above and the step is taken again, which lets a walk change its mind between modes.
        window: Lowest and highest level for that, in standard deviations of the data.
    """

    can_return: ClassVar[bool] = False
    needs: ClassVar[tuple[type[Prior], ...]] = (DenoisingPrior,)

    steps: int = 100
    keep_measured: bool = False
    antithetic: bool = False
    returns: int = 0
    window: tuple[float, float] = (0.65, 6.5)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"{name}: steps must be from 1 to {MOST_STEPS}, not {self.steps}")
        if self.antithetic and (self.joint or self.point_estimate):
            raise ValueError(f"{name} draws no independent samples that antithetic could pair")
        if self.returns < 0 or not 0 <= self.window[0] <= self.window[1]:
            raise ValueError(
                f"{name}: returns must be at least 0 and window (low, high) with 0 <= low <= "
                f"high, not {self.returns} and {self.window}"
            )
        if self.returns and not self.can_return:
            raise ValueError(
                f"{name} cannot visit levels again: leave returns at 0, or take a guided solver, "
                "such as MMPS"
            )

    @abstractmethod
    def descend(self, walk: Walk) -> Tensor:
        """Walk down `walk.sigmas` and return x, (R, C, H, W); `walk.record` once a level."""

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        """Return the noise levels, (N, R), decreasing and > 0."""
        return noise_grid(problem, prior, self.steps)

    def start(self, walk: Walk) -> Tensor:
        """Draw x at the first level: mean data_mean, variance data_std^2 + sigma^2.

        Leaving out the data's own spread starts wrong wherever sigma does not dwarf it.
        """
        n = walk.noise(walk.problem.y.new_empty(walk.shape))
        mean, std = walk.prior.data_mean.to(n), walk.prior.data_std.to(n)
        return mean + (std**2 + per_row(walk.sigmas[0], n) ** 2).sqrt() * n

    def refuse(self, problem: Problem) -> None:
        """Raise where this method cannot serve the problem."""
        if not self.keep_measured:
            return
        exact = problem.linear_gaussian and bool((problem.sigma == 0).all())
        if not (isinstance(problem.operator, Inpainting) and exact):
            raise ValueError(
                "keep_measured=True is for Inpainting with GaussianNoise(0): noisy measurements "
                "are not the image's pixels"
            )

    @property
    def _paired(self) -> bool:
        return self.antithetic

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        problem = replace(chunk, samples=self._rows_per_image(chunk.samples)).rows
        self.refuse(problem)
        sigmas = self.levels(problem, prior)
        walk = Walk(
            problem=problem,
            prior=prior,
            sigmas=sigmas,
            shape=(len(problem.y), *chunk.image_shape),
            generators=chunk.image_generators if self.joint else chunk.generators,
            samples=chunk.samples,
            ticks=chunk.track(range(len(sigmas)), type(self).__name__),
        )
        return self._finish(walk, self.descend(walk))

    def _finish(self, walk: Walk, x: Tensor) -> Solution:
        count, samples = len(x) // walk.samples, walk.samples
        problem, sound = walk.problem, walk.sound
        if len(problem.y) > len(x):  # of each image's rows, as many as there are samples
            rows = torch.arange(len(problem.y), device=x.device)
            rows = rows.reshape(count, -1)[:, :samples].flatten()
            problem, sound = problem.take(rows), sound[rows]
        observed = problem.operator.observed
        if self.keep_measured and observed is not None:
            x = torch.where(observed, problem.y, x)

        def per_image(values: Tensor) -> Tensor:
            return values.reshape(*values.shape[:-1], count, -1).mean(-1)

        last = torch.where(sound, misfit(problem, x), torch.nan)
        worst = last.reshape(count, -1).amax(1)
        residual = per_image(walk.residuals())
        sigma = per_image(walk.sigmas[: len(residual)])
        return Solution(
            samples=x.reshape(count, samples, *x.shape[1:]),
            mean=None if walk.mean is None else walk.mean[::samples],
            converged=walk.sound.reshape(count, -1).all(1)
            & (worst <= largest_misfit(problem)[::samples]),
            trace={
                "sigma": torch.cat([sigma, torch.zeros_like(sigma[:1])]),
                "residual": torch.cat([residual, per_image(last)[None]]),
                WORST: worst[None],
            },
        )
