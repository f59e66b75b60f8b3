"""LatentSampler against closed forms and quadrature; what its diagnostics say."""

import pytest
import torch
from tools import as_gaussian, linear_vae, randn, seeded

from genprior.operators import CompressedSensing, GaussianNoise, Identity, Inpainting, Problem
from genprior.priors import Gaussian, LatentPrior
from genprior.solvers import LatentSampler
from genprior.solvers.latent.diagnostics import effective_sample_size, split_r_hat
from genprior.solvers.latent.hmc import Point, hmc_step

SHAPE = (1, 3, 2)


def repeated(problem, count):
    """The same problem `count` times: its chains are then independent replicates."""
    return problem.take(torch.zeros(count, dtype=torch.long))


def check_moments(samples, mean, covariance):
    """Mean and covariance of independent samples (n, d) within 5 standard errors."""
    n = len(samples)
    std = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() <= 5 * std / n**0.5).all()
    error = (std[:, None] ** 2 * std**2 + covariance.square()).sqrt() / n**0.5
    assert ((samples.T.cov() - covariance).abs() <= 5 * error).all()


def dense_posterior(prior, problem):
    """Mean and covariance of x given y, from dense matrices."""
    a = problem.operator.dense_matrix(problem.y)
    factors = prior.decode(torch.eye(6, dtype=torch.float64).view(-1, *SHAPE)) - prior.decode(
        torch.zeros(6, *SHAPE, dtype=torch.float64)
    )
    prior_covariance = factors.flatten(1).T @ factors.flatten(1)
    noise = problem.noise.sigma**2 * torch.eye(len(a), dtype=torch.float64)
    gain = prior_covariance @ a.T @ torch.linalg.inv(a @ prior_covariance @ a.T + noise)
    return prior_covariance - gain @ a @ prior_covariance


HMC = {"leapfrog": 5}
MALA = {"leapfrog": 1, "acceptance": 0.574}


@pytest.mark.parametrize(
    ("with_decoder_std", "walk"), [(False, HMC), (True, HMC), (False, MALA), (True, MALA)]
)
def test_samples_of_a_gaussian_have_its_posterior_mean_and_covariance(with_decoder_std, walk):
    """Catches wrong acceptance, a metric used without its transpose, x not drawn given z."""
    if with_decoder_std:
        prior = linear_vae(SHAPE, 3)
        gaussian = as_gaussian(prior)
    else:
        factors = 0.3 * torch.randn(3, *SHAPE, generator=seeded(), dtype=torch.float64)
        mean = torch.full(SHAPE, 0.5, dtype=torch.float64)
        prior = gaussian = Gaussian(mean, factors, residual=0.1)
    x = gaussian.sample(1, generator=seeded(1))
    operator = CompressedSensing(SHAPE, 4, generator=seeded(3))
    problem = Problem.simulate(x, operator, GaussianNoise(0.05), generator=seeded(2))
    solver = LatentSampler(steps=20, warm_up=100, chains=2, **walk)
    result = solver(repeated(problem, 400), prior, generator=seeded(4))
    check_moments(
        result.samples.flatten(1),
        gaussian.posterior(problem).mean.flatten(),
        dense_posterior(gaussian, problem),
    )


def test_intervals_cover_the_truth():
    """Catches a spread that is wrong for any one mask or noise level."""
    vae = linear_vae(SHAPE, 3)
    x = as_gaussian(vae).sample(200, generator=seeded(1))
    mask = torch.rand(200, *SHAPE, generator=seeded(2)) < 0.6
    mask[:, :, 0, 0] = True
    sigma = 0.02 + 0.1 * torch.rand(200, generator=seeded(3), dtype=torch.float64)
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(sigma), generator=seeded(4))
    solver = LatentSampler(steps=80, warm_up=100, chains=2, leapfrog=5)
    result = solver(problem, vae, num_samples=79, generator=seeded(5))
    # Truth and 79 draws are exchangeable: it is between the 4th and the 76th 72 times in 80.
    ordered = result.samples.sort(dim=1).values
    inside = ((x >= ordered[:, 3]) & (x <= ordered[:, 75])).double().flatten(1).mean(1)
    assert (inside.mean() - 0.9).abs() <= 5 * inside.std() / len(inside) ** 0.5


class TwoModes(LatentPrior):
    """Two pixels from a 2-D latent through a quadratic: z and -z give nearly the same image."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shape = (1, 1, 2), (2,)

    @property
    def config(self):
        return {}

    def sample(self, n, *, size=None, generator=None):
        raise NotImplementedError

    def decode(self, z):
        a, b = z.unbind(1)
        return torch.stack([a.square() + 0.3 * a, b + 0.3 * a.square()], 1).view(-1, 1, 1, 2)


def test_two_modes_match_quadrature():
    """Catches mode weights, or the shape of a bent mode, that are off."""
    prior = TwoModes()
    y = torch.tensor([0.7, 0.5], dtype=torch.float64).view(1, 1, 1, 2)
    problem = Problem(y, Identity((1, 1, 2)), GaussianNoise(0.4))
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_density = repeated(problem, len(grid)).log_likelihood(prior.decode(grid))
    weight = (log_density + prior.latent_log_prob(grid)).softmax(0)
    solver = LatentSampler(steps=40, warm_up=100, chains=2)
    result = solver(repeated(problem, 500), prior, generator=seeded())
    z = result.latents[:, 0]
    features = [
        lambda z: z[:, 0] > 0,
        lambda z: z[:, 0],
        lambda z: z[:, 1],
        lambda z: z[:, 0] ** 2,
    ]
    for feature in features:
        exact = (weight * feature(grid)).sum()
        spread = ((weight * feature(grid).double() ** 2).sum() - exact**2).sqrt()
        found = feature(z).double().mean()
        assert (found - exact).abs() <= 5 * spread / len(z) ** 0.5
    assert 0.2 < (weight * (grid[:, 0] > 0)).sum() < 0.8


def test_chains_stuck_in_two_modes_are_not_called_converged():
    """Catches an R-hat that is not looked at."""
    y = torch.tensor([3.0, 0.5], dtype=torch.float64).view(1, 1, 1, 2)
    problem = Problem(y, Identity((1, 1, 2)), GaussianNoise(0.05))
    solver = LatentSampler(steps=50, warm_up=60, chains=8)
    result = solver(problem, TwoModes(), num_samples=8, generator=seeded())
    assert result.trace["r_hat"].item() > 1.05
    assert not result.converged.any()


def test_result_does_not_depend_on_batch_or_chunks():
    """Catches a metric, step size or random stream shared between images."""
    vae = linear_vae(SHAPE, 3)
    x = as_gaussian(vae).sample(3, generator=seeded(1))
    problem = Problem.simulate(x, Identity(SHAPE), GaussianNoise(0.1), generator=seeded(2))
    solver = LatentSampler(steps=10, warm_up=30, chains=2)

    def generators():
        return [seeded(i) for i in range(3)]

    whole = solver(problem, vae, num_samples=4, generator=generators())
    chunks = solver(problem, vae, num_samples=4, generator=generators(), batch_size=1)
    last = solver(problem.take(torch.tensor([2])), vae, num_samples=4, generator=generators()[2:])
    torch.testing.assert_close(chunks.samples, whole.samples, atol=1e-9, rtol=0)
    torch.testing.assert_close(last.samples[0], whole.samples[2], atol=1e-9, rtol=0)


def test_evaluations_are_counted():
    """Catches gradients that are computed twice or not counted."""
    vae = linear_vae(SHAPE, 3)
    problem = Problem(vae.sample(1, generator=seeded()), Identity(SHAPE), GaussianNoise(0.1))
    solver = LatentSampler(steps=10, warm_up=50, chains=3, leapfrog=4)
    result = solver(problem, vae, num_samples=3, generator=seeded())
    annealing = 20  # each of these draws starts with the gradient at its new temperature
    assert result.vjps == 60 * 4 + annealing + 1
    assert result.forwards == result.vjps + 2  # residual, images


def test_diagnostics_of_autoregressive_chains():
    """Catches errors in R-hat or in the effective sample size, whose exact value is known."""
    rho, draws = 0.8, 20_000
    noise = torch.randn(4, draws, 1, generator=seeded(), dtype=torch.float64)
    chains = [noise[:, 0]]
    for t in range(1, draws):
        chains.append(rho * chains[-1] + (1 - rho**2) ** 0.5 * noise[:, t])
    chains = torch.stack(chains, 1)
    expected = 4 * draws * (1 - rho) / (1 + rho)
    assert effective_sample_size(chains).item() == pytest.approx(expected, rel=0.1)
    assert split_r_hat(chains).item() == pytest.approx(1, abs=1e-3)
    apart = chains + torch.arange(4).view(-1, 1, 1)
    # The between-chain variance is that of 0, 1, 2, 3, each twice: 10 / 7.
    assert split_r_hat(apart).item() == pytest.approx((1 + 10 / 7) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"chains": 0}, "chains"), ({"steps": 1}, "steps"), ({"acceptance": 1.5}, "acceptance")],
)
def test_bad_settings_are_refused(options, match):
    """Catches settings that fail late or silently."""
    with pytest.raises(ValueError, match=match):
        LatentSampler(**options)


def test_more_samples_than_draws_are_refused():
    """Catches samples that repeat draws."""
    vae = linear_vae(SHAPE, 3)
    problem = Problem(vae.sample(1, generator=seeded()), Identity(SHAPE), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="raise steps"):
        LatentSampler(steps=4, chains=2)(problem, vae, num_samples=9)


def test_energy_balances_in_a_step_of_hmc():
    """Catches kinetic energies that are not alike before and after, which no longer leaves the
    posterior as it is: where no force acts momentum stays, so a rise of the potential by D alone
    decides, exp(-D)."""
    z = randn(6, 5, seed=1)
    rise = torch.linspace(0.1, 2.0, 6, dtype=torch.float64)
    still = torch.zeros_like(z)
    _, acceptance = hmc_step(
        lambda z: (rise, torch.zeros_like(z)),
        Point(z, torch.zeros_like(rise), still),
        torch.full_like(rise, 0.3),
        metric=torch.linspace(0.5, 2.0, 30, dtype=torch.float64).reshape(6, 5),
        leapfrog=3,
        generators=[torch.Generator().manual_seed(i) for i in range(6)],
    )
    torch.testing.assert_close(acceptance, (-rise).exp())
