"""Steered walks: the right mode where there are many, and little harm where there is one."""

import pytest
import torch
from tools import seeded

from genprior import solve
from genprior.operators import Blur, GaussianNoise, Identity, Inpainting, Matrix, Problem
from genprior.priors import Empirical
from genprior.solvers import MMPS
from genprior.solvers.testing import affine_law, gaussian_field, posterior_law

SIDE = 12


def strokes(count=400):
    """A data set of two crossing bars each, at random places: many modes far apart."""
    places = torch.randint(1, SIDE - 1, (count, 4), generator=seeded(1))
    images = torch.zeros(count, 1, SIDE, SIDE)
    for image, (a, b, c, d) in zip(images, places.tolist(), strict=True):
        image[0, a, min(b, c) : max(b, c) + 1] = 1
        image[0, min(a, d) : max(a, d) + 1, b] = 1
    return Empirical(images, 0.2)


def lost(solver, count=16, samples=8):
    """Share of samples in modes of no posterior weight."""
    prior = strokes()
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, 2:10, 2:10] = False
    x = prior.sample(count, generator=seeded(2))
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.05), generator=seeded(3))
    weights = prior.posterior(problem).weights
    found = solver(problem, prior, num_samples=samples, generator=seeded(4)).samples
    mode = prior.modes(found.flatten(0, 1)).view(count, samples)
    return float((weights.gather(1, mode) < 1e-3).double().mean())


def test_steering_finds_the_modes_that_fit():
    """Catches steering that is not felt: MMPS alone loses far more samples at equal cost."""
    steered, alone = lost(MMPS.steered()), lost(MMPS(steps=28))
    assert steered < 0.8 * alone, (steered, alone)  # .31 and .48, each +- .04


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.5])
def test_steering_hardly_moves_a_gaussian(sigma):
    """Catches steering that goes on below 6 data standard deviations, or where y says little."""
    prior, problem = gaussian_field(2, sigma=sigma)
    mean, covariance = posterior_law(prior, problem)
    found, _ = affine_law(MMPS.steered(), problem, prior)
    assert float(((found - mean).abs() / covariance.diag().sqrt()).max()) < 0.2


def test_steering_does_not_know_the_operator_s_scale():
    """Catches a weight that compares sigma_y with the data and forgets A's gain."""
    prior, problem = gaussian_field(3)
    rows = problem.operator.dense_matrix(problem.y)[problem.operator.observed.flatten()]
    y = problem.y[problem.operator.observed.expand_as(problem.y)][None]
    laws = []
    for gain in (1.0, 9.0):
        scaled = Problem(gain * y, Matrix(gain * rows, (1, 4, 4)), GaussianNoise(gain * 0.05))
        laws.append(affine_law(MMPS(steps=16, steer=20.0), scaled, prior)[0])
    torch.testing.assert_close(laws[0], laws[1], rtol=0, atol=1e-5)


def test_the_default_is_steered_and_exact_where_it_can_be():
    """Catches a default that loses modes, and a data set asked for the posterior of a blur."""
    prior = strokes(20)
    blur = Blur(torch.ones(1, 3) / 3, prior.image_shape)
    for operator, words in ((blur, "MMPS(steps=32"), (Identity(prior.image_shape), "Exact")):
        problem = Problem(prior.images[:1], operator, GaussianNoise(0.05))
        result = solve(problem, prior, num_samples=2, generator=seeded(5))
        assert result.solver is not None
        assert result.solver.startswith(words)
        assert "steer=20.0" in result.solver or words == "Exact"


@pytest.mark.parametrize(
    "options", [{"steer": 0.5}, {"approach": 1.0}, {"steer": 2, "returns": 1}]
)
def test_refusals(options):
    """Catches options that would be ignored."""
    with pytest.raises(ValueError, match="MMPS: "):
        MMPS(**options)
