"""Generalised conjugate residuals: a linear system solved from products with its matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genprior.operators.base import per_row


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def krylov_solve(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]],
    b: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Solve M v = b for each row, M square and perhaps not symmetric.

    Each iteration costs one product; the residual never grows. Row i's result depends on row i
    alone: a row that has converged is not touched again.

    Args:
        apply: v -> (M v, L v) with any linear map L, whose value at the solution is wanted too:
            it is summed up along the way and costs no further product.
        b: (B, ...).
        precondition: An approximate inverse of M.
        iterations: Most products.
        tolerance: Stop where |b - M v| <= tolerance |b|.
    Returns:
        v and L v.
    Source: Eisenstat, Elman, Schultz 1983, "Variational iterative methods for nonsymmetric
        systems of linear equations": minimises the residual as GMRES does.
    """
    residual, v = b, torch.zeros_like(b)
    image = b.new_zeros(())
    size = _dot(b, b).sqrt()
    target = tolerance * size
    directions: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(iterations):
        z = precondition(residual)
        product, mapped = apply(z)
        for z_j, product_j, mapped_j in directions:
            overlap = per_row(_dot(product, product_j), z)
            z, product = z - overlap * z_j, product - overlap * product_j
            mapped = mapped - per_row(overlap.flatten(), mapped) * mapped_j
        norm = _dot(product, product).sqrt()
        active = (size > target) & (norm > 0)
        inverse = torch.where(active, 1 / norm, 0.0)
        z, product, mapped = (t * per_row(inverse, t) for t in (z, product, mapped))
        length = _dot(product, residual)
        v, residual = v + per_row(length, z) * z, residual - per_row(length, product) * product
        image = image + per_row(length, mapped) * mapped
        directions.append((z, product, mapped))
        size = _dot(residual, residual).sqrt()
        if not bool((size > target).any()):
            break
    return v, image
