"""The diffusion prior: pixel units, sigma at its edges, the network, latents and likelihood."""

import math
import warnings

import pytest
import torch
from tools import close, identical
from torch import nn

from genprior.commands.run import begin_with
from genprior.operators.base import per_row
from genprior.operators.random import normal
from genprior.priors import Diffusion, Gaussian, GaussianMixture, interpolate, testing
from genprior.priors.diffusion import tiles
from genprior.priors.diffusion.likelihood import log_prob_estimate
from genprior.priors.diffusion.parametrisations import DDPM, EDM, FlowMatching
from genprior.priors.diffusion.tiles import in_tiles
from genprior.priors.diffusion.unet import UNet

MEAN, STD = 0.3, 0.2


class Scale(nn.Module):
    """For EDM a network of zeros is exact for white images of the data's mean and std."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, u, noise):
        return self.weight * u


def white(shape=(1, 3, 2)):
    return Diffusion(Scale(), shape, data_mean=MEAN, data_std=STD).double()


def tiny(objective=None, shape=(1, 6, 6), *, seed=0, **options):
    """A small prior with every weight random, those that start at zero too."""
    options = {"widths": (8, 8), "blocks": (1, 1), **options}
    prior = Diffusion(UNet(shape[0], **options), shape, objective=objective, data_std=STD)
    generator = torch.Generator().manual_seed(seed)
    for weight in prior.parameters():
        weight.data = 0.2 * normal(weight.shape, generator) if weight.ndim else weight.data
    return prior.eval()


def fresh(**options):
    """A prior whose training has not begun."""
    return Diffusion(UNet(1, **options), (1, 6, 6), data_std=STD)


def noisy(batch=3, shape=(1, 6, 6), dtype=torch.float64):
    return 0.5 + 0.3 * normal((batch, *shape), torch.Generator().manual_seed(5), dtype=dtype)


def test_denoise_is_in_pixel_units():
    """Would catch a mean, std or sigma in another unit: white images have a closed form."""
    x = noisy(4, (1, 3, 2))
    sigma = torch.tensor([0.002, 0.05, 0.4, 6.0], dtype=torch.float64)
    gain = STD**2 / (STD**2 + per_row(sigma, x) ** 2)
    got = white().denoise(x, sigma)
    assert torch.allclose(got, MEAN + gain * (x - MEAN), rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", [EDM(), DDPM(), FlowMatching()], ids=lambda o: type(o))
def test_sigma_zero_and_rows(objective, device):
    """Would catch NaN at sigma 0, in gradients too, and rows that share their sigma."""
    prior = tiny(objective).to(device)
    x = noisy(dtype=torch.float32).to(device).requires_grad_(True)
    sigma = torch.tensor([0.0, 0.05, 1.0], device=device)
    together = prior.denoise(x, sigma)
    assert identical(together[0], x[0])
    for i in range(3):
        alone = prior.denoise(x[i : i + 1], sigma[i].item())
        assert torch.allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(together.sum(), x)
    assert identical(slope[0], torch.ones_like(slope[0]))
    assert slope.isfinite().all()
    assert identical(prior.denoise(x, 0.0), x)


def test_sigma_outside_the_trained_range():
    """Would catch NaN or silence there, and a warning for every step of a walk."""
    prior = tiny()
    low, high = prior.sigma_range
    assert (low, high) == pytest.approx((0.004 * STD, 160 * STD))
    x = noisy(2)
    with pytest.warns(UserWarning, match="outside the trained range"):
        far = prior.denoise(x, 100 * high)
    assert far.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = prior.denoise(x, low / 100)
    # What is right there: with hardly any noise the image itself.
    assert (near - x).abs().max() < 1e-3
    for bad in (-0.1, math.nan, torch.tensor([0.1, -0.2]), torch.full((3,), 0.1)):
        with pytest.raises(ValueError, match="sigma"):
            prior.denoise(x, bad)


def test_wrong_images_are_refused():
    """Would catch a broadcast of grey to colour, or of another size, deep in the network."""
    with pytest.raises(ValueError, match=r"\(2, 3, 6, 6\).*\(B, 1, 6, 6\)"):
        tiny().denoise(noisy(2, (3, 6, 6)), 0.1)
    with pytest.raises(ValueError, match=r"size=\(H, W\)"):
        tiny(shape=(1, None, None)).sample(1)


def test_float64_through_a_float32_network():
    """Would catch normalisation in float32: near sigma 0 the skip path must be exact."""
    x = noisy()
    sigma = 1e-3
    got = tiny().denoise(x, sigma)
    assert got.dtype == torch.float64
    exact = tiny().double().denoise(x, sigma)
    assert (got - exact).abs().max() < 1e-8


@pytest.mark.parametrize("attention", [False, True])
def test_every_weight_of_the_network_matters(attention):
    """Would catch a block, a skip connection or an embedding that is left out of forward."""
    network = tiny(attention=attention).network
    out = network(noisy(dtype=torch.float32), torch.tensor([-1.0, 0.0, 1.0]))
    out.square().sum().backward()
    for name, weight in network.named_parameters():
        # Keys shift every score of a query alike, so their bias alone may have no effect.
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 1e-7, name


@pytest.mark.parametrize(
    ("blocks", "attention"), [((2, 1), False), ((1, 3), False), ((1, 1), True), ((2, 2), True)]
)
def test_a_deeper_network_begins_as_the_trained_one(blocks, attention, tmp_path):
    """Would catch a layer that does not start as nothing, or weights that are not taken over."""
    path, trained = str(tmp_path / "trained.safetensors"), tiny()
    trained.save(path)
    deeper = fresh(widths=(8, 8), blocks=blocks, attention=attention)
    begin_with(deeper, path)
    # `tiny` lays weights otherwise than a loaded network (`channels_last`), so sums run in another
    # order: ten layers with sums of up to 16 * 9 terms, of which the root of each counts.
    x = noisy(dtype=torch.float32)
    close(deeper.denoise(x, 0.3), trained.denoise(x, 0.3), ulps=120)
    for options in ({"widths": (8, 16), "blocks": blocks}, {"widths": (8,), "blocks": (1,)}):
        with pytest.raises(ValueError, match="cannot start from"):
            begin_with(fresh(**options), path)
    deeper.save(path)
    with pytest.raises(ValueError, match="cannot start from"):
        begin_with(fresh(widths=(8, 8), blocks=(1, 1)), path)


def test_network_is_local():
    """Would catch normalisation over the image: a crop is denoised as the whole is."""
    network = tiny(shape=(3, None, None)).network
    x = noisy(1, (3, 96, 96), torch.float32)
    noise = torch.zeros(1)
    crop = network(x[..., 16:80, 24:88], noise)[..., 28:36, 28:36]
    whole = network(x, noise)[..., 44:52, 52:60]
    assert torch.allclose(crop, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_tiles_change_nothing(levels):
    """Would catch seams: too little margin, or tiles off the network's grid; gradients too."""
    network = tiny(shape=(3, None, None), widths=(8,) * levels, blocks=(2,) * levels).network
    x = noisy(1, (3, 101, 167)).float().requires_grad_(True)

    def evaluate(part):
        return network(part, torch.zeros(1))

    whole = evaluate(x)
    tiled = in_tiles(evaluate, x, reach=network.reach, multiple=network.multiple, tile=40)
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-4 * whole.abs().max().item())
    slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (whole, tiled)]
    assert torch.allclose(*slopes, rtol=0, atol=1e-4 * slopes[0].abs().max().item())
    # The reach is no wider than it must be: a little less shows.
    short = in_tiles(evaluate, x, reach=network.reach // 3, multiple=network.multiple, tile=40)
    assert (short - whole).abs().max() > 1e-3 * whole.abs().max()


def test_large_images_go_in_tiles(monkeypatch):
    """Would catch a prior that runs out of memory on a photo that is larger than it allows."""
    prior, x = tiny(shape=(3, None, None)), noisy(1, (3, 120, 90))
    whole = prior.denoise(x, 0.2)
    sizes = []
    prior.network.entrance.register_forward_hook(lambda *a: sizes.append(a[2].shape[-2:].numel()))
    monkeypatch.setattr(tiles, "PIXELS", 5000)
    monkeypatch.setitem(in_tiles.__kwdefaults__, "tile", 32)
    assert torch.allclose(prior.denoise(x, 0.2), whole, atol=1e-5)
    assert 4 * max(sizes) < 120 * 90


@pytest.mark.parametrize("size", [(28, 28), (7, 9), (1, 5)])
def test_any_size_goes_through(size):
    """Would catch padding that shifts the image: at tiny sigma the output is the input."""
    prior = tiny(shape=(1, *size))
    x = noisy(2, (1, *size))
    assert (prior.denoise(x, prior.sigma_range[0]) - x).abs().max() < 0.02
    assert prior.network(x.float(), torch.zeros(2)).shape == x.shape


def test_latents_of_white_images():
    """Would catch a latent that is not standard normal, or an encoder that is not its inverse."""
    prior = white()
    z = normal((5, 1, 3, 2), torch.Generator().manual_seed(0), dtype=torch.float64)
    x = prior.decode(z)
    # The probability flow of N(m, s^2) is a scaling about m.
    assert torch.allclose(x, MEAN + STD * z, rtol=0, atol=2e-3)
    assert torch.allclose(prior.encode(x), z, rtol=0, atol=1e-3)


def test_interpolation_keeps_the_law():
    """Would catch a straight line between latents, whose middle is too dull by sqrt(2)."""
    prior = white((1, 8, 8))
    a, b = prior.sample(400, generator=torch.Generator().manual_seed(2), steps=40).split(200)
    path = interpolate(prior, a, b, steps=3)
    assert torch.allclose(path[:, 0], a, atol=2e-3)
    assert torch.allclose(path[:, 2], b, atol=2e-3)
    middle = (path[:, 1] - MEAN) / STD
    assert (middle.std() - 1).abs() < 5 / (2 * middle.numel()) ** 0.5 + 5e-3
    same = interpolate(prior, a[:2], a[:2], steps=3)
    assert torch.allclose(same[:, 1], a[:2], atol=2e-3)
    network_only = GaussianMixture(torch.ones(1), torch.zeros(1, 1, 8, 8), torch.eye(64)[None])
    with pytest.raises(TypeError, match="GaussianMixture has none"):
        interpolate(network_only, a, b)


def test_samples_have_the_law_of_the_prior():
    """Would catch a start without the data's spread, and draws that depend on the batch."""
    prior = white()
    x = prior.sample(4000, generator=torch.Generator().manual_seed(1), steps=40)
    count = x.numel()
    assert (x.mean() - MEAN).abs() < 5 * STD / count**0.5
    assert (x.std() / STD - 1).abs() < 5 / (2 * count) ** 0.5 + 2e-3
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    together = prior.sample(3, generator=seeds)
    alone = prior.sample(1, generator=[torch.Generator().manual_seed(2)])
    assert torch.allclose(together[2:], alone, rtol=0, atol=1e-12)


def test_likelihood_of_a_gaussian():
    """Would catch a sign, a factor d, or a missing start term in the estimate."""
    generator = torch.Generator().manual_seed(0)
    factors = 0.2 * normal((3, 1, 2, 3), generator, dtype=torch.float64)
    mean = torch.full((1, 2, 3), 0.5, dtype=torch.float64)
    prior = Gaussian(mean, factors, residual=0.1)
    x = prior.sample(8, generator=generator)
    # Of 64 estimates the spread is known to 9 %; of few, 5 standard errors are often passed.
    repeated = x.repeat(64, 1, 1, 1)
    estimates = log_prob_estimate(prior, repeated, steps=80, generator=generator).view(64, 8)
    smoothed = Gaussian(mean, factors, residual=math.hypot(0.1, prior.sigma_range[0]))
    error = estimates.mean(0) - smoothed.log_prob(x)
    spread = estimates.std(0) / 64**0.5
    assert (error.abs() < 5 * spread + 0.03).all()


def test_save_and_load(tmp_path):
    """Would catch options of network or objective that a file forgets."""
    prior = tiny(FlowMatching(s_range=(0.01, 50.0)), attention=True)
    prior.save(tmp_path / "prior.safetensors")
    again = Diffusion.load(tmp_path / "prior.safetensors").eval()
    assert again.config == prior.config
    expected = prior.denoise(noisy(), 0.3)
    assert torch.allclose(again.denoise(noisy(), 0.3), expected, rtol=0, atol=1e-6)


def test_from_images_measures_the_data():
    """Would catch a spread about zero, or statistics per image instead of per pixel."""
    generator = torch.Generator().manual_seed(0)
    images = (
        torch.rand(50, 3, 4, 4, generator=generator) * torch.tensor([1, 0.5, 0.1])[:, None, None]
    )
    prior = Diffusion.from_images(images, network={"widths": (8,), "blocks": (1,)})
    mean = images.double().mean((0, 2, 3))
    assert torch.allclose(prior.data_mean.flatten().double(), mean, atol=1e-4)
    spread = (images - mean.float()[:, None, None]).square().mean().sqrt()
    assert prior.data_std.item() == pytest.approx(spread.item(), rel=1e-3)
    with pytest.raises(ValueError, match="no image"):
        Diffusion.from_images([])


@pytest.mark.parametrize("objective", [EDM(), FlowMatching()], ids=["edm", "flow"])
def test_contract(objective, device):
    """Would catch any broken promise of the contract that all priors share."""
    testing.check_prior(tiny(objective, (1, 4, 4), attention=True).double(), device=device)


def test_contract_at_any_size(device):
    """Would catch a promise that only holds where the size is fixed."""
    testing.check_prior(tiny(shape=(3, None, None)).double(), size=(4, 6), device=device)
