"""Adapters between deepinv's physics and operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genprior.operators.base import Operator, Shape, concrete
from genprior.operators.linear.base import LinearOperator
from genprior.operators.random import normal

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics, Physics


def from_deepinv(physics: Physics, image_shape: Shape) -> Operator:
    """Make an operator of any deepinv physics, a `LinearOperator` of a linear one.

    The physics is cloned and its noise model ignored. Complex measurements get a last axis
    (real, imaginary); lists of measurements are flattened into one, (B, m). The adjoint is the
    derivative of A, so it is exact whatever the physics' own adjoint approximates; solves are
    iterative.

    Args:
        physics: Its parameters must be shared by all images.
        image_shape: (C, H, W) of the images that it serves.
    Raises:
        TypeError: `physics` is not deepinv's.
        ValueError: It cannot serve such images, keeps parameters for each image, or its
            derivative is not its transpose.
    """
    from deepinv.physics import LinearPhysics, Physics

    if not isinstance(physics, Physics):
        raise TypeError(f"physics must be a deepinv Physics, not a {type(physics).__name__}")
    kind = LinearPhysicsOperator if isinstance(physics, LinearPhysics) else PhysicsOperator
    return kind(physics, image_shape)


def to_deepinv(operator: LinearOperator) -> LinearPhysics:
    """Make a noise-free deepinv `LinearPhysics` of a copy of `operator`.

    Its pseudo-inverse and proximal map are the operator's closed forms.
    """
    if not isinstance(operator, LinearOperator):
        raise TypeError(f"only a LinearOperator can be served, not a {type(operator).__name__}")
    from genprior.operators.linear.deepinv_physics import OperatorPhysics

    return OperatorPhysics(operator.copy_to())


class PhysicsOperator(Operator):
    """y = physics.A(x), differentiable by autograd. See `from_deepinv`."""

    def __init__(self, physics: Physics, image_shape: Shape) -> None:
        physics = physics.clone()
        for buffer in physics.buffers():
            # Some are expanded views, into which no state_dict can be loaded.
            buffer.data = buffer.clone(memory_format=torch.contiguous_format)
        measurement_shape, dtypes = _probe(physics, concrete(image_shape))
        super().__init__(image_shape, measurement_shape)
        self.physics = physics
        self._dtypes = dtypes

    def forward(self, x: Tensor) -> Tensor:
        # Some physics serve only the dtype that they were built with.
        dtype = x.dtype if x.dtype in self._dtypes else self._dtypes[0]
        return _measure(self.physics, x.to(dtype)).to(x.dtype)


class LinearPhysicsOperator(PhysicsOperator, LinearOperator):
    """A linear physics; the adjoint comes from autograd. See `from_deepinv`."""

    def __init__(self, physics: Physics, image_shape: Shape) -> None:
        super().__init__(physics, image_shape)
        generator = torch.Generator().manual_seed(0)
        like = self._example(None).to(self._dtypes[-1])
        x = normal((1, *concrete(self.image_shape)), generator).to(like)
        y = normal(like.shape, generator).to(like)
        ax = self(x)
        error = (torch.sum(ax * y) - torch.sum(x * self.adjoint(y))).abs() / ax.norm() / y.norm()
        if error > 1e-3:
            raise ValueError(
                f"the derivative of {type(physics).__name__} is not its transpose (relative "
                f"error {float(error):.1g}); build it with an exact adjoint, such as "
                "Tomography's adjoint_via_backprop=True"
            )

    def adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(len(y), *concrete(self.image_shape), dtype=y.dtype, device=y.device)
        return _Transpose.apply(y, self, x)


class _Transpose(torch.autograd.Function):
    """A^T y from the derivative of a linear A; its own derivative is A."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, operator: PhysicsOperator, x: Tensor) -> Tensor:
        ctx.operator = operator
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(operator(x), x, y)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.operator(gradients[0]), None, None


def _probe(
    physics: Physics, image_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], list[torch.dtype]]:
    """Shape of a measurement, and which float dtypes `physics` keeps."""
    device = next((b.device for b in physics.buffers()), torch.device("cpu"))
    found, failure = {}, None
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(1, *image_shape, dtype=dtype, device=device)
        try:
            found[dtype] = _measure(physics, x)
        except (RuntimeError, ValueError, IndexError) as error:
            failure = error
    dtypes = [dtype for dtype, y in found.items() if y.dtype == dtype]
    if not dtypes:
        raise ValueError(
            f"{type(physics).__name__} cannot serve images {image_shape}: {failure}"
        ) from failure
    rows, *shape = found[dtypes[0]].shape
    if rows != 1:
        raise ValueError(
            f"{type(physics).__name__} made {rows} measurements of one image: parameters of its "
            "own for each image are not served; share them, or pass one image at a time"
        )
    return tuple(shape), dtypes


def _measure(physics: Physics, x: Tensor) -> Tensor:
    """physics.A(x) as one real tensor."""
    y = physics.A(x)
    parts = [y] if isinstance(y, Tensor) else list(y)
    parts = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat([p.flatten(1) for p in parts], dim=1)
