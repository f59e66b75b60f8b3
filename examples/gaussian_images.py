"""The Gaussian model of images: mean, principal directions, samples
==================================================================

Either of the commands::

    python examples/gaussian_images.py cats64-gaussian
    python examples/gaussian_images.py PHOTOS --size 64 --rank 200

draws the mean and a pixel's standard deviation, the mean moved by two standard deviations either
way along each of the eight widest directions, and eight samples.

.. image:: /pictures/examples/gaussian_images.png
   :alt: mean, directions and samples of the Gaussian of cats
"""

# sphinx_gallery_thumbnail_path = 'pictures/examples/gaussian_images.png'

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import genprior
from genprior.data import images
from genprior.plots import grid
from genprior.priors import Gaussian

COLUMNS = 8


def rows(prior: Gaussian, generator: torch.Generator) -> dict[str, Tensor]:
    """Make each row of the picture, at most eight images (n, C, H, W), by its title."""
    law = prior.law(prior.mean.dtype)
    widest = law.factors[:COLUMNS].reshape(-1, *prior.mean.shape)
    std = (prior.data_std / prior.data_std.max()).expand_as(prior.mean)
    top = float(prior.data_std.max())
    return {
        f"mean, and standard deviation of each pixel (white is {top:.2f})": torch.stack(
            [prior.mean, std]
        ),
        "the mean less two standard deviations along each of the widest directions": prior.mean
        - 2 * widest,
        "the mean plus two standard deviations along the same": prior.mean + 2 * widest,
        "samples": prior.sample(COLUMNS, generator=generator),
    }


def draw(shown: dict[str, Tensor], path: str) -> None:
    """Draw rows below each other, each under its title."""
    figure = Figure(figsize=(COLUMNS, 1.3 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, drawn) in zip(figure.subplots(len(shown), 1), shown.items(), strict=True):
        blank = drawn.new_ones(COLUMNS - len(drawn), *drawn.shape[1:])
        tiles = grid(torch.cat([drawn, blank]), columns=COLUMNS).permute(1, 2, 0)
        axis.imshow(tiles, cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a prior's name or weights file, or images to fit")
    parser.add_argument("--size", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--out", default="gaussian_images.png")
    options = parser.parse_args()
    if options.source in genprior.available() or Path(options.source).suffix == ".safetensors":
        prior = genprior.load(options.source)
    else:
        prior = Gaussian.fit(images(options.source, size=options.size), rank=options.rank)
    if not isinstance(prior, Gaussian):
        raise SystemExit(f"{options.source} is a {type(prior).__name__}, not a Gaussian")
    generator = torch.Generator().manual_seed(0)
    draw(rows(prior, generator), options.out)
    print(f"wrote {options.out}: rank {len(prior.factors)}, residual {float(prior.residual):.4f}")


if __name__ == "__main__":
    main()
