"""Do the chains of LatentSampler agree, with its default settings? R-hat on test digits.

python benchmarks/details/chains.py --data FOLDER_OF_MNIST

A line for each problem: how many digits are below the limit, the R-hat of the others, and whether
`converged` is False on every one of them.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.operators import CompressedSensing, GaussianNoise, Inpainting, Operator, Problem
from genprior.operators.masks import box, random
from genprior.solvers import LatentSampler
from genprior.solvers.latent.latent_sampler import R_HAT


def problems(x: Tensor) -> dict[str, Problem]:
    """Holes, missing pixels and compressed measurements of digits (B, 1, 28, 28)."""
    generator = torch.Generator().manual_seed(0)
    shape, size = (1, 28, 28), (28, 28)
    scattered = random(size, missing=0.8, generator=generator)
    operators: dict[str, tuple[Operator, float]] = {
        "box of 12x12, sigma .05": (Inpainting(box(size, size=12)), 0.05),
        "box of 12x12, sigma .01": (Inpainting(box(size, size=12)), 0.01),
        "80 % missing, sigma .05": (Inpainting(scattered), 0.05),
    }
    for m in (25, 75, 100):
        operator = CompressedSensing(shape, m, generator=generator)
        operators[f"{m} measurements, noise of norm .1"] = (operator, 0.1 / m**0.5)
    return {
        name: Problem.simulate(x, operator, GaussianNoise(sigma), generator=generator)
        for name, (operator, sigma) in operators.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with MNIST's idx files")
    parser.add_argument("--prior", default="mnist-vae", help="name or weights file")
    parser.add_argument("--first", type=int, default=0, help="the first test digit")
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    prior = genprior.load(options.prior)
    digits = range(options.first, options.first + options.count)
    x = images(options.data, split="test").batch(digits)
    for name, problem in problems(x).items():
        generator = torch.Generator().manual_seed(0)
        result = LatentSampler()(problem, prior, num_samples=4, generator=generator)
        r_hat = result.trace["r_hat"][-1]
        above = r_hat > R_HAT
        named = " ".join(f"{value:.2f}" for value in r_hat[above].sort().values)
        print(
            f"{name}: R-hat <= {R_HAT} on {int((~above).sum())} of {len(x)}"
            f"{f', {named} on the others' if named else ''}; converged False on "
            f"{int((above & ~result.converged).sum())} of these {int(above.sum())}, and on "
            f"{int((~above & ~result.converged).sum())} more; least effective sample size "
            f"{result.trace['ess'][-1].min():.0f}, {result.seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
