"""What every degradation operator promises."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from genprior.operators.memo import Memo

Shape = tuple[int | None, ...]
"""A shape without its batch axis; None where any size will do."""


PerImage = float | Tensor
"""A number for all images, or one for each, (B,)."""


def concrete(shape: Shape) -> tuple[int, ...]:
    """Return `shape` if it leaves nothing open."""
    sizes = tuple(n for n in shape if n is not None)
    if len(sizes) < len(shape):
        raise ValueError(f"a shape without None is needed here, but {tuple(shape)} came")
    return sizes


def fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """Whether two shapes agree: as many axes, and one size where neither leaves it open (None)."""
    return len(shape) == len(wanted) and all(
        a == b or a is None or b is None for a, b in zip(shape, wanted, strict=True)
    )


def zero_unobserved(values: Tensor, observed: Tensor | None) -> Tensor:
    """Return `values` with zeros where nothing is observed; None observes everything."""
    return values if observed is None else torch.where(observed, values, 0.0)


def per_row(value: PerImage, like: Tensor) -> Tensor:
    """Shape a float or a (B,) tensor so that it broadcasts against `like` (B, ...)."""
    if not (isinstance(value, Tensor) and value.dtype == like.dtype):
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    elif value.device != like.device:
        value = value.to(like.device)
    if not value.ndim:
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


class Operator(nn.Module, ABC):
    """A map from an image x to a noise-free measurement y, linear or not.

    Attributes:
        image_shape: (C, H, W), None where any size will do.
        measurement_shape: Shape of one measurement, None likewise.
    """

    image_shape: Shape
    measurement_shape: Shape

    def __init__(self, image_shape: Shape, measurement_shape: Shape) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.measurement_shape = tuple(measurement_shape)
        self._memo = Memo()

    def extra_repr(self) -> str:
        return f"{self.image_shape} -> {self.measurement_shape}"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Degrade images (B, *image_shape) to measurements (B, *measurement_shape)."""

    @property
    def observed(self) -> Tensor | None:
        """Which entries of y are real: bool, broadcasts to y (B, ...); None for all."""
        return None

    def keep_observed(self, y: Tensor) -> Tensor:
        """Return y with zeros where nothing is observed."""
        return zero_unobserved(y, self.observed)

    @property
    def rows(self) -> int | None:
        """Number of images that per-image state is held for; None where there is none."""
        return None

    def take(self, index: Tensor) -> Self:
        """Return a copy with the rows `index` of per-image state; itself where there is none."""
        return self

    def copy_to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return a copy on `device` in `dtype`; unlike `to`, this one stays where it is."""
        return copy.deepcopy(self).to(device=device, dtype=dtype)

    def _copy_with(self, **parts: Tensor | nn.Module) -> Self:
        """A shallow copy with some buffers or modules replaced; nothing else is duplicated."""
        other = copy.copy(self)
        other._buffers, other._modules = dict(self._buffers), dict(self._modules)
        other._memo = Memo()
        for name, part in parts.items():
            setattr(other, name, part)
        return other
