"""The VAEs that ship model images as their data are."""

import pytest
import torch
from tools import seeded
from torch.nn.functional import avg_pool2d

import genprior

PAIRS = {
    "mnist-vae": ("mnist-gaussian", "mnist-diffusion"),
    "mnist-hvae": ("mnist-gaussian", "mnist-diffusion"),
    "fashion-vae": ("fashion-gaussian", "fashion-diffusion"),
    "cats32-vae": ("cats64-gaussian", "cats32-diffusion"),
    "cats32-hvae": ("cats64-gaussian", "cats32-diffusion"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_samples_have_the_datas_mean_and_spread(name):
    """Catches weights of another network, or latents that samples use and the data does not."""
    x = genprior.load(name).sample(200, generator=seeded(1))
    y = genprior.load(PAIRS[name][0]).sample(400, generator=seeded(2))
    if y.shape[-1] == 2 * x.shape[-1]:
        y = avg_pool2d(y, 2)
    size = float(y.std(0).square().mean().sqrt())
    off = float((x.mean(0) - y.mean(0)).square().mean().sqrt())
    assert off < 0.25 * size
    spread = float(x.std(0).square().mean().sqrt())
    assert 0.6 < spread / size < 1.1, "and the decoder's own std is not drawn"


@pytest.mark.parametrize("name", PAIRS)
def test_an_image_comes_back_as_near_as_the_decoder_says(name):
    """Catches an encoder of other weights, and a `decoder_std` that says nothing of images."""
    vae = genprior.load(name)
    x = genprior.load(PAIRS[name][1]).sample(2, steps=18, generator=seeded(3)).clamp(0, 1)
    with torch.no_grad():
        off = float((vae.decode(vae.encode(x)) - x).square().mean().sqrt())
    assert 0.5 < off / float(vae.decoder_std) < 2
