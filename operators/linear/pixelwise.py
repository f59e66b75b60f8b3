"""Operators that act on every pixel by itself: the identity and a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Self

from genprior.operators.base import Shape, fits
from genprior.operators.linear.base import LinearOperator
from genprior.operators.linear.spectrum import Spectrum


class _Pixelwise(LinearOperator):
    """A diagonal A: images and measurements share one shape and one basis."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def diagonal(self, weights: Tensor, spectrum: Spectrum, like: Tensor) -> Tensor:
        return (spectrum.eigenvalues * weights).expand(-1, *like.shape[1:]).clone()


class Identity(_Pixelwise):
    """y = x: denoising.

    Args:
        image_shape: (C, H, W), None where any size will do.
    """

    def __init__(self, image_shape: Shape) -> None:
        super().__init__(image_shape, image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        like = self._example(like)
        return Spectrum(like.new_ones([1] * like.ndim), to=_same, back=_same)


class Inpainting(_Pixelwise):
    """y = x where the mask is True, 0 elsewhere.

    y keeps the image's shape; its entries outside the mask are not `observed`.

    Args:
        mask: True where a pixel is measured, bool, (C or 1, H, W) shared by all images or
            (B, C or 1, H, W), one for each. One channel serves any number of channels.
        image_shape: (C, H, W); where None, the mask's, with C open if the mask has one channel.
    Raises:
        TypeError: The mask is not bool.
        ValueError: It measures nothing, or does not fit `image_shape`.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, *, image_shape: Shape | None = None) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor (True = measured), not {came}")
        if mask.ndim not in (3, 4):
            raise ValueError(
                f"mask must be (C or 1, H, W) or (B, C or 1, H, W), not {tuple(mask.shape)}"
            )
        mask = mask if mask.ndim == 4 else mask[None]
        empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"mask measures nothing: all False for image(s) {empty[:8]}")
        _, channels, height, width = mask.shape
        own = (None if channels == 1 else channels, height, width)
        image_shape = own if image_shape is None else image_shape
        if not fits(own, image_shape) or (channels > 1 and image_shape[0] is None):
            raise ValueError(
                f"mask {tuple(mask.shape)} does not fit images {tuple(image_shape)}: give it the "
                "same height and width, and one channel or as many as the image"
            )
        image_shape = (image_shape[0], height, width)
        super().__init__(image_shape, image_shape)
        self.register_buffer("mask", mask)

    @property
    def observed(self) -> Tensor:
        return self.mask

    @property
    def rows(self) -> int | None:
        return len(self.mask) if len(self.mask) > 1 else None

    def take(self, index: Tensor) -> Self:
        return self if self.rows is None else self._copy_with(mask=self.mask[index])

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, 0.0)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        dtype = self._example(like).dtype
        return self._memo.get(
            dtype, [self.mask], lambda: Spectrum(self.mask.to(dtype), to=_same, back=_same)
        )

    def observed_eigenvalues(self, like: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.mask.expand(-1, *like.shape[1:]).flatten(1)
        return seen.to(like.dtype), seen


def _same(y: Tensor) -> Tensor:
    return y
