"""The networks inside coupling layers; any network will do, as none is ever inverted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.priors.base import check_counts
from genprior.priors.flows.coupling import Conditioner
from genprior.priors.training import check_options, pick


def conditioner(config: dict[str, Any], size: Sequence[int]) -> Conditioner:
    """Return what builds the network of a coupling layer: it starts by giving zeros.

    Args:
        config: 'kind' (convolutional, transformer or perceptron) and the options of its class.
        size: (H, W) of the images.
    Raises:
        ValueError: The kind or an option is unknown, or out of range.
    """
    kinds = {"convolutional": Convolutions, "transformer": Transformer, "perceptron": Perceptron}
    kind, options = pick("network", config, kinds)
    check_options("network", options, kind)
    sized = {} if kind is Convolutions else {"size": size}
    return lambda inputs, outputs: kind(inputs, outputs, **sized, **options)


class Convolutions(nn.Module):
    """3x3, then residual blocks of 1x1 and 3x3, then 3x3 from zero.

    Args:
        inputs, outputs: Channels.
        width: Channels between.
        blocks: Residual blocks.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 64, blocks: int = 1) -> None:
        super().__init__()
        check_counts("width", width)
        check_counts("blocks", blocks)
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(width, width, 1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3 if i else 1, padding=1 if i else 0),
            )
            for i in range(blocks)
        )
        self.last: nn.Module = _from_zero(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(F.silu(x))


class Perceptron(nn.Module):
    """Fully connected, over all pixels at once.

    Args:
        inputs, outputs: Channels.
        size: (H, W) of the images.
        hidden: Widths of the hidden layers.
    """

    def __init__(
        self, inputs: int, outputs: int, *, size: Sequence[int], hidden: Sequence[int] = (500, 500)
    ) -> None:
        super().__init__()
        check_counts("hidden", hidden)
        self.shape: tuple[int, ...] = (outputs, *size)
        widths = (inputs * math.prod(size), *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        layers.append(_from_zero(nn.Linear(widths[-1], math.prod(self.shape))))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).unflatten(1, self.shape)


class Transformer(nn.Module):
    """A small vision transformer: patches attend to each other.

    Args:
        inputs, outputs: Channels.
        size: (H, W) of the images, multiples of `patch`.
        patch: Side of a patch.
        width: Numbers for each patch, a multiple of 32 (a head has 32).
        blocks: Of attention and a perceptron.

    Source: Kolesnikov, Pinto, Tschannen 2024 (Jet), arXiv:2412.15129, for its use in couplings.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: Sequence[int],
        patch: int = 1,
        width: int = 128,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        check_counts("patch", patch)
        check_counts("width", width)
        check_counts("blocks", blocks)
        height, breadth = size
        if width % 32 or height % patch or breadth % patch:
            raise ValueError(
                f"a transformer takes a width that is a multiple of 32 and patches that divide "
                f"{height}x{breadth} images, not width {width} and patch {patch}"
            )
        self.patch, self.grid = patch, (height // patch, breadth // patch)
        self.embed = nn.Conv2d(inputs, width, patch, stride=patch)
        self.place = nn.Parameter(torch.zeros(1, math.prod(self.grid), width))
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), False)
        self.last: nn.Module = _from_zero(nn.Linear(width, outputs * patch**2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        out = self.last(self.blocks(tokens)).transpose(1, 2).unflatten(2, self.grid)
        return F.pixel_shuffle(out, self.patch)


def _from_zero(layer: Any) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
