"""What every sampler shares: a walk down the noise levels with any denoiser.

Everything is in the variance-exploding coordinate x_sigma = x0 + sigma n, where each method takes
its simplest form: DDPM and DDIM trained with another time are the same walk there. A sampler knows
nothing of priors: it walks down `sigmas` with any function denoise(x, sigma) -> E[x0 | x_sigma],
so posterior samplers reuse it with a guided one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from genprior.operators.random import Generators
from genprior.priors.samplers.grids import log_uniform

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""denoise(x (B, C, H, W), sigma 0-d or (B,)) -> x0 (B, C, H, W)."""

Callback = Callable[[int, Tensor, Tensor, Tensor], None]
"""callback(step, sigma, x, x0), after each evaluation that starts a step."""


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

    def grid(self, high: float, low: float, steps: int, *, like: Tensor) -> Tensor:
        """Space `steps` noise levels from high to low as serves this sampler, (steps,)."""
        return log_uniform(high, low, steps, like=like)

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
