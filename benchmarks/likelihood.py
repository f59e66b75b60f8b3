"""Bits per dimension of a diffusion prior on test images, uniform dequantisation.

    python benchmarks/likelihood.py mnist-diffusion --data MNIST [--count 512]

The density of (256 levels + uniform) / 256 along the probability flow, Hutchinson's trace: an
estimate, unbiased but for the discretisation, with its standard error over images.
"""

from __future__ import annotations

import argparse
import math

import torch

import genprior
from genprior.data import images
from genprior.operators.random import uniform
from genprior.priors import Diffusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior")
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    prior = genprior.load(options.prior)
    assert isinstance(prior, Diffusion)
    channels, size, _ = prior.image_shape
    test = images(options.data, size=size, channels=channels, split="test")
    generator = torch.Generator().manual_seed(0)
    x = test.batch(range(options.count))
    x = (255 * x + uniform(x.shape, generator)) / 256
    logs = torch.cat(
        [
            prior.log_prob_estimate(part, steps=options.steps, generator=generator)
            for part in x.split(128)
        ]
    )
    bits = -logs / (x[0].numel() * math.log(2)) + 8
    error = bits.std() / math.sqrt(len(bits))
    print(f"{options.prior}: {bits.mean():.3f} +- {error:.3f} bits per dimension, {len(x)} images")


if __name__ == "__main__":
    main()
