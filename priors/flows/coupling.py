"""Coupling layers: one half of an image is moved by what the other half says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genprior.priors.flows.bijection import Bijection

Conditioner = Callable[[int, int], nn.Module]
"""(inputs, outputs) -> a network (B, inputs, H, W) -> (B, outputs, H, W)."""


class Partition(ABC):
    """How an image falls into a half that stays and a half that moves."""

    @abstractmethod
    def channels(self, channels: int) -> tuple[int, int]:
        """Of the half that stays and of the half that moves."""

    @abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the half that stays and the half that moves."""

    @abstractmethod
    def join(self, stays: Tensor, moves: Tensor) -> Tensor:
        """Put the halves together again."""

    @abstractmethod
    def moved(self, values: Tensor) -> Tensor:
        """Return `values` for the half that moves, 0 for what else stands in its tensor."""


class Channels(Partition):
    """The first half of the channels stays, or with `swapped` the second."""

    def __init__(self, *, swapped: bool = False) -> None:
        self.swapped = swapped

    def channels(self, channels: int) -> tuple[int, int]:
        if channels < 2:
            raise ValueError("one channel has no halves: squeeze first, or take a checkerboard")
        first = channels // 2
        return (channels - first, first) if self.swapped else (first, channels - first)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x.shape[1] // 2
        a, b = x[:, :first], x[:, first:]
        return (b, a) if self.swapped else (a, b)

    def join(self, stays: Tensor, moves: Tensor) -> Tensor:
        return torch.cat((moves, stays) if self.swapped else (stays, moves), 1)

    def moved(self, values: Tensor) -> Tensor:
        return values


class Checkerboard(Partition):
    """Pixels with i + j even stay, or with `swapped` the others; both halves keep their places."""

    def __init__(self, *, swapped: bool = False) -> None:
        self.swapped = swapped

    def channels(self, channels: int) -> tuple[int, int]:
        return channels, channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stays = self._stays(x)
        return torch.where(stays, x, 0.0), torch.where(stays, 0.0, x)

    def join(self, stays: Tensor, moves: Tensor) -> Tensor:
        return torch.where(self._stays(stays), stays, moves)

    def moved(self, values: Tensor) -> Tensor:
        return torch.where(self._stays(values), 0.0, values)

    def _stays(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        i = torch.arange(height, device=x.device)[:, None]
        j = torch.arange(width, device=x.device)
        return (i + j) % 2 == int(self.swapped)


class AdditiveCoupling(Bijection):
    """One half is moved by an amount that the other says; volume stays.

        z_a = x_a,   z_b = x_b + t(x_a)

    Args:
        channels: Of the images.
        partition: Which half is x_a.
        conditioner: Builds t.
    Source: Dinh, Krueger, Bengio 2015 (NICE), arXiv:1410.8516.
    """

    def __init__(self, channels: int, partition: Partition, conditioner: Conditioner) -> None:
        super().__init__()
        self.partition = partition
        self.network: nn.Module = conditioner(*partition.channels(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.partition.split(x)
        return self.partition.join(a, b + self.network(a).to(b.dtype)), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        a, b = self.partition.split(z)
        return self.partition.join(a, b - self.network(a).to(b.dtype))


class AffineCoupling(Bijection):
    """One half is scaled and moved by what the other says.

        z_a = x_a,   z_b = x_b exp(s(x_a)) + t(x_a),   log_det = sum s

    s = k tanh(r / k) of the network's output r, with k > 0 learned for each channel: unbounded
    scales overflow in training, and their inverse far from the data.

    Args:
        channels: Of the images.
        partition: Which half is x_a.
        conditioner: Builds the network that gives r and t.
    Source: Dinh, Sohl-Dickstein, Bengio 2017 (RealNVP), arXiv:1605.08803. Differs: the bound.
    """

    def __init__(self, channels: int, partition: Partition, conditioner: Conditioner) -> None:
        super().__init__()
        self.partition = partition
        stay, move = partition.channels(channels)
        self.network: nn.Module = conditioner(stay, 2 * move)
        self.log_bound = nn.Parameter(torch.zeros(move, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.partition.split(x)
        s, t = self._scale_and_shift(a)
        return self.partition.join(a, b * s.exp() + t), s.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        a, b = self.partition.split(z)
        s, t = self._scale_and_shift(a)
        return self.partition.join(a, (b - t) * (-s).exp())

    def _scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        r, t = self.network(a).to(a.dtype).chunk(2, dim=1)
        k = self.log_bound.exp()
        return self.partition.moved(k * torch.tanh(r / k)), self.partition.moved(t)
