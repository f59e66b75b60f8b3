"""The one entry point: the solver that fits the prior."""

from __future__ import annotations

from genprior.data.limits import refuse_outside
from genprior.operators import Identity, Problem
from genprior.operators.random import Generators
from genprior.priors import Gaussian, GaussianMixture
from genprior.priors.base import DenoisingPrior, ExactPrior, LatentPrior, Prior
from genprior.solvers import (
    DAPS,
    MMPS,
    DenoisingPosterior,
    ExactPosterior,
    LatentSampler,
    Result,
    Solver,
)
from genprior.solvers.choice import named
from genprior.solvers.chunks import Tracking

PIXELS = 2048
"""Up to so many an exact posterior is taken though the operator has no spectrum (tomography, a
blur with its borders): it takes an iterative solve for each, minutes where MMPS takes seconds."""


def default_solver(problem: Problem, prior: Prior, *, num_samples: int = 1) -> Solver:
    """Choose a sampler: exact where there is one at a fair price, never a point estimate.

    For a denoising prior DenoisingPosterior where the task is denoising, steered MMPS for any
    other linear operator with Gaussian noise, else DAPS; for one with a latent alone,
    LatentSampler. DAPS draws `num_samples` in pairs of opposite noise where they are 4, 6, ...:
    their mean is then no worse than the exact one of the Gaussian approximation.

    Raises:
        TypeError: No sampler serves this pair.
    """
    exact = isinstance(prior, ExactPrior) and prior.has_posterior(problem)
    if exact and not _solves_each_pixel(problem, prior):
        return ExactPosterior()
    if isinstance(prior, DenoisingPrior):
        if not problem.linear_gaussian:
            return DAPS(antithetic=num_samples >= 4 and num_samples % 2 == 0)
        if isinstance(problem.operator, Identity):
            return DenoisingPosterior()
        # a Gaussian has one mode: nothing to steer between, and MMPS errs by its steps alone
        return MMPS() if isinstance(prior, Gaussian) else MMPS.steered()
    if isinstance(prior, LatentPrior):
        return LatentSampler()
    raise TypeError(
        f"no sampler serves {type(prior).__name__} with {type(problem.operator).__name__} and "
        f"{type(problem.noise).__name__}"
    )


def _solves_each_pixel(problem: Problem, prior: Prior) -> bool:
    """Whether an exact posterior takes an iterative solve for each of very many pixels."""
    if not isinstance(prior, Gaussian | GaussianMixture):
        return False
    dear = prior.data_mean.numel() > PIXELS
    return dear and problem.linear_operator.spectrum(problem.y) is None


def solve(
    problem: Problem,
    prior: Prior,
    *,
    solver: Solver | str | None = None,
    num_samples: int = 4,
    generator: Generators = None,
    batch_size: int | None = None,
    progress: Tracking = False,
) -> Result:
    """Draw samples of x given y.

    Args:
        problem: Measurements y (B, ...), the operator that made them, the noise.
        prior: What x looks like.
        solver: An object or a name; None picks it as `default_solver` says: the exact posterior
            where there is one (linear operator, Gaussian noise) that does not take an iterative
            solve for each of many pixels, else a sampler that fits.
        num_samples: Samples for each image, S.
        generator: None, one generator or one for each image.
        batch_size: Most rows (image-sample pairs) in flight.
        progress: Show a bar, or call this with the steps and a label to follow them.
    Returns:
        A Result: samples (B, S, C, H, W), mean, std, cost.
    Raises:
        TypeError: Solver, prior, operator and noise do not go together.
        ValueError: Sizes, devices or counts do not fit.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"solve takes a Problem first, not {type(problem).__name__}")
    if isinstance(solver, type):
        raise TypeError(f"solver={solver.__name__} is a class: write {solver.__name__}()")
    if not isinstance(prior, Prior):
        raise TypeError(
            f"solve takes a Prior second, not {type(prior).__name__}; genprior.load gives one"
        )
    refuse_outside({"num_samples": num_samples, "batch_size": batch_size})
    if solver is None:
        solver = default_solver(problem, prior, num_samples=num_samples)
    elif isinstance(solver, str):
        solver = named(solver)
    return solver(
        problem,
        prior,
        num_samples=num_samples,
        generator=generator,
        batch_size=batch_size,
        progress=progress,
    )
