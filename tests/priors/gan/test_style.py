"""The style-based generator: its convolution by hand, mixing, truncation, and the space of w."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tools import identical, seeded

from genprior.operators.random import Shared, normal
from genprior.priors import GAN, testing
from genprior.priors.gan.style import Modulated

NETWORK = {
    "kind": "style", "widths": [16, 8, 8], "mapping": 2, "styles": 6, "group": 8
}  # fmt: skip


def draw(*shape, seed):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def gan(**options):
    """A small one in float64 whose noise and biases count."""
    found = GAN((1, 8, 8), 5, network={**NETWORK, **options}).double()
    with torch.no_grad():
        for name, p in found.named_parameters():
            if name.endswith("strength"):
                p.fill_(0.3)
    return found.requires_grad_(False)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_modulated_convolution_by_hand(normalised):
    """Catches a style on the wrong channels, a norm over the wrong weights, and rows that share
    one style."""
    with torch.random.fork_rng():
        layer = Modulated(3, 4, 6, normalised=normalised).double()
    x, w = draw(2, 3, 5, 5, seed=1), draw(2, 6, seed=2)
    for image, style, found in zip(x, w, layer(x, w), strict=True):
        weight = layer.weight * layer.scales(style)[None, :, None, None]
        if normalised:
            weight = torch.stack([one / one.norm() for one in weight])
        expected = F.conv2d(image[None], weight, padding=1)[0]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert layer.scales.bias.tolist() == [1] * 3


def test_an_image_follows_from_its_latent():
    """Catches noise drawn in `decode`, noise that does nothing, and a length of z that counts."""
    prior, z = gan(), draw(3, 5, seed=1)
    x = prior.decode(z)
    assert identical(x, prior.decode(z))
    torch.testing.assert_close(prior.decode(3 * z), x, atol=1e-6, rtol=0)
    still = copy.deepcopy(prior)
    for name, buffer in still.generator.named_buffers():
        assert name.endswith("noise")
        buffer.zero_()
    assert float((still.decode(z) - x).abs().mean()) > 1e-3


def test_training_mixes_styles_and_draws_noise():
    """Catches styles that swap places, a share of mixed images that is not asked for, the same
    noise each time, and draws that depend on how a batch is cut."""
    z = draw(400, 5, seed=1)
    prior = gan(mixing=0.5)
    for name, p in prior.named_parameters():
        if name.endswith("strength"):
            p.zero_()
    other = normal(z.shape, seeded(2), dtype=z.dtype)
    found = prior.generator.training_images(z, seeded(2))
    kinds = torch.stack([prior.mix(z, other, 1), prior.mix(z, other, 2), prior.decode(z)])
    same = (kinds - found).flatten(2).abs().amax(2) < 1e-12
    assert bool((same.sum(0) == 1).all())
    shares = same.double().mean(1)
    expected = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, atol=5 * (0.25 / 400) ** 0.5, rtol=0)
    noisy = gan()
    a, b = (noisy.generator.training_images(z[:40], seeded(s)) for s in (2, 3))
    assert float((a - b).abs().mean()) > 1e-3
    rows = [Shared.seeded(2, first=k, count=20, whole=40) for k in (0, 20)]
    parts = [
        noisy.generator.training_images(part, row)
        for part, row in zip(z[:40].split(20), rows, strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), a)


def test_truncation_draws_styles_towards_their_mean():
    """Catches a truncation of z, which a normalised z undoes, and a mean of something else."""
    prior = gan()
    whole, half, none = (
        prior.sample(6, truncation=t, generator=seeded(1)) for t in (1.0, 0.5, 1e-6)
    )
    z = normal((6, 5), seeded(1), dtype=torch.float64)
    assert identical(whole, prior.decode(z))
    generator = prior.generator
    typical = draw(50_000, 5, seed=3)
    mean = generator.style(typical).mean(0)
    middle = generator.synthesis(generator.everywhere(mean[None]))
    torch.testing.assert_close(none, middle.expand_as(none), atol=6e-3, rtol=0)
    w = 0.5 * (generator.style(z) + mean)
    expected = generator.synthesis(generator.everywhere(w))
    torch.testing.assert_close(half, expected, atol=6e-3, rtol=0)
    assert float((half - whole).abs().mean()) > 0.01


MAPPED = {"kind": "dcgan", "widths": [8, 4], "mapping": 2, "styles": 6, "hidden": 4}


@pytest.mark.parametrize("network", [NETWORK, MAPPED], ids=["style", "dcgan"])
def test_the_space_of_styles_is_white(network):
    """Catches a covariance for its root, a root the wrong way round, a latent of z, and a view
    that moves the GAN or forgets its spread."""
    prior = gan() if network is NETWORK else GAN((1, 8, 8), 5, network=network).double().eval()
    prior._decoder_std = 0.07
    space = prior.space("w")
    assert prior.space("z") is prior
    assert (space.image_shape, space.latent_shape, space.decoder_std) == ((1, 8, 8), (6,), 0.07)
    z = draw(20_000, 5, seed=4)
    w = prior.generator.style(z)
    v = torch.linalg.solve(space.factor, (w - space.mean).T).T
    torch.testing.assert_close(v.mean(0), torch.zeros(6).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(v.T.cov(), torch.eye(6).double(), atol=0.06, rtol=0)
    torch.testing.assert_close(space.decode(v[:3]), prior.decode(z[:3]))
    space.float()
    assert prior.decode(z[:1]).dtype == next(prior.parameters()).dtype == torch.float64
    testing.check_prior(space)


def test_what_needs_styles_says_so():
    plain = GAN((1, 8, 8), 5, network={"kind": "perceptron", "hidden": [16]})
    z = torch.zeros(1, 5)
    assert plain.space("z") is plain
    with pytest.raises(ValueError, match="space w needs a GAN whose network has a map"):
        plain.space("w")
    with pytest.raises(ValueError, match="mix needs a GAN of network kind style"):
        plain.mix(z, z, 1)
    with pytest.raises(ValueError, match="'z' and 'w', not 'w\\+'"):
        plain.space("w+")
    for level in (0, 3, -1):
        with pytest.raises(ValueError, match=f"level must be 1 to 2, not {level}"):
            gan().mix(z, z, level)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mapping": 0}, "mapping must be whole numbers of at least 1"),
        ({"styles": 0}, "styles must be whole numbers"),
        ({"blocks": 0}, "blocks must be whole numbers"),
        ({"group": 0}, "group must be whole numbers"),
        ({"mixing": 1.5}, "mixing must be 0 to 1"),
        ({"mixing": float("nan")}, "network.mixing must be a finite number"),
        ({"widths": []}, "widths must name one level"),
        ({"widths": [8] * 5}, "cannot be halved 4 times"),
        ({"hidden": [8]}, "network has no option 'hidden'"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        GAN((1, 8, 8), 5, network={**NETWORK, **options})
