"""Encoder and decoder networks between images and latent vectors: perceptron or convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from genprior.priors.base import check_counts
from genprior.priors.training import check_options, pick

_ACTIVATIONS = {"softplus": nn.Softplus, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}

ImageShape = tuple[int, int, int]


class ResidualCell(nn.Module):
    """x + convolutions(x), which start as nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(_groups(channels), channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _groups(channels: int) -> int:
    return next(n for n in (8, 4, 2, 1) if channels % n == 0)


def perceptron(
    image_shape: ImageShape,
    sizes: tuple[int, int],
    outputs: int,
    *,
    hidden: Sequence[int] = (500, 500),
    activation: str = "softplus",
) -> tuple[nn.Module, nn.Module]:
    """Build fully connected coders; without hidden layers both are affine.

    Args:
        image_shape: (C, H, W).
        sizes: Length of what the encoder gives, and of the latent that the decoder takes.
        outputs: Numbers that the decoder gives for each pixel value.
        hidden: Widths of the encoder's hidden layers; the decoder's are the same backwards.
        activation: softplus, relu, silu or tanh.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"activation {activation!r} is unknown: choose one of {', '.join(_ACTIVATIONS)}"
        )
    check_counts("hidden", hidden)
    pixels = math.prod(image_shape)
    code, latent = sizes

    def layers(widths: Sequence[int]) -> list[nn.Module]:
        stack: list[nn.Module] = []
        for inputs, width in pairwise(widths):
            stack += [nn.Linear(inputs, width), _ACTIVATIONS[activation]()]
        return stack[:-1]

    image = (outputs * image_shape[0], *image_shape[1:])
    encoder = nn.Sequential(nn.Flatten(), *layers((pixels, *hidden, code)))
    decoder = nn.Sequential(
        *layers((latent, *reversed(hidden), outputs * pixels)), nn.Unflatten(1, image)
    )
    return encoder, decoder


def convolutional(
    image_shape: ImageShape,
    sizes: tuple[int, int],
    outputs: int,
    *,
    widths: Sequence[int] = (48, 96, 128),
) -> tuple[nn.Module, nn.Module]:
    """Build convolutional coders: each width is a level at half the size of the one before.

    Args:
        image_shape: (C, H, W), divisible by 2 to the power of the number of levels.
        sizes: Length of what the encoder gives, and of the latent that the decoder takes.
        outputs: Numbers that the decoder gives for each pixel value.
        widths: Channels of each level, fine to coarse.
    """
    check_counts("widths", widths)
    channels, height, width = image_shape
    factor = 2 ** len(widths)
    if not widths or height % factor or width % factor:
        raise ValueError(
            f"images of {height}x{width} cannot be halved {len(widths)} times, once for each of "
            f"widths {tuple(widths)}: take fewer levels, or pad or resize the images"
        )
    code, latent = sizes
    coarse = (widths[-1], height // factor, width // factor)
    down: list[nn.Module] = [
        nn.PixelUnshuffle(2),
        nn.Conv2d(4 * channels, widths[0], 3, padding=1),
    ]
    up: list[nn.Module] = [nn.Linear(latent, math.prod(coarse)), nn.Unflatten(1, coarse)]
    for fine, next_coarser in pairwise(widths):
        down += [ResidualCell(fine), nn.Conv2d(fine, next_coarser, 2, stride=2)]
    for coarser, finer in pairwise(reversed(widths)):
        up += [ResidualCell(coarser), nn.ConvTranspose2d(coarser, finer, 2, stride=2)]
    down += [ResidualCell(widths[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(math.prod(coarse), code)]
    up += [
        ResidualCell(widths[0]),
        nn.SiLU(),
        nn.Conv2d(widths[0], 4 * outputs * channels, 3, padding=1),
        nn.PixelShuffle(2),
    ]
    return nn.Sequential(*down), nn.Sequential(*up)


_KINDS = {"perceptron": perceptron, "convolutional": convolutional}


def coders(
    image_shape: ImageShape, sizes: tuple[int, int], outputs: int, config: dict[str, Any]
) -> tuple[nn.Module, nn.Module]:
    """Build (encoder, decoder) from plain data: 'kind', its options, and 'seed' of the start.

    Raises:
        ValueError: The kind is unknown or its options do not fit the image.
    """
    build, options = pick("network", config, _KINDS)
    check_options("network", options, build, _start)
    generator = _start(options.pop("seed", 0))
    with torch.device("meta"):  # the default initialisation would move the global generator
        encoder, decoder = build(image_shape, sizes, outputs, **options)
    for network in (encoder, decoder):
        initialise(network, generator)
    return encoder, decoder


def _start(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Allocate a network built on the meta device and draw its weights.

    Weights have variance 1 / fan in, biases are zero, and so is the last layer of every
    residual cell: depth costs nothing early on.
    """
    network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # transposed, stride = size: one tap of each channel reaches a pixel
            transposed = isinstance(layer, nn.ConvTranspose2d)
            fan_in = len(layer.weight) if transposed else layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=fan_in**-0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    for cell in network.modules():
        if isinstance(cell, ResidualCell):
            for parameter in cell.body[-1].parameters():
                nn.init.zeros_(parameter)
