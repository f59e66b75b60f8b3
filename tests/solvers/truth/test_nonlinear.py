"""Nonlinear operators: DAPS's draw against quadrature, the default against inverting by hand."""

from dataclasses import replace

import pytest
import torch
from tools import seeded

from genprior import solve
from genprior.metrics import psnr
from genprior.operators import (
    Blur,
    Compose,
    GaussianNoise,
    Inpainting,
    Operator,
    PoissonNoise,
    Problem,
    kernels,
)
from genprior.priors import Gaussian
from genprior.solve import default_solver
from genprior.solvers import DAPS
from genprior.solvers.data_term import DataTerm
from genprior.solvers.diffusion.daps import conditional_draw
from genprior.solvers.testing import gaussian_field
from genprior.solvers.walk.gauss_newton import linearise, randomised_draw
from genprior.solvers.walk.state import Walk

PIXELS = (1, 1, 2)
PAIR = Gaussian.from_covariance(
    torch.full(PIXELS, 0.45).double(), 0.15**2 * torch.tensor([[1, 0.6], [0.6, 1]]).double()
)


class Response(Operator):
    """A sensor's response, pixel by pixel."""

    def __init__(self, function, shape):
        super().__init__(shape, shape)
        self.function = function

    def forward(self, x):
        return self.function(x)


RESPONSES = {
    "camera": (lambda x: (x.clamp(min=1e-4) ** (1 / 2.2)).clamp(max=0.8), lambda y: y**2.2),
    "gamma": (lambda x: x.clamp(min=1e-4) ** 2.2, lambda y: y ** (1 / 2.2)),
    "clipped": (lambda x: (2 * x - 0.5).clamp(0, 1), lambda y: (y + 0.5) / 2),
    "square": (lambda x: x**2, lambda y: y.sqrt()),
    "tanh": (lambda x: (2 * x).tanh(), lambda y: y.clamp(max=0.99).atanh() / 2),
}
SEEN = {"camera": [0.6, 0.82], "gamma": [0.1, 0.3], "clipped": [0.4, 1.02], "square": [0.2, 0.3]}
NOISE = {"few photons": PoissonNoise(5.0), "many photons": PoissonNoise(100.0)}
SEEN |= {name: [0.2, 0.6] for name in NOISE}


def by_quadrature(problem, prior):
    """Mean and variance of p(x | y) for two pixels, on a grid."""
    line = torch.linspace(-0.6, 1.5, 301, dtype=torch.float64)
    x = torch.cartesian_prod(line, line).reshape(-1, *PIXELS)
    rows = problem.take(torch.zeros(len(x), dtype=torch.int64))
    weights = torch.softmax(prior.log_prob(x) + rows.log_likelihood(x), 0)
    mean = weights @ x.flatten(1)
    return mean, weights @ (x.flatten(1) - mean) ** 2


def assert_law(problem, *, solver, count=1000):
    """Mean and variance within 10 % of the posterior's, five standard errors allowed besides."""
    mean, variance = by_quadrature(problem, PAIR)
    found = solver(problem, PAIR, num_samples=count, batch_size=count, generator=seeded(1))
    x = found.samples[0].flatten(1)
    assert ((x.mean(0) - mean).abs() < (0.1 + 5 / count**0.5) * variance.sqrt()).all()
    assert ((x.var(0) / variance).log().abs() < 0.1 + 5 * (2 / count) ** 0.5).all()


@pytest.mark.parametrize("name", SEEN)
def test_daps_has_the_posterior_law(name):
    """Catches Langevin's draw (variance 1.2 of a seen pixel), a Jacobian or its transpose at the
    wrong place, noise left out, a pixel that is lost behind a clip or with the wrong sign, and
    Poisson variances that follow the counts."""
    y = torch.tensor(SEEN[name], dtype=torch.float64).reshape(1, *PIXELS)
    noise = NOISE.get(name, GaussianNoise(0.05))
    function, _ = RESPONSES.get(name, (lambda x: x, None))
    problem = Problem(y, Response(function, PIXELS), noise)
    assert_law(problem, solver=DAPS(steps=30))


def test_the_draw_is_the_exact_one_where_a_is_linear():
    """Catches noise of the wrong sign or size, and steps that end short of the minimum."""
    prior, problem = gaussian_field(3)
    operator = Blur(kernels.uniform(3), prior.image_shape, boundary="valid")
    y = operator(prior.sample(2, generator=seeded(1)))
    problem = Problem(y, operator, GaussianNoise(torch.tensor([0.1, 0.3]).double()))
    x0hat, r2 = prior.sample(2, generator=seeded(2)), torch.tensor([0.01, 0.04]).double()

    def walk():
        generators = [seeded(3), seeded(4)]
        sigmas, shape = torch.ones(3, 2).double(), tuple(x0hat.shape)
        return Walk(problem, prior, sigmas, shape, generators, 1, iter(()))

    expected = conditional_draw(DataTerm.of(problem), x0hat, r2, walk().noise)
    found = randomised_draw(walk(), x0hat, r2, x0hat)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_jacobian_and_its_transpose():
    """Catches J and J^T confused, and derivatives that reach unobserved entries."""
    blur = Blur(kernels.uniform(3), (1, 4, 5))
    operator = Response(lambda x: blur(x**2), (1, 4, 5))
    x = torch.rand(1, 1, 4, 5, generator=seeded(), dtype=torch.float64)
    y, forward, adjoint = linearise(Problem(operator(x), operator, GaussianNoise(0.1)), x)
    dense = torch.autograd.functional.jacobian(operator, x).reshape(20, 20)
    v = torch.rand(1, 1, 4, 5, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(y, operator(x))
    torch.testing.assert_close(forward(v).flatten(), dense @ v.flatten())
    torch.testing.assert_close(adjoint(v).flatten(), dense.T @ v.flatten())


def test_the_default_serves_what_is_not_linear_or_gaussian():
    """Catches DPS as the default, which is lost on a camera's response (-16 dB)."""
    prior, problem = gaussian_field(3)
    curved = Problem(problem.y, Response(torch.tanh, prior.image_shape), problem.noise)
    counted = Problem(problem.y, problem.operator, PoissonNoise(30.0))
    for problem, num_samples in ((curved, 1), (counted, 6), (counted, 5)):
        pairs = num_samples == 6
        found = default_solver(problem, prior, num_samples=num_samples)
        assert found == DAPS(antithetic=pairs)


@pytest.mark.parametrize("name", RESPONSES)
def test_default_is_no_worse_than_inverting_by_hand(name):
    """Catches a walk that leaves pixels behind a clip or under the wrong sign."""
    side = 10
    places = torch.cartesian_prod(*[torch.arange(side).double()] * 2)
    covariance = 0.2**2 * torch.exp(-torch.cdist(places, places) / 3)
    prior = Gaussian.from_covariance(torch.full((1, side, side), 0.45).double(), covariance)
    x = prior.sample(6, generator=seeded(5)).clamp(0.02, 1)
    forward, inverse = RESPONSES[name]
    operator = Response(forward, prior.image_shape)
    problem = Problem.simulate(x, operator, GaussianNoise(0.02), generator=seeded(6))
    result = solve(problem, prior, generator=seeded(7))
    by_hand = inverse(problem.y.clamp(0, 0.8 if name == "camera" else 1))
    assert result.converged.all()
    assert psnr(result.mean, x).mean() > psnr(by_hand, x).mean()


TRIO = (1, 1, 3)
NEAR = torch.cdist(torch.arange(3.0)[:, None], torch.arange(3.0)[:, None]).double()
THREE = Gaussian.from_covariance(torch.full(TRIO, 0.45).double(), 0.15**2 * torch.exp(-NEAR / 2))
MIXED = Blur(torch.tensor([[0.2, 0.6, 0.2]]).double(), TRIO)
ENDS = Inpainting(torch.tensor([True, False, True]).reshape(TRIO))


def curved(name):
    return Response(RESPONSES[name][0], TRIO)


COMPOSED = {
    "gamma of a blur": (Compose(curved("gamma"), MIXED), GaussianNoise(0.02)),
    "clip on a mask": (Compose(ENDS, curved("clipped")), GaussianNoise(0.05)),
    "camera, blur, mask": (Compose(ENDS, Compose(curved("camera"), MIXED)), GaussianNoise(0.05)),
    "counts of a blur": (MIXED, PoissonNoise(30.0)),
}


def by_refined_quadrature(problem, prior):
    """Mean and std of p(x | y) for three pixels, on grids drawn ever closer about it."""
    mean, std = torch.full((3,), 0.45).double(), torch.full((3,), 0.15).double()
    for _ in range(3):
        lines = [
            torch.linspace(float(m - 5 * s), float(m + 5 * s), 33).double()
            for m, s in zip(mean, std, strict=True)
        ]
        x = torch.cartesian_prod(*lines).reshape(-1, *TRIO)
        rows = problem.take(torch.zeros(len(x), dtype=torch.int64))
        weights = torch.softmax(prior.log_prob(x) + rows.log_likelihood(x), 0)
        mean = weights @ x.flatten(1)
        std = (weights @ (x.flatten(1) - mean) ** 2).sqrt()
    return mean, std


@pytest.mark.parametrize("name", COMPOSED)
def test_the_default_has_the_posterior_s_mean_through_two_operators(name):
    """Catches a Jacobian of one part alone, and counts or clips that are seen through a mask or a
    blur as if there were none: means within .3 standard deviations, variances
    within a factor of 2 (a clip near y cuts the posterior in two; all 100 steps come closer)."""
    operator, noise = COMPOSED[name]
    x = THREE.sample(1, generator=seeded(10)).clamp(min=0.02)
    problem = Problem.simulate(x, operator, noise, generator=seeded(20))
    mean, std = by_refined_quadrature(problem, THREE)
    solver = replace(default_solver(problem, THREE, num_samples=200), steps=25)  # of 100
    result = solver(problem, THREE, num_samples=200, generator=seeded(3))
    assert result.converged.all()
    error = (result.mean.flatten() - mean) / std
    assert float(error.abs().max()) < 0.3, error
    ratio = result.samples[0].flatten(1).var(0) / std**2
    assert float(ratio.log().abs().max()) < 0.69, ratio


@pytest.mark.parametrize("name", ["gamma", "square"])
def test_without_noise_seen_pixels_are_inverted_and_others_follow(name):
    """Catches sigma 0 that is divided by, or that stops a walk far above it: seen pixels are the
    inverse of y, and the one between has the law of a Gaussian given these."""
    x = THREE.sample(1, generator=seeded(10)).clamp(min=0.1)
    problem = Problem.simulate(x, Compose(ENDS, curved(name)), GaussianNoise(0.0))
    solver = replace(default_solver(problem, THREE, num_samples=100), steps=25)
    result = solver(problem, THREE, num_samples=100, generator=seeded(3))
    assert result.converged.all()
    seen = x.flatten()[[0, 2]]
    found = result.samples[0].flatten(1)
    assert float((found[:, [0, 2]] - seen).abs().max()) < 1e-3
    covariance = 0.15**2 * torch.exp(-NEAR / 2)
    gain = torch.linalg.solve(covariance[[0, 2]][:, [0, 2]], covariance[[0, 2], 1])
    variance = covariance[1, 1] - gain @ covariance[[0, 2], 1]
    mean = 0.45 + gain @ (seen - 0.45)
    assert float((found[:, 1].mean() - mean).abs() / variance.sqrt()) < 0.3
    assert 0.7 < float(found[:, 1].var() / variance) < 1.4
