"""Textures from one image: synthesis, and inpainting by kriging
=============================================================

The command::

    python examples/texture.py --out texture.png

takes brick, grass and gravel from scikit-image. A row shows the image, spot noise and random
phase of twice its size (Galerne, Gousseau, Morel 2011), then a hole, its kriging mean and a
conditional sample (Galerne, Leclaire 2017). A normal distribution knows a texture's spectrum
alone: it suits grain such as grass seen from afar, and turns bricks and pebbles, whose phases
matter, to grain of the same spectrum.

.. image:: /pictures/examples/texture.jpg
   :alt: three textures, synthesised and inpainted
"""

# sphinx_gallery_thumbnail_path = 'pictures/examples/texture.jpg'

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.priors import StationaryGaussian

SIDE, HOLE = 256, 64
NAMES = ("brick", "grass", "gravel")


def texture(name: str) -> Tensor:
    """Open one of scikit-image's textures, (1, 256, 256)."""
    from skimage import data

    image = torch.from_numpy(getattr(data, name)()).float() / 255
    return image[None, :SIDE, :SIDE]


def inpaint(
    image: Tensor, prior: StationaryGaussian, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a hole of 64x64 and fill it: measurement, mean and one sample."""
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    edge = (SIDE - HOLE) // 2
    mask[:, edge : edge + HOLE, edge : edge + HOLE] = False
    noise = GaussianNoise(0.01)
    problem = Problem.simulate(image[None], Inpainting(mask), noise, generator=generator)
    posterior = prior.posterior(problem)
    return problem.y[0], posterior.mean[0], posterior.sample(1, generator=generator)[0, 0]


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="texture.png")
    out = parser.parse_args().out
    titles = ["image", "spot noise", "random phase", "hole", "mean", "sample"]
    figure = Figure(figsize=(2.4 * len(titles), 2.5 * len(NAMES)), layout="constrained")
    axes = figure.subplots(len(NAMES), len(titles))
    generator = torch.Generator().manual_seed(0)
    for row, name in zip(axes, NAMES, strict=True):
        image = texture(name)
        prior = StationaryGaussian.fit(image)
        size = (2 * SIDE, 2 * SIDE)
        start = time.perf_counter()
        made = [
            prior.sample(1, size=size, generator=generator)[0],
            prior.random_phase(1, size=size, generator=generator)[0],
        ]
        middle = time.perf_counter()
        filled = inpaint(image, prior, generator)
        print(
            f"{name}: synthesis {middle - start:.2f} s, "
            f"inpainting {time.perf_counter() - middle:.2f} s"
        )
        for axis, title, x in zip(row, titles, (image, *made, *filled), strict=True):
            axis.imshow(x[0].clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{title}, {x.shape[-2]}x{x.shape[-1]}", fontsize=8)
            axis.set_axis_off()
    figure.savefig(out, dpi=120)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
