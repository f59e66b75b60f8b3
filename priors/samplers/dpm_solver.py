"""DPM-Solver++(2M), for the probability flow or the reverse diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.random import Generators, normal
from genprior.priors.samplers.base import Observed, Sampler, per_step
from genprior.priors.samplers.steps import between, plus


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M): a second-order multistep walk in log sigma, one evaluation a step.

        x' = (sigma' / sigma) x + (1 - sigma' / sigma) [x0 + (x0 - x0_before) / (2 r)]
        r = log(sigma_before / sigma) / log(sigma / sigma')

    Attributes:
        stochastic: Solve the reverse diffusion instead of the probability flow: e^-2h takes the
            place of e^-h = sigma' / sigma, and fresh noise keeps the variance.

    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2 and, stochastic, appendix B.
    """

    stochastic: bool = False

    def _walk(
        self, denoise: Observed, x: Tensor, sigmas: Tensor, generator: Generators
    ) -> Iterator[Tensor]:
        sigma, lower = sigmas[:-1], sigmas[1:]
        h = (sigma / lower).log()
        rate = 2 if self.stochastic else 1
        gain = -torch.expm1(-rate * h)
        fresh = lower * gain.clamp(min=0).sqrt()  # rounding can turn a step of length zero
        # 1 / (2 r); a step of length zero has no slope to follow.
        h_before = h.roll(1, 0)
        slope = torch.where(h_before == 0, 0, h / (2 * h_before))
        before: Tensor | None = None
        for i, (g, s, b) in enumerate(per_step(x, gain, fresh, -slope)):
            x0 = denoise(x, sigmas[i], i)
            extrapolated = x0 if before is None else between(x0, before, b)
            x = between(x, extrapolated, g)
            if self.stochastic:
                noise = normal(x.shape, generator, dtype=x.dtype, device=x.device)
                x = plus(x, s, noise)
            before = x0
            yield x
