"""How a clean measurement becomes the one that was recorded."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal, poisson


def _seen(values: Tensor, observed: Tensor | None) -> Tensor:
    """`values` with zeros where nothing is observed."""
    return values if observed is None else torch.where(observed, values, torch.zeros_like(values))


def _check(name: str, value: float | Tensor, *, positive: bool) -> None:
    tensor = torch.as_tensor(value)
    if tensor.ndim > 1:
        raise ValueError(f"{name} must be a float or (B,), not of shape {tuple(tensor.shape)}")
    legal = tensor > 0 if positive else tensor >= 0
    if not bool((legal & tensor.isfinite()).all()):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"{name} must be finite and {bound}, but {value} came")


@dataclass(frozen=True, eq=False)
class Noise(ABC):
    """What every noise model promises. A field is a float or (B,), one for each image."""

    @property
    def rows(self) -> int | None:
        """Number of images that per-image parameters are held for; None where shared."""
        return next((len(value) for value in self._each().values()), None)

    @abstractmethod
    def sample(
        self, clean: Tensor, *, observed: Tensor | None = None, generator: Generators = None
    ) -> Tensor:
        """Draw y given the clean measurement (B, ...); zeros where nothing is observed."""

    @abstractmethod
    def log_likelihood(
        self, y: Tensor, clean: Tensor, *, observed: Tensor | None = None
    ) -> Tensor:
        """Return log p(y | clean) over the observed entries in nats, (B,)."""

    def take(self, index: Tensor) -> Self:
        """Return a copy with the rows `index` of per-image parameters."""
        each = self._each()
        return replace(self, **{k: v[index] for k, v in each.items()}) if each else self

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return a copy with tensors on `device` in `dtype`."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        moved = {k: v.to(device=device, dtype=dtype) for k, v in tensors.items()}
        return replace(self, **moved)

    def _each(self) -> dict[str, Tensor]:
        """The parameters that are given for each image."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return {k: v for k, v in tensors.items() if v.ndim and len(v) > 1}


@dataclass(frozen=True, eq=False)
class GaussianNoise(Noise):
    """y = clean + sigma n,  n ~ N(0, I).

    Args:
        sigma: Standard deviation in pixel units, float or (B,), >= 0.
    """

    sigma: float | Tensor

    def __post_init__(self) -> None:
        _check("sigma", self.sigma, positive=False)

    def sample(
        self, clean: Tensor, *, observed: Tensor | None = None, generator: Generators = None
    ) -> Tensor:
        n = normal(clean.shape, generator, dtype=clean.dtype, device=clean.device)
        return _seen(clean + per_row(self.sigma, clean) * n, observed)

    def log_likelihood(
        self, y: Tensor, clean: Tensor, *, observed: Tensor | None = None
    ) -> Tensor:
        """Return log N(y; clean, sigma^2 I) over the observed entries in nats, (B,).

        Raises:
            ValueError: sigma is 0, where y given clean has no density.
        """
        if bool((torch.as_tensor(self.sigma) == 0).any()):
            raise ValueError(
                "with sigma = 0 there is no likelihood density; give the noise a small sigma "
                "(1e-3 is a quarter of an 8-bit grey level) or use Problem.residual"
            )
        sigma = per_row(self.sigma, clean)
        # Masked before the square: NaN in y where nothing is observed must not reach gradients.
        z = _seen(y - clean, observed) / sigma
        log_scale = _seen((sigma.log() + 0.5 * math.log(2 * math.pi)).expand_as(z), observed)
        return (-0.5 * z**2 - log_scale).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class PoissonNoise(Noise):
    """y = Poisson(peak clean) / peak: photon counting.

    Args:
        peak: Mean count of a pixel of value 1, float or (B,), > 0.
    """

    peak: float | Tensor

    def __post_init__(self) -> None:
        _check("peak", self.peak, positive=True)

    def sample(
        self, clean: Tensor, *, observed: Tensor | None = None, generator: Generators = None
    ) -> Tensor:
        """Draw y as `Noise.sample` says.

        Raises:
            ValueError: An observed entry of `clean` is negative.
        """
        rate = _seen(clean, observed) * per_row(self.peak, clean)
        if bool((rate < 0).any()):
            raise ValueError(
                f"a Poisson rate cannot be negative, but clean reaches {float(rate.min()):.3g} "
                "in counts: shift or clip the image first"
            )
        return poisson(rate, generator) / per_row(self.peak, clean)

    def log_likelihood(
        self, y: Tensor, clean: Tensor, *, observed: Tensor | None = None
    ) -> Tensor:
        """Return the log probability of the counts peak y, (B,).

        It is -inf where a rate is negative, or zero with a count. Between whole counts the
        factorial is continued by the gamma function.
        """
        counts = _seen(y, observed) * per_row(self.peak, y)
        rate = _seen(clean, observed) * per_row(self.peak, clean)
        # 0 log 0 = 0, in the gradient too.
        log_rate = torch.where(counts > 0, rate, torch.ones_like(rate)).log()
        log_probability = counts * log_rate - rate - torch.lgamma(counts + 1)
        impossible = (rate < 0) | (counts < 0)
        return log_probability.masked_fill(impossible, -torch.inf).flatten(1).sum(1)
