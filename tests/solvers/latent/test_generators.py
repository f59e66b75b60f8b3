"""Latent solvers on a generator with batch normalisation, against quadrature over its latent."""

import copy
import math

import pytest
import torch
from tools import close, identical, seeded

from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.priors import GAN
from genprior.solvers import AnnealedImportance, LatentMAP, LatentSampler

SHAPE = (1, 4, 4)
SOLVERS = {
    "LatentMAP": (LatentMAP(restarts=6), 1),
    "LatentSampler": (LatentSampler(chains=4, warm_up=80, steps=80, leapfrog=8), 80),
    "AnnealedImportance": (AnnealedImportance(particles=96), 80),
}
QUICK = {
    "LatentMAP": LatentMAP(restarts=2, steps=30),
    "LatentSampler": LatentSampler(chains=2, warm_up=20, steps=4, leapfrog=2),
    "AnnealedImportance": AnnealedImportance(particles=8, moves=1, leapfrog=2),
}


def gan():
    """A DCGAN of two numbers, its statistics far from those of any batch."""
    made = GAN(SHAPE, 2, network={"kind": "dcgan", "widths": [8]}).double().eval()
    norm = next(m for m in made.generator if isinstance(m, torch.nn.BatchNorm2d))
    with torch.no_grad():
        made.generator[0].weight.mul_(3)
        norm.running_mean.copy_(0.3 * torch.randn(8, generator=seeded(1)))
        norm.running_var.copy_(0.2 + torch.rand(8, generator=seeded(2)))
    return made


def posed(prior, sigma=0.1):
    """Three images of the generator, the lower half of each hidden."""
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:, 2:] = False
    x = prior.sample(3, generator=seeded(3))
    return Problem.simulate(x, Inpainting(mask), GaussianNoise(sigma), generator=seeded(4))


def quadrature(prior, problem):
    """A grid of latents: images (g, C, H, W), and log p(y, z) times a cell, (B, g)."""
    axis = torch.linspace(-5, 5, 201, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        x = prior.decode(z)
    log_p = torch.stack(
        [problem.take(torch.full((len(x),), i)).log_likelihood(x) for i in range(len(problem.y))]
    )
    cell = 2 * math.log(float(axis[1] - axis[0]))
    return x, log_p + prior.latent_log_prob(z) + cell


@pytest.mark.parametrize("name", SOLVERS)
def test_inpainting_against_quadrature(name):
    """Catches statistics of the batch in place of the generator's, a likelihood of hidden pixels,
    a prior that does not count."""
    prior = gan()
    problem = posed(prior)
    solver, samples = SOLVERS[name]
    result = solver(problem, prior, num_samples=samples, generator=seeded(5))
    x, log_p = quadrature(prior, problem)
    assert result.converged.all()
    if name == "LatentMAP":
        energy = result.trace["energy"][-1]
        z = result.latents[:, 0]
        own = -problem.log_likelihood(prior.decode(z)) + 0.5 * z.square().sum(1)
        close(energy, own, ulps=1000)
        cell = 2 * math.log(0.05)
        best = -(log_p.amax(1) - cell) - math.log(2 * math.pi)
        assert (energy <= best).all(), "a latent of the grid is better"
        assert (energy > best - 0.05).all()
        return
    weight = log_p.softmax(1)
    mean = torch.einsum("bg,gchw->bchw", weight, x)
    std = (torch.einsum("bg,gchw->bchw", weight, x.square()) - mean.square()).sqrt()
    effective = result.trace["ess"][0].clamp(max=samples).view(-1, 1, 1, 1)
    assert ((result.mean - mean).abs() / std * effective.sqrt() < 5).all()
    assert 0.7 < float((result.std / std).mean()) < 1.3
    if name == "AnnealedImportance":
        error = result.trace["log_evidence"][0] - log_p.logsumexp(1)
        assert (error.abs() < 5 * result.trace["log_evidence_std"][0]).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_do_not_meet_in_batch_norm(name):
    """Catches a generator that came in training mode and is left in it: its rows would be
    normalised by each other, and its statistics would wander."""
    prior = gan().train()
    before = copy.deepcopy(prior.state_dict())
    problem = posed(prior.eval())
    prior.train()
    together = QUICK[name](problem, prior, generator=[seeded(i) for i in range(3)])
    alone = QUICK[name](problem.take(torch.tensor([1])), prior, generator=[seeded(1)])
    torch.testing.assert_close(alone.samples[0], together.samples[1], atol=1e-6, rtol=0)
    assert prior.training
    assert all(m.training for m in prior.modules())
    for key, value in prior.state_dict().items():
        assert identical(value, before[key]), key


def test_restarts_find_the_lower_valley():
    """Catches a best start chosen by anything but the energy."""
    prior = gan()
    problem = posed(prior, sigma=0.02)
    few, many = (
        LatentMAP(restarts=n)(problem, prior, generator=seeded(6)).trace["energy"][-1]
        for n in (1, 12)
    )
    assert (many <= few + 1e-9).all()
    assert (many < few - 1).any()


def test_a_file_is_read_in_evaluation_mode(tmp_path):
    gan().save(tmp_path / "gan.safetensors")
    assert not any(m.training for m in GAN.load(tmp_path / "gan.safetensors").modules())
