"""How far images lie from what a generator makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vecdot

from genprior.operators.random import Generators, normal

Decode = Callable[[Tensor], Tensor]

CANDIDATES = 256
"""Draws of z among which each image's nearest are where its inversion starts."""
RATE = 0.1
"""Of Adam over z, brought linearly to zero."""
LEAST = 1 / 255 / 12**0.5
"""What rounding to 8 bits leaves, below which no spread is claimed."""
AT_ONCE = 64
"""Images inverted together."""


@torch.enable_grad()
def spread_about(
    decode: Decode,
    images: Tensor,
    latent_size: int,
    *,
    starts: int = 4,
    steps: int = 100,
    generator: Generators = None,
) -> float:
    """Fit the s of x = G(z) + s e with z ~ N(0, I) and e ~ N(0, I) to images.

    Each image has its z that is the most probable, by Adam from several starts. The distance
    that is left there is too short, as z was fitted to the noise too: of d pixels it took up

        gamma = tr(J^T J (J^T J + s^2 I)^-1)

    with J the Jacobian of G there (k where s is small), so that s^2 = |x - G(z)|^2 / (d - gamma).
    For a linear G that is probabilistic PCA's estimate.

    Args:
        decode: G, (B, k) -> (B, C, H, W), row by row.
        images: (B, C, H, W), in the dtype and on the device of G.
        latent_size: k.
        starts: For each image; the best counts.
        steps: Of Adam.
        generator: Of the starts.
    Raises:
        ArithmeticError: G's images are not finite.
    Source: MacKay 1992, "Bayesian interpolation" (gamma); Tipping, Bishop 1999, "Probabilistic
        principal component analysis".
    """
    like = {"dtype": images.dtype, "device": images.device}
    candidates = normal((CANDIDATES, latent_size), generator, **like)
    if not bool(decode(candidates[:1]).isfinite().all()):
        raise ArithmeticError("the generator makes no finite image: its training went wrong")
    left, curvature = [], []
    for x in images.split(AT_ONCE):
        z = _inverted(decode, x, candidates, starts, steps)
        left.append(_squares(x - decode(z).detach()))
        curvature.append(_curvature(decode, z))
    squares, values = torch.cat(left).double(), torch.cat(curvature)
    pixels = images[0].numel()
    variance = squares.mean() / pixels
    for _ in range(100):
        gamma = (values / (values + variance)).sum(1)
        variance = (squares.sum() / (pixels - gamma).sum()).clamp(min=LEAST**2)
    return float(variance.sqrt())


def _inverted(decode: Decode, x: Tensor, candidates: Tensor, starts: int, steps: int) -> Tensor:
    """Return for each image x, (B, C, H, W), a z where |x - G(z)|^2 / s^2 + |z|^2 is least.

    s^2 follows from what is left, over all images.
    """
    with torch.no_grad():
        away = torch.cdist(x.flatten(1), decode(candidates).flatten(1))
    nearest = away.topk(starts, largest=False).indices
    z = candidates[nearest].flatten(0, 1).requires_grad_()
    target = x.repeat_interleave(starts, 0)
    optimizer = torch.optim.Adam([z], RATE)
    for step in range(steps + 1):
        squares = _squares(target - decode(z))
        best = squares.detach().view(-1, starts).amin(1).mean()
        variance = (best / x[0].numel()).clamp(min=LEAST**2)
        energy = 0.5 * (squares / variance + z.square().sum(1))
        if step < steps:
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
            (z.grad,) = torch.autograd.grad(energy.sum(), z)
            optimizer.step()
    winner = energy.detach().view(-1, starts).argmin(1)
    return z.detach().view(len(x), starts, -1)[torch.arange(len(x), device=x.device), winner]


def _curvature(decode: Decode, z: Tensor) -> Tensor:
    """Return the eigenvalues of J^T J at each z (B, k), (B, k)."""
    columns = []
    for direction in torch.eye(z.shape[1], dtype=z.dtype, device=z.device):
        column = torch.func.jvp(decode, (z,), (direction.expand_as(z),))[1]
        columns.append(column.detach().flatten(1))
    jacobian = torch.stack(columns, 2).double()
    return torch.linalg.eigvalsh(jacobian.mT @ jacobian).clamp(min=0)


def _squares(x: Tensor) -> Tensor:
    return vecdot(x.flatten(1), x.flatten(1))
