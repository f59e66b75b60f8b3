"""Rectangular flows: densities on planes and curves in closed form, and learned ones."""

import math

import pytest
import torch
from tools import randn, seeded

from genprior.priors import RectangularFlow, Turn, testing

FLOW = {"couplings": 2, "hidden": [8]}


def small(shape=(1, 1, 5), latent_size=2, names=""):
    """A flow in float64 with parameters moved whose names end so."""
    flow = RectangularFlow(shape, latent_size, flow=FLOW).double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(flow.flow.named_parameters()):
            if name.endswith(names):
                parameter += 0.2 * randn(*parameter.shape, seed=i + 10)
    return flow


def test_contract(device):
    """Catches broken promises: purity, row independence, files, devices, generators."""
    flow = small((2, 1, 3))
    testing.check_prior(flow, device=device)
    z = randn(4, 2)
    torch.testing.assert_close(flow.encode(flow.decode(z)), z)


def test_a_linear_embedding_is_a_gaussian_on_a_plane():
    """Catches a factor of the log-volume, and a density with respect to z's volume or x's."""
    flow = small(names=("bias", "log_scale", "lower", "upper"))  # couplings scale and shift only
    z = randn(6, 2)
    c = flow.decode(torch.zeros(1, 2).double()).flatten()
    a = flow.decode(torch.eye(2).double()).flatten(1) - c  # the rows span the plane
    x = flow.decode(z)
    torch.testing.assert_close(x.flatten(1), z @ a + c)
    q = torch.linalg.qr(a.T).Q  # orthonormal axes in the plane
    law = torch.distributions.MultivariateNormal(torch.zeros(2).double(), q.T @ a.T @ a @ q)
    torch.testing.assert_close(flow.log_prob(x), law.log_prob((x.flatten(1) - c) @ q))


class Helix(RectangularFlow):
    """x = (2 cos t, 2 sin t, t / 2) with t uniform in (-pi, pi): density 1 / length of arc."""

    def decode(self, z):
        t = 2 * math.pi * (torch.special.ndtr(z[:, 0]) - 0.5)
        return torch.stack((2 * t.cos(), 2 * t.sin(), t / 2), 1)[:, None, None]

    def encode(self, x):
        return torch.special.ndtri(x[:, 0, 0, 2:] / math.pi + 0.5)


def test_a_helix_with_uniform_density():
    """Catches a Jacobian of the wrong map, or that is not taken at z."""
    helix = Helix((1, 1, 3), 1)
    x = helix.decode(randn(7, 1))
    length = 2 * math.pi * math.sqrt(2**2 + 0.5**2)
    expected = torch.full((7,), -math.log(length)).double()
    torch.testing.assert_close(helix.log_prob(x), expected)


def test_the_volume_of_a_curved_surface():
    """Catches derivatives that miss a layer; and every parameter must learn from the volume."""
    flow = small((1, 2, 3), 3)
    z = randn(4, 3)
    found = flow.log_volume(z)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(flow.decode, z[i : i + 1]).view(6, 3)  # type: ignore[union-attr]
        torch.testing.assert_close(found[i], torch.linalg.svdvals(jacobian).log().sum())
    found.sum().backward()
    for name, parameter in flow.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.any())
        assert learns or name.endswith("0.network.layers.5.bias"), name


def test_training_weighs_distance_and_density():
    """Catches a wrong sign or weight in the loss,."""
    flow = Helix((1, 1, 3), 1, std=0.2)
    near = flow.decode(randn(5, 1))
    away = 0.1 * near * torch.tensor([1, 1, 0])  # .2 from the helix, along its radius
    loss, _ = flow.objective().loss(Turn(), near + away, seeded())
    expected = 0.2**2 / (2 * 0.2**2) + math.log(2 * math.pi * math.sqrt(2**2 + 0.5**2))
    assert loss.item() == pytest.approx(expected / 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RectangularFlow((1, 1, 3), 4), "between 1 and the image's 3"),
        (lambda: RectangularFlow((1, 1, 3), 1, std=0.0), "std"),
        (lambda: RectangularFlow((1, 1, 3), 1, flow={"depth": 1}), "no option 'depth'"),
        (lambda: small().encode(torch.zeros(2, 1, 1, 4)), "images of shape"),
    ],
)
def test_bad_input_is_refused(make, match):
    """Catches arguments that fail late or silently."""
    with pytest.raises(ValueError, match=match):
        make()
