"""What every posterior in closed form asks of a problem: linear operator, Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators import Problem, fits
from genprior.operators.base import per_row
from genprior.priors.base import Prior


def check_linear_gaussian(prior: Prior, problem: Problem) -> None:
    """Raise unless `prior` has a closed-form posterior under `problem`.

    Raises:
        TypeError: The operator is not linear or the noise is not Gaussian.
        ValueError: The prior's images are not the operator's.
    """
    if not problem.linear_gaussian:
        raise TypeError(
            f"{type(prior).__name__} has its posterior in closed form for a linear operator and "
            f"Gaussian noise; {type(problem.operator).__name__} with "
            f"{type(problem.noise).__name__} came. Use a sampling solver "
            "(genprior.solvers.available(prior) lists them)"
        )
    ours, theirs = tuple(prior.image_shape), tuple(problem.image_shape)
    if not fits(ours, theirs):
        raise ValueError(
            f"the prior's images are {ours}, the problem's {theirs}: "
            "crop or resize the measurement, or fit a prior at its size"
        )


def noise_variance(problem: Problem) -> Tensor:
    """Return sigma^2 of the measurement noise, (B,) or a scalar, in y's type."""
    variance = problem.sigma**2
    return variance if problem.noise.rows else variance[0]


def check_density_of_y(problem: Problem, scale: float) -> None:
    """Raise unless scale A A^T + sigma^2 I is invertible on the observed entries.

    Raises:
        ValueError: sigma = 0, and `scale` is 0 or A A^T is singular.
    """
    exact = noise_variance(problem) == 0
    if not bool(exact.any()):
        return
    operator, y = problem.linear_operator, problem.y
    invertible = scale > 0
    if invertible:
        spectrum = operator.spectrum(y) or operator.dense_spectrum(y)
        size = spectrum.to(torch.zeros_like(y[:1])).shape[1:]
        positive = spectrum.positive.expand(-1, *size).flatten(1).sum(1)
        invertible = bool(((positive >= problem.observed_count) | ~exact).all())
    if not invertible:
        raise ValueError(
            "y has no density: sigma = 0, and the prior or the operator leaves a direction of y "
            "without variance. Give sigma > 0 (1e-3 is a quarter of an 8-bit grey level)"
        )


def solve_observed(problem: Problem, v: Tensor, scale: float) -> Tensor:
    """Return (scale A A^T + sigma^2 I)^-1 v on the observed entries, zero elsewhere."""
    operator = problem.linear_operator
    return operator.keep_observed(operator.solve_gram(v, noise_variance(problem), scale=scale))


def measurement_noise(problem: Problem, noise: Tensor) -> Tensor:
    """Return sigma times standard normal `noise` on the observed entries, zero elsewhere."""
    return problem.operator.keep_observed(per_row(problem.sigma, noise) * noise)
