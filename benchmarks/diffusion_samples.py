"""Samples of the diffusion priors, scored by a classifier and a Frechet distance.

    python benchmarks/diffusion_samples.py mnist-diffusion --data MNIST --features MODELS

Prints one row: the share of samples that the classifier is over 0.9 sure of, the largest
difference of a class's share from the data's, and the Frechet distance between features of
samples and of test images, beside its floor (train images against test images, as many of each).
The digits' LeNet is the classifier and gives the features (input 32x32); colour images have the
distance alone, on MobileNetV2's features.
"""

from __future__ import annotations

import argparse
import time

import torch
from common.features import LeNet, extract, load_features
from torch import Tensor

import genprior
from genprior import metrics
from genprior.data import images
from genprior.priors import Diffusion


def drawn(prior: Diffusion, count: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = [min(250, count - done) for done in range(0, count, 250)]
    return torch.cat([prior.sample(n, steps=steps, generator=generator) for n in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior")
    parser.add_argument("--data", required=True, help="folder with train and test files")
    parser.add_argument("--features", required=True, help="folder with the feature networks")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=18)
    options = parser.parse_args()
    prior = genprior.load(options.prior)
    assert isinstance(prior, Diffusion)
    channels, size, _ = prior.image_shape
    network = load_features("lenet" if channels == 1 else "mobilenet", options.features)
    sets = {
        split: images(options.data, size=size, channels=channels, split=split)
        for split in ("train", "test")
    }
    start = time.perf_counter()
    samples = drawn(prior, options.count, options.steps).clamp(0, 1)
    seconds = time.perf_counter() - start
    # As many of each: the distance is biased upwards by few images.
    count = min(options.count, len(sets["test"]))
    order = torch.randperm(len(sets["train"]), generator=torch.Generator().manual_seed(1))
    train = sets["train"].batch(order[:count])
    test = sets["test"].batch(range(count))
    fed = {"samples": samples[:count], "train": train, "test": test}
    features = {name: extract(network, x) for name, x in fed.items()}
    distance = float(metrics.frechet_distance(features["samples"], features["test"]))
    floor = float(metrics.frechet_distance(features["train"], features["test"]))
    row = {
        "prior": options.prior,
        "evaluations": options.steps,
        "frechet": f"{distance:.2f} ({distance / floor:.1f} x floor {floor:.2f}, {count} images)",
        "ms per sample": f"{1000 * seconds / options.count:.1f}",
    }
    if isinstance(network, LeNet):
        chances = {name: network.probabilities(x) for name, x in fed.items()}
        shares = {name: p.argmax(1).bincount(minlength=10) / len(p) for name, p in chances.items()}
        sure = {name: 100 * (p.amax(1) > 0.9).float().mean() for name, p in chances.items()}
        off = 100 * (shares["samples"] - shares["train"]).abs().max()
        row["sure"] = f"{sure['samples']:.1f} % (test images {sure['test']:.1f} %)"
        row["class shares"] = f"at most {off:.1f} points off"
    print("\n".join(f"{key}: {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
