"""The problem in the coordinates of its operator's singular vectors."""

import pytest
import torch
from tools import pose, problems, randn, seeded

from genprior.operators import GaussianNoise, LinearOperator, Problem, Spectrum
from genprior.operators.testing import check_operator
from genprior.priors import Gaussian
from genprior.solvers import DAPS, DDNM, DDRM, DPS, MMPS, SMC, DiffPIR, ExactPosterior, PiGDM
from genprior.solvers.data_term import DataTerm


class Grey(LinearOperator):
    """A third party's operator, whose spectrum is in float64 whatever y is."""

    def __init__(self, height, width):
        super().__init__(image_shape=(3, height, width), measurement_shape=(1, height, width))
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
        self.register_buffer("weights", weights.reshape(1, 3, 1, 1))

    def forward(self, x):
        return (self.weights.to(x) * x).sum(1, keepdim=True)

    def adjoint(self, y):
        return self.weights.to(y) * y

    def spectrum(self, like=None):
        square = self.weights.square().sum().reshape(1, 1, 1, 1)
        return Spectrum(square, to=lambda y: y, back=lambda c: c)


class Rotated(Grey):
    """Its coefficients are in float64 too: a matrix of that dtype makes them."""

    def spectrum(self, like=None):
        turn = torch.linalg.qr(randn(16, 16, seed=5)).Q
        return Spectrum(
            super().spectrum().eigenvalues,
            to=lambda y: (y.double().flatten(1) @ turn).reshape(y.shape),
            back=lambda c: (c.flatten(1) @ turn.mT).reshape(c.shape),
        )


class Stubborn(Grey):
    """Solves in float64 whatever it is given."""

    def solve_gram(self, v, damping, *, scale=1.0):
        return super().solve_gram(v.double(), damping, scale=scale)


SOLVERS = [
    ExactPosterior(),
    MMPS(steps=4),
    PiGDM(steps=4),
    DPS(steps=4),
    DAPS(steps=4),
    DiffPIR(steps=4),
    DDRM(steps=4),
    DDNM(steps=4),
    SMC(steps=4, particles=4),
    SMC(steps=4, particles=4, exact_entries=0),
]


@pytest.mark.parametrize("operator", [Grey(4, 4), Rotated(4, 4)], ids=["eigenvalues", "maps"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_spectrum_in_float64_serves_float32(solver, operator):
    """Catches eigenvalues, or coefficients, of another dtype that lift or stop a float32 walk."""
    shape = (3, 4, 4)
    mean, factors = torch.full(shape, 0.5), 0.2 * randn(5, *shape, dtype=torch.float32)
    prior = Gaussian(mean, factors, residual=0.1)
    x = prior.sample(2, generator=seeded(1))
    problem = Problem.simulate(x, operator, GaussianNoise(0.1), generator=seeded(2))
    found = solver(problem, prior, generator=seeded(3))
    assert found.samples.dtype == torch.float32
    twice = Problem(problem.y.double(), problem.operator, problem.noise)
    exact = Gaussian(mean.double(), factors.double(), residual=0.1).posterior(twice).mean
    if isinstance(solver, ExactPosterior):
        torch.testing.assert_close(found.mean.double(), exact, atol=1e-4, rtol=0)


def test_the_public_check_runs_in_both_precisions():
    """Catches an operator that only serves the dtype in which it was checked."""
    check_operator(Grey(4, 3))
    check_operator(Rotated(4, 4))
    with pytest.raises(AssertionError, match=r"float32 measurements gave torch\.float64"):
        check_operator(Stubborn(4, 3))


@pytest.mark.parametrize("name", problems())
def test_coordinates_are_those_of_the_problem(name):
    """Catches a map that is not unitary, an adjoint of another operator, a solve of another."""
    problem = pose(problems()[name])
    data, operator = DataTerm.of(problem), problem.linear_operator
    x, v = randn(3, 2, 4, 6, seed=1), randn(*problem.y.shape, seed=2)
    v = operator.keep_observed(v)
    c = data.coefficients(v)
    norm = problem.residual(x).flatten(1).norm(dim=1)
    torch.testing.assert_close(data.residual(x).flatten(1).norm(dim=1), norm)
    torch.testing.assert_close(data.adjoint(c), operator.adjoint(v))
    damping, scale = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    solved = data.adjoint(data.solver(damping, scale=scale)(c))
    expected = operator.adjoint(operator.solve_gram(v, damping, scale=scale))
    torch.testing.assert_close(solved, expected, atol=1e-6, rtol=1e-6)
    if data.spectrum is not None:
        svd, ybar, noise = data.decomposed("DDRM")
        torch.testing.assert_close(svd.v(ybar), operator.pinv(problem.y))
        torch.testing.assert_close(svd.v(svd.vt(x)), operator.pinv(operator(x)))
        seen = (svd.singular_values > 0).expand_as(noise)
        sigma = (noise * svd.singular_values).where(seen, torch.nan).flatten(1).nanmean(1)
        torch.testing.assert_close(sigma, problem.sigma)
