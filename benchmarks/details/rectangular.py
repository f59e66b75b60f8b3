"""Rectangular flows against what is known: a density on a curve, and principal components.

python benchmarks/details/rectangular.py [--data FOLDER_OF_MNIST --prior FILE]

A helix of one number in three is learned from 4,000 points and compared with its true density on
1,000 others. With --prior, its projections of the test digits (every fourth) are compared with
those onto as many principal components of the training digits.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.priors import RectangularFlow
from genprior.training import TrainingOptions

STEPS = 1000


def helix(t: Tensor) -> Tensor:
    """Return the points (B, 1, 1, 3) at angles t (B,)."""
    return (0.5 + 0.3 * torch.stack((t.cos(), t.sin(), t / 2), 1))[:, None, None]


def said(values: Tensor) -> str:
    """Write a mean and its standard error."""
    return f"{values.mean():.4f} +- {values.std() / len(values) ** 0.5:.4f}"


def curve() -> None:
    """Train on points whose angle is N(0, 1) and print how far density and points are off."""
    t = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    seen, test = t[:4000], t[4000:]
    flow = RectangularFlow((1, 1, 3), 1, flow={"hidden": [64]}, std=0.01)
    options = TrainingOptions(precision="fp32", accelerator="cpu", learning_rate=3e-3)
    flow = genprior.train(flow, helix(seen), steps=STEPS, batch_size=256, options=options)
    x = helix(test)
    length = 0.3 * (1 + 0.5**2) ** 0.5  # of the curve for each radian
    true = torch.distributions.Normal(0, 1).log_prob(test) - torch.tensor(length).log()
    gap = true - flow.log_prob(x)
    distance = (flow.decode(flow.encode(x)) - x).square().sum((1, 2, 3)).sqrt()
    print(f"helix: true log p {said(true)}, less the flow's {said(gap)} (size {said(gap.abs())})")
    print(f"    distance of points from their projections {said(distance)}")


def digits(data: str, path: str) -> None:
    """Print the error of projections of digits, and of those onto principal components."""
    flow = genprior.load(path)
    assert isinstance(flow, RectangularFlow)
    side, k = flow.image_shape[1], flow.latent_shape[0]
    train = images(data, split="train", size=side)
    seen = train.batch(range(0, len(train), 6)).flatten(1)
    test = images(data, split="test", size=side)
    x = test.batch(range(0, len(test), 4))
    mean = seen.mean(0)
    axes = torch.linalg.svd(seen - mean, full_matrices=False).Vh[:k]
    centred = x.flatten(1) - mean
    plane = (centred - centred @ axes.T @ axes).square().mean(1)
    surface = (flow.decode(flow.encode(x)) - x).flatten(1).square().mean(1)
    print(f"{len(x)} digits of {side}x{side}, k = {k}: squared error of a pixel {said(surface)}")
    print(f"    {k} principal components {said(plane)}, log p {said(flow.log_prob(x))} nats")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with MNIST's idx files")
    parser.add_argument("--prior", help="a RectangularFlow of digits")
    options = parser.parse_args()
    if options.prior:
        digits(options.data, options.prior)
    else:
        with torch.enable_grad():
            curve()


if __name__ == "__main__":
    main()
