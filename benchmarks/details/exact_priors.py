"""Figures of an exact prior on images that it was not fitted to, written into its card.

    python benchmarks/details/exact_priors.py pretrained/cats64-gaussian.safetensors \
        --data cats64_test.npz --write

Bits per dimension under uniform dequantisation; and a box of a quarter of the area inpainted with
noise of std 0.02: PSNR of the posterior mean inside the box, and how often the 90 % interval of a
missing pixel holds.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprior.data import images
from genprior.operators import GaussianNoise, Inpainting, Problem, masks
from genprior.operators.random import uniform
from genprior.priors import Gaussian, GaussianMixture, Prior
from genprior.priors.files import read_header

SIGMA = 0.02
NORMAL_90 = 1.644854


def bits_per_dimension(prior: Gaussian | GaussianMixture, x: Tensor) -> float:
    """-log2 p of 8-bit pixels, noise of one grey level added."""
    noise = uniform(x.shape, torch.Generator().manual_seed(0)) - 0.5
    nats = torch.cat([prior.log_prob(rows) for rows in (x + noise / 255).split(256)])
    return float(-nats.double().mean()) / (x[0].numel() * math.log(2)) + math.log2(255)


def inpainting(prior: Gaussian | GaussianMixture, x: Tensor) -> tuple[float, float]:
    """PSNR inside the box in dB, and coverage of the normal 90 % interval there."""
    height, width = x.shape[-2:]
    mask = masks.box((height, width), size=(height // 2, width // 2))
    problem = Problem.simulate(
        x, Inpainting(mask), GaussianNoise(SIGMA), generator=torch.Generator().manual_seed(1)
    )
    posterior = prior.posterior(problem)
    missing = ~mask.expand(x.shape[1:])
    error = (posterior.mean - x)[:, missing]
    psnr = -10 * error.square().mean(1).log10()
    covered = error.abs() < NORMAL_90 * posterior.std[:, missing]
    return float(psnr.mean()), float(covered.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior", type=Path)
    parser.add_argument("--data", required=True, help="test images")
    parser.add_argument("--count", type=int, default=256, help="images")
    parser.add_argument("--write", action="store_true", help="into the card of the file")
    options = parser.parse_args()
    prior = Prior.load(options.prior)
    if not isinstance(prior, Gaussian | GaussianMixture):
        raise SystemExit(f"{options.prior} is a {type(prior).__name__}")
    channels, height, width = prior.check_size(None)
    data = images(options.data, size=(height, width), channels=channels)
    x = data.batch(range(min(options.count, len(data))))
    psnr, coverage = inpainting(prior, x)
    figures: dict[str, Any] = {
        "test images": len(x),
        "bits per dimension": round(bits_per_dimension(prior, x), 3),
        "box inpainting, PSNR in the box, dB": round(psnr, 2),
        "box inpainting, coverage of 90 %": round(coverage, 3),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.write:
        card = {**read_header(options.prior)["card"], "figures": figures}
        prior.save(options.prior, card=card, dtype=torch.float16)


if __name__ == "__main__":
    main()
