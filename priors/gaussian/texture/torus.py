"""Normal laws that are stationary on a torus: diagonal in the Fourier basis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genprior.priors.gaussian.low_rank import wiener_gain

Function = Callable[[Tensor], Tensor]
"""Eigenvalues, broadcasting against (1, 1, H, W // 2 + 1), to any function of them likewise."""


@dataclass(frozen=True)
class TorusNormal:
    """mean + spot * w + residual n: w white noise of one channel, n of C, * periodic convolution.

    At every frequency the covariance is a C x C matrix of rank one plus residual^2 I, with the
    eigenvalue |t|^2 + residual^2 along the spot's transform t and residual^2 across.

    Attributes:
        mean: (C, 1, 1).
        spot: (C, H, W).
        residual: A 0-d tensor, >= 0.
    """

    mean: Tensor
    spot: Tensor
    residual: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.spot.shape[-2], self.spot.shape[-1]

    @cached_property
    def transform(self) -> Tensor:
        """Of the spot, (C, H, W // 2 + 1)."""
        return torch.fft.rfft2(self.spot)

    @cached_property
    def power(self) -> Tensor:
        """|t|^2, over channels together, (1, 1, H, W // 2 + 1)."""
        return self.transform.abs().square().sum(0)[None, None]

    @cached_property
    def direction(self) -> Tensor:
        """t / |t|, zero where t is, (C, H, W // 2 + 1)."""
        norm = self.power[0].sqrt()
        return torch.where(norm > 0, self.transform / norm.where(norm > 0, 1.0), 0.0)

    def _eigenvalues(self, function: Function) -> tuple[Tensor, Tensor]:
        """f along the spot's transform and across it, (B or 1, 1, H or 1, W // 2 + 1 or 1)."""
        floor = self.residual.square().reshape(1, 1, 1, 1)
        return function(self.power + floor), function(floor)

    def apply(self, x: Tensor, function: Function) -> Tensor:
        """Return f(covariance) x for images x (B, C, H, W)."""
        along, across = self._eigenvalues(function)
        transformed = torch.fft.rfft2(x)
        shadow = (self.direction.conj() * transformed).sum(1, keepdim=True)
        filtered = across * transformed + self.direction * ((along - across) * shadow)
        return torch.fft.irfft2(filtered, s=self.size)

    def kernel(self, function: Function) -> Tensor:
        """Return f(covariance) as a kernel (C, C, H, W): x_c(p + q) with x_e(p), at [c, e, q]."""
        along, across = (e[0] for e in self._eigenvalues(function))
        outer = self.direction[:, None] * self.direction[None].conj()
        identity = torch.eye(len(self.spot)).to(self.spot)[..., None, None]
        return torch.fft.irfft2(outer * (along - across) + across * identity, s=self.size)

    def _over_frequencies(self, values: Tensor) -> Tensor:
        """Sum (..., H, W // 2 + 1) over all H W frequencies, of which half are kept."""
        width = self.size[1]
        count = torch.full((width // 2 + 1,), 2.0).to(values)
        count[0] = 1
        if width % 2 == 0:
            count[-1] = 1
        return (values * count).sum((-2, -1))

    def trace(self, function: Function) -> Tensor:
        """Return the trace of f(covariance), (B or 1,)."""
        along, across = self._eigenvalues(function)
        values = along + (len(self.spot) - 1) * across
        return self._over_frequencies(values.expand(-1, 1, *self.power.shape[-2:]))[:, 0]

    def diagonal(self, function: Function) -> Tensor:
        """Return the diagonal of f(covariance), (B or 1, C, 1, 1): the same for all pixels."""
        along, across = self._eigenvalues(function)
        values = across + self.direction.abs().square() * (along - across)
        return self._over_frequencies(values)[..., None, None] / math.prod(self.size)

    def sample(self, noise: Tensor) -> Tensor:
        """Map white noise (B, 1 or 1 + C, H, W) to images; the last C channels are n."""
        field = torch.fft.rfft2(noise[:, :1])
        x = self.mean + torch.fft.irfft2(self.transform * field, s=self.size)
        return x + self.residual * noise[:, 1:] if noise.shape[1] > 1 else x

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; mean, covariance), (B,); residual > 0."""
        centred = x - self.mean
        quadratic = (centred * self.apply(centred, torch.reciprocal)).flatten(1).sum(1)
        log_determinant = self.trace(torch.log)
        count = math.prod(x.shape[1:])
        return -0.5 * (quadratic + log_determinant + count * math.log(2 * math.pi))

    def denoise(self, x: Tensor, noise_variance: Tensor) -> Tensor:
        """Return E[x0 | x0 + n = x], n ~ N(0, noise_variance I)."""
        noise = noise_variance.to(x).reshape(-1, 1, 1, 1)
        denoised = self.mean + self.apply(x - self.mean, lambda v: wiener_gain(v, noise))
        return torch.where(noise > 0, denoised, x)
