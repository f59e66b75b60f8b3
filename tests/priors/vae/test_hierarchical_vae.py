"""The hierarchical VAE: its latent, its bound, its groups."""

import pytest
import torch
from tools import seeded

from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.priors import HierarchicalVAE, Turn, testing
from genprior.solvers import LatentMAP

SHAPE = (1, 8, 8)


def example(groups=(1, 2), whole=0):
    """A small one with two levels and three groups, its heads moved away from their start."""
    prior = HierarchicalVAE(SHAPE, widths=(4, 8), groups=groups, latent_channels=2, whole=whole)
    with torch.no_grad():
        for i, parameter in enumerate(prior.network.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(i))
    return prior


@pytest.mark.parametrize("whole", [0, 3])
def test_contract(whole, device):
    """Catches broken promises: purity, row independence, files, devices, generators."""
    testing.check_prior(example(whole=whole), device=device)


@pytest.mark.parametrize("whole", [0, 3])
def test_both_forms_of_the_kl_agree(whole):
    """Catches a KL or a log-ratio that is not that of the residuals."""
    prior = example(whole=whole).double()
    x = torch.rand(2, *SHAPE, generator=seeded(), dtype=torch.float64)
    terms = prior.terms(x, samples=2_000, generator=seeded(1))
    error = terms.log_ratio.std(1) / 2_000**0.5
    assert ((terms.log_ratio.mean(1) + terms.kl.sum(1)).abs() <= 5 * error).all()


def test_log_likelihood_is_that_of_the_decoded_draw():
    """Catches encoder and decoder paths that disagree on what z means."""
    prior = example().double()
    x = torch.rand(2, *SHAPE, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        for group in prior.network.groups.children():
            for g in group.children():
                g.residual[-1].weight.mul_(0)  # q no longer depends on x or z
                g.residual[-1].bias.fill_(-60)  # and its std is e^-5, bounded
                g.residual[-1].bias[:2] = 0.3
    z = prior.encode(x)
    torch.testing.assert_close(z, torch.full_like(z, 0.3))
    terms = prior.terms(x, generator=[seeded(0), seeded(1)])
    expected = -0.5 * ((x - prior.decode(z)) / prior.decoder_std).square()
    expected = (expected - (prior.decoder_std * (2 * torch.pi) ** 0.5).log()).flatten(1).sum(1)
    torch.testing.assert_close(terms.log_likelihood[:, 0], expected, rtol=0.02, atol=0)


def test_coarse_groups_warm_up_and_the_finest_does_not():
    """Catches a warm-up that favours fine groups, or weighs the units of another group."""
    prior = HierarchicalVAE(
        SHAPE, widths=(4, 8), groups=(1, 1), latent_channels=2, whole=3,
        bound={"kl_weight": 2.0, "warm_up": 40},
    )  # fmt: skip
    with torch.no_grad():
        for i, parameter in enumerate(prior.network.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(i))
    objective = prior.objective()
    x = torch.rand(5, *SHAPE, generator=seeded())
    loss, _ = objective.loss(Turn(images_seen=10), x, seeded(1))
    terms = prior.terms(x, generator=seeded(1))
    sizes = [3, 2 * 2 * 2, 2 * 4 * 4]
    parts = terms.kl.mean(0).split(sizes)
    kl = sum(w * part.sum() for w, part in zip((0.25, 0.5, 1.0), parts, strict=True))
    torch.testing.assert_close(loss, -(terms.log_likelihood.mean() - 2 * kl) / 64)


def test_the_first_group_without_places_reaches_every_pixel():
    """Catches a vector that is taken in at one place, or under another shape than stated."""
    prior = example(groups=(1, 1), whole=3)
    assert prior.group_shapes[0] == (3, 1, 1)
    z = torch.zeros(1, *prior.latent_shape)
    moved = z.clone()
    moved[:, 0] = 2
    assert ((prior.decode(moved) - prior.decode(z)).abs() > 1e-6).all()


@pytest.mark.parametrize("whole", [0, 3])
def test_fixed_groups_stay_and_the_others_vary(whole):
    """Catches groups in another order than the latent's, or a fixed group drawn anew."""
    prior = example((1, 1) if whole else (1, 2), whole)
    z = torch.randn(1, *prior.latent_shape, generator=seeded())
    groups = prior.split_latent(z)
    assert [tuple(g.shape[1:]) for g in groups] == prior.group_shapes
    assert torch.equal(torch.cat([g.flatten(1) for g in groups], 1), z)
    every = prior.sample(3, generator=seeded(1), fixed=groups)
    torch.testing.assert_close(every, prior.decode(z).expand(3, -1, -1, -1))
    spreads = [
        prior.sample(50, generator=seeded(1), fixed=groups[:n]).std(0).mean() for n in (0, 1, 3)
    ]
    assert spreads[0] > spreads[1] > 1e-3
    assert spreads[2] < 1e-5


def test_temperature_scales_each_group():
    """Catches a temperature applied to the wrong group."""
    prior = example()
    z = torch.zeros(1, *prior.latent_shape)
    cold = prior.sample(4, generator=seeded(), temperature=0.0)
    torch.testing.assert_close(cold, prior.decode(z).expand(4, -1, -1, -1))
    first = prior.split_latent(z)[:2]
    partly = prior.sample(4, generator=seeded(), temperature=[0.0, 0.0, 1.0])
    held = prior.sample(4, generator=seeded(), fixed=first)
    torch.testing.assert_close(partly, held)


def test_latent_map_serves_it():
    """Catches a latent that solvers cannot use."""
    prior = example().double().requires_grad_(False)
    x = prior.sample(2, generator=seeded(3))
    mask = torch.rand(SHAPE, generator=seeded(4)) < 0.7
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.01), generator=seeded(5))
    result = LatentMAP(restarts=1, steps=150, decoder_variance=False)(
        problem, prior, generator=seeded()
    )
    assert (result.trace["residual"] < 1.5).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"widths": (4,), "groups": (1, 2)}, "same levels"),
        ({"widths": (4, 4), "groups": (0, 0)}, "at least one group"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"whole": -1}, "whole must be"),
        ({"widths": (4, 4, 4, 4), "groups": (1, 1, 1, 1)}, "divisible by 16"),
    ],
)
def test_bad_sizes_are_refused(options, match):
    """Catches hierarchies that cannot be built."""
    with pytest.raises(ValueError, match=match):
        HierarchicalVAE(SHAPE, **{"widths": (4, 4), "groups": (1, 1), **options})


def test_wrong_number_of_groups_is_refused():
    """Catches temperatures or fixed groups that are silently dropped."""
    prior = example()
    with pytest.raises(ValueError, match="3 groups"):
        prior.sample(1, temperature=[1.0, 0.5])
