"""One operator after another."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Self

from genprior.operators.base import Operator, concrete, fits
from genprior.operators.linear.base import LinearOperator


class Compose(Operator):
    """y = outer(inner(x)): blur then mask, and so on.

    Where both are linear, what is built is a `LinearCompose`.

    Args:
        outer: Applied last; its `observed` is that of the composition.
        inner: Applied first.
    Raises:
        ValueError: The shapes between them, or their per-image rows, do not fit.
    """

    def __new__(cls, *operators: Operator) -> Compose:
        # No operators: a copy of an instance is being made.
        linear = operators and all(isinstance(part, LinearOperator) for part in operators)
        return object.__new__(LinearCompose if linear else cls)

    def __init__(self, outer: Operator, inner: Operator) -> None:
        middle = inner.measurement_shape
        if not fits(middle, outer.image_shape):
            raise ValueError(
                f"{type(inner).__name__} measures {middle}, but {type(outer).__name__} takes "
                f"images {outer.image_shape}"
            )
        if None not in (outer.rows, inner.rows) and outer.rows != inner.rows:
            raise ValueError(
                f"the outer operator's state is for {outer.rows} images, the inner one's for "
                f"{inner.rows}"
            )
        shape = outer.measurement_shape
        if None in shape and None not in inner.image_shape:
            device = next((b.device for b in inner.buffers()), torch.device("cpu"))
            blank = torch.zeros(1, *concrete(inner.image_shape), device=device)
            shape = tuple(outer(inner(blank)).shape[1:])
        super().__init__(inner.image_shape, shape)
        self.outer: Operator = outer
        self.inner: Operator = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    @property
    def observed(self) -> Tensor | None:
        return self.outer.observed

    @property
    def rows(self) -> int | None:
        return self.outer.rows or self.inner.rows

    def take(self, index: Tensor) -> Self:
        if self.rows is None:
            return self
        return self._copy_with(outer=self.outer.take(index), inner=self.inner.take(index))


class LinearCompose(Compose, LinearOperator):
    """A composition of linear operators: solves are iterative."""

    outer: LinearOperator
    inner: LinearOperator

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))
