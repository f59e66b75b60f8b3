"""The likelihood of images under a denoiser, along the probability flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal
from genprior.priors.base import DenoisingPrior
from genprior.priors.samplers import log_uniform


def log_prob_estimate(
    prior: DenoisingPrior,
    x: Tensor,
    *,
    sigma_min: float | None = None,
    steps: int = 64,
    probes: int = 1,
    generator: Generators = None,
) -> Tensor:
    """Estimate log p(x) by following the probability flow from the image up to noise.

        dx / d ln sigma = x - D(x; sigma)
        log p(x) = log N(x_max; data_mean, data_std^2 + sigma_max^2)
                   + integral of (d - tr dD/dx) d ln sigma

    The flow is integrated by an exponential trapezoidal rule (exact where the denoised image
    moves linearly in ln sigma), the trace by Hutchinson's estimate with fresh signs at every
    level. What remains of a bias is the discretisation, and that p is taken at sigma_min.

    Args:
        prior: Any denoiser.
        x: Images, (B, C, H, W).
        sigma_min: Where the flow starts, pixel units; the prior's smallest if None.
        steps: Steps of the integration, two forwards and `probes` VJPs each.
        probes: Random signs for each trace.
        generator: None, one generator, or one for each image.
    Returns:
        Nats, density with respect to pixels in [0, 1], (B,).
    Source: Song et al. 2021, arXiv:2011.13456, Section 4.3, with Karras's time.
    """
    low, high = prior.sigma_range
    low = low if sigma_min is None else sigma_min
    sigmas = log_uniform(high, low, steps + 1, like=x).flip(0)
    h = math.log(high / low) / steps
    grow = math.expm1(h)
    bend = (grow - h) / h
    denoised, rate = _trace(prior, x, sigmas[0], probes, generator)
    log_ratio = h / 2 * rate
    for step in range(1, steps + 1):
        predicted = x + grow * (x - denoised)
        with torch.no_grad():
            change = prior.denoise(predicted, sigmas[step]) - denoised
        x = predicted - bend * change
        denoised, rate = _trace(prior, x, sigmas[step], probes, generator)
        log_ratio = log_ratio + (h if step < steps else h / 2) * rate
    return log_ratio + _log_start(prior, x, sigmas[-1])


def _trace(
    prior: DenoisingPrior, x: Tensor, sigma: Tensor, probes: int, generator: Generators
) -> tuple[Tensor, Tensor]:
    """Return the denoised image and the divergence of the flow, d - tr dD/dx, (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        denoised = prior.denoise(x, sigma)
        trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for probe in range(probes):
            signs = normal(x.shape, generator, dtype=x.dtype, device=x.device).sign()
            (vjp,) = torch.autograd.grad(denoised, x, signs, retain_graph=probe < probes - 1)
            trace = trace + (vjp * signs).flatten(1).sum(1) / probes
    return denoised.detach(), x[0].numel() - trace


def _log_start(prior: DenoisingPrior, x: Tensor, sigma: Tensor) -> Tensor:
    mean, std = (t.to(x) for t in (prior.data_mean, prior.data_std))
    variance = (std**2 + per_row(sigma, x) ** 2).expand_as(x)
    return -0.5 * ((x - mean) ** 2 / variance + (2 * torch.pi * variance).log()).flatten(1).sum(1)
