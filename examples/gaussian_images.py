"""The Gaussian model of images: mean, principal directions, samples.

    python examples/gaussian_images.py cats64-gaussian
    python examples/gaussian_images.py PHOTOS --size 64 --rank 200

draws a grid: the mean and a pixel's standard deviation, the mean moved by two standard deviations
either way along each of the widest directions, and eight samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.plots import grid
from genprior.priors import Gaussian

COLUMNS = 8


def picture(prior: Gaussian, generator: torch.Generator) -> Tensor:
    """Rows of eight images: mean and std, directions down, directions up, samples."""
    law = prior.law(prior.mean.dtype)
    widest = law.factors[:COLUMNS].reshape(-1, *prior.mean.shape)
    std = (prior.data_std / prior.data_std.max()).expand_as(prior.mean)
    blank = torch.ones_like(prior.mean).expand(COLUMNS - 2, -1, -1, -1)
    return torch.cat(
        [
            torch.stack([prior.mean, std]),
            blank,
            prior.mean - 2 * widest,
            prior.mean + 2 * widest,
            prior.sample(COLUMNS, generator=generator),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
    grid(picture(prior, generator).clamp(0, 1), path=options.out, columns=COLUMNS)
    print(f"wrote {options.out}: rank {len(prior.factors)}, residual {float(prior.residual):.4f}")


if __name__ == "__main__":
    main()
