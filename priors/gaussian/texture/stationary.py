"""Textures as stationary normal laws, learnt from one image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genprior.operators import Problem
from genprior.operators.base import Shape
from genprior.operators.memo import Memo
from genprior.operators.random import Generators, normal
from genprior.priors.base import DenoisingPrior, DensityPrior, ExactPrior, LatentPrior
from genprior.priors.gaussian.conditioning import check_linear_gaussian
from genprior.priors.gaussian.gaussian import SIGMA_MIN
from genprior.priors.gaussian.low_rank import as_residual
from genprior.priors.gaussian.texture.posterior import StationaryPosterior
from genprior.priors.gaussian.texture.torus import TorusNormal

TAPER = 0.1
"""Share of a spot's side over which it fades out where it is extended by zeros."""


class StationaryGaussian(LatentPrior, DensityPrior, DenoisingPrior, ExactPrior):
    """A texture x = m + t * w + r n: spot t, one white noise field w for all channels.

    The law is periodic on the domain (H, W). Its latent z has one channel, w; with a residual
    r > 0 it has 1 + C, and n follows w. Without residual there is no density: the C channels are
    functions of one field.

    Args:
        mean: m, the mean colour, (C,).
        spot: t, (C, H, W).
        residual: r >= 0, pixel units.
    Raises:
        ValueError: Shapes do not fit, or the residual is negative.
    Source: Galerne, Gousseau, Morel 2011, "Random phase textures: theory and synthesis".
    """

    def __init__(self, mean: Tensor, spot: Tensor, *, residual: float | Tensor = 0.0) -> None:
        super().__init__()
        if spot.ndim != 3 or mean.shape != spot.shape[:1]:
            raise ValueError(
                f"mean must be (C,) and spot (C, H, W); {tuple(mean.shape)} and "
                f"{tuple(spot.shape)} came"
            )
        channels, height, width = spot.shape
        self.image_shape: Shape = (channels, height, width)
        self.latent_shape: tuple[int, ...] = (1 + channels * (float(residual) > 0), height, width)
        self.mean: Tensor = nn.Buffer(mean.detach().clone())
        self.spot: Tensor = nn.Buffer(spot.detach().clone())
        self.residual: Tensor = nn.Buffer(as_residual(residual, spot))
        self._law = Memo()

    @classmethod
    def fit(cls, image: Tensor, *, residual: float = 0.0) -> StationaryGaussian:
        """Take mean and spot from one image (C, H, W).

        The spot is t = (p - mean) / sqrt(H W), p the periodic component of the image: a texture
        made of the image itself would show a cross from the jumps at its borders.

        Raises:
            ValueError: The image is not (C, H, W).
        Source: Galerne, Gousseau, Morel 2011; Moisan 2011 (periodic plus smooth decomposition).
        """
        if image.ndim != 3:
            raise ValueError(f"a texture is fitted to one image (C, H, W), not {image.shape}")
        periodic = image - smooth_component(image)
        mean = periodic.mean((1, 2))
        spot = (periodic - mean[:, None, None]) / math.sqrt(image[0].numel())
        return cls(mean, spot, residual=residual)

    def extended(self, size: tuple[int, int]) -> StationaryGaussian:
        """Return the texture on a larger domain (H, W), its spot faded out into zeros.

        Raises:
            ValueError: `size` is smaller than the domain.
        """
        channels, height, width = self.spot.shape
        if tuple(size) == (height, width):
            return self
        if size[0] < height or size[1] < width:
            raise ValueError(f"the domain {(height, width)} cannot shrink to {tuple(size)}")
        down, across = (_fade(n, wanted) for n, wanted in zip((height, width), size, strict=True))
        window = (down[:, None] * across).to(self.spot)
        # a spot of sum zero keeps the mean colour of every sample; its energy keeps the contrast
        sums = (self.spot * window).sum((1, 2), keepdim=True)
        faded = window * (self.spot - sums / window.sum())
        energy = self.spot.square().sum((1, 2), keepdim=True)
        faded = faded * (energy / faded.square().sum((1, 2), keepdim=True).clamp(min=1e-30)).sqrt()
        padded = self.spot.new_zeros(channels, *size)
        padded[:, :height, :width] = faded
        return StationaryGaussian(self.mean, padded, residual=self.residual)

    @property
    def config(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "residual": float(self.residual)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StationaryGaussian:
        shape = tuple(config["image_shape"])
        return cls(torch.zeros(shape[0]), torch.zeros(shape), residual=config["residual"])

    def law(self, dtype: torch.dtype) -> TorusNormal:
        """The law on images of the domain."""
        return self._law.get(
            dtype,
            (self.mean, self.spot, self.residual),
            lambda: TorusNormal(
                self.mean.to(dtype)[:, None, None], self.spot.to(dtype), self.residual.to(dtype)
            ),
        )

    def _synthesis(self, height: int, width: int) -> StationaryGaussian:
        """The texture on a domain that holds (height, width)."""
        return self.extended((max(height, self.spot.shape[1]), max(width, self.spot.shape[2])))

    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        """Draw n textures of any size, (n, C, H, W): asymptotic discrete spot noise.

        Beyond the domain the spot is extended by zeros; a smaller size is cut from the domain.
        """
        height, width = size or self.spot.shape[1:]
        prior = self._synthesis(height, width)
        shape = (n, *prior.latent_shape)
        z = normal(shape, generator, dtype=self.spot.dtype, device=self.spot.device)
        return prior.decode(z)[..., :height, :width]

    def random_phase(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        """Draw n textures of any size by random phase: the spot's spectrum, phases uniform.

        Not normal, but closer to the image's own spectrum than `sample`; no residual is added.
        """
        height, width = size or self.spot.shape[1:]
        law = self._synthesis(height, width).law(self.spot.dtype)
        shape = (n, 1, *law.size)
        white = normal(shape, generator, dtype=self.spot.dtype, device=self.spot.device)
        phase = torch.sgn(torch.fft.rfft2(white))  # of a real field, so symmetric
        texture = torch.fft.irfft2(law.transform * phase, s=law.size)
        return (law.mean + math.sqrt(math.prod(law.size)) * texture)[..., :height, :width]

    def decode(self, z: Tensor) -> Tensor:
        return self.law(z.dtype).sample(z)

    def check_density(self, what: str) -> None:
        """Raise a ValueError unless there is a density, which `what` needs."""
        if float(self.residual) == 0:
            raise ValueError(
                f"{what} needs a residual > 0: without one the channels share one random field "
                "and frequencies that the spot lacks do not vary"
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,).

        Raises:
            ValueError: The residual is 0.
        """
        self.check_density("log_prob")
        return self.law(x.dtype).log_prob(x)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        variance = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square()
        return self.law(x.dtype).denoise(x, variance)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Up to ten times the std of the strongest frequency."""
        widest = float(self.law(self.spot.dtype).power.max() + self.residual.square()) ** 0.5
        return SIGMA_MIN, max(100 * SIGMA_MIN, 10 * widest)

    @property
    def data_mean(self) -> Tensor:
        return self.mean[:, None, None]

    @property
    def data_std(self) -> Tensor:
        energy = self.spot.square().sum((1, 2), keepdim=True)
        return (energy + self.residual.square()).sqrt()

    def posterior(self, problem: Problem) -> StationaryPosterior:
        """Condition on `problem`: kriging, and simulation by Matheron's rule."""
        check_linear_gaussian(self, problem)
        return StationaryPosterior(self, problem)


def smooth_component(image: Tensor) -> Tensor:
    """Return the smooth s of mean zero for which image - s has no jumps across its borders.

    Its periodic Laplacian is that of the jumps between opposite borders of image (C, H, W).
    """
    jumps = torch.zeros_like(image)
    rows = image[..., -1, :] - image[..., 0, :]
    columns = image[..., -1] - image[..., 0]
    jumps[..., 0, :] += rows
    jumps[..., -1, :] -= rows
    jumps[..., 0] += columns
    jumps[..., -1] -= columns
    angles = (2 * torch.pi * torch.fft.fftfreq(n, dtype=torch.float64) for n in image.shape[-2:])
    y, x = (angle.cos().to(image) for angle in angles)
    laplacian = 2 * y[:, None] + 2 * x - 4
    laplacian[0, 0] = 1
    transform = torch.fft.fft2(jumps) / laplacian
    transform[..., 0, 0] = 0
    return torch.fft.ifft2(transform).real


def _fade(n: int, wanted: int) -> Tensor:
    """A window of n samples: 1 inside, smooth to 0 over `TAPER` of the side at both ends.

    Where n samples are `wanted` it is 1 all over.
    """
    if n == wanted:
        return torch.ones(n, dtype=torch.float64)
    position = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    edge = torch.minimum(position, 1 - position) / TAPER
    return 0.5 - 0.5 * torch.cos(torch.pi * edge.clamp(max=1))
