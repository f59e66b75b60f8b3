"""Few random linear measurements of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genprior.operators.base import Shape, concrete
from genprior.operators.linear.base import LinearOperator
from genprior.operators.linear.matrix import Matrix
from genprior.operators.linear.spectrum import Spectrum
from genprior.operators.random import normal, uniform


class CompressedSensing(LinearOperator):
    """y = A x, A random with E ||A x||^2 = ||x||^2; y is (B, measurements).

    The rows are Gaussian with variance 1 / measurements, or structured (see `SubsampledDCT`):
    matrix-free, orthogonal, for large images. They are drawn once, here, and saved.

    Args:
        image_shape: (C, H, W).
        measurements: Number m of rows.
        generator: Draws the rows.
        structured: At most C H W rows then.
    """

    def __init__(
        self,
        image_shape: Shape,
        measurements: int,
        *,
        generator: torch.Generator,
        structured: bool = False,
    ) -> None:
        size = math.prod(concrete(image_shape))
        if not isinstance(measurements, int) or measurements < 1:
            raise ValueError(f"measurements must be a whole number >= 1, not {measurements!r}")
        if structured and measurements > size:
            raise ValueError(
                f"structured sensing takes at most {size} measurements of images "
                f"{tuple(image_shape)}, not {measurements}"
            )
        super().__init__(image_shape, (measurements,))
        if structured:
            kept = uniform((size,), generator).argsort()[:measurements].sort().values
            negative = uniform(concrete(image_shape), generator) < 0.5
            self.map: LinearOperator = SubsampledDCT(negative, kept)
        else:
            rows = normal((measurements, size), generator) / math.sqrt(measurements)
            self.map = Matrix(rows, image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.map.adjoint(y)

    def spectrum(self, like: Tensor | None = None) -> Spectrum | None:
        return self.map.spectrum(like)

    def diagonal(self, weights: Tensor, spectrum: Spectrum, like: Tensor) -> Tensor | None:
        return self.map.diagonal(weights, spectrum, like)


class SubsampledDCT(LinearOperator):
    """y = sqrt(d / m) S D R x: random signs R, orthonormal DCT-II D over (C, H, W), m rows S.

    Args:
        negative: Where R is -1, bool, (C, H, W).
        kept: Indices of the kept coefficients of the flattened (C, H, W), int64, (m,), distinct.
    """

    negative: Tensor
    kept: Tensor

    def __init__(self, negative: Tensor, kept: Tensor) -> None:
        super().__init__(tuple(negative.shape), (len(kept),))
        self.register_buffer("negative", negative)
        self.register_buffer("kept", kept)
        self._gain = math.sqrt(negative.numel() / len(kept))

    def forward(self, x: Tensor) -> Tensor:
        coefficients = _transform(torch.where(self.negative, -x, x), self._cosines(x))
        return self._gain * coefficients.flatten(1)[:, self.kept]

    def adjoint(self, y: Tensor) -> Tensor:
        coefficients = y.new_zeros(len(y), self.negative.numel())
        coefficients[:, self.kept] = self._gain * y
        cosines = [c.T for c in self._cosines(y)]
        x = _transform(coefficients.view(len(y), *self.negative.shape), cosines)
        return torch.where(self.negative, -x, x)

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        like = self._example(like)
        return Spectrum(like.new_full((1, 1), self._gain**2), to=lambda y: y, back=lambda c: c)

    def diagonal(self, weights: Tensor, spectrum: Spectrum, like: Tensor) -> Tensor:
        kept = like.new_zeros(1, self.negative.numel())
        kept[:, self.kept] = self._gain**2
        squares = [c.T.square() for c in self._cosines(like)]
        return _transform(kept.view(1, *self.negative.shape), squares) * weights[..., None, None]

    def _cosines(self, like: Tensor) -> list[Tensor]:
        def compute() -> list[Tensor]:
            return [_dct(n).to(like) for n in self.negative.shape]

        return self._memo.get((like.dtype, like.device), [self.negative], compute)


def _dct(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n), float64."""
    k = torch.arange(n, dtype=torch.float64)
    cosines = torch.cos(torch.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    cosines[0] /= math.sqrt(2)
    return cosines


def _transform(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply the axes C, H and W of x (B, C, H, W) with one matrix each."""
    channels, rows, columns = matrices
    x = rows @ x @ columns.T
    return torch.einsum("ij,bjhw->bihw", channels, x)
