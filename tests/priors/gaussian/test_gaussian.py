"""The Gaussian prior against the textbook formulas, in float64."""

import copy
import math

import pytest
import torch
from cases import SMALL_COLOUR as COLOUR
from cases import gaussian
from tools import condition, identical, pose, problems, randn, random_covariance, seeded

from genprior.operators import (
    GaussianNoise,
    Identity,
    Inpainting,
    Matrix,
    PoissonNoise,
    Problem,
)
from genprior.operators.base import Operator
from genprior.priors import Gaussian

DIMENSION = math.prod(COLOUR)


def dense_law(prior):
    """Mean (d,) and covariance (d, d) by the definition."""
    factors = prior.factors.flatten(1)
    identity = torch.eye(factors.shape[1], dtype=factors.dtype)
    return prior.mean.flatten(), factors.T @ factors + prior.residual**2 * identity


PRIORS = {
    "low rank": gaussian,
    "no residual": lambda: gaussian(residual=0.0),
    "rank 0": lambda: gaussian(rank=0),
    "more factors than pixels": lambda: gaussian(rank=50, residual=0.02),
}


@pytest.mark.parametrize("sigma", [0.05, None], ids=["one sigma", "sigma each"])
@pytest.mark.parametrize("operator", problems())
@pytest.mark.parametrize("name", PRIORS)
def test_posterior_is_the_textbook_one(name, operator, sigma):
    """Would catch any slip in Woodbury's formula, in what is observed, in per-image state."""
    prior, made = PRIORS[name](), problems()[operator]
    problem = pose(made, sigma=sigma)
    posterior = prior.posterior(problem)
    mean, covariance = dense_law(prior)
    closed = made.spectrum(problem.y) is not None
    tolerance = 1e-8 if closed else 1e-5
    for i in range(problem.batch):
        of_mean, of_covariance, evidence = condition(mean, covariance, problem, i)
        std = of_covariance.diagonal().clamp(min=0).sqrt()
        torch.testing.assert_close(posterior.mean[i].flatten(), of_mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(posterior.std[i].flatten(), std, rtol=0, atol=tolerance)
        torch.testing.assert_close(
            posterior.log_evidence[i], evidence, rtol=tolerance, atol=tolerance
        )


def test_posterior_density():
    """Would catch a log_prob that lacks a normalising term."""
    prior = gaussian()
    problem = pose(problems()["masks"])
    x = 0.5 + 0.2 * randn(3, *COLOUR, seed=11)
    found = prior.posterior(problem).log_prob(x)
    for i in range(3):
        mean, covariance, _ = condition(*dense_law(prior), problem, i)
        law = torch.distributions.MultivariateNormal(mean, (covariance + covariance.T) / 2)
        torch.testing.assert_close(found[i], law.log_prob(x[i].flatten()))


@pytest.mark.parametrize("residual", [0.05, 0.0])
def test_posterior_samples_have_the_posterior_covariance(residual):
    """Would catch samples with the right std of each pixel and wrong correlations."""
    prior = gaussian(residual=residual)
    problem = pose(problems()["matrix"], count=1, sigma=0.05)
    draws = prior.posterior(problem).sample(20_000, generator=seeded(3))[0].flatten(1)
    mean, covariance, _ = condition(*dense_law(prior), problem, 0)
    centred = draws - mean
    products = centred[:, :, None] * centred[:, None]
    standard = products.std(0) / math.sqrt(len(draws)) + 1e-15
    assert float(((products.mean(0) - covariance).abs() / standard).max()) < 5


def test_exact_measurement_without_noise():
    """Would catch sigma = 0 giving NaN, or not passing through the measured pixels."""
    prior = gaussian()
    problem = pose(problems()["masks"], sigma=0.0)
    posterior = prior.posterior(problem)
    seen = problem.operator.observed.expand_as(problem.y)
    torch.testing.assert_close(posterior.mean[seen], problem.y[seen])
    assert float(posterior.std[seen].max()) < 1e-7
    samples = posterior.sample(2, generator=seeded(1))
    torch.testing.assert_close(samples[:, 1][seen], problem.y[seen])
    for i in range(3):
        mean, _, evidence = condition(*dense_law(prior), problem, i)
        torch.testing.assert_close(posterior.mean[i].flatten(), mean)
        torch.testing.assert_close(posterior.log_evidence[i], evidence)


@pytest.mark.parametrize("case", ["no residual", "operator loses rank"])
def test_singular_without_noise_is_refused(case):
    """Would catch an infinite evidence, or a solve by a singular matrix, passed on in silence."""
    prior = gaussian(residual=0.0 if case == "no residual" else 0.05)
    rows = randn(2, DIMENSION, seed=3)
    operator = Matrix(torch.cat([rows, rows]), COLOUR)
    with pytest.raises(ValueError, match="Give sigma > 0"):
        prior.posterior(pose(operator, sigma=0.0))


class Square(Operator):
    """y = x^2: not linear."""

    def __init__(self):
        super().__init__(COLOUR, COLOUR)

    def forward(self, x):
        return x**2


@pytest.mark.parametrize("case", ["nonlinear", "poisson"])
def test_no_closed_form_is_a_type_error(case):
    """Would catch a Gaussian formula applied where it does not hold."""
    x = torch.rand(2, *COLOUR, generator=seeded(1), dtype=torch.float64)
    if case == "nonlinear":
        problem = Problem(x, Square(), GaussianNoise(0.1))
    else:
        problem = Problem(x, Identity(COLOUR), PoissonNoise(30.0))
    names = "Square with GaussianNoise" if case == "nonlinear" else "Identity with PoissonNoise"
    with pytest.raises(TypeError, match=names):
        gaussian().posterior(problem)


def test_another_image_size_is_refused():
    """Would catch a problem of other images that happens to broadcast."""
    with pytest.raises(ValueError, match=r"\(2, 4, 6\), the problem's \(1, 4, 3\)"):
        gaussian().posterior(pose(Identity((1, 4, 3)), shape=(1, 4, 3)))


def test_float32_is_safe():
    """Would catch cancellation: wide directions, little noise, many pixels."""
    d = 400
    shape = (1, 20, 20)
    scales = torch.logspace(1, -3, 60, dtype=torch.float64)
    directions = torch.linalg.qr(randn(d, 60)).Q.T * scales[:, None]
    prior = Gaussian(torch.zeros(shape).double(), directions.reshape(-1, *shape), residual=1e-3)
    x = prior.sample(2, generator=seeded(1))
    masks = torch.rand(2, 1, 20, 20, generator=seeded(2)) < 0.6
    problem = Problem.simulate(x, Inpainting(masks), GaussianNoise(1e-3), generator=seeded(3))
    precise = prior.posterior(problem)
    single = copy.deepcopy(prior).float().posterior(problem.to(dtype=torch.float32))
    error = (single.mean - precise.mean).abs() / precise.std
    assert float(error.max()) < 0.1
    torch.testing.assert_close(single.std.double(), precise.std, rtol=1e-3, atol=0)


@pytest.mark.parametrize("residual", [0.05, 0.0])
def test_denoise_is_wieners_filter(residual):
    """Would catch a filter wrong at one noise level, in the basis or off it."""
    prior = gaussian(residual=residual)
    mean, covariance = dense_law(prior)
    x = randn(4, *COLOUR, seed=5)
    sigmas = torch.tensor([0.0, 1e-3, 0.1, 50.0], dtype=torch.float64)
    found = prior.denoise(x, sigmas)
    assert identical(found[0], x[0])
    for i, sigma in enumerate(sigmas[1:], 1):
        noisy = covariance + sigma**2 * torch.eye(DIMENSION, dtype=torch.float64)
        expected = mean + covariance @ torch.linalg.solve(noisy, x[i].flatten() - mean)
        torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-8, atol=1e-9)


def test_log_prob():
    """Would catch a log-determinant that forgets the directions off the basis."""
    prior, x = gaussian(), randn(3, *COLOUR, seed=5)
    law = torch.distributions.MultivariateNormal(*dense_law(prior))
    torch.testing.assert_close(prior.log_prob(x), law.log_prob(x.flatten(1)))


def test_decode_is_the_symmetric_root():
    """Would catch another root: z would no longer look like the image."""
    prior = gaussian()
    impulses = torch.eye(DIMENSION, dtype=torch.float64).reshape(-1, *COLOUR)
    root = (prior.decode(impulses) - prior.mean).flatten(1)
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, dense_law(prior)[1])


@pytest.mark.parametrize("method", ["encode", "log_prob"])
def test_without_residual_there_is_no_density(method):
    """Would catch an infinity where the law is degenerate."""
    with pytest.raises(ValueError, match="residual > 0"):
        getattr(gaussian(residual=0.0), method)(randn(1, *COLOUR))


def test_from_covariance_keeps_the_covariance():
    """Would catch a lost direction or a wrong floor."""
    covariance = random_covariance(12)
    prior = Gaussian.from_covariance(torch.zeros(1, 3, 4).double(), covariance)
    torch.testing.assert_close(dense_law(prior)[1], covariance)


def test_from_covariance_of_the_identity_has_rank_zero():
    """Would catch 800 directions kept for a sphere: the mixtures of the literature have those."""
    prior = Gaussian.from_covariance(torch.zeros(1, 3, 4), 4 * torch.eye(12))
    assert len(prior.factors) == 0
    assert float(prior.residual) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], r"must be \(12, 12\)"),
        (lambda c: c + torch.ones(12, 12).triu(1), "not symmetric"),
        (lambda c: c - torch.eye(12), "negative eigenvalue"),
    ],
)
def test_from_covariance_refuses(change, message):
    """Would catch a matrix that is no covariance, taken by its lower half."""
    with pytest.raises(ValueError, match=message):
        Gaussian.from_covariance(torch.zeros(1, 3, 4), change(random_covariance(12)))


def test_derived_directions_follow_the_weights():
    """Would catch a factorisation kept after `load_state_dict`, `to` or a copy."""
    prior, other = gaussian(), gaussian(rank=5, residual=0.3)
    other.factors.mul_(2)
    x = randn(2, *COLOUR)
    before = prior.log_prob(x)
    prior.load_state_dict(other.state_dict())
    torch.testing.assert_close(prior.log_prob(x), other.log_prob(x))
    assert not torch.allclose(prior.log_prob(x), before)
    single = copy.deepcopy(other).float()
    torch.testing.assert_close(
        single.log_prob(x.float()).double(), other.log_prob(x), rtol=1e-3, atol=0
    )


# ---------------------------------------------------------------------- fitting


def images(count, shape=(1, 4, 5), seed=0):
    mixing = randn(20, 20, seed=seed) * torch.logspace(0, -2, 20, dtype=torch.float64)
    return 0.5 + (0.2 * randn(count, 20, seed=seed + 1) @ mixing.T).reshape(count, *shape)


def test_fit_is_probabilistic_pca():
    """Would catch a residual that is not the mean of the discarded eigenvalues."""
    x = images(200)
    prior = Gaussian.fit(x, rank=3)
    centred = (x - x.mean(0)).flatten(1)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    variance = values[:-3].mean()
    assert float(prior.residual) ** 2 == pytest.approx(float(variance), rel=1e-5)
    top = vectors[:, -3:]
    expected = top @ torch.diag(values[-3:] - variance) @ top.T
    factors = prior.factors.flatten(1).double()
    torch.testing.assert_close(factors.T @ factors, expected, rtol=1e-4, atol=1e-6)


class Stream:
    """Batches that exist only while they are walked over."""

    def __init__(self, x, size):
        self.x, self.size = x, size

    def __iter__(self):
        yield from self.x.split(self.size)


@pytest.mark.parametrize("kind", ["stream", "list", "labelled"])
def test_fit_takes_any_source(kind):
    """Would catch a fit that depends on how its images come, or that needs them all at once."""
    x = images(100)
    labelled = [(image, 0) for image in x]
    source = {"stream": Stream(x, 7), "list": list(x), "labelled": labelled}[kind]
    whole, parts = Gaussian.fit(x, rank=4), Gaussian.fit(source, rank=4)
    torch.testing.assert_close(*(dense_law(p)[1] for p in (whole, parts)), rtol=1e-4, atol=1e-7)


def test_large_images_are_fitted_without_their_covariance(monkeypatch):
    """Would catch a subspace iteration that has not converged, or a wrong trace."""
    x = images(300)
    exact = Gaussian.fit(x, rank=4)
    monkeypatch.setattr("genprior.priors.gaussian.principal.DENSE", 10)
    found = Gaussian.fit(x, rank=4)
    assert float(found.residual) == pytest.approx(float(exact.residual), rel=1e-3)
    torch.testing.assert_close(*(dense_law(p)[1] for p in (found, exact)), rtol=1e-3, atol=1e-5)


def test_rank_is_chosen_by_held_out_likelihood():
    """Would catch a rank of all directions (overfitting) or none."""
    x = 0.3 * randn(400, 3, seed=1) @ randn(3, 20, seed=2) + 0.05 * randn(400, 20, seed=3)
    assert len(Gaussian.fit(x.reshape(400, 1, 4, 5)).factors) == 3


def test_constant_pixels_keep_a_density():
    """Would catch a residual of 0 from pixels that never vary, as MNIST's borders."""
    x = images(100)
    x[:, :, 0] = 0
    prior = Gaussian.fit(x)
    assert float(prior.residual) >= 1 / (255 * 12**0.5) * (1 - 1e-6)
    assert bool(prior.log_prob(x.float()).isfinite().all())


@pytest.mark.parametrize(
    ("source", "rank", "message"),
    [
        (torch.zeros(1, 1, 4, 5), None, "at least 2 images"),
        (torch.zeros(5, 1, 4, 5), 7, "ranks 0 to 4, not 7"),
        (torch.zeros(5, 4, 5), 1, r"\(N, C, H, W\)"),
        (iter([torch.zeros(5, 1, 4, 5)]), 1, "one-shot"),
    ],
)
def test_fit_refuses(source, rank, message):
    """Would catch an obscure failure deep in the linear algebra."""
    with pytest.raises(ValueError, match=message):
        Gaussian.fit(source, rank=rank)


def test_calibration():
    """Would catch intervals too wide or too narrow: 50 % and 90 % must hold so often."""
    prior = gaussian()
    count = 500
    x = prior.sample(count, generator=seeded(1))
    masks = torch.rand(count, 1, *COLOUR[1:], generator=seeded(2)) < 0.4
    masks[:, :, 0, 0] = True
    problem = Problem.simulate(x, Inpainting(masks), GaussianNoise(0.1), generator=seeded(3))
    posterior = prior.posterior(problem)
    z = (x - posterior.mean).abs() / posterior.std
    for level, width in ((0.5, 0.674490), (0.9, 1.644854)):
        covered = (z < width).double().flatten(1).mean(1)  # pixels of a problem are dependent
        standard = float(covered.std()) / math.sqrt(count)
        assert abs(float(covered.mean()) - level) < 3 * standard
