"""Draws from a denoising prior: the start of a walk, its range, and the whole of it."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal
from genprior.priors.base import DenoisingPrior
from genprior.priors.samplers.base import Sampler
from genprior.priors.samplers.sa_solver import SASolver

DEFAULT = SASolver(tau=0.7)
"""Of `sample`. With an exact denoiser 18 evaluations leave every direction's variance, from a
thirtieth of the data's standard deviation to twice it, within 2 %; DPM-Solver++(2M) on Karras's
levels makes it up to 14 % too large, its stochastic form up to 26 %. Fresh noise, most of it high
up, forgets what a network gets wrong."""


def start(
    prior: DenoisingPrior,
    shape: tuple[int, ...],
    sigma: float | Tensor,
    *,
    generator: Generators = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw x_sigma for a large sigma: mean data_mean, variance data_std^2 + sigma^2.

    A start of variance sigma^2 alone is wrong wherever the data's spread is not negligible.
    """
    noise = normal(shape, generator, dtype=dtype, device=device)
    mean, std = (t.to(noise) for t in (prior.data_mean, prior.data_std))
    return mean + (std**2 + per_row(sigma, noise) ** 2).sqrt() * noise


def walk_range(prior: DenoisingPrior) -> tuple[float, float]:
    """Return the ends of a walk, within the prior's range.

    Beyond 80 data standard deviations nothing of the image is left; below 1/250 nothing of the
    noise.
    """
    std = prior.data_std.mean().item()
    low, high = prior.sigma_range
    return max(low, 0.004 * std), min(high, 80 * std)


def sample(
    prior: DenoisingPrior,
    n: int,
    *,
    size: tuple[int, int] | None = None,
    generator: Generators = None,
    steps: int = 18,
    sampler: Sampler | None = None,
) -> Tensor:
    """Draw n images from any denoising prior, (n, C, H, W), in its own dtype and device.

    Args:
        prior: Only its denoiser is used.
        n: Number of images.
        size: (H, W), needed where the prior's shape has None, else it must agree.
        generator: None, one generator, or one for each image.
        steps: Network evaluations for each image.
        sampler: `DEFAULT` if None.
    Raises:
        ValueError: The size is missing, or is not the prior's.
    """
    shape = prior.check_size(size)
    sampler = sampler if sampler is not None else DEFAULT
    like = next(prior.parameters(), prior.data_mean)
    low, high = walk_range(prior)
    sigmas = sampler.grid(high, low, sampler.steps(steps), like=like)
    kind = {"dtype": like.dtype, "device": like.device}
    x = start(prior, (n, *shape), high, generator=generator, **kind)
    with torch.no_grad():
        return sampler(prior.denoise, x, sigmas, generator=generator)
