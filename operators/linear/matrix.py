"""Any linear map given as a dense matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genprior.operators.base import Shape, concrete
from genprior.operators.linear.base import LinearOperator
from genprior.operators.linear.spectrum import Spectrum, dense_spectrum


class Matrix(LinearOperator):
    """y = M x, x flattened row-major; y is (B, m).

    Solves use one eigendecomposition of M M^T, made at first use in float64 and kept.

    Args:
        matrix: (m, d).
        image_shape: (C, H, W) with C H W = d.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, image_shape: Shape) -> None:
        size = math.prod(concrete(image_shape))
        if matrix.ndim != 2 or matrix.shape[1] != size or not matrix.is_floating_point():
            raise ValueError(
                f"matrix must be floating point and (m, {size}) for images "
                f"{tuple(image_shape)}, not {matrix.dtype} {tuple(matrix.shape)}"
            )
        super().__init__(image_shape, (len(matrix),))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T.to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y.dtype)).reshape(len(y), *concrete(self.image_shape))

    def spectrum(self, like: Tensor | None = None) -> Spectrum:
        dtype = self._example(like).dtype
        return self._memo.get(dtype, [self.matrix], lambda: self._spectrum(dtype))

    def _spectrum(self, dtype: torch.dtype) -> Spectrum:
        factor = self._memo.get("factor", [self.matrix], self._factor)
        eigenvalues, vectors = (part.to(dtype) for part in factor)
        return dense_spectrum(eigenvalues, vectors, concrete(self.measurement_shape))

    def _factor(self) -> Sequence[Tensor]:
        """Eigenvalues (m,) and eigenvectors (m, m) of M M^T in float64."""
        matrix = self.matrix.double()
        return torch.linalg.eigh(matrix @ matrix.T)

    def diagonal(self, weights: Tensor, spectrum: Spectrum, like: Tensor) -> Tensor:
        columns = spectrum.to(self.matrix.T.to(like.dtype))
        return (weights @ columns.square().T).reshape(-1, *concrete(self.image_shape))
