"""How good a Result is, all in one table."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.metrics import coverage, crps, psnr, ssim
from genprior.operators import GaussianNoise, Problem
from genprior.solvers import Result
from genprior.solvers.result import independent_sets


def residual(result: Result, problem: Problem) -> Tensor:
    """Return the root mean square of y - A x over observed entries, in units of sigma, (B,).

    Averaged over the samples: 1 where they fit the data as closely as the noise allows. NaN where
    sigma is 0 or the noise is not Gaussian.
    """
    batch, count = result.samples.shape[:2]
    if not isinstance(problem.noise, GaussianNoise):
        return torch.full((batch,), torch.nan, dtype=torch.float64, device=problem.device)
    index = torch.arange(batch, device=problem.device).repeat_interleave(count)
    difference = problem.take(index).residual(result.samples.flatten(0, 1)).flatten(1)
    observed = problem.operator.observed
    seen = difference.new_ones(1) if observed is None else observed
    entries = torch.broadcast_to(seen, problem.y.shape).flatten(1).double().sum(1)
    squares = difference.double().square().sum(1).view(batch, count) / entries[:, None]
    sigma = torch.as_tensor(problem.noise.sigma, dtype=torch.float64, device=problem.device)
    return torch.where(sigma > 0, squares.sqrt().mean(1) / sigma, torch.nan)


def score(result: Result, problem: Problem, truth: Tensor | None = None) -> dict[str, Tensor]:
    """Return every score that can be given, each (B,).

    Args:
        result: For B images.
        problem: What it solves.
        truth: (B, C, H, W); without it only the residual is known.
    """
    scores = {"residual_in_sigma": residual(result, problem)}
    if truth is None:
        return scores
    scores["psnr_mean"] = psnr(result.mean, truth)
    if not result.point_estimate:
        batch, count = result.samples.shape[:2]
        repeated = truth.repeat_interleave(count, 0)
        each = psnr(result.samples.flatten(0, 1), repeated)
        scores["psnr_sample"] = each.view(batch, count).mean(1)
        sets = independent_sets(result.samples, result.antithetic)

        def over_sets(values: list[Tensor]) -> Tensor:
            return torch.stack(values).mean(0)

        scores["coverage_50"] = over_sets([coverage(some, truth, 0.5) for some in sets])
        scores["coverage_90"] = over_sets([coverage(some, truth, 0.9) for some in sets])
        if count > 1:
            scores["crps"] = over_sets([crps(some, truth) for some in sets])
    if min(truth.shape[-2:]) >= 11:
        scores["ssim_mean"] = ssim(result.mean, truth)
    return scores
