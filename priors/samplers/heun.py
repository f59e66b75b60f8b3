"""Heun's method with churn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.random import Generators, normal
from genprior.priors.samplers.base import Observed, Sampler, per_step
from genprior.priors.samplers.grids import rho_grid
from genprior.priors.samplers.steps import between, plus


@dataclass(frozen=True)
class Heun(Sampler):
    """Second-order walk with churn, two evaluations a step.

    Attributes:
        churn: S_churn, noise added back over the whole walk; 0 is deterministic.
        churn_range: Noise levels (S_tmin, S_tmax) where churn acts, pixel units.
        churn_noise: S_noise, scale of the added noise.

    Source: Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2.
    """

    churn: float = 0.0
    churn_range: tuple[float, float] = (0.0, math.inf)
    churn_noise: float = 1.0

    def _walk(
        self, denoise: Observed, x: Tensor, sigmas: Tensor, generator: Generators
    ) -> Iterator[Tensor]:
        low, high = self.churn_range
        gamma = min(self.churn / len(sigmas), math.sqrt(2) - 1)
        sigma, lower = sigmas[:-1], sigmas[1:]
        raised = torch.where((sigma >= low) & (sigma <= high), sigma * (1 + gamma), sigma)
        added = self.churn_noise * (raised**2 - sigma**2).sqrt()
        levels = per_step(x, added, raised, lower, lower - raised)
        for i, (up, now, then, step) in enumerate(levels):
            if self.churn > 0:
                noise = normal(x.shape, generator, dtype=x.dtype, device=x.device)
                x = plus(x, up, noise)
            slope = (x - denoise(x, raised[i], i)) / now
            ahead = plus(x, step, slope)
            slope_ahead = (ahead - denoise(ahead, lower[i])) / then
            x = plus(x, step, between(slope, slope_ahead, 0.5))
            yield x

    def grid(self, high: float, low: float, steps: int, *, like: Tensor) -> Tensor:
        return rho_grid(high, low, steps, like=like)

    def steps(self, evaluations: int) -> int:
        return (evaluations + 1) // 2
