"""What all normalizing flows share: an exact density, an exact encoder, training by likelihood."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from genprior.operators.base import Shape
from genprior.operators.random import Generators, uniform
from genprior.priors.base import DensityPrior, EncodingPrior, LatentPrior
from genprior.priors.flows.bijection import Bijection, first_not_finite
from genprior.priors.flows.layers import ActNorm
from genprior.priors.training import Loss, Objective, Trainable, Turn

LEVELS = 256
"""Brightness levels of an 8-bit image."""


class Flow(Trainable, LatentPrior, EncodingPrior, DensityPrior):
    """x = f^-1(z), z ~ N(0, I), with an invertible f whose volume is known.

        log p(x) = log N(f(x); 0, I) + log |det df/dx|

    A class of one's own builds its bijection from plain arguments and hands it on:

        class Mine(Flow):
            def __init__(self, image_shape, *, layers: int = 4):
                super().__init__(image_shape, Chain([..., Flatten(image_shape)]))

    Args:
        image_shape: (C, H, W).
        bijection: f, from images (B, C, H, W) to vectors (B, C H W).
    """

    exact_encoder: ClassVar[bool] = True
    training_defaults: ClassVar[dict[str, Any]] = {"precision": "fp32"}

    started: Tensor

    def __init__(self, image_shape: tuple[int, int, int], bijection: Bijection) -> None:
        super().__init__()
        self.image_shape: Shape = tuple(image_shape)
        self.latent_shape: tuple[int, ...] = (math.prod(self.image_shape),)
        self.bijection = bijection
        self.register_buffer("started", torch.tensor(False))

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights, in which everything is computed."""
        return next(self.bijection.parameters()).dtype

    def encode(self, x: Tensor) -> Tensor:
        """Return z = f(x), (B, C H W); of several scales the coarsest first."""
        return self._transform(x)[0].to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Return x = f^-1(z), (B, C, H, W)."""
        return self.bijection.inverse(z.to(self.dtype)).to(z.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,), as a density of pixels in [0, 1]."""
        z, log_det = self._transform(x)
        return (self.latent_log_prob(z) + log_det).to(x.dtype)

    def split_latent(self, z: Tensor) -> list[Tensor]:
        """Return the scales that z (B, C H W) consists of, the coarsest first."""
        return self.bijection.split(z)

    def sample(
        self,
        n: int,
        *,
        size: tuple[int, int] | None = None,
        generator: Generators = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Decode n draws of z ~ N(0, temperature^2 I), (n, C, H, W).

        Below 1 samples are cleaner and less varied, and not of the prior.

        Raises:
            ValueError: The temperature is not above 0 and at most 2.
        """
        if not 0 < temperature <= 2:
            raise ValueError(f"temperature must be above 0 and at most 2, not {temperature}")
        self.check_size(size)
        with torch.no_grad():
            return self.decode(temperature * self._normal(n, generator))

    def bits_per_dimension(
        self, x: Tensor, *, draws: int = 1, generator: Generators = None
    ) -> Tensor:
        """Return the bits that each pixel value of 8-bit images takes, (B,).

            -log2 P(x) / d,   P(x) = E_u[p((255 x + u) / 256)] / 256^d,   u uniform in [0, 1)^d

        One draw of u gives an upper bound in the mean; the mean of p over more is tighter.

        Args:
            x: Images of 256 levels, multiples of 1/255 in [0, 1], (B, C, H, W).
            draws: Of u for each image.
            generator: None, one generator, or one for each image.
        Raises:
            ValueError: x has values between the levels, or outside [0, 1]; or draws is below 1.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}")
        check_levels(x)
        rows = x.repeat_interleave(draws, 0)
        u = uniform((len(x), draws, *x.shape[1:]), generator, dtype=x.dtype, device=x.device)
        log_p = self.log_prob((255 * rows + u.flatten(0, 1)) / LEVELS).unflatten(0, (-1, draws))
        d = self.latent_shape[0]
        log_mass = log_p.logsumexp(1) - math.log(draws) - d * math.log(LEVELS)
        return -log_mass / (d * math.log(2))

    def objective(self) -> Objective:
        return Likelihood(self)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Set every `ActNorm` to the mean and std that it meets on x (B, C, H, W)."""
        norms = [m for m in self.modules() if isinstance(m, ActNorm)]
        for norm in norms:
            norm.measuring = True
        try:
            self._transform(x)
        finally:
            for norm in norms:
                norm.measuring = False
        self.started.fill_(True)

    def _transform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape)} came to a {type(self).__name__} for "
                f"(B, *{self.image_shape})"
            )
        return self.bijection(x.to(self.dtype))


class Likelihood(Objective):
    """Bits for each pixel value of 8-bit images, dequantised anew at every step.

    Source: Theis, van den Oord, Bethge 2016, arXiv:1511.01844, section 3.1.
    """

    model: Flow
    started = False

    def loss(self, turn: Turn, batch: Tensor, generator: Generators) -> Loss:
        u = uniform(batch.shape, generator, dtype=batch.dtype, device=batch.device)
        x = ((255 * batch).round() + u) / LEVELS
        if not self.started:
            self._begin(batch, x)
        self.started = True  # a flag of the host's: a device would be waited for at every step
        log_p = self.model.log_prob(x)
        bits = (math.log(LEVELS) - log_p.mean() / x[0].numel()) / math.log(2)
        inside = ((batch >= 0) & (batch <= 1)).all()
        if not bool(inside & bits.isfinite()):
            if not bool(inside):
                raise ValueError("flows are trained on pixels in [0, 1]; others came")
            layer = first_not_finite(self.model.bijection, x.to(self.model.dtype))
            raise FloatingPointError(
                f"the log-determinant is not finite from {layer or 'the latent'} on: lower the "
                "learning rate"
            )
        return bits, {}

    def _begin(self, batch: Tensor, x: Tensor) -> None:
        between = _between_levels(batch)
        if between:
            warnings.warn(
                f"{between} of {batch.numel()} values of the first batch lie between the 256 "
                "levels k / 255 (resized, turned, or dequantised already?): a flow is trained on "
                "8-bit images, so they are rounded before noise is added",
                stacklevel=2,
            )
        if not bool(self.model.started):
            self.model.start_from(x)


def _between_levels(x: Tensor) -> int:
    return int(((255 * x - (255 * x).round()).abs() > 1e-3).sum())


def check_levels(x: Tensor) -> None:
    """Raise unless x holds 256 levels, multiples of 1/255 in [0, 1]."""
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"pixels must lie in [0, 1], not in [{float(x.min()):g}, {float(x.max()):g}]"
        )
    if between := _between_levels(x):
        raise ValueError(
            f"{between} values lie between the 256 levels k / 255 (resized, or "
            "dequantised already?): bits are those of 8-bit images. Round them, or take log_prob, "
            "the density of any image"
        )
