"""A decoder bent towards one measurement, where no latent explains it."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from genprior.priors.base import Prior
from genprior.solvers.base import Counted
from genprior.solvers.fit import largest_misfit, misfit
from genprior.solvers.latent.latent_posterior import LatentPosterior

LATENT_RATE, WEIGHT_RATE = 1e-4, 1e-3
"""Adam's, of the latent and of the decoder's weights."""


def check_adaptable(prior: Prior) -> None:
    """Raise unless there are weights to adapt.

    Raises:
        TypeError: The prior has no weights.
    """
    if not any(p.is_floating_point() for p in prior.parameters()):
        raise TypeError(
            f"adapt changes a decoder's weights, and {type(prior).__name__} has none: leave it 0"
        )


def adapt(
    posterior: LatentPosterior, z: Tensor, *, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train latent and decoder together on each measurement until its residual is the noise's.

        min over z, theta of -log p(y | G_theta(z)), until |y - A G_theta(z)| <= sigma sqrt(m)

    Each image has a copy of the decoder; the prior keeps its weights. Of all steps the one with
    the least residual counts: Adam at a fixed rate rises now and then. Where there is no noise all
    steps are taken, and what is then left of the residual goes by x + A^+ (y - A x).

    Args:
        posterior: n rows; what it says of the decoder's spread is left aside.
        z: Where to begin, (n, *latent_shape).
        steps: Most of each image.
    Returns:
        Images (n, C, H, W), their latents, and the root mean square residual in units of the
        noise before and after, (2, n), and whether that is where it was to stop, (n,).

    Source: Hussein, Tirer, Giryes 2020, arXiv:1906.05284. Differs: each image stops by the
        discrepancy principle, so that with noise there is nothing left to project.
    """
    rows = [
        _adapt_one(posterior.prior, posterior.take(torch.tensor([i], device=z.device)), row, steps)
        for i, row in enumerate(z.split(1))
    ]
    images, latents, before, after, met = map(torch.cat, zip(*rows, strict=True))
    return images, latents, torch.stack([before, after]), met


@torch.enable_grad()
def _adapt_one(
    prior: Counted, posterior: LatentPosterior, z: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    own = Counted(copy.deepcopy(prior.prior).eval())
    weights = [p.requires_grad_() for p in own.parameters() if p.is_floating_point()]
    z = z.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": [z], "lr": LATENT_RATE}, {"params": weights, "lr": WEIGHT_RATE}]
    )
    problem = posterior.problem
    exact = problem.linear_gaussian and bool(problem.sigma == 0)
    x = own.decode(z)
    before = after = misfit(problem, x.detach())
    best = x.detach(), z.detach().clone()
    for _ in range(steps):
        if not exact and bool(after <= 1):
            break
        optimizer.zero_grad()
        residual = problem.residual(x).square().sum()
        (residual if exact else -problem.log_likelihood(x).sum()).backward()
        optimizer.step()
        x = own.decode(z)
        now = misfit(problem, x.detach())
        if bool(now < after):
            after, best = now, (x.detach(), z.detach().clone())
    (x, latent), met = best, after <= 1
    if exact:
        x = replace(posterior, decoder_std=1.0).towards_y(x)
        after = misfit(problem, x)
        met = after <= largest_misfit(problem)
    prior.forwards, prior.vjps = prior.forwards + own.forwards, prior.vjps + own.vjps
    return x, latent, before, after, met
