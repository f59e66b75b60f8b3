"""Views of real and generated images: against loops, in their shares, and where they count."""

import numpy as np
import pytest
import torch
from tools import identical, seeded
from torch import nn

from genprior.operators.random import Shared, uniform
from genprior.priors import GAN, Turn
from genprior.priors.gan.augmentation import augmented


def view(x, u):
    """Return one image (C, 8, 16) in other colours, moved, and with a hole, pixel by pixel."""
    _, down, right, _, row, column, colour, brightness, saturation, contrast = u
    if colour < 0.5:
        x = x + (brightness - 0.5) / 2
        x = x.mean(0) + 2 * saturation * (x - x.mean(0))
        x = x.mean() + (0.5 + contrast) * (x - x.mean())
    seen = np.zeros_like(x)
    down, right = int(down * 3) - 1, int(right * 5) - 2
    for i in range(8):
        for j in range(16):
            cut = -2 <= i - int(row * 9) < 2 and -4 <= j - int(column * 17) < 4
            if 0 <= i + down < 8 and 0 <= j + right < 16 and not cut:
                seen[:, i, j] = x[:, i + down, j + right]
    return seen


def test_views_against_loops():
    """Catches an axis mixed up, a shift or a hole of another size, colours of another range, and
    an image that gets another's draw."""
    x = torch.rand(20, 3, 8, 16, generator=seeded(1), dtype=torch.float64)
    u = uniform((20, 10), seeded(2), dtype=torch.float64)
    assert 5 < int((u[:, 6] < 0.5).sum()) < 15
    found = augmented(x, 1.0, seeded(2))
    for image, draw, expected in zip(x.numpy(), u.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(view(image, draw), expected, atol=1e-12)


def test_views_in_their_shares():
    """Catches a probability that is not asked for, and draws that depend on how a batch is cut."""
    x = 0.2 + 0.6 * torch.rand(4000, 1, 8, 8, generator=seeded(1))
    found = augmented(x, 0.3, seeded(2))
    whole = (found == x).flatten(1).all(1).float().mean()
    # Moved by 0 pixels: a ninth; a hole is always seen.
    expected = (1 - 0.3 * 8 / 9) * 0.7 * 0.85
    assert float(whole) == pytest.approx(expected, abs=5 * (0.25 / 4000) ** 0.5)
    rows = [Shared.seeded(2, first=k, count=2000, whole=4000) for k in (0, 2000)]
    parts = [augmented(part, 0.3, row) for part, row in zip(x.split(2000), rows, strict=True)]
    assert identical(torch.cat(parts), augmented(x, 0.3, seeded(2)))
    assert augmented(x[:, :, :1, :2], 1.0, seeded(2)).shape == (4000, 1, 1, 2)


class Witness(nn.Module):
    """A critic that keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.shown = []

    def forward(self, x):
        self.shown.append(x)
        return self.weight * x.square().flatten(1).mean(1)


def test_the_critic_sees_views_alone():
    """Catches real images or generated ones that are shown as they are (the generator would learn
    to make views), penalties elsewhere, and a view that no gradient passes."""
    loss = {"kind": "relativistic", "augment": 1.0, "r1": 2.0}
    gan = GAN((1, 8, 8), 5, network={"kind": "perceptron", "hidden": [16]}, loss=loss)
    objective = gan.objective()
    objective.critic = witness = Witness()
    real = torch.rand(6, 1, 8, 8, generator=seeded(5))
    for group in ("critic", "generator"):
        value, logs = objective.loss(Turn(group, 1, 0), real, seeded(1))
        assert all(float((x == 0).float().mean()) > 0.05 for x in witness.shown)
        if group == "critic":
            slope = 2 * witness.shown[0] / 64
            penalty = slope.square().flatten(1).sum(1).mean()
            torch.testing.assert_close(logs["penalty"], penalty.detach())
            assert identical(witness.shown[0], witness.shown[2])
    gradients = torch.autograd.grad(value, list(gan.parameters()))
    assert all(float(g.abs().max()) > 0 for g in gradients)


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"loss\.augment must be 0 to 1"):
        GAN((1, 8, 8), 5, loss={"augment": probability})
