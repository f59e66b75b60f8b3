"""Samples of priors, scored by a classifier and a Frechet distance.

    PYTHONPATH=benchmarks python benchmarks/details/priors/samples.py mnist-gan mnist-wgan \
        mnist-diffusion mnist-vae mnist-glow --data MNIST --features MODELS [--out samples.csv]

One row a prior: the share of samples that the classifier is over .9 sure of, the largest
difference of a class's share from the data's, and the Frechet distance between features of
samples and of test images, beside its floor (train images against test images, as many of each).
The digits' LeNet is the classifier and gives the features (input 32x32) of grey images; colour
images have the distance alone, on the mean activations of LPIPS's AlexNet. A folder that a
training run writes serves as a prior too.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from common.features import LeNet, extract, load_features
from torch import Tensor

import genprior
from genprior import metrics
from genprior.data import images
from genprior.priors import Diffusion, Prior


def drawn(prior: Prior, count: int, steps: int, seed: int) -> Tensor:
    """Return samples (count, C, H, W) within [0, 1]; only a diffusion takes `steps`."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"steps": steps} if isinstance(prior, Diffusion) else {}
    parts = [min(250, count - done) for done in range(0, count, 250)]
    return torch.cat([prior.sample(n, generator=generator, **options) for n in parts]).clamp(0, 1)


def references(options: argparse.Namespace, shape: tuple[int | None, ...]) -> dict[str, Tensor]:
    """Return images of the data, as many of each split: a distance of few is biased upwards."""
    channels, size, _ = shape
    sets = {
        split: images(options.data, size=size, channels=channels, split=split)
        for split in ("train", "test")
    }
    count = min(options.count, len(sets["test"]))
    order = torch.randperm(len(sets["train"]), generator=torch.Generator().manual_seed(1))
    return {"train": sets["train"].batch(order[:count]), "test": sets["test"].batch(range(count))}


def score(name: str, options: argparse.Namespace) -> dict[str, Any]:
    prior = genprior.load(name)
    fed = references(options, prior.image_shape)
    start = time.perf_counter()
    samples = drawn(prior, options.count, options.steps, options.seed)
    seconds = time.perf_counter() - start
    kind = options.network or ("lenet" if prior.image_shape[0] == 1 else "alexnet")
    network = load_features(kind, options.features)
    fed["samples"] = samples[: len(fed["test"])]
    features = {k: extract(network, x) for k, x in fed.items()}
    distance = float(metrics.frechet_distance(features["samples"], features["test"]))
    floor = float(metrics.frechet_distance(features["train"], features["test"]))
    row = {
        "prior": name,
        "features": kind,
        "images": len(fed["test"]),
        "evaluations": options.steps if isinstance(prior, Diffusion) else 1,
        "frechet": distance,
        "floor": floor,
        "times the floor": distance / floor,
        "ms per sample": 1000 * seconds / options.count,
    }
    if isinstance(network, LeNet):
        fed["samples"] = samples
        chances = {k: network.probabilities(x) for k, x in fed.items()}
        shares = {k: p.argmax(1).bincount(minlength=10) / len(p) for k, p in chances.items()}
        sure = {k: 100 * float((p.amax(1) > 0.9).float().mean()) for k, p in chances.items()}
        row["sure"], row["sure, test"] = sure["samples"], sure["test"]
        row["class off"] = 100 * float((shares["samples"] - shares["train"]).abs().max())
    return {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("priors", nargs="+")
    parser.add_argument("--data", required=True, help="folder with train and test files")
    parser.add_argument("--features", required=True, help="folder with the feature networks")
    parser.add_argument("--network", help="feature network in place of the images' own")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=18, help="of a diffusion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="CSV to write")
    options = parser.parse_args()
    rows = []
    for name in options.priors:
        rows.append(score(name, options))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.out:
        with Path(options.out).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
