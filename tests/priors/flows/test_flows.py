"""Flow priors: the contract, bits per dimension, training that stays finite, bad input."""

import math
import warnings

import pytest
import torch
from tools import identical, randn, seeded

import genprior
from genprior.priors import NICE, Flow, Glow, PlanarFlow, RadialFlow, RealNVP, Turn, testing
from genprior.priors.flows.bijection import Chain, Flatten
from genprior.priors.flows.layers import Scaling
from genprior.training import TrainingOptions

SMALL = {"width": 8}
FLOWS = {
    "nice": lambda: NICE((1, 4, 4), hidden=(16,)),
    "realnvp": lambda: RealNVP((1, 4, 4), couplings=2, network=SMALL),
    "glow": lambda: Glow((3, 4, 4), depth=2, network=SMALL),
    "glow-odd-channels": lambda: Glow((3, 2, 4), levels=1, depth=2, network=SMALL),
    "glow-transformer": lambda: Glow(
        (1, 4, 4), depth=1, network={"kind": "transformer", "width": 32, "blocks": 1}
    ),
    "planar": lambda: PlanarFlow((1, 1, 2)),
    "radial": lambda: RadialFlow((1, 1, 2)),
}


def stirred(flow, amount=0.05):
    generator = seeded()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return flow


@pytest.mark.parametrize("name", FLOWS)
def test_contract(name, device):
    """Catches a broken promise: inverse, change of variables, rows, files."""
    testing.check_prior(stirred(FLOWS[name]()), device=device)


class Unchanged(Flow):
    """The identity: every x in [0, 1] has the density of whatever z's would be."""

    def __init__(self, image_shape):
        super().__init__(image_shape, Chain([Scaling(image_shape), Flatten(image_shape)]))

    def latent_log_prob(self, z):
        return torch.where((z >= 0) & (z < 1), 0.0, -torch.inf).sum(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_identity_on_uniform_noise_takes_8_bits(channels):
    """Catches a missing constant, wrong bins, three channels assumed, noise of another law."""
    flow = Unchanged((channels, 8, 8))
    x = torch.randint(0, 256, (4, channels, 8, 8), generator=seeded()) / 255
    bits = flow.bits_per_dimension(x, draws=2, generator=seeded(1))
    torch.testing.assert_close(bits, torch.full((4,), 8.0))


def test_more_draws_bring_the_bits_down_to_the_mass():
    """Catches a mean of logarithms in place of the logarithm of a mean."""

    class Steep(Unchanged):
        def latent_log_prob(self, z):  # density 2 in the lower half of each bin
            return torch.where((256 * z) % 1 < 0.5, math.log(2), -torch.inf).sum(1)

    x = torch.full((1, 1, 1, 1), 100 / 255).double()
    flow = Steep((1, 1, 1)).double()
    bits = flow.bits_per_dimension(x, draws=4000, generator=seeded())
    assert bits.item() == pytest.approx(8, abs=5 / math.sqrt(4000))


def digits(n=64, size=8):
    """Images of 256 levels with something to learn: a bright square that moves."""
    x = torch.zeros(n, 1, size, size)
    place = torch.randint(0, size - 3, (n, 2), generator=seeded())
    for image, (i, j) in zip(x, place.tolist(), strict=True):
        image[:, i : i + 3, j : j + 3] = 1
    return (x * 200 + 20 * torch.rand(x.shape, generator=seeded(1))).round() / 255


OPTIONS = TrainingOptions(
    learning_rate=3e-3, warmup=10, precision="fp32", grid=0, progress=False, checkpoint_every=10**6
)


def test_training_learns_and_starts_once():
    """Catches dequantisation left out (bits below 0 soon), and an actnorm that starts anew."""
    flow = Glow((1, 8, 8), depth=2, network=SMALL)
    x = digits()
    before = flow.bits_per_dimension(x, generator=seeded()).mean()
    trained = genprior.train(flow, x, out=None, steps=100, batch_size=16, options=OPTIONS)
    after = trained.bits_per_dimension(x, generator=seeded()).mean()
    # The square's place is log2(25) / 64 bits, its noise log2(21) at each of 64 values.
    least = math.log2(25) / 64 + math.log2(21)
    assert least - 0.2 < after < before - 1
    assert bool(trained.started)
    norm = trained.bijection.layers[1].scales[0].layers[1]
    kept = norm.mean.clone()
    again = genprior.train(trained, 1 - x, out=None, steps=2, batch_size=32, options=OPTIONS)
    assert identical(again.bijection.layers[1].scales[0].layers[1].mean, kept)


def test_training_minimises_the_bits_of_dequantised_images():
    """Catches dequantisation left out of training, or of another width, and a constant missing."""
    flow = stirred(NICE((1, 4, 4), hidden=(8,))).double()
    flow.started.fill_(True)
    x = torch.randint(0, 256, (5, 1, 4, 4), generator=seeded()).double() / 255
    loss, _ = flow.objective().loss(Turn(), x, seeded(1))
    torch.testing.assert_close(loss, flow.bits_per_dimension(x, generator=seeded(1)).mean())
    other, _ = flow.objective().loss(Turn(), x, seeded(2))
    assert abs(loss - other) > 1e-6


def test_training_at_ten_times_the_rate_stays_finite():
    """Catches unbounded scales, which give NaN within two hundred steps."""
    options = TrainingOptions(**{**vars(OPTIONS), "learning_rate": 3e-2, "warmup": 0})
    flow = genprior.train(
        Glow((1, 8, 8), depth=2, network=SMALL),
        digits(),
        out=None,
        steps=200,
        batch_size=16,
        options=options,
    )
    assert all(bool(p.isfinite().all()) for p in flow.parameters())
    x = flow.decode(1.2 * randn(1000, 64, dtype=torch.float32))
    assert x.isfinite().all()
    for images in (x, torch.rand(100, 1, 8, 8, generator=seeded()), digits()):
        found = flow.decode(flow.encode(images))
        torch.testing.assert_close(found, images, atol=1e-4, rtol=0)
    flow, z = flow.double(), 1.2 * randn(100, 64)
    torch.testing.assert_close(flow.encode(flow.decode(z)), z, atol=1e-6, rtol=0)
    x = flow.decode(z)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, atol=1e-10, rtol=0)


def test_a_lower_temperature_is_nearer_to_the_middle():
    """Catches a temperature that scales images, or is not used."""
    flow = stirred(PlanarFlow((1, 1, 2))).double()
    half = flow.sample(5, generator=seeded(), temperature=0.5)
    whole = flow.encode(flow.sample(5, generator=seeded()))
    torch.testing.assert_close(flow.encode(half), 0.5 * whole)


@pytest.mark.parametrize("temperature", [0, -1, 2.1, math.nan, math.inf])
def test_temperatures_out_of_range_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0 and at most 2"):
        PlanarFlow((1, 1, 2)).sample(1, temperature=temperature)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Glow((1, 30, 28)), "multiples of 4, such as 32x28, not 30x28"),
        (lambda: RealNVP((3, 7, 8), levels=3), "multiples of 8, such as 8x8"),
        (lambda: Glow((1, 28, 28), depth=0), "whole numbers of at least 1"),
        (
            lambda: Glow((1, 4, 4), network={"kind": "resnet"}),
            r"network.kind must be one of convolutional, transformer.*not 'resnet'",
        ),
        (lambda: Glow((1, 4, 4), network={"breadth": 3}), "network has no option 'breadth'"),
        (lambda: Glow((1, 4, 4), network={"width": "wide"}), "network.width must be"),
        (lambda: Glow((1, 4, 4), margin=0.7), "margin must be between 0 and .5"),
        (
            lambda: Glow((1, 4, 4), network={"kind": "transformer", "width": 20}),
            "multiple of 32",
        ),
    ],
)
def test_what_cannot_be_built_is_said(make, says):
    """Catches a traceback from within a layer, and one that names no size that works."""
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.full((1, 1, 4, 4), 1.5), r"pixels must lie in \[0, 1\]"),
        (torch.full((1, 1, 4, 4), -0.1), r"pixels must lie in \[0, 1\]"),
        (torch.full((1, 1, 4, 4), 100.4 / 255), "16 values lie between the 256 levels"),
        (torch.zeros(1, 3, 4, 4), "came to a Unchanged for"),
    ],
)
def test_images_that_have_no_bits_are_refused(x, says):
    """Catches bits of images that are no 8-bit images, which mean nothing."""
    with pytest.raises(ValueError, match=says):
        Unchanged((1, 4, 4)).bits_per_dimension(x)


def test_training_on_other_pixels_is_refused():
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        genprior.train(
            NICE((1, 8, 8), hidden=(8,)),
            2 * digits(),
            out=None,
            steps=1,
            batch_size=4,
            options=OPTIONS,
        )


def test_values_between_levels_are_said_to_be_rounded():
    """Would catch images that were dequantised already, rounded without a word."""
    x = digits(8)
    noisy = (255 * x + torch.rand(x.shape, generator=seeded(0))) / 256
    options = TrainingOptions(**{**vars(OPTIONS), "warmup": 1})
    flow = Glow((1, 8, 8), levels=1, depth=1, network=SMALL)
    with pytest.warns(UserWarning, match="lie between the 256 levels"):
        genprior.train(flow, noisy, steps=2, batch_size=4, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        genprior.train(flow, (255 * x).round() / 255, steps=2, batch_size=4, options=options)
