"""A diffusion prior whose network runs in another precision."""

import torch
from tools import identical

from genprior.priors import Diffusion
from genprior.priors.diffusion.unet import UNet


def small() -> Diffusion:
    prior = Diffusion(UNet(1, widths=(8, 16), blocks=(1, 1)), (1, 12, 12))
    generator = torch.Generator().manual_seed(0)
    for parameter in prior.parameters():  # the last layers start at zero
        torch.nn.init.normal_(parameter, 0, 0.1, generator=generator)
    return prior.eval().requires_grad_(False)


def test_autocast_rounds_the_network_and_nothing_else():
    """Catches an attribute that is ignored, and images or noise levels rounded with it."""
    exact, fast = small(), small()
    fast.autocast = torch.bfloat16
    x = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    for sigma in (0.01, 0.3, 5.0):
        a, b = exact.denoise(x, sigma), fast.denoise(x, sigma)
        assert b.dtype == torch.float32
        # F enters as std s / sqrt(1 + s^2) F: its relative error of about 2^-8 shrinks with s.
        s = sigma / 0.5
        network = (a - (x - 0.5) / (1 + s**2) - 0.5).abs().max()
        assert 0 < (a - b).abs().max() < 0.04 * network
    assert identical(fast.denoise(x, 0.0), x)


def test_autocast_serves_guidance():
    """Catches a vector-Jacobian product that fails, or that is another function's."""
    v = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    products = []
    for autocast in (None, torch.bfloat16):
        prior = small()
        prior.autocast = autocast
        x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        products.append(torch.autograd.grad(prior.denoise(x, 0.3), x, v)[0])
    exact, fast = products
    assert fast.dtype == torch.float32
    assert 0 < (fast - exact).norm() < 0.03 * exact.norm()
