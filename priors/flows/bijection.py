"""What every invertible layer promises, and layers one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible, differentiable map of each row of a batch.

        z = f(x),   log_det = log |det df/dx|

    `genprior.priors.testing.check_bijection` checks one of your own.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log_det.

        Args:
            x: (B, C, H, W).
        Returns:
            z, (B, ...) with as many numbers as x, and log |det df/dx| in nats, (B,), in x's
            dtype whatever the autocast.
        """

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return x with f(x) = z, differentiably."""

    def split(self, z: Tensor) -> list[Tensor]:
        """Return the groups that z (B, ...) consists of, the coarsest first."""
        return [z]


class Chain(Bijection):
    """Layers one after another: their log-determinants add up."""

    layers: nn.ModuleList

    def __init__(self, layers: Iterable[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z = layer.inverse(z)  # type: ignore[operator]  # a ModuleList of bijections
        return z

    def split(self, z: Tensor) -> list[Tensor]:
        return self.layers[-1].split(z)  # type: ignore[operator]


class Flatten(Bijection):
    """Lay an image (B, C, H, W) out as a vector (B, C H W)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.shape)

    def split(self, z: Tensor) -> list[Tensor]:
        return [self.inverse(z)]


@torch.no_grad()
def first_not_finite(bijection: Bijection, x: Tensor) -> str | None:
    """Name the first layer whose value or log-determinant is not finite on x, None if all are."""
    names = {module: name for name, module in bijection.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        if not found and not all(bool(part.isfinite().all()) for part in output):
            found.append(f"{names[module]} ({type(module).__name__})")

    leaves = [m for m in bijection.modules() if isinstance(m, Bijection)]
    leaves = [m for m in leaves if not any(isinstance(c, Bijection) for c in _below(m))]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        bijection(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _below(module: nn.Module) -> list[nn.Module]:
    return list(module.modules())[1:]
