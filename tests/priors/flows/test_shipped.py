"""The shipped flows, after training: inverses, and a density that knows its images."""

import pytest
import torch
from tools import seeded

import genprior
from genprior.pretrained import available

FLOWS = [name for name in available() if name.endswith(("-glow", "-realnvp"))]


@pytest.fixture(scope="module", params=FLOWS)
def flow(request):
    return genprior.load(request.param).requires_grad_(False)


def places(flow):
    """Where an inverse is asked for: draws of the prior, wider draws, and white noise."""
    z = torch.randn(4, *flow.latent_shape, generator=seeded(0), dtype=torch.float64)
    noise = torch.rand(4, *flow.image_shape, generator=seeded(1), dtype=torch.float64)
    return {"draws": flow.decode(z), "wide": flow.decode(1.2 * z), "noise": noise}


def test_inverse_after_training(flow):
    """Would catch scales that training made too large to undo, far from the data too."""
    flow = flow.double()
    for what, x in places(flow).items():
        assert bool(x.isfinite().all()), what
        again = flow.decode(flow.encode(x))
        assert float((again - x).abs().max()) < 1e-10, what
    single = flow.float()
    for what, x in places(single).items():
        again = single.decode(single.encode(x.float()))
        assert float((again - x).abs().max()) < 1e-4, what


def test_density_knows_its_images(flow):
    """Would catch weights of another flow, or halved so coarsely that the density is lost."""
    drawn = flow.sample(4, generator=seeded(2)).clamp(0, 1)
    noise = torch.rand(4, *flow.image_shape, generator=seeded(1))
    levels = [(255 * x).round() / 255 for x in (drawn, noise)]
    own, other = (flow.bits_per_dimension(x, generator=seeded(3)) for x in levels)
    assert float(own.max()) < 6
    assert float(other.min()) > float(own.max()) + 2
