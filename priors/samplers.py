"""Unconditional samplers: how a walk goes down the noise levels.

Everything is in the variance-exploding coordinate x_sigma = x0 + sigma n, where each method takes
its simplest form: DDPM and DDIM trained with another time are the same walk there. A sampler knows
nothing of priors: it walks down `sigmas` with any function denoise(x, sigma) -> E[x0 | x_sigma],
so posterior samplers reuse it with a guided one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal
from genprior.priors.base import DenoisingPrior

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""denoise(x (B, C, H, W), sigma 0-d or (B,)) -> x0 (B, C, H, W)."""

Callback = Callable[[int, Tensor, Tensor, Tensor], None]
"""callback(step, sigma, x, x0), after each evaluation that starts a step."""


def log_uniform(
    sigma_max: float | Tensor, sigma_min: float | Tensor, steps: int, *, like: Tensor | None = None
) -> Tensor:
    """Space `steps` noise levels evenly in log sigma, from sigma_max down to sigma_min.

    Returns:
        (steps,), or (steps, B) where an end is (B,).
    """
    return _between(sigma_max, sigma_min, steps, torch.log, torch.exp, like)


def rho_grid(
    sigma_max: float | Tensor,
    sigma_min: float | Tensor,
    steps: int,
    *,
    rho: float = 7.0,
    like: Tensor | None = None,
) -> Tensor:
    """Space `steps` noise levels evenly in sigma^(1/rho), as `log_uniform` does in log sigma.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    return _between(sigma_max, sigma_min, steps, lambda s: s ** (1 / rho), lambda s: s**rho, like)


def _between(
    sigma_max: float | Tensor,
    sigma_min: float | Tensor,
    steps: int,
    to: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    like: Tensor | None,
) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    kind = {} if like is None else {"dtype": like.dtype, "device": like.device}
    high, low = (torch.as_tensor(s, **kind) for s in (sigma_max, sigma_min))
    if not bool((high >= low).all() and (low > 0).all()):
        raise ValueError(f"need sigma_max >= sigma_min > 0, not {sigma_max} and {sigma_min}")
    high, low = torch.broadcast_tensors(high, low)
    weight = torch.linspace(0, 1, steps, **kind).reshape(-1, *[1] * high.ndim)
    return back(to(high) * (1 - weight) + to(low) * weight)


def start(
    prior: DenoisingPrior,
    shape: tuple[int, ...],
    sigma: float | Tensor,
    *,
    generator: Generators = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw x_sigma for a large sigma: mean data_mean, variance data_std^2 + sigma^2.

    A start of variance sigma^2 alone is wrong wherever the data's spread is not negligible.
    """
    noise = normal(shape, generator, dtype=dtype, device=device)
    mean, std = (t.to(noise) for t in (prior.data_mean, prior.data_std))
    return mean + (std**2 + per_row(sigma, noise) ** 2).sqrt() * noise


def walk_range(prior: DenoisingPrior) -> tuple[float, float]:
    """Return the ends of a walk, within the prior's range.

    Beyond 80 data standard deviations nothing of the image is left; below 1/250 nothing of the
    noise.
    """
    std = prior.data_std.mean().item()
    low, high = prior.sigma_range
    return max(low, 0.004 * std), min(high, 80 * std)


def sample(
    prior: DenoisingPrior,
    n: int,
    *,
    size: tuple[int, int] | None = None,
    generator: Generators = None,
    steps: int = 18,
    sampler: Sampler | None = None,
) -> Tensor:
    """Draw n images from any denoising prior, (n, C, H, W), in its own dtype and device.

    Args:
        prior: Only its denoiser is used.
        n: Number of images.
        size: (H, W), needed where the prior's shape has None, else it must agree.
        generator: None, one generator, or one for each image.
        steps: Network evaluations for each image.
        sampler: DPM-Solver++(2M) if None.
    Raises:
        ValueError: The size is missing, or is not the prior's.
    """
    shape = prior.check_size(size)
    sampler = sampler if sampler is not None else DPMSolver()
    like = next(prior.parameters(), prior.data_mean)
    low, high = walk_range(prior)
    sigmas = rho_grid(high, low, sampler.steps(steps), like=like)
    kind = {"dtype": like.dtype, "device": like.device}
    x = start(prior, (n, *shape), high, generator=generator, **kind)
    with torch.no_grad():
        return sampler(prior.denoise, x, sigmas, generator=generator)


@dataclass(frozen=True)
class Sampler(ABC):
    """A walk from x at sigmas[0] to x0."""

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
        to_zero: bool = True,
    ) -> Tensor:
        """Walk down.

        Args:
            denoise: E[x0 | x_sigma].
            x: Images at noise level sigmas[0], (B, C, H, W).
            sigmas: Decreasing and > 0, (N,) or (N, B); deterministic walks also go up.
            generator: None, one generator, or one for each row.
            callback: Called at the start of each step with (step, sigma, x, x0).
            to_zero: End with x0 = denoise(x, sigmas[-1]), one more evaluation; else at sigmas[-1].
        Returns:
            (B, C, H, W).
        """
        sigmas = sigmas.to(x)
        for lower in self._walk(Observed(denoise, callback), x, sigmas, generator):
            x = lower
        if to_zero:
            x0 = denoise(x, sigmas[-1])
            if callback is not None:
                callback(len(sigmas) - 1, sigmas[-1], x, x0)
            return x0
        return x

    @abstractmethod
    def _walk(
        self, denoise: Observed, x: Tensor, sigmas: Tensor, generator: Generators
    ) -> Iterator[Tensor]:
        """Yield x at sigmas[1], sigmas[2], ..."""

    def steps(self, evaluations: int) -> int:
        """Return the length of the grid that spends `evaluations` network evaluations."""
        return evaluations


def per_step(x: Tensor, *coefficients: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut coefficients (N,) or (N, B) into those of each step, shaped to multiply x (B, ...)."""
    shaped = (c if c.ndim == 1 else c.reshape(*c.shape, *[1] * (x.ndim - 1)) for c in coefficients)
    return list(zip(*(c.unbind() for c in shaped), strict=True))


class Observed:
    """A denoiser that reports the evaluation which starts a step."""

    def __init__(self, denoise: Denoiser, callback: Callback | None) -> None:
        self.inner = denoise
        self.callback = callback

    def __call__(self, x: Tensor, sigma: Tensor, step: int | None = None) -> Tensor:
        x0 = self.inner(x, sigma)
        if self.callback is not None and step is not None:
            self.callback(step, sigma, x, x0)
        return x0


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
        renewed = self.eta * lower / sigma * (sigma**2 - lower**2).clamp(min=0).sqrt()
        kept = (lower**2 - renewed**2).clamp(min=0).sqrt() / sigma
        for i, (k, s) in enumerate(per_step(x, kept, renewed)):
            x0 = denoise(x, sigmas[i], i)
            x = x0.lerp(x, k)
            if self.eta > 0:
                noise = normal(x.shape, generator, dtype=x.dtype, device=x.device)
                x = torch.addcmul(x, s, noise)
            yield x


def Euler() -> DDIM:
    """Euler's method for the probability flow in sigma, which is DDIM with eta = 0."""
    return DDIM(eta=0.0)


def DDPM() -> DDIM:
    """Ancestral sampling with the posterior variance (Ho et al. 2020), DDIM with eta = 1."""
    return DDIM(eta=1.0)


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
                x = torch.addcmul(x, up, noise)
            slope = (x - denoise(x, raised[i], i)) / now
            ahead = torch.addcmul(x, step, slope)
            slope_ahead = (ahead - denoise(ahead, lower[i])) / then
            x = torch.addcmul(x, step, slope.lerp(slope_ahead, 0.5))
            yield x

    def steps(self, evaluations: int) -> int:
        return (evaluations + 1) // 2


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
            extrapolated = x0 if before is None else x0.lerp(before, b)
            x = x.lerp(extrapolated, g)
            if self.stochastic:
                noise = normal(x.shape, generator, dtype=x.dtype, device=x.device)
                x = torch.addcmul(x, s, noise)
            before = x0
            yield x
