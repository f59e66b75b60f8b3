"""Pieces that walks are made of, each against what it stands for, by dense algebra or autograd."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tools import randn, seeded

from genprior.operators import (
    Blur,
    GaussianNoise,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    Operator,
    PoissonNoise,
    Problem,
    kernels,
    random,
)
from genprior.priors import Gaussian, GaussianMixture
from genprior.solvers import Counted
from genprior.solvers.diffusion import smc
from genprior.solvers.fit import largest_misfit, misfit
from genprior.solvers.latent.diagnostics import effective_size
from genprior.solvers.testing import noise_replaced
from genprior.solvers.walk.gauss_newton import randomised_draw
from genprior.solvers.walk.krylov import Known, krylov_solve
from genprior.solvers.walk.levels import largest_singular_value, noise_grid, noise_level
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import finite_rows
from genprior.solvers.walk.twist import Twist, exact_twist, observed_entries

SHAPE = (1, 3, 4)
PRIOR = Gaussian(torch.full(SHAPE, 0.5).double(), 0.1 * randn(3, *SHAPE), residual=0.1)
SIGMAS = torch.tensor([0.05, 0.4], dtype=torch.float64)
MASK = torch.rand(SHAPE, generator=seeded(5)) < 0.6


class Bent(Operator):
    """y = sin(2 x) behind a mask: A's slope changes sign."""

    def __init__(self):
        super().__init__(SHAPE, SHAPE)
        self.mask = Inpainting(MASK)

    def forward(self, x):
        return self.mask((2 * x).sin())

    @property
    def observed(self):
        return self.mask.observed


NOISES = {
    "gaussian": GaussianNoise(SIGMAS),
    "little": GaussianNoise(torch.tensor([0.0005, 0.001], dtype=torch.float64)),
    "photons": PoissonNoise(torch.tensor([100.0, 3.0], dtype=torch.float64)),
}
OPERATORS = {"bent": Bent(), "mask": Inpainting(MASK), "blur": Blur(kernels.uniform(3), SHAPE)}


def walk_of(problem, prior=PRIOR, levels=4):
    rows = len(problem.y)
    sigmas = torch.linspace(1, 0.1, levels, dtype=torch.float64)[:, None].expand(-1, rows)
    shape = (rows, *prior.image_shape)
    generators = [seeded(i) for i in range(rows)]
    return Walk(problem, Counted(prior), sigmas, shape, generators, 1, iter(()))


def posed(operator, noise):
    x = PRIOR.sample(2, generator=seeded(1)).clamp(min=0.05)
    return Problem.simulate(x, OPERATORS[operator], NOISES[noise], generator=seeded(2))


def stds(problem, clean):
    """The noise's std of each entry, (2, ...)."""
    if isinstance(problem.noise, PoissonNoise):
        peak = problem.noise.peak[:, None, None, None]
        return (peak * clean).clamp(min=0.2).sqrt() / peak
    return problem.sigma[:, None, None, None].expand_as(clean)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_residuals_and_their_gradients(operator, noise):
    """Catches a weight that is squared, forgotten, of another image, above 1 or followed by the
    gradient; a gradient of the square; entries counted that nobody observed."""
    problem = posed(operator, noise)
    walk, operator = walk_of(problem), problem.operator
    seen = torch.ones(1, *SHAPE).bool() if operator.observed is None else operator.observed
    x0, about = (0.4 + 0.2 * randn(2, *SHAPE, seed=i) for i in (3, 4))
    level = noise_level(problem)
    for place in (None, about):
        w = level[:, None, None, None] / stds(problem, operator(x0 if place is None else place))
        w = w.clamp(max=1)  # dark pixels weigh no more than an average one
        leaf = x0.clone().requires_grad_()
        norm = (seen * w * (problem.y - operator(leaf))).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(norm.sum(), leaf)
        found, slope = walk.residual_gradient(x0, about=place)
        torch.testing.assert_close(found, norm.detach())
        torch.testing.assert_close(slope, gradient)
    torch.testing.assert_close(walk.residual_norm(x0), walk.residual_gradient(x0)[0])
    z = seen * (problem.y - operator(x0)) / stds(problem, operator(x0))
    count = int(seen.expand(2, *SHAPE)[0].sum())
    torch.testing.assert_close(misfit(problem, x0), z.flatten(1).norm(dim=1) / count**0.5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("before", ["near", "far"])
def test_a_draw_through_a_bent_operator(noise, before):
    """Catches any number of Gauss-Newton's steps, where each pixel's can be written down: six,
    the first at most 2 r long and each half as long as the last, from a start within r."""
    problem = posed("bent", noise)
    walk, x0hat = walk_of(problem), 0.4 + 0.2 * randn(2, *SHAPE, seed=3)
    r2 = torch.tensor([0.01, 0.09], dtype=torch.float64)
    start = x0hat + (0.05 if before == "near" else 3.0) * randn(2, *SHAPE, seed=4)
    dealt = [randn(2, *SHAPE, seed=6), randn(2, *SHAPE, seed=7)]
    queue = iter(dealt)
    with noise_replaced(lambda shape, generator, **kind: next(queue).reshape(shape)):
        found = randomised_draw(walk, x0hat, r2, start)
    r = r2.sqrt()[:, None, None, None]
    least = 0.01 * r
    w = MASK / torch.maximum(stds(problem, problem.operator(x0hat)), least)
    x = start.clamp(x0hat - r, x0hat + r)
    for i in range(6):
        slope = 2 * (2 * x).cos()
        pull = w * slope * (w * (problem.y - (2 * x).sin()) + MASK * dealt[1])
        pull = pull + (x0hat + r * dealt[0] - x) / r2[:, None, None, None]
        step = pull / ((w * slope) ** 2 + 1 / r**2)
        x = x + step.clamp(-2 * r / 2**i, 2 * r / 2**i)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-8)


def test_exact_twist_is_the_density_of_its_gaussian():
    """Catches the determinant, the half or the sign of log N(y; A x0, sigma^2 I + A V A^T), where
    V differs from particle to particle."""
    means = 0.5 + 0.3 * randn(3, *SHAPE, seed=1)
    zero, weights = torch.zeros(3, 0, *SHAPE).double(), torch.ones(3).double()
    prior = GaussianMixture.low_rank(weights, means, zero, 0.1 * weights)
    x, sigma = 0.5 + 0.4 * randn(5, *SHAPE, seed=2), torch.full((5,), 0.4).double()
    y = 0.5 + 0.2 * randn(1, *SHAPE, seed=3)
    one = Problem(y, Inpainting(MASK), GaussianNoise(0.1))
    problem = one.take(torch.zeros(5, dtype=torch.int64))
    found = exact_twist(walk_of(problem, prior), x, sigma)
    seen, logs = MASK.flatten(), []
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: prior.denoise(v, 0.4), x[i : i + 1]
        ).reshape(12, 12)
        x0, v = prior.denoise(x[i : i + 1], 0.4), 0.4**2 * jacobian
        of_y = v[seen][:, seen] + 0.1**2 * torch.eye(int(seen.sum())).double()
        miss = (y - x0).flatten()[seen]
        logs.append(torch.distributions.MultivariateNormal(0 * miss, of_y).log_prob(miss))
        guided = x0.flatten() + v[:, seen] @ torch.linalg.solve(of_y, miss)
        torch.testing.assert_close(found.x0[i : i + 1], x0)
        torch.testing.assert_close(found.guided[i].flatten(), guided)
    logs = torch.stack(logs)
    assert float((logs - logs[0]).abs().max()) > 0.5
    torch.testing.assert_close(found.log_density - found.log_density[0], logs - logs[0])


def test_krylov_stops_where_it_is_told():
    """Catches a bound on products that is off by one, a tolerance of another power, rows stopped
    by their neighbours, and a search direction that loses touch with those before."""
    size, products = 8, []
    matrix = torch.eye(size).double() + 0.5 * randn(size, size, seed=1) / size**0.5
    b = randn(2, size, seed=2) * torch.tensor([[1.0], [100.0]])

    def apply(v):
        products.append(v)
        return v @ matrix.T, 3 * v

    for most in (1, 2, 5):
        products.clear()
        v, image, _ = krylov_solve(
            apply, b, precondition=lambda r: r, iterations=most, tolerance=0.0
        )
        assert len(products) == most
        for i in range(2):  # least residual over the span of b, M b, ...
            span = [b[i]]
            for _ in range(most - 1):
                span.append(matrix @ span[-1])
            span = torch.stack(span, 1)
            least = torch.linalg.lstsq(matrix @ span, b[i][:, None]).solution[:, 0]
            torch.testing.assert_close(v[i], span @ least)
        torch.testing.assert_close(image, 3 * v)
    sizes = []
    for tolerance in (0.3, 0.1, 0.01):
        products.clear()
        v, *_ = krylov_solve(
            apply, b, precondition=lambda r: r, iterations=50, tolerance=tolerance
        )
        left = (b - v @ matrix.T).norm(dim=1) / b.norm(dim=1)
        assert (left <= tolerance).all()
        sizes.append(len(products))
        v, *_ = krylov_solve(
            apply, b, precondition=lambda r: r, iterations=sizes[-1] - 1, tolerance=0.0
        )
        assert ((b - v @ matrix.T).norm(dim=1) / b.norm(dim=1) > tolerance).any()
    assert sizes == sorted(set(sizes))


def test_rows_solved_are_not_touched_again():
    """Catches a row that has converged and goes on while its neighbours need to."""
    matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    b = torch.stack([torch.zeros(6), 0.1 * torch.eye(6)[1] + torch.eye(6)[0], torch.ones(6)])
    solve = {"precondition": lambda r: r, "iterations": 6, "tolerance": 0.1}
    together, *_ = krylov_solve(lambda v: (v @ matrix.T, v), b.double(), **solve)
    for i in range(3):
        alone, *_ = krylov_solve(lambda v: (v @ matrix.T, v), b[i : i + 1].double(), **solve)
        torch.testing.assert_close(together[i], alone[0])
    assert not together[0].any()


def test_one_system_tells_of_the_next():
    """Catches pairs that are not of the system, a share of the residual answered twice or left
    out, rows that take their neighbours' word for it, and a system that has changed unseen."""
    size, products = 8, []
    matrix = torch.eye(size).double() + 0.5 * randn(size, size, seed=1) / size**0.5
    other = randn(size, size, seed=4)
    b = randn(2, size, seed=2)

    def solve(rows, *, by=(matrix, matrix), **options):
        def apply(v):
            products.append(v)
            return torch.stack([m @ u for m, u in zip(by, v, strict=False)]), v

        products.clear()
        return krylov_solve(apply, rows, precondition=lambda r: r, tolerance=1e-9, **options)

    first = solve(b, iterations=3)
    pairs = first.known.pairs
    for z, product in pairs:
        torch.testing.assert_close(z @ matrix.T, product)
        torch.testing.assert_close(product.norm(dim=1), torch.ones(2).double())
    assert len(pairs) == 3
    assert not first.known.asked.any(), "nothing was known of the first"
    # What the pairs span is known after one product; the rest is left to the preconditioner.
    asked = replace(first.known, asked=torch.tensor([True, True]))
    within = sum(c * product for c, (_, product) in zip((1.0, -2.0, 0.5), pairs, strict=True))
    again = solve(within, known=asked, iterations=9)
    assert len(products) == 1
    torch.testing.assert_close(again.v @ matrix.T, within)
    assert again.known.asked.all()
    beside = b - sum(p * (b * p).sum(1, keepdim=True) for _, p in pairs)
    new = solve(beside, known=asked, iterations=1)
    torch.testing.assert_close(new.v, solve(beside, iterations=1).v)
    torch.testing.assert_close(
        solve(b, known=first.known, iterations=2).v, solve(b, iterations=2).v
    )
    # Row 1's system has changed: it is solved as without pairs, but for its first direction.
    both = solve(b, by=(matrix, other), known=asked, iterations=4)
    start = products[0][1]
    for i, m in enumerate((matrix, other)):
        mine = Known([(z[i : i + 1], p[i : i + 1]) for z, p in pairs], asked.asked[i : i + 1])
        alone = solve(b[i : i + 1], by=(m,), known=mine, iterations=4)
        torch.testing.assert_close(both.v[i], alone.v[0])
    span = [start]
    for _ in range(4):
        basis = torch.stack(span, 1)
        least = basis @ torch.linalg.lstsq(other @ basis, b[1]).solution
        span.append(b[1] - other @ least)
    torch.testing.assert_close(both.v[1], least)
    left = solve(b, by=(matrix, other), known=asked, iterations=1)
    assert (b[1] - other @ left.v[1]).norm() > b[1].norm() / 2
    assert (b[0] - matrix @ left.v[0]).norm() < b[0].norm() / 2
    # Half is the limit: c / (1 + c^2)^(1/2) of e_1 is left by e_1 + c e_2.
    unit = torch.eye(2, dtype=torch.float64)
    for c, held in ((0.5, True), (0.65, False)):
        known = Known([(unit[:1] + c * unit[1:], unit[:1])], torch.tensor([True]))
        solve(unit[:1], by=(unit,), known=known, iterations=2)
        left = unit[0] - products[0][0] / (1 + c**2)
        told = left + c * left[0] * unit[1] if held else left
        torch.testing.assert_close(products[1][0], told)
    # Of each row the nearer in direction is asked next.
    told = beside + sum(z * (b * p).sum(1, keepdim=True) for z, p in pairs)
    nearer = torch.cosine_similarity(told, both.v) > torch.cosine_similarity(b, both.v)
    assert both.known.asked.tolist() == nearer.tolist()
    opposite = [(-z, p) for z, p in pairs]
    misled = solve(b, known=replace(asked, pairs=opposite), iterations=size)
    assert not misled.known.asked.any()


def stub(scale, ends):
    """What `noise_grid` asks of a prior."""
    return SimpleNamespace(data_scale=scale, sigma_range=ends)


@pytest.mark.parametrize(
    ("scale", "ends", "sigma", "expected"),
    [
        (0.2, (0.0, 1e9), 0.01, (20.0, 0.001)),  # a hundred times the data; a tenth of the noise
        (0.2, (0.0, 7.0), 0.01, (7.0, 0.001)),
        (0.2, (0.0, 1e9), 0.5, (20.0, 0.006)),  # .03 of the data where there is much noise
        (0.2, (0.0, 1e9), 0.0, (20.0, 0.006)),
        (0.2, (0.004, 7.0), 0.01, (7.0, 0.004)),
        (0.2, (0.0, 0.0005), 0.01, (0.001, 0.001)),  # never upwards
    ],
)
def test_ends_of_the_levels(scale, ends, sigma, expected):
    """Catches a walk that begins or ends elsewhere than it says."""
    problem = Problem(torch.zeros(1, *SHAPE).double(), Identity(SHAPE), GaussianNoise(sigma))
    found = noise_grid(problem, stub(scale, ends), 3)
    assert found[0].item() == pytest.approx(expected[0])
    assert found[-1].item() == pytest.approx(expected[1])
    assert found[1].item() == pytest.approx(math.sqrt(expected[0] * expected[1]))


class Bare(LinearOperator):
    """A matrix without a spectrum."""

    def __init__(self, matrix):
        super().__init__(SHAPE, (len(matrix),))
        self.matrix = matrix

    def forward(self, x):
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y):
        return (y @ self.matrix).reshape(-1, *SHAPE)


def test_largest_singular_values():
    """Catches a norm that is squared, a first guess that is blind to constant images, 0 for an
    operator that sees nothing, and a gain claimed for what is not linear."""
    y = torch.zeros(2, 12).double()
    flat = torch.ones(12, 12).double() / 4  # of rank one, along the constant
    wavy = torch.outer(torch.arange(12).double().cos(), torch.ones(12).double())
    for matrix in (flat, wavy, 5 * torch.eye(12).double(), 0.01 * flat):
        for operator in (Bare(matrix), Matrix(matrix, SHAPE)):
            found = largest_singular_value(Problem(y, operator, GaussianNoise(0.1)))
            expected = torch.linalg.matrix_norm(matrix, ord=2).expand(2)
            torch.testing.assert_close(found, expected)
    nothing = Bare(torch.zeros(12, 12).double())
    assert largest_singular_value(Problem(y, nothing, GaussianNoise(0.1))).tolist() == [1, 1]
    bent = Problem(torch.zeros(2, *SHAPE).double(), Bent(), GaussianNoise(0.1))
    assert largest_singular_value(bent).tolist() == [1, 1]


def test_what_counts_as_explained():
    """Catches bounds of `converged` other than documented: 1.5 and five standard errors of the
    residual's root mean square; a tenth of y's without noise."""
    y = torch.full((3, *SHAPE), 0.5).double()
    sigma = torch.tensor([0.1, 0.0, 0.0]).double()
    y[2] = 0
    problem = Problem(y, Inpainting(MASK), GaussianNoise(sigma))
    m = int(MASK.sum())
    expected = [1.5 + 5 / math.sqrt(2 * m), 0.1 * 0.5, 0.1]
    assert largest_misfit(problem).tolist() == pytest.approx(expected)
    photons = Problem(y, Inpainting(MASK), PoissonNoise(10.0))
    assert largest_misfit(photons).tolist() == pytest.approx(3 * expected[:1])
    # without noise the misfit is in pixels
    assert misfit(problem, y + 0.3).tolist() == pytest.approx([3.0, 0.3, 0.3])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_broke_stand_still(bad):
    """Catches one broken row that takes others along, and one that recovers in silence."""
    walk = walk_of(posed("mask", "gaussian"))
    x, before = randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2)
    assert walk.keep_sound(x, before) is x
    assert not walk.doubted
    broken = x.clone()
    broken[1, 0, 0, 0] = bad
    assert finite_rows(broken).tolist() == [True, False]
    kept = walk.keep_sound(broken, before)
    torch.testing.assert_close(kept, torch.stack([x[0], before[1]]))
    again = walk.keep_sound(x, before)
    torch.testing.assert_close(again, torch.stack([x[0], before[1]]))
    assert walk.sound.tolist() == [True, False]


def test_particles_without_weight(monkeypatch):
    """Catches NaN for an image all of whose particles broke, and a particle that does not exist
    where weights sum to less than 1 by rounding."""
    walk = walk_of(posed("mask", "gaussian"))
    logs = torch.tensor([-math.inf] * 4 + [0.0, math.log(2), -math.inf, 0.0])
    weights = smc._weights(walk, logs)
    torch.testing.assert_close(weights[0], torch.full((4,), 0.25))
    torch.testing.assert_close(weights[1], torch.tensor([0.25, 0.5, 0.0, 0.25]))
    torch.testing.assert_close(effective_size(weights), torch.tensor([4.0, 1 / 0.375]))
    short = torch.tensor([[0.5, 0.499], [0.0, 0.999]])
    monkeypatch.setattr(smc, "_weights", lambda walk, logs: short)
    monkeypatch.setattr(random, "uniform", lambda *args, **keywords: torch.full((2, 1), 0.9999))
    assert smc._choose(walk, logs, 2).tolist() == [0, 1, 3, 3]
    assert smc._choose(walk, logs, 1).tolist() == [1, 3]


def test_rows_of_a_walk_and_its_residuals():
    """Catches a walk of some rows that has the shape of others, and residuals in another unit:
    the noise's, or pixels where there is none."""
    x0 = 0.4 + 0.2 * randn(2, *SHAPE, seed=3)
    sigmas = torch.tensor([0.1, 0.0], dtype=torch.float64)
    problem = Problem(0 * x0, Inpainting(MASK), GaussianNoise(sigmas))
    walk = walk_of(problem)
    some = walk.take(torch.tensor([1]))
    assert some.shape == (1, *SHAPE)
    assert some.sigmas.shape == (4, 1)
    assert not walk.last
    for _ in range(4):
        walk.record(x0)
    sizes = (x0 * MASK).flatten(1).norm(dim=1) / float(MASK.sum()) ** 0.5
    expected = sizes / torch.tensor([0.1, 1.0]).double()
    torch.testing.assert_close(walk.residuals(), expected.expand(4, 2))


def test_entries_that_any_particle_observes():
    """Catches entries of one channel or row only, and weight for a particle that broke."""
    masks = torch.rand(2, 2, 3, 4, generator=seeded(8)) < 0.4
    y = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    prior = Gaussian(y[0], y[:0], residual=0.2)
    walk = walk_of(Problem(y, Inpainting(masks), GaussianNoise(0.1)), prior)
    union = [i for i in range(24) if masks[:, i // 12, i // 4 % 3, i % 4].any()]
    assert observed_entries(walk).tolist() == union
    every = walk_of(Problem(y[:1], Identity((2, 3, 4)), GaussianNoise(0.1)), prior)
    assert observed_entries(every).tolist() == list(range(24))
    x = torch.ones_like(y)
    kept = Twist(torch.zeros(2), 2 * x, 3 * x).where(torch.tensor([True, False]), x)
    assert kept.log_density.tolist() == [0, -math.inf]
    assert kept.x0[:, 0, 0, 0].tolist() == [2, 1]
    assert kept.guided[:, 0, 0, 0].tolist() == [3, 1]
