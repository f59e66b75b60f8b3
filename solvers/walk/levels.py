"""The noise levels of a walk: how far down it must go, and how to space them."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators import PoissonNoise, Problem
from genprior.operators.base import per_row
from genprior.priors import samplers
from genprior.solvers.base import Counted

NOISE_FREE = 0.03
"""The last sigma as a share of the data's standard deviation where y has no noise."""

ABOVE_DATA = 100.0
"""The first sigma as a multiple of the data's standard deviation, where the prior goes so far."""

POWER_ITERATIONS = 8
"""Products with A A^T that estimate its largest eigenvalue where no closed form gives it."""


def noise_level(problem: Problem) -> Tensor:
    """Return the std of an average entry of y, (B,): sigma, or that of Poisson counts."""
    if not isinstance(problem.noise, PoissonNoise):
        return problem.sigma
    photons = problem.operator.keep_observed(problem.y).flatten(1).sum(1)
    peak = per_row(problem.noise.peak, photons)
    return (torch.maximum(photons, 1 / peak) / (peak * problem.observed_count)).sqrt()


def noise_grid(
    problem: Problem,
    prior: Counted,
    steps: int,
    *,
    below_noise: float = 0.1,
    below_data: float = 0.03,
    top: float = 1.0,
) -> Tensor:
    """Space noise levels evenly in log sigma between `noise_ends`, (steps, B)."""
    high, low = noise_ends(problem, prior, below_noise=below_noise, below_data=below_data, top=top)
    return samplers.log_uniform(high, low, steps, like=problem.y)


def noise_ends(
    problem: Problem,
    prior: Counted,
    *,
    below_noise: float = 0.1,
    below_data: float = 0.03,
    top: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the first sigma of a walk and the last, a share of each row's own noise, (B,).

    The last level sets what the walk can resolve: a posterior is about sigma_y / s wide along a
    singular vector of A with value s, so the largest s counts: operators' scale does not matter.

    Args:
        below_noise: The last sigma as a share of that width; the walk loses its square from the
            variance.
        below_data: The same for the data's standard deviation.
        top: The first sigma as a share of `ABOVE_DATA` data standard deviations, or of the
            prior's largest where that is less.
    """
    scale = prior.data_scale
    width = noise_width(problem)
    low = (below_noise * width).clamp(max=below_data * scale)
    smallest, largest = prior.sigma_range
    low = torch.where(width > 0, low, NOISE_FREE * scale).clamp(min=smallest)
    return low.clamp(min=top * min(largest, ABOVE_DATA * scale)), low


def noise_width(problem: Problem) -> Tensor:
    """Return the noise's std over A's largest singular value, (B,): what y can resolve."""
    return noise_level(problem) / largest_singular_value(problem)


def largest_singular_value(problem: Problem) -> Tensor:
    """Return A's largest singular value for each row, (B,); 1 where A is not linear.

    Without a closed form by `POWER_ITERATIONS` steps of u <- A A^T u, from a start that is
    neither constant nor orthogonal to what is; that many find it within a few per cent, from
    below.
    """
    y = problem.y
    if not problem.linear:
        return y.new_ones(len(y))
    operator = problem.linear_operator
    spectrum = operator.svd(y)
    if spectrum is not None:
        return spectrum.eigenvalues.flatten(1).amax(1).sqrt().expand(len(y))
    places = torch.arange(y[0].numel(), dtype=y.dtype, device=y.device)
    u = operator.keep_observed((1 + places.cos()).reshape(y[0].shape).expand_as(y))
    gain = y.new_ones(len(y))
    with torch.no_grad():
        for _ in range(POWER_ITERATIONS):
            length = torch.linalg.vector_norm(u.flatten(1), dim=1)
            pulled = operator.adjoint(u / per_row(torch.where(length > 0, length, 1.0), u))
            gain = torch.linalg.vector_norm(pulled.flatten(1), dim=1)
            u = operator.keep_observed(operator(pulled))
    return torch.where(gain > 0, gain, 1.0)


def ddpm_grid(problem: Problem, steps: int) -> Tensor:
    """Stride the 1000 noise levels of DDPM's linear schedule, as the papers' codes do.

        sigma = sqrt(1 / alpha_bar - 1) / 2,  beta from 1e-4 to 0.02

    The half turns units of [-1, 1] into ours of [0, 1]. It ends at sigma = .005 whatever the
    measurement noise.

    Returns:
        (steps, B).
    Source: Ho et al. 2020, arXiv:2006.11239.
    """
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    sigmas = (1 / (1 - betas).cumprod(0) - 1).sqrt() / 2
    chosen = torch.linspace(999, 0, min(steps, 1000)).round().long()
    return sigmas[chosen].to(problem.y)[:, None].expand(-1, len(problem.y))
