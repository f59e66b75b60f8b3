"""LatentMAP(adapt=): a decoder trained on one measurement, and on it alone."""

import copy

import pytest
import torch
from tools import close, identical, linear_vae, seeded
from torch import nn

from genprior.operators import (
    CompressedSensing,
    GaussianNoise,
    Identity,
    Inpainting,
    PoissonNoise,
    Problem,
)
from genprior.priors import GAN, Gaussian, LatentPrior
from genprior.solvers import LatentMAP

SHAPE = (1, 4, 4)


class Linear(LatentPrior):
    """x = .5 + W z, z of two numbers."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shape = (1, 2, 2), (2,)
        w = 0.2 * torch.randn(4, 2, generator=seeded(1), dtype=torch.float64)
        self.w = nn.Parameter(w)

    def decode(self, z):
        return 0.5 + (z @ self.w.T).view(-1, 1, 2, 2)


def gan():
    return GAN(SHAPE, 3, network={"kind": "dcgan", "widths": [8]}).double().eval()


def images(n=2):
    return torch.rand(n, *SHAPE, generator=seeded(2), dtype=torch.float64)


def test_one_step_by_hand():
    """Catches a wrong rate, sign or data term, and a decoder that is not trained: Adam's first
    step moves each number by its rate against its slope."""
    prior = Linear()
    mask = torch.tensor([[[True, True], [True, False]]])
    y = torch.tensor([0.9, 0.1, 0.8, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    problem = Problem(y, Inpainting(mask), GaussianNoise(0.05))
    start = LatentMAP(restarts=1)(problem, prior)
    z = start.latents[:, 0].requires_grad_()
    w = prior.w.detach().clone().requires_grad_()
    x = 0.5 + (z @ w.T).view(-1, 1, 2, 2)
    misfit = ((y - x)[mask.expand_as(y)] / 0.05).square()
    slope_z, slope_w = torch.autograd.grad(misfit.sum(), (z, w))
    moved = z - 1e-4 * slope_z.sign(), w - 1e-3 * slope_w.sign()
    found = LatentMAP(restarts=1, adapt=1)(problem, prior)
    expected = 0.5 + (moved[0] @ moved[1].T).view(-1, 1, 1, 2, 2)
    torch.testing.assert_close(found.samples, expected.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.latents[:, 0], moved[0].detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.trace["residual"][0, 0], misfit.mean().sqrt().detach())


def test_it_stops_where_the_residual_is_the_noise():
    """Catches noise that is fitted, weights of the prior that move, rows that share a decoder."""
    prior = gan()
    before = copy.deepcopy(prior.state_dict())
    x = images()
    sigma = torch.tensor([0.1, 0.15], dtype=torch.float64)
    problem = Problem.simulate(x, Identity(SHAPE), GaussianNoise(sigma), generator=seeded(3))
    plain = LatentMAP(steps=60)(problem, prior, generator=[seeded(i) for i in range(2)])
    solver = LatentMAP(steps=60, adapt=4000)
    found = solver(problem, prior, generator=[seeded(i) for i in range(2)])
    first, last = found.trace["residual"]
    assert (first > 1.2).all()
    assert (last <= 1).all()
    assert (last > 0.95).all()
    assert found.converged.all()
    short = LatentMAP(steps=60, adapt=40)(problem, prior, generator=[seeded(i) for i in range(2)])
    assert not short.converged.any()
    assert 1 < short.trace["residual"][-1].max() < 2
    assert short.vjps == plain.vjps + 40
    assert found.forwards > plain.forwards
    for name, value in prior.state_dict().items():
        assert identical(value, before[name]), name
    assert not any(p.grad is not None for p in prior.parameters())
    error, former = ((r.samples[:, 0] - x).flatten(1).norm(dim=1) for r in (found, plain))
    assert (error < 0.8 * former).all()
    second = problem.take(torch.tensor([1]))
    alone = solver(second, prior, generator=[seeded(1)])
    torch.testing.assert_close(alone.samples[0], found.samples[1], atol=1e-4, rtol=0)


def test_the_step_with_the_least_residual_counts():
    """Catches the last step taken for the best: so near y every one of Adam's overshoots."""
    prior = Linear()
    x = prior.decode(torch.tensor([[1.0, -0.5]], dtype=torch.float64)).detach()
    sigma = 1e-4
    off = 3 * sigma * torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    problem = Problem(x + off, Identity((1, 2, 2)), GaussianNoise(sigma))
    last = [
        float(LatentMAP(restarts=1, adapt=k)(problem, prior).trace["residual"][-1, 0])
        for k in (1, 2, 4, 8, 200)
    ]
    start = float(LatentMAP(restarts=1, adapt=1)(problem, prior).trace["residual"][0, 0])
    assert sorted([start, *last], reverse=True) == [start, *last]
    assert start > 1.2


def test_the_generator_limits_it_no_more():
    """Catches a decoder that stays as it was: with 15 of 16 numbers measured the error is what
    the generator cannot make, until it is trained."""
    x = images(1)
    operator = CompressedSensing(SHAPE, 15, generator=seeded(7))
    problem = Problem.simulate(x, operator, GaussianNoise(0.01), generator=seeded(8))
    plain, found = (
        LatentMAP(steps=60, adapt=a)(problem, gan(), generator=seeded(9)) for a in (0, 600)
    )
    error, former = ((r.samples[:, 0] - x).square().mean((1, 2, 3)) for r in (found, plain))
    assert (former > 0.03).all()
    assert (error < 0.4 * former).all(), (error, former)
    assert (found.trace["residual"][-1] < 0.3 * found.trace["residual"][0]).all()


def test_photons_are_explained():
    """Catches a stop that knows normal noise alone."""
    prior, x = gan(), images(1)
    problem = Problem.simulate(x, Identity(SHAPE), PoissonNoise(200.0), generator=seeded(4))
    first, last = LatentMAP(steps=60, adapt=4000)(problem, prior).trace["residual"][:, 0]
    assert float(first) > 1.5
    assert 0.95 < float(last) <= 1


def test_without_noise_what_is_left_is_projected():
    """Catches an image off y where y is exact."""
    vae = linear_vae(SHAPE)
    operator = CompressedSensing(SHAPE, 20, generator=seeded(5))
    y = operator(images(2))
    found = LatentMAP(adapt=5)(Problem(y, operator, GaussianNoise(0.0)), vae)
    torch.testing.assert_close(operator(found.samples[:, 0]), y, atol=1e-8, rtol=0)
    assert found.converged.all()


def test_none_is_as_before():
    prior = gan()
    problem = Problem.simulate(images(1), Identity(SHAPE), GaussianNoise(0.3), generator=seeded(6))
    plain, none = (
        LatentMAP(steps=30, adapt=a)(problem, prior, generator=seeded()) for a in (0, 1)
    )
    assert plain.trace["residual"].shape == (1, 1)
    close(plain.trace["residual"][0], none.trace["residual"][0], ulps=100)


def test_what_has_no_weights_is_refused():
    prior = Gaussian(torch.full((1, 2, 2), 0.5), 0.1 * torch.ones(1, 1, 2, 2), residual=0.1)
    problem = Problem(torch.full((1, 1, 2, 2), 0.5), Identity((1, 2, 2)), GaussianNoise(0.1))
    with pytest.raises(
        TypeError, match="adapt changes a decoder's weights, and Gaussian has none"
    ):
        LatentMAP(adapt=1)(problem, prior)
