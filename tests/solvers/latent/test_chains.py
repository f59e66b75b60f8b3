"""LatentSampler's chains: what they are told at each step, and which draws become samples."""

import math

import pytest
import torch
from tools import randn, seeded

from genprior.operators import GaussianNoise, Identity, Problem
from genprior.priors import Gaussian
from genprior.solvers import LatentSampler
from genprior.solvers.latent import latent_sampler
from genprior.solvers.latent.hmc import fit_metric, hmc_step

SHAPE = (1, 2, 2)
PRIOR = Gaussian(torch.full(SHAPE, 0.3).double(), 0.2 * randn(2, *SHAPE), residual=0.3)


def posed(count=2):
    x = PRIOR.sample(count, generator=seeded(1))
    noise = GaussianNoise(torch.linspace(0.1, 0.3, count, dtype=torch.float64))
    return Problem.simulate(x, Identity(SHAPE), noise, generator=seeded(2))


def watched(monkeypatch, solver, problem, **keywords):
    """The result, and for each step: the potential, where it starts and ends, and its settings."""
    steps = []

    def watch(potential, point, step, *, metric, leapfrog, generators):
        moved, rate = hmc_step(
            potential, point, step, metric=metric, leapfrog=leapfrog, generators=generators
        )
        steps.append((potential, point, moved, step, metric, rate))
        return moved, rate

    monkeypatch.setattr(latent_sampler, "hmc_step", watch)
    return solver(problem, PRIOR, generator=seeded(3), **keywords), steps


def energy(problem, z, weight, chains):
    """weight (-log p(y | z)) + |z|^2 / 2 for each chain."""
    rows = problem.take(torch.arange(len(problem.y)).repeat_interleave(chains))
    likelihood = rows.log_likelihood(PRIOR.decode(z.reshape(-1, *SHAPE)))
    return -weight * likelihood + 0.5 * z.square().sum(1)


def test_warm_up_keeps_its_schedule(monkeypatch):
    """Catches a likelihood that grows otherwise than from 1/1000 to 1 over two fifths of the
    warm-up, windows that end elsewhere than at .55 and .75 of it, metrics of other draws than a
    window's last three quarters, steps that go on adapting; and energies of other chains."""
    solver, problem = LatentSampler(steps=10, warm_up=40, chains=3, leapfrog=2), posed()
    result, steps = watched(monkeypatch, solver, problem)
    assert len(steps) == 50
    weights = [1e-3 ** (1 - i / 16) for i in range(16)] + [1.0] * 34
    z = randn(6, 4, seed=4)
    for i, (weight, (potential, *_)) in enumerate(zip(weights, steps, strict=True)):
        value, gradient = potential(z)
        expected = energy(problem, z, weight, 3)
        torch.testing.assert_close(value, expected)
        leaf = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(problem, leaf, weight, 3).sum(), leaf)
        torch.testing.assert_close(gradient, slope)
        ends = energy(problem, steps[i][2].z, weight, 3).unflatten(0, (2, 3)).mean(1)
        torch.testing.assert_close(result.trace["energy"][i], ends)
    for i in range(1, 50):
        assert steps[i][1].z.allclose(steps[i - 1][2].z), "a chain is moved between steps"

    metrics = [torch.ones(6, 4).double()] * 22
    for begin, end, until in ((16, 22, 30), (22, 30, 50)):
        points = [steps[i][2] for i in range(begin + (end - begin) // 4, end)]
        stacked = (torch.stack([getattr(p, k) for p in points], 1) for k in ("z", "gradient"))
        root = fit_metric(*(a.unflatten(0, (2, 3)) for a in stacked)).repeat_interleave(3, 0)
        metrics += [root] * (until - end)
    for expected, (*_, metric, _) in zip(metrics, steps, strict=True):
        torch.testing.assert_close(metric, expected)

    sizes = [step for *_, step, _, _ in steps]
    torch.testing.assert_close(sizes[0], torch.full((6,), 0.1).double())
    for begin in (22, 30):
        torch.testing.assert_close(sizes[begin], torch.full((6,), 0.5 * 4**-0.25).double())
    assert all(size.allclose(sizes[40]) for size in sizes[40:])
    rates = torch.stack([rate for *_, rate in steps[40:]]).mean(0).unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(result.trace["acceptance"][0], rates)


@pytest.mark.parametrize("leapfrog", [1, 5])
def test_paths_end_before_they_return(leapfrog, monkeypatch):
    """Catches paths longer than 2.5, which bring a Gaussian back to where it was at 2 pi."""
    solver = LatentSampler(steps=4, warm_up=60, chains=2, leapfrog=leapfrog, acceptance=0.05)
    _, steps = watched(monkeypatch, solver, posed())
    longest = max(float(step.max()) for *_, step, _, _ in steps)
    assert longest * leapfrog == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (1, [(0, 9)]),
        (3, [(0, 9), (1, 9), (2, 9)]),
        (5, [(0, 9), (1, 9), (2, 9), (0, 4), (1, 4)]),
        (7, [(0, 9), (1, 9), (2, 9), (0, 6), (1, 6), (2, 6), (0, 3)]),
    ],
)
def test_samples_are_taken_far_apart(samples, expected, monkeypatch):
    """Catches samples of one chain, neighbours in a chain, and the first draws instead of the
    last; expected are (chain, draw) with ten draws in each of three chains."""
    solver = LatentSampler(steps=10, warm_up=20, chains=3, leapfrog=2)
    result, steps = watched(monkeypatch, solver, posed(), num_samples=samples)
    draws = torch.stack([moved.z for _, _, moved, *_ in steps[-10:]], 1).unflatten(0, (2, 3))
    for i, (chain, draw) in enumerate(expected):
        torch.testing.assert_close(result.latents[:, i].flatten(1), draws[:, chain, draw])
    every = solver(posed(), PRIOR, num_samples=30, generator=seeded(3))
    assert every.latents.flatten(2).flatten(0, 1).unique(dim=0).shape[0] > 30


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize(("r_hat", "converged"), [(1.05, True), (1.051, False), (math.nan, False)])
def test_chains_that_disagree_have_not_converged(r_hat, converged, monkeypatch):
    """Catches another bound than 1.05, on another coordinate than the worst."""
    worst = torch.tensor([1.0, 1.0, r_hat, 1.0], dtype=torch.float64)
    monkeypatch.setattr(latent_sampler, "split_r_hat", lambda draws: worst.expand(2, 4))
    sizes = torch.tensor([5.0, 3.0, 9.0, 7.0])
    monkeypatch.setattr(latent_sampler, "effective_sample_size", lambda draws: sizes.expand(2, 4))
    solver = LatentSampler(steps=4, warm_up=20, chains=2, leapfrog=2)
    result = solver(posed(), PRIOR, generator=seeded())
    assert result.converged.tolist() == [converged] * 2
    assert result.trace["ess"].tolist() == [[3, 3]]
