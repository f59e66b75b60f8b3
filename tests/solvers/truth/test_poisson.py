"""Poisson noise: no light is lost, and nothing is gained by taking the noise as Gaussian."""

import pytest
import torch
from tools import seeded

from genprior import load, solve
from genprior.metrics import psnr
from genprior.operators import Blur, GaussianNoise, Identity, PoissonNoise, Problem, kernels
from genprior.priors import Gaussian, GaussianMixture
from genprior.solvers import DAPS, DPS, ExactPosterior, REDDiff
from genprior.solvers.fit import noise_std
from genprior.solvers.walk.levels import noise_level

SIDE = 10
SHAPE = (1, SIDE, SIDE)
BRIGHT, DARK = (0.45, 0.12), (0.1, 0.03)
SOLVERS = [DAPS(steps=40), DPS(steps=40), REDDiff(steps=60)]


def covariance(std):
    places = torch.cartesian_prod(*[torch.arange(SIDE).double()] * 2)
    return std**2 * torch.exp(-torch.cdist(places, places) / 3)


def photographed(prior, peak, operator=None, count=60):
    """Images, their counts, and these as a problem with Gaussian noise of the mean variance."""
    x = prior.sample(count, generator=seeded(1)).clamp(min=0.005)
    operator = operator or Identity(SHAPE)
    counts = Problem.simulate(x, operator, PoissonNoise(peak), generator=seeded(2))
    sigma = (counts.y.flatten(1).mean(1) / peak).sqrt()
    return x, counts, Problem(counts.y, operator, GaussianNoise(sigma))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("peak", [5.0, 30.0, 100.0])
@pytest.mark.parametrize(("mean", "std"), [BRIGHT, DARK])
def test_light_is_kept(solver, peak, mean, std):
    """Catches weights taken from y: pixels that caught few photons by chance weigh most (.69 of
    the light is left at a peak of 5), and weights of an estimate that follows y."""
    prior = Gaussian.from_covariance(torch.full(SHAPE, mean).double(), covariance(std))
    x, counts, gaussian = photographed(prior, peak)
    exact = ExactPosterior()(gaussian, prior).mean
    found = solver(counts, prior, generator=seeded(3)).mean
    assert ((found.sum() - exact.sum()) / x.sum()).abs() < 0.01 + 0.3 / (peak * x.sum()) ** 0.5
    like = solver(gaussian, prior, generator=seeded(3)).mean
    assert psnr(found, x).mean() > psnr(like, x).mean() - 0.15


def test_dps_does_not_blow_up_where_pixels_are_dark():
    """Catches dark pixels that weigh tenfold: at five photons of white, on the prior of cats, the
    walk ended at fifteen times the light."""
    prior = load("cats64-gaussian")
    x = prior.sample(1, generator=seeded(0)).clamp(min=0.005)
    problem = Problem.simulate(x, Identity((3, 64, 64)), PoissonNoise(5.0), generator=seeded(1))
    result = DPS()(problem, prior, generator=seeded(2))
    assert result.converged.all()
    assert (result.samples.sum() / x.sum() - 1).abs() < 0.02


@pytest.mark.parametrize("kind", ["blurred", "mixture"])
def test_the_default_is_no_worse_than_gaussian_noise_solved_exactly(kind):
    """Catches a default that does not know what to do with counts."""
    means = torch.tensor([0.3, 0.6]).double()[:, None, None, None].expand(2, *SHAPE)
    prior = Gaussian.from_covariance(means[0], covariance(0.12))
    operator = Blur(kernels.gaussian(1.0), SHAPE)
    if kind == "mixture":
        weights = torch.tensor([0.5, 0.5]).double()
        prior = GaussianMixture(weights, means, covariance(0.12).expand(2, -1, -1))
        operator = Identity(SHAPE)
    x, counts, gaussian = photographed(prior, 10.0, operator, count=16)
    exact = ExactPosterior()(gaussian, prior).mean
    result = solve(counts, prior, generator=seeded(3))
    assert result.converged.all()
    assert psnr(result.mean, x).mean() > psnr(exact, x).mean() - 0.1
    assert (result.mean.sum() / exact.sum() - 1).abs() < 0.01


def test_noise_of_counts():
    """Catches a variance of y's own counts, unobserved zeros counted, and 0 for a dark image."""
    y = torch.tensor([0.0, 0.4, 0.8]).reshape(1, 1, 1, 3)
    problem = Problem(y, Identity((1, 1, 3)), PoissonNoise(10.0))
    clean = torch.tensor([-0.1, 0.2, 0.9]).reshape(1, 1, 1, 3)
    expected = torch.tensor([0.2 / 100, 0.02, 0.09]).sqrt().reshape(1, 1, 1, 3)
    torch.testing.assert_close(noise_std(problem, clean), expected)
    torch.testing.assert_close(noise_level(problem), torch.tensor([0.04**0.5]))
    dark = Problem(torch.zeros_like(y), problem.operator, problem.noise)
    torch.testing.assert_close(noise_level(dark), torch.tensor([(1 / 300) ** 0.5]))
