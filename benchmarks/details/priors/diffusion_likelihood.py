"""Bits per dimension of a diffusion prior on test images.

    python benchmarks/details/priors/diffusion_likelihood.py mnist-diffusion --data MNIST
        [--count 512] [--normal]

The density along the probability flow with Hutchinson's trace, and its standard error over images:
an estimate, unbiased but for the discretisation. A pixel stands for the cell about its grey level;
where in the cell the density is taken is drawn uniformly (`uniform dequantisation`, what published
figures use) or, with --normal, as level + smallest sigma * n kept in the cell. Both bound the bits
of the discrete image from above; the second is tighter for a prior that was trained on bare grey
levels, whose density peaks at them.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.operators.random import uniform
from genprior.priors import Diffusion, samplers


def near_levels(x: Tensor, within: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Draw x + sigma n kept within half a grey level.

    Returns:
        The draws, and minus the log-density of each image's draw, per pixel, (B,).
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    edge = normal.cdf(torch.tensor(0.5 / 255 / sigma, dtype=x.dtype))
    mass = 2 * edge - 1
    n = normal.icdf(1 - edge + mass * within)
    log_density = normal.log_prob(n) - mass.log() - math.log(sigma)
    return x + sigma * n, -log_density.flatten(1).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior")
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--normal", action="store_true")
    options = parser.parse_args()
    prior = genprior.load(options.prior)
    assert isinstance(prior, Diffusion)
    channels, size, _ = prior.image_shape
    test = images(options.data, size=size, channels=channels, split="test")
    generator = torch.Generator().manual_seed(0)
    x = test.batch(range(options.count))
    within = uniform(x.shape, generator, dtype=torch.float64)
    if options.normal:
        x, log_width = near_levels(x.double(), within, samplers.walk_range(prior)[0])
    else:
        x, log_width = (255 * x + within) / 256, -math.log(256) * torch.ones(len(x))
    logs = torch.cat(
        [
            prior.log_prob_estimate(part.float(), steps=options.steps, generator=generator)
            for part in x.split(128)
        ]
    )
    bits = -(logs / x[0].numel() + log_width) / math.log(2)
    error = bits.std() / math.sqrt(len(bits))
    print(f"{options.prior}: {bits.mean():.3f} +- {error:.3f} bits per dimension, {len(x)} images")


if __name__ == "__main__":
    main()
