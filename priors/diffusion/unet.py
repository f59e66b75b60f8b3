"""The network of the diffusion prior: a U-Net that two CPU cores can train.

What makes it cheap: images are folded 2x2 into channels before the first convolution, and
normalisation acts on the channels of one pixel, which is fast in channels-last memory and keeps
the network local: a crop of a photo is denoised as the photo is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from operator import ge
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.priors.base import check_counts, plain

EMBEDDING = 128


class PixelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, without learned scale or shift."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the noise level scales and shifts between them (FiLM)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(EMBEDDING, 2 * outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip: nn.Conv2d | nn.Identity = (
            nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(h), 1 + scale)
        return self.skip(x) + self.second(F.silu(h))


class SelfAttention(nn.Module):
    """Every pixel attends to every other, heads of 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads: int = max(1, channels // 32)
        self.norm = PixelNorm()
        self.queries_keys_values = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        packed = self.queries_keys_values(self.norm(x))
        # (B, 3 C, H, W) -> three of (B, heads, H W, C / heads)
        split = packed.reshape(batch, 3, self.heads, -1, height * width).transpose(-1, -2)
        mixed = F.scaled_dot_product_attention(*split.unbind(1))
        return x + self.project(mixed.transpose(-1, -2).reshape(x.shape))


class UNet(nn.Module):
    """Maps noisy images and their noise levels to an output of the images' shape.

    Args:
        channels: Image channels.
        widths: Feature channels at each resolution, finest first; each level halves the size.
        blocks: Residual blocks at each level, on the way down and again on the way up.
        unshuffle: Side of the pixel squares that are folded into channels at the entrance, 1 for
            none. With 2, a 28x28 image is worked on at 14x14 and 7x7.
        attention: One self-attention at the lowest resolution. It ties the network to images
            near the training size, so leave it out of a prior for photos of any size.
        seed: Of the starting weights.

    Any height and width goes through: images are padded inside (edge pixels repeated) to a
    multiple of `unshuffle * 2 ** (levels - 1)`.
    """

    config: dict[str, Any]
    multiple: int
    embed: nn.Sequential
    entrance: nn.Conv2d
    down: nn.ModuleList
    shrink: nn.ModuleList
    grow: nn.ModuleList
    up: nn.ModuleList
    norm: PixelNorm
    exit: nn.Conv2d

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (64, 128),
        blocks: Sequence[int] = (2, 3),
        unshuffle: int = 2,
        attention: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(blocks):
            raise ValueError(
                f"widths {tuple(widths)} and blocks {tuple(blocks)} must name the same levels"
            )
        counts = {"channels": channels, "widths": widths, "blocks": blocks, "unshuffle": unshuffle}
        for name, value in counts.items():
            check_counts(name, value)
        if not isinstance(attention, bool):
            raise ValueError(f"attention must be true or false, not {attention!r}")
        self.config = plain({**counts, "attention": attention})
        with torch.device("meta"):  # the default initialisation would move the global generator
            self._build(channels * unshuffle**2, widths, blocks, attention)
        self.to_empty(device="cpu")
        _initialise(self, torch.Generator().manual_seed(seed))
        self.multiple = unshuffle * 2 ** (len(widths) - 1)
        self.unshuffle = unshuffle
        half = torch.linspace(math.log(0.5), math.log(32.0), EMBEDDING // 4)
        self.frequencies: Tensor = nn.Buffer(half.exp(), persistent=False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def reach(self) -> int | None:
        """Distance in pixels beyond which input does not matter; None with attention."""
        if self.middle is not None:
            return None
        cell, total = self.unshuffle, 2 * self.unshuffle
        for level, stage in enumerate(self.down):
            ways = 2 if level < len(self.up) else 1
            total += ways * 2 * len(list(stage.children())) * cell * 2**level
        return total + self.multiple

    def _build(
        self, folded: int, widths: Sequence[int], blocks: Sequence[int], attention: bool
    ) -> None:
        self.embed = nn.Sequential(
            nn.Linear(EMBEDDING // 2, EMBEDDING),
            nn.SiLU(),
            nn.Linear(EMBEDDING, EMBEDDING),
            nn.SiLU(),
        )
        self.entrance = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_stage(w, w, n) for w, n in zip(widths, blocks, strict=True))
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.middle: SelfAttention | None = SelfAttention(widths[-1]) if attention else None
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(
            _stage(2 * w, w, n) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.norm = PixelNorm()
        self.exit = nn.Conv2d(widths[0], folded, 3, padding=1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Images, (B, C, H, W), of unit scale.
            noise: Noise level of each, (B,), any monotone scale of about unit size.
        Returns:
            (B, C, H, W).
        """
        height, width = x.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        h = F.pad(x, padding, mode="replicate") if any(padding) else x
        h = h.contiguous(memory_format=torch.channels_last)
        angles = noise[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.entrance(F.pixel_unshuffle(h, self.unshuffle))
        skips = []
        for level, stage in enumerate(self.down):
            h = _run(stage, h, embedding)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        if self.middle is not None:
            h = self.middle(h, embedding)
        for level in reversed(range(len(self.up))):
            h = torch.cat([self.grow[level](h), skips[level]], dim=1)
            h = _run(self.up[level], h, embedding)
        h = F.pixel_shuffle(self.exit(F.silu(self.norm(h))), self.unshuffle)
        return h[..., :height, :width]


def extends(config: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether a network of `config` can begin as a trained one of `other`.

    It may have more blocks, or attention, which start as nothing, and is else the same.
    """
    if {"blocks", "attention"} - (config.keys() & other.keys()):
        return config == other
    grown = {"blocks": config["blocks"], "attention": config["attention"]}
    ours, theirs = ([*c["blocks"], c["attention"]] for c in (config, other))
    return {**other, **grown} == config and len(ours) == len(theirs) and all(map(ge, ours, theirs))


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Uniform weights of variance 1 / (3 fan in), as torch's own; zeros where a branch ends.

    Every residual branch starts as nothing, so that depth costs nothing in early training.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            if name.endswith(("second", "project", "exit")):
                bound = 0.0
            for weight in layer.parameters(recurse=False):
                nn.init.uniform_(weight, -bound, bound, generator=generator)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs) for i in range(blocks))


def _run(stage: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for block in stage.children():
        h = block(h, embedding)
    return h
