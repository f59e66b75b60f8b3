"""The flows of the literature: NICE, RealNVP, Glow, planar and radial."""

from __future__ import annotations

import math
from typing import Any

import torch

from genprior.priors.base import check_counts
from genprior.priors.flows.bijection import Bijection, Chain, Flatten
from genprior.priors.flows.conditioners import conditioner
from genprior.priors.flows.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Channels,
    Checkerboard,
)
from genprior.priors.flows.flow import Flow
from genprior.priors.flows.layers import ActNorm, ChannelMix, Logit, Scaling
from genprior.priors.flows.multiscale import MultiScale, Squeeze
from genprior.priors.flows.planar import Planar, Radial

MARGIN = 1e-5
"""Of the logit: how near to 0 and 1 a pixel comes."""


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _to_line(margin: float | None) -> list[Bijection]:
    return [] if margin is None else [Logit(margin)]


def _built(build: Any, seed: int) -> Bijection:
    """Run `build()` with the networks' starting weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class NICE(Flow):
    """Additive couplings of perceptrons between the colours of a chess board, and a scale each.

    Args:
        image_shape: (C, H, W).
        couplings: Layers; the halves take turns.
        hidden: Widths of their hidden layers.
        margin: Of the logit before them; None leaves pixels as they are.
        seed: Of the starting weights.
    Source: Dinh, Krueger, Bengio 2015, arXiv:1410.8516.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        couplings: int = 4,
        hidden: tuple[int, ...] = (1000, 1000),
        margin: float | None = MARGIN,
        seed: int = 0,
    ) -> None:
        check_counts("couplings", couplings)
        network = conditioner({"kind": "perceptron", "hidden": hidden}, image_shape[1:])

        def build() -> Bijection:
            layers = _to_line(margin)
            for i in range(couplings):
                half = Checkerboard(swapped=i % 2 == 1)
                layers.append(AdditiveCoupling(image_shape[0], half, network))
            return Chain([*layers, Scaling(image_shape), Flatten(image_shape)])

        super().__init__(image_shape, _built(build, seed))


class RealNVP(Flow):
    """Affine couplings at several scales: chess boards, then, squeezed, halves of the channels.

    Args:
        image_shape: (C, H, W), both sides multiples of 2^levels.
        levels: Times that the image is squeezed.
        couplings: Of each kind at each level.
        network: 'kind' (convolutional or transformer) and its options.
        margin: Of the logit before them; None leaves pixels as they are.
        seed: Of the starting weights.
    Source: Dinh, Sohl-Dickstein, Bengio 2017, arXiv:1605.08803. Differs: actnorm in place of
        batch normalisation, which would couple a batch's rows.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        levels: int = 2,
        couplings: int = 4,
        network: dict[str, Any] | None = None,
        margin: float | None = MARGIN,
        seed: int = 0,
    ) -> None:
        check_counts("levels", levels)
        check_counts("couplings", couplings)
        self.network: dict[str, Any] = {"kind": "convolutional", **(network or {})}

        def scale(i: int, shape: tuple[int, int, int]) -> list[Bijection]:
            inner = conditioner(self.network, shape[1:])
            before = conditioner(self.network, (2 * shape[1], 2 * shape[2]))
            layers: list[Bijection] = []
            for j in range(couplings):
                half = Checkerboard(swapped=j % 2 == 1)
                channels = shape[0] // 4
                layers += [ActNorm(channels), AffineCoupling(channels, half, before)]
            layers.append(Squeeze())
            for j in range(couplings):
                half = Channels(swapped=j % 2 == 1)
                layers += [ActNorm(shape[0]), AffineCoupling(shape[0], half, inner)]
            return layers

        build = lambda: _multiscale(image_shape, levels, scale, margin)  # noqa: E731
        super().__init__(image_shape, _built(build, seed))


class Glow(Flow):
    """Steps of actnorm, 1x1 convolution and affine coupling, at several scales.

    Args:
        image_shape: (C, H, W), both sides multiples of 2^levels.
        levels: Times that the image is squeezed.
        depth: Steps at each level.
        network: 'kind' (convolutional or transformer) and its options.
        margin: Of the logit before them; None leaves pixels as they are.
        seed: Of the starting weights.
    Source: Kingma, Dhariwal 2018, arXiv:1807.03039. Differs: bounded scales; the learned prior of
        a scale that is done is an affine coupling.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        levels: int = 2,
        depth: int = 8,
        network: dict[str, Any] | None = None,
        margin: float | None = MARGIN,
        seed: int = 0,
    ) -> None:
        check_counts("levels", levels)
        check_counts("depth", depth)
        self.network: dict[str, Any] = {"kind": "convolutional", **(network or {})}
        generator = _seeded(seed)

        def scale(i: int, shape: tuple[int, int, int]) -> list[Bijection]:
            network = conditioner(self.network, shape[1:])
            layers: list[Bijection] = [Squeeze()]
            for _ in range(depth):
                layers += [ActNorm(shape[0]), ChannelMix(shape[0], generator)]
                layers.append(AffineCoupling(shape[0], Channels(), network))
            return layers

        build = lambda: _multiscale(image_shape, levels, scale, margin)  # noqa: E731
        super().__init__(image_shape, _built(build, seed))


def _multiscale(
    image_shape: tuple[int, int, int], levels: int, scale: Any, margin: float | None
) -> Bijection:
    """Build the scales: `scale(i, shape)` gives the layers that end at `shape`.

    What is done at a scale is made normal given what goes on, by one more coupling.
    """
    channels, height, width = image_shape
    unit = 2**levels
    if height % unit or width % unit:
        near = [f"{max(unit, round(n / unit) * unit)}" for n in (height, width)]
        raise ValueError(
            f"{levels} levels of squeezing take sides that are multiples of {unit}, such as "
            f"{'x'.join(near)}, not {height}x{width}: crop or resize, or take fewer levels"
        )
    chains, shapes = [], []
    for i in range(levels):
        channels, height, width = 4 * channels, height // 2, width // 2
        shape = (channels, height, width)
        layers = scale(i, shape)
        if i < levels - 1:
            layers.append(
                AffineCoupling(channels, Channels(), conditioner({"width": 32}, (height, width)))
            )
        else:
            layers.append(ActNorm(channels))
        chains.append(Chain(layers))
        shapes.append(shape)
        channels //= 2
    return Chain([*_to_line(margin), MultiScale(chains, shapes)])


def _of_bumps(
    kind: type[Planar | Radial], image_shape: tuple[int, int, int], layers: int, seed: int
) -> Bijection:
    check_counts("layers", layers)
    size, generator = math.prod(image_shape), _seeded(seed)
    return Chain([*(kind(size, generator) for _ in range(layers)), Flatten(image_shape)])


class PlanarFlow(Flow):
    """Planar layers: for densities of few numbers, such as points (1, 1, 2) in the plane.

    Args:
        image_shape: (C, H, W).
        layers: Planes.
        seed: Of the starting weights.
    Source: Rezende, Mohamed 2015, arXiv:1505.05770.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, layers: int = 16, seed: int = 0
    ) -> None:
        super().__init__(image_shape, _of_bumps(Planar, image_shape, layers, seed))


class RadialFlow(Flow):
    """Radial layers: for densities of few numbers.

    Args:
        image_shape: (C, H, W).
        layers: Points.
        seed: Of the starting weights.
    Source: Rezende, Mohamed 2015, arXiv:1505.05770.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, layers: int = 16, seed: int = 0
    ) -> None:
        super().__init__(image_shape, _of_bumps(Radial, image_shape, layers, seed))
