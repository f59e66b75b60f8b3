"""What the styles of a style-based GAN do: some levels' from one image, the rest from another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genprior.figures.canvas import Measured, canvas, digits, tiles
from genprior.figures.gan.trained import nearest, seeded
from genprior.figures.gan.training import fit
from genprior.priors import GAN

NETWORK = {"kind": "style", "widths": [64, 32]}
LOSS = {"kind": "non-saturating", "r1": 0.1, "lazy": 4}
LATENT = 32
BATCH = 64
TRUNCATIONS = (0.25, 0.5, 0.75, 1.0)
SOURCES = 6


def styles(data: str | None, seed: int, full: bool) -> Measured:
    """Train a style-based GAN on digits of 14x14; draw mixed and truncated styles."""
    x = F.avg_pool2d(digits(data, "train"), 2)
    gan = style_gan(x, steps=20_000 if full else 2000, seed=seed)
    figure = canvas(9, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    tiles(left, mixed(gan, seed), 1 + SOURCES)
    left.set_title("fine styles of the first row, coarse styles of the first column", fontsize=8)
    rows, shown = [], []
    for truncation in TRUNCATIONS:
        samples = gan.sample(500, generator=seeded(seed), truncation=truncation)
        shown.append(samples[:8])
        rows.append(
            {
                "truncation": truncation,
                "spread": float(torch.pdist(samples.flatten(1)).mean())
                / float(torch.pdist(x[:500].flatten(1)).mean()),
                "nearest": float(nearest(samples, x[:10_000])[0].median()),
            }
        )
    tiles(right, torch.cat(shown), 8)
    right.set_title("the same draws, truncation in w .25, .5, .75, 1", fontsize=8)
    return Measured(figure, rows)


def style_gan(x: Tensor, *, steps: int, seed: int) -> GAN:
    """Train a style-based GAN."""
    shape = (x.shape[1], x.shape[2], x.shape[3])
    gan = GAN(shape, LATENT, network=NETWORK, loss=LOSS, seed=seed)
    return fit(gan, x, 1e-3, steps=steps, batch=BATCH, seed=seed, cooldown=0.5)


def mixed(gan: GAN, seed: int) -> Tensor:
    """Return a table of images ((1 + n)^2, C, H, W): sources along its edges, mixtures inside."""
    coarse, fine = torch.randn(2, SOURCES, *gan.latent_shape, generator=seeded(seed))
    with torch.no_grad():
        top, side = gan.decode(fine), gan.decode(coarse)
        inside = gan.mix(
            coarse.repeat_interleave(SOURCES, 0), fine.repeat(SOURCES, 1), level=1
        ).unflatten(0, (SOURCES, SOURCES))
    blank = torch.ones_like(top[:1])
    lines = [torch.cat([own[None], line]) for own, line in zip(side, inside, strict=True)]
    return torch.cat([blank, top, *lines])
