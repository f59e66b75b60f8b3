"""Figures of an exact prior on images that it was not fitted to, written into its card.

    python benchmarks/details/exact_priors.py pretrained/cats64-gaussian.safetensors \
        --data cats64_test.npz --write

    python benchmarks/details/exact_priors.py pretrained/cats64-gaussian.safetensors \
        --data cats64_test.npz --before cats64-gaussian-float16.safetensors

Bits per dimension under uniform dequantisation; and a box of a quarter of the area inpainted with
noise of std 0.02: PSNR of the posterior mean inside the box, and how often the 90 % interval of a
missing pixel holds. With --before, what another file of the same prior gives, as one stored more
exactly: the change of log density with its standard error over images, of the PSNR, and of the
posterior mean in units of the posterior std.
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


def log_density(prior: Gaussian | GaussianMixture, x: Tensor) -> Tensor:
    """Log p of 8-bit pixels, noise of one grey level added, in nats per number, (B,)."""
    noise = uniform(x.shape, torch.Generator().manual_seed(0)) - 0.5
    nats = torch.cat([prior.log_prob(rows) for rows in (x + noise / 255).split(256)])
    return nats.double() / x[0].numel()


def box_problem(x: Tensor) -> tuple[Problem, Tensor]:
    """Images (B, C, H, W) with a box of a quarter of the area missing, and which numbers are."""
    height, width = x.shape[-2:]
    mask = masks.box((height, width), size=(height // 2, width // 2))
    problem = Problem.simulate(
        x, Inpainting(mask), GaussianNoise(SIGMA), generator=torch.Generator().manual_seed(1)
    )
    return problem, ~mask.expand(x.shape[1:])


def inpainting(prior: Gaussian | GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and std of the missing numbers, (B, n) each."""
    problem, missing = box_problem(x)
    posterior = prior.posterior(problem)
    return posterior.mean[:, missing], posterior.std[:, missing]


def psnr(error: Tensor) -> float:
    """Mean PSNR in dB of images with errors (B, n)."""
    return float(-10 * error.square().mean(1).log10().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior", type=Path)
    parser.add_argument("--data", required=True, help="test images")
    parser.add_argument("--count", type=int, default=256, help="images")
    parser.add_argument("--before", type=Path, help="another file of the same prior")
    parser.add_argument("--write", action="store_true", help="into the card of the file")
    options = parser.parse_args()
    prior = Prior.load(options.prior)
    if not isinstance(prior, Gaussian | GaussianMixture):
        raise SystemExit(f"{options.prior} is a {type(prior).__name__}")
    channels, height, width = prior.check_size(None)
    data = images(options.data, size=(height, width), channels=channels)
    x = data.batch(range(min(options.count, len(data))))
    truth = x[:, box_problem(x)[1]]
    mean, std = inpainting(prior, x)
    nats = log_density(prior, x)
    covered = ((mean - truth).abs() < NORMAL_90 * std).double().mean()
    figures: dict[str, Any] = {
        "test images": len(x),
        "bits per dimension": round(-float(nats.mean()) / math.log(2) + math.log2(255), 3),
        "box inpainting, PSNR in the box, dB": round(psnr(mean - truth), 2),
        "box inpainting, coverage of 90 %": round(float(covered), 3),
    }
    if options.before is not None:
        before = Prior.load(options.before)
        assert isinstance(before, Gaussian | GaussianMixture)
        change = nats - log_density(before, x)
        old_mean, old_std = inpainting(before, x)
        shift = ((mean - old_mean) / old_std).square().mean().sqrt()
        figures |= {
            "int8: nats per number lost": round(-float(change.mean()), 5),
            "int8: its standard error": round(float(change.std()) / len(x) ** 0.5, 5),
            "int8: PSNR in the box before, dB": round(psnr(old_mean - truth), 2),
            "int8: posterior mean moved, posterior std": round(float(shift), 3),
        }
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.write:
        card = {**read_header(options.prior)["card"], "figures": figures}
        prior.save(options.prior, card=card, dtype=torch.int8)


if __name__ == "__main__":
    main()
