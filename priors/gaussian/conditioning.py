"""What every posterior in closed form asks of a problem: linear operator, Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, LinearOperator, Problem
from genprior.operators.base import per_row
from genprior.priors.base import Prior


def check_linear_gaussian(prior: Prior, problem: Problem) -> None:
    """Raise unless `prior` has a closed-form posterior under `problem`.

    Raises:
        TypeError: The operator is not linear or the noise is not Gaussian.
        ValueError: The prior's images are not the operator's.
    """
    operator, noise = problem.operator, problem.noise
    name = type(prior).__name__
    if not isinstance(operator, LinearOperator) or not isinstance(noise, GaussianNoise):
        raise TypeError(
            f"{name} has its posterior in closed form for a linear operator and Gaussian noise; "
            f"{type(operator).__name__} with {type(noise).__name__} came. Use a sampling solver "
            "(genprior.solvers.available(prior) lists them)"
        )
    ours, theirs = tuple(prior.image_shape), tuple(problem.image_shape)
    if any(a is not None and b is not None and a != b for a, b in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"the prior's images are {ours}, the problem's {theirs}: "
            "crop or resize the measurement, or fit a prior at its size"
        )


def noise_variance(problem: Problem) -> Tensor:
    """Return sigma^2 of the measurement noise, (B,) or a scalar, in y's type."""
    assert isinstance(problem.noise, GaussianNoise)
    sigma = torch.as_tensor(problem.noise.sigma, dtype=problem.y.dtype, device=problem.y.device)
    return sigma.square() if sigma.numel() > 1 else sigma.square().reshape(())


def check_density_of_y(problem: Problem, scale: float) -> None:
    """Raise unless scale A A^T + sigma^2 I is invertible on the observed entries.

    Raises:
        ValueError: sigma = 0, and `scale` is 0 or A A^T is singular.
    """
    exact = noise_variance(problem) == 0
    if not bool(exact.any()):
        return
    operator, y = problem.operator, problem.y
    assert isinstance(operator, LinearOperator)
    invertible = scale > 0
    if invertible:
        spectrum = operator.spectrum(y) or operator.dense_spectrum(y)
        size = spectrum.to(torch.zeros_like(y[:1])).shape[1:]
        positive = spectrum.positive.expand(-1, *size).flatten(1).sum(1)
        invertible = bool(((positive >= observed_count(problem)) | ~exact).all())
    if not invertible:
        raise ValueError(
            "y has no density: sigma = 0, and the prior or the operator leaves a direction of y "
            "without variance. Give sigma > 0 (1e-3 is a quarter of an 8-bit grey level)"
        )


def observed_count(problem: Problem) -> Tensor:
    """Return how many entries of y are observed, (B,) or (1,)."""
    observed, shape = problem.operator.observed, problem.y.shape[1:]
    if observed is None:
        return torch.tensor([shape.numel()], device=problem.y.device)
    return observed.expand(-1, *shape).flatten(1).sum(1)


def solve_observed(problem: Problem, v: Tensor, scale: float) -> Tensor:
    """Return (scale A A^T + sigma^2 I)^-1 v on the observed entries, zero elsewhere."""
    operator = problem.operator
    assert isinstance(operator, LinearOperator)
    solved = operator.solve_gram(v, noise_variance(problem), scale=scale)
    return solved if operator.observed is None else torch.where(operator.observed, solved, 0.0)


def measurement_noise(problem: Problem, noise: Tensor) -> Tensor:
    """Return sigma times standard normal `noise` on the observed entries, zero elsewhere."""
    assert isinstance(problem.noise, GaussianNoise)
    drawn = per_row(problem.noise.sigma, noise) * noise
    observed = problem.operator.observed
    return drawn if observed is None else torch.where(observed, drawn, 0.0)
