"""DenoisingPosterior: exact for any prior but for its walk."""

import pytest
import torch

from genprior.metrics import gaussian_kl
from genprior.operators import GaussianNoise, Identity, Problem
from genprior.priors import Gaussian, GaussianMixture
from genprior.solve import default_solver
from genprior.solvers import MMPS, DenoisingPosterior
from genprior.solvers.testing import (
    Failing,
    affine_law,
    check_solver,
    gaussian_field,
    posterior_law,
)

SHAPE = (1, 4, 4)
BAR = 0.005


def kl(*, sigma=0.05, scale=1.0):
    """KL of the exact law of the samples, all noise scaled, from the posterior."""
    prior, _ = gaussian_field(900)
    generator = torch.Generator().manual_seed(0)
    x = prior.sample(1, generator=generator)
    problem = Problem.simulate(x, Identity(SHAPE), GaussianNoise(sigma), generator=generator)
    mean, covariance = affine_law(DenoisingPosterior(), problem, prior)
    return float(gaussian_kl(mean, scale**2 * covariance, *posterior_law(prior, problem)))


def test_contract(device):
    """Catches weights of y that span the batch, noise per chunk, wrong counts, spread NaN."""
    check_solver(DenoisingPosterior(steps=6), device=device, operator=Identity(SHAPE))


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_samples_have_the_posterior_law(sigma):
    """Catches wrong weights of y and x_t, a wrong start, a grid that does not follow sigma_y."""
    assert kl(sigma=sigma) < BAR


def test_noise_scaled_by_root_two_is_noticed():
    """Catches a bar so wide that a common fault passes."""
    assert min(kl(scale=2**0.5), kl(scale=2**-0.5)) > BAR


def test_wrong_units_are_noticed(monkeypatch):
    """Catches a bar so wide that a denoiser told of sigma in units of [-1, 1] passes."""
    denoise = Gaussian.denoise
    monkeypatch.setattr(Gaussian, "denoise", lambda self, x, sigma: denoise(self, x, 2 * sigma))
    assert kl() > BAR


def test_halved_guidance_is_noticed(monkeypatch):
    """Catches a bar so wide that half the pull towards y passes."""
    whole = DenoisingPosterior.guide

    def half(self, walk, x, sigma):
        return (whole(self, walk, x, sigma) + walk.prior.denoise(x, sigma)) / 2

    monkeypatch.setattr(DenoisingPosterior, "guide", half)
    assert kl() > BAR


def test_modes_have_their_weights():
    """Catches an approximation of p(y | x_t), under which modes far apart get wrong weights."""
    means = torch.tensor([0.3, 0.7], dtype=torch.float64).reshape(2, 1, 1, 1)
    covariances = 0.02**2 * torch.eye(1, dtype=torch.float64).expand(2, 1, 1)
    prior = GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, covariances)
    y = torch.full((1, 1, 1, 1), 0.53, dtype=torch.float64)
    problem = Problem(y, Identity((1, 1, 1)), GaussianNoise(0.2))
    count = 4000
    exact = prior.posterior(problem).sample(200_000, generator=torch.Generator().manual_seed(0))
    expected = float((exact > 0.5).double().mean())
    result = DenoisingPosterior(steps=60)(
        problem, prior, num_samples=count, generator=torch.Generator().manual_seed(1)
    )
    error = (expected * (1 - expected) / count) ** 0.5
    share = float((result.samples > 0.5).double().mean())
    assert abs(share - expected) < 5 * error, (share, expected, error)
    for side in (exact > 0.5, exact <= 0.5):
        mine = result.samples[(result.samples > 0.5) == bool(exact[side][0] > 0.5)]
        deviation = exact[side].std() / len(mine) ** 0.5
        assert (mine.mean() - exact[side].mean()).abs() < 5 * deviation


def test_only_for_denoising_and_the_default_there():
    """Catches y being fused where it is not a noisy x0, and a default that ignores the solver."""
    prior, problem = gaussian_field(900)
    with pytest.raises(TypeError, match="Identity"):
        DenoisingPosterior()(problem, prior)
    denoiser = Failing(prior, below=0.0)  # has no exact posterior, and never fails
    assert default_solver(problem, denoiser) == MMPS.steered()
    noisy = Problem(problem.y, Identity(SHAPE), GaussianNoise(0.1))
    assert default_solver(noisy, denoiser) == DenoisingPosterior()


def test_without_noise_y_returns():
    """Catches division by sigma_y = 0."""
    prior, _ = gaussian_field(900)
    y = prior.sample(2, generator=torch.Generator().manual_seed(0))
    problem = Problem(y, Identity(SHAPE), GaussianNoise(0.0))
    result = DenoisingPosterior()(problem, prior, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(result.mean, y)


def test_the_mean_is_exact():
    """Catches a mean of few samples where one evaluation gives the exact one."""
    prior, _ = gaussian_field(900)
    x = prior.sample(3, generator=torch.Generator().manual_seed(0))
    problem = Problem.simulate(
        x, Identity(SHAPE), GaussianNoise(0.1), generator=torch.Generator().manual_seed(1)
    )
    result = DenoisingPosterior()(
        problem, prior, num_samples=2, generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(result.mean, prior.posterior(problem).mean)
