"""p(z | y) of a linear decoder against dense algebra."""

import math

import pytest
import torch
from tools import linear_vae, randn, seeded
from written_out.samplers import Tape

from genprior.operators import Blur, GaussianNoise, Inpainting, Matrix, PoissonNoise, Problem
from genprior.operators import kernels as blurs
from genprior.solvers import Counted
from genprior.solvers.latent.latent_posterior import latent_posterior
from genprior.solvers.testing import noise_replaced

SHAPE = (1, 3, 4)
SIGMAS = torch.tensor([0.05, 0.3], dtype=torch.float64)
OPERATORS = {
    "mask": Inpainting(torch.rand(SHAPE, generator=seeded(5)) < 0.6),
    "blur": Blur(blurs.uniform(3), SHAPE),
    "matrix": Matrix(randn(5, 12, seed=6), SHAPE),
}
STD = 0.2


def posed(name, sigma=SIGMAS):
    vae = linear_vae(SHAPE, std=STD)
    x = vae.sample(2, generator=seeded(1)).double()
    problem = Problem.simulate(x, OPERATORS[name], GaussianNoise(sigma), generator=seeded(2))
    return vae, problem


def dense(problem, i):
    """A, y, their entries' places, and sigma of image i."""
    operator = problem.operator
    a = operator.dense_matrix(problem.y[:1]).reshape(-1, 12)
    seen = torch.ones(len(a), dtype=torch.bool)
    if operator.observed is not None:
        seen = operator.observed.expand(1, *SHAPE)[0].flatten()
    return a[seen], problem.y[i].flatten()[seen], seen, float(problem.sigma[i])


@pytest.mark.parametrize("counted", [False, True], ids=["decode(z)", "x about decode(z)"])
@pytest.mark.parametrize("name", OPERATORS)
def test_density_images_and_misfit(name, counted):
    """Catches s for s^2, a half, a sign, noise of y or x of another size, and the misfit of
    another covariance or count."""
    vae, problem = posed(name)
    posterior = latent_posterior(Counted(vae), problem, counted)
    z, other, s = randn(2, 4, seed=3), randn(2, 4, seed=4), STD if counted else 0.0
    value, gradient = posterior.value_and_gradient(z)
    least, _ = posterior.value_and_gradient(other)
    tape = Tape()
    with noise_replaced(tape):
        drawn = posterior.sample_image(z, [seeded(0), seeded(1)])
    for i in range(2):
        a, y, seen, sigma = dense(problem, i)
        of_y = sigma**2 * torch.eye(len(y)).double() + s**2 * a @ a.T
        law = torch.distributions.MultivariateNormal(torch.zeros_like(y), of_y)

        def energy(z, a=a, y=y, law=law):
            return -law.log_prob(y - a @ vae.decode(z[None]).flatten())

        leaf = z[i].clone().requires_grad_()
        torch.testing.assert_close(value[i] - least[i], (energy(z[i]) - energy(other[i])).detach())
        (slope,) = torch.autograd.grad(energy(leaf), leaf)
        torch.testing.assert_close(gradient[i].flatten(), slope)
        x = vae.decode(z[i : i + 1]).flatten()
        miss = y - a @ x
        solved = torch.linalg.solve(of_y, miss)
        misfit = ((miss @ solved) / len(y)).sqrt()
        torch.testing.assert_close(posterior.misfit(z)[i], misfit)
        mean = x + s**2 * a.T @ solved
        torch.testing.assert_close(posterior.mean_image(z)[i].flatten(), mean)
        if not counted:
            torch.testing.assert_close(drawn[i].flatten(), x)
            continue
        n_x, n_y = tape.row(i)
        x = x + s * n_x
        miss = y - a @ x - sigma * n_y[seen]
        expected = x + s**2 * a.T @ torch.linalg.solve(of_y, miss)
        torch.testing.assert_close(drawn[i].flatten(), expected)


@pytest.mark.parametrize("counted", [False, True])
def test_a_misfit_that_noise_may_have(counted):
    """Catches another bound than 1.5 and five standard errors."""
    vae, problem = posed("mask")
    posterior = latent_posterior(Counted(vae), problem, counted)
    bound = 1.5 + 5 / math.sqrt(2 * int(OPERATORS["mask"].mask.sum()))
    told = torch.tensor([bound - 1e-6, bound + 1e-6], dtype=torch.float64)
    assert posterior.explains(told).tolist() == [True, False]


def test_whose_spread_counts():
    """Catches a decoder's spread taken where nothing is closed, or not taken where it is; and
    sigma = 0 refused where that spread makes it legal, or accepted where nothing does."""
    vae, problem = posed("mask")
    photons = Problem(problem.y.clamp(min=0), problem.operator, PoissonNoise(20.0))
    for told, posed_, expected in (
        (None, problem, STD),
        (True, problem, STD),
        (False, problem, 0.0),
        (None, photons, 0.0),
        (False, photons, 0.0),
    ):
        found = latent_posterior(Counted(vae), posed_, told)
        assert found.decoder_std == pytest.approx(expected)
    with pytest.raises(ValueError, match="decoder_variance needs"):
        latent_posterior(Counted(vae), photons, True)
    _, exact = posed("mask", torch.tensor([0.0, 0.1], dtype=torch.float64))
    assert latent_posterior(Counted(vae), exact, None).decoder_std == pytest.approx(STD)
    with pytest.raises(ValueError, match="sigma = 0 leaves no density over latents"):
        latent_posterior(Counted(vae), exact, False)
