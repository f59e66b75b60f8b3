"""Stationary textures: the law, its synthesis, and kriging against the dense formulas."""

import math
import warnings

import pytest
import torch
from cases import texture
from tools import condition, identical, pose, problems, randn, seeded

from genprior.operators import (
    Blur,
    GaussianNoise,
    Inpainting,
    Problem,
    conjugate_gradient,
)
from genprior.priors import StationaryGaussian
from genprior.priors.gaussian.texture import kriging
from genprior.priors.gaussian.texture.stationary import smooth_component


def dense_law(prior):
    """Mean (d,) and covariance (d, d), column by column from `decode`, which is affine."""
    shape = prior.latent_shape
    impulses = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    root = (prior.decode(impulses) - prior.data_mean).flatten(1)
    return prior.data_mean.expand(prior.image_shape).flatten(), root.T @ root


def check(prior, problem, *, tolerance=1e-8, moments_only=False):
    posterior = prior.posterior(problem)
    law = dense_law(prior)
    for i in range(problem.batch):
        mean, covariance, evidence = condition(*law, problem, i)
        torch.testing.assert_close(posterior.mean[i].flatten(), mean, rtol=0, atol=tolerance)
        if moments_only:
            continue
        std = covariance.diagonal().clamp(min=0).sqrt()
        torch.testing.assert_close(posterior.std[i].flatten(), std, rtol=0, atol=tolerance)
        torch.testing.assert_close(posterior.log_evidence[i], evidence, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.05, None], ids=["one sigma", "sigma each"])
@pytest.mark.parametrize("residual", [0.0, 0.05])
@pytest.mark.parametrize("operator", problems())
def test_posterior_is_the_textbook_one(operator, residual, sigma):
    """Would catch any slip in kriging: kernels, the Fourier route, what is observed."""
    shape = (2, 4, 6)
    prior = texture(shape, residual=residual)
    check(prior, pose(problems(shape)[operator], shape=shape, sigma=sigma))


@pytest.mark.parametrize("observed", [0.1, 0.9])
def test_masks_on_16_by_16(observed):
    """Would catch a mask solved on the wrong side: by its few observed or few missing pixels."""
    shape = (1, 16, 16)
    prior = texture(shape, residual=0.0)
    masks = torch.rand(2, 1, 16, 16, generator=seeded(1)) < observed
    check(prior, pose(Inpainting(masks), shape=shape, count=2, sigma=0.02))


@pytest.mark.parametrize("operator", ["masks", "colour mask", "valid blur", "blur then masks"])
def test_iterative_kriging(operator, monkeypatch):
    """Would catch a preconditioner that changes the solution instead of the speed."""
    monkeypatch.setattr(kriging, "DENSE", 0)
    monkeypatch.setattr(kriging, "SMALL", 0)
    shape = (2, 6, 4)
    prior = texture(shape, residual=0.0)
    problem = pose(problems(shape)[operator], shape=shape)
    check(prior, problem, tolerance=1e-5, moments_only=True)
    posterior = prior.posterior(problem)
    assert posterior.std is None
    with pytest.raises(ValueError, match="no closed form"):
        _ = posterior.log_evidence


def test_preconditioner_is_worth_it():
    """Would catch one that no longer approximates the inverse: steps would grow tenfold."""
    image = torch.rand(1, 64, 64, generator=seeded(1), dtype=torch.float64)
    smooth = Blur(torch.ones(5, 5).double() / 25, (1, 64, 64))(image[None])[0]
    prior = StationaryGaussian.fit(smooth)
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, 20:36, 20:36] = False
    problem = Problem.simulate(smooth[None], Inpainting(mask), GaussianNoise(0.01))
    solver = kriging.Iterative(prior.law(torch.float64), problem)
    solver.max_iterations = 60
    v = problem.residual(prior.data_mean.expand(1, 1, 64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solver.solve(v)
    expected = kriging.DenseMask(prior.law(torch.float64), problem).solve(v)
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * largest)


def test_preconditioned_conjugate_gradients():
    """Would catch a step length taken from the wrong inner product."""
    root = randn(6, 6)
    matrix = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
    inverse = 1 / matrix.diagonal()
    b = randn(3, 6, seed=1)
    x, converged, _ = conjugate_gradient(
        lambda u: u @ matrix, b, tolerance=1e-12, precondition=lambda r: r * inverse
    )
    assert bool(converged.all())
    torch.testing.assert_close(x @ matrix, b)


@pytest.mark.parametrize("residual", [0.0, 0.05])
def test_denoise_is_wieners_filter(residual):
    """Would catch channels filtered apart although one field drives them all."""
    prior = texture((3, 5, 4), residual=residual)
    mean, covariance = dense_law(prior)
    x = randn(4, 3, 5, 4, seed=5)
    sigmas = torch.tensor([0.0, 0.01, 0.1, 50.0], dtype=torch.float64)
    found = prior.denoise(x, sigmas)
    assert identical(found[0], x[0])
    for i, sigma in enumerate(sigmas[1:], 1):
        noisy = covariance + sigma**2 * torch.eye(60, dtype=torch.float64)
        expected = mean + covariance @ torch.linalg.solve(noisy, x[i].flatten() - mean)
        torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 6, 5), (2, 4, 4)])
def test_log_prob(shape):
    """Would catch a frequency counted twice or not at all: odd and even sides differ."""
    prior, x = texture(shape), 0.5 + 0.1 * randn(2, *shape)
    law = torch.distributions.MultivariateNormal(*dense_law(prior))
    torch.testing.assert_close(prior.log_prob(x), law.log_prob(x.flatten(1)))


def test_periodic_component_has_no_jumps():
    """Would catch the wrong sign: a ramp's borders must meet after its removal."""
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64)[:, None].expand(32, 24)[None]
    periodic = ramp - smooth_component(ramp)
    jump = (periodic[:, 0] - periodic[:, -1]).abs().max()
    assert float(jump) < 0.1 * float((ramp[:, 0] - ramp[:, -1]).abs().max())
    torch.testing.assert_close(periodic.mean(), ramp.mean())


def test_spot_has_the_images_colours_and_correlations():
    """Would catch channels that lose their correlation: a texture would change colour."""
    image = torch.rand(3, 12, 10, generator=seeded(5), dtype=torch.float64)
    image[1] = 0.7 * image[0] + 0.3 * image[1]
    prior = StationaryGaussian.fit(image)
    periodic = (image - smooth_component(image)).flatten(1)
    centred = periodic - periodic.mean(1, keepdim=True)
    expected = centred @ centred.T / centred.shape[1]
    spot = prior.spot.flatten(1)
    torch.testing.assert_close(spot @ spot.T, expected)
    torch.testing.assert_close(prior.mean, image.mean((1, 2)))


@pytest.mark.parametrize("size", [(12, 9), (20, 9), (31, 40), (5, 30), (6, 4)])
@pytest.mark.parametrize("method", ["sample", "random_phase"])
def test_synthesis_at_any_size_keeps_mean_and_std(method, size):
    """Would catch a contrast lost to the fading, or a colour drift, beyond the domain."""
    image = torch.rand(2, 12, 9, generator=seeded(5), dtype=torch.float64)
    prior = StationaryGaussian.fit(image)
    x = getattr(prior, method)(2000, size=size, generator=seeded(1))
    assert tuple(x.shape) == (2000, 2, *size)
    means = x.mean((2, 3))  # one number for each draw: its pixels are dependent
    error = (means.mean(0) - prior.mean).abs()
    assert float((error / (means.std(0) / 2000**0.5 + 1e-12)).max()) < 5
    energies = (x - prior.data_mean).square().mean((2, 3))
    error = (energies.mean(0) - prior.data_std[:, 0, 0].square()).abs()
    assert float((error / (energies.std(0) / 2000**0.5 + 1e-12)).max()) < 5


def test_random_phase_keeps_the_spectrum():
    """Would catch moduli that vary, as those of spot noise do."""
    prior = texture((1, 12, 10), residual=0.0)
    x = prior.random_phase(2, generator=seeded(1)) - prior.data_mean
    expected = prior.law(torch.float64).transform.abs() * 120**0.5
    found = torch.fft.rfft2(x).abs()
    torch.testing.assert_close(found, expected.expand_as(found))
    assert not torch.allclose(x[0], x[1])


def test_domain_does_not_shrink():
    """Would catch a spot cut off in silence."""
    with pytest.raises(ValueError, match="cannot shrink"):
        texture((1, 12, 10)).extended((12, 9))


def test_no_noise_and_no_residual_is_refused():
    """Would catch the inverse of a singular matrix."""
    problem = pose(problems((2, 6, 4))["masks"], shape=(2, 6, 4), sigma=0.0)
    with pytest.raises(ValueError, match="Give sigma > 0"):
        texture(residual=0.0).posterior(problem)


def test_another_size_is_refused():
    """Would catch a problem on another domain that happens to broadcast."""
    problem = pose(problems((2, 6, 4))["masks"], shape=(2, 6, 4))
    with pytest.raises(ValueError, match="the problem's"):
        texture((2, 5, 6)).posterior(problem)
