"""Solvers where the posterior has many modes and is known: a data set of digits as the prior.

    python benchmarks/lens.py --data MNIST_FOLDER [--out docs/results/lens.csv]

Prior: 3,000 training digits, each a normal law of std .2 (`genprior.priors.Empirical`), with its
exact denoiser. Problems: digits of the prior with a box of 14x14 missing, noise .05. A sample
belongs to the digit that explains it best; it is *lost* where that digit has a posterior weight
under .001. No network errs here: what is lost, the guidance and the walk lose.

Columns: forwards and vector-Jacobian products a sample; share of samples lost, with its standard
error over problems; CRPS in thousandths inside the box; standard deviation of the samples there.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from common.exact_problems import summary
from torch import Tensor

from genprior.data import images
from genprior.metrics import crps
from genprior.operators import GaussianNoise, Inpainting, Problem, masks
from genprior.operators.random import spawn
from genprior.priors import Empirical
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    DiffPIR,
    ExactPosterior,
    PiGDM,
    RePaint,
    Solver,
)
from genprior.solvers.result import Result

BANDWIDTH, SIGMA, BOX, SIDE = 0.2, 0.05, 14, 28
LOST = 1e-3

SOLVERS: dict[str, Solver] = {
    "exact": ExactPosterior(),
    "MMPS steered": MMPS.steered(),
    "MMPS 20": MMPS(),
    "MMPS 50": MMPS(steps=50),
    "MMPS 20, 4 returns": MMPS(returns=4),
    "PiGDM 50": PiGDM(steps=50),
    "PiGDM 100": PiGDM(steps=100),
    "DPS 50": DPS(steps=50),
    "DPS 100": DPS(steps=100),
    "DAPS 100": DAPS(),
    "DiffPIR 100": DiffPIR(),
    "DDRM 100": DDRM(),
    "DDNM 100": DDNM(),
    "RePaint 100": RePaint(),
}


def prior_and_problem(data: Tensor, count: int, seed: int) -> tuple[Empirical, Problem, Tensor]:
    """Draw `count` problems of the prior that the digits `data` (N, 1, 28, 28) are."""
    generator = torch.Generator().manual_seed(seed)
    prior = Empirical(data, BANDWIDTH)
    x = prior.sample(count, generator=generator)
    operator = Inpainting(masks.box((SIDE, SIDE), size=BOX), image_shape=(1, SIDE, SIDE))
    problem = Problem.simulate(x, operator, GaussianNoise(SIGMA), generator=generator)
    return prior, problem, x


def lost(samples: Tensor, weights: Tensor, prior: Empirical) -> Tensor:
    """Share of the samples (B, S, C, H, W) in modes of small posterior weight (B, N), (B,)."""
    batch, count = samples.shape[:2]
    mode = prior.modes(samples.flatten(0, 1)).view(batch, count)
    return (weights.gather(1, mode) < LOST).double().mean(1)


def row(result: Result, weights: Tensor, prior: Empirical, truth: Tensor) -> dict[str, float]:
    """What the table says of one solver."""
    inside = slice((SIDE - BOX) // 2, (SIDE + BOX) // 2)
    hole = result.samples[..., inside, inside]
    share, error = summary(lost(result.samples, weights, prior).tolist())
    return {
        "forwards": result.forwards,
        "vjps": result.vjps,
        "lost": share,
        "lost_error": error,
        "crps_thousandths": 1000 * float(crps(hole, truth[..., inside, inside]).mean()),
        "std_in_the_hole": float(hole.std(1).mean()),
        "seconds": result.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True, help="MNIST: a folder of idx files")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1000, help="settings were chosen on others")
    parser.add_argument("--solver", nargs="*", default=list(SOLVERS), help="rows, by name")
    parser.add_argument("--out", type=Path, default=None, help="CSV to write")
    options = parser.parse_args()
    source = images(options.data, split="train")
    data = torch.stack([source[i] for i in range(3000)])
    prior, problem, truth = prior_and_problem(data, options.problems, options.seed)
    weights = prior.posterior(problem).weights
    rows = []
    for name in options.solver:
        generators = spawn(torch.Generator().manual_seed(options.seed + 1), options.problems)
        result = SOLVERS[name](problem, prior, num_samples=options.samples, generator=generators)
        rows.append({"solver": name, **row(result, weights, prior, truth)})
        print(
            "  ".join(
                f"{v:>8.3f}" if isinstance(v, float) else f"{v:18}" for v in rows[-1].values()
            ),
            flush=True,
        )
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
