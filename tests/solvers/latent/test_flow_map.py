"""FlowMAP against closed forms, in both spaces; its two modes told apart; bad input."""

from dataclasses import replace

import pytest
import torch
from tools import randn, seeded

from genprior.operators import (
    Blur,
    CompressedSensing,
    GaussianNoise,
    Identity,
    Inpainting,
    Problem,
    kernels,
)
from genprior.priors import VAE, Flow, Gaussian
from genprior.priors.flows.bijection import Chain, Flatten
from genprior.priors.flows.layers import ActNorm, ChannelMix, Logit
from genprior.solvers import FlowMAP, available

SHAPE = (2, 4, 3)
OPERATORS = [
    Inpainting(torch.rand(3, *SHAPE, generator=seeded(3)) < 0.5),
    Blur(kernels.uniform(3), SHAPE),
    CompressedSensing(SHAPE, 8, generator=seeded(3)),
]


class Linear(Flow):
    """z = s W (x - m): a Gaussian in x whose covariance is known."""

    def __init__(self, image_shape, *, margin: float | None = None):
        channels = image_shape[0]
        mix = ChannelMix(channels, seeded(5))
        layers = [ActNorm(channels), mix, ActNorm(channels), Flatten(image_shape)]
        layers = layers if margin is None else [Logit(margin), *layers]
        super().__init__(image_shape, Chain(layers))
        with torch.no_grad():
            for i, layer in enumerate(m for m in layers if isinstance(m, ActNorm)):
                layer.log_scale += (1 if margin is None else -0.2) + 0.3 * randn(
                    channels, 1, 1, seed=i, dtype=torch.float32
                )
                layer.mean += 0.4 if i == 0 else 0.0
            mix.lower += 0.2 * randn(channels, channels, seed=9, dtype=torch.float32)


def as_gaussian(flow):
    """The same law, from the map's own matrix."""
    d = torch.Size(flow.image_shape).numel()
    zero = torch.zeros(1, d, dtype=torch.float64)
    mean = flow.decode(zero)
    columns = (flow.decode(torch.eye(d, dtype=torch.float64)) - mean).flatten(1)
    return Gaussian.from_covariance(mean[0], columns.T @ columns)


def priors():
    flow = Linear(SHAPE).double()
    factors = 0.3 * randn(3, *SHAPE)
    gaussian = Gaussian(torch.full(SHAPE, 0.5, dtype=torch.float64), factors, residual=0.1)
    return {"flow": (flow, as_gaussian(flow)), "gaussian": (gaussian, gaussian)}


@pytest.mark.parametrize("space", ["latent", "image"])
@pytest.mark.parametrize("name", ["flow", "gaussian"])
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_map_is_the_closed_form(operator, name, space):
    """Catches a wrong weight of the prior, a sign of the volume, a sigma shared by all images."""
    prior, exact = priors()[name]
    x = exact.sample(3, generator=seeded(1))
    noise = GaussianNoise(torch.tensor([0.02, 0.05, 0.2], dtype=torch.float64))
    problem = Problem.simulate(x, operator, noise, generator=seeded(2))
    result = FlowMAP(space=space, tolerance=1e-9, steps=2000)(problem, prior)
    expected = exact.posterior(problem).mean
    torch.testing.assert_close(result.samples[:, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(prior.decode(result.latents[:, 0]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.2, 1.0, 3.0])
def test_the_two_modes_are_each_where_their_function_is_flat(gamma):
    """Catches one mode given for the other: behind a logit they are far apart."""
    flow = Linear((1, 1, 2), margin=0.01).double()
    problem = Problem(randn(1, 1, 1, 2) * 0.1 + 0.6, Identity((1, 1, 2)), GaussianNoise(0.5))
    modes = {}
    for space in ("latent", "image"):
        x = FlowMAP(space=space, gamma=gamma, tolerance=1e-9)(problem, flow).samples[:, 0]
        modes[space] = x
        with torch.enable_grad():
            image = x.clone().requires_grad_()
            z = flow.encode(image)
            quality = problem.log_likelihood(image).sum()
            if space == "latent":
                quality = quality + gamma * flow.latent_log_prob(z).sum()
            else:
                quality = quality + gamma * flow.log_prob(image).sum()
            (slope,) = torch.autograd.grad(quality, image)
        assert slope.abs().max() < 1e-6
    assert (modes["latent"] - modes["image"]).abs().max() > 0.01


def test_adam_and_other_starts_find_the_same():
    """Catches a start that is not used, or an optimiser in the wrong direction."""
    prior, exact = priors()["flow"]
    x = exact.sample(2, generator=seeded(1))
    problem = Problem.simulate(x, OPERATORS[1], GaussianNoise(0.1), generator=seeded(2))
    expected = exact.posterior(problem).mean
    slow = FlowMAP(optimizer="adam", learning_rate=0.02, steps=3000, tolerance=1e-5)
    for solver in (
        slow,
        FlowMAP(start="measurement", tolerance=1e-9),
        FlowMAP(start=torch.ones(24), tolerance=1e-9),
    ):
        found = solver(problem, prior).samples[:, 0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    fixed = FlowMAP(start="measurement", optimizer="adam", steps=1, learning_rate=1e-12)
    problem = replace(problem, y=5 * problem.y - 2)
    pinv = problem.linear_operator.pinv(problem.y)
    begun = prior.encode(pinv.clamp(0.001, 0.999))
    assert (pinv < 0).any()
    assert (pinv > 1).any()
    torch.testing.assert_close(fixed(problem, prior).latents[:, 0], begun, atol=1e-9, rtol=0)
    few = [FlowMAP(start=s, steps=1)(problem, prior) for s in ("zero", torch.ones(24))]
    torch.testing.assert_close(few[1].latents, torch.ones(2, 1, 24, dtype=torch.float64))
    assert not few[0].converged.any()


@pytest.mark.parametrize("space", ["latent", "image"])
def test_an_image_far_from_y_has_not_converged(space):
    """Catches a `converged` that only asks whether the optimiser came to rest."""
    prior, exact = priors()["flow"]
    x = exact.sample(2, generator=seeded(1))
    problem = Problem.simulate(x, Identity(SHAPE), GaussianNoise(0.05), generator=seeded(2))
    solver = FlowMAP(space=space, gamma=500.0, steps=2000, tolerance=1e-4)
    with pytest.warns(RuntimeWarning, match="2 of 2 images have not converged"):
        found = solver(problem, prior)
    assert (found.trace["residual"][-1] > 2).all()
    assert not found.converged.any()
    assert FlowMAP(space=space, steps=2000, tolerance=1e-4)(problem, prior).converged.all()


def test_rows_do_not_see_each_other():
    """Catches a step size or an end that images share."""
    prior, exact = priors()["flow"]
    x = exact.sample(3, generator=seeded(1))
    noise = GaussianNoise(torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64))
    problem = Problem.simulate(x, Identity(SHAPE), noise, generator=seeded(2))
    whole = FlowMAP(steps=7)(problem, prior).samples
    alone = [FlowMAP(steps=7)(problem.take(torch.tensor([i])), prior).samples for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-12, rtol=0)


def test_priors_without_an_exact_encoder_are_refused():
    """Catches a VAE taken for a flow."""
    vae = VAE((1, 4, 4), latent_size=2)
    assert "FlowMAP" not in available(vae)
    assert "FlowMAP" in available(Linear(SHAPE))
    problem = Problem(torch.zeros(1, 1, 4, 4), Identity((1, 4, 4)), GaussianNoise(0.1))
    with pytest.raises(TypeError, match="an encoder that is exact"):
        FlowMAP()(problem, vae)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"space": "z"}, "space must be 'latent' or 'image'"),
        ({"optimizer": "sgd"}, "optimizer must be"),
        ({"start": "random"}, "start must be 'zero' or 'measurement'"),
        ({"gamma": -1.0}, "gamma and tolerance >= 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        FlowMAP(**options)


@pytest.mark.parametrize("space", ["latent", "image"])
def test_no_noise_is_refused(space):
    """Catches a division by sigma = 0."""
    problem = Problem(torch.zeros(1, *SHAPE), Identity(SHAPE), GaussianNoise(0.0))
    with pytest.raises(ValueError, match="sigma = 0"):
        FlowMAP(space=space)(problem, Linear(SHAPE))
