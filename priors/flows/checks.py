"""Checks that every bijection must pass; `genprior.priors.testing` offers them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from genprior.operators.random import normal
from genprior.priors.flows.bijection import Bijection

COUNT = 3
"""Images in a batch."""

REACH, CELLS = 12.0, 600
"""Half the side of the square that a density of two numbers is summed over, and cells a side."""


def check_bijection(bijection: Bijection, shape: tuple[int, int, int], *, seed: int = 0) -> None:
    """Run the checks of `BIJECTION_CHECKS` on a copy in float64.

    Args:
        bijection: Small: Jacobians are formed. Its weights should be no identity: train it, or
            stir it.
        shape: (C, H, W) of the images to try.
        seed: Of the images.
    Raises:
        AssertionError: A promise is broken; the message says which and by how much.
    """
    copied = copy.deepcopy(bijection).double()
    x = 0.5 + 0.2 * normal(
        (COUNT, *shape), torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    for check in BIJECTION_CHECKS:
        check(copied, x.clamp(0.02, 0.98))


def check_inverse(bijection: Bijection, x: Tensor) -> None:
    """inverse(f(x)) = x and f(inverse(z)) = z, to 1e-10."""
    z, _ = bijection(x)
    _close(bijection.inverse(z), x, "inverse(f(x)) and x")
    away = z + 0.3 * torch.sin(torch.arange(z.numel(), dtype=z.dtype)).view_as(z)
    _close(bijection(bijection.inverse(away))[0], away, "f(inverse(z)) and z")


def check_log_determinant(bijection: Bijection, x: Tensor) -> None:
    """log_det is that of the Jacobian by autograd, and of the inverse's with the sign turned."""
    z, log_det = bijection(x)
    for i in range(len(x)):
        row = x[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v)[0], row)
        back = torch.autograd.functional.jacobian(bijection.inverse, z[i : i + 1].detach())
        for what, matrix, sign in (("f", jacobian, 1), ("the inverse", back, -1)):
            volume = torch.linalg.slogdet(matrix.reshape(row.numel(), -1)).logabsdet  # type: ignore[union-attr]
            _close(sign * volume, log_det[i], f"log_det and the Jacobian of {what}")


def check_gradients(bijection: Bijection, x: Tensor) -> None:
    """Every parameter has a part in z or log_det, and all that is computed can be derived."""
    parameters = dict(bijection.named_parameters())
    if not parameters:
        return
    z, log_det = bijection(x)
    v = torch.cos(torch.arange(z.numel(), dtype=z.dtype)).view_as(z)
    loss = (z * v).sum() + log_det.sum()
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, found, strict=True):
        reached = gradient is not None and bool(gradient.any())
        assert reached, f"no gradient reaches {name}"
        assert bool(gradient.isfinite().all()), f"the gradient of {name} is not finite"


def check_bijection_rows(bijection: Bijection, x: Tensor) -> None:
    """Row i of a batch gives what row i gives alone."""
    z, log_det = bijection(x)
    alone = [bijection(row) for row in x.split(1)]
    _close(torch.cat([a[0] for a in alone]), z, "z in a batch and alone")
    _close(torch.cat([a[1] for a in alone]), log_det, "log_det in a batch and alone")


def check_precision(bijection: Bijection, x: Tensor) -> None:
    """Under an autocast to bfloat16 values and log-determinants stay in the images' precision."""
    single = copy.deepcopy(bijection).float()
    with torch.autocast(x.device.type, torch.bfloat16):
        for part in single(x.float()):
            assert part.dtype == torch.float32, f"under an autocast float32 became {part.dtype}"


def check_weights(bijection: Bijection, x: Tensor) -> None:
    """Weights that are stored and loaded give the same map."""
    again = copy.deepcopy(bijection)
    for tensor in (*again.parameters(), *again.buffers()):
        tensor.data = torch.zeros_like(tensor)
    again.load_state_dict(bijection.state_dict())
    for a, b in zip(again(x), bijection(x), strict=True):
        _close(a, b, "results before and after loading")


def check_integral(bijection: Bijection, x: Tensor) -> None:
    """A density of two numbers on the whole plane integrates to 1, by a sum over a square."""
    if x[0].numel() != 2:
        return
    side = (torch.arange(CELLS, dtype=x.dtype) + 0.5) / CELLS * 2 * REACH - REACH
    points = torch.cartesian_prod(side, side).view(-1, *x.shape[1:])
    z, log_det = bijection(points)
    flat = z.flatten(1)
    log_p = -0.5 * flat.square().sum(1) - math.log(2 * math.pi) + log_det
    total = float(log_p.exp().sum()) * (2 * REACH / CELLS) ** 2
    if math.isnan(total):  # not defined on the whole plane
        return
    assert abs(total - 1) < 5e-3, f"the density integrates to {total:.4f}"


BIJECTION_CHECKS: tuple[Callable[[Bijection, Tensor], None], ...] = (
    check_inverse,
    check_log_determinant,
    check_gradients,
    check_bijection_rows,
    check_precision,
    check_weights,
    check_integral,
)
"""What every bijection promises."""


def _close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    scale = 1 + float(expected.detach().abs().max())
    error = float((found - expected).detach().abs().max())
    assert error <= tolerance * scale, f"{what} differ by {error:.2g} (numbers up to {scale:.2g})"
