"""What single diffusion solvers promise beside the law of their samples."""

from itertools import pairwise

import pytest
import torch
from tools import identical, seeded

from genprior.metrics import sliced_wasserstein
from genprior.operators import (
    Blur,
    Compose,
    GaussianNoise,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    Operator,
    PoissonNoise,
    Problem,
    kernels,
)
from genprior.operators.random import normal
from genprior.priors import Gaussian, GaussianMixture
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    SMC,
    DiffPIR,
    PiGDM,
    REDDiff,
    RePaint,
)
from genprior.solvers.testing import (
    check_chunks,
    check_rows,
    gaussian_field,
    noise_replaced,
    posterior_law,
)
from genprior.solvers.walk.krylov import krylov_solve

LINEAR = [MMPS(steps=8), PiGDM(), DAPS(), DiffPIR(), DDNM(), DDRM(), SMC(particles=16)]
ANY_OPERATOR = [DPS(), DAPS(steps=30), REDDiff()]


class Squared(Operator):
    """y = (x / 2 + x^2 / 2): nonlinear, increasing on [0, 1]."""

    def forward(self, x):
        return (x + x**2) / 2


@pytest.mark.parametrize("solver", [*LINEAR, DPS(), RePaint(), REDDiff()], ids=repr)
def test_without_noise_y_is_met_and_kept(solver):
    """Catches a division by sigma_y = 0, and a walk that ends away from exact measurements."""
    prior, problem = gaussian_field(3, sigma=0.0)
    seen = problem.operator.observed
    result = solver(problem, prior, generator=seeded())
    assert result.samples.isfinite().all()
    if type(solver) not in (DPS, REDDiff):
        assert (result.samples[:, 0] - problem.y)[:, seen[0]].abs().max() < 0.05
    kept = type(solver)(steps=solver.steps, keep_measured=True)(problem, prior)
    assert identical(kept.samples[:, 0][:, seen[0]], problem.y[:, seen[0]])


def test_keep_measured_refuses_noise_and_blur():
    """Catches noisy pixels passed off as the image's."""
    prior, problem = gaussian_field(3)
    with pytest.raises(ValueError, match=r"keep_measured=True is for Inpainting"):
        MMPS(keep_measured=True)(problem, prior)
    exact = Problem(problem.y, Identity((1, 4, 4)), GaussianNoise(0.0))
    with pytest.raises(ValueError, match="Inpainting"):
        MMPS(keep_measured=True)(exact, prior)


@pytest.mark.parametrize("solver", LINEAR, ids=repr)
def test_nonlinear_operator_is_refused_with_advice(solver):
    """Catches an adjoint taken of what has none, and a message without the way out."""
    prior, problem = gaussian_field(3)
    nonlinear = Problem(problem.y, Squared((1, 4, 4), (1, 4, 4)), problem.noise)
    if isinstance(solver, DAPS):
        return
    with pytest.raises(TypeError, match=r"Squared is not.*DAPS.*DPS.*REDDiff"):
        solver(nonlinear, prior)


@pytest.mark.parametrize("solver", ANY_OPERATOR, ids=repr)
@pytest.mark.parametrize("noise", [GaussianNoise(0.03), PoissonNoise(500.0)], ids=repr)
def test_nonlinear_and_poisson_bring_the_image_closer(solver, noise):
    """Catches guidance that does not reach x through A, or steps that blow up."""
    prior, _ = gaussian_field(5)
    x = prior.sample(4, generator=seeded(1)).clamp(0.05, 1)
    problem = Problem.simulate(x, Squared((1, 4, 4), (1, 4, 4)), noise, generator=seeded(2))
    result = solver(problem, prior, generator=seeded(3))
    error = (result.mean - x).square().mean().sqrt()
    assert error < 0.5 * (prior.mean - x).square().mean().sqrt()
    assert result.trace["residual"][-1].max() < 3


@pytest.mark.parametrize(
    ("solver", "forwards", "vjps"),
    [
        (MMPS(steps=7, iterations=3, tolerance=0.0), 7, 21),
        (PiGDM(steps=7), 7, 7),
        (DPS(steps=7), 7, 7),
        (DAPS(steps=8, flow_steps=2), 8, 0),
        (DiffPIR(steps=7), 7, 0),
        (DDNM(steps=7), 7, 0),
        (DDRM(steps=7), 7, 0),
        (RePaint(steps=10, repeats=2), 10, 0),
        (SMC(steps=7, particles=4), 7 * 4 / 2, 8 * 7 * 4 / 2),
        (SMC(steps=7, particles=4, exact_entries=0), 7 * 4 / 2, 7 * 4 / 2),
    ],
    ids=repr,
)
def test_cost_is_what_the_fields_say(solver, forwards, vjps):
    """Catches a hidden second evaluation, and vector-Jacobian products not counted."""
    prior, problem = gaussian_field(3)
    result = solver(problem, prior, num_samples=2)
    assert (result.forwards, result.vjps) == (forwards, vjps)


@pytest.mark.parametrize("solver", [MMPS, PiGDM, DPS, DAPS, DiffPIR, DDNM, DDRM, SMC, REDDiff])
def test_steps_below_one_are_refused(solver):
    """Catches an empty walk that returns its start."""
    with pytest.raises(ValueError, match="steps must be from 1 to 1000000, not 0"):
        solver(steps=0)


def test_repaint_is_for_masks():
    """Catches pixels put back that a blur has mixed."""
    prior, problem = gaussian_field(3)
    with pytest.raises(TypeError, match="RePaint is for Inpainting; Identity came"):
        RePaint()(Problem(problem.y, Identity((1, 4, 4)), problem.noise), prior)


@pytest.mark.parametrize("solver", [DDRM(), DDNM()], ids=repr)
def test_spectral_methods_say_what_they_need(solver):
    """Catches a decomposition invented for an operator that has none in closed form."""
    prior, problem = gaussian_field(3)
    blur = Blur(kernels.uniform(3), (1, 4, 4))
    operator = Compose(problem.operator, blur)
    with pytest.raises(TypeError, match="needs a singular value decomposition"):
        solver(Problem(problem.y, operator, problem.noise), prior)


@pytest.mark.parametrize(
    ("solver", "bar"),
    [(MMPS(iterations=8), 0.06), (PiGDM(), 1.0), (DAPS(), 1.0), (DPS(), 1.0), (DiffPIR(), 1.0)],
    ids=repr,
)
def test_mean_under_a_general_matrix(solver, bar):
    """Catches adjoint and pseudo-inverse confused, which masks cannot tell apart."""
    prior, _ = gaussian_field(6)
    matrix = normal((6, 16), seeded(1), dtype=torch.float64)
    x = prior.sample(1, generator=seeded(2))
    problem = Problem.simulate(
        x, Matrix(matrix, (1, 4, 4)), GaussianNoise(0.05), generator=seeded(3)
    )
    mean, covariance = posterior_law(prior, problem)
    with noise_replaced(lambda shape, generator, **kind: torch.zeros(shape, **kind)):
        found = solver(problem, prior).mean.flatten()
    error = ((found - mean) / covariance.diag().sqrt()).square().mean().sqrt()
    assert error < bar, error


class TwoPerPixel(LinearOperator):
    """A third party's operator without a spectrum."""

    def __init__(self):
        super().__init__((1, 4, 4), (1, 4, 4))

    def forward(self, x):
        return 2 * x

    def adjoint(self, y):
        return 2 * y


def test_mmps_serves_an_operator_without_a_spectrum():
    """Catches a preconditioner that needs what the operator lacks."""
    prior, _ = gaussian_field(6)
    x = prior.sample(1, generator=seeded(2))
    problem = Problem.simulate(x, TwoPerPixel(), GaussianNoise(0.05), generator=seeded(3))
    mean, covariance = posterior_law(prior, problem)
    with noise_replaced(lambda shape, generator, **kind: torch.zeros(shape, **kind)):
        found = MMPS(iterations=16)(problem, prior).mean.flatten()
    assert ((found - mean) / covariance.diag().sqrt()).abs().max() < 0.2


def test_published_dps_is_the_papers_update():
    """Catches a step taken in units of [-1, 1] or of the variance-preserving x."""
    prior, problem = gaussian_field(7)
    steps = 6
    calls = [normal((1, 1, 1, 4, 4), seeded(k), dtype=torch.float64) for k in range(steps)]
    dealt = iter(calls)
    with noise_replaced(lambda shape, generator, **kind: next(dealt).reshape(shape)):
        found = DPS(steps=steps, zeta=0.4, matched=False)(problem, prior).samples[0, 0]

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    chosen = torch.linspace(999, 0, steps).round().long()
    alphas = torch.cat([(1 - betas).cumprod(0)[chosen], torch.ones(1, dtype=torch.float64)])
    mean, std, y = 2 * prior.mean - 1, 2 * prior.data_std, 2 * problem.y - 1
    a = alphas[0]
    x = a.sqrt() * mean + (a * std**2 + 1 - a).sqrt() * calls[0][0]
    for i, (a, b) in enumerate(pairwise(alphas)):
        x = x.detach().requires_grad_()
        clean = prior.denoise((x / a.sqrt() + 1) / 2, ((1 - a) / a).sqrt() / 2)
        x0 = 2 * clean - 1
        norm = torch.where(problem.operator.observed, y - x0, 0.0).norm()
        (gradient,) = torch.autograd.grad(norm, x)
        beta = 1 - a / b
        step = b.sqrt() * beta / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x
        if i < steps - 1:
            step = step + (beta * (1 - b) / (1 - a)).sqrt() * calls[i + 1][0]
        x = (step - 0.4 * gradient).detach()
    torch.testing.assert_close(found, (x[0] + 1) / 2)


def test_krylov_solves_what_is_not_symmetric():
    """Catches conjugate gradients where a network's Jacobian is not symmetric; and a row that
    is touched after it has converged."""
    matrix = torch.eye(6, dtype=torch.float64) + 0.3 * normal((6, 6), seeded(1)).double()
    b = normal((3, 6), seeded(2)).double()
    b[1] = 0
    v, image, _ = krylov_solve(
        lambda v: (v @ matrix.T, 2 * v),
        b,
        precondition=lambda r: r,
        iterations=6,
        tolerance=1e-12,
    )
    torch.testing.assert_close(v, torch.linalg.solve(matrix, b.T).T)
    torch.testing.assert_close(image, 2 * v)


def mixture(seed, d=8, m=2):
    """A small case of the MCGDiff protocol."""
    g = seeded(seed)
    places = [(-8.0 * i, -8.0 * j) for i in range(-1, 2) for j in range(-1, 2)]
    means = torch.tensor(places, dtype=torch.float64).repeat(1, d // 2).reshape(-1, 1, 1, d)
    weights = normal((9,), g, dtype=torch.float64) ** 2
    zero = torch.zeros(9, 0, 1, 1, d, dtype=torch.float64)
    prior = GaussianMixture.low_rank(weights, means, zero, torch.ones(9, dtype=torch.float64))
    operator = Matrix(normal((m, d), g, dtype=torch.float64) / d**0.5, (1, 1, d))
    x = prior.sample(1, generator=g)
    return prior, Problem.simulate(x, operator, GaussianNoise(0.5), generator=g)


@pytest.mark.parametrize(
    ("solver", "ratio"), [(SMC(steps=60, particles=600), 4.0), (MMPS(), 15.0)], ids=repr
)
def test_mixture_posterior_is_found(solver, ratio):
    """Catches wrong weights of particles, ranges clipped to [0, 1], and a start that forgets the
    spread of the prior."""
    found, floor = 0.0, 0.0
    for seed in range(3):
        prior, problem = mixture(seed)
        exact = prior.posterior(problem).sample(800, generator=seeded(1))[0].flatten(1)
        again = prior.posterior(problem).sample(300, generator=seeded(2))[0].flatten(1)
        samples = solver(problem, prior, num_samples=300, generator=seeded(3)).samples[0]
        found += sliced_wasserstein(samples.flatten(1), exact, generator=seeded(4))
        floor += sliced_wasserstein(again, exact, generator=seeded(4))
    assert found < ratio * floor, (found / 3, floor / 3)


def test_grid_follows_each_images_noise():
    """Catches a last noise level too large for a small measurement noise."""
    prior, problem = gaussian_field(3)
    both = Problem(
        problem.y.repeat(2, 1, 1, 1),
        problem.operator,
        GaussianNoise(torch.tensor([0.01, 0.2], dtype=torch.float64)),
    )
    last = PiGDM(steps=5)(both, prior).trace["sigma"][-2]
    assert last[0] <= 0.0011
    assert 0.002 < last[1] < 0.02


def test_float32_follows_y():
    """Catches a constant that lifts a float32 problem to float64."""
    prior, problem = gaussian_field(3)
    single = Problem(problem.y.float(), Inpainting(problem.operator.observed[0]), problem.noise)
    prior = Gaussian(prior.mean.float(), prior.factors.float(), residual=prior.residual.float())
    for solver in (*LINEAR, *ANY_OPERATOR, RePaint()):
        assert solver(single, prior, generator=seeded()).samples.dtype == torch.float32


def test_levels_inside_the_window_are_visited_again():
    """Catches returns that cost nothing, and a window in pixels instead of data deviations."""
    prior, problem = gaussian_field(3)
    s = float(prior.data_std.square().mean().sqrt())

    def forwards(returns, window):
        solver = PiGDM(steps=12, returns=returns, window=window)
        return solver(problem, prior, generator=seeded()).forwards

    sigmas = PiGDM(steps=12)(problem, prior).trace["sigma"][1:-1, 0] / s
    inside = int(((sigmas >= 0.65) & (sigmas <= 6.5)).sum())
    assert inside > 1
    assert forwards(1, (0.65, 6.5)) == 13 + 2 * inside
    assert forwards(3, (0.65, 6.5)) == 13 + 6 * inside
    assert forwards(3, (1e6, 1e7)) == 13


def test_returns_of_one_image_leave_the_others():
    """Catches noise drawn, or levels visited, by images that are outside the window just then."""
    prior, one = gaussian_field(3)
    sigmas = torch.tensor([0.01, 0.05, 0.3], dtype=torch.float64)
    problem = Problem(one.y.repeat(3, 1, 1, 1), one.operator, GaussianNoise(sigmas))
    solver = MMPS(steps=6, returns=1, window=(0.1, 3.0))
    check_rows(solver, problem, prior)
    check_chunks(solver, problem, prior)


@pytest.mark.parametrize("solver", [DAPS, DDNM, DDRM, DPS, DiffPIR, REDDiff, RePaint, SMC])
def test_methods_that_cannot_return_say_so(solver):
    """Catches a field that is ignored in silence."""
    with pytest.raises(ValueError, match="cannot visit levels again: leave returns at 0"):
        solver(returns=1)


def test_bad_windows_are_refused():
    """Catches a window that no level is inside, and a negative count."""
    with pytest.raises(ValueError, match=r"not 1 and \(2\.0, 1\.0\)"):
        MMPS(returns=1, window=(2.0, 1.0))
    with pytest.raises(ValueError, match="returns must be at least 0"):
        MMPS(returns=-1)
