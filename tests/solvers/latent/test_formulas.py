"""What LatentSampler is made of, each piece against its textbook formula written out."""

import math

import numpy as np
import pytest
import torch
from tools import close, randn, random_covariance, seeded

from genprior.solvers.latent.diagnostics import effective_sample_size, split_r_hat
from genprior.solvers.latent.hmc import (
    DENSE,
    Point,
    StepSize,
    _power,
    _shrunk,
    fit_metric,
    hmc_step,
)


def halved(chains):
    """Each chain (n,) as its first and its last n // 2 draws, the odd one in the middle left."""
    half = len(chains[0]) // 2
    return [part for chain in chains for part in (chain[:half], chain[len(chain) - half :])]


def r_hat(chains):
    """Gelman et al. 2013, Section 11.4."""
    n = len(chains[0])
    within = np.mean([np.var(chain, ddof=1) for chain in chains])
    between = n * np.var([np.mean(chain) for chain in chains], ddof=1)
    return math.sqrt(((n - 1) / n * within + between / n) / within)


def ess(chains):
    """Gelman et al. 2013, Section 11.5, with Geyer's sums of two, positive and falling."""
    m, n = len(chains), len(chains[0])
    within = np.mean([np.var(chain, ddof=1) for chain in chains])
    between = n * np.var([np.mean(chain) for chain in chains], ddof=1)
    total = (n - 1) / n * within + between / n

    def correlation(lag):
        about = [chain - np.mean(chain) for chain in chains]
        covariance = np.mean([(c[: n - lag] * c[lag:]).sum() / n for c in about])
        return 1 - (within - covariance) / total

    time, least = -1.0, math.inf
    for lag in range(0, n - 1, 2):
        pair = correlation(lag) + correlation(lag + 1)
        if pair <= 0:
            break
        least = min(least, pair)
        time += 2 * least
    return min(m * n / max(time, 1e-3), m * n)


def autoregressive(rho, chains, draws, shift=0.0):
    x = np.random.default_rng(draws).standard_normal((chains, draws))
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
    return x + shift * np.arange(chains)[:, None]


@pytest.mark.parametrize("draws", [4, 5, 9, 12, 41])
@pytest.mark.parametrize("chains", [1, 3])
def test_diagnostics_are_those_of_the_book(chains, draws):
    """Catches any number or sign of R-hat and of the effective sample size, also for chains that
    are short, odd, alike, apart, drifting or alternating."""
    kinds = [(0.0, 0.0), (0.9, 0.0), (-0.9, 0.0), (0.5, 2.0), (0.999, 0.0)]
    every = [autoregressive(rho, chains, draws, shift) for rho, shift in kinds]
    draws = torch.from_numpy(np.stack(every, -1))
    found, sizes = split_r_hat(draws), effective_sample_size(draws)
    for i, x in enumerate(every):
        assert float(found[i]) == pytest.approx(r_hat(halved(x)))
        assert float(sizes[i]) == pytest.approx(ess(halved(x)))
    both = torch.stack([draws, 2 * draws])
    torch.testing.assert_close(split_r_hat(both), found.expand(2, -1))
    torch.testing.assert_close(effective_sample_size(both), sizes.expand(2, -1))
    assert split_r_hat(draws.half()).dtype == torch.float32


def test_chains_that_stand_still_or_are_short():
    """Catches a chain that never moved called converged, and three draws judged."""
    still = torch.zeros(2, 8, 1)
    assert split_r_hat(still).item() == math.inf
    assert effective_sample_size(still).item() == 0
    for judge in (split_r_hat, effective_sample_size):
        judge(torch.zeros(2, 4, 1))
        with pytest.raises(ValueError, match="chains of 3 draws are too short to judge: take 4"):
            judge(torch.zeros(2, 3, 1))


@pytest.mark.parametrize("full", [False, True])
def test_a_step_of_hmc_is_the_one_written_out(full):
    """Catches any number or sign of the integrator, the metric's transpose, the acceptance."""
    chains, d, leapfrog = 40, 3, 4
    precision = torch.linalg.inv(random_covariance(d, spread=1.0))

    def potential(z):
        return 0.5 * ((z @ precision) * z).sum(-1) + 0.1 * z.pow(4).sum(-1), (
            z @ precision + 0.4 * z**3
        )

    z, step = randn(chains, d, seed=1), torch.linspace(0.05, 0.5, chains, dtype=torch.float64)
    root = randn(chains, d, d, seed=2).tril() if full else randn(chains, d, seed=2)
    point = Point(z, *potential(z))
    moved, acceptance = hmc_step(
        potential,
        point,
        step,
        metric=root,
        leapfrog=leapfrog,
        generators=[seeded(i) for i in range(chains)],
    )
    taken = 0
    for i in range(chains):
        g, kind = seeded(i), {"dtype": torch.float64}
        root_i = root[i] if full else torch.diag(root[i])
        inverse_mass = root_i @ root_i.T
        momentum = torch.linalg.solve(root_i.T, torch.randn(d, generator=g, **kind))
        u = torch.rand(2, generator=g, **kind)
        epsilon = step[i] * (0.8 + 0.4 * u[0])
        q, p = z[i], momentum
        for _ in range(leapfrog):
            p = p - epsilon / 2 * potential(q)[1]
            q = q + epsilon * inverse_mass @ p
            p = p - epsilon / 2 * potential(q)[1]
        energy = [
            potential(a)[0] + 0.5 * b @ inverse_mass @ b for a, b in ((z[i], momentum), (q, p))
        ]
        chance = (energy[0] - energy[1]).exp().clamp(max=1)
        torch.testing.assert_close(acceptance[i], chance)
        end = q if u[1] < chance else z[i]
        taken += bool(u[1] < chance)
        torch.testing.assert_close(moved.z[i], end)
        torch.testing.assert_close((moved.value[i], moved.gradient[i]), potential(end))
    assert 0.2 * chains < taken < 0.95 * chains, "all proposals share one fate"


def test_a_proposal_that_is_not_finite_is_rejected():
    """Catches NaN accepted, and NaN in the rate that step sizes follow."""
    z = torch.zeros(2, 1, dtype=torch.float64)

    def potential(z):
        return torch.full_like(z[:, 0], torch.nan), torch.zeros_like(z)

    point = Point(z, z[:, 0], z)
    settings = {"metric": torch.ones_like(z), "leapfrog": 1}
    generators = [seeded(0), seeded(1)]
    moved, rate = hmc_step(
        potential, point, torch.ones(2).double(), **settings, generators=generators
    )
    assert rate.tolist() == [0, 0]
    assert moved.z.tolist() == z.tolist()


@pytest.mark.parametrize("limit", [math.inf, 0.3])
def test_step_sizes_follow_hoffman_and_gelman(limit):
    """Catches any constant of dual averaging: gamma .05, t0 10, kappa .75, mu = log 10 e0."""
    start = torch.tensor([0.1, 0.2, 1.0], dtype=torch.float64).clamp(max=limit)
    sizes = StepSize(start, 0.8, limit=limit)
    mu = [min(math.log(10 * float(e)), math.log(limit)) for e in start]
    bar, average = [0.0] * 3, [math.log(float(e)) for e in start]
    torch.testing.assert_close(sizes.step, start)
    for m in range(1, 12):
        rates = torch.rand(3, generator=seeded(m), dtype=torch.float64)
        sizes.update(rates)
        for i, rate in enumerate(rates.tolist()):
            bar[i] = (1 - 1 / (m + 10)) * bar[i] + (0.8 - rate) / (m + 10)
            step = min(mu[i] - math.sqrt(m) / 0.05 * bar[i], math.log(limit))
            average[i] = m**-0.75 * step + (1 - m**-0.75) * average[i]
            assert float(sizes.step[i].log()) == pytest.approx(step)
            assert float(sizes.final[i].log()) == pytest.approx(average[i])


@pytest.mark.parametrize("d", [5, DENSE, DENSE + 1])
def test_metric_is_the_root_of_the_covariance(d):
    """Catches a metric of draws alone, its inverse or its square: where gradients are P z, cov(z)
    and cov(P z)^-1 have the geometric mean P^-1 whatever the draws are."""
    scales = torch.logspace(-0.5, 0.5, d, dtype=torch.float64)
    covariance = torch.diag(scales**2)
    if d <= DENSE:
        mixed = torch.linalg.qr(randn(d, d, seed=1)).Q
        covariance = mixed @ covariance @ mixed.T
    draws = randn(2, 3, 40 * d, d, seed=2) + 7 * randn(2, 3, 1, d, seed=3)  # modes apart
    draws[1] *= 3
    metric = fit_metric(draws, draws @ torch.linalg.inv(covariance))
    if d > DENSE:
        torch.testing.assert_close(metric, scales.expand(2, -1))
        return
    found = metric @ metric.mT
    torch.testing.assert_close(metric.triu(1), torch.zeros_like(metric))
    white = torch.linalg.solve(covariance, found[0])
    assert (white - torch.eye(d)).abs().max() < 0.01
    torch.testing.assert_close(found[1], found[0], rtol=5e-3, atol=1e-3)


def test_few_draws_are_anchored():
    """Catches an anchor that is not five draws of a thousandth of the mean variance."""
    v = randn(2, 7, 3, seed=1) * torch.tensor([1.0, 0.3, 4.0]).double()
    found = _shrunk(v, 7)
    for i in range(2):
        moments = v[i].T @ v[i]
        anchor = 5 * moments.diag().mean() / 7 / 1000 * torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(found[i], (moments + anchor) / (7 + 5))


def test_a_broken_target_leaves_a_scale():
    """Catches NaN of one chain that ends in the metric, and half precision that is not kept."""
    z = randn(3, 1, 20, 4)
    gradient = z.clone()
    z[0, 0, 3, 1], gradient[1, 0, 2, 0] = torch.nan, torch.inf
    gradient[0, 0, 3, 1] = torch.nan
    metric = fit_metric(z, gradient)
    assert metric.isfinite().all()
    assert metric[0, 1, 1] == 1
    alone = fit_metric(z[2:], gradient[2:])
    close(metric[2:], alone, ulps=1000)
    assert fit_metric(z.half(), gradient.half()).dtype == torch.float16


def test_powers_of_a_singular_matrix():
    """Catches a floor of eigenvalues that does not follow the matrix: (c M)^p = c^p M^p."""
    q = torch.linalg.qr(randn(3, 3, seed=1)).Q
    m = (q * torch.tensor([2.0, 0.5, 0.0]).double() @ q.T)[None]
    for exponent in (0.5, -0.5):
        for scale in (1e-6, 1e6):
            found = _power(scale * m, exponent) / scale**exponent
            torch.testing.assert_close(found, _power(m, exponent), rtol=1e-4, atol=1e-6)
    regular = m + torch.eye(3)
    inverse = _power(regular, -0.5) @ _power(regular, -0.5)
    torch.testing.assert_close(inverse, torch.linalg.inv(regular))
