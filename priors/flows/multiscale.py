"""Squeezing pixels into channels, and letting half of them go at each scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.priors.flows.bijection import Bijection


class Squeeze(Bijection):
    """Fold 2x2 pixels into channels: (C, H, W) to (4 C, H / 2, W / 2)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


class MultiScale(Bijection):
    """After each scale but the last half of the channels is done; the rest goes on.

    z holds the scales one after another, the coarsest first, (B, C H W). So a sample's layout
    comes from its first numbers.

    Args:
        scales: A bijection each.
        shapes: (C, H, W) of what each gives.
    Source: Dinh, Sohl-Dickstein, Bengio 2017 (RealNVP), section 3.6.
    """

    def __init__(
        self, scales: Sequence[Bijection], shapes: Sequence[tuple[int, int, int]]
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        last = len(shapes) - 1
        # The half that is done: the second one; at the last scale everything.
        done = [(c if i == last else c - c // 2, h, w) for i, (c, h, w) in enumerate(shapes)]
        self.group_shapes: tuple[tuple[int, int, int], ...] = tuple(reversed(done))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, groups = x.new_zeros(len(x)), []
        for i, scale in enumerate(self.scales):
            x, log_det = scale(x)
            total = total + log_det
            if i < len(self.scales) - 1:
                half = x.shape[1] // 2
                groups.append(x[:, half:])
                x = x[:, :half]
        groups.append(x)
        return torch.cat([group.flatten(1) for group in reversed(groups)], 1), total

    def inverse(self, z: Tensor) -> Tensor:
        x, *finer = self.split(z)
        for i, scale in enumerate(reversed(self.scales)):
            x = scale.inverse(x if i == 0 else torch.cat([x, finer[i - 1]], 1))  # type: ignore[operator]
        return x

    def split(self, z: Tensor) -> list[Tensor]:
        """Return the groups of z (B, C H W), the coarsest first, each (B, C_i, H_i, W_i)."""
        sizes = [torch.Size(shape).numel() for shape in self.group_shapes]
        parts = z.flatten(1).split(sizes, 1)
        return [p.unflatten(1, s) for p, s in zip(parts, self.group_shapes, strict=True)]
