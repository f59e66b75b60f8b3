"""Compressed sensing of digits: the figure's table, and what an iteration costs.

python benchmarks/csgm.py --data FOLDER_OF_MNIST --out csgm/

The protocol is that of `genprior.figure_csgm`. Writes csgm.csv and csgm.png. Lasso needs
scikit-learn (the dev extra).
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.figure_csgm import compare, draw, pose
from genprior.priors import VAE
from genprior.solvers import LatentMAP
from genprior.solvers.base import Counted
from genprior.solvers.latent_posterior import latent_posterior


def overhead(prior: VAE, x: Tensor, optimizer: Literal["lbfgs", "adam"]) -> tuple[float, float]:
    """Processor time of LatentMAP, 10 images by 10 restarts at m = 100, over two bare loops.

    Both loops run over the same numbers of rows as the solver did: rows that converged have left.

    Returns:
        Over the decoder's forward and backward alone, and over those with measurement and
        likelihood; medians of 5 runs side by side.
    """
    problem = pose(x, 100)
    solver = LatentMAP(optimizer, restarts=10, steps=250, tolerance=0.0)
    sizes: list[int] = []
    hook = prior.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    solver(problem, prior, generator=torch.Generator().manual_seed(0))
    hook.remove()
    index = torch.arange(len(x)).repeat_interleave(10)
    whole = latent_posterior(Counted(prior), problem.take(index), None)
    posteriors = {n: whole.take(torch.arange(n)) for n in set(sizes)}
    z = torch.randn(len(index), *prior.latent_shape, generator=torch.Generator().manual_seed(0))

    def decoder_alone() -> None:
        for n in sizes:
            latent = z[:n].detach().requires_grad_()
            image = prior.decode(latent)
            torch.autograd.grad(image, latent, torch.ones_like(image))

    def gradients() -> None:
        for n in sizes:
            posteriors[n].value_and_gradient(z[:n])

    def solve() -> None:
        solver(problem, prior, generator=torch.Generator().manual_seed(0))

    ratios = []
    for _ in range(5):
        decoder, likelihood, solved = (_seconds(f) for f in (decoder_alone, gradients, solve))
        ratios.append((solved / decoder, solved / likelihood))
    first, second = (sorted(column)[2] for column in zip(*ratios, strict=True))
    return first, second


def _seconds(function: Callable[[], None]) -> float:
    """Processor time, which other processes do not lengthen much."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with MNIST's idx files")
    parser.add_argument("--prior", default="mnist-vae", help="name or weights file")
    parser.add_argument("--overhead", action="store_true", help="measure the cost alone")
    parser.add_argument("--out", type=Path, default=Path("csgm"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prior = genprior.load(options.prior)
    assert isinstance(prior, VAE)
    x = images(options.data, split="test").batch(range(10))
    for optimizer in ("adam", "lbfgs"):
        decoder, likelihood = overhead(prior, x, optimizer)
        print(
            f"{optimizer}: {decoder:.3f} times the decoder's forward and backward, "
            f"{likelihood:.3f} times those with measurement and likelihood"
        )
    if options.overhead:
        return
    rows = compare(prior, x)
    with open(options.out / "csgm.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    draw(rows).savefig(options.out / "csgm.png", dpi=150)


if __name__ == "__main__":
    main()
