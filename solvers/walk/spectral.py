"""A problem in the coordinates of its operator's singular vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators import SVD, LinearOperator, Problem
from genprior.operators.base import per_row
from genprior.solvers.walk.levels import noise_std
from genprior.solvers.walk.walk import row_norm


@dataclass(frozen=True)
class Spectral:
    """ybar = U^* y / s = V^* x + (sigma_y / s) n, coefficient by coefficient.

    Attributes:
        svd: Of A.
        y: ybar, 0 where s = 0.
        noise: Its standard deviation sigma_y / s, 0 where s = 0 (`svd.v` drops those).
        missed: U^* y where s = 0, which no image explains; 0 elsewhere.
    """

    svd: SVD
    y: Tensor
    noise: Tensor
    missed: Tensor

    @classmethod
    def of(cls, problem: Problem, name: str) -> Spectral:
        """Decompose `problem`.

        Raises:
            TypeError: The operator has no singular value decomposition in closed form.
        """
        operator = problem.operator
        svd = operator.svd(problem.y) if isinstance(operator, LinearOperator) else None
        if svd is None:
            raise TypeError(
                f"{name} needs a singular value decomposition, which "
                f"{type(operator).__name__} does not have in closed form. Try MMPS, or "
                "operators with one: masks, circular blur, downsampling, matrices."
            )
        s = svd.singular_values
        inverse = torch.where(s > 0, 1 / s, 0.0)
        observed = operator.observed
        y = problem.y if observed is None else torch.where(observed, problem.y, 0.0)
        c = svd.ut(y)
        noise = inverse * per_row(noise_std(problem), inverse)
        return cls(svd, inverse * c, noise, torch.where(s > 0, 0.0, c))

    def vt(self, x: Tensor) -> Tensor:
        """V^* x: the coefficients of images."""
        return self.svd.vt(x)

    def v(self, coefficients: Tensor) -> Tensor:
        """V c: images within the range of A^T."""
        return self.svd.v(coefficients)

    def residual_norm(self, coefficients: Tensor) -> Tensor:
        """|y - A x| of images with the coefficients V^* x, (R,)."""
        residual = self.svd.singular_values * (self.y - coefficients) + self.missed
        return row_norm(torch.view_as_real(residual) if residual.is_complex() else residual)

    def rows(self, values: Tensor) -> Iterator[Tensor]:
        """Yield each step's numbers, given as (N, R), in a shape that multiplies coefficients."""
        yield from values.reshape(*values.shape, *[1] * (self.noise.ndim - 1)).unbind()
