"""RePaint: measured pixels are put back at every noise level, and harmonised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import Inpainting, Problem
from genprior.priors import samplers
from genprior.priors.samplers import DPMSolver
from genprior.priors.samplers.steps import plus, renewal, renewed
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import noise_ends
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level


@dataclass(frozen=True)
class RePaint(DiffusionSolver):
    """Inpainting by repeated denoising and noising.

        x' = ancestral step from x_t with x0 = denoise(x_t)
        x_{t-1} = x' where missing, y + sqrt(sigma_{t-1}^2 - sigma_y^2) n where measured
        x_t = x_{t-1} + sqrt(sigma_t^2 - sigma_{t-1}^2) n, and again, `repeats` times a level

    Noisy pixels are themselves a draw of x at the level sigma_y, so the levels end there, and an
    unconditional walk of the reverse diffusion draws x0 given that x.

    Attributes:
        steps: Network evaluations, a fifth of them below sigma_y.
        repeats: Times that each level above is walked.

    Source: Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1 (250 levels, 10 repeats, jumps of
        10 levels). Differs: jumps of one level; noisy measurements.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    repeats: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.repeats < self.steps:
            raise ValueError(
                f"RePaint: repeats must be 1 to steps - 1 ({self.steps - 1}), not {self.repeats}"
            )

    @staticmethod
    def _mask(problem: Problem) -> Tensor:
        if not isinstance(problem.operator, Inpainting):
            raise TypeError(
                f"RePaint is for Inpainting; {type(problem.operator).__name__} came. Try MMPS."
            )
        return problem.operator.mask

    def refuse(self, problem: Problem) -> None:
        super().refuse(problem)
        self._mask(problem)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        """Levels down to sigma_y, then those below it."""
        below = max(1, self.steps // 5)
        first, last = noise_ends(problem, prior)
        turn = torch.minimum(torch.maximum(last, problem.sigma), first)
        levels = max(1, (self.steps - below) // self.repeats)
        above = samplers.log_uniform(first, turn, levels + 1, like=problem.y)
        rest = samplers.log_uniform(turn, last, below, like=problem.y)
        return torch.cat([above[:-1], rest])

    def descend(self, walk: Walk) -> Tensor:
        below = max(1, self.steps // 5)
        rest = walk.sigmas[-below:]
        above = torch.cat([walk.sigmas[:-below], rest[:1]])
        y, mask = walk.problem.y, self._mask(walk.problem)
        x = self.start(walk)
        lower = above[1:]
        kept, fresh = renewal(above[:-1], lower)
        spread = (lower**2 - walk.sigma_y**2).clamp(min=0).sqrt()
        again = (above[:-1] ** 2 - lower**2).clamp(min=0).sqrt()
        levels = zip(above, per_level(x, kept, fresh, spread, again), strict=False)
        for sigma, (k, s, s_y, s_up) in levels:
            for repeat in range(self.repeats):
                x0 = walk.keep_sound(walk.prior.denoise(x, sigma), x)
                ahead = renewed(x0, x, k, s, walk.noise(x))
                x = self._put_back(mask, plus(y, s_y, walk.noise(x)), ahead)
                if repeat < self.repeats - 1:
                    x = plus(x, s_up, walk.noise(x))
            walk.record(x0)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return walk.keep_sound(walk.prior.denoise(x, sigma), x)

        return DPMSolver(stochastic=True)(
            denoise,
            x,
            rest,
            generator=walk.generators,
            callback=lambda step, sigma, x, x0: walk.record(x0),
        )

    @staticmethod
    def _put_back(mask: Tensor, measured: Tensor, ahead: Tensor) -> Tensor:
        return torch.where(mask, measured, ahead)
