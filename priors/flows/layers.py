"""Layers that mix or scale channels alike at every pixel, and what brings pixels to the line."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genprior.operators.random import normal
from genprior.priors.flows.bijection import Bijection


class ActNorm(Bijection):
    """Scale and shift each channel; the first batch of training starts at mean 0 and std 1.

        z = (x - mean) / std * exp(s) + b

    Mean and standard deviation are those of the first batch and are kept in the weights file;
    s and b are learned, from 0. Outside `measuring`, an image's value depends on it alone.

    Source: Kingma, Dhariwal 2018 (Glow), arXiv:1807.03039, section 3.1.
    """

    mean: Tensor
    std: Tensor
    log_scale: nn.Parameter
    shift: nn.Parameter

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.measuring = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.measuring:
            self.mean.copy_(x.mean((0, 2, 3)).view_as(self.mean))
            self.std.copy_(x.std((0, 2, 3)).clamp(min=1e-3).view_as(self.std))
        log_scale = self.log_scale - self.std.log()
        z = (x - self.mean) * log_scale.exp() + self.shift
        return z, (log_scale.sum() * x[0, 0].numel()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return (z - self.shift) * (self.std.log() - self.log_scale).exp() + self.mean


class Scaling(Bijection):
    """Scale every pixel value by a number of its own.

        z = x exp(s),   log_det = sum s

    Source: Dinh, Krueger, Bengio 2015 (NICE), section 3.3.
    """

    log_scale: nn.Parameter

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(image_shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_scale).exp()


class ChannelMix(Bijection):
    """An invertible 1x1 convolution, W = P L (U + diag(sign exp(s))), from a random rotation.

        z = W x at every pixel,   log_det = H W sum s

    P is a permutation, L and U are triangular with ones and zeros on the diagonal: an inverse is
    two triangular solves, and W is singular for no finite s.

    Args:
        channels: Of the images.
        generator: Of the rotation.
    Source: Kingma, Dhariwal 2018 (Glow), equation 10.
    """

    order: Tensor
    sign: Tensor
    log_scale: nn.Parameter
    lower: nn.Parameter
    upper: nn.Parameter

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(normal((channels, channels), generator, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("order", permutation.argmax(1))  # row i of W is row order[i] of L U
        self.register_buffer("sign", diagonal.sign().float())
        self.log_scale = nn.Parameter(diagonal.abs().log().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse a matrix that has no inverse, as `load_state_dict` calls this.

        Raises:
            ValueError: A scale is not finite, or 0 or infinite to float32.
        """
        name = f"{prefix}log_scale"
        scale = state_dict.get(name)
        if scale is not None and not bool((scale.abs() < math.log(1e30)).all()):
            raise ValueError(
                f"{name} makes the 1x1 convolution singular: its matrix has no inverse, so these "
                "weights are of no flow"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return L and U with their diagonals, (C, C) each."""
        eye = torch.eye(len(self.log_scale), dtype=self.lower.dtype, device=self.lower.device)
        diagonal = torch.diag(self.sign * self.log_scale.exp())
        return self.lower.tril(-1) + eye, self.upper.triu(1) + diagonal

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self.factors()
            z = torch.einsum("ij,bjhw->bihw", (lower @ upper)[self.order], x)
        return z, (self.log_scale.sum() * x[0, 0].numel()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            lower, upper = self.factors()
            y = z[:, self.order.argsort()].transpose(0, 1).flatten(1)  # (C, B H W)
            y = torch.linalg.solve_triangular(lower, y, upper=False, unitriangular=True)
            y = torch.linalg.solve_triangular(upper, y, upper=True)
        return y.unflatten(1, (len(z), *z.shape[2:])).transpose(0, 1)


class Logit(Bijection):
    """Bring pixels in [0, 1] to the whole line.

        p = margin + (1 - 2 margin) x,   z = log p - log(1 - p)
        log_det = sum of log(1 - 2 margin) - log p - log(1 - p)

    Outside of what the margin leaves z is NaN; at its very edge, where rounding may bring p to 0
    or 1, z is that of the nearest p between.

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (RealNVP), section 4.1.
    """

    def __init__(self, margin: float) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(f"margin must be between 0 and .5, not {margin}")
        self.margin = margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p, eps = self.margin + (1 - 2 * self.margin) * x, torch.finfo(x.dtype).eps
        p = torch.where((p - 0.5).abs() <= 0.5 + eps, p.clamp(eps / 2, 1 - eps / 2), torch.nan)
        log_p, log_q = p.log(), torch.log1p(-p)
        slope = math.log(1 - 2 * self.margin) - log_p - log_q
        return log_p - log_q, slope.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)
