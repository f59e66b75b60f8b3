"""A generator whose latent styles every level of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.operators.random import Generators, normal, uniform

SLOPE = 0.2
"""Of leaky rectifiers below 0."""
DRAWS = 10_000
"""Of z, from which the moments of w follow: always the same ones."""


class Modulated(nn.Module):
    """A convolution whose input channels are scaled by the style, s = A w + 1.

        y_j = d_j sum_i W_ji * (s_i x_i),  d_j = 1 / |s W_j|

    with d_j = 1 where it is not normalised.

    Args:
        inputs, outputs: Channels.
        styles: Numbers of w.
        size: Side of W.
        normalised: By d_j.
    """

    def __init__(
        self, inputs: int, outputs: int, styles: int, *, size: int = 3, normalised: bool = True
    ) -> None:
        super().__init__()
        scale = 1 / math.sqrt(inputs * size**2)
        self.weight = nn.Parameter(scale * torch.randn(outputs, inputs, size, size))
        self.scales = nn.Linear(styles, inputs)
        nn.init.ones_(self.scales.bias)
        self.normalised = normalised

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s = self.scales(w)
        y = F.conv2d(s[:, :, None, None] * x, self.weight, padding="same")
        if not self.normalised:
            return y
        d = (s.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt()
        return d[:, :, None, None] * y


class Styled(nn.Module):
    """A modulated convolution, noise of a learned strength, a bias and a rectifier.

    The noise is a constant of the network, so that an image follows from its latent; in training
    it is drawn.
    """

    noise: Tensor

    def __init__(self, inputs: int, outputs: int, styles: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.convolution = Modulated(inputs, outputs, styles)
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, *size))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = self.noise if noise is None else noise
        x = self.convolution(x, w) + self.strength * noise + self.bias
        return math.sqrt(2) * F.leaky_relu(x, SLOPE)


class StyleGenerator(nn.Module):
    """A mapping z -> w, and levels from a learned constant, each in a style w of its own.

    Args:
        channels: Of images.
        coarse: Size of the coarsest level.
        latent_size: Numbers of z.
        widths: Channels of each level, coarse to fine.
        blocks: Convolutions at each level.
        mapping: Layers from z to w.
        styles: Numbers of w.
        mixing: Share of images in training whose finer levels have another's style.
    """

    latent_size: int
    mixing: float
    depth: int
    constant: nn.Parameter
    levels: nn.ModuleList
    to_pixels: nn.ModuleList
    bias: nn.Parameter

    def __init__(
        self,
        channels: int,
        coarse: tuple[int, int],
        latent_size: int,
        *,
        widths: Sequence[int],
        blocks: int,
        mapping: int,
        styles: int,
        mixing: float,
    ) -> None:
        super().__init__()
        self.latent_size, self.mixing, self.depth = latent_size, mixing, len(widths)
        self.mapping: nn.Sequential = map_latents(latent_size, styles, mapping)
        self.constant = nn.Parameter(torch.randn(widths[0], *coarse))
        self.levels, self.to_pixels = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            size = (coarse[0] * 2**level, coarse[1] * 2**level)
            inputs = [widths[max(level - 1, 0)], *[width] * (blocks - 1)]
            self.levels.append(nn.ModuleList(Styled(n, width, styles, size) for n in inputs))
            pixels = Modulated(width, channels, styles, size=1, normalised=False)
            self.to_pixels.append(pixels)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Map z (B, k) to images (B, C, H, W), with the constant noise."""
        return self.in_style(self.style(z))

    def style(self, z: Tensor) -> Tensor:
        """Return w, (B, styles): z is brought to length sqrt(k) first."""
        return self.mapping(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())

    def everywhere(self, w: Tensor) -> Tensor:
        """Give each level the style w, (B, levels, styles)."""
        return w[:, None].expand(-1, self.depth, -1)

    def in_style(self, w: Tensor) -> Tensor:
        """Map styles (B, styles), one for all levels, to images, with the constant noise."""
        return self.synthesis(self.everywhere(w))

    def synthesis(self, w: Tensor, generator: Generators = None, *, noisy: bool = False) -> Tensor:
        """Map a style for each level, (B, levels, styles), to images.

        Args:
            w: Styles, coarse to fine.
            generator: Of the noise, where it is drawn.
            noisy: Draw the noise; else it is the network's constant.
        """
        x = self.constant.expand(len(w), -1, -1, -1)
        image = torch.zeros((), dtype=x.dtype, device=x.device)
        for level, (layers, to_pixels) in enumerate(zip(self.levels, self.to_pixels, strict=True)):
            if level:
                x, image = _doubled(x), _doubled(image)
            for layer in cast(nn.ModuleList, layers):
                noise, shape = None, (len(w), 1, *x.shape[-2:])
                if noisy:
                    noise = normal(shape, generator, dtype=x.dtype, device=x.device)
                x = layer(x, w[:, level], noise)
            image = image + to_pixels(x, w[:, level])
        return (image + self.bias).sigmoid()

    def training_images(self, z: Tensor, generator: Generators) -> Tensor:
        """Return images with drawn noise, some with a second z's style from a drawn level on."""
        like = {"dtype": z.dtype, "device": z.device}
        other = self.style(normal(z.shape, generator, **like))
        chosen, place = uniform((len(z), 2), generator, **like).unbind(1)
        first = 1 + (place * (self.depth - 1)).long()
        first = torch.where(chosen < self.mixing, first, self.depth)
        levels = torch.arange(self.depth, device=z.device)
        w = torch.where(
            (levels < first[:, None])[..., None],
            self.everywhere(self.style(z)),
            self.everywhere(other),
        )
        return self.synthesis(w, generator, noisy=True)


class MappedGenerator(nn.Sequential):
    """A mapping z -> w, and layers that make an image of w, all of it in one style.

    Args:
        mapping: (B, k) -> (B, styles).
        layers: (B, styles) -> (B, C, H, W), one after the other.
    """

    def __init__(self, mapping: nn.Module, *layers: nn.Module) -> None:
        super().__init__(mapping, *layers)

    def style(self, z: Tensor) -> Tensor:
        """Return w, (B, styles)."""
        return self[0](z)

    def in_style(self, w: Tensor) -> Tensor:
        """Map styles (B, styles) to images."""
        for layer in list(self)[1:]:
            w = layer(w)
        return w


@torch.no_grad()
def moments(
    generator: StyleGenerator | MappedGenerator, latent_size: int
) -> tuple[Tensor, Tensor]:
    """Return w's mean (styles,) and a root L of its covariance L L^T, over 10,000 draws."""
    like = next(generator.parameters())
    shape = (DRAWS, latent_size)
    drawn = torch.Generator().manual_seed(0)
    w = generator.style(normal(shape, drawn, dtype=like.dtype, device=like.device))
    mean = w.mean(0)
    values, vectors = torch.linalg.eigh((w - mean).T @ (w - mean) / len(w))
    return mean, vectors * values.clamp(min=0).sqrt()


def map_latents(latent_size: int, styles: int, layers: int) -> nn.Sequential:
    """Build the mapping (B, k) -> (B, styles); linear at its end: w is closer to normal."""
    stack: list[nn.Module] = []
    for layer in range(layers):
        linear = nn.Linear(styles if layer else latent_size, styles)
        last = layer == layers - 1
        nn.init.kaiming_normal_(linear.weight, 1.0 if last else SLOPE)
        nn.init.zeros_(linear.bias)
        stack += [linear] if last else [linear, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*stack)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
