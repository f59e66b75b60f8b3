"""Can draws be trusted? R-hat and effective size of chains, weights and families of particles."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.solvers.base import numbered


def split_r_hat(draws: Tensor) -> Tensor:
    """Return how much more the halves of chains differ than chance allows; 1 is converged.

    Args:
        draws: (..., chains, draws, d), at least 4 draws.
    Returns:
        (..., d); infinite where no chain moved.
    Source: Gelman et al. 2013, Bayesian Data Analysis, Section 11.4.
    """
    halves = _halves(draws)
    count = halves.shape[-2]
    within = halves.var(-2).mean(-2)
    between = halves.mean(-2).var(-2)
    ratio = (count - 1) / count + between / within
    return torch.where(within > 0, ratio.sqrt(), torch.inf)


def effective_sample_size(draws: Tensor) -> Tensor:
    """Return how many independent draws estimate the mean as well as these, (..., d).

    Args:
        draws: (..., chains, draws, d), at least 4 draws.
    Source: Gelman et al. 2013, Section 11.5; the sum of autocorrelations ends by Geyer's rule.
    """
    halves = _halves(draws)
    chains, count = halves.shape[-3], halves.shape[-2]
    centred = halves - halves.mean(-2, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * count, dim=-2)
    covariance = torch.fft.irfft(spectrum.abs().square(), dim=-2)[..., :count, :] / count
    within = halves.var(-2).mean(-2)
    total = (count - 1) / count * within + halves.mean(-2).var(-2)
    rho = 1 - (within[..., None, :] - covariance.mean(-3)) / total[..., None, :]
    even = count // 2 * 2
    pairs = rho[..., :even, :].unflatten(-2, (-1, 2)).sum(-2)
    # Sums of neighbouring autocorrelations are positive and falling; noise ends that.
    positive = (pairs > 0).to(pairs.dtype).cumprod(-2)
    pairs = pairs.cummin(-2).values * positive
    time = (2 * pairs.sum(-2) - 1).clamp(min=1)
    size = chains * count / time
    return torch.where(within > 0, size, torch.zeros_like(size))


def _halves(draws: Tensor) -> Tensor:
    """Cut every chain in two: one that drifts then differs from itself. At least float32."""
    half = draws.shape[-2] // 2
    if half < 2:
        raise ValueError(f"chains of {draws.shape[-2]} draws are too short to judge: take 4")
    draws = draws.to(torch.promote_types(draws.dtype, torch.float32))
    return torch.cat([draws[..., :half, :], draws[..., -half:, :]], dim=-3)


FAMILIES = 2.0
"""The fewest first particles, in effect, that the last may descend from. With fewer modes get
lost; the mean of `SMC` was off by .5 to 1 posterior standard deviations in most systems, with more
by .25 at most."""


def effective_size(weights: Tensor) -> Tensor:
    """Return 1 / sum w^2 of each system's weights (B, P), (B,)."""
    return 1 / weights.square().sum(1)


def family_shares(weights: Tensor, family: Tensor) -> Tensor:
    """Sum the weights (B, P) of particles that descend from the same first one, (B, P).

    Args:
        weights: Each row's sum 1.
        family: The place of each one's first particle in its row, int64 (B, P).
    """
    return torch.zeros_like(weights).scatter_add(1, family, weights)


def remark_on_families(families: Tensor) -> str:
    """Say of which images (B,) too few first particles are left; "" for none."""
    images = (families < FAMILIES).nonzero().flatten().tolist()
    if not images:
        return ""
    left = ", ".join(f"{float(families[i]):.2g}" for i in images[:8])
    return (
        f"all samples of {len(images)} of {len(families)} images come from {left} of the "
        f"particles that began, in effect: number {numbered(images)}. Their mean can be far off, "
        "and modes be lost; take more particles"
    )
