"""Annealed importance sampling: evidence and modes against closed forms."""

import math

import pytest
import torch
from tools import as_gaussian, identical, linear_vae, seeded
from written_out.annealed import annealed

from genprior.operators import GaussianNoise, Identity, Inpainting, Matrix, Problem
from genprior.operators.random import spawn
from genprior.priors import Gaussian, GaussianMixture, LatentPrior
from genprior.solvers import AnnealedImportance

SHAPE = (1, 2, 3)


def gaussian():
    factors = 0.3 * torch.randn(2, *SHAPE, generator=seeded(), dtype=torch.float64)
    return Gaussian(torch.full(SHAPE, 0.5, dtype=torch.float64), factors, residual=0.1)


def posed(prior, operator, count, sigma=0.1):
    x = prior.sample(count, generator=seeded(1))
    return Problem.simulate(x, operator, GaussianNoise(sigma), generator=seeded(2))


@pytest.mark.parametrize(
    "operator",
    [
        Inpainting(torch.tensor([[True, False, True], [True, True, False]])[None]),
        Matrix(torch.randn(3, 6, generator=seeded(4), dtype=torch.float64), SHAPE),
    ],
    ids=["inpainting", "matrix"],
)
def test_evidence_and_moments_of_a_gaussian(operator):
    """Catches a weight of the wrong temperature, a constant left out, moves that do not keep the
    law: each shifts the evidence by many of its standard errors, or the posterior's mean."""
    prior, count = gaussian(), 24
    problem = posed(prior, operator, count)
    solver = AnnealedImportance(particles=128)
    result = solver(problem, prior, num_samples=16, generator=seeded(3))
    exact = prior.posterior(problem)
    error = result.trace["log_evidence"][0] - exact.log_evidence
    std = result.trace["log_evidence_std"][0]
    assert (error / std).abs().max() < 5
    z = error / std
    assert abs(z.mean()) < 5 / count**0.5
    assert 0.5 < z.std() < 1.6
    pulls = (result.mean - exact.mean) / exact.std * 16**0.5
    assert abs(float(pulls.mean())) < 5 / pulls.numel() ** 0.5
    assert 0.8 < float(pulls.std()) < 1.25
    assert result.converged.all()
    assert (result.trace["ess"] > 60).all()


@pytest.mark.parametrize("particles", [12, 40])
def test_walk_is_that_written_out(particles):
    """Catches any wrong number: ladder, weights, evidence, drawing anew, moves, their steps."""
    prior = gaussian()
    latents = math.prod(prior.latent_shape)
    operator = Inpainting(torch.tensor([[True, False, True], [True, True, False]])[None])
    problem = posed(prior, operator, 2, sigma=0.04)
    solver = AnnealedImportance(particles=particles, share=0.7, leapfrog=3)
    own = [seeded(5), seeded(6)]
    found = solver(problem, prior, num_samples=20, generator=own)
    decoded = prior.decode(
        torch.cat([torch.zeros(1, latents), torch.eye(latents)])
        .double()
        .view(-1, *prior.latent_shape)
    ).flatten(1)
    seen = torch.eye(6, dtype=torch.float64)[operator.mask.flatten()]
    images = spawn([seeded(5), seeded(6)], 2)
    spawn(images, 2, per=20)  # one for each sample, which a decoder without noise leaves unused
    for i in range(2):
        y = problem.y[i].flatten()[operator.mask.flatten()] - seen @ decoded[0]
        z, evidence, variance, (ess, families), taken = annealed(
            solver,
            matrix=seen @ (decoded[1:] - decoded[0]).T,
            y=y,
            sigma=0.04,
            generator=images[i],
            samples=20,
        )
        assert taken == found.trace["temperatures"][0, i]
        assert taken > 5
        constant = len(y) * math.log(0.04 * math.sqrt(2 * math.pi))
        assert evidence - constant == pytest.approx(
            float(found.trace["log_evidence"][0, i]), abs=1e-5
        )
        assert variance**0.5 == pytest.approx(
            float(found.trace["log_evidence_std"][0, i]), rel=1e-4
        )
        assert ess == pytest.approx(float(found.trace["ess"][0, i]), rel=1e-4)
        assert families == pytest.approx(float(found.trace["families"][0, i]), rel=1e-4)
        assert families < 0.6 * ess
        torch.testing.assert_close(z, found.latents[i].flatten(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("missing", [False, True])
def test_evidence_of_a_linear_vae_counts_the_decoder(missing):
    """Catches the normaliser of the decoder's own spread left out."""
    shape = (1, 4, 3)
    vae = linear_vae(shape)
    exact = as_gaussian(vae)
    mask = torch.rand(1, 4, 3, generator=seeded(5)) < 0.6
    operator = Inpainting(mask) if missing else Identity(shape)
    problem = posed(exact, operator, 8)
    result = AnnealedImportance(particles=128)(problem, vae, generator=seeded(3))
    error = result.trace["log_evidence"][0] - exact.posterior(problem).log_evidence
    assert (error / result.trace["log_evidence_std"][0]).abs().max() < 5


class TwoSided(LatentPrior):
    """x = |z| + slope z: y near a value comes from a z on either side, with known shares."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_shape = (1, 1, 1), (1,)

    def decode(self, z):
        return (z.abs() + 0.3 * z)[..., None, None]


def test_modes_keep_their_shares():
    """Catches particles drawn anew or moved so that the likelier side eats the other."""
    prior, sigma, y = TwoSided(), 0.1, 1.2
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    log_p = -0.5 * grid**2 - 0.5 * ((y - grid.abs() - 0.3 * grid) / sigma) ** 2
    p = log_p.exp()
    right = float(p[grid > 0].sum() / p.sum())
    evidence = float((p.sum() * 1e-4).log()) - torch.tensor(2 * torch.pi * sigma).log().item()
    count = 40
    problem = Problem(
        torch.full((count, 1, 1, 1), y).double(), Identity((1, 1, 1)), GaussianNoise(sigma)
    )
    solver = AnnealedImportance(particles=128)
    result = solver(problem, prior, num_samples=64, generator=seeded())
    share = (result.latents > 0).double().flatten(1).mean(1)
    assert abs(float(share.mean()) - right) < 0.03
    assert abs(float(share.mean()) - right) < 5 * float(share.std()) / count**0.5
    error = result.trace["log_evidence"][0] - evidence
    assert abs(float(error.mean())) < 5 * float(error.std()) / count**0.5 + 0.01
    assert float(error.std()) == pytest.approx(
        float(result.trace["log_evidence_std"][0].mean()), rel=0.5
    )


class Mixed(LatentPrior):
    """A mixture of two Gaussians: the sign of z_0 chooses one, the rest of z draws from it."""

    def __init__(self, mixture, share):
        super().__init__()
        self.image_shape, self.latent_shape = SHAPE, (1 + math.prod(SHAPE),)
        self.components = mixture.components
        self.threshold = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(share)))

    def decode(self, z):
        first, second = (c.decode(z[:, 1:].view(-1, *c.latent_shape)) for c in self.components)
        return torch.where((z[:, 0] < self.threshold)[:, None, None, None], first, second)


def test_lost_modes_are_said():
    """Catches particles that all descend from one, so all on one side, and call themselves
    converged."""
    prior, count = TwoSided(), 40
    y = torch.full((count, 1, 1, 1), 1.2, dtype=torch.float64)
    problem = Problem(y, Identity((1, 1, 1)), GaussianNoise(0.001))
    with pytest.warns(RuntimeWarning, match="modes be lost; take more particles"):
        few = AnnealedImportance(particles=8)(problem, prior, num_samples=8, generator=seeded())
    families = few.trace["families"][0]
    assert identical(few.converged, families >= 2)
    assert 5 < int(few.converged.sum()) < 35
    share = (few.latents > 0).double().flatten(1).mean(1)
    assert ((share == 0) | (share == 1))[families < 1.01].all()
    assert AnnealedImportance()(problem, prior, generator=seeded()).converged.all()


def test_evidence_of_a_mixture():
    """Catches weights that lose a component's share: its evidence is known in closed form."""
    share, components = 0.3, [gaussian(), gaussian()]
    components[1].mean += 0.5
    weights = torch.tensor([share, 1 - share], dtype=torch.float64)
    mixture = GaussianMixture.from_components(weights, components)
    truth = mixture.sample(12, generator=seeded(1))
    problem = Problem.simulate(truth, Identity(SHAPE), GaussianNoise(0.5), generator=seeded(2))
    exact = mixture.posterior(problem).log_evidence
    result = AnnealedImportance(particles=256)(problem, Mixed(mixture, share), generator=seeded(3))
    error = (result.trace["log_evidence"][0] - exact) / result.trace["log_evidence_std"][0]
    assert error.abs().max() < 3.5
    assert abs(float(error.mean())) < 3 / 12**0.5


def test_rows_do_not_see_each_other_and_generators_decide():
    """Catches a ladder or a step size that images share."""
    prior = gaussian()
    problem = posed(prior, Identity(SHAPE), 3)
    generators = [seeded(i) for i in range(3)]
    solver = AnnealedImportance(particles=16)
    whole = solver(problem, prior, num_samples=4, generator=generators).samples
    last = problem.take(torch.tensor([2]))
    alone = solver(last, prior, num_samples=4, generator=[seeded(2)]).samples
    torch.testing.assert_close(whole[2:], alone, atol=1e-9, rtol=0)


def test_too_few_temperatures_are_said():
    """Catches a ladder that stops short of the posterior and calls itself converged."""
    prior = gaussian()
    problem = posed(prior, Identity(SHAPE), 2, sigma=1e-3)
    with pytest.warns(RuntimeWarning, match="2 of 2 images have not converged"):
        result = AnnealedImportance(steps=3)(problem, prior, generator=seeded())
    assert not result.converged.any()


@pytest.mark.parametrize(
    "options", [{"particles": 3}, {"moves": 0}, {"leapfrog": 0}, {"steps": 0}, {"share": 1.0}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"AnnealedImportance takes|share must be"):
        AnnealedImportance(**options)
