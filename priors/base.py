"""What a generative prior promises: small abstract classes, one for each capability.

A class line is its capability table: `class Gaussian(LatentPrior, EncodingPrior, ...)`. A class
that forgets a method cannot be built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from genprior.operators.base import Shape, per_row
from genprior.operators.random import Generators

if TYPE_CHECKING:
    from genprior.operators import Problem


class Prior(nn.Module, ABC):
    """A distribution over images (B, C, H, W) with pixels in [0, 1] (or on the real line).

    Attributes:
        image_shape: (C, H, W); H and W are None where any size will do.
        families: Every concrete prior class by its name, third parties' included: how a weights
            file finds its class.
    """

    image_shape: Shape
    families: ClassVar[dict[str, type[Prior]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Prior.families[cls.__name__] = cls

    def __repr__(self) -> str:
        numbers = sum(t.numel() for t in self.state_dict().values())
        sizes = " x ".join("any" if n is None else str(n) for n in self.image_shape)
        return f"{type(self).__name__}({sizes}, {numbers:,} numbers; {capabilities(self)})"

    @abstractmethod
    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        """Draw n images, (n, C, H, W).

        Args:
            n: Number of images.
            size: (H, W), needed where `image_shape` has None, else it must agree.
            generator: None, one generator, or one for each image.
        """

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """Return (C, H, W) of an image of `size`.

        Raises:
            ValueError: `size` is missing where the prior leaves it open, or contradicts it.
        """
        channels, *known = self.image_shape
        wanted = tuple(size) if size is not None else tuple(known)
        fits = len(wanted) == 2 and all(
            want is not None and want > 0 and has in (None, want)
            for has, want in zip(known, wanted, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{type(self).__name__} has images {self.image_shape} (None is any size) and "
                f"size={size} came: give size=(H, W) where it has None, else leave it out"
            )
        return channels, *wanted  # type: ignore[return-value]  # None was ruled out

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain data (JSON) from which `from_config` rebuilds the prior, weights aside."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Prior:
        """Build the prior that `config` describes, its weights still to be loaded."""
        return cls(**config)

    def save(
        self,
        path: str | Path,
        *,
        card: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write weights, config and card to one safetensors file.

        Args:
            path: Where; an existing file is replaced atomically.
            card: Plain data on the weights: data, its licence, steps, seconds, measured figures.
            dtype: Floating-point type on disk, that of the weights if None.
        """
        from genprior.priors.files import write_prior

        write_prior(self, path, card=card, dtype=dtype)


class LatentPrior(Prior):
    """x = decode(z) with z ~ N(0, I): GANs, VAEs, flows, and whatever else has a latent."""

    latent_shape: tuple[int, ...]

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Map latents (B, *latent_shape) to images (B, C, H, W), differentiably."""

    def latent_log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; 0, I) in nats, (B,)."""
        flat = z.flatten(1)
        log_two_pi = torch.log(torch.tensor(2 * torch.pi, dtype=z.dtype, device=z.device))
        return -0.5 * (flat.square().sum(1) + flat.shape[1] * log_two_pi)


class EncodingPrior(Prior):
    """Has an encoder x -> z. `exact_encoder`: decode(encode(x)) = x, as for a flow."""

    exact_encoder: ClassVar[bool]

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to latents (B, *latent_shape)."""


class DensityPrior(Prior):
    """Has an exact density."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,), density with respect to pixels in [0, 1]."""


class DenoisingPrior(Prior):
    """Gives the posterior mean under Gaussian noise of every level.

    Attributes:
        sigma_range: Smallest and largest sigma that `denoise` serves, pixel units; 0 is always
            served besides (it returns x).
        data_mean: Mean image, broadcasts to (C, H, W).
        data_std: Standard deviation of a pixel about `data_mean`, broadcasts likewise. A walk
            started at sigma_max has mean data_mean and variance data_std^2 + sigma_max^2.
    """

    sigma_range: tuple[float, float]
    data_mean: Tensor
    data_std: Tensor

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return E[x0 | x0 + sigma n = x], n ~ N(0, I), differentiable in x.

        Args:
            x: Noisy images, (B, C, H, W).
            sigma: Noise std in pixel units, float or (B,), >= 0; where 0, x itself returns.
        """

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return grad log p_sigma(x) = (denoise(x, sigma) - x) / sigma^2 (Tweedie), sigma > 0."""
        return (self.denoise(x, sigma) - x) / per_row(sigma, x) ** 2


class Posterior(Protocol):
    """p(x | y) in closed form for B measurements; S samples each."""

    @property
    def mean(self) -> Tensor:
        """Posterior mean, (B, C, H, W)."""
        ...

    @property
    def std(self) -> Tensor | None:
        """Posterior standard deviation of every pixel, (B, C, H, W); None where too costly."""
        ...

    @property
    def log_evidence(self) -> Tensor:
        """log p(y) in nats, observed entries only, (B,)."""
        ...

    def sample(self, n: int, *, generator: Generators = None) -> Tensor:
        """Draw n exact samples for each measurement, (B, n, C, H, W)."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | y) in nats for x (B, C, H, W), (B,)."""
        ...


class ExactPrior(Prior):
    """Has its posterior in closed form for linear operators and Gaussian noise."""

    @abstractmethod
    def posterior(self, problem: Problem) -> Posterior:
        """Condition on `problem`.

        Raises:
            TypeError: The operator is not linear or the noise is not Gaussian.
            ValueError: The problem does not fit the prior.
        """


def capabilities(prior: Prior) -> str:
    """Say in words what a prior can do: 'latent, encoder'."""
    named = {
        "latent": LatentPrior,
        "encoder": EncodingPrior,
        "density": DensityPrior,
        "denoiser": DenoisingPrior,
        "exact posterior": ExactPrior,
    }
    words = [name for name, kind in named.items() if isinstance(prior, kind)]
    return ", ".join(words) or "samples only"
