"""A problem in the coordinates of its operator's singular vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators import SVD, LinearOperator, Problem
from genprior.operators.base import per_row
from genprior.solvers.levels import noise_std


@dataclass(frozen=True)
class Spectral:
    """ybar = U^* y / s = V^* x + (sigma_y / s) n, coefficient by coefficient.

    Attributes:
        svd: Of A.
        y: ybar, 0 where s = 0.
        noise: Its standard deviation sigma_y / s, 0 where s = 0 (`svd.v` drops those).
    """

    svd: SVD
    y: Tensor
    noise: Tensor

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
        return cls(svd, inverse * svd.ut(y), inverse * per_row(noise_std(problem), inverse))

    def vt(self, x: Tensor) -> Tensor:
        """V^* x: the coefficients of images."""
        return self.svd.vt(x)

    def v(self, coefficients: Tensor) -> Tensor:
        """V c: images within the range of A^T."""
        return self.svd.v(coefficients)

    def rows(self, values: Tensor) -> Tensor:
        """One number for each row, (R, ...), in a shape that multiplies coefficients."""
        return per_row(values.flatten(), self.noise)
