"""Hamiltonian Monte Carlo on many chains at once, each with its own adapted step size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.random import normal, uniform

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]
"""U(z (n, d)) -> values (n,), gradients (n, d); the target density is exp(-U)."""

DENSE = 64
"""Latents up to this size get a full metric, larger ones a diagonal."""


@dataclass(frozen=True)
class Point:
    """Where n chains stand."""

    z: Tensor
    value: Tensor
    gradient: Tensor


class StepSize:
    """Dual averaging of log step sizes towards an acceptance rate, one for each chain.

    Steps beyond `limit` are not taken: there the rate stays above its target.

    Source: Hoffman, Gelman 2014, arXiv:1111.4246, Section 3.2 and its constants.
    """

    target: float
    limit: float
    centre: Tensor
    log_step: Tensor
    average: Tensor
    error: Tensor
    count: int

    def __init__(self, start: Tensor, target: float, *, limit: float = math.inf) -> None:
        self.target, self.limit = target, math.log(limit)
        self.centre = (10 * start).log().clamp(max=self.limit)
        self.log_step, self.average = start.log(), start.log()
        self.error, self.count = torch.zeros_like(start), 0

    @property
    def step(self) -> Tensor:
        """The step size to try next, (n,)."""
        return self.log_step.exp()

    @property
    def final(self) -> Tensor:
        """The step size that adaptation settled at, (n,)."""
        return self.average.exp()

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the step sizes."""
        for name in ("centre", "log_step", "average", "error"):
            setattr(self, name, getattr(self, name)[rows])

    def update(self, acceptance: Tensor) -> None:
        """Take in the acceptance probabilities of the last step, (n,)."""
        self.count += 1
        weight = 1 / (self.count + 10)
        self.error = (1 - weight) * self.error + weight * (self.target - acceptance)
        log_step = self.centre - math.sqrt(self.count) / 0.05 * self.error
        self.log_step = log_step.clamp(max=self.limit)
        forget = self.count**-0.75
        self.average = forget * self.log_step + (1 - forget) * self.average


def hmc_step(
    potential: Potential,
    point: Point,
    step: Tensor,
    *,
    metric: Tensor,
    leapfrog: int,
    generators: Sequence[torch.Generator],
) -> tuple[Point, Tensor]:
    """Propose by following Hamilton's equations, accept by Metropolis.

    Args:
        potential: U of the n chains.
        point: Where they stand.
        step: Step sizes (n,); each is drawn within a fifth of this, so that no period is met.
        metric: Square root of each chain's inverse mass: (n, d), or (n, d, d) lower triangular.
        leapfrog: Steps of the integrator.
        generators: n of them.
    Returns:
        The next point, and the acceptance probabilities (n,); a proposal that is not finite is
        rejected.
    """
    like = {"dtype": point.z.dtype, "device": point.z.device}
    r = normal(point.z.shape, generators, **like)
    u = uniform((len(step), 2), generators, **like)
    epsilon = (step * (0.8 + 0.4 * u[:, 0]))[:, None]
    z, gradient, value = point.z, point.gradient, point.value
    start = point.value + 0.5 * r.square().sum(1)
    for _ in range(leapfrog):
        r = r - 0.5 * epsilon * _apply(metric, gradient, transpose=True)
        z = z + epsilon * _apply(metric, r)
        value, gradient = potential(z)
        r = r - 0.5 * epsilon * _apply(metric, gradient, transpose=True)
    change = start - value - 0.5 * r.square().sum(1)
    acceptance = change.clamp(max=0).exp().nan_to_num(nan=0.0)
    taken = u[:, 1] < acceptance
    moved = Point(
        z.where(taken[:, None], point.z),
        value.where(taken, point.value),
        gradient.where(taken[:, None], point.gradient),
    )
    return moved, acceptance


def _apply(metric: Tensor, v: Tensor, *, transpose: bool = False) -> Tensor:
    if metric.ndim == 2:
        return metric * v
    return torch.einsum("nji,nj->ni" if transpose else "nij,nj->ni", metric, v)


def fit_metric(z: Tensor, gradient: Tensor) -> Tensor:
    """Estimate the square root of the covariance of one target from draws and their gradients.

    Gradients know the curvature where draws have not yet explored, draws the spread where
    curvature varies: the geometric mean of cov(z) and cov(gradient)^-1 uses both.

    Args:
        z: (b, chains, draws, d), centred by chain here: modes do not widen it.
        gradient: Of the potential, likewise.
    Returns:
        (b, d), or (b, d, d) lower triangular for d up to `DENSE`; of a target that broke (NaN or
        infinite), no more than a scale.
    Source: Seyboldt et al. 2026 (nutpie), for the diagonal case.
    """
    dtype = z.dtype
    z, gradient = (a.to(torch.promote_types(dtype, torch.float32)) for a in (z, gradient))
    z, gradient = ((a - a.mean(2, keepdim=True)).flatten(1, 2) for a in (z, gradient))
    count, d = z.shape[1:]
    tiny = torch.finfo(z.dtype).tiny ** 0.5
    var_z, var_g = z.square().mean(1).clamp(min=tiny), gradient.square().mean(1).clamp(min=tiny)
    scale = (var_z / var_g) ** 0.25
    scale = scale.where(scale.isfinite() & (scale > 0), 1.0)
    if d > DENSE:
        return scale.to(dtype)
    a, b = (_shrunk(v, count) for v in (z / scale[:, None], gradient * scale[:, None]))
    root_b = _power(b, 0.5)
    inverse = _power(b, -0.5)
    mean = inverse @ _power(root_b @ a @ root_b, 0.5) @ inverse
    covariance = scale[:, :, None] * mean * scale[:, None, :]
    root, failed = torch.linalg.cholesky_ex(0.5 * (covariance + covariance.mT))
    return root.where((failed == 0)[:, None, None], torch.diag_embed(scale)).to(dtype)


def _shrunk(v: Tensor, count: int) -> Tensor:
    """The covariance of v (b, count, d), moved a little towards a thousandth of its mean variance.

    A small anchor: curvatures that differ by more than that are what the metric is there for.
    """
    covariance = v.mT @ v / count
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(v.shape[2], dtype=v.dtype, device=v.device)
    shrunk = (count * covariance + 5e-3 * mean[:, None, None] * eye) / (count + 5)
    return shrunk.where(shrunk.isfinite().flatten(1).all(1)[:, None, None], eye)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    floor = torch.finfo(matrix.dtype).eps * values[:, -1:]
    return vectors * values.maximum(floor).pow(exponent)[:, None] @ vectors.mT
