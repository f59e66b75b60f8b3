"""LatentMAP and JointMAP against closed forms; L-BFGS row by row."""

import pytest
import torch
from tools import as_gaussian, linear_vae, seeded

from genprior.operators import (
    Blur,
    CompressedSensing,
    GaussianNoise,
    Identity,
    Inpainting,
    PoissonNoise,
    Problem,
    kernels,
)
from genprior.operators.base import Operator
from genprior.priors import Gaussian, LatentPrior
from genprior.solvers import Counted, JointMAP, LatentMAP
from genprior.solvers.latent import curvature
from genprior.solvers.latent.latent_map import latent_energy
from genprior.solvers.latent.latent_posterior import latent_posterior
from genprior.solvers.latent.lbfgs import minimise

SHAPE = (1, 4, 3)


def operators():
    g = seeded(3)
    return [
        Identity(SHAPE),
        Inpainting(torch.rand(3, *SHAPE, generator=g) < 0.5),
        Blur(kernels.uniform(3), SHAPE),
        CompressedSensing(SHAPE, 5, generator=g),
    ]


def gaussian():
    factors = 0.3 * torch.randn(3, *SHAPE, generator=seeded(), dtype=torch.float64)
    mean = torch.full(SHAPE, 0.5, dtype=torch.float64)
    return Gaussian(mean, factors, residual=0.1)


def problem_for(prior, operator, sigma=(0.02, 0.05, 0.2)):
    x = prior.sample(3, generator=seeded(1))
    shared = isinstance(sigma, float)
    noise = GaussianNoise(sigma if shared else torch.tensor(sigma, dtype=x.dtype))
    return Problem.simulate(x, operator, noise, generator=seeded(2))


@pytest.mark.parametrize("operator", operators(), ids=lambda o: type(o).__name__)
def test_map_of_gaussian_is_posterior_mean(operator):
    """Catches a wrong weight of |z|^2, a shared sigma, or a search that stops early."""
    prior = gaussian()
    problem = problem_for(prior, operator)
    result = LatentMAP(tolerance=1e-8)(problem, prior, generator=seeded())
    assert result.converged.all()
    torch.testing.assert_close(
        result.samples[:, 0], prior.posterior(problem).mean, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("sigma", [(0.02, 0.05, 0.2), 0.05], ids=["sigmas", "sigma"])
@pytest.mark.parametrize("operator", operators(), ids=lambda o: type(o).__name__)
def test_map_of_linear_vae_counts_decoder_variance(operator, sigma):
    """Catches a decoder variance left out of the likelihood, x not moved towards y, or rows that
    go on after others ended with factors that are not theirs."""
    vae = linear_vae(SHAPE)
    gaussian = as_gaussian(vae)
    problem = problem_for(gaussian, operator, sigma)
    result = LatentMAP(tolerance=1e-8)(problem, vae, generator=seeded())
    mean = gaussian.posterior(problem).mean
    torch.testing.assert_close(result.samples[:, 0], mean, atol=1e-6, rtol=0)


def test_noise_free_measurement_with_decoder_variance():
    """Catches a division by sigma where the decoder's variance makes sigma = 0 legal."""
    vae = linear_vae(SHAPE)
    gaussian = as_gaussian(vae)
    operator = Inpainting(torch.rand(SHAPE, generator=seeded()) < 0.5)
    problem = problem_for(gaussian, operator, sigma=(0.0, 0.0, 0.0))
    result = LatentMAP(tolerance=1e-8)(problem, vae, generator=seeded())
    mean = gaussian.posterior(problem).mean
    torch.testing.assert_close(result.samples[:, 0], mean, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="sigma = 0"):
        LatentMAP(decoder_variance=False)(problem, vae)


def test_joint_map_of_linear_vae_is_posterior_mean():
    """Catches a turn that is not a minimum, or an encoder's guess taken where it is worse."""
    vae = linear_vae(SHAPE)  # its encoder is untrained: every turn must survive a bad guess
    gaussian = as_gaussian(vae)
    operator = Inpainting(torch.rand(SHAPE, generator=seeded()) < 0.6)
    problem = problem_for(gaussian, operator, sigma=(0.1, 0.2, 0.3))
    result = JointMAP(descent=6, tolerance=1e-7)(problem, vae, generator=seeded())
    assert result.converged.all()
    mean = gaussian.posterior(problem).mean
    torch.testing.assert_close(result.samples[:, 0], mean, atol=1e-5, rtol=0)


class Squared(Operator):
    """A nonlinear operator: y = x^2."""

    def __init__(self):
        super().__init__(SHAPE, SHAPE)

    def forward(self, x):
        return x.square()


def test_nonlinear_operator_and_poisson_noise_reach_a_stationary_point():
    """Catches a data term other than the problem's own likelihood."""
    prior = gaussian()
    x = prior.sample(3, generator=seeded(1)).clamp(0.3, 1)
    cases = [(Squared(), GaussianNoise(0.05)), (Identity(SHAPE), PoissonNoise(200))]
    for operator, noise in cases:
        problem = Problem.simulate(x, operator, noise, generator=seeded(2))
        result = LatentMAP(tolerance=1e-7)(problem, prior, generator=seeded())
        z = result.latents[:, 0].requires_grad_()
        energy = prior.latent_log_prob(z) + problem.log_likelihood(prior.decode(z))
        (gradient,) = torch.autograd.grad(energy.sum(), z)
        assert gradient.abs().max() < 1e-4  # of terms of about 100


def rosenbrock(x, rows):
    """Values and gradients of Rosenbrock functions of growing steepness."""
    steep = 10.0 ** (rows.double() % 3)
    a, b = x[:, 0], x[:, 1]
    gap = b - a**2
    value = (1 - a) ** 2 + steep * gap**2
    gradient = torch.stack([-2 * (1 - a) - 4 * steep * a * gap, 2 * steep * gap], 1)
    return value, gradient


@pytest.mark.parametrize("longest_dense", [64, 0], ids=["dense", "pairs"])
def test_lbfgs_rows_are_independent_and_stop_costing(longest_dense, monkeypatch):
    """Catches a line search or history shared between rows, and rows evaluated after their end."""
    monkeypatch.setattr(curvature, "DENSE", longest_dense)
    x0 = torch.tensor([[-1.2, 1.0], [0.9, 0.9], [2.0, -1.0]], dtype=torch.float64)
    counts = torch.zeros(3)

    def counted(x, rows):
        counts[rows] += 1
        return rosenbrock(x, rows)

    together = minimise(counted, x0, steps=300, tolerance=1e-9)
    assert together.converged.all()
    torch.testing.assert_close(together.x, torch.ones_like(x0), atol=1e-7, rtol=0)
    assert len(set(counts.tolist())) == 3
    for i in range(3):
        alone = minimise(
            lambda x, rows, i=i: rosenbrock(x, rows + i),
            x0[i : i + 1],
            steps=300,
            tolerance=1e-9,
        )
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-12)
        assert len(alone.history) == counts[i]


def test_both_memories_solve_quadratics_in_their_dimension():
    """Catches a wrong update: on a quadratic in d dimensions, with steps to the minimum along
    each direction, BFGS ends in d steps with H the inverse Hessian, and 10 pairs give the same
    direction while there are no more than 10."""
    d = 7
    root = torch.randn(2, d, d, generator=seeded(), dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(d)
    x = torch.randn(2, d, generator=seeded(1), dtype=torch.float64)
    dense, pairs = curvature.Dense(x), curvature.Pairs(x)
    for _ in range(d):
        g = (hessian @ x[:, :, None])[:, :, 0]
        p = -dense.apply(g)
        torch.testing.assert_close(pairs.apply(g), pairs_by_hand(pairs, g))
        curve = (p[:, None] @ hessian @ p[:, :, None])[:, 0]
        s = -(g * p).sum(1, keepdim=True) / curve * p
        x, y = x + s, (hessian @ s[:, :, None])[:, :, 0]
        for memory in (dense, pairs):
            memory.learn(s, y)
    assert x.abs().max() < 1e-8
    torch.testing.assert_close(dense.h @ hessian, torch.eye(d).double().expand(2, -1, -1))


def pairs_by_hand(pairs, g):
    """H g by the definition of the update, from scale I through the pairs, oldest first."""
    eye = torch.eye(g.shape[1], dtype=g.dtype)
    h = pairs.scale[:, None, None] * eye
    for s, y, rho in zip(pairs.s.unbind(1), pairs.y.unbind(1), pairs.rho.T, strict=True):
        left = eye - rho[:, None, None] * s[:, :, None] * y[:, None]
        h = left @ h @ left.mT + rho[:, None, None] * s[:, :, None] * s[:, None]
    return (h @ g[:, :, None])[:, :, 0]


def test_lbfgs_drops_rows_that_are_nan():
    """Catches a NaN that spreads to other rows, or is returned as the best."""

    def broken(x, rows):
        value, gradient = rosenbrock(x, rows)
        return value.where(rows != 1, torch.nan), gradient

    x0 = torch.tensor([[-1.2, 1.0], [0.9, 0.9], [2.0, -1.0]], dtype=torch.float64)
    end = minimise(broken, x0, steps=300, tolerance=1e-9)
    assert end.converged.tolist() == [True, False, True]
    assert end.value[1] == torch.inf
    assert end.x.isfinite().all()


def test_joint_map_ends_at_the_minimum_where_turns_crawl():
    """Catches the stall of turns alone: two pixels of twelve are measured, x holds z fast."""
    vae = linear_vae(SHAPE)
    gaussian = as_gaussian(vae)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask.flatten()[:2] = True
    problem = problem_for(gaussian, Inpainting(mask), sigma=(0.1, 0.2, 0.3))
    result = JointMAP(turns=2, descent=4, tolerance=1e-8)(problem, vae, generator=seeded())
    assert result.converged.all()
    mean = gaussian.posterior(problem).mean
    torch.testing.assert_close(result.samples[:, 0], mean, atol=1e-6, rtol=0)


class Brittle(LatentPrior):
    """decode(z) = z, but NaN where z is positive in its first pixel."""

    def __init__(self):
        super().__init__()
        self.image_shape = self.latent_shape = (1, 2, 2)
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    @property
    def config(self):
        return {}

    def sample(self, n, *, size=None, generator=None):
        raise NotImplementedError

    def decode(self, z):
        bad = (z.flatten(1)[:, 0] > 0).view(-1, 1, 1, 1)
        return torch.where(bad, torch.nan, z)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_nan_restarts_are_dropped_and_the_rest_go_on(optimizer):
    """Catches one NaN restart that takes the image with it."""
    y = torch.full((2, 1, 2, 2), -0.5, dtype=torch.float64)
    problem = Problem(y, Identity((1, 2, 2)), GaussianNoise(0.5))
    solver = LatentMAP(optimizer, restarts=8, steps=2000)
    result = solver(problem, Brittle(), generator=seeded())
    assert result.converged.all()
    expected = y / (1 + 0.25)
    torch.testing.assert_close(result.samples[:, 0], expected, atol=1e-3, rtol=0)


def test_an_unexplained_measurement_is_not_converged():
    """Catches a solver that calls a poor fit converged."""
    prior = Gaussian(torch.zeros(1, 4, 3), torch.ones(1, 1, 4, 3), residual=0.0)
    y = torch.zeros(2, 1, 4, 3)
    y[0, 0, 0, 0] = 3.0  # far from every constant image
    problem = Problem(y, Identity((1, 4, 3)), GaussianNoise(0.05))
    result = LatentMAP()(problem, prior, generator=seeded())
    assert result.converged.tolist() == [False, True]
    assert result.trace["residual"][0, 0] > 10


class Wavy(LatentPrior):
    """One pixel, cos(2 z) + z / 2: several latents give about the same image."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shape = (1, 1, 1), (1,)

    @property
    def config(self):
        return {}

    def sample(self, n, *, size=None, generator=None):
        raise NotImplementedError

    def decode(self, z):
        return ((2 * z).cos() + z / 2).view(-1, 1, 1, 1)


def test_restarts_find_the_best_mode():
    """Catches a best restart chosen by anything but the posterior, against a grid."""
    y = torch.linspace(-1.5, 2.0, 8, dtype=torch.float64).view(-1, 1, 1, 1)
    problem = Problem(y, Identity((1, 1, 1)), GaussianNoise(0.3))
    grid = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    error = y.view(-1, 1) - ((2 * grid).cos() + grid / 2)
    best = grid[(error.square() / (2 * 0.3**2) + grid.square() / 2).argmin(1)]
    many = LatentMAP(restarts=16, tolerance=1e-6)(problem, Wavy(), generator=seeded())
    torch.testing.assert_close(many.latents[:, 0, 0], best, atol=2e-4, rtol=0)
    one = LatentMAP(restarts=1, tolerance=1e-6)(problem, Wavy(), generator=seeded())
    assert ((one.latents[:, 0, 0] - best).abs() > 0.1).any(), "the problem has become too easy"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LatentMAP(restarts=0), "restarts"),
        (lambda: LatentMAP("newton"), "lbfgs"),
        (lambda: LatentMAP(learning_rate=0.0), "learning_rate"),
        (lambda: JointMAP(steps=0), "steps"),
    ],
)
def test_bad_settings_are_refused(make, match):
    """Catches settings that fail late or silently."""
    with pytest.raises(ValueError, match=match):
        make()


def test_decoder_variance_cannot_be_asked_of_a_prior_without_one():
    """Catches a silent fall-back when the option cannot count."""
    prior = gaussian()
    problem = problem_for(prior, Identity(SHAPE))
    with pytest.raises(ValueError, match="decoder_std"):
        LatentMAP(decoder_variance=True)(problem, prior)


class Lognormal(LatentPrior):
    """x = exp(z), pixel by pixel."""

    def __init__(self):
        super().__init__()
        self.image_shape = self.latent_shape = (1, 2, 2)
        self.register_buffer("one", torch.ones((), dtype=torch.float64))

    config = None

    def sample(self, n, *, size=None, generator=None):
        return torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64).exp()

    def decode(self, z):
        return z.exp()


@pytest.mark.parametrize("mode", ["latent", "image"])
def test_energy_with_volume_has_the_mode_of_the_image(mode):
    """Catches a log-volume of the wrong sign, weight or gradient, or one summed over rows."""
    sigma, prior = 0.4, Lognormal()
    problem = problem_for(prior, Identity((1, 2, 2)), sigma=sigma)
    posterior = latent_posterior(Counted(prior), problem, None)
    volume = {"latent": None, "image": lambda z: z.flatten(1).sum(1)}[mode]
    energy = latent_energy(posterior, (1, 2, 2), prior_weight=1.0, log_volume=volume)
    start = torch.zeros(3, 4, dtype=torch.float64)
    found = minimise(energy, start, steps=200, tolerance=1e-10).x
    z = torch.linspace(-6, 4, 200001, dtype=torch.float64)
    y = problem.y.flatten(1)[..., None]
    objective = ((y - z.exp()) / sigma) ** 2 / 2 + z**2 / 2 + (z if mode == "image" else 0)
    values = torch.gather(objective, 2, objective.argmin(-1, keepdim=True))[..., 0]
    at = ((y[..., 0] - found.exp()) / sigma) ** 2 / 2 + found**2 / 2
    at = at + (found if mode == "image" else 0)
    torch.testing.assert_close(at, values, atol=1e-7, rtol=0)
