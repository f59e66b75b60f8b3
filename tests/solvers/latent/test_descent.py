"""What finds the most probable latent, each piece against its formula written out."""

import math

import pytest
import torch
from tools import linear_vae, randn, seeded

from genprior.operators import GaussianNoise, Identity, Problem
from genprior.solvers import Counted, JointMAP
from genprior.solvers.latent import curvature
from genprior.solvers.latent.latent_map import adam, latent_energy
from genprior.solvers.latent.latent_posterior import latent_posterior


def test_adam_is_the_one_written_out():
    """Catches any constant of Adam: betas .9 and .999, epsilon 1e-8, the correction of both."""
    scales = torch.tensor([[1.0, 10.0], [0.1, 3.0], [1e-9, 1e-9]], dtype=torch.float64)

    def function(x, row):
        return (scales[row] * x**2).sum(1), 2 * scales[row] * x

    x = randn(3, 2, seed=1)
    found = adam(function, x, steps=31, tolerance=0.0, rate=0.03)
    m, v, values = torch.zeros_like(x), torch.zeros_like(x), []
    for step in range(1, 32):
        last, (value, g) = x, function(x, torch.arange(3))
        values.append(value)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        mhat, vhat = m / (1 - 0.9**step), v / (1 - 0.999**step)
        x = x - 0.03 * mhat / (vhat.sqrt() + 1e-8)
    torch.testing.assert_close(found.x, last)
    torch.testing.assert_close(found.history, torch.stack(values))
    torch.testing.assert_close(found.value, values[-1])
    assert not found.converged.any()


def test_adam_lets_rows_go():
    """Catches a row that goes on after its gradient is small, one stopped by its neighbours, and
    a row of NaN taken for converged."""
    counts = torch.zeros(3)

    def function(x, row):
        counts[row] += 1
        value, gradient = (x**2).sum(1), 2 * x
        return value.where(row != 2, torch.nan), gradient.where(row[:, None] != 2, torch.nan)

    x = torch.tensor([[0.1], [5.0], [1.0]], dtype=torch.float64)
    found = adam(function, x, steps=200, tolerance=0.05, rate=0.01)
    assert found.converged.tolist() == [True, False, False]
    assert 2 * abs(float(found.x[0, 0])) <= 0.05
    assert found.value[2] == math.inf
    assert 2 < counts[0] < 30
    assert counts[1:].tolist() == [200, 1]
    assert len(found.history) == 200


@pytest.mark.parametrize("volume", [False, True])
def test_energy_of_a_latent(volume):
    """Catches a prior's weight that is forgotten, squared or inverted."""
    vae = linear_vae((1, 2, 2), 3)
    y = vae.sample(3, generator=seeded(1)).double()
    posterior = latent_posterior(
        Counted(vae), Problem(y, Identity((1, 2, 2)), GaussianNoise(0.2)), None
    )
    log_volume = (lambda z: z.pow(3).sum(1)) if volume else None
    energy = latent_energy(posterior, (3,), prior_weight=2.5, log_volume=log_volume)
    z = randn(3, 3, seed=2)
    for rows in (torch.arange(3), torch.tensor([2, 0])):
        value, gradient = energy(z[rows], rows)
        likelihood, slope = posterior.take(rows).value_and_gradient(z[rows])
        leaf = z[rows].requires_grad_()
        rest = 2.5 * (leaf.square().sum(1) / 2 + (log_volume(leaf) if volume else 0))
        (other,) = torch.autograd.grad(rest.sum(), leaf)
        torch.testing.assert_close(value, likelihood + rest.detach())
        torch.testing.assert_close(gradient, slope + other)


def test_a_turn_takes_the_better_latent():
    """Catches an encoder's guess that is judged by another energy than J, taken where it is worse
    or left where it is better; and a descent of another energy, or for less than it was given."""
    rows, s = 60, 0.2
    vae = linear_vae((1, 2, 2), 3, std=s)
    affine = vae.decoder[0]
    x, z, guess = randn(rows, 1, 2, 2, seed=1), randn(rows, 3, seed=2), randn(rows, 3, seed=3)

    def j(z):
        miss = x.flatten(1) - z @ affine.weight.T - affine.bias
        return miss.square().sum(1) / (2 * s**2) + z.square().sum(1) / 2

    problem = Problem(x, Identity((1, 2, 2)), GaussianNoise(0.1))
    posterior = latent_posterior(Counted(vae), problem, True)
    posterior.prior.encode = lambda image: guess
    found = JointMAP(descent=60)._latent(posterior, x, z)
    better = j(guess) < j(z)
    assert 15 < int(better.sum()) < 45
    torch.testing.assert_close(found[better], guess[better])
    precision = torch.eye(3).double() + affine.weight.T @ affine.weight / s**2
    least = torch.linalg.solve(precision, affine.weight.T @ (x.flatten(1) - affine.bias).T / s**2)
    torch.testing.assert_close(found[~better], least.T[~better])
    torch.testing.assert_close(z, randn(rows, 3, seed=2))  # not written over


def test_what_curvature_is_learnt_from():
    """Catches d x d matrices for long rows, more than ten pairs kept; steps learnt from along
    which the gradient does not grow, or not learnt from because they are short."""
    assert isinstance(curvature.curvature(torch.zeros(2, 64)), curvature.Dense)
    pairs = curvature.curvature(torch.zeros(2, 65))
    assert isinstance(pairs, curvature.Pairs)
    assert pairs.s.shape == pairs.y.shape == (2, 10, 65)
    cosines = torch.tensor([1.0, 1e-9, 1e-11, 0.0, -1e-3], dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        for memory in (curvature.Dense, curvature.Pairs):
            h = memory(torch.zeros(6, 2, dtype=torch.float64))
            s = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(5, -1)
            y = 2 * torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
            s = torch.cat([s, 0 * s[:1]])
            y = torch.cat([y, 0 * y[:1]])
            h.learn(scale * s, scale * y)
            g = torch.ones(6, 2, dtype=torch.float64)
            learnt = (h.apply(g) != g).any(1)
            assert learnt.tolist() == [True, True, False, False, False, False]
            found = h.apply(y[:2].repeat(3, 1))[:2]  # H y = s
            torch.testing.assert_close(found, s[:2])


def test_a_first_pair_scales_and_forgetting_begins_again():
    """Catches curvature that begins in other units than the function's, pairs that are kept or
    forgotten of the wrong rows, and a row that learns nothing from its neighbours' pairs."""
    s, y, g = (randn(3, 4, seed=i) for i in (1, 2, 3))
    y = torch.where((s * y).sum(1, keepdim=True) > 0, y, -y)
    y[2] = -s[2]  # teaches nothing
    dense, pairs = curvature.Dense(s), curvature.Pairs(s)
    eye, expected = torch.eye(4, dtype=torch.float64), []
    for i in range(2):
        rho = 1 / (s[i] @ y[i])
        left = eye - rho * torch.outer(s[i], y[i])
        scale = (s[i] @ y[i]) / (y[i] @ y[i])
        h = scale * left @ left.T + rho * torch.outer(s[i], s[i])
        expected.append(h @ g[i])
    expected = torch.stack([*expected, g[2]])
    for memory in (dense, pairs):
        for _ in range(2):
            memory.learn(s, y)
            torch.testing.assert_close(memory.apply(g), expected)
            memory.forget(torch.tensor([True, False, True]))
            torch.testing.assert_close(memory.apply(g), torch.stack([g[0], expected[1], g[2]]))
            memory.forget(torch.ones(3, dtype=torch.bool))
            torch.testing.assert_close(memory.apply(g), g)
        memory.learn(s, y)
        memory.keep(torch.tensor([1, 0]))
        torch.testing.assert_close(memory.apply(g[[1, 0]]), expected[[1, 0]])
