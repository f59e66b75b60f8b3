"""Generators z -> x and critics x -> score: perceptrons, DCGAN's, residual and style-based."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genprior.priors.base import check_counts
from genprior.priors.gan.style import SLOPE, MappedGenerator, StyleGenerator, map_latents
from genprior.priors.training import check_options, pick

ImageShape = tuple[int, int, int]


def perceptron(
    image_shape: ImageShape,
    latent_size: int,
    *,
    hidden: Sequence[int] = (256, 512, 1024),
    bounded: bool = True,
    spectral: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Build fully connected networks; the critic's hidden layers are the generator's backwards.

    Args:
        image_shape: (C, H, W).
        latent_size: Numbers of z.
        hidden: Widths of the generator's hidden layers.
        bounded: Images lie in (0, 1); else anywhere, as points of the plane do.
        spectral: Normalise the critic's layers by their largest singular value.
    """
    check_counts("hidden", hidden)
    pixels = math.prod(image_shape)

    def layers(widths: Sequence[int]) -> list[nn.Module]:
        stack: list[nn.Module] = []
        for inputs, width in pairwise(widths):
            stack += [nn.Linear(inputs, width), nn.LeakyReLU(SLOPE)]
        return stack[:-1]

    generator = [*layers((latent_size, *hidden, pixels)), nn.Unflatten(1, image_shape)]
    if bounded:
        generator.append(nn.Sigmoid())
    critic = [nn.Flatten(), *layers((pixels, *reversed(hidden), 1)), nn.Flatten(0)]
    return nn.Sequential(*generator), _normalised(nn.Sequential(*critic), spectral)


def dcgan(
    image_shape: ImageShape,
    latent_size: int,
    *,
    widths: Sequence[int] = (128, 64),
    mapping: int = 0,
    styles: int = 64,
    hidden: int = 0,
    batch_norm: bool = True,
    spectral: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Build transposed convolutions 4x4 of stride 2, and the critic that mirrors them.

    Args:
        image_shape: (C, H, W), sides multiples of 2 to the number of widths.
        latent_size: Numbers of z.
        widths: Channels of each level, coarse to fine.
        mapping: Layers from z to w, which the first level takes in the place of z; 0 for none.
        styles: Numbers of w, where there is a mapping.
        hidden: Width of a fully connected layer before the critic's score, by which it judges
            the image as a whole; 0 for none: the score is then a sum over places.
        batch_norm: In both networks but at their ends; it couples the rows of a batch.
        spectral: Normalise the critic's layers by their largest singular value, and not by
            batch, which would undo the bound.

    Source: Radford, Metz, Chintala 2016, arXiv:1511.06434; Miyato et al. 2018, arXiv:1802.05957
        (spectral); Karras et al. 2019, arXiv:1812.04948 (mapping). Differs: levels as the image
        asks, so that 28x28 begins at 7x7; pixels in (0, 1) by a sigmoid, as tanh of half its
        argument.
    """
    check_counts("mapping", mapping, least=0)
    check_counts("styles", styles)
    check_counts("hidden", hidden, least=0)
    channels, coarse = image_shape[0], _coarsest(image_shape, widths)
    norm = nn.BatchNorm2d if batch_norm else nn.Identity
    places = widths[0] * math.prod(coarse)
    generator: list[nn.Module] = [
        nn.Linear(styles if mapping else latent_size, places),
        nn.Unflatten(1, (widths[0], *coarse)),
        norm(widths[0]),
        nn.ReLU(),
    ]
    for a, b in pairwise(widths):
        generator += [nn.ConvTranspose2d(a, b, 4, 2, 1), norm(b), nn.ReLU()]
    generator += [nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Sigmoid()]
    norm = nn.Identity if spectral else norm
    critic: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 4, 2, 1), nn.LeakyReLU(SLOPE)]
    for a, b in pairwise(reversed(widths)):
        critic += [nn.Conv2d(a, b, 4, 2, 1), norm(b), nn.LeakyReLU(SLOPE)]
    critic.append(nn.Flatten())
    if hidden:
        critic += [nn.Linear(places, hidden), nn.LeakyReLU(SLOPE)]
    critic += [nn.Linear(hidden or places, 1), nn.Flatten(0)]
    made = nn.Sequential(*generator)
    if mapping:
        made = MappedGenerator(map_latents(latent_size, styles, mapping), *generator)
    return made, _normalised(nn.Sequential(*critic), spectral)


class Residual(nn.Module):
    """x + 1x1(act(3x3 in groups(act(1x1(x))))), the last 1x1 from zero.

    Args:
        channels: Of images in and out.
        group: Channels of a group of the 3x3 convolution.
        expansion: Of the channels within.
    """

    def __init__(self, channels: int, *, group: int = 16, expansion: int = 2) -> None:
        super().__init__()
        inner = expansion * channels
        self.up = nn.Conv2d(channels, inner, 1)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, groups=max(1, inner // group))
        self.down = nn.Conv2d(inner, channels, 1, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.up(x), SLOPE)
        return x + self.down(F.leaky_relu(self.spatial(h), SLOPE))


class _Scale(nn.Module):
    """Bilinear resampling by 2 or 1/2, then 1x1 where the channels change."""

    def __init__(self, inputs: int, outputs: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.factor < 1:
            return self.mix(F.avg_pool2d(x, 2))
        return F.interpolate(self.mix(x), scale_factor=2, mode="bilinear", align_corners=False)


def residual(
    image_shape: ImageShape,
    latent_size: int,
    *,
    widths: Sequence[int] = (128, 96, 64),
    blocks: int = 1,
    group: int = 16,
    spectral: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Build residual networks without normalisation, mirror images of each other.

    Args:
        image_shape: (C, H, W), sides multiples of 2 to the number of widths less one.
        latent_size: Numbers of z.
        widths: Channels of each level, coarse to fine; the finest is of the image's size.
        blocks: At each level.
        group: Channels of a group of the 3x3 convolutions.
        spectral: Normalise the critic's layers by their largest singular value.

    Source: Huang et al. 2024 (R3GAN), arXiv:2501.05441, in small. Differs: bilinear resampling by
        averages; pixels in (0, 1) by a sigmoid.
    """
    check_counts("blocks", blocks)
    check_counts("group", group)
    coarse = _coarsest(image_shape, widths[1:], check=widths)

    def level(channels: int) -> list[nn.Module]:
        return [Residual(channels, group=group) for _ in range(blocks)]

    generator: list[nn.Module] = [
        nn.Linear(latent_size, widths[0] * math.prod(coarse)),
        nn.Unflatten(1, (widths[0], *coarse)),
        *level(widths[0]),
    ]
    for a, b in pairwise(widths):
        generator += [_Scale(a, b, 2.0), *level(b)]
    generator += [nn.Conv2d(widths[-1], image_shape[0], 1), nn.Sigmoid()]
    critic: list[nn.Module] = [nn.Conv2d(image_shape[0], widths[-1], 1), *level(widths[-1])]
    for a, b in pairwise(reversed(widths)):
        critic += [_Scale(a, b, 0.5), *level(b)]
    critic += [nn.Flatten(), nn.Linear(widths[0] * math.prod(coarse), 1), nn.Flatten(0)]
    return nn.Sequential(*generator), _normalised(nn.Sequential(*critic), spectral)


def style(
    image_shape: ImageShape,
    latent_size: int,
    *,
    widths: Sequence[int] = (128, 96, 64),
    blocks: int = 1,
    mapping: int = 4,
    styles: int = 64,
    mixing: float = 0.9,
    group: int = 16,
    spectral: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """Build a generator with styles w at every level, and the critic of `residual`.

    Args:
        image_shape: (C, H, W), sides multiples of 2 to the number of widths less one.
        latent_size: Numbers of z.
        widths: Channels of each level, coarse to fine; the finest is of the image's size.
        blocks: Convolutions of the generator at each level, and residual blocks of the critic.
        mapping: Layers from z to w.
        styles: Numbers of w.
        mixing: Share of images in training whose finer levels have another z's style.
        group: Channels of a group of the critic's 3x3 convolutions.
        spectral: Normalise the critic's layers by their largest singular value.

    Source: Karras et al. 2019, arXiv:1812.04948; Karras et al. 2020, arXiv:1912.04958 (modulated
        convolutions, pixels summed over levels). Differs: plain rates, of the mapping too, whose
        last layer is linear; pixels in (0, 1) by a sigmoid.
    """
    for name, value in (("blocks", blocks), ("mapping", mapping), ("styles", styles)):
        check_counts(name, value)
    if not 0 <= mixing <= 1:
        raise ValueError(f"mixing must be 0 to 1, not {mixing}")
    shared = {"widths": widths, "blocks": blocks, "group": group, "spectral": spectral}
    _, critic = residual(image_shape, latent_size, **shared)
    generator = StyleGenerator(
        image_shape[0],
        _coarsest(image_shape, widths[1:], check=widths),
        latent_size,
        widths=widths,
        blocks=blocks,
        mapping=mapping,
        styles=styles,
        mixing=mixing,
    )
    return generator, critic


KINDS = {"perceptron": perceptron, "dcgan": dcgan, "residual": residual, "style": style}


def pair(
    image_shape: ImageShape, latent_size: int, config: dict[str, Any]
) -> tuple[nn.Module, nn.Module]:
    """Build a generator (B, k) -> (B, C, H, W) and a critic (B, C, H, W) -> (B,).

    Args:
        image_shape: (C, H, W).
        latent_size: k.
        config: 'kind' (perceptron, dcgan, residual or style) and the options of its function.
    Raises:
        ValueError: The kind or an option is unknown or out of range.
    """
    build, options = pick("network", config, KINDS)
    check_options("network", options, build)
    return build(image_shape, latent_size, **options)


def _coarsest(
    image_shape: ImageShape, halvings: Sequence[int], *, check: Sequence[int] | None = None
) -> tuple[int, int]:
    """Return the size of the coarsest level."""
    levels = halvings if check is None else check
    check_counts("widths", levels)
    if not levels:
        raise ValueError("widths must name one level or more, not []")
    _, height, width = image_shape
    unit = 2 ** len(halvings)
    if height % unit or width % unit:
        raise ValueError(
            f"images of {height}x{width} cannot be halved {len(halvings)} times: take fewer "
            "widths, or pad or resize the images"
        )
    return height // unit, width // unit


def _normalised(critic: nn.Module, spectral: bool) -> nn.Module:
    if spectral:
        for layer in critic.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                spectral_norm(layer)
    return critic
