"""The GANs that ship make images as the data are."""

import pytest
from tools import seeded
from torch.nn.functional import avg_pool2d

import genprior
from genprior.operators import GaussianNoise, Identity, Problem
from genprior.solvers import LatentMAP

PAIRS = {
    "mnist-gan": "mnist-gaussian",
    "mnist-wgan": "mnist-gaussian",
    "fashion-gan": "fashion-gaussian",
    "cats32-gan": "cats64-gaussian",
}


@pytest.mark.parametrize("name", PAIRS)
def test_samples_have_the_datas_mean_and_spread(name):
    """Catches weights of another network or step, statistics that fit none, and a collapse."""
    gan, data = genprior.load(name), genprior.load(PAIRS[name])
    x = gan.sample(400, generator=seeded(1))
    y = data.sample(400, generator=seeded(2))
    if y.shape[-1] == 2 * x.shape[-1]:
        y = avg_pool2d(y, 2)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    size = float(y.std(0).square().mean().sqrt())
    apart = float((x.mean(0) - y.mean(0)).square().mean().sqrt())
    assert apart < 0.25 * size
    assert 0.85 < float(x.std(0).square().mean().sqrt()) / size < 1.2
    assert 0.05 < gan.decoder_std < 0.15


def test_a_digit_is_near_its_range():
    """Catches a `decoder_std` that says nothing of real images."""
    gan = genprior.load("mnist-gan")
    x = genprior.load("mnist-diffusion").sample(1, steps=18, generator=seeded(3)).clamp(0, 1)
    problem = Problem.simulate(x, Identity((1, 28, 28)), GaussianNoise(0.1), generator=seeded(4))
    found = LatentMAP(restarts=8, steps=100)(problem, gan, generator=seeded(5))
    assert 0.5 < float(found.trace["residual"][-1]) < 1.5
    noisy = float((problem.y - x).square().mean())
    assert float((found.mean - x).square().mean()) < 0.7 * noisy
