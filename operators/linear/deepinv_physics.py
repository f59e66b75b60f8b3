"""An operator as a deepinv physics. Imports deepinv: `to_deepinv` imports this when called."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from genprior.operators.base import per_row
from genprior.operators.linear.base import LinearOperator


class OperatorPhysics(LinearPhysics):
    """y = operator(x). The keyword arguments that deepinv passes along are ignored."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(img_size=operator.image_shape)
        self.operator = operator

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return self.operator.adjoint(y)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        return self.operator.pinv(y)

    def prox_l2(
        self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor, **kwargs: Any
    ) -> Tensor:
        """argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2, gamma a number or one a row."""
        if not isinstance(z, Tensor):
            z = torch.full_like(self.operator.adjoint(y), z or 0.0)
        if isinstance(gamma, Tensor):
            gamma = gamma.flatten() if gamma.numel() > 1 else gamma.reshape(())
        # By Woodbury: x = z + gamma A^T (gamma A A^T + I)^-1 (y - A z).
        u = self.operator.solve_gram(y - self.operator(z), 1.0, scale=gamma)
        return z + per_row(gamma, z) * self.operator.adjoint(u)
