"""The forward and the reverse process, on points and on digits
=============================================================

The command::

    python examples/diffusion_process.py [--out diffusion_process.png]

draws a spiral of points and four digits: noise is added to them from left to right, and taken away
from right to left. After Figures 1 and 3 of Sohl-Dickstein et al. 2015, arXiv:1503.03585. The
spiral is a mixture of many narrow normals, so its denoiser is exact; the digits are those of
mnist-diffusion.

.. image:: /pictures/examples/diffusion_process.png
   :alt: a spiral and digits, noised and denoised
"""

# sphinx_gallery_thumbnail_path = 'pictures/examples/diffusion_process.png'

from __future__ import annotations

import argparse
import math

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import genprior
from genprior.priors import DenoisingPrior, GaussianMixture, samplers

SHOWN = (1.0, 0.6, 0.4, 0.25, 0.0)
"""Where along the walk the panels stand, from the image to the noise."""

STEPS = 60


def spiral(components: int = 240) -> GaussianMixture:
    """Points (1, 1, 2) along a spiral of a turn and a half."""
    turn = 3 * math.pi * torch.linspace(0.15, 1, components, dtype=torch.float64).sqrt()
    radius = 0.1 * turn
    points = torch.stack([radius * turn.cos(), radius * turn.sin()], dim=1)
    return GaussianMixture.low_rank(
        torch.ones(components, dtype=torch.float64) / components,
        points.reshape(-1, 1, 1, 2),
        torch.zeros(components, 0, 1, 1, 2, dtype=torch.float64),
        torch.full((components,), 0.02, dtype=torch.float64),
    )


def processes(prior: DenoisingPrior, n: int) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """Run both ways.

    Returns:
        The noise levels shown, small to large, the images noised to each, and the images that a
        walk from noise passes at each.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = samplers.walk_range(prior)
    x0 = prior.sample(n, generator=generator)
    sigmas = samplers.log_uniform(min(high, 5.0), low, STEPS, like=x0)
    start = samplers.start(prior, tuple(x0.shape), sigmas[0], generator=generator, dtype=x0.dtype)
    passed: list[Tensor] = []
    samplers.DDPM()(
        prior.denoise,
        start,
        sigmas,
        generator=generator,
        callback=lambda step, sigma, x, x0: passed.append(x),
    )
    chosen = [round(share * (STEPS - 1)) for share in SHOWN]
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return (
        [sigmas[i].item() for i in chosen],
        [x0 + sigmas[i] * noise for i in chosen],
        [passed[i] for i in chosen],
    )


def draw_points(axes: list, clouds: list[Tensor]) -> None:
    for panel, cloud in zip(axes, clouds, strict=True):
        x, y = cloud.reshape(-1, 2).T
        spread = max(1.2, 2.5 * cloud.std().item())
        panel.scatter(x, y, s=1.5, color="black", linewidths=0)
        panel.set(xlim=(-spread, spread), ylim=(-spread, spread), aspect="equal")


def draw_images(axes: list, batches: list[Tensor]) -> None:
    for panel, batch in zip(axes, batches, strict=True):
        rows = batch.clamp(0, 1).reshape(2, 2, *batch.shape[-2:])
        panel.imshow(torch.cat([torch.cat(list(r), 1) for r in rows]), cmap="gray", vmin=0, vmax=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="diffusion_process.png")
    options = parser.parse_args()
    figure = Figure(figsize=(2 * len(SHOWN), 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, len(SHOWN))
    digits = genprior.load("mnist-diffusion")
    assert isinstance(digits, DenoisingPrior)
    for first, prior, n, draw in (
        (0, spiral(), 1500, draw_points),
        (2, digits, 4, draw_images),
    ):
        sigmas, forward, reverse = processes(prior, n)
        draw(list(axes[first]), forward)
        draw(list(axes[first + 1]), reverse)
        for panel, sigma in zip(axes[first], sigmas, strict=True):
            panel.set_title(f"sigma = {sigma:.2g}", fontsize=10)
        axes[first][0].set_ylabel("noise added: left to right")
        axes[first + 1][0].set_ylabel("denoised: right to left")
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    figure.savefig(options.out, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
