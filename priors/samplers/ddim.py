"""DDIM, and its two ends: Euler's method and ancestral sampling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from genprior.operators.random import Generators, normal
from genprior.priors.samplers.base import Observed, Sampler, per_step
from genprior.priors.samplers.steps import renewal, renewed


@dataclass(frozen=True)
class DDIM(Sampler):
    """First-order walk that renews a share of the noise.

        x' = x0 + sqrt(sigma'^2 - s^2) (x - x0) / sigma + s n
        s = eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2)

    eta = 0 is Euler's method for the probability flow, eta = 1 ancestral sampling (DDPM).

    Source: Song, Meng, Ermon 2021, arXiv:2010.02502, equations 12 and 16, in x / sqrt(alpha).
    """

    eta: float = 0.0

    def _walk(
        self, denoise: Observed, x: Tensor, sigmas: Tensor, generator: Generators
    ) -> Iterator[Tensor]:
        sigma, lower = sigmas[:-1], sigmas[1:]
        for i, (kept, fresh) in enumerate(per_step(x, *renewal(sigma, lower, self.eta))):
            x0 = denoise(x, sigmas[i], i)
            noise = None
            if self.eta > 0:
                noise = normal(x.shape, generator, dtype=x.dtype, device=x.device)
            x = renewed(x0, x, kept, fresh, noise)
            yield x


@dataclass(frozen=True)
class Euler(DDIM):
    """Euler's method for the probability flow in sigma, which is DDIM with eta = 0."""

    eta: float = field(default=0.0, init=False, repr=False)


@dataclass(frozen=True)
class DDPM(DDIM):
    """Ancestral sampling with the posterior variance (Ho et al. 2020), DDIM with eta = 1."""

    eta: float = field(default=1.0, init=False, repr=False)
