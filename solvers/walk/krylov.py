"""Generalised conjugate residuals: a linear system solved from products with its matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.solvers.walk.steps import where_rows


@dataclass(frozen=True)
class Known:
    """What one system tells of the next, which is like it.

    Attributes:
        pairs: (z_j, M z_j) of its iterations, (B, ...) each; the M z_j of a row are orthonormal,
            or 0.
        asked: Rows of which the next system is to ask them first, (B,) bool.
    """

    pairs: Sequence[tuple[Tensor, Tensor]]
    asked: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return _dot(a, b) / (_dot(a, a) * _dot(b, b)).sqrt().clamp(min=torch.finfo(a.dtype).tiny)


class Solution(NamedTuple):
    """What `krylov_solve` found.

    Attributes:
        v: M v is about b, (B, ...).
        image: L v.
        known: For the next system.
    """

    v: Tensor
    image: Tensor
    known: Known


def krylov_solve(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]],
    b: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
    tolerance: float,
    known: Known | None = None,
) -> Solution:
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
        known: Of a system like this one. Of a residual r the part sum_j <r, M z_j> M z_j is
            answered by sum_j <r, M z_j> z_j, the rest by `precondition`; in rows of which the
            first product leaves half of b or more, the systems are not alike and it is
            `precondition` alone from there on. A row is asked so if the system before would have
            been: its own `known` came nearer in direction to v than `precondition` did.
    Source: Eisenstat, Elman, Schultz 1983, "Variational iterative methods for nonsymmetric
        systems of linear equations": minimises the residual as GMRES does. For `known`: Parks et
        al. 2006, "Recycling Krylov subspaces for sequences of linear systems"; there the products
        are made again, here the pairs only precondition.
    """
    residual, v = b, torch.zeros_like(b)
    image = b.new_zeros(())
    size = _dot(b, b).sqrt()
    target, half = tolerance * size, 0.5 * size
    plain = told = z = precondition(b)
    asked = torch.zeros_like(size, dtype=torch.bool)
    if known is not None:
        told, asked = _told(known, b, precondition), known.asked
        z = where_rows(asked, told, plain)
    directions: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in range(iterations):
        if i:
            z = precondition(residual)
            if known is not None and bool(asked.any()):
                z = where_rows(asked, _told(known, residual, precondition), z)
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
        asked = asked & (size < half) if not i else asked
        if not bool((size > target).any()):
            break
    nearer = _cosine(told, v) > _cosine(plain, v)
    return Solution(v, image, Known([(z, product) for z, product, _ in directions], nearer))


def _told(known: Known, residual: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
    """Return about M^-1 of the residual, by the known pairs and what is left by `precondition`."""
    answer = torch.zeros_like(residual)
    for z_j, product_j in known.pairs:
        c = per_row(_dot(residual, product_j), residual)
        answer, residual = answer + c * z_j, residual - c * product_j
    return answer + precondition(residual)
