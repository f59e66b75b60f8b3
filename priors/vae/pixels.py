"""Distributions of an image given what a decoder outputs: Gaussian, Bernoulli, categorical."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.operators.random import Generators, normal, uniform
from genprior.priors.training import check_options, pick


class PixelDistribution(nn.Module, ABC):
    """p(x | output), pixels independent given the decoder's output.

    Attributes:
        outputs: Numbers that the decoder gives for each pixel value.
        config: Plain data that `from_config` rebuilds it from.
    """

    outputs: ClassVar[int] = 1

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    @property
    def std(self) -> Tensor | None:
        """Standard deviation of a pixel about its mean where it is one number, else None."""
        return None

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return E[x | output], (B, C, H, W), for output (B, outputs C, H, W)."""

    @abstractmethod
    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x | output) in nats, (B,)."""

    @abstractmethod
    def sample(self, output: Tensor, *, generator: Generators = None) -> Tensor:
        """Draw x given the output, (B, C, H, W)."""

    def observe(self, x: Tensor, *, generator: Generators = None) -> Tensor:
        """Return the data that training looks at, given grey images: the images themselves."""
        return x


class GaussianPixels(PixelDistribution):
    """x = mean + s n, n ~ N(0, I).

    Args:
        std: s in pixel units, the start where it is learned.
        learned: Train s, one number for all pixels; it settles at the reconstruction error.
        bounded: The mean is a sigmoid of the output; else the output itself.

    Source: Rybkin et al. 2021, arXiv:2006.13202, for the learned s (sigma-VAE).
    """

    def __init__(self, *, std: float = 0.1, learned: bool = True, bounded: bool = True) -> None:
        if not 0 < std <= 1:
            raise ValueError(f"std is in pixel units: it must be positive, at most 1, not {std}")
        super().__init__({"kind": "gaussian", "std": std, "learned": learned, "bounded": bounded})
        log_std = torch.tensor(math.log(std))
        self.log_std: Tensor = nn.Parameter(log_std) if learned else nn.Buffer(log_std)
        self.bounded = bounded

    @property
    def std(self) -> Tensor:
        return self.log_std.exp()

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.bounded else output

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        n = (x - self.mean(output)) / self.std
        log_scale = self.log_std + 0.5 * math.log(2 * math.pi)
        return (-0.5 * n.square() - log_scale).flatten(1).sum(1)

    def sample(self, output: Tensor, *, generator: Generators = None) -> Tensor:
        mean = self.mean(output)
        n = normal(mean.shape, generator, dtype=mean.dtype, device=mean.device)
        return mean + self.std * n


class BernoulliPixels(PixelDistribution):
    """x is 0 or 1, with P(x = 1) a sigmoid of the output; grey x counts as an expectation.

    Args:
        binarize: Training draws black and white images afresh from the grey ones at each sight
            (Salakhutdinov, Murray 2008); images of zeros and ones stay as they are.
    """

    def __init__(self, *, binarize: bool = False) -> None:
        super().__init__({"kind": "bernoulli", "binarize": binarize})
        self.binarize = binarize

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return x log p + (1 - x) log(1 - p), summed, (B,).

        Raises:
            ValueError: x is outside [0, 1].
        """
        if bool(((x < 0) | (x > 1)).any()):
            raise ValueError(
                "a Bernoulli decoder takes pixels in [0, 1]; these reach from "
                f"{float(x.min()):.3g} to {float(x.max()):.3g}: rescale them, or take a Gaussian "
                "decoder"
            )
        return -F.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)

    def sample(self, output: Tensor, *, generator: Generators = None) -> Tensor:
        return self._draw(self.mean(output), generator)

    def observe(self, x: Tensor, *, generator: Generators = None) -> Tensor:
        return self._draw(x, generator) if self.binarize else x

    @staticmethod
    def _draw(p: Tensor, generator: Generators) -> Tensor:
        return (uniform(p.shape, generator, dtype=p.dtype, device=p.device) < p).to(p.dtype)


class CategoricalPixels(PixelDistribution):
    """x is one of 256 levels k / 255, each with its own probability (softmax).

    Its log-densities are log-probabilities of the levels: for a density with respect to pixels
    in [0, 1], dequantised uniformly, add log 256 for each pixel value.

    Source: van den Oord et al. 2016, arXiv:1601.06759, Section 3.3.
    """

    outputs: ClassVar[int] = 256

    def __init__(self) -> None:
        super().__init__({"kind": "categorical"})

    def _logits(self, output: Tensor) -> Tensor:
        return output.unflatten(1, (self.outputs, -1))

    def mean(self, output: Tensor) -> Tensor:
        levels = torch.linspace(0, 1, self.outputs, dtype=output.dtype, device=output.device)
        return torch.einsum("bk...,k->b...", self._logits(output).softmax(1), levels)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the log-probability of the levels nearest to x, (B,).

        Raises:
            ValueError: x is outside [0, 1].
        """
        level = (x * (self.outputs - 1)).round().long()
        if bool(((level < 0) | (level >= self.outputs)).any()):
            raise ValueError(
                f"a categorical decoder takes pixels in [0, 1]; these reach from "
                f"{float(x.min()):.3g} to {float(x.max()):.3g}: rescale them"
            )
        return -F.cross_entropy(self._logits(output), level, reduction="none").flatten(1).sum(1)

    def sample(self, output: Tensor, *, generator: Generators = None) -> Tensor:
        cumulative = self._logits(output).softmax(1).cumsum(1)
        shape = (len(output), *cumulative.shape[2:])
        u = uniform(shape, generator, dtype=output.dtype, device=output.device)
        level = (cumulative < u[:, None]).sum(1).clamp(max=self.outputs - 1)
        return level.to(output.dtype) / (self.outputs - 1)


_KINDS = {
    "gaussian": GaussianPixels,
    "bernoulli": BernoulliPixels,
    "categorical": CategoricalPixels,
}


def from_config(config: dict[str, Any]) -> PixelDistribution:
    """Build the distribution that `config` describes: its 'kind' and its options.

    Raises:
        ValueError: The kind is unknown.
    """
    kind, options = pick("pixels", config, _KINDS)
    check_options("pixels", options, kind)
    return kind(**options)
