"""How far an image is from explaining its measurement, in units of the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators import PoissonNoise, Problem
from genprior.operators.base import per_row

MISFIT = 1.5
"""A sample of the posterior has a misfit of 1, trained networks of 1.0 to 1.4; above this, and
five standard deviations of what noise does where y has few entries, y is not explained."""

LEAST_COUNT = 0.2
"""The fewest photons that an entry's Poisson variance is taken of; an image may be 0 or less."""

NOISE_FREE_MISFIT = 0.1
"""The same without noise, as a share of y's root mean square: a walk ends short of 0."""


def noise_std(problem: Problem, clean: Tensor) -> Tensor:
    """Return the standard deviation of each entry of y about clean = A(x), broadcasting to it.

    Poisson's is sqrt(clean / peak), at least that of `LEAST_COUNT`: y itself must not say it, for
    the pixels that caught few photons by chance would weigh most, and light would be lost.

    Raises:
        TypeError: The noise is neither Gaussian nor Poisson's.
    """
    if not isinstance(problem.noise, PoissonNoise):
        return per_row(problem.sigma, clean)
    peak = per_row(problem.noise.peak, clean)
    return torch.maximum(clean, LEAST_COUNT / peak).div(peak).sqrt()


def misfit(problem: Problem, x: Tensor) -> Tensor:
    """Return the root mean square of y - A(x) over observed entries, (B,), for x (B, C, H, W).

    In units of the noise's standard deviation, of 1 where there is none: 1 is right.
    """
    clean = problem.operator(x)
    std = noise_std(problem, clean)
    z = problem.operator.keep_observed((problem.y - clean) / torch.where(std > 0, std, 1.0))
    return (z.flatten(1).square().sum(1) / problem.observed_count).sqrt()


def largest_misfit(problem: Problem) -> Tensor:
    """Return the largest misfit at which y still counts as explained, (B,)."""
    largest = MISFIT + 5 / (2 * problem.observed_count).sqrt()
    if isinstance(problem.noise, PoissonNoise):
        return largest
    y = problem.operator.keep_observed(problem.y).flatten(1)
    size = (y.square().sum(1) / problem.observed_count).sqrt()
    noise_free = NOISE_FREE_MISFIT * torch.where(size > 0, size, 1.0)
    return torch.where(problem.sigma > 0, largest, noise_free)
