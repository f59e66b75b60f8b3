"""The networks of the hierarchical VAE: groups of latents along a top-down path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from genprior.priors.base import check_counts
from genprior.priors.vae.coders import ResidualCell


@dataclass(frozen=True)
class Levels:
    """Sizes of the hierarchy, fine to coarse."""

    widths: Sequence[int]
    groups: Sequence[int]
    latent_channels: int
    whole: int


class Group(nn.Module):
    """One group of latents: its prior given h, the posterior's residual, its effect on h."""

    def __init__(self, width: int, latent_channels: int) -> None:
        super().__init__()
        self.prior = nn.Sequential(
            ResidualCell(width), nn.SiLU(), nn.Conv2d(width, 2 * latent_channels, 1)
        )
        self.residual = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            ResidualCell(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * latent_channels, 1),
        )
        self.enter = nn.Conv2d(latent_channels, width, 1)
        self.cell = ResidualCell(width)

    def posterior(self, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std of the standardised residual e given the image."""
        mean, log_std = self.residual(torch.cat([h, features], 1)).chunk(2, 1)
        return mean, _bounded(log_std).exp()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Take z = mean(h) + std(h) e in."""
        mean, log_std = self.prior(h).chunk(2, 1)
        return self.cell(h + self.enter(mean + _bounded(log_std).exp() * e))


class Whole(nn.Module):
    """The first group where it is a vector that belongs to no place: it reaches all of h."""

    def __init__(self, whole: int, coarse: tuple[int, int, int]) -> None:
        super().__init__()
        size = math.prod(coarse)
        self.residual = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(size, 2 * whole))
        self.enter = nn.Sequential(
            nn.Flatten(), nn.Linear(whole, size), nn.Unflatten(1, coarse), ResidualCell(coarse[0])
        )

    def posterior(self, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.residual(features)[:, :, None, None].chunk(2, 1)
        return mean, _bounded(log_std).exp()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return h + self.enter(e)


def _bounded(log_std: Tensor) -> Tensor:
    """Keep a log std within 5 of 0, smoothly."""
    return 5 * torch.tanh(log_std / 5)


Choose = Callable[[Group | Whole, Tensor, int], Tensor]
"""choose(group, h, level) -> e (B, c, h, w)."""


class Hierarchy(nn.Module):
    """Bottom-up features of the image, and the top-down path that all groups write to."""

    def __init__(self, image_shape: tuple[int, int, int], levels: Levels, outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        widths = levels.widths
        factor = 2 ** len(widths)
        self.top = nn.Parameter(torch.empty(1, widths[-1], height // factor, width // factor))
        self.entrance = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        )
        self.up = nn.ModuleList(ResidualCell(w) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.groups = nn.ModuleList(
            nn.ModuleList(Group(w, levels.latent_channels) for _ in range(n))
            for w, n in zip(widths, levels.groups, strict=True)
        )
        if levels.whole:
            coarse = (widths[-1], height // factor, width // factor)
            self.groups[-1].insert(0, Whole(levels.whole, coarse))  # pyright: ignore
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths)
        )
        self.exit = nn.Sequential(
            ResidualCell(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], 4 * channels * outputs, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def start_at_the_prior(self) -> None:
        """Set what must start at zero: every group's prior and posterior are then N(0, I)."""
        nn.init.zeros_(self.top)
        for group in self.modules():
            heads = {Group: ("prior", "residual"), Whole: ("residual",)}.get(type(group), ())
            for name in heads:
                nn.init.zeros_(getattr(group, name)[-1].weight)

    def ascend(self, x: Tensor) -> list[Tensor]:
        """Return the features of each level, fine to coarse."""
        h = self.entrance(x)
        features = []
        for level, cell in enumerate(self.up):
            h = cell(h)
            features.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        return features

    def descend(self, count: int, choose: Choose) -> Tensor:
        """Run top-down; `choose(group, h, level)` gives each group's e, coarse first."""
        h = self.top.expand(count, -1, -1, -1)
        for level in reversed(range(len(self.up))):
            for group in self.groups[level]:  # pyright: ignore[reportGeneralTypeIssues]
                h = group(h, choose(group, h, level))
            if level:
                h = self.grow[level - 1](h)
        return self.exit(h)


def group_shapes(image_shape: tuple[int, int, int], levels: Levels) -> list[tuple[int, int, int]]:
    _, height, width = image_shape
    whole = [(levels.whole, 1, 1)] if levels.whole else []
    return whole + [
        (levels.latent_channels, height >> (level + 1), width >> (level + 1))
        for level in reversed(range(len(levels.widths)))
        for _ in range(levels.groups[level])
    ]


def check_levels(image_shape: tuple[int, int, int], levels: Levels) -> None:
    widths, groups = levels.widths, levels.groups
    check_counts("widths", widths)
    check_counts("groups", groups, least=0)
    check_counts("whole", levels.whole, least=0)
    check_counts("latent_channels", levels.latent_channels)
    factor = 2 ** len(widths)
    if not widths or len(widths) != len(groups) or sum(groups) + levels.whole < 1:
        raise ValueError(
            f"widths {tuple(widths)} and groups {tuple(groups)} must name the same levels, with "
            "at least one group"
        )
    if image_shape[1] % factor or image_shape[2] % factor:
        raise ValueError(
            f"images of {image_shape[1]}x{image_shape[2]} must be divisible by {factor}, once "
            f"halved for each of widths {tuple(widths)}"
        )
