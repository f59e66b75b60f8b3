"""The steps of a walk taken on white data, whose posterior is known: do they reach its mean?"""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.priors.samplers.steps import plus, renewal, renewed
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level


def white_error(walk: Walk, pulls: list[Tensor]) -> Tensor:
    """Return how far ancestral steps end from the posterior's mean on white data, (b,).

        x_{i-1} = x0 + k_i (x_i - x0) + c_i J_i A^T (y - A x0),   x0 = mu + J_i (x_i - mu)
        J_i = s^2 / (s^2 + sigma_i^2),   error^2 = e^T (A^T A / sigma_y^2 + I / s^2) e / m

    with e the difference from the mean and m observed entries: in posterior standard deviations
    of what y says. Images of mean mu and white variance s^2, both the prior's, stand for it; no
    network is asked. Of each image's rows the first counts; 0 where there is no noise.

    Args:
        walk: Down to 0, of a linear operator.
        pulls: c_i for each level, (R,).
    Source: none known; the walk is DPS's own, on another prior.
    """
    first = torch.arange(0, walk.shape[0], walk.samples, device=walk.problem.y.device)
    walk = walk.take(first)
    problem, operator, s2 = walk.problem, walk.problem.linear_operator, walk.prior.data_scale**2
    y = operator.keep_observed(problem.y)
    mu = walk.prior.data_mean.to(y).expand(walk.shape)
    x = mu
    shares = per_level(x, *renewal(walk.sigmas, walk.lower))
    for sigma, pull, (k, _) in zip(walk.sigmas, pulls, shares, strict=True):
        j = s2 / (s2 + sigma**2)
        x0 = plus(mu, j, x - mu)
        push = operator.adjoint(operator.keep_observed(y - operator(x0)))
        x = plus(renewed(x0, x, k), pull[first] * j, push)
    sigma2 = torch.where(walk.sigma_y > 0, walk.sigma_y, 1.0) ** 2
    solved = operator.solve_gram(operator.keep_observed(y - operator(mu)), sigma2, scale=s2)
    e = x - mu - s2 * operator.adjoint(solved)
    seen = operator.keep_observed(operator(e)).flatten(1).square().sum(1)
    error2 = (seen / sigma2 + e.flatten(1).square().sum(1) / s2) / problem.observed_count
    return torch.where(walk.sigma_y > 0, error2.sqrt(), 0.0)
