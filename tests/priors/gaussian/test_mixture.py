"""Gaussian mixtures against the dense formulas, and EM against what it promises."""

import math

import pytest
import torch
from cases import SMALL_COLOUR as COLOUR
from cases import dense_mixture, mixture, wide_mixture
from tools import condition, pose, problems, randn, random_covariance, seeded

from genprior.operators import GaussianNoise, Inpainting, Matrix, Problem
from genprior.priors import GaussianMixture
from genprior.priors.gaussian.em import fit_mixture
from genprior.priors.gaussian.low_rank import LowRankNormal


def dense_laws(prior):
    """(weight, mean (d,), covariance (d, d)) of every component, by the definition."""
    for weight, part in zip(prior.weights, prior.components, strict=True):
        factors = part.factors.flatten(1)
        identity = torch.eye(factors.shape[1], dtype=factors.dtype)
        yield weight, part.mean.flatten(), factors.T @ factors + part.residual**2 * identity


@pytest.mark.parametrize("sigma", [0.05, None], ids=["one sigma", "sigma each"])
@pytest.mark.parametrize("operator", problems())
def test_posterior_is_the_textbook_one(operator, sigma):
    """Would catch wrong weights of components given y, or a std without the means' spread."""
    prior, made = mixture(), problems()[operator]
    problem = pose(made, sigma=sigma)
    posterior = prior.posterior(problem)
    tolerance = 1e-8 if made.spectrum(problem.y) is not None else 1e-5
    for i in range(problem.batch):
        parts = [condition(m, c, problem, i) for _, m, c in dense_laws(prior)]
        joint = torch.stack([ev for *_, ev in parts]) + prior.weights.log()
        weights = joint.softmax(0)
        mean = sum(w * m for w, (m, _, _) in zip(weights, parts, strict=True))
        second = sum(
            w * (c.diagonal() + m**2) for w, (m, c, _) in zip(weights, parts, strict=True)
        )
        std = (second - mean**2).clamp(min=0).sqrt()
        evidence = joint.logsumexp(0)
        torch.testing.assert_close(posterior.mean[i].flatten(), mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(posterior.std[i].flatten(), std, rtol=0, atol=10 * tolerance)
        torch.testing.assert_close(
            posterior.log_evidence[i], evidence, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("make", [mixture, dense_mixture, wide_mixture])
def test_density_and_denoiser(make):
    """Would catch responsibilities at the wrong noise level, or a clip to [0, 1]."""
    prior = make()
    d = math.prod(prior.image_shape)
    x = prior.sample(5, generator=seeded(1))
    sigmas = torch.tensor([0.0, 0.01, 0.3, 5.0, 100.0], dtype=torch.float64)
    found, density = prior.denoise(x, sigmas), prior.log_prob(x)
    for i, sigma in enumerate(sigmas):
        logs, means = [], []
        for weight, mean, covariance in dense_laws(prior):
            noisy = covariance + sigma**2 * torch.eye(d, dtype=torch.float64)
            law = torch.distributions.MultivariateNormal(mean, (noisy + noisy.T) / 2)
            logs.append(weight.log() + law.log_prob(x[i].flatten()))
            shift = torch.linalg.solve(noisy, x[i].flatten() - mean)
            means.append(mean + covariance @ shift)
        shares = torch.stack(logs).softmax(0)
        expected = (shares[:, None] * torch.stack(means)).sum(0)
        torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-8, atol=1e-8)
        if sigma == 0:
            torch.testing.assert_close(density[i], torch.stack(logs).logsumexp(0))


def test_density_integrates_to_one():
    """Would catch weights that do not sum to one, or a constant lost."""
    prior = GaussianMixture(
        torch.tensor([2.0, 6.0]).double(),
        0.3 * randn(2, 1, 1, 2),
        torch.stack([random_covariance(2, seed=i, spread=0.5) for i in range(2)]),
    )
    axis = torch.linspace(-6, 6, 600, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    integral = prior.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(integral, torch.ones_like(integral), rtol=1e-6, atol=0)


def test_posterior_samples_visit_components_by_their_weights():
    """Would catch samples drawn from the likeliest component only, or by the prior's weights."""
    prior = wide_mixture()
    operator = Matrix(torch.ones(1, 12, dtype=torch.float64) / 12, (1, 3, 4))
    y = torch.tensor([[-8.0], [4.0]], dtype=torch.float64)  # half-way between two means
    posterior = prior.posterior(Problem(y, operator, GaussianNoise(4.0)))
    draws = posterior.sample(4000, generator=seeded(2))
    nearest = (draws.mean((2, 3, 4))[..., None] - torch.tensor([-16.0, 0.0, 8.0])).abs().argmin(-1)
    for i in range(2):
        weights = posterior.weights[i]
        shares = torch.bincount(nearest[i], minlength=3) / 4000
        standard = (weights * (1 - weights) / 4000).sqrt() + 1e-9
        assert float(((shares - weights).abs() / standard).max()) < 5
        assert float(weights.max()) < 0.9  # else this tests nothing


def test_spheres_in_800_dimensions_are_cheap():
    """Would catch d x d work where covariances are spheres, and a loss of digits at +-16."""
    axis = 8.0 * torch.arange(-2, 3, dtype=torch.float64)
    means = torch.cartesian_prod(axis, axis).repeat(1, 400).reshape(25, 1, 20, 40)
    ones = torch.ones(25, dtype=torch.float64)
    prior = GaussianMixture.low_rank(ones, means, means.new_zeros(25, 0, 1, 20, 40), ones)
    x = prior.sample(4, generator=seeded(1))
    operator = Matrix(randn(4, 800), (1, 20, 40))
    problem = Problem.simulate(x, operator, GaussianNoise(0.5), generator=seeded(2))
    posterior = prior.posterior(problem)
    parts = [condition(m.flatten(), torch.eye(800).double(), problem, 0) for m in means]
    joint = torch.stack([evidence for *_, evidence in parts]) - math.log(25)
    torch.testing.assert_close(posterior.log_evidence[0], joint.logsumexp(0))
    best = int(joint.argmax())
    torch.testing.assert_close(posterior.mean[0].flatten(), parts[best][0], rtol=1e-6, atol=1e-6)


def test_calibration():
    """Would catch intervals too wide or too narrow: 50 % and 90 % must hold so often."""
    prior, count = mixture(), 500
    x = prior.sample(count, generator=seeded(1))
    masks = torch.rand(count, 1, *COLOUR[1:], generator=seeded(2)) < 0.3
    masks[:, :, 0, 0] = True
    problem = Problem.simulate(x, Inpainting(masks), GaussianNoise(0.1), generator=seeded(3))
    draws = prior.posterior(problem).sample(199, generator=seeded(4))
    ranks = (draws < x[:, None]).double().sum(1)  # uniform on 0 ... 199 if exact
    for level in (0.5, 0.9):
        outside = round(200 * (1 - level) / 2)
        covered = ((ranks >= outside) & (ranks < 200 - outside)).double().flatten(1).mean(1)
        standard = float(covered.std()) / math.sqrt(count)
        assert abs(float(covered.mean()) - level) < 3 * standard


# ---------------------------------------------------------------------- fitting


def clusters(count=300, d=12, seed=0):
    """Three clusters of unlike shape, one far larger than the others."""
    which = torch.randint(5, (count,), generator=seeded(seed)).clamp(max=2)
    shapes = torch.stack([torch.linalg.cholesky(random_covariance(d, seed=i)) for i in range(3)])
    noise = randn(count, d, seed=seed + 1)
    means = 0.6 * randn(3, d, seed=seed + 2)
    return means[which] + torch.einsum("nij,nj->ni", shapes[which], noise)


@pytest.mark.parametrize("exact", [True, False], ids=["eigenvectors", "subspaces"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [None, 3, 0])
def test_likelihood_never_falls(rank, dtype, exact, monkeypatch):
    """Would catch any M-step that loses, floors included."""
    if not exact:
        monkeypatch.setattr("genprior.priors.gaussian.em.EXACT", 0)
        monkeypatch.setattr("genprior.priors.gaussian.em._PASSES", 1)
    x = clusters().to(dtype)
    x[:, 0] = 0.25  # a constant pixel: the floor holds
    history = []
    GaussianMixture.fit(
        x.reshape(-1, 1, 3, 4),
        4,
        rank=rank,
        generator=seeded(1),
        iterations=40,
        tolerance=0.0,
        callback=lambda _, value: history.append(value),
    )
    gains = torch.tensor(history, dtype=torch.float64).diff()
    rounding = 1e-10 if dtype == torch.float64 else 1e-4
    # with no tolerance the fit stops at the first step that gains nothing
    assert float(gains.min()) >= -rounding * abs(history[-1])
    assert history[-1] > history[0]


def test_reported_likelihood_is_the_models():
    """Would catch a history of another quantity, so that its rise means nothing."""
    x, history = clusters().reshape(-1, 1, 3, 4), []
    prior = GaussianMixture.fit(
        x, 3, generator=seeded(1), iterations=5, callback=lambda _, v: history.append(v)
    )
    assert float(prior.log_prob(x).mean()) == pytest.approx(history[-1], rel=1e-9)


def test_m_step_beats_its_neighbours():
    """Would catch a rank-constrained step that is not the maximiser Tipping and Bishop give."""
    x = clusters(200)
    fitted = fit_mixture(
        x, 1, rank=3, generator=None, floor=1e-3, iterations=1, tolerance=0.0
    ).laws[0]
    best = float(fitted.log_prob(x).mean())
    for i in range(20):
        turned = fitted.factors + 1e-3 * randn(*fitted.factors.shape, seed=i)
        scale = 1 + 1e-3 * float(randn(1, seed=100 + i))
        law = LowRankNormal.from_factors(fitted.mean, turned, fitted.residual * scale)
        assert float(law.log_prob(x).mean()) < best


def test_clusters_are_found():
    """Would catch a start that puts two centres in one cluster, or weights that never move."""
    means = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    x = means[torch.arange(300) % 3][:, None] + 0.05 * randn(300, 12)
    prior = GaussianMixture.fit(x.reshape(-1, 1, 3, 4), 3, rank=0, generator=seeded(0))
    found = torch.stack([part.mean.mean() for part in prior.components]).sort().values
    torch.testing.assert_close(found, means, rtol=0, atol=0.02)
    torch.testing.assert_close(prior.weights, torch.full((3,), 1 / 3).double())


def test_fewer_images_than_numbers():
    """Would catch the small-sample route giving another covariance than the large one."""
    x = 0.3 * randn(8, 30, seed=4)
    fitted = fit_mixture(
        x, 1, rank=3, generator=None, floor=1e-3, iterations=1, tolerance=0.0
    ).laws[0]
    centred = x - x.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / 8).flip(0)
    rest = values[3:].sum() / 27
    torch.testing.assert_close(fitted.residual**2, rest)
    torch.testing.assert_close(fitted.variances, values[:3] - rest)


@pytest.mark.parametrize(
    ("components", "rank", "message"),
    [(0, None, "cannot make 0"), (11, None, "cannot make 11"), (2, 12, "ranks 0 to 11, not 12")],
)
def test_fit_refuses(components, rank, message):
    """Would catch an obscure failure inside EM."""
    with pytest.raises(ValueError, match=message):
        GaussianMixture.fit(randn(10, 1, 3, 4), components, rank=rank)


def test_directions_at_the_floor_are_left_out():
    """Would catch factors of nothing but zeros, kept and stored for every one asked for."""
    x = 0.5 + 0.3 * randn(60, 3) @ randn(3, 12, seed=1) + 0.01 * randn(60, 12, seed=2)
    fitted = GaussianMixture.fit(
        x.reshape(60, 1, 3, 4), 2, rank=9, floor=0.1, generator=seeded(), iterations=5
    )
    for component in fitted.components:
        energies = component.factors.flatten(1).square().sum(1)
        assert 0 < len(energies) < 9
        assert float(energies.min()) > 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([1.0, -1.0, 1.0]), "weights must be >= 0"),
        (torch.zeros(3), "not all 0"),
        (torch.tensor([1.0, torch.nan, 1.0]), "weights must be >= 0"),
        (torch.ones(2), r"weights \(2,\) for 3 components"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    """Would catch NaN densities from weights that are no probabilities."""
    with pytest.raises(ValueError, match=message):
        GaussianMixture.from_components(weights, list(mixture().components))
