"""Operators diagonal in the Fourier basis: blur, and blur followed by decimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from genprior.operators.base import Shape
from genprior.operators.linear.base import LinearOperator
from genprior.operators.linear.spectrum import Map, Spectrum


class _Convolution(LinearOperator):
    """A circular convolution with a kernel centred at (h // 2, w // 2), of which y keeps a part.

    Every `factor`-th row and column from `offsets` on is measured, but for `lost` of them.
    """

    kernel: Tensor
    factor: int = 1
    offsets: tuple[int, int] = (0, 0)
    lost: tuple[int, int] = (0, 0)

    def __init__(self, kernel: Tensor, image_shape: Shape) -> None:
        if kernel.ndim != 2 or not kernel.is_floating_point() or not kernel.isfinite().all():
            raise ValueError(
                "kernel must be finite, floating point and (h, w), not "
                f"{kernel.dtype} {tuple(kernel.shape)}"
            )
        if len(image_shape) != 3:
            raise ValueError(f"image_shape must be (C, H, W), not {tuple(image_shape)}")
        super().__init__(image_shape, image_shape)
        self.register_buffer("kernel", kernel)
        self._check_size(image_shape[1:])

    def _keep(
        self, offsets: tuple[int, int], *, factor: int = 1, lost: tuple[int, int] = (0, 0)
    ) -> None:
        """Measure a part only."""
        self.offsets, self.factor, self.lost = offsets, factor, lost
        sides = zip(self.image_shape[1:], lost, strict=True)
        measured = (None if n is None else self._measured(n, less) for n, less in sides)
        self.measurement_shape: Shape = (self.image_shape[0], *measured)

    def _measured(self, n: int, lost: int) -> int:
        """How many of `n` rows or columns are measured."""
        if (n - lost) % self.factor:
            raise ValueError(
                f"the factor {self.factor} does not divide the image's side {n}: crop it"
            )
        return (n - lost) // self.factor

    def _kept(self, size: Sequence[int]) -> tuple[slice, ...]:
        """Which rows and columns of images of `size` are measured."""
        return tuple(
            slice(start, start + self._measured(n, lost) * self.factor, self.factor)
            for start, n, lost in zip(self.offsets, size, self.lost, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x)[(..., *self._kept(x.shape[-2:]))]

    def adjoint(self, y: Tensor) -> Tensor:
        sides = zip(y.shape[-2:], self.lost, strict=True)
        size = [n * self.factor + lost for n, lost in sides]
        x = y.new_zeros(*y.shape[:-2], *size)
        x[(..., *self._kept(size))] = y
        return self._convolve(x, adjoint=True)

    def _transfer(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Fourier transform (H, W // 2 + 1) of the kernel on an image of `size`."""

        def compute() -> Tensor:
            transfer = torch.fft.rfft2(self._centred(size))
            return transfer.to(self.kernel.device, _complex(dtype))

        return self._memo.get((size, dtype), [self.kernel], compute)

    def _centred(self, size: tuple[int, int]) -> Tensor:
        """The kernel in float64 on the CPU, zero-padded to `size`, its centre at (0, 0)."""
        self._check_size(size)
        h, w = self.kernel.shape
        padded = torch.zeros(size, dtype=torch.float64)
        padded[:h, :w] = self.kernel.cpu()
        return padded.roll((-(h // 2), -(w // 2)), (-2, -1))

    def _convolve(self, x: Tensor, *, adjoint: bool = False) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        transfer = self._transfer(size, x.dtype)
        transfer = transfer.conj() if adjoint else transfer
        return torch.fft.irfft2(torch.fft.rfft2(_wide(x)) * transfer, s=size).to(x.dtype)

    def spectrum(self, like: Tensor | None = None) -> Spectrum | None:
        """Diagonalise A A^T in the Fourier basis of measurements.

        Decimation folds the factor x factor frequencies that become one another's aliases: A
        multiplies those that fold onto each of (h, w) with transfer, (f, h, f, w).
        """
        like = self._example(like)
        h, w = like.shape[-2:]

        def compute() -> Spectrum:
            f, (top, left) = self.factor, self.offsets
            kernel = self._centred((h * f, w * f)).roll((-top, -left), (-2, -1))
            transfer = torch.fft.fft2(kernel).view(f, h, f, w) / f
            power = transfer.abs().square().sum(dim=(0, 2))
            return Spectrum(
                power[None, None].to(self.kernel.device, like.dtype),
                lambda y: torch.fft.fft2(_wide(y), norm="ortho"),
                lambda c: torch.fft.ifft2(c, norm="ortho").real.to(like.dtype),
                *_folded(transfer.to(self.kernel.device), like.dtype),
            )

        return self._memo.get(("spectrum", h, w, like.dtype), [self.kernel], compute)

    def diagonal(self, weights: Tensor, spectrum: Spectrum, like: Tensor) -> Tensor:
        f = self.factor
        channels, h, w = like.shape[1:]
        # All blocks and channels are alike: one impulse for each pixel of one block will do.
        impulses = like.new_zeros(f, f, 1, h * f, w * f)
        rows, columns = torch.meshgrid(torch.arange(f), torch.arange(f), indexing="ij")
        impulses[rows, columns, 0, rows, columns] = 1
        seen = spectrum.to(self(impulses.view(f * f, 1, h * f, w * f)))
        block = (weights * seen.abs().square().reshape(1, f * f, h, w)).sum(dim=(2, 3))
        return block.view(-1, 1, f, f).repeat(1, channels, h, w)

    def _check_size(self, size: Shape) -> None:
        for name, has, needs in zip(("height", "width"), size, self.kernel.shape, strict=True):
            if has is not None and has < needs:
                raise ValueError(
                    f"the kernel {tuple(self.kernel.shape)} exceeds the image: its {name} is "
                    f"{has}; crop the kernel or pad the image"
                )


class Blur(_Convolution):
    """y = kernel * x, every channel by itself: a convolution, not a correlation.

        y[p] = sum_q kernel[q] x[p - q],  q from the kernel's centre

    One bright pixel becomes the kernel, upright.

    "circular" wraps around the borders. "valid" keeps the pixels that need nothing from beyond
    them: y is smaller by (h - 1, w - 1), and solves are iterative.

    Args:
        kernel: (h, w), centred at (h // 2, w // 2); not normalised here.
        image_shape: (C, H, W), None where any size will do.
        boundary: "circular" or "valid".
    """

    def __init__(
        self,
        kernel: Tensor,
        image_shape: Shape,
        *,
        boundary: Literal["circular", "valid"] = "circular",
    ) -> None:
        if boundary not in ("circular", "valid"):
            raise ValueError(f'boundary must be "circular" or "valid", not {boundary!r}')
        super().__init__(kernel, image_shape)
        self.boundary = boundary
        if boundary == "valid":
            # Without the rows and columns next to the borders that the kernel wraps around.
            h, w = kernel.shape
            self._keep((h - 1 - h // 2, w - 1 - w // 2), lost=(h - 1, w - 1))

    def spectrum(self, like: Tensor | None = None) -> Spectrum | None:
        return None if self.boundary == "valid" else super().spectrum(like)


class Downsampling(_Convolution):
    """y = (kernel * x) at every factor-th pixel: super-resolution. The borders wrap around.

    Args:
        factor: Reduction of height and width, which it must divide.
        image_shape: (C, H, W) of the large image, None where any size will do.
        kernel: (h, w); by default the mean over each block of factor x factor pixels. Others
            are aligned likewise: to the middle of the block, or half a pixel before it where
            kernel and factor are not both odd or both even.
    """

    def __init__(self, factor: int, image_shape: Shape, *, kernel: Tensor | None = None) -> None:
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"factor must be a whole number >= 1, not {factor!r}")
        if kernel is None:
            kernel = torch.full((factor, factor), 1 / factor**2, dtype=torch.float64)
        super().__init__(kernel, image_shape)
        top, left = (max(0, (factor - 2 + n % 2) // 2) for n in kernel.shape)
        self._keep((top, left), factor=factor)


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32, as no processor transforms it, nor graphics cards all sizes."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _folded(transfer: Tensor, dtype: torch.dtype) -> tuple[Map, Map]:
    """Return x -> F A x and its adjoint; A multiplies frequencies with `transfer` (f, h, f, w)."""
    factor, h, _, w = transfer.shape
    forth = transfer.to(_complex(dtype))
    back = forth.conj().resolve_conj()

    def to(x: Tensor) -> Tensor:
        c = torch.fft.fft2(_wide(x), norm="ortho")
        if factor == 1:
            return c * forth[0, :, 0]
        return (c.reshape(*c.shape[:-2], factor, h, factor, w) * forth).sum((-4, -2))

    def adjoint(c: Tensor) -> Tensor:
        if factor == 1:
            return torch.fft.ifft2(c * back[0, :, 0], norm="ortho").real.to(dtype)
        spread = (c[..., None, :, None, :] * back).reshape(*c.shape[:-2], factor * h, factor * w)
        return torch.fft.ifft2(spread, norm="ortho").real.to(dtype)

    return to, adjoint
