"""Compressed sensing of digits: the figure's table, and what an iteration costs.

python benchmarks/csgm.py --data FOLDER_OF_MNIST --out csgm/

The protocol is that of `genprior.figure_csgm`. Writes csgm.csv and csgm.png. Lasso needs
scikit-learn (the dev extra).
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.figure_csgm import compare, draw, pose
from genprior.priors import VAE
from genprior.solvers import LatentMAP
from genprior.solvers.base import Counted
from genprior.solvers.latent_posterior import latent_posterior


def overhead(prior: VAE, x: Tensor, *, m: int = 100, steps: int = 100) -> float:
    """Time of LatentMAP with Adam over that of its gradients alone, the median of 5 pairs.

    The bare loop evaluates decoder, operator and likelihood, forwards and backwards.
    """
    problem = pose(x, m)
    solver = LatentMAP("adam", restarts=10, steps=steps, tolerance=0.0)
    index = torch.arange(len(x)).repeat_interleave(10)
    posterior = latent_posterior(Counted(prior), problem.take(index), None)
    z = torch.randn(len(index), *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(steps + 1):
            posterior.value_and_gradient(z)
        bare = time.perf_counter() - start
        ratios.append(solver(problem, prior).seconds / bare)
    return sorted(ratios)[len(ratios) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with MNIST's idx files")
    parser.add_argument("--prior", default="mnist-vae", help="name or weights file")
    parser.add_argument("--out", type=Path, default=Path("csgm"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prior = genprior.load(options.prior)
    assert isinstance(prior, VAE)
    x = images(options.data, split="test").batch(range(10))
    print(f"an iteration costs {overhead(prior, x):.3f} times its forward and backward")
    rows = compare(prior, x)
    with open(options.out / "csgm.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    draw(rows).savefig(options.out / "csgm.png", dpi=150)


if __name__ == "__main__":
    main()
